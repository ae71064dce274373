"""Image models in files without a config: torchvision's weights, DINOv2's own files, and DINOv2 in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import WeightMap
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ..model import VisionTransformerConfig
from ..preprocessing import IMAGENET, Preprocessing
from . import bare
from . import onnx as onnx_weights
from .family import VisionFamily, different, rules, within
from .hf import DINO2
from .hf_preprocessing import CROPPED

_PLAIN = {"up": "mlp.fc1", "down": "mlp.fc2"}
TORCHVISION = {
    "class_token": "class_token",
    "positions": "encoder.pos_embedding",
    "patch": "conv_proj",
    "final_norm": "encoder.ln",
    "pre_logits": "heads.pre_logits",
    "head": "heads.head",
} | within(
    "encoder.layers.encoder_layer_{}.", norm1="ln_1", qkv_weight="self_attention.in_proj_weight",
    qkv_bias="self_attention.in_proj_bias", out="self_attention.out_proj", norm2="ln_2", up="mlp.0", down="mlp.3",
)  # fmt: skip

DINO2_HUB = {
    "class_token": "cls_token",
    "registers": "register_tokens",
    "positions": "pos_embed",
    "patch": "patch_embed.proj",
    "final_norm": "norm",
} | within(
    "blocks.{}.", norm1="norm1", qkv="attn.qkv", out="attn.proj", scale1="ls1.gamma", norm2="norm2", scale2="ls2.gamma",
)  # fmt: skip


# --- torchvision ------------------------------------------------------------------------------------------------------

_PUBLISHED = {(768, 12, 3072): ("vit_b", 12), (1024, 24, 4096): ("vit_l", 16), (1280, 32, 5120): ("vit_h", 16)}
"""torchvision's models, by their shape."""
_ARGUMENTS = (
    "image_size", "patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim", "num_classes", "dropout",
    "attention_dropout", "representation_size",
)  # fmt: skip
"""Arguments of its `VisionTransformer` that have a counterpart here, or none that outputs depend on (dropout)."""
_FIRST = Preprocessing(list(IMAGENET[0]), list(IMAGENET[1]), "bilinear", 224 / 256)
_SWAG = replace(_FIRST, interpolation="bicubic", crop_pct=1.0)
_PREPROCESSING = {
    (768, 16, 224): _FIRST, (768, 32, 224): _FIRST, (1024, 32, 224): _FIRST,
    (1024, 16, 224): replace(_FIRST, crop_pct=224 / 242), (768, 16, 384): _SWAG, (1024, 16, 512): _SWAG,
    (1280, 14, 518): _SWAG, (1280, 14, 224): _SWAG,
}  # fmt: skip
"""How its weights want images, by width, patch and image size; those called swag as `_SWAG` says at every size."""


def _file_with(*names: str) -> Callable[[Source], bool]:
    return lambda source: (
        source.file is not None and source.file.suffix != ".onnx" and source.tensors().keys() >= {*names}
    )


def _is_torchvision(source: Source) -> bool:
    if source.file:
        return _file_with("conv_proj.weight", "encoder.pos_embedding", "encoder.ln.weight")(source)
    return source.config.get("library") == "torchvision"


def _count(names: Collection[str], before: str) -> int:
    return len({name.removeprefix(before).split(".")[0] for name in names if name.startswith(before)})


def _head(names: Collection[str]) -> str | None:
    """Name of the head: that of torchvision, or of the one linear layer that many put in the place of `heads`."""
    return next((name for name in ("heads.head", "heads") if f"{name}.weight" in names), None)


def _torchvision_arguments(source: Source) -> dict[str, Any]:
    """What a file of weights says about the `VisionTransformer` it belongs to."""
    found = source.tensors()
    dim, _, patch, width = found["conv_proj.weight"].shape
    if patch != width:
        raise UserError(f"'{source.name}' has patches of {patch}×{width} pixels, but torchvision's are square.")
    layers, head = "encoder.layers.encoder_layer_", _head(found)
    hidden = next(
        (found[n].shape[0] for n in (f"{layers}0.mlp.{m}.weight" for m in ("0", "linear_1")) if n in found), 0
    )
    depth = _count(found, layers)
    return {
        "image_size": bare.square(source, found["encoder.pos_embedding"].shape[1] - 1) * patch, "patch_size": patch,
        "num_layers": depth, "num_heads": bare.heads_of(source, "torchvision ViT", (dim, depth, hidden), _PUBLISHED),
        "hidden_dim": dim, "mlp_dim": hidden, "num_classes": found[f"{head}.weight"].shape[0] if head else 0,
        "representation_size": dim if "heads.pre_logits.weight" in found else None,
    }  # fmt: skip


def read_torchvision(a: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from the arguments of torchvision's `VisionTransformer`."""
    if odd := [name for name, value in a.items() if name not in _ARGUMENTS and value is not None]:
        raise UserError(f"{', '.join(odd)} in its model_args is a setting that our model does not have.")
    if a.get("representation_size") not in (None, a["hidden_dim"]):
        raise UserError(f"representation_size is {a['representation_size']}, but must be hidden_dim or null here.")
    core = TransformerConfig(
        dim=a["hidden_dim"], depth=a["num_layers"], heads=a["num_heads"], ffn_dim=a["mlp_dim"], norm_eps=1e-6,
        position="none",
    )  # fmt: skip
    return VisionTransformerConfig(
        image_size=a["image_size"], patch_size=a["patch_size"], classes=a.get("num_classes", 1000), transformer=core,
        resample="torchvision", pre_logits=bool(a.get("representation_size")),
    )  # fmt: skip


def write_torchvision(config: VisionTransformerConfig) -> dict[str, Any]:
    """A `config.json` that says how to make the model: `torchvision.models.VisionTransformer(**model_args)`."""
    core = config.transformer.resolved()
    arguments = {
        "image_size": config.size[0], "patch_size": config.patch[0], "num_layers": core.depth, "num_heads": core.heads,
        "hidden_dim": core.dim, "mlp_dim": core.ffn_dim, "num_classes": config.classes,
        "representation_size": core.dim if config.pre_logits else None,
    }  # fmt: skip
    return {
        "library": "torchvision",
        "architecture": "VisionTransformer",
        "model_args": arguments,
        "labels": config.labels,
        "preprocessing": asdict(config.preprocessing),
    }


def _torchvision_config(source: Source) -> VisionTransformerConfig:
    arguments = _torchvision_arguments(source) if source.file else source.config.get("model_args")
    more = bare.said(source) if source.file else source.config
    try:
        found = read_torchvision(arguments or {})
    except (KeyError, TypeError) as error:
        raise UserError(f"The model_args in the config.json of '{source.name}' lack {error}.") from None
    shape = (found.transformer.dim, found.patch[0], found.size[0])
    usual = _SWAG if "swag" in source.path.name else _PREPROCESSING.get(shape, _FIRST)
    usual = bare.prepared(source, usual, "torchvision's own weights of this shape")
    return replace(found, labels=list(more.get("labels") or ()), preprocessing=usual)


def _torchvision_table(config: VisionTransformerConfig, names: Collection[str]) -> WeightMap:
    old = "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in names
    found = dict(TORCHVISION)
    if old:
        found = {w: n.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2") for w, n in found.items()}
    return WeightMap(rules(found | {"head": _head(names) or "heads.head"}, config.transformer.dim))


def _torchvision_why_not(config: VisionTransformerConfig) -> list[str]:
    try:
        return different(config, read_torchvision(write_torchvision(config)["model_args"]))
    except UserError:
        return ["its shapes"]


# --- DINOv2 -----------------------------------------------------------------------------------------------------------


_DINO2_PUBLISHED = {
    (384, 12, 1536): ("dinov2_vits", 6), (768, 12, 3072): ("dinov2_vitb", 12), (1024, 24, 4096): ("dinov2_vitl", 16),
    (1536, 40, 4096): ("dinov2_vitg", 24),
}  # fmt: skip


def _dino2_hub_config(source: Source) -> VisionTransformerConfig:
    """DINOv2's own files say no settings. Its code gives all its models one epsilon and activation, and one way to
    stretch positions with and one without registers; the heads are those of its published models.
    """
    found = source.tensors()
    dim, channels, *patch = found["patch_embed.proj.weight"].shape
    registers = found["register_tokens"].shape[1] if "register_tokens" in found else 0
    rows = bare.square(source, found["pos_embed"].shape[1] - 1)
    gated, depth = "blocks.0.mlp.w12.weight" in found, _count(found, "blocks.")
    hidden = found["blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"].shape[1]
    core = TransformerConfig(
        dim=dim, depth=depth, heads=bare.heads_of(source, "DINOv2", (dim, depth, hidden), _DINO2_PUBLISHED),
        position="none", norm_eps=1e-6, layer_scale=1.0, ffn="swiglu" if gated else "gelu", ffn_dim=hidden,
    )  # fmt: skip
    usual = CROPPED if channels == 3 else replace(CROPPED, mean=[0.5], std=[0.5])
    return VisionTransformerConfig(
        image_size=[rows * side for side in patch], patch_size=patch, channels=channels, classes=0, transformer=core,
        registers=registers, resample="timm" if registers else "dinov2-hub",
        preprocessing=bare.prepared(source, usual, "DINOv2"), labels=bare.said(source).get("labels", []),
    )  # fmt: skip


def _dino2_hub_table(config: VisionTransformerConfig, names: Collection[str] = ()) -> WeightMap:
    gated = {"gate_up": "mlp.w12", "down": "mlp.w3"}
    ffn = within("blocks.{}.", **(gated if config.transformer.gated else _PLAIN))
    return WeightMap(rules(DINO2_HUB | ffn, config.transformer.dim), ("mask_token",))


def _onnx_config(source: Source) -> VisionTransformerConfig:
    found = onnx_weights.settings(source)
    core = TransformerConfig(
        dim=found.dim, depth=found.depth, heads=found.heads, ffn=found.ffn, ffn_dim=found.ffn_dim, position="none",
        norm_eps=found.norm_eps, layer_scale=1.0,
    )  # fmt: skip
    return VisionTransformerConfig(
        image_size=found.image_size,
        patch_size=found.patch_size,
        classes=0,
        transformer=core,
        preprocessing=bare.prepared(source, CROPPED, "DINOv2"),
    )


TORCHVISION_VIT = VisionFamily(
    "torchvision ViT", "torchvision", _is_torchvision, _torchvision_config,
    lambda config: _torchvision_table(config, ()),
    write_torchvision, lambda config: not _torchvision_why_not(config), table=_torchvision_table,
    why_not=_torchvision_why_not, resample="torchvision",
)  # fmt: skip
DINO2_FILE = VisionFamily(
    "DINOv2's own files", "other",
    _file_with("mask_token", "pos_embed", "blocks.0.ls1.gamma", "patch_embed.proj.weight"),
    _dino2_hub_config, _dino2_hub_table, table=_dino2_hub_table,
)  # fmt: skip
DINO2_ONNX = VisionFamily(
    "DINOv2 in ONNX", "other", lambda source: source.file is not None and source.file.suffix == ".onnx", _onnx_config,
    lambda config: DINO2.table(config, ()), table=DINO2.table, read=onnx_weights.read,
)  # fmt: skip
