"""What predicts contacts: one interface for the pair model and for a language model with a contact head.

`predictor_for(folder)` opens either; another kind of model is one more class here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...core.checkpoints.native import load_config
from ...core.errors import UserError
from ..language.contact_head import HEAD, ContactHead
from ..language.model import SequenceModel, esm_tokens, sequence_tokens
from ..pair.config import PairConfig
from ..pair.memory import check_attention, choose_chunk, estimate, estimate_attention, free_memory, gib
from ..pair.model import PairModel
from ..read.alphabet import encode
from ..read.complexes import residue_index, spans
from ..read.profile import chosen_rows, complex_profile, profile
from .distogram import agreement, expected_distances

SHARE = 0.8
"""Part of the free memory that a prediction may take by its estimate, which is no exact one."""

SEEN_WITHOUT = 0.95
"""A model of whose training chains more had a profile has not learned to do without."""

LINKER = "G" * 25
"""Residues between the chains of a complex in a language model, whose positions cannot jump (Lin et al. 2023)."""

LONGEST = 1022
"""Residues of the longest crops that ESM-2 and ESM-1b were trained on."""

SHORTEST_WINDOW = 64
"""Residues."""

ROWS = 128
"""Rows of an alignment for a model that does not say how many it was trained on."""


class Prediction(NamedTuple):
    """Contacts of a chain.

    contacts: probabilities of a Cβ distance below 8 Å, float32 `[residues, residues]`, symmetric.
    distances: expected Cβ distances in ångström, float32 `[residues, residues]`, those beyond 21.7 Å counted as 21.8;
        None from a model that does not predict them.
    notes: what should be known about the input, each a sentence.
    distogram: probabilities of the distance classes, float32 `[residues, residues, bins]`, symmetric; None unless they
        were asked for.
    """

    contacts: Tensor
    distances: Tensor | None = None
    notes: tuple[str, ...] = ()
    distogram: Tensor | None = None


class Predictor(Protocol):
    """A trained model, ready for use."""

    @property
    def about(self) -> str:
        """What it is, in a few words of ASCII."""
        ...

    def predict(
        self, tokens: np.ndarray, profile: np.ndarray | None = None, msa: np.ndarray | None = None,
        letters: str | None = None, chains: tuple[int, ...] = (),
    ) -> Prediction:  # fmt: skip
        """Predicts one chain.

        Args:
            tokens: numbers of `alphabet`, uint8 `[residues]`.
            profile: frequencies of the 20 amino acids, `[residues, 20]`; left out, that of the alignment.
            msa: the alignment, uint8 `[rows, residues]`, the chain first; left out, there is none.
            letters: the chain as it was written, for a model that tells U from C and B from X.
            chains: lengths of the chains of a complex, which `tokens` joins; none for one chain.

        Raises:
            UserError: the chain is too long for the memory.
        """
        ...


def predictor_for(folder: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Opens the model in a folder (`config.json` and `model.safetensors`).

    Raises:
        UserError: it holds none, or a language model without a contact head.
    """
    folder = Path(folder)
    kinds: dict[str, Callable[[Path, torch.device], Predictor]] = {
        "PairModel": PairPredictor.load,
        "SequenceModel": LanguagePredictor.load,
    }
    return kinds[load_config(folder, *kinds)["architecture"]](folder, torch.device(device))


class PairPredictor:
    """The pair model.

    Args:
        model: in evaluation mode, on its device.
        inputs: what its training chains had: `profiles`, the share of them with a profile, and `msa_rows`, rows of the
            alignments (0: none were used).
    """

    def __init__(self, model: PairModel, inputs: dict[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.with_distogram = False
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> PairPredictor:
        model = PairModel.from_pretrained(folder).eval().to(device)
        return cls.of(model, PairModel.read_settings(folder).get("inputs"))

    @classmethod
    def of(cls, model: PairModel, inputs: dict[str, Any] | None) -> PairPredictor:
        """Of a model of which nothing is known about the inputs: all that it can read."""
        return cls(model, inputs or _assumed(model.config))

    @property
    def about(self) -> str:
        c = self.model.config
        rows = f"alignments of {self.inputs['msa_rows']} rows" if self.inputs["msa_rows"] else "no alignments"
        profiles = "profiles" if self.inputs["profiles"] else "no profiles"
        return f"pair model, {c.depth} blocks x {c.dim} channels, trained on {profiles} and {rows}"

    def predict(
        self, tokens: np.ndarray, profile: np.ndarray | None = None, msa: np.ndarray | None = None,
        letters: str | None = None, chains: tuple[int, ...] = (),
    ) -> Prediction:  # fmt: skip
        if msa is not None and len(msa) < 2:
            msa = None
        columns, notes = self._profile(tokens, profile, msa, chains)
        rows = self._rows(tokens, msa, notes)
        depth = 1 if rows is None else len(rows)
        available = int(SHARE * free_memory(self.device))
        chunk = choose_chunk(self.model.config, len(tokens), available, depth)
        inputs = {"tokens": tokens.astype(np.int64), "profile": columns, "msa": rows}
        if chains:
            inputs["residue_index"] = residue_index(chains, len(tokens))
            notes.append("the model was trained on single chains: what it says between chains is a guess")
        batch = {
            name: None if value is None else torch.from_numpy(value)[None].to(self.device)
            for name, value in inputs.items()
        }
        needed = estimate(self.model.config, len(tokens), depth, chunk)
        with torch.inference_mode(), _memory_is_enough(len(tokens), needed):
            output = self.model(**batch, chunk=chunk)
            distances = expected_distances(output.distogram[0])
            contacts, classes = output.contacts[0].sigmoid().cpu(), None
            if self.with_distogram:
                classes = output.distogram[0].float().softmax(-1).cpu()
                notes.append(agreement(contacts, classes))
            return Prediction(contacts, distances.cpu(), tuple(notes), classes)

    def inputs_of(
        self, tokens: np.ndarray, profile: np.ndarray | None = None, msa: np.ndarray | None = None
    ) -> dict[str, Tensor | None]:
        """What the model is called with for one chain; arguments as for `predict`."""
        columns, notes = self._profile(tokens, profile, msa, ())
        found = {"tokens": tokens.astype(np.int64), "profile": columns, "msa": self._rows(tokens, msa, notes)}
        return {
            name: None if value is None else torch.from_numpy(value)[None].to(self.device)
            for name, value in found.items()
        }

    def _profile(
        self, tokens: np.ndarray, given: np.ndarray | None, msa: np.ndarray | None, chains: tuple[int, ...]
    ) -> tuple[np.ndarray, list[str]]:
        """The profile as the model knows profiles, and what to say about it."""
        share = self.inputs["profiles"]
        nothing = np.zeros((len(tokens), 20), dtype=np.float32)
        if not share:
            return nothing, []
        if given is not None:
            return given.astype(np.float32), []
        if msa is not None:
            return complex_profile(msa, chains), []
        if share < SEEN_WITHOUT:
            return nothing, ["there is no alignment, hence no profile; a part of the training chains had none either"]
        return profile(tokens[None]), [
            "there is no alignment: the profile, on which the model was trained, is only what BLOSUM62 expects of this "
            "sequence; an alignment (A3M) would predict better"
        ]

    def _rows(self, tokens: np.ndarray, msa: np.ndarray | None, notes: list[str]) -> np.ndarray | None:
        """As many rows as in training, chosen as `prepare` does; None for a model that was trained without."""
        most = self.inputs["msa_rows"]
        if not most:
            if msa is not None and not self.inputs["profiles"]:
                notes.append("the model was trained on sequences alone: the alignment is not used")
            elif msa is not None:
                notes.append("the model was trained without alignments: of this one it sees the profile only")
            return None
        if msa is None:
            return tokens[None].astype(np.int64)
        return msa[chosen_rows(msa, most, seed=0)].astype(np.int64)


def _assumed(config: PairConfig) -> dict[str, Any]:
    """The inputs of a model that was saved without a word about them: all it can read."""
    return {"profiles": 1.0, "msa_rows": ROWS if config.msa_depth or config.covariance_dim else 0}


class LanguagePredictor:
    """A masked language model of protein sequences with a fitted contact head. It reads the sequence only.

    Args:
        model: in evaluation mode, on its device.
        head: on the same device.
        all_letters: it was trained on sequences as they are written, as ESM-2 was, and not on numbers of `alphabet`.
    """

    def __init__(self, model: SequenceModel, head: ContactHead, all_letters: bool = False) -> None:
        self.model, self.head, self.all_letters = model, head, all_letters
        self.device = model.embedding.weight.device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> LanguagePredictor:
        if not (folder / HEAD).is_dir():
            raise UserError(
                f"The language model in '{folder}' has no contact head ({HEAD}/); one is fitted at the end of "
                "`triune protein pretrain`, or in Python with ContactHead.fit."
            )
        head = ContactHead.from_pretrained(folder / HEAD).to(device)
        if not head.weight.any():
            raise UserError(
                f"The contact head in '{folder / HEAD}' is empty: no attention head of the language model told "
                "contacts; pretrain it for longer, on more sequences (--data.files)."
            )
        return cls(SequenceModel.from_pretrained(folder).eval().to(device), head)

    @classmethod
    def pretrained(cls, name: str, device: str | torch.device = "cpu") -> LanguagePredictor:
        """Opens a checkpoint of fair-esm or Hugging Face. Raises UserError when it has no contact regression."""
        from ..language.checkpoints.pretrained import load

        found = load(name)
        if found.companion is None:
            raise UserError(
                f"'{name}' has no contact regression (of fair-esm, it is the file x-contact-regression.pt beside "
                f"x.pt); fit one with `triune protein pretrain --model.pretrained {name}`, or in Python with "
                "ContactHead.fit on 20 structures."
            )
        assert isinstance(found.model, SequenceModel)
        return cls(found.model.to(device), found.companion.to(device), all_letters=found.family is not None)

    @property
    def about(self) -> str:
        c = self.model.config.transformer
        return f"language model, {c.depth} layers x {c.dim}, with a contact head on its attention"

    def predict(
        self, tokens: np.ndarray, profile: np.ndarray | None = None, msa: np.ndarray | None = None,
        letters: str | None = None, chains: tuple[int, ...] = (),
    ) -> Prediction:  # fmt: skip
        notes = self._notes(len(tokens), msa, chains)
        linked, kept = _linked(tokens, chains)
        check_attention(len(linked), int(SHARE * free_memory(self.device)))
        if self.all_letters and letters is not None:
            ids = sequence_tokens(LINKER.join(letters[span] for span in spans(chains, len(letters))))
        else:
            ids = esm_tokens(torch.from_numpy(linked.astype(np.int64))[None])
        with torch.inference_mode(), _memory_is_enough(len(linked), estimate_attention(len(linked))):
            contacts = self.head(self.model, ids.to(self.device))[0].sigmoid().cpu()
        return Prediction(contacts[kept][:, kept], None, tuple(notes))

    def _notes(self, residues: int, msa: np.ndarray | None, chains: tuple[int, ...]) -> list[str]:
        notes = []
        if msa is not None and len(msa) > 1:
            notes.append("a language model reads the sequence only: the alignment is not used")
        if chains:
            notes.append(f"the model was trained on single chains: they are joined by {len(LINKER)} G, as in ESMFold")
        if self.all_letters and residues + len(LINKER) * max(len(chains) - 1, 0) > LONGEST:
            notes.append(
                f"{residues:,} residues are more than the {LONGEST:,} that ESM-2 was trained on: nobody has tested it "
                f"there; --windows {LONGEST} predicts parts of that length"
            )
        return notes


def _linked(tokens: np.ndarray, chains: tuple[int, ...]) -> tuple[np.ndarray, Tensor]:
    """The chains of a complex joined by `LINKER`, uint8 `[residues + linkers]`, and where their residues are there."""
    parts, kept, at = [], [], 0
    for span in spans(chains, len(tokens)):
        if parts:
            parts.append(encode(LINKER))
            at += len(LINKER)
        parts.append(tokens[span])
        kept.append(torch.arange(at, at + len(tokens[span])))
        at += len(tokens[span])
    return np.concatenate(parts), torch.cat(kept)


class Windowed:
    """Predicts long chains in windows that overlap by half, and averages where several windows hold a pair.

    Args:
        predictor: of the windows.
        size: residues of a window.

    Raises:
        UserError: a window is too short for a long-range pair.
    """

    def __init__(self, predictor: Predictor, size: int) -> None:
        if size < SHORTEST_WINDOW:
            raise UserError(f"--windows is {size}, but must be at least {SHORTEST_WINDOW} residues.")
        self.predictor, self.size = predictor, size

    @property
    def about(self) -> str:
        return f"{self.predictor.about}, in windows of {self.size} residues"

    def predict(
        self, tokens: np.ndarray, profile: np.ndarray | None = None, msa: np.ndarray | None = None,
        letters: str | None = None, chains: tuple[int, ...] = (),
    ) -> Prediction:  # fmt: skip
        residues = len(tokens)
        if residues > self.size and getattr(self.predictor, "with_distogram", False):
            raise UserError("--distances cannot be joined from --windows; leave one of the two out.")
        if residues <= self.size:
            return self.predictor.predict(tokens, profile, msa, letters, chains)
        if chains:
            raise UserError("--windows cannot cut a complex; predict its chains by themselves, or leave it out.")
        sums, counts, notes = torch.zeros(2, residues, residues), torch.zeros(residues, residues), {}
        has_distances = True
        for start in [*range(0, residues - self.size, self.size // 2), residues - self.size]:
            here = slice(start, start + self.size)
            found = self.predictor.predict(
                tokens[here], None if profile is None else profile[here], None if msa is None else msa[:, here],
                None if letters is None else letters[here],
            )  # fmt: skip
            sums[0, here, here] += found.contacts
            counts[here, here] += 1
            has_distances = has_distances and found.distances is not None
            if found.distances is not None:
                sums[1, here, here] += found.distances
            notes |= dict.fromkeys(found.notes)
        unseen = float((counts == 0).float().mean())
        notes[
            f"predicted in windows of {self.size:,}: {unseen:.0%} of all pairs are in none and have probability 0"
        ] = None
        mean = sums / counts.clamp(min=1)
        distances = torch.where(counts > 0, mean[1], torch.nan) if has_distances else None
        return Prediction(mean[0], distances, tuple(notes))


@contextmanager
def _memory_is_enough(residues: int, needed: int) -> Iterator[None]:
    """Turns the error of an allocation that failed, although the estimate fitted, into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "you tried to allocate" not in str(error):
            raise
        raise UserError(
            f"{residues:,} residues need about {gib(needed)} of memory, which were free a moment ago; close what else "
            "runs here, or cut the chain into domains."
        ) from error
