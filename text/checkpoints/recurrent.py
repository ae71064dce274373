"""Mamba, Mamba-2 and RecurrentGemma: models whose layers, or most of them, keep a state of constant size."""

from __future__ import annotations

from typing import Any

import torch

from ...core.checkpoints.weights import Rule, WeightMap, reordered, reshaped
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from .rope import of_all, old_rotary, write_rotary
from .settings import REQUIRED, Settings, hf_family

UNLIMITED = 1 << 20
"""Context of models whose config states none, because no table of theirs ends: nobody generates so many tokens."""
BLOCK = "transformer.blocks.{}"

# --- Mamba and Mamba-2 ------------------------------------------------------------------------------------------------

MAMBA = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers"), REQUIRED),
    "state_size": 16,
    "expand": 2,
    "conv_kernel": 4,
    "time_step_rank": "auto",
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True,
    "tie_word_embeddings": True,
}
MAMBA2 = {key: value for key, value in MAMBA.items() if key != "time_step_rank"} | {
    "num_heads": 128, "head_dim": 64, "state_size": 128, "n_groups": 8, "time_step_limit": (0.0, float("inf")),
    "tie_word_embeddings": False,
}  # fmt: skip


def _read(c: Settings, kind: str, **options: Any) -> LanguageModelConfig:
    """What both versions have in common: layers of one mixer and nothing else."""
    c.require("hidden_act", "silu", "swish")
    inner = c["expand"] * c["hidden_size"]
    if c.values.get("intermediate_size", inner) != inner:
        raise UserError(
            f"'{c.name}' has intermediate_size = {c.values['intermediate_size']!r}, but expand · hidden_size is "
            f"{inner}, which must be the same."
        )
    options |= {"state": c["state_size"], "expand": c["expand"], "conv": c["conv_kernel"]}
    options |= {"bias": c["use_bias"], "conv_bias": c["use_conv_bias"]}
    transformer = TransformerConfig(
        dim=c["hidden_size"], depth=c.depth(), heads=1, causal=True, mixer=kind, mixer_options={kind: options},
        position="none", context=UNLIMITED, norm="rmsnorm", norm_eps=c["layer_norm_epsilon"], ffn="none", bias=False,
        residual_fp32=c["residual_in_fp32"],
    )  # fmt: skip
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def read_mamba(c: Settings) -> LanguageModelConfig:
    """The config of Mamba (Gu and Dao 2023)."""
    rank = c["time_step_rank"]
    return _read(c, "mamba", rank=None if rank == "auto" else rank)


def read_mamba2(c: Settings) -> LanguageModelConfig:
    """The config of Mamba-2 (Dao and Gu 2024)."""
    inner, heads, width = c["expand"] * c["hidden_size"], c["num_heads"], c["head_dim"]
    if inner != heads * width:
        raise UserError(
            f"'{c.name}' has {heads} heads of {width} channels (num_heads, head_dim), but expand · hidden_size is "
            f"{inner}, which must be the same."
        )
    refuse_step_limit(c)
    return _read(c, "mamba2", width=width, groups=c["n_groups"])


def refuse_step_limit(c: Settings) -> None:
    """Raises UserError for bounds on the step size, which transformers keeps in one of its two forms only."""
    written = c["time_step_limit"] or (0.0, float("inf"))
    # JSON has no infinity, so transformers 5 writes {"__float__": "Infinity"}.
    low, high = (float(x["__float__"]) if isinstance(x, dict) else float(x) for x in written)
    if low > 0 or high != float("inf"):
        raise UserError(
            f"'{c.name}' has time_step_limit = {[low, high]}, which the core does not have (only from 0 to infinity)."
        )


def _write(ours: LanguageModelConfig, kind: str, architecture: str) -> dict[str, Any]:
    t = ours.transformer.resolved()
    options = t.options_of(kind)
    expand = options.inner // t.dim if kind == "mamba2" else options.expand
    return {
        "architectures": [architecture],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": expand * t.dim,
        "num_hidden_layers": t.depth,
        "state_size": options.state,
        "expand": expand,
        "conv_kernel": options.conv,
        "use_bias": options.biased(t.bias, "out"),
        "use_conv_bias": options.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": t.norm_eps,
        "residual_in_fp32": t.residual_fp32,
        "tie_word_embeddings": ours.tied,
    }


def write_mamba(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_mamba`."""
    return _write(ours, "mamba", "MambaForCausalLM") | {"time_step_rank": ours.transformer.options_of("mamba").rank}


def write_mamba2(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_mamba2`."""
    options = ours.transformer.options_of("mamba2")
    return _write(ours, "mamba2", "Mamba2ForCausalLM") | {
        "num_heads": options.heads,
        "head_dim": options.width,
        "n_groups": options.groups,
    }


def mamba_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Lines for one Mamba mixer, in which B, C and the step size are read by one matrix there."""
    return (
        Rule((f"{ours}.v", f"{ours}.gate"), f"{theirs}.in_proj"),
        Rule(f"{ours}.conv", f"{theirs}.conv1d"),
        Rule((f"{ours}.step_low", f"{ours}.k", f"{ours}.q"), f"{theirs}.x_proj"),
        Rule(f"{ours}.dt_bias", f"{theirs}.dt_proj.bias"),
        Rule(f"{ours}.step", f"{theirs}.dt_proj"),
        Rule(f"{ours}.a_log", f"{theirs}.A_log"),
        Rule(f"{ours}.d", f"{theirs}.D"),
        Rule(f"{ours}.out", f"{theirs}.out_proj"),
    )


def mamba2_rules(ours: str, theirs: str, config: TransformerConfig) -> tuple[Rule, ...]:
    """Lines for one Mamba-2 mixer; the channels of its convolution lie in another order there."""
    options = config.options_of("mamba2")
    shared, inner = options.groups * options.state, options.inner
    return (
        Rule(tuple(f"{ours}.{name}" for name in ("gate", "v", "k", "q", "step")), f"{theirs}.in_proj"),
        Rule(f"{ours}.conv", f"{theirs}.conv1d", reordered((shared, shared, inner), (2, 1, 0))),
        Rule(f"{ours}.dt_bias", f"{theirs}.dt_bias"),
        Rule(f"{ours}.a_log", f"{theirs}.A_log"),
        Rule(f"{ours}.d", f"{theirs}.D"),
        Rule(f"{ours}.norm_weight", f"{theirs}.norm.weight"),
        Rule(f"{ours}.out", f"{theirs}.out_proj"),
    )


_AROUND = (
    Rule("embedding", "backbone.embeddings"),
    Rule(f"{BLOCK}.norm1", "backbone.layers.{}.norm"),
    Rule("transformer.final_norm", "backbone.norm_f"),
    Rule("head", "lm_head"),
)


def mamba_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Mamba."""
    return WeightMap((*_AROUND, *mamba_rules(f"{BLOCK}.attn", "backbone.layers.{}.mixer")))


def mamba2_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Mamba-2."""
    return WeightMap((*_AROUND, *mamba2_rules(f"{BLOCK}.attn", "backbone.layers.{}.mixer", config.transformer)))


# --- RecurrentGemma ---------------------------------------------------------------------------------------------------

GRIFFIN = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), REQUIRED),
    "intermediate_size": 3 * 2560,
    "num_key_value_heads": None,
    "lru_width": None,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "logits_soft_cap": 30.0,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "block_types": ("recurrent", "recurrent", "attention"),
    "attention_bias": False,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
}


def embedding_factor(dim: int) -> float:
    """sqrt(dim), rounded to bfloat16 as their class does."""
    return float(torch.tensor(dim**0.5, dtype=torch.bfloat16))


def read_griffin(c: Settings) -> LanguageModelConfig:
    """The config of RecurrentGemma (Botev et al. 2024): Griffin with local attention in some of its layers."""
    c.require("hidden_activation", "gelu_pytorch_tanh")
    dim, depth, heads, types = c["hidden_size"], c.depth(), c["num_attention_heads"], list(c["block_types"])
    if unknown := sorted(set(types) - {"recurrent", "attention"}):
        raise UserError(
            f"'{c.name}' has block_types {', '.join(map(str, unknown))}, which the core does not have; it has "
            "recurrent and attention."
        )
    kinds = [types[layer % len(types)] for layer in range(depth)]
    scaling = (c.values.get("rope_parameters") or c.values.get("rope_scaling") or {}).get("rope_type", "default")
    if scaling != "default":
        raise UserError(f"'{c.name}' scales its rotary positions by '{scaling}', but models of its family do not.")
    rotary = of_all(c, fraction="partial_rotary_factor")
    local = "attention" in kinds
    recurrent = {"width": c["lru_width"] or dim, "conv": c["conv1d_width"], "bias": True}
    transformer = TransformerConfig(
        dim=dim, depth=depth, heads=heads, kv_heads=c["num_key_value_heads"] or heads, causal=True,
        mixer=["attention" if kind == "attention" else "rglru" for kind in kinds],
        mixer_options={"rglru": recurrent} if "recurrent" in kinds else {},
        window=c["attention_window_size"] if local else None, position="rotary" if local else "none",
        rotary=rotary, context=UNLIMITED, norm="rmsnorm", norm_eps=c["rms_norm_eps"], norm_weight="offset",
        ffn="geglu_tanh", ffn_dim=c["intermediate_size"] // 2,
        bias=[*(("q", "k", "v") if c["attention_bias"] else ()), "out", "gate", "up", "down"],
    )  # fmt: skip
    return LanguageModelConfig(
        c["vocab_size"], transformer, tied=c["tie_word_embeddings"], embedding_scale=embedding_factor(dim),
        logit_softcap=c["logits_soft_cap"],
    )  # fmt: skip


def write_griffin(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_griffin`."""
    t = ours.transformer.resolved()
    layers = range(t.depth)
    rotary = next((r for r in map(t.rotary_at, layers) if r is not None), RotaryConfig(fraction=0.5))
    options = t.options_of("rglru")
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": 2 * (t.ffn_dim or 0),
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "lru_width": options.width,
        "attention_window_size": next((w for w in map(t.window_at, layers) if w), 2048),
        "conv1d_width": options.conv,
        "logits_soft_cap": ours.logit_softcap,
        "rms_norm_eps": t.norm_eps,
        "hidden_activation": "gelu_pytorch_tanh",
        "block_types": ["attention" if t.mixer_at(layer) == "attention" else "recurrent" for layer in layers],
        "attention_bias": t.has_bias("q"),
        "attention_dropout": t.attention_dropout,
        "tie_word_embeddings": ours.tied,
        "rope_parameters": {"partial_rotary_factor": 1.0} | write_rotary(rotary),
        "partial_rotary_factor": rotary.fraction,
        "rope_theta": old_rotary(write_rotary(rotary))["rope_theta"],
    }


def griffin_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of RecurrentGemma, whose layers differ."""
    t = config.transformer
    rules = [Rule("embedding", "model.embed_tokens"), Rule("transformer.final_norm", "model.final_norm")]
    rules += [Rule("head", "lm_head")]
    rules += [Rule(f"{BLOCK}.norm1", "model.layers.{}.temporal_pre_norm")]
    rules += [Rule(f"{BLOCK}.norm2", "model.layers.{}.channel_pre_norm")]
    rules += [Rule(f"{BLOCK}.ffn.{n}", f"model.layers.{{}}.mlp_block.{n}_proj") for n in ("gate", "up", "down")]
    for layer in range(t.depth):
        ours, theirs = BLOCK.format(layer) + ".attn", f"model.layers.{layer}.temporal_block"
        if t.mixer_at(layer) == "attention":
            rules += [Rule(f"{ours}.{n}", f"{theirs}.{n}_proj") for n in "qkv"]
            rules += [Rule(f"{ours}.out", f"{theirs}.o_proj")]
            continue
        block = t.options_of("rglru").width // t.heads
        lru = f"{theirs}.rg_lru"
        rules += [
            Rule(f"{ours}.v", f"{theirs}.linear_x"),
            Rule(f"{ours}.gate", f"{theirs}.linear_y"),
            Rule(f"{ours}.out", f"{theirs}.linear_out"),
            Rule(f"{ours}.conv", f"{theirs}.conv_1d"),
            Rule(f"{ours}.decay", f"{lru}.recurrent_param"),
            Rule(
                f"{ours}.gate_weight", (f"{lru}.recurrent_gate_weight", f"{lru}.input_gate_weight"),
                reshaped(-1, block, block),
            ),
            Rule(f"{ours}.gate_bias", (f"{lru}.recurrent_gate_bias", f"{lru}.input_gate_bias"), reshaped(-1, block)),
        ]  # fmt: skip
    return WeightMap(tuple(rules))


RECURRENT = (
    hf_family(
        "Mamba", "mamba", LanguageModelConfig, read_mamba, write_mamba, MAMBA, mamba_weights, prefix="backbone.",
        renames=((r"^(backbone\.)?embedding\.", r"\1embeddings."),),
    ),
    hf_family(
        "Mamba-2", "mamba2", LanguageModelConfig, read_mamba2, write_mamba2, MAMBA2, mamba2_weights,
        prefix="backbone.", renames=((r"^(backbone\.)?embedding\.", r"\1embeddings."),),
    ),
    hf_family(
        "RecurrentGemma", "recurrent_gemma", LanguageModelConfig, read_griffin, write_griffin, GRIFFIN,
        griffin_weights, {"sliding_window": "attention_window_size"}, prefix="model.",
    ),
)  # fmt: skip
