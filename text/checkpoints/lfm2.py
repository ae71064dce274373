"""LFM2: gated short convolutions, and attention in some layers."""

from __future__ import annotations

from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ..model import LanguageModelConfig
from .decoder_families import LLAMA
from .hybrids import attending, family, rotary_keys
from .recurrent import BLOCK
from .rope import of_all
from .settings import FULL, Settings, usual_keys

CONV = "conv"
LFM2 = {key: value for key, value in LLAMA.items() if key not in ("rms_norm_eps", "hidden_act")} | {
    "num_key_value_heads": 8, "max_position_embeddings": 128_000, "norm_eps": 1e-5, "tie_word_embeddings": True,
    "conv_bias": False, "conv_L_cache": 3, "layer_types": None, "full_attn_idxs": None, "rope_theta": 1_000_000.0,
    "intermediate_size": 12_288, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}  # fmt: skip


def read_lfm2(c: Settings) -> LanguageModelConfig:
    """The config of LFM2 (Liquid AI 2025)."""
    depth, listed = c.depth(), c["full_attn_idxs"]
    chosen = range(depth) if listed is None else listed
    kinds = c["layer_types"] or [FULL if layer in chosen else CONV for layer in range(depth)]
    if len(kinds) != depth or set(kinds) - {FULL, CONV}:
        raise UserError(
            f"'{c.name}' has layer_types {kinds}, but must have {FULL} or {CONV} for each of {depth} layers."
        )
    attends = FULL in kinds
    convolution = {"conv": c["conv_L_cache"], "conv_bias": c["conv_bias"], "bias": c["conv_bias"]}
    rotary: dict[str, Any] = {"rotary": of_all(c)} if attends else {}
    transformer = TransformerConfig(
        dim=c["hidden_size"], depth=depth, heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"] or c["num_attention_heads"], head_dim=c["head_dim"], causal=True,
        mixer=["attention" if kind == FULL else "convolution" for kind in kinds],
        mixer_options={"convolution": convolution} if CONV in kinds else {},
        position="rotary" if attends else "none", context=c["max_position_embeddings"], norm="rmsnorm",
        norm_eps=c["norm_eps"], qk_norm="head" if attends else "none", ffn="swiglu", ffn_dim=_hidden(c), bias=False,
        **rotary,
    )  # fmt: skip
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def _hidden(c: Settings) -> int:
    """Width of the feed-forward, which its class may make of another number."""
    hidden = c["intermediate_size"]
    if not c["block_auto_adjust_ff_dim"]:
        return hidden
    hidden, step = int(2 * hidden / 3), c["block_multiple_of"]
    if c["block_ffn_dim_multiplier"] is None:
        return hidden
    return step * ((int(c["block_ffn_dim_multiplier"] * hidden) + step - 1) // step)


def write_lfm2(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_lfm2`."""
    t = ours.transformer.resolved()
    options = t.options_of("convolution")
    return usual_keys(ours, "Lfm2ForCausalLM") | rotary_keys(t, 1.0) | {
        "head_dim": t.head_dim,
        "norm_eps": t.norm_eps,
        "conv_L_cache": options.conv,
        "conv_bias": options.conv_bias,
        "layer_types": [FULL if attends else CONV for attends in attending(t)],
        "block_auto_adjust_ff_dim": False,
    }  # fmt: skip


def lfm2_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of LFM2."""
    t, layer = config.transformer, "model.layers.{}"
    rules = [
        Rule("embedding", "model.embed_tokens"),
        Rule("transformer.final_norm", "model.embedding_norm"),
        Rule("head", "lm_head"),
        Rule(f"{BLOCK}.norm1", f"{layer}.operator_norm"),
        Rule(f"{BLOCK}.norm2", f"{layer}.ffn_norm"),
    ]
    rules += [
        Rule(f"{BLOCK}.ffn.{name}", f"{layer}.feed_forward.{there}")
        for name, there in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    ]
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj", "q_norm": "q_layernorm",
                 "k_norm": "k_layernorm"}  # fmt: skip
    for number, attends in enumerate(attending(t)):
        ours, theirs = f"transformer.blocks.{number}.attn", f"model.layers.{number}"
        if attends:
            rules += [Rule(f"{ours}.{name}", f"{theirs}.self_attn.{there}") for name, there in attention.items()]
            continue
        rules += [Rule(tuple(f"{ours}.{name}" for name in "kqv"), f"{theirs}.conv.in_proj")]
        rules += [Rule(f"{ours}.conv", f"{theirs}.conv.conv"), Rule(f"{ours}.out", f"{theirs}.conv.out_proj")]
    return WeightMap(tuple(rules), ignored=(r".*rotary_emb\.inv_freq",))


LFM = (
    family(
        "LFM2", "lfm2", read_lfm2, write_lfm2, LFM2, lfm2_weights, block_ff_dim="intermediate_size",
        tie_embedding="tie_word_embeddings",
    ),
)  # fmt: skip
