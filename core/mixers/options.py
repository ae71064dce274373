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
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError, nearest

OPTION = "mixer_options."
"""Begins the name of an option in a message; the name of the kind follows."""


@dataclass(frozen=True)
class AttentionOptions:
    """None: the settings of attention are fields of `TransformerConfig`."""


@dataclass(frozen=True)
class RecurrentOptions:
    """What the recurrent mixers have in common.

    Args:
        conv: tokens that a causal convolution over each channel reads before the recurrence; 0 for none.
    """

    conv: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name == "conv":
                self._check(f.name, value, isinstance(value, int) and value >= 0 and value != 1, "0, or at least 2")
            elif not isinstance(f.default, bool):
                empty = value is None and f.default is None
                self._check(f.name, value, empty or (isinstance(value, int) and value > 0), "a positive integer")
            else:
                self._check(f.name, value, isinstance(value, bool), "true or false")

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where the options do not go with the size of the model."""

    def _check(self, field: str, value: object, ok: bool, allowed: str) -> None:
        if not ok or (isinstance(value, bool) and allowed != "true or false"):
            raise UserError(f"{OPTION}{field} is {value!r}, but must be {allowed}.")


@dataclass(frozen=True)
class LinearOptions(RecurrentOptions):
    """Linear attention.

    Args:
        conv: as for all recurrent mixers.
        state: width of a query and key of one head; None means head_dim.
    """

    state: int | None = None


@dataclass(frozen=True)
class RetentionOptions(RecurrentOptions):
    """Retention.

    Args:
        conv: as for all recurrent mixers.
        state: width of a query and key of one head; None means head_dim.
    """

    state: int | None = None


@dataclass(frozen=True)
class Mamba2Options(RecurrentOptions):
    """Mamba-2.

    Args:
        conv: as for all recurrent mixers.
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
        conv: as for all recurrent mixers.
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


@dataclass(frozen=True)
class GatedDeltaOptions(RecurrentOptions):
    """The gated delta rule.

    Args:
        conv: as for all recurrent mixers.
        state: width of a query and key of one head; None means head_dim.
        expand: width of a value in multiples of head_dim.
    """

    conv: int = 4
    state: int | None = None
    expand: int = 1


@dataclass(frozen=True)
class RGLRUOptions(RecurrentOptions):
    """RG-LRU.

    Args:
        conv: as for all recurrent mixers.
        width: recurrent channels; None means dim. Its gates are matrices of width / heads rows.
    """

    conv: int = 4
    width: int | None = None

    def check(self, dim: int, heads: int, head_dim: int) -> None:
        """Raises UserError where the gates are not square matrices by head."""
        width = self.width or dim
        self._check("width", width, width % heads == 0, f"a multiple of heads ({heads}); left out it is dim")


@dataclass(frozen=True)
class LSTMOptions(RecurrentOptions):
    """LSTM.

    Args:
        conv: as for all recurrent mixers.
        width: cells; None means dim.
    """

    width: int | None = None


@dataclass(frozen=True)
class GRUOptions(RecurrentOptions):
    """GRU.

    Args:
        conv: as for all recurrent mixers.
        width: units; None means dim.
    """

    width: int | None = None


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
    """The options of one kind as its dataclass, checked against the size of the model.

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
    except UserError as error:
        raise UserError(str(error).replace(OPTION, f"{OPTION}{name}.", 1)) from None
    return options
