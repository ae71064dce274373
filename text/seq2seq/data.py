"""Lightning data module for pairs of texts: rules or files in, padded batches out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.files import few
from ...core.losses import IGNORED
from ...core.training.data import Batches, Draw, InOrder, ResumableData, Shuffled
from ..tokenizer import Tokenizer
from .rules import RULES, SIDES, Pair, Side, first

POOL = 32
"""Batches of an epoch that are sorted by length together, so that a batch holds texts of about one length."""
SHOWN = 100
"""Characters of a text in a message."""


@dataclass
class Encoded:
    """One side as tokens: `sources` and `targets`, without the end."""

    pairs: list[Pair]
    sources: list[np.ndarray]
    targets: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of source and target, int64 `[pairs]`."""
        return np.array([len(s) + len(t) for s, t in zip(self.sources, self.targets)], dtype=np.int64)


class PairBatches:
    """Batches of pairs: `batches[draw]`, as `PairData` describes them."""

    def __init__(self, side: Encoded, end: int) -> None:
        self.side, self.end = side, end

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        nothing, taken = np.zeros(0, dtype=np.int64), draw.indices.tolist()
        sources = [self.side.sources[i] if i >= 0 else nothing for i in taken]
        targets = [self.side.targets[i] if i >= 0 else nothing for i in taken]
        rows = len(taken)
        source = np.zeros((rows, max(1, *map(len, sources))), dtype=np.int64)
        valid = np.zeros(source.shape, dtype=bool)
        tokens = np.full((rows, 1 + max(map(len, targets))), self.end, dtype=np.int64)
        wanted = np.full(tokens.shape, IGNORED, dtype=np.int64)
        for row, (text, answer) in enumerate(zip(sources, targets, strict=True)):
            source[row, : len(text)] = text
            valid[row, : max(1, len(text))] = True  # attention needs a key; a row of no pair has no target
            tokens[row, 1 : len(answer) + 1] = answer
            if taken[row] >= 0:
                wanted[row, : len(answer)] = answer
                wanted[row, len(answer)] = self.end
        arrays = {"source": source, "source_valid": valid, "tokens": tokens, "targets": wanted}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class ByLength(Shuffled):
    """Epochs as of `Shuffled`, in which the pairs of a batch are of about one length.

    Args:
        lengths: of all pairs, int `[pairs]`.
        others: arguments of `Shuffled` behind the count.
    """

    def __init__(self, lengths: np.ndarray, *others: Any) -> None:
        super().__init__(len(lengths), *others)
        self._lengths = lengths

    def permutation(self, epoch: int) -> np.ndarray:
        order, wanted = super().permutation(epoch), self._batch_size * self._world
        order = order[np.arange(len(self) * wanted)]
        pools = [order[at : at + POOL * wanted] for at in range(0, len(order), POOL * wanted)]
        batches = [pool[np.argsort(self._lengths[pool], kind="stable")].reshape(-1, wanted) for pool in pools]
        joined = np.concatenate(batches)
        return joined[np.random.default_rng([self._seed, epoch, 1]).permutation(len(joined))].ravel()


class PairData(ResumableData):
    """Pairs of texts, a source and the target it becomes, for an encoder-decoder.

    A batch is a dict: `source` int64 `[batch, source tokens]` and `source_valid` bool, True for real tokens; `tokens`
    int64 `[batch, tokens]`, the end of text and then the target; `targets`, the next token of each, -100 where nothing
    is to be predicted.

    Args:
        pairs: `dates` (the third of March 1987 -> 1987-03-03) or `numbers` (twelve thousand and five -> 12005), which
            rules make; or files: .tsv or .csv with two columns, .jsonl with two fields.
        val_pairs: files to validate on. Left out: a part of `pairs` is held out.
        val_fraction: the part to hold out of files: about that share of the targets, with all of their sources, so that
            no target of validation is trained on.
        source: name of the column of sources. (A table of two columns without such a header is read as source, target.)
        target: that of targets.
        examples: different pairs to train on that a rule makes; 2,000 of its other targets validate, 2,000 others test.
        tokenizer: bytes, bpe (trained on the training pairs, each digit a token), or the path of a tokenizer.json or of
            a folder with one. Left out: bytes.
        vocab_size: tokens of a BPE that is trained here.
        longest: tokens of a source or target at most; longer pairs are left out, and counted.
        batch_size: pairs of a batch on one device.
        seed: of the pairs, of what is held out, and of the order of training.
        workers: processes that prepare batches. Left out: 1 beside a GPU on a machine of more than two cores, else 0.
    """

    RECIPE = "seq2seq"
    HELD_OUT = 2000
    """Pairs to validate and to test on that a rule makes."""
    tokenizer: Tokenizer
    vocab_size: int

    def __init__(
        self,
        pairs: list[str] | str,
        val_pairs: list[str] | str | None = None,
        val_fraction: float = 0.1,
        source: str = "source",
        target: str = "target",
        examples: int = 50_000,
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        longest: int = 256,
        batch_size: int = 64,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(
                f"data.val_fraction is {val_fraction}, but must lie between 0 and 1; give 0.1, for example."
            )
        least = {"examples": (examples, 1), "vocab_size": (vocab_size, 257), "longest": (longest, 1)}
        least |= {"batch_size": (batch_size, 1), "seed": (seed, 0), "workers": (workers or 0, 0)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise UserError(f"data.{name} is {value}, but must be at least {bound}; raise it.")
        if source == target:
            raise UserError(f"data.source and data.target are both '{source}'; name two columns.")
        self.files = [pairs] if isinstance(pairs, str) else list(pairs)
        self.val_files = [val_pairs] if isinstance(val_pairs, str) else val_pairs
        if not self.files or self.val_files == []:
            raise UserError("data.pairs or data.val_pairs is an empty list; name a rule or a file.")
        self.rule = self.files[0] if len(self.files) == 1 and self.files[0] in RULES else None
        self.val_fraction, self.source, self.target, self.examples = val_fraction, source, target, examples
        self.tokenizer_kind, self.asked_size, self.longest = tokenizer, vocab_size, longest
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self._sides: dict[Side, Encoded] = {}
        self._remark, self._beyond = "", 0
        self._held_out: list[str] = []

    # -- from rules or files to tokens --------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Nothing: what `setup` makes takes seconds."""

    def setup(self, stage: str | None = None) -> None:
        """Makes or reads the pairs and their tokens; a second call does nothing.

        Raises:
            UserError: for every mistake in the files or settings, with what to do about it.
        """
        if self._sides:
            return
        self._refuse_unused()
        pairs = self._made(self.rule) if self.rule else self._read()
        self.tokenizer = self._tokenizer(pairs["train"])
        self.vocab_size = self.tokenizer.vocab_size
        sides: dict[Side, Encoded] = {side: self._encode(several) for side, several in pairs.items()}
        for side, content in sides.items():
            if not len(content):
                raise UserError(
                    f"No pair to {'train' if side == 'train' else 'validate'} on has at most {self.longest:,} tokens "
                    "on both sides; raise --data.longest."
                )
        self._sides, self._held_out = sides, [f"{pair.source}\0{pair.target}" for pair in pairs["val"]]

    def held_out(self) -> list[str]:
        """See `DataModule`: sources and targets."""
        return self._held_out

    def _refuse_unused(self) -> None:
        unused: dict[str, str] = {}
        if self.rule:
            unused |= dict.fromkeys(("val_pairs", "val_fraction", "source", "target"), f"{self.rule} are made by rules")
        else:
            unused["examples"] = "files have as many pairs as they have"
            if self.val_files is not None:
                unused["val_fraction"] = "--data.val_pairs says what to validate on"
        if self.tokenizer_kind != "bpe":
            unused["vocab_size"] = "only a BPE that is trained here has a size to choose"
        for name, why in unused.items():
            if name in self.given:
                raise UserError(f"--data.{name} is given, but {why}; leave it out.")

    def _made(self, rule: str) -> dict[Side, list[Pair]]:
        counts = {"train": self.examples, "val": self.HELD_OUT, "test": self.HELD_OUT}
        return {side: first(rule, side, counts[side], self.seed) for side in SIDES}

    def _read(self) -> dict[Side, list[Pair]]:
        from .read import read_pairs

        several, self._remark = read_pairs(self.files, self.source, self.target)
        if self.val_files is not None:
            val = read_pairs(self.val_files, self.source, self.target)[0]
            return {"train": several, "val": val}
        targets = sorted({pair.target for pair in several})
        if len(targets) < 2:
            raise UserError(
                f"{few(self.files)} holds one target only, but must hold at least 2: one to train on and one to "
                "validate on; give more, or --data.val_pairs."
            )
        order = np.random.default_rng(self.seed).permutation(len(targets))
        held = {targets[i] for i in order[: min(max(1, round(self.val_fraction * len(targets))), len(targets) - 1)]}
        return {
            "train": [pair for pair in several if pair.target not in held],
            "val": [pair for pair in several if pair.target in held],
        }

    def _tokenizer(self, pairs: Sequence[Pair]) -> Tokenizer:
        kind = self.tokenizer_kind or "bytes"
        if kind == "bytes":
            return Tokenizer.bytes()
        if kind == "bpe":
            texts = [text for pair in pairs for text in pair]
            return Tokenizer.train_bpe(texts, self.asked_size, single_digits=True)
        if kind == "characters":
            raise UserError("data.tokenizer is characters, which has no end of text; give bytes or bpe.")
        tokenizer = Tokenizer.load(kind)
        if tokenizer.eos_id is None:
            raise UserError(f"The tokenizer '{kind}' names no token that ends a text; give bytes, bpe or another one.")
        return tokenizer

    def _encode(self, pairs: list[Pair]) -> Encoded:
        sources = self.tokenizer.encode_batch([pair.source for pair in pairs])
        targets = self.tokenizer.encode_batch([pair.target for pair in pairs])
        fits = [i for i in range(len(pairs)) if max(len(sources[i]), len(targets[i])) <= self.longest]
        self._beyond += len(pairs) - len(fits)
        return Encoded([pairs[i] for i in fits], [sources[i] for i in fits], [targets[i] for i in fits])

    @property
    def end(self) -> int:
        """The token that ends a target, and with which the decoder begins."""
        assert self.tokenizer.eos_id is not None
        return self.tokenizer.eos_id

    @property
    def context(self) -> int:
        """Tokens that the decoder sees at most: the end and a target."""
        return self.longest + 1

    def side(self, name: Side) -> Encoded:
        """One side, after `setup()`; what files hold is tested on what validates."""
        return self._sides[name if name in self._sides else "val"]

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        train, val = self.side("train"), self.side("val")
        what = f"{self.rule}, {RULES[self.rule].about}" if self.rule else few(self.files)
        shared = len({p.target for p in train.pairs} & {p.target for p in val.pairs})
        overlap = f", {shared:,} targets on both sides" if shared else ", no target on both sides"
        parts = [f"{what}: {len(train):,} pairs to train and {len(val):,} to validate on{overlap}"]
        parts += [self._remark] if self._remark else []
        if self._beyond:
            parts.append(f"{self._beyond:,} left out, longer than {self.longest:,} tokens")
        return "; ".join(parts)

    # -- batches ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Batches:
        """Returns the batches of training. Raises UserError when there is no whole one."""
        side, (rank, world) = self.side("train"), self.ranks()
        if len(side) < self.batch_size * world:
            raise UserError(
                f"There are {len(side):,} pairs to train on, fewer than one batch of {self.batch_size * world:,}; "
                "lower --data.batch_size."
            )
        order = ByLength(side.lengths, self.batch_size, rank, world, self.seed, self.position)
        return Batches(PairBatches(side, self.end), order, self.loader_workers(most=1), self.pin)

    def val_dataloader(self) -> Batches:
        """Returns the batches that score the validation pairs once."""
        return self._scoring("val")

    def test_dataloader(self) -> Batches:
        """Returns those of the test pairs of a rule, else the validation pairs."""
        return self._scoring("test")

    def predict_dataloader(self) -> Batches:
        """Returns the validation batches."""
        return self._scoring("val")

    def _scoring(self, name: Side) -> Batches:
        side = self.side(name)
        return Batches(PairBatches(side, self.end), InOrder(len(side), self.batch_size, *self.ranks()), 0, self.pin)

    def names_of(self, taken: np.ndarray) -> list[str]:
        """The sources of pairs."""
        return [self.side("train").pairs[i].source[:SHOWN] for i in taken.tolist()]

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        import zlib

        content = "\n".join(f"{pair.source}\t{pair.target}" for pair in self.side("train").pairs)
        return {
            "pairs": zlib.crc32(content.encode("utf-8", "surrogatepass")),
            "batch_size": self.batch_size,
            "devices": self.ranks()[1],
            "seed": self.seed,
        }
