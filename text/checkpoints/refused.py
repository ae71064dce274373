"""Families that people ask for and the core cannot express, each with what is missing."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.checkpoints.source import Source
from ...core.errors import UserError

_LATENT = "keys and values that all heads make of one compressed vector (multi-head latent attention)"
_ALIBI = "scores that fall with the distance of two tokens (ALiBi)"
_BINS = "scores that depend on the distance of two tokens by learned bins"


def _all(kinds: Iterable[str], missing: str) -> dict[str, str]:
    return dict.fromkeys(kinds, missing)


MISSING: dict[str, str] = {
    "gpt_oss": "attention sinks, learned scores beside those of the keys",
    **_all(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_linear", "longcat_flash", "minicpm3", "glm4_moe_lite"),
        _LATENT,
    ),
    "falcon_h1": "attention and Mamba-2 side by side in one layer, each with a factor",
    **_all(("zamba", "zamba2"), "block of attention that several layers share, each with LoRA factors of its own"),
    **_all(("gemma3n", "gemma3n_text"), "embeddings for each layer, nor several residual streams (AltUp)"),
    "olmo_hybrid": "norms before the branches of some layers and behind those of others",
    **_all(("bloom", "mpt"), _ALIBI),
    **_all(("hunyuan_v1_dense", "hunyuan_v1_moe"), "norms of queries and keys after their rotation"),
    "apertus": "activation xIELU",
    "falcon_mamba": "norms without gains inside of Mamba",
    "phimoe": "experts that are chosen by sparse mixing (SparseMixer)",
    "llama4_text": "attention within chunks and queries that are scaled by their position",
    "xglm": "sines and cosines of positions that lie in two halves",
    **_all(("deberta", "deberta-v2"), "scores of content and position apart (disentangled attention)"),
    "albert": "layer that is run several times",
    "electra": "positions of another width than that of the layers, nor a head of a discriminator",
    **_all(("mpnet", "t5", "mt5", "umt5", "longt5"), _BINS),
}  # fmt: skip
"""What the core does not have, by `model_type`."""


def refuse(source: Source) -> None:
    """Raises UserError, with what is missing, for a checkpoint of a family that is known not to be expressible."""
    kind = source.config.get("model_type")
    if isinstance(kind, str) and kind in MISSING:
        raise UserError(
            f"'{source.name}' is {kind}, which is not supported, because the core has no {MISSING[kind]}; use it in "
            "its own library."
        )
