"""Models that mix attention with recurrent layers: Jamba and Qwen3-Next; `granite4.py` has those with Mamba-2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap, heads_interleaved
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.expert_options import ExpertsConfig
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from .decoder_families import LLAMA
from .mixtures import expert_rules, experts_of, qwen2_rules, read_qwen, some, write_qwen
from .recurrent import BLOCK, mamba_rules
from .rope import of_all, old_rotary, write_rotary
from .settings import FULL, GATED, Settings, TextFamily, hf_family, inverse, name_of, usual_keys

LINEAR = "linear_attention"
ATTENTION = {"attention": FULL, "mamba": LINEAR}
"""Old words for the kinds of layers and the present ones."""


def model(c: Settings, mixers: Sequence[str], options: dict[str, Any], **more: Any) -> LanguageModelConfig:
    """What all have in common: pre-norm blocks of RMS norms, a mixer for each layer, gated feed-forwards."""
    heads, used = c["num_attention_heads"], {name: values for name, values in options.items() if name in mixers}
    settings: dict[str, Any] = {
        "heads": heads,
        "kv_heads": c["num_key_value_heads"] or heads,
        "head_dim": c.get("head_dim") or c["hidden_size"] // heads,
        "position": "none",
        "norm_eps": c["rms_norm_eps"],
        "ffn_dim": c.get("intermediate_size"),
        "bias": ["q", "k", "v", "out"] if c.get("attention_bias") else False,
    }
    if "attention" not in mixers and more.get("position") == "rotary":
        more = {key: value for key, value in more.items() if key not in ("position", "rotary")}
    transformer = TransformerConfig(
        dim=c["hidden_size"], depth=c.depth(), causal=True, mixer=list(mixers), mixer_options=used,
        context=c["max_position_embeddings"], norm="rmsnorm", ffn=c.choose("hidden_act", GATED),  # type: ignore[arg-type]
        **settings | more,
    )  # fmt: skip
    return LanguageModelConfig(
        c["vocab_size"], transformer, tied=c["tie_word_embeddings"],
        embedding_scale=c.get("embedding_multiplier", False), logit_scale=inverse(c.get("logits_scaling", 1.0)),
    )  # fmt: skip


def written(ours: LanguageModelConfig, architecture: str) -> dict[str, Any]:
    """What all have in common, in their words."""
    t = ours.transformer.resolved()
    kind = next((kind for kind in t.ffns if kind in GATED.values()), "swiglu")
    return usual_keys(ours, architecture) | {"rms_norm_eps": t.norm_eps, "hidden_act": name_of(GATED, kind)}


def rotary_keys(t: TransformerConfig, fraction: float) -> dict[str, Any]:
    """Rotary settings in both spellings."""
    found = next((r for r in map(t.rotary_at, range(t.depth)) if r is not None), RotaryConfig(fraction=fraction))
    rope = {"partial_rotary_factor": 1.0} | write_rotary(found)
    return {"rope_parameters": rope, "partial_rotary_factor": found.fraction, **old_rotary(write_rotary(found))}


def attending(t: TransformerConfig) -> list[bool]:
    """Whether each layer has attention."""
    return [t.mixer_at(layer) == "attention" for layer in range(t.depth)]


def weights(
    t: TransformerConfig, around: dict[str, str], attention: str, other: str,
    rules: Callable[[str, str], tuple[Rule, ...]], *more: Rule,
) -> WeightMap:  # fmt: skip
    """The table of a model whose layers differ.

    Args:
        t: config of ours.
        around: their names of our modules outside of the mixers.
        attention, other: their names of the mixer in a layer of either kind.
        rules: lines of a recurrent mixer from its names here and there.
        more: lines that come first.
    """
    found = [*more, *(Rule(ours, theirs) for ours, theirs in around.items())]
    for layer, attends in enumerate(attending(t)):
        ours, theirs = BLOCK.format(layer) + ".attn", f"model.layers.{layer}."
        if not attends:
            found += rules(ours, theirs + other)
            continue
        theirs += attention
        if t.attention_gate:
            found.append(Rule((f"{ours}.q", f"{ours}.gate"), f"{theirs}.q_proj", heads_interleaved(t.heads)))
        found += [Rule(f"{ours}.{name}", f"{theirs}.{name}_proj") for name in "qkv"]
        found += [Rule(f"{ours}.{name}", f"{theirs}.{name}") for name in ("q_norm", "k_norm")]
        found += [Rule(f"{ours}.out", f"{theirs}.o_proj")]
    return WeightMap(tuple(found), ignored=(r".*rotary_emb\.inv_freq", r"mtp\..*"))


LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    f"{BLOCK}.norm1": "model.layers.{}.input_layernorm",
    f"{BLOCK}.norm2": "model.layers.{}.post_attention_layernorm",
    "transformer.final_norm": "model.norm",
    "head": "lm_head",
}
JAMBA_NAMES = LLAMA_NAMES | {
    f"{BLOCK}.norm2": "model.layers.{}.pre_ff_layernorm",
    "transformer.final_norm": "model.final_layernorm",
    **{f"{BLOCK}.ffn.{name}": f"model.layers.{{}}.feed_forward.{name}_proj" for name in ("gate", "up", "down")},
}

# --- Jamba ------------------------------------------------------------------------------------------------------------

JAMBA = {key: value for key, value in LLAMA.items() if key not in ("rope_theta", "head_dim")} | {
    "num_key_value_heads": 8, "max_position_embeddings": 262_144, "num_experts_per_tok": 2, "num_experts": 16,
    "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 8, "attn_layer_offset": 4,
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": "auto", "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}  # fmt: skip


def read_jamba(c: Settings) -> LanguageModelConfig:
    """The config of Jamba (Lieber et al. 2024), whose attention has no positions."""
    c.require("hidden_act", "silu", "swish")
    layers, rank = range(c.depth()), c["mamba_dt_rank"]
    mamba = {
        "state": c["mamba_d_state"], "conv": c["mamba_d_conv"], "expand": c["mamba_expand"],
        "rank": None if rank == "auto" else rank, "conv_bias": c["mamba_conv_bias"], "bias": c["mamba_proj_bias"],
        "inner_norm": True,
    }  # fmt: skip
    count = c["num_experts"]
    mixed = [i for i in layers if count > 1 and i % c["expert_layer_period"] == c["expert_layer_offset"]]
    attends = [i % c["attn_layer_period"] == c["attn_layer_offset"] for i in layers]
    return model(
        c, ["attention" if flag else "mamba" for flag in attends], {"mamba": mamba},
        experts=some(count, mixed, active=c["num_experts_per_tok"], renormalise=False),
    )  # fmt: skip


def write_jamba(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_jamba`."""
    t = ours.transformer.resolved()
    options, experts = t.options_of("mamba"), experts_of(t)
    attention = _period(attending(t))
    mixed = _period([t.experts_at(layer) is not None for layer in range(t.depth)])
    return written(ours, "JambaForCausalLM") | {
        "intermediate_size": t.ffn_dim
        if t.experts is None or None in map(t.experts_at, range(t.depth))
        else experts.dim,
        "num_experts_per_tok": experts.active,
        "num_experts": 1 if t.experts is None else experts.count,
        "expert_layer_period": mixed[0],
        "expert_layer_offset": mixed[1],
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "mamba_d_state": options.state,
        "mamba_d_conv": options.conv,
        "mamba_expand": options.expand,
        "mamba_dt_rank": options.rank,
        "mamba_conv_bias": options.conv_bias,
        "mamba_proj_bias": options.biased(t.bias, "out"),
    }


def _period(flags: Sequence[bool]) -> tuple[int, int]:
    """(period, offset) such that flag i is `i % period == offset`; where there is none, the nearest that ends."""
    for period in range(1, len(flags) + 2):
        for offset in range(period):
            if all(flag == (i % period == offset) for i, flag in enumerate(flags)):
                return period, offset
    return len(flags) + 1, len(flags)


def jamba_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Jamba."""
    t = config.transformer
    experts = expert_rules("model.layers.{}.feed_forward", t, "router", "gate_proj", "up_proj", "down_proj")

    def rules(ours: str, theirs: str) -> tuple[Rule, ...]:
        norms = {"step": "dt_layernorm", "k": "b_layernorm", "q": "c_layernorm"}
        named = (Rule(f"{ours}.norms.{name}", f"{theirs}.{there}.weight") for name, there in norms.items())
        return (*named, *mamba_rules(ours, theirs))

    return weights(t, JAMBA_NAMES, "self_attn", "mamba", rules, *experts)


# --- Qwen3-Next -------------------------------------------------------------------------------------------------------

_OF_MIXTURES = ("decoder_sparse_step", "norm_topk_prob", "mlp_only_layers", "moe_intermediate_size")
QWEN3_NEXT = LLAMA | {
    "num_key_value_heads": 2, "max_position_embeddings": 32_768, "attention_bias": False, "head_dim": 256,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "decoder_sparse_step": 1, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512, "norm_topk_prob": True,
    "mlp_only_layers": None, "layer_types": None, "full_attention_interval": 4, "partial_rotary_factor": 0.25,
}  # fmt: skip


QWEN3_5 = {key: value for key, value in QWEN3_NEXT.items() if "expert" not in key and key not in _OF_MIXTURES} | {
    "num_key_value_heads": 4,
}  # fmt: skip
_NOT_MOE = (*_OF_MIXTURES[:3], "intermediate_size")
QWEN3_5_MOE = {key: value for key, value in QWEN3_NEXT.items() if key not in _NOT_MOE} | {
    "num_experts_per_tok": 8, "num_experts": 256,
}  # fmt: skip


def read_qwen3_next(c: Settings) -> LanguageModelConfig:
    """The config of Qwen3-Next: gated delta rules, and attention with a gate on what its heads found."""
    shared = c["shared_expert_intermediate_size"]
    return _read_qwen(c, read_qwen(c, c["num_experts"], shared=shared, shared_gate=True))


def read_qwen3_5(c: Settings) -> LanguageModelConfig:
    """The config of the text part of Qwen 3.5, dense or with experts in all layers."""
    if "num_experts" not in c.defaults:
        return _read_qwen(c, None)
    experts = some(
        c["num_experts"], range(c.depth()), active=c["num_experts_per_tok"], dim=c["moe_intermediate_size"],
        shared=c["shared_expert_intermediate_size"], shared_gate=True,
    )  # fmt: skip
    return _read_qwen(c, experts)


def _read_qwen(c: Settings, experts: ExpertsConfig | None) -> LanguageModelConfig:
    c.require("hidden_act", "silu", "swish")
    depth, interval = c.depth(), c["full_attention_interval"]
    kinds = layer_kinds(c, c["layer_types"] or [LINEAR if (i + 1) % interval else FULL for i in range(depth)])
    delta = {
        "conv": c["linear_conv_kernel_dim"], "heads": c["linear_num_value_heads"],
        "key_heads": c["linear_num_key_heads"], "state": c["linear_key_head_dim"], "width": c["linear_value_head_dim"],
        "bias": False,
    }  # fmt: skip
    return model(
        c, ["attention" if kind == FULL else "gated_delta" for kind in kinds], {"gated_delta": delta},
        position="rotary", rotary=of_all(c, fraction="partial_rotary_factor"), norm_weight="offset",
        experts=experts,
        **{"qk_norm": "head", "attention_gate": True} if FULL in kinds else {},
    )  # fmt: skip


def layer_kinds(c: Settings, types: Sequence[str]) -> list[str]:
    """The kind of each layer, `FULL` or `LINEAR`."""
    found = [ATTENTION.get(kind, kind) for kind in types]
    if (unknown := sorted(set(found) - {FULL, LINEAR})) or len(found) != c.depth():
        raise UserError(
            f"'{c.name}' has layer_types {', '.join(unknown) or len(found)}, but must have {FULL} or {LINEAR} for each"
            f" of {c.depth()} layers."
        )
    return found


def write_qwen3_next(ours: LanguageModelConfig, architecture: str = "Qwen3NextForCausalLM") -> dict[str, Any]:
    """The inverse of `read_qwen3_next`, and of `read_qwen3_5` with its `architecture`."""
    t = ours.transformer.resolved()
    options, experts = t.options_of("gated_delta"), experts_of(t)
    return (
        written(ours, architecture)
        | rotary_keys(t, 0.25)
        | write_qwen(t)
        | {
            "num_experts": 0 if t.experts is None else experts.count,
            "shared_expert_intermediate_size": experts.shared,
            "head_dim": t.head_dim,
            "attention_bias": t.has_bias("q"),
            "layer_types": [FULL if attends else LINEAR for attends in attending(t)],
            "linear_conv_kernel_dim": options.conv,
            "linear_key_head_dim": options.state,
            "linear_value_head_dim": options.width,
            "linear_num_key_heads": options.key_heads,
            "linear_num_value_heads": options.heads,
        }
    )


def qwen3_next_weights(config: LanguageModelConfig, together: bool = True) -> WeightMap:
    """The table of Qwen3-Next, where the rows of each head of keys lie together, and of Qwen 3.5, where they do not."""
    t = config.transformer
    groups = heads_interleaved(t.options_of("gated_delta").key_heads)
    mlp, there = f"{BLOCK}.ffn", "model.layers.{}.mlp"

    def rules(ours: str, theirs: str) -> tuple[Rule, ...]:
        own = (
            Rule(tuple(f"{ours}.{name}" for name in ("q", "k", "v", "gate")), f"{theirs}.in_proj_qkvz", groups),
            Rule((f"{ours}.beta", f"{ours}.step"), f"{theirs}.in_proj_ba", groups),
        )
        apart = (
            Rule(tuple(f"{ours}.{name}" for name in "qkv"), f"{theirs}.in_proj_qkv"),
            *(Rule(f"{ours}.{n}", f"{theirs}.in_proj_{there}") for n, there in zip(("gate", "beta", "step"), "zba")),
        )
        return (
            *(own if together else apart),
            Rule(f"{ours}.conv", f"{theirs}.conv1d"),
            Rule(f"{ours}.a_log", f"{theirs}.A_log"),
            Rule(f"{ours}.dt_bias", f"{theirs}.dt_bias"),
            Rule(f"{ours}.norm_weight", f"{theirs}.norm.weight"),
            Rule(f"{ours}.out", f"{theirs}.out_proj"),
        )

    dense = [Rule(f"{mlp}.{name}", f"{there}.{name}_proj") for name in ("gate", "up", "down")]
    return weights(t, LLAMA_NAMES, "self_attn", "linear_attn", rules, *qwen2_rules(config), *dense)


def family(
    name: str, kind: str, read: Any, write: Any, defaults: dict[str, Any], weights: Any, **aliases: str
) -> TextFamily:  # fmt: skip
    """A family of transformers whose bare model is called `model`."""
    return hf_family(name, kind, LanguageModelConfig, read, write, defaults, weights, aliases, prefix="model.")


HYBRIDS = (
    family("Jamba", "jamba", read_jamba, write_jamba, JAMBA, jamba_weights, num_local_experts="num_experts"),
    family("Qwen3-Next", "qwen3_next", read_qwen3_next, write_qwen3_next, QWEN3_NEXT, qwen3_next_weights),
    *(
        family(
            f"Qwen 3.5{more}",
            f"qwen3_5{word}_text",
            read_qwen3_5,
            partial(write_qwen3_next, architecture=f"Qwen3_5{word.title().replace('_', '')}ForCausalLM"),
            defaults,
            partial(qwen3_next_weights, together=False),
        )
        for more, word, defaults in (("", "", QWEN3_5), (" MoE", "_moe", QWEN3_5_MOE))
    ),
)
