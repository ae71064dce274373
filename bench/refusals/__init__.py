"""Inputs that cannot be used, each with the command that meets it: one sentence, exit code 2, nothing overwritten."""

from __future__ import annotations

from collections.abc import Iterator

from .made import Case


def all_cases() -> Iterator[Case]:
    """The cases of every room, in a fixed order."""
    from . import commands, images, labelled, models, newer, proteins, text, values, weights

    for room in (text, images, proteins, models, weights, values, commands, labelled, newer):
        yield from room.cases()
