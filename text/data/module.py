"""Lightning data module for text: files in, batches of fixed windows of tokens out."""

from __future__ import annotations

import os
from typing import Any

from ...core.errors import UserError
from ...core.training import data
from ...core.training.data import Batches, ResumableData
from ...core.work import cache_folder
from ..tokenizer import Tokenizer
from .corpus import find
from .packing import ChatSides
from .split import Side, Sides
from .tokens import TokenArray, make_tokenizer, tokenise
from .windows import InOrder, Shuffled, Windows, training_windows


class TextData(ResumableData):
    """Plain text, tokenised once into a cache and packed into windows of equal length.

    A batch is a dict of int64 tensors [batch, context]: `tokens`; `targets`, the next token of each, -100 where nothing
    is to be predicted; and, if there are several documents, `documents`, the number of the document of each token.

    Training visits every window once per epoch, in an order and from a phase that (seed, epoch) determine. Validation
    scores the whole held-out text: every token but the first of each document is a target exactly once.

    Args:
        files: text files, folders (searched for text files at any depth), globs, or files of rows (.jsonl, .jsonl.gz,
            .parquet). Left out: the source code of the Python standard library, about 11 MB that is on every machine.
        chats: instead of `files`, conversations in JSON rows (.jsonl; `messages`, or `prompt` and `completion`, …),
            written out by the chat template of the tokenizer and packed whole into rows; only the answers are learned
            and scored.
        val_files: the same, for validation. Left out: a part of `files` is held out.
        val_fraction: the part to hold out without `val_files`: of a single document its end, of several about that
            share of the bytes in whole documents.
        tokenizer: bpe (trained on the training text), bytes, characters, or the path of a tokenizer.json, of a folder
            that holds one or of a folder with GPT-2's vocab.json and merges.txt. Left out: that of --model.pretrained,
            else bpe.
        vocab_size: tokens of a BPE that is trained here.
        context: tokens of a window.
        batch_size: windows of a batch on one device.
        text_field: the field that holds the text in files of rows.
        seed: chooses which documents are held out, and the order of training.
        workers: processes that prepare batches. Left out: 1 with a GPU on a machine of more than two cores, else 0.
        cache: folder for tokenised text. Left out: $TRIUNE_CACHE, or triune in the user's cache folder.

    Attributes (after `setup`):
        tokenizer: the `Tokenizer`.
        vocab_size: its number of tokens.
        val_targets: tokens that validation scores.
        val_bytes: UTF-8 bytes of their text; total nats / ln 2 / val_bytes = bits per byte. (The
            nats hold those of the end-of-text tokens, which have no bytes but are part of the message.)
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        files: list[str] | str | None = None,
        val_files: list[str] | str | None = None,
        val_fraction: float = 0.1,
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        context: int = 256,
        batch_size: int = 16,
        text_field: str = "text",
        seed: int = 0,
        workers: int | None = None,
        cache: str | None = None,
        chats: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        if chats is not None and (files is not None or val_files is not None):
            raise UserError("data.chats and data.files are both given; train on conversations or on text.")
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1 (such as 0.1), not {val_fraction}")
        if tokenizer in ("bpe", None) and vocab_size < 257:
            raise UserError(
                f"data.vocab_size of a BPE must be at least 257 (256 bytes and end of text), not {vocab_size}"
            )
        for name, value, least in (
            ("context", context, 1),
            ("batch_size", batch_size, 1),
            ("workers", workers or 0, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, not {value}")
        if seed < 0:
            raise UserError(f"data.seed must not be negative, but is {seed}")
        self.files, self.val_files, self.val_fraction = files, val_files, val_fraction
        self.tokenizer_kind, self.vocab_size = tokenizer, vocab_size
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.text_field, self.workers, self.cache = text_field, workers, cache
        self.chats = [chats] if isinstance(chats, str) else chats
        self.val_bytes = self.val_targets = 0
        self._chats: ChatSides | None = None
        self._sides: Sides | None = None
        self._arrays: dict[Side, TokenArray] = {}
        self._adopted: Tokenizer | None = None

    def adopt(self, tokenizer: Tokenizer | None, source: str) -> None:
        """Use the tokenizer of a pretrained model; call it before `setup`.

        Raises:
            UserError: another one was asked for, or `source` has none and none was named.
        """
        kind = self.tokenizer_kind
        if tokenizer is None:
            if kind is None or kind in ("bpe", "bytes", "characters"):
                raise UserError(
                    f"'{source}' comes without a tokenizer; name the file or folder of its own: --data.tokenizer PATH."
                )
        elif kind is not None:
            raise UserError(
                f"data.tokenizer is {kind}, but a model only understands its own, which comes with '{source}'; leave "
                "it out (--data.tokenizer null where a file of settings has it)."
            )
        self._adopted = tokenizer

    # -- from files to token arrays -----------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fill the cache; Lightning calls this in one process of each machine before `setup` in all of them."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the files, make the tokenizer and open (or build) the token arrays; a second call does nothing.

        Raises:
            UserError: for every mistake in the files or settings, with what to do about it.
        """
        if self._arrays or self._chats:
            return
        if self.chats is not None:
            self._setup_chats(self.chats)
            return
        cache = cache_folder(self.cache)
        corpus = find(self.files, self.text_field)
        val = None if self.val_files is None else find(self.val_files, self.text_field)
        sides = Sides(corpus, val, self.val_fraction, self.seed)
        tokenizer = self._adopted
        if tokenizer is None:
            tokenizer = make_tokenizer(self.tokenizer_kind or "bpe", self.vocab_size, sides, cache)
        arrays = tokenise(sides, tokenizer, cache)
        self._check_lengths(arrays)
        self._sides, self._arrays = sides, arrays
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.val_bytes = arrays["val"].bytes - arrays["val"].first_bytes
        self.val_targets = arrays["val"].tokens - arrays["val"].documents

    def _setup_chats(self, files: list[str]) -> None:
        tokenizer, kind = self._adopted, self.tokenizer_kind
        if tokenizer is None:
            if kind in (None, "bpe", "characters"):
                raise UserError(
                    "data.chats needs a tokenizer that exists: fine-tune a model (--model.pretrained), or give "
                    "--data.tokenizer PATH or bytes."
                )
            tokenizer = Tokenizer.bytes() if kind == "bytes" else Tokenizer.load(kind)
        self._chats = ChatSides.read(files, self.val_fraction, self.seed, tokenizer, self.context)
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.val_bytes, self.val_targets = self._chats.val.chats.bytes, self._chats.val.chats.targets

    def _check_lengths(self, arrays: dict[Side, TokenArray]) -> None:
        train, val = arrays["train"].tokens, arrays["val"].tokens
        if train <= self.context:
            raise UserError(
                f"the training text has {train:,} tokens, fewer than one window of {self.context:,} and the "
                "token behind it: lower --data.context or give more text"
            )
        if val < 2:
            raise UserError(
                f"the validation text has {val} tokens, which leaves nothing to predict: "
                "raise --data.val_fraction or give more text"
            )

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        if self._chats:
            return self._chats.describe()
        f = self.figures()
        documents = f["documents_train"] + f["documents_val"] if self._sides and f["documents_train"] > 1 else 1
        parts = [
            f"{documents:,} document{'s' if documents > 1 else ''}",
            f"{f['tokens_train']:,} tokens to train and {f['tokens_val']:,} to validate on",
            f"vocabulary {f['vocabulary']:,}",
        ]
        if f["duplicates"]:
            parts.append(f"{f['duplicates']:,} duplicates kept on one side")
        if f["skipped"]:
            parts.append("skipped " + ", ".join(f"{count:,} {why}" for why, count in f["skipped"].items()))
        return ", ".join(parts)

    def figures(self) -> dict[str, Any]:
        """Documents, bytes and tokens of both sides, vocabulary, duplicates and skipped files, after `setup()`."""
        if self._chats:
            return self._chats.figures() | {"vocabulary": self.vocab_size}
        assert self._sides is not None, "figures() needs setup()"
        counts = {
            f"{what}_{side}": getattr(array, what)
            for what in ("documents", "bytes", "tokens")
            for side, array in self._arrays.items()
        }
        return {
            **counts,
            "vocabulary": self.vocab_size,
            "duplicates": self._sides.split.duplicates,
            "skipped": self._sides.skipped,
            "cache": str(self._arrays["train"].folder),
        }

    # -- batches ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Batches:
        """Return the batches of training; each iteration is one epoch, or what is left of it after a resume.

        Raises:
            UserError: the text does not fill one batch.
        """
        rank, world = self.ranks()
        if self._chats:
            rows = self._chats.train
            if len(rows) < self.batch_size * world:
                raise UserError(
                    f"the conversations fill {len(rows):,} rows of {self.context:,} tokens, fewer than one batch of "
                    f"{self.batch_size * world:,}: lower --data.batch_size or --data.context"
                )
            chats = data.Shuffled(len(rows), self.batch_size, rank, world, self.seed, self.position)
            return Batches(rows, chats, self._workers, self.pin)
        array = self._arrays["train"]
        windows = training_windows(array.tokens, self.context)
        if windows < self.batch_size * world:
            devices = f" on {world} devices" if world > 1 else ""
            raise UserError(
                f"the training text ({array.tokens:,} tokens) fills {windows:,} windows of {self.context:,}, fewer "
                f"than one batch of {self.batch_size:,}{devices}: lower --data.batch_size or --data.context"
            )
        order = Shuffled(array.tokens, self.context, self.batch_size, rank, world, self.seed, self.position)
        return Batches(self._windows(array), order, self._workers, self.pin)

    def val_dataloader(self) -> Batches:
        """Return the batches that score the whole validation text once."""
        if self._chats:
            chats = data.InOrder(len(self._chats.val), self.batch_size, *self.ranks())
            return Batches(self._chats.val, chats, 0, self.pin)
        array = self._arrays["val"]
        order = InOrder(array.tokens, self.context, self.batch_size, *self.ranks())
        return Batches(self._windows(array), order, 0, self.pin)

    def test_dataloader(self) -> Batches:
        """Return the validation batches: text has no third side unless `val_files` names it."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Batches:
        """Return the validation batches."""
        return self.val_dataloader()

    def _windows(self, array: TokenArray) -> Windows:
        # The same keys on both sides, so that a compiled model sees one form of batch.
        packed = any(side.documents > 1 for side in self._arrays.values())
        return Windows(array, self.context, packed)

    @property
    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return 1 if self.pin and (os.cpu_count() or 1) > 2 else 0

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "text": len(self._chats.train) if self._chats else self._arrays["train"].folder.name,
            "context": self.context,
            "batch_size": self.batch_size,
            "devices": self.ranks()[1],
            "seed": self.seed,
        }
