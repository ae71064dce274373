"""Long work outside training: where its results are kept, and how it shows that it moves."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import UserError


def cache_folder(chosen: str | None) -> Path:
    """The folder for caches: `chosen`, else $TRIUNE_CACHE, else `triune` in the user's cache folder.

    Raises:
        UserError: what stands there is no folder.
    """
    if named := chosen or os.environ.get("TRIUNE_CACHE"):
        folder = Path(named).expanduser()
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(
                f"The cache '{named}' is no folder, but must be one, or a new name; give another with --data.cache"
                " (--cache of probe)."
            )
        return folder
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "triune"


def blocks(label: str, count: int, unit: str = "rows", size: int = 1 << 16) -> Iterator[slice]:
    """Yields slices of `count` things, `size` of them each, with a bar where there are many."""
    if count <= 4 * size:
        yield from (slice(start, start + size) for start in range(0, count, size))
        return
    with progress(label, count, unit) as advance:
        for start in range(0, count, size):
            yield slice(start, start + size)
            advance(min(size, count - start))


@contextlib.contextmanager
def progress(label: str, total: int, unit: str = "", scale: float = 1) -> Iterator[Callable[[float], None]]:
    """Shows a bar on a terminal; elsewhere one line, and only for what took longer than two seconds.

    `scale` divides the total for that line: 1e6 and the unit MB for bytes. Yields a function that takes how much more
    is done.
    """
    if sys.stderr.isatty() and total:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda step: bar.advance(task, step)
        return
    start = time.monotonic()
    yield lambda _: None
    if (seconds := time.monotonic() - start) > 2:
        amount = f"{total:,}" if scale == 1 else f"{total / scale:,.1f}"
        print(f"{label}: {amount} {unit}".rstrip() + f" in {seconds:.1f} s", file=sys.stderr)
