"""What is no regular file: folders, devices, pipes and sockets, which no command writes in the place of a file."""

from __future__ import annotations

import stat
from pathlib import Path

from .errors import UserError


def kind_of(mode: int) -> str:
    """What a file of this `st_mode` is, where it is no regular file: "a folder", "a pipe"; else an empty string."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a device")


def refuse_special(path: Path) -> None:
    """Raises UserError when `path` exists and is no regular file: a folder, a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or a link to nothing
        return
    if what := kind_of(mode):
        raise UserError(f"'{path}' is {what}; give the name of a file to write.")
