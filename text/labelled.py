"""Texts for models with a head: what reads them, and the models; nothing here trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from torch import Tensor, nn

from ..core.checkpoints.family import Pretrained
from ..core.checkpoints.saved import SavedModel
from ..core.checkpoints.source import open_source
from ..core.errors import UserError
from ..core.labelled.headed import Headed, open_headed
from ..core.labelled.model import LabelledConfig, LabelledModel, Tokens, for_vectors
from ..core.labelled.reader import TokenReader
from ..core.labelled.run import Modality
from .encoder import TextEncoder
from .model import LanguageModel
from .tokenizer import Tokenizer
from .words import WORD, Words, first_tokens

BOXES = 2048
"""Numbers of the baseline on counts of words."""
TOGETHER = 1 << 20
"""Characters of texts that are read at once: their tokens lie in memory before they are cut to the model's context."""


class TextPredictor(LabelledModel, SavedModel, config=LabelledConfig):
    """Token ids of texts -> outputs of a head. The trunk is a `TextEncoder`, or a `LanguageModel`, whose last token
    has read the whole text.
    """

    TRUNKS = (TextEncoder, LanguageModel)

    @staticmethod
    def bare(trunk: Any) -> Any:
        if isinstance(trunk, TextEncoder):
            trunk.head = None
        else:
            trunk.head = nn.Identity()
        return trunk

    @staticmethod
    def width(trunk: Any, pool: str | None) -> int:
        if pool == "own" and not (isinstance(trunk, TextEncoder) and trunk.pooler is not None):
            raise UserError(
                "model.pool is own, but this checkpoint has no pooler; take mean, class, last or attention."
            )
        config = trunk.config
        return getattr(config, "embedding_dim", None) or config.transformer.dim

    @staticmethod
    def reads_of(trunk: Any, pool: str | None) -> dict[str, Any]:
        """Of Longformer the token that a class pool reads sees all others, and they see it (Beltagy et al. 2020)."""
        return {"first_sees_all": True} if pool == "class" and trunk.config.transformer.global_projections else {}

    def tokens(self, batch: dict[str, Tensor]) -> Tokens:
        valid, more = batch["valid"], {}
        if self.config.reads.get("first_sees_all"):
            more["global_tokens"] = valid & (valid.cumsum(1) == 1)
        hidden = self.trunk.hidden(batch["tokens"], valid=valid, **more)  # type: ignore[attr-defined]
        return Tokens(hidden, valid, valid)

    def own_pool(self, tokens: Tokens) -> Tensor:
        return self.trunk.pool(tokens.vectors)  # type: ignore[attr-defined]


class TextReader(TokenReader):
    """Texts, with the tokens around them that their tokenizer asks for."""

    what = "text"
    parts = "words"
    between = " "

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        super().__init__(context)
        self.tokenizer = tokenizer

    def one(self, cell: str, name: str, beside: Path) -> Any:
        return self.sample(self._tokens(cell, name), cell, name)

    def read(self, cells: Sequence[str], names: Sequence[str], beside: Path) -> list[Any | UserError]:
        found: list[Any | UserError] = []
        while (start := len(found)) < len(cells):
            end, letters = start + 1, len(cells[start])
            while end < len(cells) and (letters := letters + len(cells[end])) <= TOGETHER:
                end += 1
            found += self._together(cells[start:end], names, start, beside)
        return found

    def _together(self, cells: Sequence[str], names: Sequence[str], start: int, beside: Path) -> list[Any | UserError]:
        """Reads some texts, whose names begin at `start`, at once."""
        try:
            encoded = self.tokenizer.encode_batch(cells)
        except UserError:  # one by one, which says whose text it is
            encoded = []
        if not encoded or not all(map(len, encoded)):
            return super().read(cells, [names[start + row] for row in range(len(cells))], beside)
        found: list[Any | UserError] = []
        for row, (tokens, cell) in enumerate(zip(encoded, cells, strict=True)):
            try:
                found.append(self.sample(tokens, cell))
            except UserError:
                found += super().read([cell], [names[start + row]], beside)
        return found

    def sample(self, tokens: np.ndarray, cell: str, name: str = "the text") -> Any:
        """What the model gets of the tokens of a text."""
        return self._around(tokens)

    @property
    def widest(self) -> int:
        return self.context + sum(map(len, self.tokenizer.around))

    def for_tags(self) -> WordReader:
        return WordReader(self.tokenizer, self.context)

    def plain(self, cell: str, sample: Any) -> np.ndarray:
        """How often each word occurs, log(1 + count) of unit length; words share a number of boxes by their hash."""
        counts = np.zeros(BOXES, np.float32)
        for word in WORD.findall(cell.lower()):
            counts[crc32(word.encode("utf-8", "surrogatepass")) % BOXES] += 1
        counts = np.log1p(counts)
        return counts / max(float(np.linalg.norm(counts)), 1e-9)

    def settings(self) -> str:
        return f"{super().settings()} {self.tokenizer.fingerprint}"

    def _around(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens that are read, with the special ones."""
        if len(tokens) > self.context:
            self.cut += 1
            tokens = tokens[: self.context].copy()  # so that the others are given back
        start, end = self.tokenizer.around
        return np.array([*start, *tokens.tolist(), *end], np.int64) if start or end else tokens

    def _tokens(self, cell: str, name: str) -> np.ndarray:
        try:
            found = self.tokenizer.encode(cell)
        except UserError as error:
            raise UserError(f"The text in {name} cannot be read: {error}") from None
        if not len(found):
            raise UserError(f"The text in {name} has no token, but must have one at least.")
        return found


class WordReader(TextReader):
    """Texts whose words have a label each; words are what spaces part. The label of a word is that of its first token,
    and its other tokens have none.
    """

    def sample(self, tokens: np.ndarray, cell: str, name: str = "the text") -> Words:
        first = first_tokens(self.tokenizer, cell, tokens, name)
        beyond = np.flatnonzero(first >= self.context)
        first = first[: beyond[0]] if len(beyond) else first
        return Words(self._around(tokens), np.where(first >= 0, first + len(self.tokenizer.around[0]), -1))

    def size(self, sample: Words) -> int:
        return len(sample.tokens)

    def whole(self, cell: str, sample: Words) -> int:
        return len(cell.split())

    def places(self, sample: Words) -> np.ndarray:
        return sample.first

    def tokens_of(self, sample: Words) -> None:
        return None

    def empty(self) -> Words:
        return Words(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def batch(self, samples: Sequence[Words]) -> dict[str, Tensor]:
        return super().batch([sample.tokens for sample in samples])


def _reader(model: LabelledModel, folder: Path) -> TextReader:
    reads = model.config.reads
    return (WordReader if reads.get("words") else TextReader)(Tokenizer.load(folder), int(reads["context"]))


def _expand(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each word is a text, or the name of a text file."""
    from .data.reading import text_of

    found = []
    for number, word in enumerate(words, 1):
        text, read = text_of(word, "pass it as --table FILE --input COLUMN")
        if read:
            print(f"'{word}' is a file, and its content is the text.", file=sys.stderr)
        found.append((text, f"text {number}" if len(word) > 60 else word))
    return found


def _trunk(name: str, pool: str | None) -> tuple[LabelledModel, TextReader]:
    from .checkpoints.pretrained import load

    pretrained = load(name)
    if pretrained.companion is None:
        raise UserError(f"'{name}' comes without a tokenizer, which its texts need; give a folder that has one.")
    trunk: Any = pretrained.model
    last = isinstance(trunk, LanguageModel)
    reader = TextReader(
        pretrained.companion, trunk.config.transformer.context - sum(map(len, pretrained.companion.around))
    )
    return for_vectors(TextPredictor, trunk, pool or ("last" if last else "mean")), reader


def open_with_head(name: str) -> Headed | None:
    """A classifier of Hugging Face. Raises UserError for one whose head is not known, or that has no tokenizer."""
    from .checkpoints.pretrained import load

    def reads(below: Pretrained, per_token: bool) -> dict[str, Any]:
        if below.companion is None:
            raise UserError(f"'{name}' comes without a tokenizer, which its texts need; give a folder that has one.")
        trunk: Any = below.model
        longest = trunk.config.transformer.context - sum(map(len, below.companion.around))
        return {"context": longest} | ({"words": True} if per_token else {})

    return open_headed(open_source(name), load, TextPredictor, reads)


def _headed(name: str) -> tuple[LabelledModel, TextReader] | None:
    found = open_with_head(name)
    if found is None:
        return None
    reads = found.model.config.reads
    reader = (WordReader if reads.get("words") else TextReader)(found.below.companion, int(reads["context"]))
    return found.model, reader


def _whole_trunk(model: LabelledModel, library: str) -> TextEncoder:
    """Raises UserError for a causal model: transformers' classes read its last token without a bias."""
    trunk: Any = model.trunk
    if not isinstance(trunk, TextEncoder):
        raise UserError(
            "Hugging Face's classifiers of causal language models have no bias, and this model has one; keep the run "
            "in triune's format."
        )
    # Without a masked head its settings are those of a new one, as the reader of such a file takes them.
    trunk.config = replace(trunk.config, masked_head=False, dense_bias=True)
    if trunk.segments is not None and trunk.pooler is None:  # which the file of a classifier leaves out, or never uses
        dim = trunk.config.transformer.dim
        trunk.pooler, trunk.config = nn.Linear(dim, dim), replace(trunk.config, pooler=True)
        nn.init.zeros_(trunk.pooler.weight)
        nn.init.zeros_(trunk.pooler.bias)
    return trunk


MODALITY = Modality(
    "text",
    TextPredictor,
    _reader,
    _expand,
    _trunk,
    "triune.text.labels:TextTable",
    _whole_trunk,
    _headed,
    words=True,
)


def predict(args: list[str]) -> int:
    """Runs `triune text predict` for a model with a head."""
    from ..core.labelled.predict import main

    return main(MODALITY, args)


def probe(args: list[str]) -> int:
    """Runs `triune text probe` for a table."""
    from ..core.labelled.probe import main

    return main(MODALITY, args)
