"""What a question costs, said before it is spent, and how parts are named on the command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError
from ..core.lens.ablate import Part
from ..core.subject import Subject

SHOWN = 12
"""Heads in a table."""
CAUTION = "Weights say what is read, effects what is used."


@dataclass
class Budget:
    """Seconds that a question may take, and how it was announced.

    Args:
        seconds: at most.
        spent: what the announced passes take, in seconds, so far.
    """

    seconds: float
    spent: float = 0.0

    def announce(self, what: str, passes: int, each: float, less: str) -> None:
        """Says what the next passes cost, or refuses them. `less` is what to ask for instead."""
        need = passes * each
        self.spent += need
        if self.spent > self.seconds:
            raise UserError(
                f"{what} takes {passes:,} passes of {each:.2g} s, in all about {duration(self.spent)}, but --budget is "
                f"{duration(self.seconds)}; allow more, or {less}."
            )
        print(f"{what}: {passes:,} passes of {each:.2g} s, about {duration(need)}.", file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds, or minutes from two on."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What `run` returns, and the seconds of a second call, since the first one prepares much."""
    run()
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def signed(r: float) -> str:
    return "undefined (too few values, or one side all equal)" if r != r else f"{r:+.2f}"


def part_named(subject: Subject, word: str) -> Part:
    """`5.3` is head 3 of layer 5, `5.hidden:17` a neuron, `5.ffn_out` a branch. Raises UserError for other words."""
    place, _, number = word.strip().partition(":")
    layer, _, kind = place.partition(".")
    if not number and layer.isdigit() and kind.isdigit():
        subject.check_head(int(layer), int(kind))
        if (int(layer), int(kind)) not in subject.heads():
            raise UserError(f"Layer {layer} has no attention, so it has no heads to ablate.")
        return subject.heads()[int(layer), int(kind)]
    if number and not number.isdigit():
        raise UserError(
            f"'{word}' is no part; a head is LAYER.HEAD, a neuron LAYER.hidden:NUMBER, a branch LAYER.POINT."
        )
    return place, int(number) if number else None
