"""The families of text encoders: BERT, RoBERTa and its relatives, ModernBERT."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import TransformerConfig, uniform
from ...core.errors import UserError
from ...core.rotary import RotaryConfig
from ..encoder import TextEncoderConfig
from .rope import by_kind, write_rotary
from .settings import FULL, GATED, PLAIN, REQUIRED, SLIDING, Settings, hf_family, name_of, per_layer

SIZES = dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), REQUIRED)


def _has_masked_head(c: Settings, bare: str, masked: tuple[str, ...]) -> bool:
    """Whether a checkpoint has the head of masked tokens; otherwise it is the `bare` model.

    Raises UserError for one with a head for another purpose.
    """
    names = c["architectures"] or [bare]
    for name in names:
        if name not in (bare, *masked):
            raise UserError(
                f"'{c.name}' is a {name}, whose head is not read; what can be read is {', '.join((bare, *masked))}."
            )
    return any(name in masked for name in names)


# --- BERT and RoBERTa -------------------------------------------------------------------------------------------------

BERT = SIZES | {
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "architectures": None,
}
ROBERTA = BERT | {"pad_token_id": 1}
"""Its first `pad_token_id` + 1 rows of positions belong to no real token."""


def read_bert(c: Settings, cls: str) -> TextEncoderConfig:
    """The config of BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019); `cls` is what their classes begin with."""
    for key, value in {
        "is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }.items():  # fmt: skip
        c.require(key, value)
    likes = cls in ("Bert", "BigBird")
    masked_classes = (f"{cls}ForMaskedLM", *((f"{cls}ForPreTraining",) if likes else ()))
    masked = _has_masked_head(c, f"{cls}Model", masked_classes)
    if masked and not likes:
        c.require("hidden_act", "gelu")  # its head has no other
    offset = 0 if c.get("pad_token_id") is None else c["pad_token_id"] + 1
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=c.depth(),
        heads=c["num_attention_heads"],
        position="learned",
        position_offset=offset,
        context=c["max_position_embeddings"] - offset,
        norm_eps=c["layer_norm_eps"],
        placement="post",
        input_norm=True,
        ffn=c.choose("hidden_act", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"],
    )
    return TextEncoderConfig(c["vocab_size"], transformer, c["type_vocab_size"], masked_head=masked, pooler=not masked)


def write_bert(ours: TextEncoderConfig, cls: str) -> dict[str, Any]:
    """The inverse of `read_bert`."""
    t = ours.transformer.resolved()
    offset = {"pad_token_id": t.position_offset - 1} if t.position_offset else {}
    return offset | {
        "architectures": [f"{cls}ForMaskedLM" if ours.masked_head else f"{cls}Model"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": t.ffn_dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "max_position_embeddings": t.context + t.position_offset,
        "type_vocab_size": ours.segments,
        "layer_norm_eps": t.norm_eps,
        "hidden_act": name_of(PLAIN, t.ffn),
        "hidden_dropout_prob": t.dropout,
        "attention_probs_dropout_prob": t.attention_dropout,
    }


def bert_weights(config: TextEncoderConfig, base: str) -> WeightMap:
    """The table of BERT and RoBERTa; `base` is what the names of the bare model's weights begin with."""
    block, layer = "transformer.blocks.{}", f"{base}.encoder.layer.{{}}"
    head = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm",
            "bias": "cls.predictions.bias"}  # fmt: skip
    if base != "bert":  # as RoBERTa
        head = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}
    rules = (
        Rule("embedding", f"{base}.embeddings.word_embeddings"),
        Rule("transformer.positions", f"{base}.embeddings.position_embeddings"),
        Rule("segments", f"{base}.embeddings.token_type_embeddings"),
        Rule("transformer.input_norm", f"{base}.embeddings.LayerNorm"),
        Rule(f"{block}.attn.q", f"{layer}.attention.self.query"),
        Rule(f"{block}.attn.k", f"{layer}.attention.self.key"),
        Rule(f"{block}.attn.v", f"{layer}.attention.self.value"),
        Rule(f"{block}.attn.out", f"{layer}.attention.output.dense"),
        Rule(f"{block}.close1", f"{layer}.attention.output.LayerNorm"),
        Rule(f"{block}.ffn.up", f"{layer}.intermediate.dense"),
        Rule(f"{block}.ffn.down", f"{layer}.output.dense"),
        Rule(f"{block}.close2", f"{layer}.output.LayerNorm"),
        Rule("pooler", f"{base}.pooler.dense"),
        *(Rule(f"head.{ours}", theirs) for ours, theirs in head.items()),
    )
    ignored = (
        rf"{base}\.embeddings\.position_ids", r"cls\.seq_relationship\..*", r"cls\.predictions\.decoder\..*",
        r"lm_head\.decoder\..*",
    )  # fmt: skip
    return WeightMap(rules, ignored=ignored if config.pooler else (*ignored, rf"{base}\.pooler\..*"))


# --- DistilBERT -------------------------------------------------------------------------------------------------------

DISTILBERT = {
    **dict.fromkeys(("vocab_size", "dim", "n_layers", "n_heads"), REQUIRED),
    "hidden_dim": 3072,
    "activation": "gelu",
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "architectures": None,
}
DISTIL_NAMES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}


def read_distilbert(c: Settings) -> TextEncoderConfig:
    """The config of DistilBERT (Sanh et al. 2019): BERT without kinds of tokens and without a pooler."""
    c.require("tie_word_embeddings", True)
    masked = _has_masked_head(c, "DistilBertModel", ("DistilBertForMaskedLM",))
    transformer = TransformerConfig(
        dim=c["dim"],
        depth=c.depth("n_layers"),
        heads=c["n_heads"],
        position="learned",
        context=c["max_position_embeddings"],
        norm_eps=1e-12,
        placement="post",
        input_norm=True,
        ffn=c.choose("activation", PLAIN),  # type: ignore[arg-type]
        ffn_dim=c["hidden_dim"],
    )
    return TextEncoderConfig(c["vocab_size"], transformer, segments=0, masked_head=masked)


def write_distilbert(ours: TextEncoderConfig) -> dict[str, Any]:
    """The inverse of `read_distilbert`."""
    t = ours.transformer.resolved()
    return {
        "architectures": ["DistilBertForMaskedLM" if ours.masked_head else "DistilBertModel"],
        "vocab_size": ours.vocab_size,
        "dim": t.dim,
        "hidden_dim": t.ffn_dim,
        "n_layers": t.depth,
        "n_heads": t.heads,
        "max_position_embeddings": t.context,
        "activation": name_of(PLAIN, t.ffn),
        "dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
    }


def distilbert_weights(config: TextEncoderConfig) -> WeightMap:
    """The table of DistilBERT."""
    block, layer = "transformer.blocks.{}", "distilbert.transformer.layer.{}"
    rules = (
        Rule("embedding", "distilbert.embeddings.word_embeddings"),
        Rule("transformer.positions", "distilbert.embeddings.position_embeddings"),
        Rule("transformer.input_norm", "distilbert.embeddings.LayerNorm"),
        *(Rule(f"{block}.attn.{name}", f"{layer}.attention.{name}_lin") for name in ("q", "k", "v", "out")),
        Rule(f"{block}.close1", f"{layer}.sa_layer_norm"),
        Rule(f"{block}.ffn.up", f"{layer}.ffn.lin1"),
        Rule(f"{block}.ffn.down", f"{layer}.ffn.lin2"),
        Rule(f"{block}.close2", f"{layer}.output_layer_norm"),
        Rule("head.dense", "vocab_transform"),
        Rule("head.norm", "vocab_layer_norm"),
        Rule("head.bias", "vocab_projector.bias"),
    )
    return WeightMap(rules, ignored=(r"vocab_projector\.weight",))


# --- ModernBERT -------------------------------------------------------------------------------------------------------

MODERNBERT = SIZES | {
    "intermediate_size": 1152,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "layer_types": None,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "sliding_window": None,  # another name for half of it, which counts first
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "decoder_bias": True,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
    "architectures": None,
}


def read_modernbert(c: Settings) -> TextEncoderConfig:
    """The config of ModernBERT (Warner et al. 2024)."""
    masked = _has_masked_head(c, "ModernBertModel", ("ModernBertForMaskedLM",))
    if masked:
        c.require("tie_word_embeddings", True)
        c.require("classifier_activation", *(w for w in PLAIN if PLAIN[w] == PLAIN.get(c["hidden_activation"])))
    depth, every = c.depth(), c["global_attn_every_n_layers"]
    kinds = c["layer_types"] or [SLIDING if layer % every else FULL for layer in range(depth)]
    half = c["local_attention"] // 2 if c["sliding_window"] is None else c["sliding_window"]
    window = c.windows(kinds, half + 1)  # the token itself and half of the window on either side
    of_kind = by_kind(c, kinds, {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}, (FULL, SLIDING))
    bias = (["q", "k", "v", "out"] if c["attention_bias"] else []) + (["gate", "up", "down"] if c["mlp_bias"] else [])
    transformer = TransformerConfig(
        dim=c["hidden_size"],
        depth=depth,
        heads=c["num_attention_heads"],
        window=window,
        context=c["max_position_embeddings"],
        rotary=uniform([of_kind[kind] for kind in kinds]),
        norm_eps=c["norm_eps"],
        norm_bias=c["norm_bias"],
        input_norm=True,
        first_norm=False,
        ffn=c.choose("hidden_activation", GATED),  # type: ignore[arg-type]
        ffn_dim=c["intermediate_size"],
        bias=bias or False,
    )
    return TextEncoderConfig(
        c["vocab_size"], transformer, segments=0, masked_head=masked, dense_bias=c["classifier_bias"] or not masked,
        logit_bias=c["decoder_bias"] or not masked,
    )  # fmt: skip


def write_modernbert(ours: TextEncoderConfig) -> dict[str, Any]:
    """The inverse of `read_modernbert`."""
    t = ours.transformer.resolved()
    windows, rotary = per_layer(t.window, t.depth), [t.rotary_at(layer) for layer in range(t.depth)]
    kinds = [FULL if window is None else SLIDING for window in windows]
    first = next((r for r in rotary if r), RotaryConfig())
    rope = {
        kind: write_rotary(next((r for k, r in zip(kinds, rotary) if k == kind and r), first))
        for kind in (FULL, SLIDING)
    }
    word = name_of(GATED, t.ffn)
    return {
        "architectures": ["ModernBertForMaskedLM" if ours.masked_head else "ModernBertModel"],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": t.ffn_dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "max_position_embeddings": t.context,
        "hidden_activation": word,
        "norm_eps": t.norm_eps,
        "norm_bias": t.norm_bias,
        "attention_bias": t.has_bias("out"),
        "mlp_bias": t.has_bias("down"),
        "layer_types": kinds,
        "local_attention": 2 * (next((window for window in windows if window), 65) - 1),
        "rope_parameters": rope,
        "global_rope_theta": rope[FULL]["rope_theta"],
        "local_rope_theta": rope[SLIDING]["rope_theta"],
        "decoder_bias": ours.logit_bias,
        "classifier_bias": ours.dense_bias if ours.masked_head else False,
        "classifier_activation": word,
        "embedding_dropout": t.dropout,
        "mlp_dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
    }


def modernbert_weights(config: TextEncoderConfig) -> WeightMap:
    """The table of ModernBERT; of its feed-forward's one matrix the first half is activated."""
    block, layer = "transformer.blocks.{}", "model.layers.{}"
    rules = (
        Rule("embedding", "model.embeddings.tok_embeddings"),
        Rule("transformer.input_norm", "model.embeddings.norm"),
        Rule(f"{block}.norm1", f"{layer}.attn_norm"),
        Rule(tuple(f"{block}.attn.{name}" for name in "qkv"), f"{layer}.attn.Wqkv"),
        Rule(f"{block}.attn.out", f"{layer}.attn.Wo"),
        Rule(f"{block}.norm2", f"{layer}.mlp_norm"),
        Rule((f"{block}.ffn.gate", f"{block}.ffn.up"), f"{layer}.mlp.Wi"),
        Rule(f"{block}.ffn.down", f"{layer}.mlp.Wo"),
        Rule("transformer.final_norm", "model.final_norm"),
        Rule("head.dense", "head.dense"),
        Rule("head.norm", "head.norm"),
        Rule("head.bias", "decoder.bias"),
    )
    return WeightMap(rules, ignored=(r"decoder\.weight",))


GAMMA_AND_BETA = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def _bert(name: str, model_type: str, cls: str, base: str, defaults: Mapping[str, Any]) -> Any:
    return hf_family(
        name, model_type, TextEncoderConfig, partial(read_bert, cls=cls), partial(write_bert, cls=cls), defaults,
        partial(bert_weights, base=base), prefix=f"{base}.",
        renames=GAMMA_AND_BETA,
    )  # fmt: skip


ENCODERS = (
    _bert("BERT", "bert", "Bert", "bert", BERT),
    _bert("RoBERTa", "roberta", "Roberta", "roberta", ROBERTA),
    _bert("XLM-RoBERTa", "xlm-roberta", "XLMRoberta", "roberta", ROBERTA),
    _bert("CamemBERT", "camembert", "Camembert", "roberta", ROBERTA),
    hf_family(
        "DistilBERT", "distilbert", TextEncoderConfig, read_distilbert, write_distilbert, DISTILBERT,
        distilbert_weights, DISTIL_NAMES, prefix="distilbert.",
    ),
    hf_family(
        "ModernBERT", "modernbert", TextEncoderConfig, read_modernbert, write_modernbert, MODERNBERT,
        modernbert_weights, prefix="model.",
    ),
)  # fmt: skip
