"""One process at a time in a folder, or at a file: what the system locks, and unlocks however the process ends."""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from .errors import UserError
from .special import refuse_special

NAME = ".lock"
MOST = 64
"""Files of one command that are claimed: each takes an open file."""


class Lock:
    """The lock of a folder, which one process at a time holds. Constructing touches nothing.

    Args:
        folder: that exists when it is taken.
        name: of the file in it.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.path = folder / name
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
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):  # a file system without locks
                    os.close(file)
                    return
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


_CLAIMED: dict[tuple[int, Path], Lock] = {}
"""What is written, by the number of the process, whose forks hold nothing, and the real path."""


def claim(paths: Sequence[Path]) -> None:
    """Lets no other process write these files or folders until `give_back`, or until this one ends; of more than `MOST`
    only the first ones.

    The lock of `x.csv` is a file `.x.csv.lock` beside it, which vanishes when it is given back. Where its folder is not
    there yet, it lies in the next one above that is.

    Raises:
        UserError: another process writes one of them.
        OSError: nothing can be written there; it has the name of the path.
    """
    for path in paths[:MOST]:
        key = _, place = os.getpid(), Path(os.path.realpath(path))
        if key in _CLAIMED:
            continue
        above = next(parent for parent in place.parents if parent.is_dir())
        name = "-".join(place.relative_to(above).parts)
        if len(os.fsencode(name)) > 200:
            name = hashlib.sha256(os.fsencode(name)).hexdigest()
        lock = Lock(above, f".{name}.lock")
        try:
            lock.take(
                lambda owner: (
                    f"'{path}' is being written by another process{owner}; wait until it has ended, stop it, or give"  # noqa: B023
                    " another name."
                )
            )
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
        _CLAIMED[key] = lock


def give_back() -> None:
    """Gives back all that was claimed."""
    for key in [key for key in _CLAIMED if key[0] == os.getpid()]:
        _CLAIMED.pop(key).release()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Claims one path for a while; see `claim`."""
    claim([path])
    try:
        yield
    finally:
        if lock := _CLAIMED.pop((os.getpid(), Path(os.path.realpath(path))), None):
            lock.release()


atexit.register(give_back)
