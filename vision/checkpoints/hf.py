"""Hugging Face's ViT, DINOv2 (with and without registers) and DINOv3: names, configs and preprocessing.

transformers 5 calls modules otherwise in memory than in the files it writes, which still have the names of version 4.
Both are read; files are written as it writes them, so that either version loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import WeightMap
from ...core.config import Linears, TransformerConfig
from ...core.errors import UserError
from ...core.rotary import RotaryConfig
from ..model import VisionTransformerConfig, pair
from ..preprocessing import Preprocessing
from .bare import described, note
from .family import PREPROCESSOR, Names, VisionFamily, different, rules, with_preprocessing, within
from .hf_preprocessing import BILINEAR, CROPPED, HALF, choose, read_preprocessing, their_word

# --- names ------------------------------------------------------------------------------------------------------------

VIT_OUTSIDE = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "final_norm": "layernorm",
    "head": "classifier",
}
VIT_MODULES = VIT_OUTSIDE | {"pre_logits": "pooler.dense"} | within(
    "layers.{}.", norm1="layernorm_before", norm2="layernorm_after", q="attention.q_proj", k="attention.k_proj",
    v="attention.v_proj", out="attention.o_proj", up="mlp.fc1", down="mlp.fc2",
)  # fmt: skip
VIT_FILES = VIT_OUTSIDE | {"pre_logits": "pooler.dense"} | within(
    "encoder.layer.{}.", norm1="layernorm_before", norm2="layernorm_after", q="attention.attention.query",
    k="attention.attention.key", v="attention.attention.value", out="attention.output.dense", up="intermediate.dense",
    down="output.dense",
)  # fmt: skip

_DINO_BLOCK = {"norm1": "norm1", "norm2": "norm2", "scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}
_PLAIN = {"up": "mlp.fc1", "down": "mlp.fc2"}
DINO2_OUTSIDE = VIT_OUTSIDE | {"registers": "embeddings.register_tokens"}
DINO2_MODULES = DINO2_OUTSIDE | within(
    "encoder.layer.{}.", **_DINO_BLOCK, **_PLAIN, q="attention.q_proj", k="attention.k_proj", v="attention.v_proj",
    out="attention.o_proj",
)  # fmt: skip
DINO2_FILES = DINO2_OUTSIDE | within(
    "encoder.layer.{}.", **_DINO_BLOCK, **_PLAIN, q="attention.attention.query", k="attention.attention.key",
    v="attention.attention.value", out="attention.output.dense",
)  # fmt: skip
DINO2_GATED_MODULES = within("encoder.layer.{}.", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")
DINO2_GATED_FILES = within("encoder.layer.{}.", gate_up="mlp.weights_in", down="mlp.weights_out")

DINO3_FILES = {
    "class_token": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "patch": "embeddings.patch_embeddings",
    "final_norm": "norm",
} | within(
    "layer.{}.", **_DINO_BLOCK, q="attention.q_proj", k="attention.k_proj", v="attention.v_proj",
    out="attention.o_proj",
    gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
)  # fmt: skip
DINO3_MODULES = {w: f"model.{name}" if name.startswith("layer.") else name for w, name in DINO3_FILES.items()}

# --- Hugging Face -----------------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
_GATED = {
    "silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_python": "geglu", "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh", "gelu_fast": "geglu_tanh",
}  # fmt: skip


def _is_classifier(values: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("ForImageClassification") for name in values.get("architectures") or ())


def headed(config: VisionTransformerConfig) -> bool:
    """Whether theirs is a classifier; one without labels returns what its head would read."""
    return bool(config.classes) or config.pool == "class_and_mean"


def _classes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Number and names of the classes; 0 for a model without a head for them."""
    if not _is_classifier(values):
        return {"classes": 0}
    found = values.get("id2label") or {}
    names = [str(found[key]) for key in sorted(found, key=int)]
    if names == [f"LABEL_{i}" for i in range(len(names))]:
        return {"classes": len(names) if "id2label" in values else int(values.get("num_labels", 2))}
    return {"classes": len(names), "labels": names}


def _to_classes(config: VisionTransformerConfig, name: str) -> dict[str, Any]:
    if not headed(config):
        return {"architectures": [f"{name}Model"]}
    names = config.labels or [f"LABEL_{i}" for i in range(config.classes)]
    return {
        "architectures": [f"{name}ForImageClassification"],
        "id2label": {str(i): label for i, label in enumerate(names)},
        "label2id": {label: i for i, label in enumerate(names)},
    }


def _whole(sides: list[int] | tuple[int, ...]) -> Any:
    return sides[0] if len(set(sides)) == 1 else list(sides)


def _side(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


_VIT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
    "qkv_bias": True, "pooler_act": "tanh",
}  # fmt: skip
_DINO2 = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14, "num_channels": 3, "qkv_bias": True,
    "layerscale_value": 1.0, "use_swiglu_ffn": False, "num_register_tokens": 4,
}  # fmt: skip
_DINO3 = {
    "patch_size": 16, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 6, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 100.0, "image_size": 224,
    "num_channels": 3, "query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True,
    "layerscale_value": 1.0, "use_gated_mlp": False, "num_register_tokens": 0,
}  # fmt: skip
"""Their defaults, which a config need not say."""


def _core(c: Mapping[str, Any], bias: bool | list[str], **more: Any) -> TransformerConfig:
    return TransformerConfig(
        dim=c["hidden_size"], depth=c["num_hidden_layers"], heads=c["num_attention_heads"],
        norm_eps=c["layer_norm_eps"], bias=bias, **{"position": "none", **more},
    )  # fmt: skip


def _outside(c: Mapping[str, Any], core: TransformerConfig, **more: Any) -> VisionTransformerConfig:
    return VisionTransformerConfig(
        image_size=_side(c["image_size"]), patch_size=_side(c["patch_size"]), channels=c["num_channels"],
        transformer=core, **_classes(c), **more,
    )  # fmt: skip


def _without(*names: str) -> list[str]:
    return [name for name in Linears if name not in names]


def read_vit(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `ViTConfig`; the pooler of `ViTModel`, where a file has it, is `pre_logits`."""
    c = _VIT | dict(given)
    if c.get("pooler"):
        choose(c, "pooler_act", {"tanh": True})
    bias = True if c["qkv_bias"] else _without("q", "k", "v")
    core = _core(c, bias, ffn=choose(c, "hidden_act", _ACTIVATIONS), ffn_dim=c["intermediate_size"])
    return _outside(c, core, pre_logits=bool(c.get("pooler")))


def write_vit(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_vit`."""
    core = config.transformer.resolved()
    return {
        "model_type": "vit", **_to_classes(config, "ViT"), **_to_core(config, core),
        "intermediate_size": core.ffn_dim, "qkv_bias": core.has_bias("q"),
    }  # fmt: skip


def _to_core(config: VisionTransformerConfig, core: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": core.dim, "num_hidden_layers": core.depth, "num_attention_heads": core.heads,
        "layer_norm_eps": core.norm_eps, "hidden_act": their_word(_ACTIVATIONS, core.ffn) or "silu",
        "image_size": _whole(config.size), "patch_size": _whole(config.patch), "num_channels": config.channels,
        "torch_dtype": "float32",
    }  # fmt: skip


def _gated_size(hidden: int) -> int:
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def read_dino2(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `Dinov2Config` or `Dinov2WithRegistersConfig`."""
    c = _DINO2 | dict(given)
    if len({*pair(c["image_size"], "image_size")}) > 1:
        raise UserError(
            f"image_size is {c['image_size']}, but must be square: transformers takes every table of positions of a "
            "DINOv2 for one of a square, and stretches it."
        )
    hidden, gated = int(c["hidden_size"] * c["mlp_ratio"]), c["use_swiglu_ffn"]
    registers = "registers" in c["model_type"]
    core = _core(
        c, True if c["qkv_bias"] else _without("q", "k", "v"), layer_scale=c["layerscale_value"],
        ffn="swiglu" if gated else choose(c, "hidden_act", _ACTIVATIONS),
        ffn_dim=_gated_size(hidden) if gated else hidden,
    )  # fmt: skip
    pool = "class_and_mean" if _is_classifier(c) else "class"
    return _outside(
        c, core, pool=pool, registers=c["num_register_tokens"] if registers else 0,
        resample="timm" if registers else "reference",
    )  # fmt: skip


def write_dino2(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_dino2`."""
    core, name = config.transformer.resolved(), "Dinov2WithRegisters" if config.registers else "Dinov2"
    size = _gated_size if core.gated else int
    ratio = next((r for r in range(1, 17) if size(core.dim * r) == core.ffn_dim), 4)  # theirs is a whole number
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    return {
        "model_type": "dinov2_with_registers" if config.registers else "dinov2", **_to_classes(config, name),
        **_to_core(config, core), "mlp_ratio": ratio, "qkv_bias": core.has_bias("q"),
        "layerscale_value": core.layer_scale or 1.0, "use_swiglu_ffn": core.gated, **registers,
    }  # fmt: skip


_DINO3_BIAS = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "out": "proj_bias", "up": "mlp_bias"}


def read_dino3(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `DINOv3ViTConfig`. The coordinates' random changes in training are not done here."""
    c = _DINO3 | dict(given)
    rope = c.get("rope_parameters") or {}
    bias = [name for name, key in _DINO3_BIAS.items() if c[key]]
    bias += ["gate", "down"] if "up" in bias else []
    act = choose(c, "hidden_act", _GATED if c["use_gated_mlp"] else _ACTIVATIONS)
    core = _core(
        c, [name for name in Linears if name in bias], position="rotary", ffn=act, ffn_dim=c["intermediate_size"],
        layer_scale=c["layerscale_value"],
        rotary=RotaryConfig(base=float(rope.get("rope_theta") or c["rope_theta"]), axes=2),
    )  # fmt: skip
    return _outside(c, core, position="none", registers=c["num_register_tokens"], rotary_coordinates="unit")


def write_dino3(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_dino3`."""
    core = config.transformer.resolved()
    base = core.rotary.base if isinstance(core.rotary, RotaryConfig) else 100.0
    return {
        "model_type": "dinov3_vit", **_to_classes(replace(config, classes=0, labels=[]), "DINOv3ViT"),
        **_to_core(config, core), **{key: core.has_bias(name) for name, key in _DINO3_BIAS.items()},
        "hidden_act": their_word(_GATED if core.gated else _ACTIVATIONS, core.ffn),
        "intermediate_size": core.ffn_dim, "rope_theta": base, "use_gated_mlp": core.gated,
        "layerscale_value": core.layer_scale or 1.0, "num_register_tokens": config.registers,
    }  # fmt: skip


@dataclass(frozen=True)
class Naming:
    """The names of one family of transformers, which since version 5 are others in memory than in the files it writes.

    Args:
        files, modules: in files, and in memory.
        gated_files, gated_modules: those of a gated feed-forward, where they differ.
        base: what precedes them in a model with a head.
        new: part of a name that only those in memory have.
        mask: shape of the mask token before `dim`, for a family that insists on one; it only matters in pretraining.
        always_registers: there is a tensor of registers even when there are none.
    """

    files: Names
    modules: Names
    base: str
    new: str
    gated_files: Names = field(default_factory=dict)
    gated_modules: Names = field(default_factory=dict)
    mask: tuple[int, ...] | None = None
    always_registers: bool = False

    def table(self, config: VisionTransformerConfig, names: Collection[str], in_memory: bool = False) -> WeightMap:
        """The map for the names of a file, or those that we write (`names` empty), or those in memory."""
        in_memory = in_memory or any(self.new in name for name in names)
        chosen = dict(self.modules if in_memory else self.files)
        if config.transformer.gated and self.gated_files:
            chosen = {word: name for word, name in chosen.items() if word not in ("up", "down")}
            chosen |= self.gated_modules if in_memory else self.gated_files
        inner = any(name.startswith(self.base) for name in names) if names else headed(config)
        prefix, dim = self.base if inner else "", config.transformer.dim
        # What a backbone does not use: the decoder of masked images, and a pooler beside a classifier.
        ignored = (
            r"decoder\..*",
            r"(.*\.)?embeddings\.mask_token",
            rf"{self.base}pooler\..*",
            r".*rope_embeddings\..*",
        )
        constants = {} if self.mask is None else {f"{prefix}embeddings.mask_token": torch.zeros(*self.mask, dim)}
        if self.always_registers and not config.registers:
            constants |= {f"{prefix}embeddings.register_tokens": torch.zeros(1, 0, dim)}
        return WeightMap(rules(chosen, dim, prefix), ignored, constants)


def _hf(
    name: str, model_type: str, reader: Callable[[Mapping[str, Any]], VisionTransformerConfig],
    write: Callable[[VisionTransformerConfig], dict[str, Any]], default: Preprocessing, naming: Naming,
) -> VisionFamily:  # fmt: skip
    def config(source: Source) -> VisionTransformerConfig:
        pooler = {"pooler": True} if "pooler.dense.weight" in source.tensors() else {}
        try:
            found = reader(source.config | pooler)
        except UserError as error:
            raise UserError(f"'{source.name}' cannot be read as {name}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"The config.json of '{source.name}' has a setting of a wrong kind ({error}).") from None
        prepared = read_preprocessing(source.folder, default, found.channels)
        if not (source.folder / PREPROCESSOR).is_file():
            note(source, f"{described(prepared)}, as is usual for {name} (it has no {PREPROCESSOR} to say others)")
        return with_preprocessing(found, prepared)

    def why_not(ours: VisionTransformerConfig) -> list[str]:
        theirs = write(ours) | ({"pooler": True} if ours.pre_logits and not ours.classes else {})
        try:
            return different(ours, reader(theirs)) + (["registers"] if theirs["model_type"] != model_type else [])
        except UserError:
            return ["its shapes"]

    return VisionFamily(
        name, "hf", lambda source: source.config.get("model_type") == model_type, config,
        lambda ours: naming.table(ours, (), in_memory=True), write, lambda ours: not why_not(ours),
        table=naming.table, why_not=why_not,
    )  # fmt: skip


VIT = Naming(VIT_FILES, VIT_MODULES, "vit.", "attention.q_proj")
DINO2 = Naming(
    DINO2_FILES, DINO2_MODULES, "dinov2.", "attention.q_proj", DINO2_GATED_FILES, DINO2_GATED_MODULES, mask=(1,)
)
DINO2_REGISTERS = replace(DINO2, base="dinov2_with_registers.", always_registers=True)
DINO3 = Naming(DINO3_FILES, DINO3_MODULES, "dinov3_vit.", "model.layer.", mask=(1, 1), always_registers=True)

HF_VIT = _hf("Hugging Face ViT", "vit", read_vit, write_vit, HALF, VIT)
HF_DINO2 = _hf("Hugging Face DINOv2", "dinov2", read_dino2, write_dino2, CROPPED, DINO2)
HF_DINO2_REGISTERS = replace(
    _hf(
        "Hugging Face DINOv2 with registers", "dinov2_with_registers", read_dino2, write_dino2, CROPPED, DINO2_REGISTERS
    ),
    resample="timm",
)
HF_DINO3 = _hf("Hugging Face DINOv3", "dinov3_vit", read_dino3, write_dino3, BILINEAR, DINO3)
