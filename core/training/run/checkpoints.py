"""Saving a run: the best weights, the last state, and a clean stop on Ctrl-C."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from ..task import TaskModule
from .folder import RunFolder
from .telemetry import Telemetry, total_steps


class Checkpoints(Checkpoint):
    """Writes `checkpoints/best.ckpt` (the best weights) and `checkpoints/last.ckpt` (everything).

    Best is the lowest `val_loss`, or what the module's `monitor` says: a metric and "min" or "max", such as
    ("val_top1", "max"). Of equal values the one with the lower `val_loss` is better, then the earlier one.

    Both after each validation, `last.ckpt` also after the last step. A file is complete or not there: it is written
    beside its place and then moved. Lightning calls checkpoint callbacks after all others, so their states are up to
    date.

    Args:
        run: the folder.
        telemetry: told to leave the time of saving out of its rates.
    """

    def __init__(self, run: RunFolder, telemetry: Telemetry):
        self.run = run
        self.telemetry = telemetry
        self.best_value = [math.inf, math.inf]  # the metric, negated where the highest is best, and `val_loss`
        self.best_step: int | None = None
        self._saved_step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, TaskModule)
        metric, mode = pl_module.monitor
        found = trainer.callback_metrics
        with self.telemetry.pause():
            if metric in found:
                value = float(found[metric]) * (-1 if mode == "max" else 1)
                both = [value, float(found.get("val_loss", 0.0))]
                if not math.isnan(value) and both < self.best_value:
                    self.best_value, self.best_step = both, trainer.global_step
                    self._save(trainer, self.run.best, weights_only=True)
            self._save_last(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Saved here rather than in on_train_end, where Lightning has closed the epoch: a run that stops within an epoch
        # would go on with the next one.
        if trainer.global_step == total_steps(trainer):
            # Makes Lightning validate now, wherever its interval stands: with a falling learning rate the last weights
            # are mostly the best.
            trainer.should_stop = True
        if trainer.should_stop and trainer.global_step != self._saved_step:
            with self.telemetry.pause():
                self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        self._save(trainer, self.run.last, weights_only=False)
        self._saved_step = trainer.global_step

    def _save(self, trainer: Trainer, path: Path, weights_only: bool) -> None:
        part = path.with_name(path.stem + ".part.ckpt")
        trainer.save_checkpoint(part, weights_only=weights_only)
        if trainer.is_global_zero:
            # Sharded checkpoints are folders, and a folder does not replace another.
            if path.is_dir():
                shutil.rmtree(path)
            part.replace(path)
        trainer.strategy.barrier("Checkpoints")

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]


class StopOnInterrupt(Callback):
    """The first Ctrl-C lets the step finish and stops as if training were over; the second one stops at once."""

    def __init__(self) -> None:
        self.stopped = False
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            trainer.should_stop = True
            signal.signal(signal.SIGINT, self._before)
            if trainer.is_global_zero:
                print("\nStopping after this step and saving; press Ctrl-C again to stop at once.", flush=True)

        try:
            self._before = signal.signal(signal.SIGINT, stop)
        except ValueError:  # not in the main thread: whoever owns the process owns its signals
            self._before = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
