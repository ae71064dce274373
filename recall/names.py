"""What the names of mixers stand for. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UserError
from ..core.mixers import options as mixers

SHORT = {"softmax": "attention", "ssd": "mamba2"}
"""Further names of kinds of mixer."""


NEAR = 32
"""Tokens that the attention inside of Titans sees."""


@dataclass(frozen=True)
class Choice:
    """What `--mixer` names.

    Args:
        name: as it was given.
        layers: the kind of mixer of each layer.
        window: of the attention layers in tokens, or None.
        options: of the kinds that have other options than their own defaults.
    """

    name: str
    layers: tuple[str, ...]
    window: int | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


def choose(name: str, depth: int) -> Choice:
    """The mixers that a name stands for.

    Args:
        name: a kind of core/mixers/options.py or of `register_mixer`; `softmax` or `ssd`; `window:16` for attention
            with a window; `titans:gate`, `titans:layer` or `titans:context` for a memory beside attention to the last
            `NEAR` tokens; or a pattern with a letter for each layer, such as MMMA, which also says the depth.
        depth: number of layers of everything but a pattern.

    Raises:
        UserError: the name means nothing.
    """
    kind, colon, word = name.partition(":")
    if kind == "window":
        if not (word.isascii() and word.isdigit() and int(word)):
            raise UserError(
                f"mixer is '{name}', but the window must be a positive number of tokens, such as window:16."
            )
        return Choice(name, ("attention",) * depth, int(word))
    kind = SHORT.get(kind, kind)
    if colon:
        forms = mixers.KINDS["titans"].options.WORDS["form"]
        if kind != "titans" or word not in forms:
            raise UserError(
                f"mixer is '{name}', but only window takes a number and titans one of {', '.join(forms)}; give --state "
                "for the size of a state."
            )
        near = {"context": {"chunk": NEAR}, "memory": {}}.get(word, {"window": NEAR})
        return Choice(name, (kind,) * depth, options={kind: {"form": word, **near}})
    if kind in mixers.KINDS or not kind.isupper():
        if kind not in mixers.KINDS:
            known = ", ".join([*SHORT, "window:TOKENS", "titans:FORM", *mixers.KINDS])
            raise UserError(f"mixer is '{name}', but must be one of {known}, or a pattern such as MMMA.")
        return Choice(name, (kind,) * depth)
    return Choice(name, tuple(mixers.expand(kind, len(kind))))


def sized(kind: str, state: int) -> dict[str, Any]:
    """The option of a kind that sets how much it remembers; empty where it has none."""
    fields = mixers.KINDS[kind].options.__dataclass_fields__
    return next(({name: state} for name in ("state", "width") if name in fields), {})
