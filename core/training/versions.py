"""Versions of the code that decides by chance what a training batch holds, so that no run goes on with other draws.

A batch is a function of its position and of this code. Whoever changes what it draws raises the version beside it;
`tests/test_draws.py` holds each version against numbers that it drew.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UserError

FIRST = 1
"""Of what no version is recorded for: checkpoints of before there were versions."""


def other_version(newer: bool, drew: str) -> UserError:
    """The refusal of a run that another version of triune began.

    Args:
        newer: than this one.
        drew: what it drew in another way.
    """
    return UserError(
        f"This run began with {'a newer' if newer else 'an earlier'} version of triune, which drew {drew} in another"
        " way, so its batches would be others; continue it with that version, or start a new run (--model.pretrained"
        " takes the weights of one)."
    )


def check_draws(saved: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Raises UserError where a run would draw in another way than it began.

    Args:
        saved: versions by what is drawn ("the hidden tokens"), as its checkpoint has them.
        now: those of this code.
    """
    for drew in {**now, **saved}:
        before, version = saved.get(drew, FIRST), now.get(drew, FIRST)
        if before != version:
            raise other_version(before > version, drew)
