"""Ending a training by a signal, between two optimizer steps."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ...errors import Stopped
from ..lightning_fixes import within_window


class StopOnSignal(Callback):
    """Ctrl-C finishes the optimizer step, saves, and closes the run as if training were over (exit code 130); a second
    one leaves at once. SIGTERM finishes the step, saves and leaves (exit code 143), without validation or export.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    @property
    def stopped(self) -> bool:
        """Whether a signal has ended the training."""
        return self.signal is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        except ValueError:  # not in the main thread: whoever owns the process owns its signals
            self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            _leave(128 + number)
        trainer = self._trainer
        assert trainer is not None
        self.signal = number
        if trainer.is_global_zero:
            rest = "press Ctrl-C again to stop at once" if number == signal.SIGINT else "a second signal stops at once"
            print(f"\nStopping after this step and saving; {rest}.", flush=True)
        if trainer.validating:  # between two steps
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.stopped and not within_window(trainer):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_if_terminated()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._leave_if_terminated()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()
        self._leave_if_terminated()

    def _leave_if_terminated(self) -> None:
        if self.signal == signal.SIGTERM:
            raise Stopped(128 + signal.SIGTERM)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _leave(code: int) -> None:
    """Ends the process at once. Files are written whole or not at all, so that none is left half written."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h\n")  # the progress line hides the cursor
    sys.stdout.flush()
    os._exit(code)
