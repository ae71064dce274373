"""Which mixer a layer gets, and how a kind of your own is added."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from ..config import TransformerConfig
from ..errors import UserError
from .attention import Attention
from .base import Mixer
from .gated_convolution import GatedConvolution
from .gated_delta import GatedDelta
from .linear import LinearAttention, Retention
from .mamba import Mamba
from .mamba2 import Mamba2
from .options import KINDS, Kind, RecurrentOptions
from .recurrent import Bidirectional, RecurrentMixer
from .rglru import RGLRU
from .rnn import GRU, LSTM
from .titans import Titans

Make = Callable[[TransformerConfig, int, Any], Mixer]
"""Builds the mixer of one layer from the resolved config, the number of the layer and its options."""

_MAKERS: dict[str, Make] = {
    "attention": lambda config, layer, options: Attention(config, layer),
    "linear": lambda config, layer, options: LinearAttention(config, options),
    "retention": lambda config, layer, options: Retention(config, options),
    "mamba2": lambda config, layer, options: Mamba2(config, options),
    "mamba": lambda config, layer, options: Mamba(config, options),
    "gated_delta": lambda config, layer, options: GatedDelta(config, options),
    "rglru": lambda config, layer, options: RGLRU(config, options),
    "convolution": lambda config, layer, options: GatedConvolution(config, options),
    "lstm": lambda config, layer, options: LSTM(config, options),
    "gru": lambda config, layer, options: GRU(config, options),
    "titans": lambda config, layer, options: Titans(config, options),
}
_BUILT_IN = frozenset(_MAKERS)


def make_mixer(config: TransformerConfig, layer: int) -> Mixer:
    """The mixer of one layer of `config`, which is resolved. In a model that is not causal, one that reads from left
    to right is built twice, for both directions.
    """
    name = config.mixer_at(layer)
    make, options = _MAKERS[name], config.options_of(name)
    if KINDS[name].direction == "causal" and not config.causal:
        forth, back = make(config, layer, options), make(config, layer, options)
        assert isinstance(forth, RecurrentMixer) and isinstance(back, RecurrentMixer), f"{name} is no RecurrentMixer"
        return Bidirectional(forth, back)
    return make(config, layer, options)


def register_mixer(
    name: str, make: Make, options: type = RecurrentOptions, letter: str = "",
    direction: Literal["either", "causal", "both"] = "causal",
) -> None:  # fmt: skip
    """Adds a kind of mixer, which configs can then name.

    Args:
        name: such as `my_mixer`, of lower-case letters, digits and underscores. Your own may be registered again.
        make: `make(config, layer, options)` returns a `Mixer`; for direction `causal`, a `RecurrentMixer`.
        options: a frozen dataclass; each of its fields has a default.
        letter: one capital letter for patterns; without it the kind is named in lists only.
        direction: `causal` reads from left to right (in a model that is not causal, two of them are added up); `either`
            reads `config.causal`; `both` needs the whole sequence.

    Raises:
        UserError: the name or letter is taken or no such name, or an option has no default.
    """
    if not (name.isidentifier() and name.islower()):
        raise UserError(f"The mixer name is '{name}', but must be lower-case letters, digits and underscores.")
    if name in _BUILT_IN:
        raise UserError(f"The mixer name '{name}' is taken by a kind of triune; choose another one.")
    if letter and not (len(letter) == 1 and letter.isupper()):
        raise UserError(f"The letter of mixer '{name}' is '{letter}', but must be one capital letter, or empty.")
    taken = {kind.letter: other for other, kind in KINDS.items() if kind.letter and other != name}
    if letter in taken:
        raise UserError(f"The letter '{letter}' of mixer '{name}' is taken by '{taken[letter]}'; choose another one.")
    fields = dataclasses.fields(options)
    lacking = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if lacking:
        raise UserError(f"The options of mixer '{name}' have no default for {', '.join(lacking)}; give one.")
    KINDS[name] = Kind(options, letter, direction)
    _MAKERS[name] = make
