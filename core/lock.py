"""One process at a time in a folder: a file that the system locks, and unlocks when the process ends in any way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from .errors import UserError
from .files import refuse_special

NAME = ".lock"


class Lock:
    """The lock of a folder, which one process at a time holds. Constructing touches nothing.

    Args:
        folder: that exists when it is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = None  # no file object, which would be closed with this one

    def take(self, refusal: Callable[[str], str]) -> None:
        """Takes the lock, if this process has not; Windows has none.

        Args:
            refusal: makes the sentence for the case that another process holds it, of " (123)", the number of that
                process, or of nothing.

        Raises:
            UserError: `refusal`, or what should be the lock is no regular file.
        """
        if fcntl is None or self._file is not None:
            return
        refuse_special(self.path)
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # Not `flock`, which the processes of a loader would inherit, and hold when this one is killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                owner = os.read(file, 20).decode(errors="replace").strip()
                os.close(file)
                raise UserError(refusal(f" ({owner})" if owner else "")) from None
            if _is_at(file, self.path):
                break
            os.close(file)  # whoever held it has just removed it
        os.truncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        self._file = file

    def release(self) -> None:
        """Gives the lock back and removes its file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
