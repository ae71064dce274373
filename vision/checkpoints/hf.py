"""Hugging Face's ViT, DINOv2 (with and without registers) and DINOv3: names, configs and preprocessing.

transformers 5 calls modules otherwise in memory than in the files it writes, which still have the names of version 4.
Both are read; files are written as it writes them, so that either version loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.config import Linears
from ...core.rotary import RotaryConfig
from ..model import VisionTransformerConfig
from .family import within
from .hf_preprocessing import BILINEAR, CROPPED, HALF, choose, their_word
from .hf_shared import (
    ACTIVATIONS,
    GATED,
    Naming,
    config_of,
    core_of,
    family_of,
    is_classifier,
    require_square,
    their_classes,
    their_core,
    without,
)

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


# --- configs ---

VIT_DEFAULTS = {
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


def read_vit(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `ViTConfig`; the pooler of `ViTModel`, where a file has it, is `pre_logits`."""
    c = VIT_DEFAULTS | dict(given)
    if c.get("pooler"):
        choose(c, "pooler_act", {"tanh": True})
    bias = True if c["qkv_bias"] else without("q", "k", "v")
    core = core_of(
        c, bias, ffn=choose(c, "hidden_act", ACTIVATIONS), ffn_dim=c["intermediate_size"], head_dim=c.get("head_dim")
    )
    return config_of(c, core, pre_logits=bool(c.get("pooler")))


def write_vit(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_vit`."""
    core = config.transformer.resolved()
    return {
        "model_type": "vit", **their_classes(config, "ViT"), **their_core(config, core),
        "intermediate_size": core.ffn_dim, "qkv_bias": core.has_bias("q"),
    }  # fmt: skip


def _gated_size(hidden: int) -> int:
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def read_dino2(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `Dinov2Config` or `Dinov2WithRegistersConfig`."""
    c = _DINO2 | dict(given)
    require_square(c, "of positions of a DINOv2")
    hidden, gated = int(c["hidden_size"] * c["mlp_ratio"]), c["use_swiglu_ffn"]
    registers = "registers" in c["model_type"]
    core = core_of(
        c, True if c["qkv_bias"] else without("q", "k", "v"), layer_scale=c["layerscale_value"] or 1.0,
        ffn="swiglu" if gated else choose(c, "hidden_act", ACTIVATIONS),
        ffn_dim=_gated_size(hidden) if gated else hidden, head_dim=c.get("head_dim"),
    )  # fmt: skip
    pool = "class_and_mean" if is_classifier(c) else "class"
    return config_of(
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
        "model_type": "dinov2_with_registers" if config.registers else "dinov2", **their_classes(config, name),
        **their_core(config, core), "mlp_ratio": ratio, "qkv_bias": core.has_bias("q"),
        "layerscale_value": core.layer_scale or 1.0, "use_swiglu_ffn": core.gated, **registers,
    }  # fmt: skip


_DINO3_BIAS = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "out": "proj_bias", "up": "mlp_bias"}


def read_dino3(given: Mapping[str, Any]) -> VisionTransformerConfig:
    """Our config from a `DINOv3ViTConfig`. The coordinates' random changes in training are not done here."""
    c = _DINO3 | dict(given)
    rope = c.get("rope_parameters") or {}
    bias = [name for name, key in _DINO3_BIAS.items() if c[key]]
    bias += ["gate", "down"] if "up" in bias else []
    act = choose(c, "hidden_act", GATED if c["use_gated_mlp"] else ACTIVATIONS)
    core = core_of(
        c, [name for name in Linears if name in bias], position="rotary", ffn=act, ffn_dim=c["intermediate_size"],
        layer_scale=c["layerscale_value"] or 1.0,
        rotary=RotaryConfig(base=float(rope.get("rope_theta") or c["rope_theta"]), axes=2),
    )  # fmt: skip
    return config_of(c, core, position="none", registers=c["num_register_tokens"], rotary_coordinates="unit")


def write_dino3(config: VisionTransformerConfig) -> dict[str, Any]:
    """The inverse of `read_dino3`."""
    core = config.transformer.resolved()
    base = core.rotary.base if isinstance(core.rotary, RotaryConfig) else 100.0
    return {
        "model_type": "dinov3_vit", **their_classes(replace(config, classes=0, labels=[]), "DINOv3ViT"),
        **their_core(config, core), **{key: core.has_bias(name) for name, key in _DINO3_BIAS.items()},
        "hidden_act": their_word(GATED if core.gated else ACTIVATIONS, core.ffn),
        "intermediate_size": core.ffn_dim, "rope_theta": base, "use_gated_mlp": core.gated,
        "layerscale_value": core.layer_scale or 1.0, "num_register_tokens": config.registers,
    }  # fmt: skip


VIT = Naming(VIT_FILES, VIT_MODULES, "vit.", "attention.q_proj")
DINO2 = Naming(
    DINO2_FILES, DINO2_MODULES, "dinov2.", "attention.q_proj", DINO2_GATED_FILES, DINO2_GATED_MODULES, mask=(1,)
)
DINO2_REGISTERS = replace(DINO2, base="dinov2_with_registers.", always_registers=True)
DINO3 = Naming(DINO3_FILES, DINO3_MODULES, "dinov3_vit.", "model.layer.", mask=(1, 1), always_registers=True)

HF_VIT = family_of("Hugging Face ViT", "vit", read_vit, write_vit, HALF, VIT)
HF_DINO2 = family_of("Hugging Face DINOv2", "dinov2", read_dino2, write_dino2, CROPPED, DINO2)
HF_DINO2_REGISTERS = replace(
    family_of(
        "Hugging Face DINOv2 with registers", "dinov2_with_registers", read_dino2, write_dino2, CROPPED, DINO2_REGISTERS
    ),
    resample="timm",
)
HF_DINO3 = family_of("Hugging Face DINOv3", "dinov3_vit", read_dino3, write_dino3, BILINEAR, DINO3)
