"""Llama and its relatives: decoders with RMSNorm, rotary positions and a gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import Linears, TransformerConfig, uniform
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from .settings import (
    FULL,
    GATED,
    REQUIRED,
    SLIDING,
    Settings,
    TextFamily,
    hf_family,
    name_of,
    old_rotary,
    per_layer,
    write_rotary,
)


@dataclass(frozen=True)
class Decoder:
    """What all models of a family have, and their configs therefore do not say.

    Args:
        activation: the key of the activation.
        bias: linear layers that have a bias besides those that the config says.
        qk_norm, offset, sandwich, scaled: as in our configs.
        kinds: the kind of each layer when `layer_types` does not say it.
    """

    architecture: str
    activation: str = "hidden_act"
    bias: tuple[str, ...] = ()
    qk_norm: bool = False
    offset: bool = False
    sandwich: bool = False
    scaled: bool = False
    kinds: Callable[[Settings, int], str] = lambda c, layer: FULL


def read_decoder(c: Settings, family: Decoder) -> LanguageModelConfig:
    """The config of a decoder with RMSNorm, rotary positions and a gated feed-forward."""
    c.require("use_bidirectional_attention", None, False)
    depth, heads = c.depth(), c["num_attention_heads"]
    head_dim = c["head_dim"] or c["hidden_size"] // heads
    kinds = c.get("layer_types") or [family.kinds(c, layer) for layer in range(depth)]
    if "rope_local_base_freq" in c.defaults:
        of_kind = {FULL: c.rotary(FULL), SLIDING: c.rotary(SLIDING, "rope_local_base_freq")}
        rotary = [of_kind.get(kind) for kind in kinds]
    else:
        rotary = [c.rotary() if rotates else None for rotates in _rotating(c, depth)]
    scalar = c.get("query_pre_attn_scalar", head_dim)
    bias = {
        *family.bias,
        *(Linears[:4] if c.get("attention_bias") else ()),
        *(Linears[4:] if c.get("mlp_bias") else ()),
    }
    # What Gemma's first configs called its tanh approximation.
    legacy = family.scaled and family.activation == "hidden_act" and c["hidden_act"] == "gelu"
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=depth,
        heads=heads,
        kv_heads=c["num_key_value_heads"] or heads,
        head_dim=head_dim,
        causal=True,
        window=c.windows(kinds),
        context=c["max_position_embeddings"],
        rotary=uniform(rotary),
        norm="rmsnorm",
        norm_eps=c["rms_norm_eps"],
        norm_weight="offset" if family.offset else "plain",
        placement="sandwich" if family.sandwich else "pre",
        qk_norm="head" if family.qk_norm else "none",
        attention_scale=None if scalar == head_dim else scalar**-0.5,
        attention_softcap=c.get("attn_logit_softcapping"),
        ffn="geglu_tanh" if legacy else c.choose(family.activation, GATED),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"],
        bias=[name for name in Linears if name in bias] or False,
    )
    return LanguageModelConfig(
        c["vocab_size"], transformer, tied=c["tie_word_embeddings"], embedding_scale=family.scaled,
        logit_softcap=c.get("final_logit_softcapping"),
    )  # fmt: skip


def _rotating(c: Settings, depth: int) -> list[bool]:
    """Whether each layer has rotary positions."""
    interval = c.get("no_rope_layer_interval")
    flags = c.get("no_rope_layers")  # 1 where there *is* a rotation
    if flags is not None:
        return [bool(flag) for flag in flags[:depth]]
    return [interval is None or (layer + 1) % interval != 0 for layer in range(depth)]


def write_decoder(ours: LanguageModelConfig, family: Decoder, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `read_decoder`, as far as the family has keys for it."""
    t = ours.transformer.resolved()
    windows = per_layer(t.window, t.depth)
    kinds = [FULL if window is None else SLIDING for window in windows]
    rotary = [t.rotary_at(layer) for layer in range(t.depth)]
    found = [r for r in rotary if r is not None] or [RotaryConfig()]
    of_kind = {kind: next((r for k, r in zip(kinds, rotary) if k == kind and r), found[0]) for kind in (FULL, SLIDING)}
    local = "rope_local_base_freq" in defaults
    head_dim = t.head_dim or 0
    scalar = head_dim if t.attention_scale is None else round(t.attention_scale**-2)
    # Gemma 2 and 3 insist on a number even where `layer_types` leaves it unused.
    unused = defaults["sliding_window"] if "layer_types" in defaults else None
    values = {
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": t.ffn_dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": t.context,
        "rms_norm_eps": t.norm_eps,
        family.activation: name_of(GATED, t.ffn),
        "tie_word_embeddings": ours.tied,
        "attention_bias": t.has_bias("out"),
        "mlp_bias": t.has_bias("up"),
        "sliding_window": next((window for window in windows if window), unused),
        "use_sliding_window": any(windows),
        "max_window_layers": kinds.index(SLIDING) if SLIDING in kinds else t.depth,
        "layer_types": kinds,
        "no_rope_layers": [int(r is not None) for r in rotary],
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": t.attention_softcap,
        "final_logit_softcapping": ours.logit_softcap,
        "rope_local_base_freq": of_kind[SLIDING].base,
    }
    general = {"architectures": [family.architecture], "attention_dropout": t.attention_dropout}
    rope = {kind: write_rotary(r) for kind, r in of_kind.items()}
    return (
        general
        | {key: value for key, value in values.items() if key in defaults}
        | old_rotary(rope[FULL])
        | {"rope_parameters": rope if local else write_rotary(found[0])}
    )


LLAMA_RULES = (
    Rule("embedding", "model.embed_tokens"),
    *(
        Rule(f"transformer.blocks.{{}}.attn.{ours}", f"model.layers.{{}}.self_attn.{theirs}")
        for ours, theirs in {
            "q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm",
        }.items()
    ),
    *(
        Rule(f"transformer.blocks.{{}}.ffn.{name}", f"model.layers.{{}}.mlp.{name}_proj")
        for name in ("gate", "up", "down")
    ),
    Rule("transformer.blocks.{}.norm1", "model.layers.{}.input_layernorm"),
    Rule("transformer.final_norm", "model.norm"),
    Rule("head", "lm_head"),
)  # fmt: skip
PRE_NORM_RULES = (Rule("transformer.blocks.{}.norm2", "model.layers.{}.post_attention_layernorm"),)
SANDWICH_RULES = (
    Rule("transformer.blocks.{}.branch1.norm", "model.layers.{}.post_attention_layernorm"),
    Rule("transformer.blocks.{}.norm2", "model.layers.{}.pre_feedforward_layernorm"),
    Rule("transformer.blocks.{}.branch2.norm", "model.layers.{}.post_feedforward_layernorm"),
)


def decoder_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Llama and its relatives."""
    norms = SANDWICH_RULES if config.transformer.placement == "sandwich" else PRE_NORM_RULES
    return WeightMap((*LLAMA_RULES, *norms), ignored=(r".*rotary_emb\.inv_freq",))


SIZES = dict.fromkeys(
    ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), REQUIRED
)
LLAMA = SIZES | {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
"""Defaults of Llama's relatives; `Settings` reads only the keys that are here or in a family's own."""
WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
GEMMA = (LLAMA | {"attention_bias": False, "max_position_embeddings": 8192, "tie_word_embeddings": True}
         | {"head_dim": 256, "num_key_value_heads": 16, "use_bidirectional_attention": None,
            "hidden_act": "gelu_pytorch_tanh"})  # fmt: skip
GEMMA2 = {key: value for key, value in GEMMA.items() if key != "hidden_act"} | {
    "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": None, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
# Its class stores `attn_logit_softcapping` and never uses it, so it is no setting of this family.
GEMMA3 = {key: value for key, value in GEMMA2.items() if key != "attn_logit_softcapping"} | {
    "max_position_embeddings": 131_072, "final_logit_softcapping": None,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6,
}  # fmt: skip


def _from_layer(c: Settings, layer: int) -> str:
    windowed = c["use_sliding_window"] and c["sliding_window"] is not None
    return SLIDING if windowed and layer >= c["max_window_layers"] else FULL


def _where_unrotated(c: Settings, layer: int) -> str:
    windowed = c["use_sliding_window"] and c["sliding_window"] is not None
    return SLIDING if windowed and not _rotating(c, layer + 1)[layer] else FULL


_TABLE: tuple[tuple[str, str, Decoder, dict[str, Any]], ...] = (
    ("Llama", "llama", Decoder("LlamaForCausalLM"), LLAMA | {"attention_bias": False, "mlp_bias": False}),
    (
        "Mistral",
        "mistral",
        Decoder("MistralForCausalLM", kinds=lambda c, _: FULL if c["sliding_window"] is None else SLIDING),
        LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096},
    ),
    (
        "Qwen 2",
        "qwen2",
        Decoder("Qwen2ForCausalLM", bias=("q", "k", "v"), kinds=_from_layer),
        LLAMA | WINDOWS | {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    (
        "Qwen 3",
        "qwen3",
        Decoder("Qwen3ForCausalLM", qk_norm=True, kinds=_from_layer),
        LLAMA | WINDOWS | {"num_key_value_heads": 32, "max_position_embeddings": 32768}
        | {"head_dim": 128, "attention_bias": False},
    ),
    (
        "SmolLM 3",
        "smollm3",
        Decoder("SmolLM3ForCausalLM", kinds=_where_unrotated),
        LLAMA | {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2_000_000.0}
        | {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
        | {"no_rope_layers": None, "no_rope_layer_interval": 4, "tie_word_embeddings": True}
        | {"attention_bias": False, "mlp_bias": False},
    ),
    ("Gemma", "gemma", Decoder("GemmaForCausalLM", offset=True, scaled=True), GEMMA),
    (
        "Gemma 2",
        "gemma2",
        Decoder(
            "Gemma2ForCausalLM", "hidden_activation", offset=True, scaled=True, sandwich=True,
            kinds=lambda c, layer: FULL if layer % 2 else SLIDING,
        ),
        GEMMA2,
    ),
    (
        "Gemma 3",
        "gemma3_text",
        Decoder(
            "Gemma3ForCausalLM", "hidden_activation", offset=True, scaled=True, sandwich=True, qk_norm=True,
            kinds=lambda c, layer: SLIDING if (layer + 1) % c["sliding_window_pattern"] else FULL,
        ),
        GEMMA3,
    ),
)  # fmt: skip


def _family(name: str, model_type: str, family: Decoder, defaults: Mapping[str, Any]) -> TextFamily:
    return hf_family(
        name, model_type, LanguageModelConfig, partial(read_decoder, family=family),
        partial(write_decoder, family=family, defaults=defaults), defaults, decoder_weights, prefix="model.",
    )  # fmt: skip


DECODERS = tuple(_family(*row) for row in _TABLE)
