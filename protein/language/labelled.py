"""Proteins for models with a head: what reads them, and the models; nothing here trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.checkpoints.family import Pretrained
from ...core.checkpoints.saved import SavedModel
from ...core.checkpoints.source import open_source
from ...core.errors import UserError
from ...core.labelled.headed import Headed, open_headed
from ...core.labelled.model import LabelledConfig, LabelledModel, Tokens, for_vectors
from ...core.labelled.reader import TokenReader, side_by_side
from ...core.labelled.run import Modality
from ..read.alphabet import AMINO_ACIDS, GAP, check_protein, encode
from ..read.inputs import Content, read_input, unique_names
from ..read.profile import profile
from ..read.text import fasta_records, is_annotation, read_content, text_of
from .model import CLS, EOS, PAD, VOCABULARY, SequenceModel, esm_tokens
from .profile_input import ProfileInput


class ProteinPredictor(LabelledModel, SavedModel, config=LabelledConfig):
    """ESM-2's token ids of chains -> outputs of a head, of each chain or of each token."""

    TRUNKS = (SequenceModel,)

    def __init__(self, config: LabelledConfig, trunk: SavedModel | None = None) -> None:
        super().__init__(config, trunk)
        width: int = self.width(self.trunk, None)
        self.profile = self._profile_input(config.reads, width)

    @staticmethod
    def _profile_input(reads: dict[str, Any], width: int) -> nn.Module | None:
        """What reads the profile; models of earlier versions, without a `window`, see the residue's own column."""
        if not reads.get("profile"):
            return None
        if (window := reads.get("window")) is None:
            return nn.Linear(len(AMINO_ACIDS), width, bias=False)
        return ProfileInput(width, int(window))

    @staticmethod
    def bare(trunk: Any) -> Any:
        trunk.head = nn.Identity()
        return trunk

    @staticmethod
    def width(trunk: Any, pool: str | None) -> int:
        if pool == "own":
            raise UserError("model.pool is own, but a sequence model has none; take mean, class, last or attention.")
        return trunk.config.transformer.dim

    def tokens(self, batch: dict[str, Tensor]) -> Tokens:
        tokens = batch["tokens"]
        valid = tokens != PAD
        more = None
        if isinstance(self.profile, ProfileInput):
            more = self.profile(tokens, batch["profile"])
        elif self.profile is not None:
            more = self.profile(batch["profile"])
        hidden = self.trunk.hidden(tokens, more)  # type: ignore[attr-defined]
        return Tokens(hidden, valid, valid & (tokens != CLS) & (tokens != EOS))


class Chain(NamedTuple):
    """A protein as the model reads it.

    Args:
        tokens: int64 `[residues + 2]`.
        profile: float32 `[residues, 20]`, frequencies of the amino acids in its alignment; None without.
    """

    tokens: np.ndarray
    profile: np.ndarray | None = None


class ProteinReader(TokenReader):
    """Chains in one-letter codes, or files of a sequence or an alignment, between <cls> and <eos>.

    Args:
        context: residues that are read.
        profile: with the profile of an alignment; a lone sequence has the one that is expected of it.
    """

    what = "protein"
    parts = "residues"
    PAD = PAD

    def __init__(self, context: int, profile: bool = False) -> None:
        super().__init__(context)
        self.profile, self.alone = profile, 0

    def one(self, cell: str, name: str, beside: Path) -> Chain:
        rows, where = self._rows(cell, name, beside)
        check_protein(rows[0], where)
        self.cut += rows.shape[1] > self.context
        self.alone += self.profile and len(rows) == 1
        rows = rows[:, : self.context]
        tokens = esm_tokens(torch.from_numpy(rows[:1].astype(np.int64)))[0].numpy()
        return Chain(tokens, profile(rows) if self.profile else None)

    def _rows(self, cell: str, name: str, beside: Path) -> tuple[np.ndarray, str]:
        """The alignment of an input, uint8 `[rows, residues]`, the protein first, and what messages call it."""
        path = beside / Path(cell).expanduser()
        if "." in cell[-12:] and path.suffix and not path.is_dir():
            content = read_input(path)
            refuse_complex(content, path)
            found = [a.tokens for a in content.alignments] + [encode(s.letters)[None] for s in content.sequences]
            if len(found) != 1:
                raise UserError(f"'{path}' in {name} holds {len(found)} proteins, but must hold one, alone or aligned.")
            return found[0], f"The protein of '{path}'"
        letters, where = letters_of(cell), f"The sequence in {name}"
        if not letters:
            raise UserError(f"{where} is empty, but must have a residue.")
        tokens = encode(letters, where)
        if (tokens == GAP).any():
            raise UserError(f"{where} has gaps, but must be a sequence; remove them.")
        return tokens[None], where

    def plain(self, cell: str, sample: Chain) -> np.ndarray:
        """Shares of the amino acids and of pairs of neighbours, and the logarithm of the length."""
        inner = sample.tokens[1:-1] - VOCABULARY.index("L")
        inner = inner[(inner >= 0) & (inner < 20)]
        one = np.bincount(inner, minlength=20)
        two = np.bincount(inner[:-1] * 20 + inner[1:], minlength=400)
        parts = [one / max(one.sum(), 1), two / max(two.sum(), 1), [np.log1p(len(inner))]]
        return np.concatenate(parts).astype(np.float32)

    @property
    def widest(self) -> int:
        return self.context + 2

    def size(self, sample: Chain) -> int:
        return len(sample.tokens)

    def whole(self, cell: str, sample: Chain) -> int:
        return len(sample.tokens) - 2 if len(sample.tokens) - 2 < self.context else len(letters_of(cell))

    def places(self, sample: Chain) -> np.ndarray:
        return np.arange(1, len(sample.tokens) - 1)

    def tokens_of(self, sample: Chain) -> np.ndarray | None:
        return sample.tokens if sample.profile is None else None

    def of_tokens(self, tokens: np.ndarray) -> Chain:
        return Chain(tokens)

    def empty(self) -> Chain:
        return Chain(np.zeros(0, np.int64), np.zeros((0, len(AMINO_ACIDS)), np.float32) if self.profile else None)

    def batch(self, samples: Sequence[Chain]) -> dict[str, Tensor]:
        batch = side_by_side([sample.tokens for sample in samples], PAD, self.widest)
        if self.profile:
            columns = torch.zeros(*batch["tokens"].shape, len(AMINO_ACIDS))
            for row, sample in zip(columns, samples):
                assert sample.profile is not None
                row[1 : 1 + len(sample.profile)] = torch.from_numpy(sample.profile)
            batch["profile"] = columns
        return batch

    def notes(self) -> list[str]:
        notes = super().notes()
        if self.alone:
            notes.append(f"{self.alone:,} proteins have no alignment, hence the profile that is expected of a sequence")
        return notes


def letters_of(cell: str) -> str:
    """A sequence as it is read: upper case, without spaces, and without the asterisk of a stop codon at its end."""
    return "".join(cell.split()).upper().removesuffix("*")


def refuse_complex(content: Content, file: str | Path) -> None:
    """Raises UserError when a file holds chains of a complex, which a model of single proteins would read as one."""
    for found in (*content.sequences, *content.alignments):
        if found.chains:
            raise UserError(f"{found.name} of '{file}' is a complex; give its chains by themselves.")


def _reader(model: LabelledModel, folder: Path) -> ProteinReader:
    reads = model.config.reads
    return ProteinReader(int(reads["context"]), bool(reads.get("profile")))


def _expand(words: Sequence[str]) -> list[tuple[str, str]]:
    """Sequences, alignments, and every record of a FASTA file of several."""
    found = []
    for word in words:
        if not Path(word).is_file():
            found.append((word, word if len(word) <= 60 else f"{word[:40]}…"))
            continue
        problems: list[UserError] = []
        content = read_input(word, on_error=problems.append)
        refuse_complex(content, word)
        if problems and content.alignments:
            raise problems[0]
        if problems:  # as they stand there: the reader names those that cannot be read, and the others are done
            records = [r for r in fasta_records(word, text_of(word, read_content(word))) if not is_annotation(r)]
            good = {sequence.name: sequence.letters for sequence in content.sequences}
            names = unique_names(records)
            found += [(good.get(name, record.letters), name) for record, name in zip(records, names, strict=True)]
            continue
        if len(content.sequences) == 0:
            found.append((word, word))
        found += [(record.letters, record.name) for record in content.sequences]
    return found


def _trunk(name: str, pool: str | None) -> tuple[LabelledModel, ProteinReader]:
    from .checkpoints.pretrained import load

    model: Any = load(name).model
    return for_vectors(ProteinPredictor, model, pool or "mean"), ProteinReader(model.config.residues)


def open_with_head(name: str) -> Headed | None:
    """A classifier of Hugging Face. Raises UserError for one whose head is not known."""
    from .checkpoints.pretrained import load

    def reads(below: Pretrained, per_token: bool) -> dict[str, Any]:
        trunk: Any = below.model
        return {"context": trunk.config.residues, "profile": False}

    return open_headed(open_source(name), load, ProteinPredictor, reads)


def _headed(name: str) -> tuple[LabelledModel, ProteinReader] | None:
    found = open_with_head(name)
    return None if found is None else (found.model, ProteinReader(int(found.model.config.reads["context"])))


def _whole_trunk(model: LabelledModel, library: str) -> SequenceModel:
    """The trunk with a new head of masked residues, which classifiers do not read."""
    trunk: Any = model.trunk
    whole = SequenceModel(trunk.config).eval()
    whole.load_state_dict(whole.state_dict() | trunk.state_dict())
    return whole


MODALITY = Modality(
    "protein",
    ProteinPredictor,
    _reader,
    _expand,
    _trunk,
    "triune.protein.language.labels:ProteinTable",
    _whole_trunk,
    _headed,
)


def predict(args: list[str]) -> int:
    """Runs `triune protein predict` for a model with a head."""
    from ...core.labelled.predict import main

    return main(MODALITY, args)


def probe(args: list[str]) -> int:
    """Runs `triune protein probe` for a table."""
    from ...core.labelled.probe import main

    return main(MODALITY, args)


def check(args: list[str]) -> int:
    """Runs `triune protein check`: copies, leaks and doubtful labels among the sequences of a table."""
    from ...core.labelled.check import main

    return main(MODALITY, args)
