"""Bamba and Granite 4: attention in some layers, Mamba-2 in the others."""

from __future__ import annotations

from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ..model import LanguageModelConfig
from .decoder_families import LLAMA
from .hybrids import (
    JAMBA_NAMES,
    LINEAR,
    LLAMA_NAMES,
    attending,
    family,
    layer_kinds,
    model,
    rotary_keys,
    weights,
    written,
)
from .mixtures import experts_of, granite_rules, some
from .recurrent import mamba2_rules, refuse_step_limit
from .rope import of_all
from .settings import FULL, Settings, multipliers

_MAMBA2 = {
    "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False, "time_step_limit": None,
}  # fmt: skip
BAMBA = LLAMA | _MAMBA2 | {
    "num_key_value_heads": 8, "max_position_embeddings": 262_144, "attn_layer_indices": None, "attention_bias": False,
    "mlp_bias": False, "rms_norm_eps": 1e-5,
}  # fmt: skip
GRANITE4 = {key: value for key, value in LLAMA.items() if key != "head_dim"} | _MAMBA2 | {
    "attention_bias": False, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024,
    "position_embedding_type": None, "layer_types": None,
}  # fmt: skip


def _mamba2(c: Settings) -> dict[str, Any]:
    inner, heads, width = c["mamba_expand"] * c["hidden_size"], c["mamba_n_heads"], c["mamba_d_head"]
    width = inner // heads if width == "auto" else width
    if heads * width != inner:
        raise UserError(
            f"'{c.name}' has {heads} heads of {width} channels (mamba_n_heads, mamba_d_head), but mamba_expand · "
            f"hidden_size is {inner}, which must be the same."
        )
    refuse_step_limit(c)
    return {
        "state": c["mamba_d_state"], "conv": c["mamba_d_conv"], "expand": c["mamba_expand"], "width": width,
        "groups": c["mamba_n_groups"], "conv_bias": c["mamba_conv_bias"], "bias": c["mamba_proj_bias"],
    }  # fmt: skip


def _write_mamba2(t: TransformerConfig) -> dict[str, Any]:
    options = t.options_of("mamba2")
    return {
        "mamba_n_heads": options.heads,
        "mamba_d_head": options.width,
        "mamba_n_groups": options.groups,
        "mamba_d_state": options.state,
        "mamba_d_conv": options.conv,
        "mamba_expand": options.inner // t.dim,
        "mamba_conv_bias": options.conv_bias,
        "mamba_proj_bias": options.biased(t.bias, "step"),
    }


def read_bamba(c: Settings) -> LanguageModelConfig:
    """The config of Bamba: Mamba-2, and attention in the layers that are listed."""
    c.require("hidden_act", "silu", "swish")
    listed = c["attn_layer_indices"] or []
    bias = [name for key, names in _BIASES.items() if c[key] for name in names]
    return model(
        c, ["attention" if layer in listed else "mamba2" for layer in range(c.depth())], {"mamba2": _mamba2(c)},
        position="rotary", rotary=of_all(c, fraction=0.5), bias=bias or False,
    )  # fmt: skip


_BIASES = {"attention_bias": ("q", "k", "v", "out"), "mlp_bias": ("gate", "up", "down")}


def write_bamba(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_bamba`."""
    t = ours.transformer.resolved()
    return (
        written(ours, "BambaForCausalLM")
        | rotary_keys(t, 0.5)
        | _write_mamba2(t)
        | {key: t.has_bias(names[-1]) for key, names in _BIASES.items()}
        | {"attn_layer_indices": [layer for layer, attends in enumerate(attending(t)) if attends]}
    )


def bamba_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Bamba."""
    t = config.transformer
    return weights(t, JAMBA_NAMES, "self_attn", "mamba", lambda ours, theirs: mamba2_rules(ours, theirs, t))


def read_granite4(c: Settings) -> LanguageModelConfig:
    """The config of Granite 4, with the multipliers of Granite; without experts only its shared one is left."""
    c.require("hidden_act", "silu", "swish")
    c.require("position_embedding_type", None, "nope", "rope")
    kinds = layer_kinds(c, c["layer_types"] or [LINEAR] * c.depth())
    count, shared = c["num_local_experts"] or 0, c["shared_intermediate_size"]
    experts = some(
        count, range(c.depth()) if count else (), active=c["num_experts_per_tok"], dim=c["intermediate_size"],
        shared=shared,
    )  # fmt: skip
    rotary = {"position": "rotary", "rotary": of_all(c)} if c["position_embedding_type"] == "rope" else {}
    return model(
        c, ["attention" if kind == FULL else "mamba2" for kind in kinds], {"mamba2": _mamba2(c)}, experts=experts,
        ffn_dim=shared, residual_scale=c["residual_multiplier"],
        **{"attention_scale": c["attention_multiplier"]} if FULL in kinds else {}, **rotary,
    )  # fmt: skip


def write_granite4(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_granite4`."""
    t = ours.transformer.resolved()
    experts, head_dim = experts_of(t), t.head_dim or 0
    return (
        written(ours, "GraniteMoeHybridForCausalLM")
        | multipliers(ours)
        | rotary_keys(t, 1.0)
        | _write_mamba2(t)
        | {
            "intermediate_size": experts.dim,
            "shared_intermediate_size": t.ffn_dim if t.experts is None else experts.shared,
            "num_local_experts": 0 if t.experts is None else experts.count,
            "num_experts_per_tok": experts.active,
            "attention_bias": t.has_bias("q"),
            "position_embedding_type": "rope" if any(map(t.rotary_at, range(t.depth))) else None,
            "layer_types": [FULL if attends else LINEAR for attends in attending(t)],
            "attention_multiplier": head_dim**-0.5 if t.attention_scale is None else t.attention_scale,
            "residual_multiplier": t.residual_scale,
        }
    )


def granite4_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Granite 4."""
    t = config.transformer

    def rules(ours: str, theirs: str) -> tuple[Rule, ...]:
        return mamba2_rules(ours, theirs, t)

    return weights(t, LLAMA_NAMES, "self_attn", "mamba", rules, *granite_rules(config))


MAMBA2_HYBRIDS = (
    family("Bamba", "bamba", read_bamba, write_bamba, BAMBA, bamba_weights),
    family(
        "Granite 4", "granitemoehybrid", read_granite4, write_granite4, GRANITE4, granite4_weights,
        layers_block_type="layer_types",
    ),
)  # fmt: skip
