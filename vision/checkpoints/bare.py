"""Files of weights without a config: what their shapes leave open is read from a file beside them, or is that of the
published models of exactly these shapes. What was taken is said, and nothing else is guessed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.checkpoints.source import Source
from ...core.errors import UserError
from ...core.files import few, read_json
from ..preprocessing import Preprocessing

SETTINGS = ("num_heads", "labels", "preprocessing")
"""What a file beside weights may say."""
Shape = tuple[int, int, int]
"""Width, layers, hidden width of the feed-forward."""


def beside(source: Source) -> Path:
    """Where settings of a file of weights are looked for: `vit.pth.json` for `vit.pth`."""
    assert source.file is not None
    return Path(f"{source.file}.json")


def said(source: Source) -> dict[str, Any]:
    """What the file beside the weights says, if there is one. Raises UserError for what no such file can say."""
    path = beside(source)
    if not path.is_file():
        return {}
    found = read_json(path)
    if odd := [name for name in found if name not in SETTINGS]:
        raise UserError(
            f"'{path}' says {few(odd)}, but beside a file of weights it may say only {', '.join(SETTINGS)}; the other "
            "settings are in the weights."
        )
    heads = found.get("num_heads", 1)
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise UserError(f"num_heads in '{path}' is {heads!r}, but must be a positive integer.")
    return found


def heads_of(source: Source, library: str, shape: Shape, known: Mapping[Shape, tuple[str, int]]) -> int:
    """Heads of the model in a file, which no shape of a weight depends on.

    Args:
        source: the file.
        library: whose it is, for messages.
        shape: of its model.
        known: name and heads of the published models, by their shape.

    Raises:
        UserError: nothing beside the file says it, and there is no published model of this shape.
    """
    dim, depth, hidden = shape
    given = said(source).get("num_heads")
    if given is not None:
        if dim % given:
            raise UserError(f"num_heads in '{beside(source)}' is {given}, but must divide the width {dim}.")
        note(source, f"{given} heads, as '{beside(source).name}' says")
        return given
    if shape not in known:
        raise UserError(
            f"'{source.name}' is a {library} {dim} wide with {depth} layers and {hidden} hidden units, which is none "
            "of the published models, and a file of weights does not say how many heads it has; write them into "
            f"'{beside(source).name}' beside it, such as {{\"num_heads\": {max(dim // 64, 1)}}}."
        )
    name, heads = known[shape]
    note(
        source,
        f"{heads} heads, as {name} has, whose shapes it has (if yours has another number, write it into "
        f"'{beside(source).name}' beside it: {{\"num_heads\": …}})",
    )
    return heads


def square(source: Source, positions: int) -> int:
    """Rows of a square grid of so many positions. Raises UserError when there is none."""
    rows = round(positions**0.5)
    if rows < 1 or rows * rows != positions:
        raise UserError(
            f"'{source.name}' has a table of {positions} positions of patches, which are no square grid, and a file of "
            "weights does not say how many rows it has; models of such images cannot be read without their config."
        )
    return rows


def prepared(source: Source, usual: Preprocessing, whose: str) -> Preprocessing:
    """How images become inputs: as the file beside the weights says, or as is usual for them, which is said."""
    given = said(source).get("preprocessing") if source.file else source.config.get("preprocessing")
    if given is not None:
        return Preprocessing.from_dict(given)
    where = f"'{beside(source).name}' beside it" if source.file else "its config.json"
    note(source, f"{described(usual)}, as is usual for {whose} (others can be said as preprocessing in {where})")
    return usual


def described(p: Preprocessing) -> str:
    """Preprocessing in a few words."""
    numbers = [" ".join(f"{value:.4g}" for value in values) for values in (p.mean, p.std)]
    kept = "" if p.crop_pct == 1 else f", of which the middle {p.crop_pct:.0%} is kept"
    return f"images resized by {p.interpolation} ({p.resize}){kept}, mean {numbers[0]} and deviation {numbers[1]}"


def note(source: Source, what: str) -> None:
    """Says on the standard error what was taken for a checkpoint that does not say it."""
    print(f"note: '{source.name}' was read with {what}.", file=sys.stderr)
