"""The ranges of the options of `ImageData`."""

from __future__ import annotations

from typing import Any

from ...core.errors import UserError

MOST_PIXELS = 16_384
"""Largest side of the images that a model sees."""


def check_options(data: Any) -> None:
    """Raises UserError for an option that is out of its range."""
    if not 0 < data.val_fraction < 1:
        raise UserError(f"data.val_fraction is {data.val_fraction}, but must lie between 0 and 1 (such as 0.1).")
    for name, value, least in (
        ("batch_size", data.batch_size, 1),
        ("workers", data.workers or 0, 0),
        ("seed", data.seed, 0),
    ):
        if value < least:
            raise UserError(f"data.{name} is {value}, but must be at least {least}.")
    if not 0 < data.max_megapixels <= 10_000:
        raise UserError(f"data.max_megapixels is {data.max_megapixels}, but must be above 0 and at most 10,000.")
    if data.channels not in (None, 1, 3):
        raise UserError(f"data.channels is {data.channels}, but must be 1 (grey) or 3 (colour).")
    sides = [data.image_size] if isinstance(data.image_size, int) else list(data.image_size or [1])
    if len(sides) > 2 or min(sides) < 1 or max(sides) > MOST_PIXELS:
        raise UserError(
            f"data.image_size is {data.image_size}, but must be one or two numbers from 1 to {MOST_PIXELS:,}."
        )
    if data.memory < 0:
        raise UserError(f"data.memory is {data.memory:g}, but must be at least 0.")
