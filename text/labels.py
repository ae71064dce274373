"""Labels of texts: a language model or an encoder with a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.checkpoints.family import Pretrained
from ..core.checkpoints.saved import SavedModel
from ..core.checkpoints.source import open_source
from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.labelled.headed import with_head
from ..core.labelled.rows import Rows
from ..core.labelled.task import LabelTask
from ..core.labelled.tokens import TokenTable
from ..core.training.start import Start
from .encoder import TextEncoder, TextEncoderConfig
from .labelled import MODALITY, TextPredictor, TextReader, WordReader, open_with_head
from .model import LanguageModel
from .tokenizer import Tokenizer

SMALL = TransformerConfig(dim=128, depth=2, heads=4, norm="rmsnorm", qk_norm="head", ffn="swiglu", bias=False)
"""An encoder for a table of a few thousand texts."""

ENOUGH = 1 << 11
"""Characters of texts for each token of a BPE that is learned from them: more take longer, and give the same tokens."""
VERSION = 2
"""Of `enough_of`; see the core's versions.py."""


def enough_of(texts: list[str], vocab_size: int) -> list[str]:
    """All texts, or some of them, evenly spread, where there are more than `ENOUGH` characters for each token."""
    return texts[:: max(1, -(-sum(map(len, texts)) // (ENOUGH * vocab_size)))]


class TextTable(TokenTable):
    """Texts with labels from a table.

    Args:
        tokenizer: bpe (trained on the training rows), bytes, characters, or the path of a tokenizer.json or of a folder
            that holds one. Left out: that of --model.pretrained, else bpe.
        vocab_size: tokens of a BPE that is trained here.
        **others: see `FromTable` and `TokenOptions`.
    """

    WORDS = MODALITY.words

    def __init__(self, tokenizer: str | None = None, vocab_size: int = 2048, **others: Any) -> None:
        super().__init__(**others)
        if vocab_size < 257:
            raise UserError(f"data.vocab_size is {vocab_size}, but must be at least 257; raise it.")
        self.tokenizer_kind, self.vocab_size = tokenizer, vocab_size
        self.tokenizer: Tokenizer | None = None
        self._sampled = False

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
            self.tokenizer = self._made([rows.inputs[row] for row in rows.sides["train"]], rows.notes)
        return (WordReader if rows.target.per_token else TextReader)(self.tokenizer, self.context)

    def _made(self, texts: list[str], notes: list[str]) -> Tokenizer:
        makers: dict[str | None, Callable[[], Tokenizer]] = {
            "bytes": Tokenizer.bytes,
            "characters": lambda: Tokenizer.characters(texts),
            "bpe": lambda: self._bpe(texts, notes),
        }
        kind = self.tokenizer_kind or "bpe"
        return makers[kind]() if kind in makers else Tokenizer.load(kind)

    def _bpe(self, texts: list[str], notes: list[str]) -> Tokenizer:
        some = enough_of(texts, self.vocab_size)
        self._sampled = len(some) < len(texts)
        if self._sampled:
            notes.append(f"its tokens are learned from {len(some):,} training texts, spread evenly over the table")
        return Tokenizer.train_bpe(some, self.vocab_size)

    def draws(self) -> Mapping[str, int]:
        """See `ResumableData`; runs of before there was a sample have learned their tokens from all texts."""
        return {**super().draws(), **({"the texts that its tokens are learned from": VERSION} if self._sampled else {})}


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
        transformer = replace(self.transformer_config, context=data.context + self.around(data))
        return TextEncoder(TextEncoderConfig(data.tokenizer.vocab_size, transformer, segments=0))

    def around(self, data: Any) -> int:
        return sum(map(len, data.tokenizer.around))

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
        said = "" if start.companion is None else f"its tokenizer of {start.companion.vocab_size:,} tokens"
        return "; ".join(filter(None, (said, self.limit(start, data))))

    def save_companion(self, folder: Path) -> None:
        self.data.tokenizer.save(folder)
