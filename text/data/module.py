"""Lightning data module for text: files in, batches of fixed windows of tokens out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.stores import Cache, is_url, local_path
from ...core.training.data import Batches, ResumableData
from ...core.work import cache_folder
from ..tokenizer import Tokenizer
from .conversations import OnError, PreparedChats
from .corpus import Corpus, find
from .documents import PreparedDocuments
from .prepared import Place, Prepared
from .sets import find_set
from .sharded import PreparedShards


class TextData(ResumableData):
    """Plain text, tokenised once into a cache and packed into windows of equal length.

    A batch is a dict of int64 tensors `[batch, context]`: `tokens`; `targets`, the next token of each, -100 where
    nothing is to be predicted; and, if there are several documents, `documents`, the number of the document of each
    token.

    Training visits every window once per epoch, in an order and from a phase that (seed, epoch) determine. Validation
    scores the whole held-out text: every token but the first of each document is a target exactly once.

    Args:
        files: text files, folders (searched for text files at any depth), globs, URLs of stores (`s3://bucket/folder`),
            or files of rows (.jsonl, .jsonl.gz, .parquet, .arrow). Left out: the source code of the Python standard
            library, about 11 MB that is on every machine.
        chats: instead of `files`, conversations in JSON rows (.jsonl or .json; `messages`, or `prompt` and
            `completion`, …), written out by the chat template of the tokenizer and packed whole into rows; only the
            answers are learned and scored. `triune text check` shows what is learned.
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
        workers: processes that prepare batches. Left out: 1 beside a GPU on a machine of more than two cores, else 0.
        columns: for `chats` with other names than the usual: prompt, completion, context, system, tools, messages,
            role or content, each with the name that the rows use, such as `--data.columns.prompt question_text`.
        on_error: stop at rows that cannot be used, or skip them; they are counted and named.
        shards: instead of `files`, folders or URLs of folders that `triune text shard` wrote, for more text than memory
            or patience.
        weights: of several folders of shards, their shares of the windows that training sees, such as 0.7 and 0.3.
            Left out: all their tokens alike.
        cache: folder for tokenised text. Left out: $TRIUNE_CACHE, or triune in the user's cache folder.
        dataset: instead of `files`, a data set with splits: a name on the Hugging Face hub (owner/name, or
            owner/name:configuration), a folder that `save_to_disk` wrote, Parquet files or a folder or URL of them.
            Its validation split is for validation; a test split is left out.
        cache_gb: 10⁹ bytes that the cache keeps of files in stores (`s3://…` and other URLs). Left out: 20.

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
        columns: dict[str, str] | None = None,
        on_error: OnError = "stop",
        shards: list[str] | str | None = None,
        weights: list[float] | None = None,
        dataset: str | None = None,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__()
        self.shards, self.weights = [shards] if isinstance(shards, str) else shards, weights
        self.dataset, self.cache_gb = dataset, cache_gb
        self._check_shards(files, val_files, chats, dataset)
        if dataset is not None and (files is not None or val_files is not None or chats is not None):
            raise UserError("data.dataset is given together with data.files, val_files or chats; give one of them.")
        if chats is not None and (files is not None or val_files is not None):
            raise UserError(
                "data.chats is given together with data.files or data.val_files; train on conversations or on text."
            )
        if columns and chats is None:
            raise UserError("data.columns is given without data.chats; it maps the columns of conversations.")
        if on_error not in ("stop", "skip"):
            raise UserError(f"data.on_error is {on_error}, but must be stop or skip; choose one.")
        self._check_options(val_fraction, vocab_size, context, batch_size, workers, seed)
        self.files, self.val_files, self.val_fraction = files, val_files, val_fraction
        self.tokenizer_kind, self.vocab_size = tokenizer, vocab_size
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.text_field, self.workers, self.cache = text_field, workers, cache
        self.chats = [chats] if isinstance(chats, str) else chats
        self.columns = columns
        self.on_error: OnError = on_error
        self.val_bytes = self.val_targets = 0
        self._prepared: Prepared | None = None
        self._adopted: Tokenizer | None = None

    def adopt(self, tokenizer: Tokenizer | None, source: str) -> None:
        """Uses the tokenizer of a pretrained model; call it before `setup`.

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

    def _check_shards(self, *others: Any) -> None:
        if self.weights is not None and len(self.weights) != len(self.shards or []):
            raise UserError(
                f"data.weights has {len(self.weights)} numbers for {len(self.shards or [])} folders of --data.shards,"
                " but must have one for each."
            )
        if self.shards is not None and any(other is not None for other in others):
            raise UserError(
                "data.shards is given together with data.files, val_files, chats or dataset; give one of them."
            )
        if self.shards == []:
            raise UserError("data.shards is an empty list; name a folder that `triune text shard` wrote.")

    @staticmethod
    def _check_options(
        val_fraction: float, vocab_size: int, context: int, batch_size: int, workers: int | None, seed: int
    ) -> None:
        if not 0 < val_fraction < 1:
            raise UserError(
                f"data.val_fraction is {val_fraction}, but must lie between 0 and 1; give 0.1, for example."
            )
        least = {
            "context": (context, 1),
            "batch_size": (batch_size, 1),
            "workers": (workers or 0, 0),
            "seed": (seed, 0),
            "vocab_size": (vocab_size, 257),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                why = " (256 bytes and the end of text)" if name == "vocab_size" else ""
                raise UserError(f"data.{name} is {value}, but must be at least {bound}{why}; raise it.")

    def refuse_unused(self, *corpora: Corpus | None) -> None:
        """Refuses options that were given and change nothing in this mode; those of a recipe may.

        Args:
            corpora: what text is read from; none for conversations.

        Raises:
            UserError: there is such an option; it is named with the reason.
        """
        unused: dict[str, str] = {}
        if self.chats is not None:
            unused = {
                "text_field": "the columns of conversations are named by --data.columns",
                "vocab_size": "conversations need a tokenizer that exists",
                "cache_gb": "conversations are read from local files",
            }
        else:
            has_rows = any(corpus.may_have_rows for corpus in corpora if corpus is not None)
            if not has_rows:
                unused = dict.fromkeys(
                    ("text_field", "on_error"), "none of the files has rows (.jsonl, .parquet, .json)"
                )
            if not any(corpus.remote for corpus in corpora if corpus is not None):
                unused["cache_gb"] = "no file lies in a store (a URL such as s3://bucket/file)"
            if self.val_files is not None:
                unused["val_fraction"] = "--data.val_files says what to validate on"
            elif len([corpus for corpus in corpora if corpus is not None]) > 1:
                unused["val_fraction"] = f"'{self.dataset}' has a validation split"
            if self._adopted is not None or self.tokenizer_kind not in (None, "bpe"):
                unused["vocab_size"] = "only a BPE that is trained here has a size to choose"
        for name, why in unused.items():
            if name in self.given and getattr(self, name) is not None:
                raise UserError(f"--data.{name} is given, but {why}; leave it out.")

    # -- from files to tokens -----------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fills the cache; Lightning calls this in one process of each machine before `setup` in all of them."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Reads the files, makes the tokenizer and opens (or build) the tokens; a second call does nothing.

        Raises:
            UserError: for every mistake in the files or settings, with what to do about it.
        """
        if self._prepared:
            return
        prepared = self._prepared = self._read()
        self.tokenizer, self.vocab_size = prepared.tokenizer, prepared.tokenizer.vocab_size
        self.val_bytes, self.val_targets = prepared.val_bytes, prepared.val_targets

    def _read(self) -> Prepared:
        if self.shards is not None:
            return self._read_shards(self.shards)
        return self._read_documents() if self.chats is None else self._read_chats(self.chats)

    def _read_shards(self, folders: list[str]) -> PreparedShards:
        remote = any(is_url(folder) and local_path(folder) is None for folder in folders)
        of_stores = () if remote else ("cache", "cache_gb")
        for name in ("text_field", "vocab_size", "val_fraction", "on_error", "columns", *of_stores):
            if name in self.given and getattr(self, name) is not None:
                raise UserError(f"--data.{name} is given, but shards are finished tokens; leave it out.")
        tokenizer = self._adopted
        if tokenizer is None and self.tokenizer_kind is not None and "tokenizer" in self.given:
            kind = self.tokenizer_kind
            tokenizer = Tokenizer.bytes() if kind == "bytes" else Tokenizer.load(kind)
        cache = Cache.of(self.cache, self.cache_gb)
        return PreparedShards(folders, self.weights, tokenizer, self.context, cache)

    def _read_documents(self) -> PreparedDocuments:
        corpus, val = self.corpora()
        self.refuse_unused(corpus, val)
        return PreparedDocuments.read(
            corpus, val, self.val_fraction, self.seed, self._adopted, self.tokenizer_kind, self.vocab_size,
            self.context, cache_folder(self.cache),
        )  # fmt: skip

    def corpora(self) -> tuple[Corpus, Corpus | None]:
        """What text is read from for training, and for validation if that is named. Raises UserError as `find` does."""
        skip, cache = self.on_error == "skip", Cache.of(self.cache, self.cache_gb)
        if self.dataset is not None:
            return find_set(self.dataset, self.text_field, skip, cache)
        corpus = find(self.files, self.text_field, skip, cache)
        return corpus, None if self.val_files is None else find(self.val_files, self.text_field, skip, cache)

    def _read_chats(self, files: list[str]) -> PreparedChats:
        self.refuse_unused()
        tokenizer, kind = self._adopted, self.tokenizer_kind
        if tokenizer is None:
            if kind in (None, "bpe", "characters"):
                raise UserError(
                    "data.chats needs a tokenizer that exists: fine-tune a model (--model.pretrained), or give "
                    "--data.tokenizer PATH or bytes."
                )
            tokenizer = Tokenizer.bytes() if kind == "bytes" else Tokenizer.load(kind)
        return PreparedChats.read(
            files, self.columns, self.on_error, self.val_fraction, self.seed, tokenizer, self.context
        )

    @property
    def prepared(self) -> Prepared:
        """The data as tokens, after `setup()`."""
        assert self._prepared is not None, "setup() comes first"
        return self._prepared

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        return self.prepared.describe()

    def counts(self) -> dict[str, Any]:
        """Documents or conversations, tokens and what was left out, after `setup()`."""
        return self.prepared.counts()

    # -- batches ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Batches:
        """Returns the batches of training; each iteration is one epoch, or what is left of it after a resume.

        Raises:
            UserError: the text does not fill one batch.
        """
        order = self.prepared.training_order(self._place, self.seed, self.position)
        return Batches(self.prepared.batches("train"), order, self.loader_workers(most=1), self.pin)

    def val_dataloader(self) -> Batches:
        """Returns the batches that score the whole validation text once."""
        return Batches(self.prepared.batches("val"), self.prepared.validation_order(self._place), 0, self.pin)

    def test_dataloader(self) -> Batches:
        """Returns the validation batches: text has no third side unless `val_files` names it."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Batches:
        """Returns the validation batches."""
        return self.val_dataloader()

    @property
    def _place(self) -> Place:
        return Place(self.batch_size, *self.ranks())

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Documents or conversations: files, or their rows."""
        return self.prepared.names(taken)

    def held_out(self) -> list[bytes]:
        """See `DataModule`: documents or conversations."""
        return self.prepared.held_out()

    def learned(self) -> list[bytes] | None:
        """See `ResumableData`."""
        return self.prepared.learned()

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "text": self.prepared.identity,
            "context": self.context,
            "batch_size": self.batch_size,
            "devices": self.ranks()[1],
            "seed": self.seed,
        }
