"""Image models in files without a config: torchvision's weights, DINOv2's own files, and DINOv2 in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import WeightMap
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ..model import VisionTransformerConfig
from ..preprocessing import IMAGENET, Preprocessing
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

_TORCHVISION_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Heads of torchvision's vit_b, vit_l and vit_h, by their width."""


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


def _torchvision_arguments(source: Source) -> dict[str, Any]:
    """What a file of weights says about the `VisionTransformer` it belongs to."""
    found = source.tensors()
    dim, _, patch, _ = found["conv_proj.weight"].shape
    if dim not in _TORCHVISION_HEADS:
        raise UserError(
            f"'{source.name}' is a torchvision ViT {dim} wide, and a file of weights does not say how many heads it "
            "has; put it as model.safetensors "
            'beside a config.json {"library": "torchvision", "model_args": {"num_heads": …, …}} '
            "with all arguments of torchvision's VisionTransformer, and give the folder."
        )
    rows = round((found["encoder.pos_embedding"].shape[1] - 1) ** 0.5)
    layers, nothing = "encoder.layers.encoder_layer_", torch.empty(0)
    return {
        "image_size": rows * patch, "patch_size": patch, "num_layers": _count(found, layers),
        "num_heads": _TORCHVISION_HEADS[dim], "hidden_dim": dim,
        "mlp_dim": found.get(f"{layers}0.mlp.0.weight", found.get(f"{layers}0.mlp.linear_1.weight", nothing)).shape[0],
        "num_classes": found["heads.head.weight"].shape[0],
        "representation_size": dim if "heads.pre_logits.weight" in found else None,
    }  # fmt: skip


def read_torchvision(a: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from the arguments of torchvision's `VisionTransformer`."""
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
    }


def _torchvision_config(source: Source) -> VisionTransformerConfig:
    arguments = _torchvision_arguments(source) if source.file else source.config.get("model_args")
    try:
        found = read_torchvision(arguments or {})
    except (KeyError, TypeError) as error:
        raise UserError(f"The model_args in the config.json of '{source.name}' lack {error}.") from None
    labels = list(source.config.get("labels") or ())
    usual = Preprocessing(list(IMAGENET[0]), list(IMAGENET[1]), "bilinear", 224 / 256)
    return replace(found, labels=labels, preprocessing=usual)


def _torchvision_table(config: VisionTransformerConfig, names: Collection[str]) -> WeightMap:
    old = "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in names
    renamed = {w: n.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2") for w, n in TORCHVISION.items()}
    return WeightMap(rules(renamed if old else TORCHVISION, config.transformer.dim))


def _torchvision_why_not(config: VisionTransformerConfig) -> list[str]:
    try:
        return different(config, read_torchvision(write_torchvision(config)["model_args"]))
    except UserError:
        return ["its shapes"]


# --- DINOv2 -----------------------------------------------------------------------------------------------------------


def _dino2_hub_config(source: Source) -> VisionTransformerConfig:
    """DINOv2's own files say no settings; all its models share what is not seen in the shapes."""
    found = source.tensors()
    dim, channels, patch, _ = found["patch_embed.proj.weight"].shape
    registers = found["register_tokens"].shape[1] if "register_tokens" in found else 0
    rows = round((found["pos_embed"].shape[1] - 1) ** 0.5)
    gated = "blocks.0.mlp.w12.weight" in found
    core = TransformerConfig(
        dim=dim, depth=_count(found, "blocks."), heads=dim // 64, position="none", norm_eps=1e-6, layer_scale=1.0,
        ffn="swiglu" if gated else "gelu",
        ffn_dim=found["blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"].shape[1],
    )  # fmt: skip
    return VisionTransformerConfig(
        image_size=rows * patch, patch_size=patch, channels=channels, classes=0, transformer=core, registers=registers,
        resample="timm" if registers else "dinov2-hub", preprocessing=CROPPED,
    )  # fmt: skip


def _dino2_hub_table(config: VisionTransformerConfig, names: Collection[str] = ()) -> WeightMap:
    gated = {"gate_up": "mlp.w12", "down": "mlp.w3"}
    ffn = within("blocks.{}.", **(gated if config.transformer.gated else _PLAIN))
    return WeightMap(rules(DINO2_HUB | ffn, config.transformer.dim), ("mask_token",))


def _onnx_config(source: Source) -> VisionTransformerConfig:
    found = onnx_weights.settings(source)
    core = TransformerConfig(
        dim=found.dim, depth=found.depth, heads=found.heads, ffn_dim=found.ffn_dim, position="none",
        norm_eps=found.norm_eps, layer_scale=1.0,
    )  # fmt: skip
    return VisionTransformerConfig(
        image_size=found.image_size, patch_size=found.patch_size, classes=0, transformer=core, preprocessing=CROPPED
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
