"""GPT-2 and the models that were made from it: GPT-Neo, GPT-BigCode, CodeGen and BioGPT."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...core.checkpoints.weights import TRANSPOSED, Rule, WeightMap, heads_interleaved
from ...core.config import TransformerConfig, uniform
from ...core.errors import UserError
from ..model import LanguageModelConfig
from .older import GPT_ALIASES, GPTJ, GPTJ_RULES, OPT_OFFSET, read_gptj, write_gptj
from .settings import PLAIN, REQUIRED, Settings, hf_family, name_of

BLOCK = "transformer.blocks.{}"

# --- GPT-2 ------------------------------------------------------------------------------------------------------------

GPT2 = {
    **dict.fromkeys(("vocab_size", "n_embd", "n_layer", "n_head"), REQUIRED),
    "n_positions": 1024,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
GPT2_RULES = (
    Rule("embedding", "transformer.wte"),
    Rule("transformer.positions", "transformer.wpe"),
    Rule("transformer.blocks.{}.norm1", "transformer.h.{}.ln_1"),
    Rule(
        tuple(f"transformer.blocks.{{}}.attn.{name}" for name in "qkv"), "transformer.h.{}.attn.c_attn", TRANSPOSED
    ),
    Rule("transformer.blocks.{}.attn.out", "transformer.h.{}.attn.c_proj", TRANSPOSED),
    Rule("transformer.blocks.{}.norm2", "transformer.h.{}.ln_2"),
    Rule("transformer.blocks.{}.ffn.up", "transformer.h.{}.mlp.c_fc", TRANSPOSED),
    Rule("transformer.blocks.{}.ffn.down", "transformer.h.{}.mlp.c_proj", TRANSPOSED),
    Rule("transformer.final_norm", "transformer.ln_f"),
    Rule("head", "lm_head"),
)  # fmt: skip


def read_gpt2(c: Settings) -> LanguageModelConfig:
    """The config of GPT-2 (Radford et al. 2019)."""
    c.require("scale_attn_by_inverse_layer_idx", False)
    c.require("add_cross_attention", False)
    transformer = TransformerConfig(
        dim=c["n_embd"],
        depth=c.depth("n_layer"),
        heads=c["n_head"],
        causal=True,
        position="learned",
        context=c["n_positions"],
        norm_eps=c["layer_norm_epsilon"],
        attention_scale=None if c["scale_attn_weights"] else 1.0,
        ffn=c.choose("activation_function", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["n_inner"] or 4 * c["n_embd"],
    )
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def write_gpt2(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_gpt2`."""
    t = ours.transformer.resolved()
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": ours.vocab_size,
        "n_positions": t.context,
        "n_embd": t.dim,
        "n_layer": t.depth,
        "n_head": t.heads,
        "n_inner": t.ffn_dim,
        "activation_function": name_of(PLAIN, t.ffn),
        "layer_norm_epsilon": t.norm_eps,
        "scale_attn_weights": t.attention_scale != 1.0,
        "tie_word_embeddings": ours.tied,
        "embd_pdrop": t.dropout,
        "resid_pdrop": t.dropout,
        "attn_pdrop": t.attention_dropout,
    }


def gpt2_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of GPT-2, whose matrices lie `[in, out]`."""
    return WeightMap(GPT2_RULES, ignored=(r".*\.attn\.(bias|masked_bias)",))


# --- GPT-BigCode ------------------------------------------------------------------------------------------------------

BIGCODE = {key: value for key, value in GPT2.items() if key != "scale_attn_by_inverse_layer_idx"} | {
    "activation_function": "gelu_pytorch_tanh", "multi_query": True,
}  # fmt: skip


def read_bigcode(c: Settings) -> LanguageModelConfig:
    """The config of GPT-BigCode (StarCoder, Li et al. 2023): GPT-2 whose heads share one key and value."""
    ours = read_gpt2(c)
    kv_heads = 1 if c["multi_query"] else c["n_head"]
    return dataclasses.replace(ours, transformer=dataclasses.replace(ours.transformer, kv_heads=kv_heads))


def write_bigcode(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_bigcode`."""
    one = ours.transformer.resolved().kv_heads == 1
    return write_gpt2(ours) | {"architectures": ["GPTBigCodeForCausalLM"], "multi_query": one}


def bigcode_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of GPT-BigCode, whose matrices lie `[out, in]`; q, k and v of a head together if each has its own."""
    t = config.transformer.resolved()
    qkv = tuple(f"{BLOCK}.attn.{name}" for name in "qkv")
    layout = [] if t.kv_heads == 1 else [heads_interleaved(t.heads)]
    rest = (Rule(rule.ours, rule.theirs) for rule in GPT2_RULES)
    return WeightMap((Rule(qkv, "transformer.h.{}.attn.c_attn", *layout), *rest))


# --- GPT-Neo ----------------------------------------------------------------------------------------------------------

GPT_NEO = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_layers", "num_heads"), REQUIRED),
    "max_position_embeddings": 2048,
    "attention_types": [[["global", "local"], 12]],
    "intermediate_size": None,
    "window_size": 256,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
GPT_NEO_RULES = (
    *(
        Rule(f"{BLOCK}.attn.{name}", f"transformer.h.{{}}.attn.attention.{name}_proj")
        for name in ("q", "k", "v", "out")
    ),
    *(Rule(rule.ours, rule.theirs) for rule in GPT2_RULES if ".attn." not in str(rule.theirs)),
)


def read_gpt_neo(c: Settings) -> LanguageModelConfig:
    """The config of GPT-Neo (Black et al. 2021): attention that is not scaled, in some layers of near tokens."""
    kinds = [kind for some, times in c["attention_types"] or GPT_NEO["attention_types"] for kind in some * times]
    depth = c.depth("num_layers")
    if len(kinds) != depth or set(kinds) - {"global", "local"}:
        raise UserError(
            f"'{c.name}' has attention_types {c['attention_types']!r}, but must have global or local for each of "
            f"{depth} layers."
        )
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=depth,
        heads=c["num_heads"],
        causal=True,
        window=uniform([c["window_size"] if kind == "local" else None for kind in kinds]),
        position="learned",
        context=c["max_position_embeddings"],
        norm_eps=c["layer_norm_epsilon"],
        attention_scale=1.0,
        ffn=c.choose("activation_function", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"] or 4 * c["hidden_size"],
        bias=["out", "up", "down"],
    )
    return LanguageModelConfig(c["vocab_size"], transformer, tied=c["tie_word_embeddings"])


def write_gpt_neo(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_gpt_neo`."""
    t = ours.transformer.resolved()
    windows = [t.window_at(layer) for layer in range(t.depth)]
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "vocab_size": ours.vocab_size,
        "max_position_embeddings": t.context,
        "hidden_size": t.dim,
        "num_layers": t.depth,
        "num_heads": t.heads,
        "attention_types": [[["local" if window else "global"], 1] for window in windows],
        "window_size": next((window for window in windows if window), 256),
        "intermediate_size": t.ffn_dim,
        "activation_function": name_of(PLAIN, t.ffn),
        "layer_norm_epsilon": t.norm_eps,
        "tie_word_embeddings": ours.tied,
        "embed_dropout": t.dropout,
        "resid_dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
    }


def gpt_neo_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of GPT-Neo, whose matrices lie `[out, in]`."""
    return WeightMap(GPT_NEO_RULES, ignored=(r".*\.attn\.attention\.(bias|masked_bias)",))


# --- CodeGen ----------------------------------------------------------------------------------------------------------


def codegen_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of CodeGen: GPT-J with q, v and k in one matrix of four parts, each with a quarter of the heads."""
    qvk = tuple(f"{BLOCK}.attn.{name}" for name in "qvk")
    rules = (Rule(qvk, "transformer.h.{}.attn.qkv_proj", heads_interleaved(4)), *GPTJ_RULES)
    return WeightMap(rules, ignored=(r".*\.attn\.causal_mask",))


# --- BioGPT -----------------------------------------------------------------------------------------------------------

BIOGPT = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), REQUIRED),
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
    "scale_embedding": True,
    "tie_word_embeddings": True,
}


def read_biogpt(c: Settings) -> LanguageModelConfig:
    """The config of BioGPT (Luo et al. 2022), whose class passes over `layer_norm_eps`."""
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=c.depth(),
        heads=c["num_attention_heads"],
        causal=True,
        position="learned",
        position_offset=OPT_OFFSET,
        context=c["max_position_embeddings"],
        norm_eps=1e-5,
        ffn=c.choose("hidden_act", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"],
    )
    return LanguageModelConfig(
        c["vocab_size"], transformer, tied=c["tie_word_embeddings"], embedding_scale=bool(c["scale_embedding"])
    )


def write_biogpt(ours: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `read_biogpt`."""
    t = ours.transformer.resolved()
    return {
        "architectures": ["BioGptForCausalLM"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "intermediate_size": t.ffn_dim,
        "hidden_act": name_of(PLAIN, t.ffn),
        "max_position_embeddings": t.context,
        "scale_embedding": ours.embedding_scale is True,
        "tie_word_embeddings": ours.tied,
        "hidden_dropout_prob": t.dropout,
        "attention_probs_dropout_prob": t.attention_dropout,
    }


def biogpt_weights(config: LanguageModelConfig) -> WeightMap:
    """The table of BioGPT."""
    layer = "biogpt.layers.{}"
    rules = (
        Rule("embedding", "biogpt.embed_tokens"),
        Rule("transformer.positions", "biogpt.embed_positions"),
        *(Rule(f"{BLOCK}.attn.{name}", f"{layer}.self_attn.{name}_proj") for name in ("q", "k", "v", "out")),
        Rule(f"{BLOCK}.norm1", f"{layer}.self_attn_layer_norm"),
        Rule(f"{BLOCK}.ffn.up", f"{layer}.fc1"),
        Rule(f"{BLOCK}.ffn.down", f"{layer}.fc2"),
        Rule(f"{BLOCK}.norm2", f"{layer}.final_layer_norm"),
        Rule("transformer.final_norm", "biogpt.layer_norm"),
        Rule("head", "output_projection"),
    )
    return WeightMap(rules)


GPT = hf_family(
    "GPT-2", "gpt2", LanguageModelConfig, read_gpt2, write_gpt2, GPT2, gpt2_weights, GPT_ALIASES, prefix="transformer.",
)  # fmt: skip
GPT_RELATIVES = (
    hf_family(
        "GPT-BigCode", "gpt_bigcode", LanguageModelConfig, read_bigcode, write_bigcode, BIGCODE, bigcode_weights,
        GPT_ALIASES, prefix="transformer.",
    ),
    hf_family(
        "GPT-Neo", "gpt_neo", LanguageModelConfig, read_gpt_neo, write_gpt_neo, GPT_NEO, gpt_neo_weights,
        {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}, prefix="transformer.",
    ),
    hf_family(
        "CodeGen", "codegen", LanguageModelConfig, read_gptj,
        lambda ours: write_gptj(ours) | {"architectures": ["CodeGenForCausalLM"]}, GPTJ, codegen_weights, GPT_ALIASES,
        prefix="transformer.",
    ),
    hf_family(
        "BioGPT", "biogpt", LanguageModelConfig, read_biogpt, write_biogpt, BIOGPT, biogpt_weights, prefix="biogpt.",
    ),
)  # fmt: skip
