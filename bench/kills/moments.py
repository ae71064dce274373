"""What happens to a training at which moment of it; runs inside the process that trains.

The moments are counted, so that the same number is the same moment of each run: each hook that Lightning calls in a
callback or in the module (several for each micro-batch, in training as in validation), each checkpoint that is half
written, each row of metrics.csv that is half written, and each file that is opened for writing, moved, linked or
removed.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR
GROWS = {"os.link", "os.mkdir"}
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", *GROWS}
FILES = {"open", "half a checkpoint", *CHANGES}
FULL_DISK = 0
"""In the place of a signal: from the moment on no file can be made or filled."""
READ_ONLY = -1
"""In the place of a signal: from the moment on no file can be made, filled, moved or removed."""


def phases(names: list[str]) -> list[str]:
    """What a training is doing at each of its moments, told by the names of all: `start`, `first steps` (before any
    checkpoint), `step`, the `window` of micro-batches before one, `validation`, `last validation`, `checkpoint`
    (writing one), `end`.
    """
    found: list[str] = []
    phase, saving, stepping, parts = "start", False, False, 0
    for name in names:
        if name in ("on_train_start", "on_train_batch_start", "on_train_epoch_end") and phase != "end":
            phase = "step"
        elif name == "on_validation_start" and phase == "step":
            phase = "validation"
        elif name == "on_train_end":
            phase = "end"
        elif name in ("optimizer_step", "lr_scheduler_step"):
            stepping, parts = name == "optimizer_step", 0
        elif name == "training_step":
            parts += not stepping
        saving = name == "on_save_checkpoint" or (saving and name in FILES)
        found.append("checkpoint" if saving else "window" if phase == "step" and parts else phase)
    begun = found.index("checkpoint") if "checkpoint" in found else 0
    found[:begun] = ["first steps" if p in ("step", "window") else p for p in found[:begun]]
    if "validation" in found:
        at = last = len(found) - 1 - found[::-1].index("validation")
        while found[at] in ("validation", "checkpoint"):
            at -= 1
        found[at + 1 : last + 1] = [p if p == "checkpoint" else "last validation" for p in found[at + 1 : last + 1]]
    return found


class Moments:
    """Counts moments from 1 and, at number `at`, sends this process signal `number`, or fills or locks the disk.

    SIGTERM and SIGINT go to its whole group, as a terminal and a batch system send them. At a half-written file only
    SIGKILL and a full disk leave the half behind: a handler in Python runs when the write is over.

    Args:
        at: number of the moment; 0 for none.
        number: of the signal, `FULL_DISK` or `READ_ONLY`.
        names: a file to which the name of each moment is written; None for none.
    """

    def __init__(self, at: int = 0, number: int = signal.SIGKILL, names: Path | None = None) -> None:
        self.at, self.signal = at, number
        self.count = 0
        self._names = None if names is None else names.open("w")
        self._process, self._thread = os.getpid(), threading.get_ident()

    def passes(self, name: str, file: str = "", grows: bool = True) -> None:
        """Notes a moment, and acts when it is the one. Raises OSError for a `file` that the disk does not let grow, or
        change.
        """
        if os.getpid() != self._process or threading.get_ident() != self._thread:  # a worker of a loader, a library
            return
        self.count += 1
        if self._names:
            self._names.write(f"{name}\n")
        if self.signal in (FULL_DISK, READ_ONLY):
            number = errno.ENOSPC if self.signal == FULL_DISK else errno.EROFS
            if file and 0 < self.at <= self.count and (grows or self.signal == READ_ONLY):
                raise OSError(number, os.strerror(number), file)
        elif self.count == self.at:
            if self.signal == signal.SIGKILL:
                os.kill(self._process, self.signal)
            else:
                os.killpg(self._process, self.signal)

    def close(self) -> None:
        """Writes out the names."""
        if self._names:
            self._names.close()

    def watch(self) -> None:
        """From now on: count."""
        from lightning.pytorch.trainer import call

        from triune.core.training import lightning_fixes
        from triune.core.training.run import rows

        for name in ("_call_callback_hooks", "_call_lightning_module_hook", "_call_strategy_hook"):
            setattr(call, name, self._counted(getattr(call, name)))
        self._halve_checkpoints(lightning_fixes)
        self._halve_rows(rows.MetricsFile)
        sys.addaudithook(self._audit)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(trainer: Any, hook: str, *args: Any, **named: Any) -> Any:
            self.passes(hook)
            return function(trainer, hook, *args, **named)

        return counted

    def _halve_checkpoints(self, fixes: Any) -> None:
        save = fixes.write_checkpoint

        def halved(checkpoint: Any, path: Any) -> None:
            save(checkpoint, path)
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            self.passes("half a checkpoint", str(path))
            Path(path).write_bytes(content)

        fixes.write_checkpoint = halved

    def _halve_rows(self, file: Any) -> None:
        append = file.append

        def halved(metrics: Any, row: dict[str, Any]) -> None:
            before = metrics.path.stat().st_size if metrics.path.exists() else 0
            append(metrics, row)
            content = metrics.path.read_bytes()
            metrics.path.write_bytes(content[: (before + len(content)) // 2])
            self.passes("half a row", str(metrics.path))
            metrics.path.write_bytes(content)

        file.append = halved

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            name, _, flags = args
            writes = isinstance(flags, int) and flags & WRITING
            if writes and isinstance(name, str | bytes | os.PathLike) and "/dev/" not in os.fsdecode(name):
                self.passes("open", os.fsdecode(name))
        elif event in CHANGES:
            self.passes(event, os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else "", event in GROWS)
