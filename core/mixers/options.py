"""The kinds of mixer by name, letter and options: what a config can be checked against without loading any of them.

| letter | name        | what it is                                                                                  |
|--------|-------------|---------------------------------------------------------------------------------------------|
| A      | attention   | softmax attention (Vaswani et al. 2017); its settings are fields of `TransformerConfig`     |
| L      | linear      | linear attention with a normaliser (Katharopoulos et al. 2020)                               |
| R      | retention   | outer products with a fixed decay a head (Sun et al. 2023)                                  |
| M      | mamba2      | outer products with a decay that depends on the input, SSD (Dao and Gu 2024)                |
| S      | mamba       | selective scan (Gu and Dao 2023)                                                            |
| D      | gated_delta | gated delta rule (Yang et al. 2024)                                                         |
| G      | rglru       | real-gated linear recurrent unit (De et al. 2024, Griffin)                                  |
| T      | lstm        | long short-term memory (Hochreiter and Schmidhuber 1997)                                    |
| U      | gru         | gated recurrent unit (Cho et al. 2014)                                                      |

`register_mixer` in `registry.py` adds a kind of your own to the table.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ..errors import UserError, nearest

OPTION = "mixer_options."
"""Begins the name of an option in a message; the name of the kind follows."""

OF_ATTENTION = (
    "window", "sparse", "short_convolution", "qk_norm", "attention_scale",
    "attention_softcap", "attention_gate", "attention_dropout",
)  # fmt: skip
"""Fields of `TransformerConfig` without effect where no layer has attention."""


@dataclass(frozen=True)
class AttentionOptions:
    """None: the settings of attention are fields of `TransformerConfig`."""


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
    HEADS: ClassVar[bool] = True
    """The number of heads of the model and their width matter once `filled` has used them."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value: Any = getattr(self, f.name)
            flag = isinstance(value, bool)
            number = isinstance(value, int) and not flag
            if f.name == "conv":
                self._check(f.name, value, number and value >= 0 and value != 1, "0, or at least 2")
            elif f.name == "bias":
                self._check(f.name, value, value is None or flag, "true or false or null")
            elif isinstance(f.default, bool):
                self._check(f.name, value, flag, "true or false")
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
        expand: inner width in multiples of dim.
        width: channels of one head; None means head_dim.
        groups: queries and keys, each shared by (number of heads) / groups heads.
    """

    conv: int = 4
    state: int = 64
    expand: int = 2
    width: int | None = None
    groups: int = 1

    LINEARS = ("q", "k", "v", "gate", "step", "out")
    HEADS = False

    def filled(self, dim: int, heads: int, head_dim: int) -> Self:
        """The same with the width of a head."""
        return dataclasses.replace(self, width=self.width or head_dim)

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where heads or groups do not divide the inner width."""
        inner, width = self.expand * dim, self.width or head_dim
        allowed = f"a divisor of expand · dim ({inner}); left out it is head_dim ({head_dim})"
        self._check("width", width, inner % width == 0, allowed)
        allowed = f"a divisor of the number of heads ({inner // width})"
        self._check("groups", self.groups, inner // width % self.groups == 0, allowed)


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
class Kind:
    """One kind of mixer.

    Args:
        options: a frozen dataclass whose fields have defaults.
        letter: stands for it in a pattern; empty for none.
        direction: `either` reads `config.causal`; `causal` reads from left to right only, so that a model that is not
            causal builds it twice, once for each direction; `both` needs the whole sequence.
    """

    options: type
    letter: str = ""
    direction: Literal["either", "causal", "both"] = "causal"


KINDS: dict[str, Kind] = {
    "attention": Kind(AttentionOptions, "A", "either"),
    "linear": Kind(LinearOptions, "L"),
    "retention": Kind(RetentionOptions, "R"),
    "mamba2": Kind(Mamba2Options, "M"),
    "mamba": Kind(MambaOptions, "S"),
    "gated_delta": Kind(GatedDeltaOptions, "D"),
    "rglru": Kind(RGLRUOptions, "G"),
    "lstm": Kind(LSTMOptions, "T"),
    "gru": Kind(GRUOptions, "U"),
}


def table() -> str:
    """The known kinds, each with its letter, for messages."""
    return ", ".join(f"{kind.letter} {name}".strip() for name, kind in KINDS.items())


def expand(mixer: str | list[str], depth: int) -> list[str]:
    """The name of the mixer of each layer.

    Args:
        mixer: one name for all layers, a pattern with a letter for each, or a list with a name or letter for each.
        depth: number of layers.

    Raises:
        UserError: an unknown name or letter, or a wrong length.
    """
    if not isinstance(mixer, str | list | tuple):
        raise UserError(f"mixer is {mixer!r}, but must be a name, a pattern of letters or a list of names.")
    if isinstance(mixer, str) and mixer in KINDS:
        return [mixer] * depth
    letters = {kind.letter: name for name, kind in KINDS.items() if kind.letter}
    if isinstance(mixer, str) and not mixer.isupper():
        raise UserError(
            f"mixer is '{mixer}'{nearest(mixer, list(KINDS))}, but must be one of {', '.join(KINDS)}, or a pattern with"
            f" one letter a layer: {table()}."
        )
    names = []
    for entry in mixer:
        if entry not in KINDS and entry not in letters:
            where = f"the pattern {mixer}" if isinstance(mixer, str) else f"the list of {len(mixer)}"
            raise UserError(f"mixer has '{entry}' in {where}, but must be made of {table()}.")
        names.append(letters.get(entry, entry))
    if len(names) != depth:
        what = f"'{mixer}', {len(names)} letters" if isinstance(mixer, str) else f"a list of {len(names)}"
        raise UserError(f"mixer is {what}, but must have one for each of {depth} layers; change it or depth.")
    return names


def options_of(name: str, values: Any, dim: int, heads: int, head_dim: int) -> Any:
    """The options of one kind as its dataclass, checked against the size of the model, with no null for a number.

    Raises:
        UserError: the kind has no such option, or its value is out of range.
    """
    cls = KINDS[name].options
    known = [f.name for f in dataclasses.fields(cls)]
    if not isinstance(values, dict):
        raise UserError(f"{OPTION}{name} is {values!r}, but must be a mapping of options, such as {{conv: 4}}.")
    for key in values:
        if key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise UserError(f"{OPTION}{name} has '{key}'{nearest(key, known)}, but {has}.")
    try:
        options = cls(**values)
        if isinstance(options, RecurrentOptions):
            options.check(dim, heads, head_dim)
            options = options.filled(dim, heads, head_dim)
    except UserError as error:
        raise UserError(str(error).replace(OPTION, f"{OPTION}{name}.", 1)) from None
    return options


def canonical(config: Any, linears: tuple[str, ...]) -> dict[str, Any]:
    """Settings of a resolved `TransformerConfig` in one spelling: biases without those of linear layers that no layer
    has, the heads' number and width one and the whole where no layer asks for them, and the options of the mixers.

    Args:
        config: the config.
        linears: the names that its `bias` may list.
    """
    names = dict.fromkeys(config.mixer_at(layer) for layer in range(config.depth))
    options = {name: config.options_of(name) for name in names if name != "attention"}
    plain = {n: o.plain(config.bias) if isinstance(o, RecurrentOptions) else o for n, o in options.items()}
    attends = "attention" in names or config.cross_attention
    asks = any(getattr(o, "bias", None) is None for o in plain.values())
    there = ({"q", "k", "v", "out"} if attends or asks else set()) | ({"gate"} if asks or config.gated else set())
    there |= {"up", "down"} if any(kind != "none" for kind in config.ffns) else set()
    found: dict[str, Any] = {
        "bias": [name for name in linears if config.has_bias(name) and name in there],
        "mixer_options": {n: v for n, o in plain.items() if (v := dataclasses.asdict(o))},
    }
    if not attends and not any(getattr(o, "HEADS", True) for o in plain.values()):
        found |= {"heads": 1, "kv_heads": 1, "head_dim": config.dim}
    return found
