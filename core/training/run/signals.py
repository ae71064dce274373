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
from ..guard import at_hand
from ..lightning_fixes import requeue_signal, within_window
from . import slurm


class StopOnSignal(Callback):
    """Ctrl-C finishes the optimizer step, saves, and closes the run as if training were over (exit code 130); a second
    one leaves at once. SIGTERM finishes the step, saves and leaves (exit code 143), without validation or export; so
    does the signal by which SLURM announces the end of a job (USR1), after which the job is queued again.

    Several processes stop after the same step, whichever of them has the signal: the wishes of all are added up with
    the losses, and read where the device is read anyway (on a CPU at each step, else on log steps).
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.requeue: int | None = None
        """The signal after which SLURM shall queue the job again; None outside of SLURM."""
        self._before: dict[int, Any] = {}
        self._trainer: Trainer | None = None
        self._agreed = False
        self._over = False

    @property
    def stopped(self) -> bool:
        """Whether a signal has ended the training."""
        return self.signal is not None

    @property
    def queued_again(self) -> bool:
        """Whether the job shall be queued again: the signal says it, or SLURM preempts the job."""
        if self.requeue is None or self.signal in (None, signal.SIGINT):
            return False
        return self.signal == self.requeue or slurm.preempted()

    def watch(self, trainer: Trainer) -> None:
        """Takes SLURM's signal from Lightning, which would save wherever the training stands."""
        self.requeue = requeue_signal(trainer) if slurm.job() else None
        if self.requeue is not None:
            try:
                signal.signal(self.requeue, self._receive)
            except ValueError:  # not in the main thread: whoever owns the process owns its signals
                self.requeue = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        except ValueError:
            self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            print(slurm.requeue(), flush=True)
            return
        if self.signal is not None:
            # SLURM says it twice, and what it wants is that the state is saved.
            if number == signal.SIGINT or self.requeue is None:
                _leave(128 + number)
            return
        self.signal = number
        trainer = self._trainer
        if trainer is None:  # nothing is trained yet
            raise Stopped(128 + number)
        if trainer.is_global_zero:
            rest = "press Ctrl-C again to stop at once" if number == signal.SIGINT else "a second signal stops at once"
            rest = "" if self.requeue and number != signal.SIGINT else f"; {rest}"
            print(f"\nStopping after this step and saving{rest}.", flush=True)
        module: Any = trainer.lightning_module
        if trainer.world_size > 1:
            module.wish_to_stop = self._wish(number)
        elif trainer.validating:  # between two steps
            trainer.should_stop = True

    def _wish(self, number: int) -> int:
        """A signal as a number of which sums of a thousand can be told apart."""
        return 1 if number == signal.SIGINT else 2**20 if number == self.requeue else 2**10

    def _agree(self, trainer: Trainer, module: Any) -> bool:
        """Whether all of the processes stop now."""
        if trainer.world_size == 1:
            return self.stopped
        wishes, every = module.wishes, trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if wishes is None or not (at_hand(wishes) or trainer.global_step % every == 0):
            return False
        if total := int(wishes.item()):
            requeue = self.requeue or signal.SIGTERM
            self.signal = requeue if total >= 2**20 else signal.SIGTERM if total >= 2**10 else signal.SIGINT
        self._agreed = total > 0
        return self._agreed

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not within_window(trainer) and self._agree(trainer, pl_module):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_if_terminated(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._leave_if_terminated(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()
        self._leave_if_terminated(trainer)
        self._over = True  # what is left is to judge and to export, which a job that is queued again does anew

    def _leave_if_terminated(self, trainer: Trainer) -> None:
        one = trainer.world_size == 1 or self._agreed
        if one and self.signal is not None and self.signal != signal.SIGINT:
            raise Stopped(128 + self.signal)

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
