"""Windows of text with hidden tokens, to train a masked language model on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import masking
from ...core.errors import UserError
from ...core.losses import IGNORED
from ...core.masking import hide_tokens
from ...core.training.data import Batches, Draw
from ..data.documents import PreparedDocuments
from ..data.module import TextData
from ..data.sharded import PreparedShards
from ..data.shards import ShardedTokens
from ..data.tokens import TokenArray, documents_at
from ..data.windows import ShuffledWindows, WindowsInOrder
from ..specials import with_mask
from ..tokenizer import Tokenizer

MULTIPLE = 64
"""The number of guessed tokens of a batch is filled up to a multiple of this, so that shapes are few."""
NOTHING = -1
"""Document of the positions behind the end of the text."""


class MaskedText(TextData):
    """Plain text as for `triune text fit`, with 15 % of the tokens of each window to be guessed.

    A batch is a dict of int64 tensors: `tokens` `[batch, context]`, some hidden; `documents` `[batch, context]`, the
    number of the document of each, -1 behind the end; `places` `[guessed]`, which are guessed, counted through the
    batch, and `targets` `[guessed]`, what stood there, -100 for entries that fill up. Order and masks depend on (seed,
    position) only, so that a resumed run continues exactly; the masks of the validation text are always the same.

    Args:
        **others: see `TextData`, of which chats, columns have no place here.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        if self.chats is not None:
            raise UserError("data.chats is given, but a masked language model reads plain text; give --data.files.")

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.tokenizer.mask_id is None:
            if self._adopted is not None:
                raise UserError(
                    "The tokenizer of model.pretrained has no token that hides others ([MASK] or <mask>), so the model "
                    "was not made for guessing; take a masked language model such as BERT or ModernBERT."
                )
            self.tokenizer = Tokenizer(with_mask(self.tokenizer.backend))
            self.vocab_size = self.tokenizer.vocab_size

    def draws(self) -> dict[str, int]:
        """See `ResumableData`."""
        return {"the hidden tokens": masking.VERSION}

    def _masked(self, side: Any) -> MaskedWindows:
        prepared = self.prepared
        assert isinstance(prepared, (PreparedDocuments, PreparedShards))
        return MaskedWindows(prepared.arrays[side], self.context, self.tokenizer, self.seed)

    def train_dataloader(self) -> Batches:
        """Returns the batches of training; each iteration is one epoch, or what is left of it after a resume.

        Raises:
            UserError: the text does not fill one batch.
        """
        order: Any = self.prepared.training_order(self._place, self.seed, self.position)
        assert isinstance(order, ShuffledWindows)
        return Batches(self._masked("train"), _Numbered.of(order), self.loader_workers(most=1), self.pin)

    def val_dataloader(self) -> Batches:
        """Returns batches with every window of the validation text once."""
        order: Any = self.prepared.validation_order(self._place)
        return Batches(self._masked("val"), _Unnumbered(order), 0, self.pin)


class _Numbered(ShuffledWindows):
    """The order of training, whose draws say their position."""

    @classmethod
    def of(cls, order: ShuffledWindows) -> _Numbered:
        """The same order."""
        found = cls.__new__(cls)
        found.__dict__.update(order.__dict__)
        return found

    def batch(self, position: int) -> Any:
        return Draw(position, self.take(position))


class _Unnumbered:
    """The order of validation as draws."""

    def __init__(self, order: WindowsInOrder) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Draw]:
        for starts in self._order:
            yield Draw(None, starts)


class MaskedWindows:
    """Batches of windows with hidden tokens: `windows[draw]`, as `MaskedText` describes them.

    Args:
        array: the tokens.
        context: of a window.
        tokenizer: with a token that hides.
        seed: with the place in the text and, in training, the position, it decides what is hidden.
    """

    def __init__(self, array: TokenArray | ShardedTokens, context: int, tokenizer: Tokenizer, seed: int) -> None:
        assert tokenizer.mask_id is not None
        self.array, self.context, self.seed, self.mask = array, context, seed, tokenizer.mask_id
        special = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
        special[list(tokenizer.special_ids)] = True
        self.special, self.others = special, (~special).nonzero()[:, 0]

    def __getstate__(self) -> dict[str, Any]:
        # Every worker maps the files itself; pickling a map would copy the corpus.
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}

    @cached_property
    def _maps(self) -> tuple[Any, Any]:
        return self.array.open()

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        stream, borders = self._maps
        at = draw.indices[:, None] + np.arange(self.context)
        outside = at >= len(stream)
        tokens = torch.from_numpy(stream[np.minimum(at, len(stream) - 1)].astype(np.int64))
        documents = np.where(outside, NOTHING, documents_at(borders, at))
        allowed = ~self.special[tokens] & ~torch.from_numpy(outside)
        key = (self.seed, 1) if draw.position is None else (self.seed, 0, draw.position)
        rows = [  # each by itself, so that it does not matter which process holds which rows
            self._hidden(tokens[row : row + 1], allowed[row : row + 1], (*key, int(start)))
            for row, start in enumerate(draw.indices)
        ]
        changed, targets = (torch.cat(parts) for parts in zip(*rows))
        places = (targets.flatten() != IGNORED).nonzero()[:, 0]
        fill = max(1, -(-len(places) // MULTIPLE)) * MULTIPLE - len(places)
        wanted = torch.cat([targets.flatten()[places], torch.full((fill,), IGNORED)])
        places = torch.cat([places, torch.zeros(fill, dtype=torch.int64)])
        return {"tokens": changed, "documents": torch.from_numpy(documents), "places": places, "targets": wanted}

    def _hidden(self, tokens: Tensor, allowed: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        seed = int(np.random.default_rng(key).integers(2**63))
        return hide_tokens(tokens, allowed, self.mask, self.others, torch.Generator().manual_seed(seed))
