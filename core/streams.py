"""Standard streams that may be closed, left by their reader, or full. Standard library only."""

from __future__ import annotations

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any


class Output(FileIO):
    """The standard output. Where the work is `lasting`, its reader may leave, and it goes nowhere from then on."""

    lasting = True
    before: TextIOWrapper | None = None
    """What stood in its place, which would close the file when nobody held it."""

    def write(self, text: Any) -> int | None:
        try:
            return super().write(text)
        except BrokenPipeError:
            if not self.lasting:
                raise
            discard(self.fileno())
            return len(text)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


def use_streams(lasting: bool = True) -> None:
    """Makes the standard streams fit for work of hours: closed ones (`>&-`) go nowhere, and a character that a terminal
    lacks is no reason to stop; nor is, where the work is `lasting`, a reader that leaves (`| head`).
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # else the next file that is opened would get this number, and what libraries print
            opened = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(opened, "w" if number else "r"))  # noqa: SIM115
        elif number and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is not TextIOWrapper:
        return
    stream, buffer = sys.stdout, sys.stdout.buffer
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is nothing between
    if type(raw) is FileIO and stream.name == "<stdout>":
        stream.flush()
        raw = Output(stream.fileno(), "w", closefd=False)
        raw.before = stream
        sys.stdout = TextIOWrapper(
            raw if isinstance(buffer, FileIO) else BufferedWriter(raw),  # pyright: ignore[reportArgumentType]
            stream.encoding, "backslashreplace", line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )  # fmt: skip
    if isinstance(raw, Output):
        raw.lasting = lasting


def flushes(stream: Any) -> bool:
    """Whether what was printed can be written."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


def discard(number: int) -> None:
    """Lets a stream go nowhere, what Python still wants to write at its exit included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
