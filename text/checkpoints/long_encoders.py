"""Encoders of long texts: Longformer (windows and global tokens) and BigBird (blocks)."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...core.checkpoints.weights import Rule, WeightMap
from ...core.config import TransformerConfig, uniform
from ...core.errors import UserError
from ...core.sparse import SparseConfig
from ..encoder import TextEncoderConfig
from .encoders import BERT, GAMMA_AND_BETA, ROBERTA, bert_weights, read_bert, write_bert
from .settings import Settings, hf_family, per_layer

# --- Longformer -------------------------------------------------------------------------------------------------------

LONGFORMER = {key: value for key, value in ROBERTA.items() if key not in ("is_decoder", "add_cross_attention")} | {
    "attention_window": 512,
}  # fmt: skip


def read_longformer(c: Settings) -> TextEncoderConfig:
    """The config of Longformer (Beltagy et al. 2020): RoBERTa with windows, and projections for global tokens."""
    if not c["architectures"]:  # the published files name no class, and have the head of masked tokens
        c = Settings(c.name, {**c.values, "architectures": ["LongformerForMaskedLM"]}, c.defaults)
    windows = per_layer(c["attention_window"], c.depth())
    if len(windows) != c.depth() or any(window < 2 or window % 2 for window in windows):
        raise UserError(
            f"'{c.name}' has attention_window = {c['attention_window']!r}, but must have one even positive number, or "
            f"one for each of {c.depth()} layers."
        )
    ours = read_bert(c, "Longformer")
    core = dataclasses.replace(
        ours.transformer, window=uniform([window // 2 + 1 for window in windows]), global_projections=True
    )
    return dataclasses.replace(ours, transformer=core)


def write_longformer(ours: TextEncoderConfig) -> dict[str, Any]:
    """The inverse of `read_longformer`."""
    t = ours.transformer
    windows = [2 * ((t.window_at(layer) or 257) - 1) for layer in range(t.depth)]
    return write_bert(ours, "Longformer") | {"attention_window": windows}


def longformer_weights(config: TextEncoderConfig) -> WeightMap:
    """The table of Longformer."""
    rest = bert_weights(config, "longformer")
    ours, theirs = "transformer.blocks.{}.attn.globally", "longformer.encoder.layer.{}.attention.self"
    names = {"q": "query", "k": "key", "v": "value"}
    own = tuple(Rule(f"{ours}.{name}", f"{theirs}.{there}_global") for name, there in names.items())
    return dataclasses.replace(rest, rules=(*own, *rest.rules))


# --- BigBird ----------------------------------------------------------------------------------------------------------

BIGBIRD = BERT | {
    "hidden_act": "gelu_new", "max_position_embeddings": 4096, "attention_type": "block_sparse", "use_bias": True,
    "rescale_embeddings": False, "block_size": 64, "num_random_blocks": 3,
}  # fmt: skip


def read_bigbird(c: Settings) -> TextEncoderConfig:
    """The config of BigBird (Zaheer et al. 2020), with the blocks that transformers uses in evaluation.

    There the random blocks are not drawn: all are the first block, which so counts more than once. A text of at most
    (5 + 2·random) blocks has full attention.
    """
    c.require("rescale_embeddings", False)
    c.require("attention_type", "block_sparse", "original_full")
    block, random, sparse = c["block_size"], c["num_random_blocks"], None
    if c["attention_type"] == "block_sparse":
        sparse = SparseConfig(block, around=1, first=1, last=1, weight=1 + random, whole=(5 + 2 * random) * block)
    ours = read_bert(c, "BigBird")
    names = ["out", "up", "down"] + (["q", "k", "v"] if c["use_bias"] else [])
    core = dataclasses.replace(ours.transformer, sparse=sparse, bias=sorted(names))
    return dataclasses.replace(ours, transformer=core, pooler=True)


def write_bigbird(ours: TextEncoderConfig) -> dict[str, Any]:
    """The inverse of `read_bigbird`."""
    t: TransformerConfig = ours.transformer
    sparse = t.sparse or SparseConfig()
    return write_bert(ours, "BigBird") | {
        "attention_type": "original_full" if t.sparse is None else "block_sparse",
        "block_size": sparse.block,
        "num_random_blocks": sparse.weight - 1,
        "use_bias": t.has_bias("q"),
    }


def bigbird_weights(config: TextEncoderConfig) -> WeightMap:
    """The table of BigBird, whose pooler is a linear layer alone."""
    rest = bert_weights(config, "bert")
    return dataclasses.replace(rest, rules=(Rule("pooler", "bert.pooler"), *rest.rules))


LONG_ENCODERS = (
    hf_family(
        "Longformer", "longformer", TextEncoderConfig, read_longformer, write_longformer, LONGFORMER,
        longformer_weights, prefix="longformer.", renames=GAMMA_AND_BETA,
    ),
    hf_family(
        "BigBird", "big_bird", TextEncoderConfig, read_bigbird, write_bigbird, BIGBIRD, bigbird_weights,
        prefix="bert.", renames=GAMMA_AND_BETA,
    ),
)  # fmt: skip
