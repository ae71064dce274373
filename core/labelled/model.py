"""A model with a head: a trunk that makes tokens, a pool that makes one vector of them, and a head that answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.saved import SavedModel
from ..checks import check_keys, check_types
from ..config import TransformerConfig
from ..errors import UserError, nearest
from ..heads.base import Head, HeadSpec
from ..heads.pool import POOLS, Pool
from ..heads.registry import make_head
from ..layers import Norm

OWN = "own"
"""The pool that the trunk brings with it, where it has one."""


class Tokens(NamedTuple):
    """What a trunk makes of a batch.

    Args:
        vectors: `[batch, tokens, dim]`.
        valid: bool `[batch, tokens]`, True for real tokens.
        read: the same without tokens that stand for no part of the input, such as a class token.
    """

    vectors: Tensor
    valid: Tensor
    read: Tensor


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}  # fmt: skip
"""Of a layer before the head."""
NORMED = "_norm"
"""What the name of a layer with a norm ends with."""
LAYERS = (*ACTIVATIONS, *(f"{name}{NORMED}" for name in ACTIVATIONS))
"""The layers that can stand before the head."""


def check_layer(name: str, kind: str | None) -> None:
    """Raises UserError for a layer before the head that does not exist; None is no layer."""
    if kind is not None and kind not in LAYERS:
        known = ", ".join(LAYERS)
        raise UserError(f"{name} is '{kind}'{nearest(kind, LAYERS)}, but must be one of {known}, or null.")


class Hidden(nn.Module):
    """activation(dense(x)), and a norm like those of the trunk where the kind says so; `[..., dim]` -> `[..., dim]`."""

    def __init__(self, kind: str, dim: int, core: TransformerConfig) -> None:
        super().__init__()
        self.kind, self.dense = kind.removesuffix(NORMED), nn.Linear(dim, dim)
        self.norm = Norm(dim, core) if kind.endswith(NORMED) else None

    def forward(self, x: Tensor) -> Tensor:
        x = ACTIVATIONS[self.kind](self.dense(x))
        return x if self.norm is None else self.norm(x)


@dataclass(frozen=True)
class LabelledConfig:
    """A trunk with a head.

    Args:
        architecture: name of the trunk's class.
        trunk: the settings of the trunk, as its `settings()`.
        head: the kind of head, its names and settings, as `HeadSpec.to_dict()`.
        pool: how the vector of an example is made of those of its tokens: class, mean, attention, last, or own (the
            trunk's); null for a head that reads every token.
        reads: settings of the input that are no part of the trunk, such as the longest input.
        hidden: activation of a layer before the head (tanh, relu, gelu, gelu_tanh, silu), with a norm behind it where
            the name ends with _norm, as some classifiers of other libraries have it; null for none.
    """

    architecture: str
    trunk: dict[str, Any]
    head: dict[str, Any]
    pool: str | None = "mean"
    reads: dict[str, Any] = field(default_factory=dict)
    hidden: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.pool is not None and self.pool not in (*POOLS, OWN):
            known = (*POOLS, OWN)
            raise UserError(f"pool is '{self.pool}'{nearest(self.pool, known)}, but must be one of {', '.join(known)}.")
        check_layer("hidden", self.hidden)
        if self.spec.kind and (self.pool is None) != self._per_token:
            kind = self.spec.kind
            what = "reads every token, so pool must be null" if self._per_token else "needs a pool"
            raise UserError(f"pool is {self.pool}, but a head of kind {kind} {what}.")

    @property
    def spec(self) -> HeadSpec:
        """The head."""
        return HeadSpec.from_dict(self.head)

    @property
    def _per_token(self) -> bool:
        from ..heads.registry import head_class

        return head_class(self.spec.kind).reads_tokens(self.spec)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> LabelledConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        return cls(**check_keys(cls, values, "model"))


class LabelledModel(nn.Module):
    """A batch -> outputs of the head, `[batch, width]` or, of a head that reads every token, `[batch, tokens, width]`.

    A task derives its own from this and from `SavedModel`:

    >>> class ImagePredictor(LabelledModel, SavedModel, config=LabelledConfig): ...

    Args:
        config: what it is.
        trunk: with its weights; None makes a new one of the config.
    """

    TRUNKS: ClassVar[tuple[type[SavedModel], ...]] = ()
    """Classes of trunks, the first of which is made anew."""

    trunk: SavedModel
    head: Head

    def __init__(self, config: LabelledConfig, trunk: SavedModel | None = None) -> None:
        super().__init__()
        self.config = config
        if trunk is None:
            kind = self.trunk_class(config.architecture)
            trunk = kind.from_settings({kind.config_entry: config.trunk})
        self.trunk = self.bare(trunk)
        width = self.width(self.trunk, config.pool)
        self.pool = None if config.pool in (None, OWN) else Pool(config.pool, width)  # pyright: ignore[reportArgumentType]
        core: Any = self.trunk.config
        self.hidden = None if config.hidden is None else Hidden(config.hidden, width, core.transformer)
        self.head = make_head(config.spec, width)

    @classmethod
    def trunk_class(cls, architecture: str) -> type[SavedModel]:
        """The class of that name. Raises UserError for one that is no trunk of this task."""
        for known in cls.TRUNKS:
            if known.architecture == architecture:
                return known
        raise UserError(
            f"model.architecture is '{architecture}', but must be one of "
            f"{', '.join(known.architecture for known in cls.TRUNKS)}."
        )

    # --- what a task says --------------------------------------------------------------------------------------------

    @staticmethod
    def bare(trunk: Any) -> Any:
        """The trunk without what only its own task needs, such as the head of a language model."""
        raise NotImplementedError

    @staticmethod
    def reads_of(trunk: Any, pool: str | None) -> dict[str, Any]:
        """Settings of how such a trunk reads for such a pool; plain values, which join `reads` of a new model."""
        return {}

    @staticmethod
    def width(trunk: Any, pool: str | None) -> int:
        """Length of the vectors that the head reads. Raises UserError for a pool that the trunk does not have."""
        raise NotImplementedError

    def tokens(self, batch: dict[str, Tensor]) -> Tokens:
        """What the trunk makes of a batch."""
        raise NotImplementedError

    def own_pool(self, tokens: Tokens) -> Tensor:
        """`[batch, width]`, by the pool that the trunk brings."""
        raise NotImplementedError

    # --- what follows ------------------------------------------------------------------------------------------------

    def vectors(self, batch: dict[str, Tensor]) -> Tensor:
        """What the head reads: `[batch, width]`, or `[batch, tokens, dim]` for a head that reads every token."""
        tokens = self.tokens(batch)
        vectors = tokens.vectors if self.config.pool is None else self.pooled(tokens)
        return vectors if self.hidden is None else self.hidden(vectors)

    def pooled(self, tokens: Tokens) -> Tensor:
        """The vector of each example, `[batch, width]`."""
        if self.pool is None:
            return self.own_pool(tokens)
        return self.pool(tokens.vectors, tokens.valid if self.config.pool == "class" else tokens.read)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.vectors(batch))


def for_vectors(kind: type[Any], trunk: SavedModel, pool: str | None, reads: dict[str, Any] | None = None) -> Any:
    """A model of class `kind` around a checkpoint, for what `vectors` gives; its head is not used."""
    spec = HeadSpec("regress", ("vector",))
    config = LabelledConfig(trunk.architecture, trunk.settings()[trunk.config_entry], spec.to_dict(), pool, reads or {})
    return kind(config, trunk).eval()
