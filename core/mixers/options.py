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
| C      | convolution | short convolution between two gates (LFM2, Liquid AI 2025)                                  |
| T      | lstm        | long short-term memory (Hochreiter and Schmidhuber 1997)                                    |
| U      | gru         | gated recurrent unit (Cho et al. 2014)                                                      |
| N      | titans      | a memory that learns while it reads (Behrouz et al. 2024)                                   |

`register_mixer` in `registry.py` adds a kind of your own to the table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError, nearest
from .recurrent_options import (
    OPTION,
    ConvolutionOptions,
    GatedDeltaOptions,
    GRUOptions,
    LinearOptions,
    LSTMOptions,
    Mamba2Options,
    MambaOptions,
    RecurrentOptions,
    RetentionOptions,
    RGLRUOptions,
    TitansOptions,
)

OF_ATTENTION = (
    "window", "sparse", "short_convolution", "qk_norm", "attention_scale",
    "attention_softcap", "attention_gate", "attention_dropout", "global_projections",
)  # fmt: skip
"""Fields of `TransformerConfig` without effect where no layer has attention."""


@dataclass(frozen=True)
class AttentionOptions:
    """None: the settings of attention are fields of `TransformerConfig`."""


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
    "convolution": Kind(ConvolutionOptions, "C"),
    "lstm": Kind(LSTMOptions, "T"),
    "gru": Kind(GRUOptions, "U"),
    "titans": Kind(TitansOptions, "N"),
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
