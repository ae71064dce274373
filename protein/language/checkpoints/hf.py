"""ESM-2 and ESM-1b as transformers' `EsmForMaskedLM` stores them.

Three layouts are read: that of version 4, with `inv_freq` in each layer; that of version 5, with one for all; and what
5.23 writes, where it stands under a literal `*` and the norms have gamma and beta. Version 4's is written, which both
load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.checkpoints.family import differences, write_folder
from ....core.checkpoints.native import CONFIG
from ....core.checkpoints.source import Source
from ....core.checkpoints.weights import Rule, WeightMap
from ....core.errors import UserError
from ....core.rotary import RotaryConfig
from ..contact_head import ContactHead
from ..model import EOS, MASK, PAD, VOCABULARY, SequenceConfig, SequenceModel
from .esm import (
    REGRESSION,
    check_tied,
    contact_tensors,
    frequency_constants,
    read_rotary,
    rotary_of,
    sequence_config,
)

_OURS, _THEIRS = "transformer.blocks.{}.", "esm.encoder.layer.{}."
RULES = (
    Rule("embedding", "esm.embeddings.word_embeddings"),
    Rule("transformer.positions", "esm.embeddings.position_embeddings"),
    Rule("transformer.input_norm", "esm.embeddings.layer_norm"),
    Rule(_OURS + "norm1", _THEIRS + "attention.LayerNorm"),
    Rule(_OURS + "attn.q", _THEIRS + "attention.self.query"),
    Rule(_OURS + "attn.k", _THEIRS + "attention.self.key"),
    Rule(_OURS + "attn.v", _THEIRS + "attention.self.value"),
    Rule(_OURS + "attn.out", _THEIRS + "attention.output.dense"),
    Rule(_OURS + "norm2", _THEIRS + "LayerNorm"),
    Rule(_OURS + "ffn.up", _THEIRS + "intermediate.dense"),
    Rule(_OURS + "ffn.down", _THEIRS + "output.dense"),
    Rule("transformer.final_norm", "esm.encoder.emb_layer_norm_after"),
    Rule("head.dense", "lm_head.dense"),
    Rule("head.norm", "lm_head.layer_norm"),
    Rule("head.bias", "lm_head.bias"),
)
IGNORED = (
    # A buffer, and the table that rotary models have but do not use.
    r"esm\.embeddings\.position_(ids|embeddings\.weight)",
    r"esm\.pooler\..*",
    r".*rotary_embeddings\.inv_freq",
)
_ONLY = {
    "is_folding_model": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "mask_token_id": MASK,
    "pad_token_id": PAD,
}
"""Settings that have one value in every ESM-2 and ESM-1b."""

SPECIAL = {
    "cls_token": "<cls>", "eos_token": "<eos>", "mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>",
}  # fmt: skip


def fits(source: Source, position: str) -> bool:
    """Whether a folder holds an ESM of transformers whose positions are `rotary` or `absolute` (the default)."""
    config = source.config
    return config.get("model_type") == "esm" and config.get("position_embedding_type", "absolute") == position


def weights(config: SequenceConfig) -> WeightMap:
    """The weight map, without the contact regression."""
    constants = frequency_constants(config, _THEIRS + "attention.self.rotary_embeddings.inv_freq")
    return WeightMap(RULES, IGNORED, constants)


def to_ours(source: Source) -> SequenceConfig:
    """Our config from theirs. Raises UserError for a setting that the core does not have."""
    given = source.config
    for key, allowed in _ONLY.items():
        if given.get(key, allowed) not in (allowed, None):
            raise UserError(
                f"'{source.name}' has {key} {given[key]!r}, but only ESM-2 and ESM-1b language models ({key} "
                f"{allowed}) are supported."
            )
    _check_vocabulary(source.folder / "vocab.txt")
    try:
        dim, heads = int(given["hidden_size"]), int(given["num_attention_heads"])
        rotary = None
        if given.get("position_embedding_type") == "rotary":
            stored = [
                tensor for name, tensor in source.tensors().items() if name.endswith("rotary_embeddings.inv_freq")
            ]
            rotary = read_rotary(stored, _base(given), dim // heads, source.name)
        return sequence_config(
            dim, int(given["num_hidden_layers"]), heads, int(given["intermediate_size"]), rotary,
            bool(given.get("emb_layer_norm_before")), bool(given.get("token_dropout")),
            float(given.get("layer_norm_eps", 1e-12)), int(given.get("max_position_embeddings", 1026)),
            int(given["vocab_size"]),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The {CONFIG} of '{source.name}' is not complete ({error}); it was damaged or is another model's."
        ) from None


def _base(given: Mapping[str, Any]) -> float:
    parameters = given.get("rope_parameters") or {}
    return float(given.get("rope_theta") or parameters.get("rope_theta") or 10_000.0)


def _check_vocabulary(path: Path) -> None:
    found = path.read_text(errors="replace").split() if path.is_file() else list(VOCABULARY)
    if tuple(found[: len(VOCABULARY)]) != VOCABULARY:
        wrong = next((i for i, (a, b) in enumerate(zip(found, VOCABULARY)) if a != b), len(found))
        raise UserError(
            f"'{path}' is not the vocabulary of ESM-2: line {wrong + 1} is {([*found, 'missing'])[wrong]!r}, but must "
            f"be '{VOCABULARY[wrong]}'; give the vocab.txt that came with the weights."
        )


def to_theirs(config: SequenceConfig) -> dict[str, Any]:
    """The content of their config.json."""
    core, rotary = config.transformer.resolved(), rotary_of(config)
    return {
        "architectures": ["EsmForMaskedLM"], "model_type": "esm", "dtype": "float32", "torch_dtype": "float32",
        "vocab_size": config.vocab_size, "mask_token_id": MASK, "pad_token_id": PAD, "eos_token_id": EOS,
        "hidden_size": core.dim, "num_hidden_layers": core.depth, "num_attention_heads": core.heads,
        "intermediate_size": core.ffn_dim, "layer_norm_eps": core.norm_eps, "max_position_embeddings": core.context,
        "position_embedding_type": "rotary" if rotary else "absolute",
        "rope_theta": rotary.base if rotary else 10_000.0,
        "emb_layer_norm_before": core.input_norm, "token_dropout": config.token_dropout,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
        "tie_word_embeddings": True, "is_folding_model": False, "use_cache": False,
    }  # fmt: skip


def unlike(config: SequenceConfig) -> list[str]:
    """Settings in which a model differs from all that transformers' ESM can be."""
    core, rotary = config.transformer.resolved(), rotary_of(config)
    rotary = rotary and RotaryConfig(base=rotary.base, half_precision=rotary.half_precision)
    like = sequence_config(
        core.dim, core.depth, core.heads, core.ffn_dim or 0, rotary, core.input_norm, config.token_dropout,
        core.norm_eps, core.context, config.vocab_size,
    )  # fmt: skip
    return differences(config, like)


def read(source: Source) -> dict[str, Tensor]:
    """All tensors under version 4's names of `EsmForMaskedLM`, the contact regression without a prefix.

    Raises:
        UserError: there is no language-model head, or its matrix is not the embedding's.
    """
    found = source.tensors()
    bare = not any(name.startswith("esm.") for name in found)  # of an EsmModel
    found = {f"esm.{name}" if bare and not name.startswith("lm_head.") else name: t for name, t in found.items()}
    found = {re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name): tensor for name, tensor in found.items()}
    found = {re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name): tensor for name, tensor in found.items()}
    if not any(name.startswith("lm_head.") for name in found):
        raise UserError(
            f"'{source.name}' has no language-model head; save it from EsmForMaskedLM instead of EsmModel or a "
            "classifier."
        )
    check_tied(
        found.pop("lm_head.decoder.weight", None), found.get("esm.embeddings.word_embeddings.weight"), source.name
    )
    return {name.removeprefix("esm.") if name.startswith("esm." + REGRESSION) else name: t for name, t in found.items()}


def write(folder: Path, model: SequenceModel, head: ContactHead | None) -> None:
    """Config, weights and the tokenizer's files."""
    regression = {f"esm.{name}": tensor for name, tensor in contact_tensors(model, head).items()}
    config = model.config
    write_folder(folder, to_theirs(config), weights(config).to_theirs(model) | regression)
    longest = config.transformer.context - config.position_offset if config.position_offset else 10**30
    tokenizer = {"tokenizer_class": "EsmTokenizer", "model_max_length": longest, **SPECIAL}
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=2) + "\n")


def outputs(folder: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and contact probabilities of transformers itself. Raises UserError when it is not installed."""
    try:
        from transformers import EsmForMaskedLM
    except ImportError:
        raise UserError("The comparison with Hugging Face's model needs: pip install transformers.") from None
    # Its default attention stores no weights, and `predict_contacts` fails without them.
    # It would take the dtype of the file, whose rounding is not ours.
    theirs: Any = EsmForMaskedLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    mask = (tokens != PAD).long()
    return theirs(tokens, attention_mask=mask).logits, theirs.predict_contacts(tokens, mask)
