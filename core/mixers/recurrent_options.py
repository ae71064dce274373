"""The settings of the recurrent mixers, one dataclass a kind. No torch at import."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ..errors import UserError

OPTION = "mixer_options."
"""Begins the name of an option in a message; the name of the kind follows."""


@dataclass(frozen=True)
class RecurrentOptions:
    """What the recurrent mixers have in common.

    Args:
        conv: tokens that a causal convolution over each channel reads before the recurrence; 0 for none.
        conv_bias: the convolution has a bias.
        bias: its linear layers (`LINEARS`) have a bias; null for those that `TransformerConfig.bias` lists.
    """

    conv: int = 0
    conv_bias: bool = True
    bias: bool | None = None

    LINEARS: ClassVar[tuple[str, ...]] = ("q", "k", "v", "out")
    """Names of the linear layers that may have a bias."""
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Options that are words, and which."""
    HEADS: ClassVar[bool] = True
    """The number of heads of the model and their width matter once `filled` has used them."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value: Any = getattr(self, f.name)
            flag = isinstance(value, bool)
            number = isinstance(value, int) and not flag
            if f.name == "conv":
                self._check(f.name, value, number and value >= 0 and value != 1, "0, or at least 2")
            elif f.name in self.WORDS:
                self._check(f.name, value, value in self.WORDS[f.name], "one of " + ", ".join(self.WORDS[f.name]))
            elif f.name == "bias":
                self._check(f.name, value, value is None or flag, "true or false or null")
            elif isinstance(f.default, bool):
                self._check(f.name, value, flag, "true or false")
            elif isinstance(f.default, float):
                at_least = isinstance(value, int | float) and not flag and 0 <= value < math.inf
                self._check(f.name, value, at_least, "at least 0 and finite")
            else:
                positive = number and value > 0
                self._check(f.name, value, positive or (value is None is f.default), "a positive integer")
        usual = next(f.default for f in dataclasses.fields(self) if f.name == "conv_bias")
        used = self.conv > 0 or self.conv_bias == usual
        self._check("conv_bias", self.conv_bias, used, f"left out, or {str(usual).lower()}, because conv is 0")

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where the options do not go with the size of the model."""

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with each null that stands for a number replaced by it."""
        return self

    def biased(self, listed: bool | list[str], linear: str) -> bool:
        """Whether a linear layer has a bias; `listed` is `TransformerConfig.bias`, which knows no `step`."""
        if self.bias is not None:
            return self.bias
        return linear != "step" and (listed if isinstance(listed, bool) else linear in listed)

    def plain(self, listed: bool | list[str]) -> Self:
        """The same with `bias` written out, where its linear layers all have one or none has."""
        flags = {self.biased(listed, linear) for linear in self.LINEARS}
        return dataclasses.replace(self, bias=flags.pop()) if len(flags) == 1 else self

    def _check(self, field: str, value: object, ok: bool, allowed: str) -> None:
        if not ok:
            raise UserError(f"{OPTION}{field} is {value!r}, but must be {allowed}.")


@dataclass(frozen=True)
class LinearOptions(RecurrentOptions):
    """Linear attention.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        state: width of a query and key of one head; None means head_dim.
    """

    state: int | None = None

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the width of a query."""
        return dataclasses.replace(self, state=self.state or head_dim)


@dataclass(frozen=True)
class RetentionOptions(LinearOptions):
    """Retention.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        state: width of a query and key of one head; None means head_dim.
    """

    LINEARS = ("q", "k", "v", "gate", "out")


@dataclass(frozen=True)
class Mamba2Options(RecurrentOptions):
    """Mamba-2.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        state: width of a query and key (C and B of the paper).
        expand: inner width in multiples of dim, where `heads` is not given.
        heads: their number; None means expand · dim / width.
        width: channels of one head; None means head_dim.
        groups: queries and keys, each shared by heads / groups heads.
        floor: the step size is at least this (Nemotron-H).
    """

    conv: int = 4
    state: int = 64
    expand: int = 2
    heads: int | None = None
    width: int | None = None
    groups: int = 1
    floor: float = 0.0

    LINEARS = ("q", "k", "v", "gate", "step", "out")
    HEADS = False

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the number of heads and their width."""
        width = self.width or head_dim
        return dataclasses.replace(self, expand=2, heads=self.heads or self.expand * dim // width, width=width)

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where heads or groups do not divide the inner width."""
        inner, width = self.expand * dim, self.width or head_dim
        allowed = f"a divisor of expand · dim ({inner}); left out it is head_dim ({head_dim})"
        self._check("width", width, self.heads is not None or inner % width == 0, allowed)
        allowed = "left out where heads is given, which says the same"
        self._check("expand", self.expand, self.heads is None or self.expand == 2, allowed)
        count = self.heads or inner // width
        self._check("groups", self.groups, count % self.groups == 0, f"a divisor of the number of heads ({count})")

    @property
    def inner(self) -> int:
        """Width of all heads, once `filled`."""
        return (self.heads or 0) * (self.width or 0)


@dataclass(frozen=True)
class MambaOptions(RecurrentOptions):
    """Mamba-1.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        state: numbers that each inner channel remembers.
        expand: inner width in multiples of dim.
        rank: of the projection to the step sizes; None means dim / 16, rounded up.
        inner_norm: RMS norms on step size, B and C (Jamba).
    """

    conv: int = 4
    state: int = 16
    expand: int = 2
    rank: int | None = None
    inner_norm: bool = False

    LINEARS = ("v", "gate", "out")
    HEADS = False

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the rank."""
        return dataclasses.replace(self, rank=self.rank or math.ceil(dim / 16))


@dataclass(frozen=True)
class GatedDeltaOptions(RecurrentOptions):
    """The gated delta rule.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        heads: of the values, each with a state; None means those of the model.
        key_heads: of queries and keys, each for heads / key_heads neighbouring ones; None means heads.
        state: width of a query and key of one head; None means head_dim.
        width: of a value of one head; None means expand · head_dim.
        expand: width of a value in multiples of head_dim, where `width` is not given.
    """

    conv: int = 4
    conv_bias: bool = False
    heads: int | None = None
    key_heads: int | None = None
    state: int | None = None
    width: int | None = None
    expand: int = 1

    LINEARS = ("q", "k", "v", "gate", "out")
    HEADS = False

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the numbers of heads and their widths."""
        own = self.heads or heads
        return dataclasses.replace(
            self, heads=own, key_heads=self.key_heads or own, state=self.state or head_dim,
            width=self.width or self.expand * head_dim, expand=1,
        )  # fmt: skip

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where the heads do not go together."""
        own = self.heads or heads
        keys = self.key_heads or own
        self._check("key_heads", keys, own % keys == 0, f"a divisor of heads ({own})")
        allowed = "left out where width is given, which says the same"
        self._check("expand", self.expand, self.width is None or self.expand == 1, allowed)


@dataclass(frozen=True)
class RGLRUOptions(RecurrentOptions):
    """RG-LRU.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        width: recurrent channels; None means dim. Its gates are matrices of width / heads rows.
    """

    conv: int = 4
    width: int | None = None

    LINEARS = ("v", "gate", "out")

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the number of channels."""
        return dataclasses.replace(self, width=self.width or dim)

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where the gates are not square matrices by head."""
        width = self.width or dim
        self._check("width", width, width % heads == 0, f"a multiple of heads ({heads}); left out it is dim")


@dataclass(frozen=True)
class ConvolutionOptions(RecurrentOptions):
    """A gated short convolution.

    Args:
        conv: tokens that it reads, at least 2.
        conv_bias, bias: as for all recurrent mixers.
    """

    conv: int = 3
    conv_bias: bool = False

    HEADS = False

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError without a convolution."""
        self._check("conv", self.conv, self.conv > 0, "at least 2")


@dataclass(frozen=True)
class LSTMOptions(RecurrentOptions):
    """LSTM.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        width: cells; None means dim.
    """

    width: int | None = None

    LINEARS = ("out",)
    HEADS = False

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the number of cells."""
        return dataclasses.replace(self, width=self.width or dim)


@dataclass(frozen=True)
class GRUOptions(LSTMOptions):
    """GRU.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        width: units; None means dim.
    """


@dataclass(frozen=True)
class TitansOptions(RecurrentOptions):
    """Titans' memory, alone or together with attention over near tokens.

    Args:
        conv, conv_bias, bias: as for all recurrent mixers.
        form: `memory` alone; memory as `layer`, `gate` or `context` of attention (sections 4.1 to 4.3 of the paper).
        layers: linear layers of the memory, 1 or more; between them stands SiLU.
        state: width of a query and key of one head; None means head_dim.
        width: of a value of one head; None means head_dim.
        hidden: width inside of a memory of several layers; None means 2 · state.
        chunk: tokens whose gradients are taken at the same memory; with `context` the segment that attention sees.
        momentum: surprise of earlier tokens counts.
        forget: the memory decays, as the token asks for.
        bound: steps are divided by what would let a chunk overshoot (`titans_memory.py`); the paper has no bound.
        window: tokens that attention sees, with `layer` and `gate`.
        persistent: learned tokens that attention sees everywhere, with `layer`, `gate` and `context`.
    """

    conv: int = 4
    form: str = "memory"
    layers: int = 1
    state: int | None = None
    width: int | None = None
    hidden: int | None = None
    chunk: int = 16
    momentum: bool = True
    forget: bool = True
    bound: bool = True
    window: int = 64
    persistent: int = 4

    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {"form": ("memory", "layer", "gate", "context")}
    LINEARS = ("q", "k", "v", "gate", "out")

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the widths of the memory."""
        state = self.state or head_dim
        return dataclasses.replace(
            self,
            state=state,
            width=self.width or head_dim,
            hidden=self.hidden or (2 * state if self.layers > 1 else None),
        )

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError for options that this form does not use."""
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        for name, forms in (("window", ("layer", "gate")), ("persistent", ("layer", "gate", "context"))):
            value = getattr(self, name)
            self._check(name, value, self.form in forms or value == usual[name], f"left out with form {self.form}")
        self._check("hidden", self.hidden, self.layers > 1 or self.hidden is None, "left out with one layer")
        even = self.form == "memory" or head_dim % 2 == 0
        self._check("form", self.form, even, f"memory where head_dim ({head_dim}) is odd, as attention turns pairs")
