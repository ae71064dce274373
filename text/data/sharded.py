"""Text that lies in shards, prepared for training: one folder, or several in fixed shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.shards import Folder
from ...core.stores import Cache
from ...core.training.data import Order
from ...core.training.mixture import Mixture, whole_weights
from ..tokenizer import Tokenizer
from .prepared import Place
from .shards import Manifest, ShardedTokens, read_manifest
from .split import SIDES, Side
from .windows import ShuffledWindows, Windows, WindowsInOrder, training_windows


class PreparedShards:
    """Shards as token arrays; see `Prepared` for what the attributes and methods mean.

    Args:
        folders: paths or URLs of folders of shards.
        weights: shares of the folders in the windows of training; None for those of their tokens.
        tokenizer: the one that the tokens must be of; None for any.
        context: tokens of a window.
        cache: of folders in stores; None for the usual one.

    Raises:
        UserError: a folder is damaged, their tokenizers differ, or one side is too short.
    """

    def __init__(
        self, folders: Sequence[str], weights: Sequence[float] | None, tokenizer: Tokenizer | None, context: int,
        cache: Cache | None = None,
    ) -> None:  # fmt: skip
        self.context = context
        manifests = [read_manifest(Folder(folder, cache)) for folder in folders]
        _check_tokenizers(manifests, tokenizer)
        self.tokenizer = tokenizer or manifests[0].load_tokenizer()
        self.manifests = manifests
        self.arrays: dict[Side, ShardedTokens] = {side: ShardedTokens(manifests, side) for side in SIDES}
        val = self.arrays["val"]
        self.val_bytes, self.val_targets = val.bytes - val.first_bytes, val.tokens - val.documents
        self._weights = None if weights is None else whole_weights(weights)
        self.identity: str | int = hashlib.sha256(
            repr(([m.identity for m in manifests], self._weights)).encode()
        ).hexdigest()[:24]
        self._check_lengths()

    def _check_lengths(self) -> None:
        for manifest, tokens in zip(self.manifests, self._tokens(), strict=True):
            if tokens <= self.context:
                raise UserError(
                    f"The training side of '{manifest.folder}' has {tokens:,} tokens, fewer than one window of"
                    f" {self.context:,} and the token behind it; lower --data.context or give more text."
                )
        if self.arrays["val"].tokens < 2:
            raise UserError("The shards have no validation text; write them with a larger --val_fraction.")

    def _tokens(self) -> list[int]:
        """Training tokens of each folder."""
        return [sum(shard.tokens for shard in manifest.sides["train"]) for manifest in self.manifests]

    def held_out(self) -> list[bytes]:
        return [manifest.identity.encode() for manifest in self.manifests]

    def learned(self) -> None:
        return None

    def describe(self) -> str:
        c = self.counts()
        parts = [
            f"{c['documents_train'] + c['documents_val']:,} documents in {c['shards']:,} shards",
            f"{c['tokens_train']:,} tokens to train and {c['tokens_val']:,} to validate on",
            f"vocabulary {c['vocabulary']:,}",
        ]
        if self._weights:
            names = zip(self._weights, self.manifests, strict=True)
            parts.append("mixed " + ", ".join(f"{w / sum(self._weights):.1%} {m.folder.name}" for w, m in names))
        return ", ".join(parts)

    def counts(self) -> dict[str, Any]:
        counts = {
            f"{what}_{side}": getattr(array, what)
            for what in ("documents", "bytes", "tokens")
            for side, array in self.arrays.items()
        }
        shards = sum(len(array.shards) for array in self.arrays.values())
        return {**counts, "vocabulary": self.tokenizer.vocab_size, "shards": shards, "skipped": {}}

    def batches(self, side: Side) -> Windows:
        packed = any(array.documents > 1 for array in self.arrays.values())
        return Windows(self.arrays[side], self.context, packed)

    def names(self, taken: np.ndarray) -> list[str]:
        """See `Prepared`; documents have numbers only."""
        at = taken[:, None] + np.array([0, self.context])
        first, last = self.arrays["train"].open()[1].documents(at).T
        wanted = sorted({number for a, b in zip(first, last, strict=True) for number in range(a, b + 1)})
        return [f"document {number + 1:,} of the shards" for number in wanted]

    def training_order(self, place: Place, seed: int, position: Callable[[], int | None]) -> Order:
        windows = sum(training_windows(tokens, self.context) for tokens in self._tokens())
        if windows < place.batch_size * place.world:
            raise UserError(
                f"The shards fill {windows:,} windows of {self.context:,}, fewer than one batch of"
                f" {place.batch_size * place.world:,}; lower --data.batch_size or --data.context."
            )
        if self._weights is None:
            return ShuffledWindows(self.arrays["train"].tokens, self.context, *place, seed, position)
        return MixedWindows(self._tokens(), self._weights, self.context, *place, seed, position)

    def validation_order(self, place: Place) -> Order:
        return WindowsInOrder(self.arrays["val"].tokens, self.context, *place)


def _check_tokenizers(manifests: list[Manifest], tokenizer: Tokenizer | None) -> None:
    wanted = tokenizer.fingerprint if tokenizer else manifests[0].tokenizer
    for manifest in manifests:
        if manifest.tokenizer != wanted:
            whose = "the model's or --data.tokenizer's" if tokenizer else f"that of '{manifests[0].folder}'"
            raise UserError(
                f"The tokens of '{manifest.folder}' are of another tokenizer than {whose}; write its shards again with"
                " `triune text shard … --tokenizer` and that one."
            )


class MixedWindows(ShuffledWindows):
    """The order of training over several sources in fixed shares; a window lies within one source.

    Each source has epochs of its own, of another phase and order each; an epoch of the whole has as many windows as all
    sources together.

    Args:
        tokens: of each source, one behind the other in the stream.
        weights: whole numbers, see `Mixture`.
        context: tokens of a window.
        batch_size, rank, world, seed, position: as for the core's `Shuffled`.
    """

    def __init__(
        self, tokens: Sequence[int], weights: Sequence[int], context: int, batch_size: int, rank: int = 0,
        world: int = 1, seed: int = 0, position: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__(sum(tokens), context, batch_size, rank, world, seed, position)
        self._mixture = Mixture(weights)
        self._begins = np.cumsum([0, *tokens[:-1]])
        # The seed and the number of a source make the seed of its own order.
        seeds = [int(np.random.SeedSequence([seed, 7, number]).generate_state(1)[0]) for number in range(len(tokens))]
        self._orders = [
            ShuffledWindows(several, context, 1, 0, 1, own) for several, own in zip(tokens, seeds, strict=True)
        ]
        self._count = sum(order.windows for order in self._orders)

    def at(self, position: int, slots: np.ndarray) -> np.ndarray:
        samples = position * self._world * self._batch_size + slots
        sources, numbers = self._mixture[samples]
        found = np.empty(len(slots), dtype=np.int64)
        for source in np.unique(sources).tolist():
            order, begin = self._orders[source], int(self._begins[source])
            for place in np.flatnonzero(sources == source).tolist():
                found[place] = begin + order.take(int(numbers[place]))[0]
        return found
