"""Labels of texts: a language model or an encoder with a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from torch import Tensor, nn

from ..core.checkpoints.family import Pretrained
from ..core.checkpoints.saved import SavedModel
from ..core.checkpoints.source import open_source
from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.labelled.headed import Headed, open_headed, with_head
from ..core.labelled.model import LabelledConfig, LabelledModel, Tokens, for_vectors
from ..core.labelled.reader import TokenReader
from ..core.labelled.rows import Rows
from ..core.labelled.run import Modality
from ..core.labelled.task import LabelTask
from ..core.labelled.tokens import TokenTable
from ..core.training.start import Start
from .encoder import TextEncoder, TextEncoderConfig
from .model import LanguageModel
from .tokenizer import Tokenizer
from .words import WORD, Words, first_tokens

SMALL = TransformerConfig(dim=128, depth=2, heads=4, norm="rmsnorm", qk_norm="head", ffn="swiglu", bias=False)
"""An encoder for a table of a few thousand texts."""
BOXES = 2048
"""Numbers of the baseline on counts of words."""


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

    def tokens(self, batch: dict[str, Tensor]) -> Tokens:
        hidden = self.trunk.hidden(batch["tokens"], valid=batch["valid"])  # type: ignore[attr-defined]
        return Tokens(hidden, batch["valid"], batch["valid"])

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
        return self._around(self._tokens(cell, name))

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
        self.cut += len(tokens) > self.context
        start, end = self.tokenizer.around
        return np.array([*start, *tokens[: self.context].tolist(), *end], np.int64)

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

    def one(self, cell: str, name: str, beside: Path) -> Words:
        tokens = self._tokens(cell, name)
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

    def empty(self) -> Words:
        return Words(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def batch(self, samples: Sequence[Words]) -> dict[str, Tensor]:
        return super().batch([sample.tokens for sample in samples])


class TextTable(TokenTable):
    """Texts with labels from a table.

    Args:
        tokenizer: bpe (trained on the training rows), bytes, characters, or the path of a tokenizer.json or of a folder
            that holds one. Left out: that of --model.pretrained, else bpe.
        vocab_size: tokens of a BPE that is trained here.
        **others: see `FromTable` and `TokenOptions`.
    """

    WORDS = True

    def __init__(self, tokenizer: str | None = None, vocab_size: int = 2048, **others: Any) -> None:
        super().__init__(**others)
        if vocab_size < 257:
            raise UserError(f"data.vocab_size is {vocab_size}, but must be at least 257; raise it.")
        self.tokenizer_kind, self.vocab_size = tokenizer, vocab_size
        self.tokenizer: Tokenizer | None = None

    def adopt(self, tokenizer: Tokenizer | None, source: str) -> None:
        """Uses the tokenizer of a pretrained model. Raises UserError where there is none, or another was asked for."""
        if tokenizer is None and self.tokenizer_kind in (None, "bpe", "bytes", "characters"):
            raise UserError(
                f"'{source}' comes without a tokenizer; name the file or folder of its own: --data.tokenizer PATH."
            )
        if tokenizer is not None and self.tokenizer_kind is not None:
            raise UserError(
                f"data.tokenizer is {self.tokenizer_kind}, but a model only understands its own, which comes with "
                f"'{source}'; leave it out."
            )
        self.tokenizer = tokenizer or Tokenizer.load(str(self.tokenizer_kind))

    def continue_as(self, trained: dict[str, Any]) -> None:
        super().continue_as(trained)
        if "tokenizer" in trained:
            from tokenizers import Tokenizer as Backend

            self.tokenizer = Tokenizer(Backend.from_str(trained["tokenizer"]), **trained.get("special", {}))

    @property
    def trained(self) -> dict[str, Any]:
        assert self.tokenizer is not None
        known = self.tokenizer
        bos, eos = (
            None if number is None else known.backend.id_to_token(number) for number in (known.bos_id, known.eos_id)
        )
        special = {"eos": eos, "bos": bos, "ends": sorted(known.end_ids), "chat_template": known.chat_template}
        return super().trained | {"tokenizer": known.backend.to_str(), "special": special}

    def refuse_unused(self) -> None:
        super().refuse_unused()
        if "vocab_size" in self.given and (self.tokenizer is not None or self.tokenizer_kind not in (None, "bpe")):
            raise UserError("--data.vocab_size is given, but only a BPE that is trained here has a size; leave it out.")

    def reader(self, rows: Rows) -> TextReader:
        if self.tokenizer is None:
            self.tokenizer = self._made([rows.inputs[row] for row in rows.sides["train"]])
        return (WordReader if rows.target.per_token else TextReader)(self.tokenizer, self.context)

    def _made(self, texts: list[str]) -> Tokenizer:
        makers: dict[str | None, Callable[[], Tokenizer]] = {
            "bytes": Tokenizer.bytes,
            "characters": lambda: Tokenizer.characters(texts),
            "bpe": lambda: Tokenizer.train_bpe(texts, self.vocab_size),
        }
        kind = self.tokenizer_kind or "bpe"
        return makers[kind]() if kind in makers else Tokenizer.load(kind)


class TextLabels(LabelTask):
    """A text model for the labels of a table.

    Args:
        transformer: the core of a new model, an encoder.
        **options: see `LabelTask`.
    """

    MODEL = TextPredictor
    SMALL = SMALL
    COMMAND = "text"

    def __init__(self, transformer: TransformerConfig = SMALL, **options: Any) -> None:
        super().__init__(transformer=transformer, **options)

    def new_trunk(self, data: Any) -> TextEncoder:
        assert isinstance(data, TextTable) and data.tokenizer is not None
        longest = data.context + sum(map(len, data.tokenizer.around))
        transformer = replace(self.transformer_config, context=longest)
        return TextEncoder(TextEncoderConfig(data.tokenizer.vocab_size, transformer, segments=0))

    def default_pool(self, trunk: SavedModel, pretrained: bool) -> str:
        return "last" if isinstance(trunk, LanguageModel) else "mean"

    def reads(self, data: Any) -> dict[str, Any]:
        return {"context": data.context} | ({"words": True} if data.target_of("train").per_token else {})

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import load

        found = self.own_pretrained(source, open_source)
        return found or with_head(open_with_head(source)) or load(source)

    def read_companion(self, folder: Path) -> Tokenizer | None:
        return Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None

    def adopt(self, start: Start, data: Any) -> str:
        if not isinstance(data, TextTable):
            return ""
        data.adopt(start.companion, start.source)
        return "" if start.companion is None else f"its tokenizer of {start.companion.vocab_size:,} tokens"

    def save_companion(self, folder: Path) -> None:
        self.data.tokenizer.save(folder)


def _reader(model: LabelledModel, folder: Path) -> TextReader:
    reads = model.config.reads
    return (WordReader if reads.get("words") else TextReader)(Tokenizer.load(folder), int(reads["context"]))


def _expand(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each word is a text."""
    return [(word, f"text {number}" if len(word) > 60 else word) for number, word in enumerate(words, 1)]


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
    trunk.config = replace(trunk.config, masked_head=False)
    if trunk.segments is not None and trunk.pooler is None:  # which the file of a classifier leaves out again
        dim = trunk.config.transformer.dim
        trunk.pooler, trunk.config = nn.Linear(dim, dim), replace(trunk.config, pooler=True)
    return trunk


MODALITY = Modality("text", TextPredictor, _reader, _expand, _trunk, TextTable, _whole_trunk, _headed)


def predict(args: list[str]) -> int:
    """Runs `triune text predict` for a model with a head."""
    from ..core.labelled.predict import main

    return main(MODALITY, args)


def probe(args: list[str]) -> int:
    """Runs `triune text probe` for a table."""
    from ..core.labelled.probe import main

    return main(MODALITY, args)
