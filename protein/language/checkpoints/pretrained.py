"""Protein language models of fair-esm and Hugging Face: read, run with the same numbers, and written back.

| family          | library  | what it differs in from the defaults of `SequenceConfig`                                |
|-----------------|----------|-----------------------------------------------------------------------------------------|
| ESM-2           | fair-esm | rotary.half_precision, as its stored frequencies say                                    |
| ESM-1b, ESM-1v  | fair-esm | learned positions from row 2 on, input_norm                                             |
| ESM-2           | hf       | any rotary.base, norm_eps, ffn_dim, vocab_size, input_norm, token_dropout               |
| ESM-1b          | hf       | the same with learned positions                                                         |

The released ESM-2 weights were trained with rotary frequencies rounded to float16; without repeating that, outputs
differ. The contact regression of a checkpoint is the `companion` of its model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.checkpoints.family import Family, Pretrained, apart, described, recognise, replacing
from ....core.checkpoints.source import Source, open_source
from ....core.errors import UserError
from ..contact_head import HEAD, ContactHead
from ..model import EOS, MASK, PAD, SequenceConfig, SequenceModel, sequence_tokens
from . import fair as esm_fair
from . import hf as esm_hf
from .esm import REGRESSION, read_contact_head

FAMILIES = (
    Family(
        "ESM-2", "fair-esm", lambda source: esm_fair.content(source).get("cfg") is not None, esm_fair.esm2,
        esm_fair.weights, None, lambda config: config.transformer.position == "rotary" and not esm_fair.unlike(config),
    ),
    Family(
        "ESM-1b", "fair-esm", lambda source: esm_fair.content(source).get("args") is not None, esm_fair.esm1b,
        esm_fair.weights, None, lambda config: config.transformer.position == "learned" and not esm_fair.unlike(config),
    ),
    Family(
        "ESM-2", "hf", lambda source: esm_hf.fits(source, "rotary"), esm_hf.to_ours, esm_hf.weights, esm_hf.to_theirs,
        lambda config: config.transformer.position == "rotary" and not esm_hf.unlike(config),
    ),
    Family(
        "ESM-1b", "hf", lambda source: esm_hf.fits(source, "absolute"), esm_hf.to_ours, esm_hf.weights,
        esm_hf.to_theirs,
        lambda config: config.transformer.position == "learned" and not esm_hf.unlike(config),
    ),
)  # fmt: skip
_LIBRARIES = {"hf": esm_hf, "fair-esm": esm_fair}


def load(name: str | Source) -> Pretrained:
    """Opens a protein language model: a `.pt` of fair-esm or its folder, a Hugging Face folder or hub name, or a run.

    Returns:
        `model` is a `SequenceModel` in evaluation mode, `companion` its `ContactHead`, or None where there is none.

    Raises:
        UserError: it is another kind of model, is damaged, or has a setting that the core does not have.
    """
    source = name if isinstance(name, Source) else esm_fair.file_in(open_source(name))
    if source.is_ours:
        return _ours(source)
    family = recognise(source, FAMILIES, "protein language model")
    config = family.config(source)
    theirs = _LIBRARIES[family.library].read(source)
    with described(source.name, config.transformer.depth, len(theirs)):
        model = SequenceModel(config).eval()
    encoder = {key: tensor for key, tensor in theirs.items() if not key.startswith(REGRESSION)}
    family.weights(config).load(model, encoder, source.name)
    return Pretrained(model, source, family, read_contact_head(config, theirs, source.name))


def _ours(source: Source) -> Pretrained:
    """A model of `triune protein pretrain`; a head without weights, as a short training leaves it, counts as none."""
    model, folder = SequenceModel.from_pretrained(source.path).eval(), source.path / HEAD
    head = ContactHead.from_pretrained(folder) if folder.is_dir() else None
    return Pretrained(model, source, None, head if head is not None and head.weight.any() else None)


def export(pretrained: Pretrained | SequenceModel, folder: str | Path, library: str) -> Path:
    """Writes a model, and its contact head if it has one, as `library` ("hf", "fair-esm" or "triune") loads it.

    Raises:
        UserError: the library has no such model; the sentence says which libraries have.
    """
    model, head = (
        (pretrained, None) if isinstance(pretrained, SequenceModel) else (pretrained.model, pretrained.companion)
    )
    assert isinstance(model, SequenceModel)
    if library != "triune":
        check_library(model.config, library)
    with replacing(folder) as new:
        if library != "triune":
            _LIBRARIES[library].write(new, model, head)
        else:
            model.save_pretrained(new)
            if head is not None:
                head.save_pretrained(new / HEAD)
    return Path(folder)


def check_library(config: SequenceConfig, library: str) -> None:
    """Raises UserError when `library` cannot represent a model, listing those that can."""
    can = dict.fromkeys(family.library for family in FAMILIES if family.represents(config))
    if library not in can:
        odd = ", ".join(_LIBRARIES[library].unlike(config)) if library in _LIBRARIES else ""
        why = f"there is no such ESM there: {odd}" if odd else "it is no library of protein language models"
        raise UserError(
            f"This model cannot be written for '{library}' ({why}); it can be for {', '.join([*can, 'triune'])}."
        )


@torch.no_grad()
def parity(pretrained: Pretrained, folder: str | Path, library: str) -> float:
    """The largest difference of logits and contact probabilities between our model and `library`'s on an exported
    folder, or on the source itself.

    One padded batch of made-up chains, one of them with masked residues.

    Raises:
        UserError: the library is not installed.
    """
    model, head, tokens = pretrained.model, pretrained.companion, _made_up_chains()
    outputs = _LIBRARIES[library].outputs if library in _LIBRARIES else _outputs
    logits, contacts = outputs(Path(folder), tokens)
    real = tokens != PAD
    worst = torch.tensor(apart(model(tokens)[real], logits[real]))
    if head is not None:
        residues = ((tokens != PAD).sum(1) - 2).tolist()
        for ours, theirs, n in zip(head(model, tokens).sigmoid(), contacts, residues):
            worst = worst.maximum((ours - theirs)[:n, :n].abs().max())
    return float(worst)


def check_inputs(pretrained: Pretrained, folder: str | Path, library: str) -> str:
    """Compares the tokens of a chain with all letters with those of transformers' tokenizer for what is in `folder`.

    Returns:
        What was compared, as a sentence; an empty text where there is nothing to compare with.

    Raises:
        UserError: the chain becomes other tokens there.
    """
    if library != "hf" or not (Path(folder) / "vocab.txt").is_file():
        return ""
    from transformers import EsmTokenizer

    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    theirs: Any = EsmTokenizer.from_pretrained(folder)(letters)["input_ids"]
    if (ours := sequence_tokens(letters)[0].tolist()) != list(theirs):
        raise UserError(f"the chain {letters} becomes the tokens {theirs} in transformers and {ours} here.")
    return "Tokens: transformers makes the same of a chain with all letters."


def _outputs(folder: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    again = load(str(folder))
    contacts = torch.zeros(()) if again.companion is None else again.companion(again.model, tokens).sigmoid()
    return again.model(tokens), contacts


def _made_up_chains() -> Tensor:
    tokens = torch.randint(4, 24, (3, 50), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    for row, residues in zip(tokens, (48, 31, 12)):
        row[residues + 1], row[residues + 2 :] = EOS, PAD
    tokens[0, 5:9] = MASK
    return tokens


def facts(pretrained: Pretrained) -> list[tuple[str, str]]:
    """What `triune info` says about a checkpoint of this task: pairs of name and text."""
    config: Any = pretrained.model.config
    head = pretrained.companion
    name = pretrained.source.name
    weights = "no contact head" if head is None else f"contact head with {int(head.weight.count_nonzero())} maps"
    return [
        ("vocabulary", f"{config.vocab_size}; {weights}"),
        ("contacts", f"triune protein contacts x.fasta --pretrained {name}"),
        ("fine-tune", f"triune protein fit --model.pretrained {name}"),
    ]
