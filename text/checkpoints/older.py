"""Families from before Llama: GPT-J, OPT and Falcon."""

from __future__ import annotations

import math
from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap, heads_interleaved
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from .rope import of_all, old_rotary, write_rotary
from .settings import PLAIN, REQUIRED, Settings, hf_family, name_of

# --- GPT-J ------------------------------------------------------------------------------------------------------------

GPTJ = {
    **dict.fromkeys(("vocab_size", "n_embd", "n_layer", "n_head"), REQUIRED),
    "n_positions": 2048,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
GPT_ALIASES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip
"""Names of other families for the keys of GPT-2 and GPT-J."""
GPTJ_RULES = (
    Rule("embedding", "transformer.wte"),
    Rule("transformer.blocks.{}.norm1", "transformer.h.{}.ln_1"),
    *(Rule(f"transformer.blocks.{{}}.attn.{name}", f"transformer.h.{{}}.attn.{name}_proj") for name in "qkv"),
    Rule("transformer.blocks.{}.attn.out", "transformer.h.{}.attn.out_proj"),
    Rule("transformer.blocks.{}.ffn.up", "transformer.h.{}.mlp.fc_in"),
    Rule("transformer.blocks.{}.ffn.down", "transformer.h.{}.mlp.fc_out"),
    Rule("transformer.final_norm", "transformer.ln_f"),
    Rule("head", "lm_head"),
)


def read_gptj(c: Settings) -> LanguageModelConfig:
    """The config of GPT-J (Wang and Komatsuzaki 2021)."""
    dim, heads, rotated = c["n_embd"], c["n_head"], c["rotary_dim"]
    head_dim = dim // heads
    if not rotated or rotated > head_dim:
        raise UserError(
            f"'{c.name}' has rotary_dim = {rotated!r}, but its library can only rotate 2 to {head_dim} channels of a "
            "head of this width."
        )
    transformer = TransformerConfig(
        dim=dim,
        depth=c.depth("n_layer"),
        heads=heads,
        causal=True,
        context=c["n_positions"],
        rotary=RotaryConfig(fraction=_fraction(rotated, head_dim), interleaved=True),
        norm_eps=c["layer_norm_epsilon"],
        parallel=True,
        shared_norm=True,
        ffn=c.choose("activation_function", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["n_inner"] or 4 * dim,
        bias=["up", "down"],
    )
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"], head_bias=True)


def _fraction(rotated: int, head_dim: int) -> float:
    """The part of a head that is `rotated` channels when it is rounded down."""
    part = rotated / head_dim
    return part if int(head_dim * part) == rotated else math.nextafter(part, 1)


def write_gptj(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_gptj`."""
    t = ours.transformer.resolved()
    return {
        "architectures": ["GPTJForCausalLM"],
        "vocab_size": ours.vocab_size,
        "n_positions": t.context,
        "n_embd": t.dim,
        "n_layer": t.depth,
        "n_head": t.heads,
        "rotary_dim": (t.rotary_at(0) or RotaryConfig()).rotated_dim(t.head_dim or 0),
        "n_inner": t.ffn_dim,
        "activation_function": name_of(PLAIN, t.ffn),
        "layer_norm_epsilon": t.norm_eps,
        "tie_word_embeddings": ours.tied,
        "embd_pdrop": t.dropout,
        "resid_pdrop": t.dropout,
        "attn_pdrop": t.attention_dropout,
    }


def gptj_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of GPT-J."""
    return WeightMap(GPTJ_RULES, ignored=(r".*\.attn\.(bias|masked_bias|embed_positions)",))


# --- OPT --------------------------------------------------------------------------------------------------------------

OPT = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), REQUIRED),
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}
OPT_OFFSET = 2


def read_opt(c: Settings) -> LanguageModelConfig:
    """The config of OPT (Zhang et al. 2022); the model of 350M has its norms after the sums and narrower embeddings."""
    c.require("layer_norm_elementwise_affine", True)
    before, narrow = c["do_layer_norm_before"], c["word_embed_proj_dim"]
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=c.depth(),
        heads=c["num_attention_heads"],
        causal=True,
        position="learned",
        position_offset=OPT_OFFSET,
        context=c["max_position_embeddings"],
        placement="pre" if before else "post",
        final_norm=bool(before and not c["_remove_final_layer_norm"]),
        ffn=c.choose("activation_function", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["ffn_dim"],
        bias=c["enable_bias"],
    )
    return LanguageModelConfig(
        c["vocab_size"], transformer, tied=c["tie_word_embeddings"],
        embedding_dim=None if narrow in (None, transformer.dim) else narrow,
    )  # fmt: skip


def write_opt(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_opt`."""
    t = ours.transformer.resolved()
    return {
        "architectures": ["OPTForCausalLM"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "ffn_dim": t.ffn_dim,
        "max_position_embeddings": t.context,
        "do_layer_norm_before": t.placement == "pre",
        "_remove_final_layer_norm": t.placement == "pre" and not t.final_norm,
        "word_embed_proj_dim": ours.embedding_dim or t.dim,
        "activation_function": name_of(PLAIN, t.ffn),
        "enable_bias": t.has_bias("up"),
        "tie_word_embeddings": ours.tied,
        "dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
    }


def opt_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of OPT."""
    block, layer = "transformer.blocks.{}", "model.decoder.layers.{}"
    norms = "norm" if config.transformer.placement == "pre" else "close"
    rules = (
        Rule("embedding", "model.decoder.embed_tokens"),
        Rule("widen", "model.decoder.project_in"),
        Rule("narrow", "model.decoder.project_out"),
        Rule("transformer.positions", "model.decoder.embed_positions"),
        *(Rule(f"{block}.attn.{name}", f"{layer}.self_attn.{name}_proj") for name in ("q", "k", "v", "out")),
        Rule(f"{block}.{norms}1", f"{layer}.self_attn_layer_norm"),
        Rule(f"{block}.ffn.up", f"{layer}.fc1"),
        Rule(f"{block}.ffn.down", f"{layer}.fc2"),
        Rule(f"{block}.{norms}2", f"{layer}.final_layer_norm"),
        Rule("transformer.final_norm", "model.decoder.final_layer_norm"),
        Rule("head", "lm_head"),
    )
    return WeightMap(rules)


# --- Falcon -----------------------------------------------------------------------------------------------------------

FALCON = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), REQUIRED),
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-5,
    "num_kv_heads": None,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
}


def read_falcon(c: Settings) -> LanguageModelConfig:
    """The config of Falcon (Almazrouei et al. 2023), of the old and the new decoder."""
    c.require("alibi", False)
    new, parallel, heads = c["new_decoder_architecture"], c["parallel_attn"], c["num_attention_heads"]
    if new:
        c.require("parallel_attn", True)  # its library cannot run the others
        c.require("num_ln_in_parallel_attn", None, 1, 2)
        kv_heads = c["num_kv_heads"] or heads
    else:
        c.require("num_ln_in_parallel_attn", None, 1, *(() if parallel else (2,)))
        kv_heads = 1 if c["multi_query"] else heads
        if not c["multi_query"]:
            c.require("num_kv_heads", None, heads)
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=c.depth(),
        heads=heads,
        kv_heads=kv_heads,
        causal=True,
        context=c["max_position_embeddings"],
        rotary=of_all(c),
        norm_eps=c["layer_norm_epsilon"],
        parallel=parallel,
        shared_norm=parallel and not (new and c["num_ln_in_parallel_attn"] in (None, 2)),
        ffn=c.choose("activation", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["ffn_hidden_size"] or 4 * c["hidden_size"],
        bias=c["bias"],
    )
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def write_falcon(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_falcon`: the old decoder where it has what is needed."""
    t = ours.transformer.resolved()
    rope = write_rotary(t.rotary_at(0) or RotaryConfig())
    new = t.parallel and (not t.shared_norm or t.kv_heads not in (1, t.heads))
    return {
        "architectures": ["FalconForCausalLM"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "num_ln_in_parallel_attn": None if not new else 1 if t.shared_norm else 2,
        "layer_norm_epsilon": t.norm_eps,
        "num_kv_heads": t.kv_heads if new else t.heads,
        "alibi": False,
        "new_decoder_architecture": new,
        "multi_query": t.kv_heads == 1,
        "parallel_attn": t.parallel,
        "bias": t.has_bias("up"),
        "max_position_embeddings": t.context,
        "ffn_hidden_size": t.ffn_dim,
        "activation": name_of(PLAIN, t.ffn),
        "tie_word_embeddings": ours.tied,
        "hidden_dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
        "rope_parameters": rope,
        **old_rotary(rope),
    }


def falcon_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of Falcon, where the queries that share a key and a value lie with these."""
    t = config.transformer.resolved()
    block, layer = "transformer.blocks.{}", "transformer.h.{}"
    own = t.parallel and not t.shared_norm
    rules = (
        Rule("embedding", "transformer.word_embeddings"),
        Rule(f"{block}.norm1", f"{layer}.ln_attn" if own else f"{layer}.input_layernorm"),
        Rule(
            tuple(f"{block}.attn.{name}" for name in "qkv"), f"{layer}.self_attention.query_key_value",
            heads_interleaved(t.kv_heads or t.heads),
        ),
        Rule(f"{block}.attn.out", f"{layer}.self_attention.dense"),
        Rule(f"{block}.norm2", f"{layer}.ln_mlp" if own else f"{layer}.post_attention_layernorm"),
        Rule(f"{block}.ffn.up", f"{layer}.mlp.dense_h_to_4h"),
        Rule(f"{block}.ffn.down", f"{layer}.mlp.dense_4h_to_h"),
        Rule("transformer.final_norm", "transformer.ln_f"),
        Rule("head", "lm_head"),
    )  # fmt: skip
    return WeightMap(rules, ignored=(r".*\.rotary_emb\.inv_freq",))


OLDER = (
    hf_family(
        "Falcon", "falcon", LanguageModelConfig, read_falcon, write_falcon, FALCON, falcon_weights,
        prefix="transformer.",
    ),
    hf_family(
        "GPT-J", "gptj", LanguageModelConfig, read_gptj, write_gptj, GPTJ, gptj_weights, prefix="transformer.",
        aliases=GPT_ALIASES,
    ),
    hf_family("OPT", "opt", LanguageModelConfig, read_opt, write_opt, OPT, opt_weights, prefix="model."),
)  # fmt: skip
