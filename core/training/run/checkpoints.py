"""Saving a run: the best weights and the last state."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ...checkpoints.origin import of_options
from ...errors import Stopped, UserError
from .. import sharded
from ..guard import ADVICE, weights_are_finite
from ..lightning_fixes import validation_follows, within_window
from ..sharded import REST
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

    A training that stops early writes `last.ckpt` before it validates once more, and not after: resumed, it goes on as
    one that did not stop. Where that validation finds better weights, the best so far wait in `planned.ckpt`.

    Args:
        run: the folder.
        telemetry: told to leave the time of saving out of its rates.
    """

    def __init__(self, run: RunFolder, telemetry: Telemetry):
        self.run = run
        self.telemetry = telemetry
        self.config = ""
        """All options as YAML; a checkpoint holds them, because config.yaml may be changed between two trainings."""
        self.best_value = [math.inf, math.inf]  # the metric, negated where the highest is best, and `val_loss`
        self.best_step: int | None = None
        self.forget_best = False
        """Set where the file of the best weights is damaged: the next validation then writes a new one."""
        self.origin: str | None = None
        """Checksum of the options that the run began with, in both files: one of another run is told from its own."""
        self._saved_step = -1
        self._stop = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        if self.origin is None:
            self.origin = of_options(self.config)
        if isinstance(pl_module, TaskModule):
            pl_module.origin = self.origin
        if trainer.is_global_zero:
            _put_back(self.run)
        lost = self.best_step is not None and (self.forget_best or not self.run.best.exists())
        if trainer.strategy.broadcast(lost):
            if trainer.is_global_zero and not self.forget_best:
                print(f"{self.run.best} is missing; the next validation writes a new one.", flush=True)
            self.best_value, self.best_step = [math.inf, math.inf], None

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
                    planned = trainer.global_step == self._saved_step
                    if planned and trainer.is_global_zero and not self.run.best.is_dir():
                        _keep(self.run.best, self.run.planned)
                    self._save(trainer, self.run.best, weights_only=True, planned=planned)
            if trainer.global_step != self._saved_step:
                self._save_last(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if within_window(trainer):
            # A wish to stop (of a time limit) is granted at the next optimizer step: the gradients of the micro-batches
            # so far are in no checkpoint.
            self._stop, trainer.should_stop = self._stop or trainer.should_stop, False
            return
        # Saved here rather than in on_train_end, where Lightning has closed the epoch: a run that stops within an epoch
        # would go on with the next one.
        over = _is_over(trainer)
        if self._stop or over:
            # Makes Lightning validate now, wherever its interval stands: with a falling learning rate the last weights
            # are mostly the best.
            trainer.should_stop, self._stop = True, False
        # A run that is over is saved after its last validation: killed within it, it goes on from before, and judges
        # the last weights then.
        if trainer.should_stop and trainer.global_step != self._saved_step:
            if over and validation_follows(trainer):
                return
            with self.telemetry.pause():
                self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Stopped within a validation, which the resumed run begins again; but not one after the last step, where the
        # resumed run would have nothing to do, nor before the training has begun.
        began = self._saved_step >= 0
        if (
            isinstance(exception, Stopped) and began
            and trainer.global_step != self._saved_step and not _is_over(trainer)
        ):  # fmt: skip
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        self._save(trainer, self.run.last, weights_only=False)
        self._saved_step = trainer.global_step

    def _save(self, trainer: Trainer, path: Path, weights_only: bool, planned: bool = False) -> None:
        if not weights_are_finite(trainer.lightning_module):
            raise UserError(
                f"Weights are not finite after step {trainer.global_step}, so that {path} is not written; what was"
                f" saved before stays: {ADVICE}."
            )
        part = path.with_name(path.stem + ".part.ckpt")
        if trainer.is_global_zero and part.is_dir():  # of one that was killed
            shutil.rmtree(part)
        trainer.strategy.barrier("Checkpoints")
        try:
            trainer.save_checkpoint(part, weights_only=weights_only)
        except OSError:
            if part.is_file():  # on a full disk its first part would lie in the way of all else
                part.unlink()
            raise
        if trainer.is_global_zero:
            _replace(part, path, self.run, planned)
        trainer.strategy.barrier("Checkpoints")

    def state_dict(self) -> dict[str, Any]:
        found = {"best_value": self.best_value, "best_step": self.best_step, "config": self.config}
        return found | {"origin": self.origin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self.origin = state_dict.get("origin", "")  # empty in the checkpoints of earlier versions, which have none


def _keep(path: Path, name: Path) -> None:
    """Lets `name` be what `path` is now, before that is replaced; without it where files cannot be linked."""
    spare = name.with_name(f"{name.stem}.part.ckpt")
    with contextlib.suppress(OSError):
        spare.unlink(missing_ok=True)
        os.link(path, spare)
        if name.is_dir():
            _remove(name)
        spare.replace(name)


def _replace(part: Path, path: Path, run: RunFolder, planned: bool = False) -> None:
    """Moves a new checkpoint to its place; what was last becomes previous.

    A folder neither replaces another nor is replaced by a file, so it goes aside first. Ended in between, the weights
    of before are still there (`_put_back`).

    Args:
        planned: folders of best weights stay as `planned.ckpt`.
    """
    if not (part.is_dir() or path.is_dir()):
        if path == run.last:
            _keep(path, run.previous)
        part.replace(path)
        return
    aside = run.previous if path == run.last else run.planned if planned and path.is_dir() else run.aside
    if path.exists():
        _remove(aside)
        path.replace(aside)
    part.replace(path)
    _remove(run.aside)


def _put_back(run: RunFolder) -> None:
    """Lets the best weights be those that the last state knows of, after a training that stopped or was killed."""
    if run.planned.exists():
        _remove(run.best)
        run.planned.replace(run.best)
    if run.aside.exists():
        if run.best.exists():
            _remove(run.aside)
        else:
            run.aside.replace(run.best)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_over(trainer: Trainer) -> bool:
    """Whether all steps that were asked for are taken."""
    return trainer.global_step == total_steps(trainer)


def recorded_config(run: RunFolder) -> str | None:
    """The options as YAML that the newest checkpoint was trained with; None where it does not say (one of an earlier
    version, one in a folder).
    """
    content = _newest(run)
    return (content["callbacks"][Checkpoints.__qualname__].get("config") or None) if content else None


def recorded_origin(run: RunFolder) -> str | None:
    """The origin that the newest checkpoint holds; None where it does not say."""
    return (_newest(run) or {}).get("origin")


def _newest(run: RunFolder) -> dict[str, Any] | None:
    """What the newest checkpoint holds, tensors without their values; None where none can be read."""
    for path in (run.last, run.previous):
        path = path / REST if path.is_dir() else path
        if not path.is_file():
            continue
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as file:  # a damaged one is reported by `damage`
            file.read(next(name for name in file.namelist() if name.endswith("/data.pkl")))  # compares its checksum
            content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
            if Checkpoints.__qualname__ in content["callbacks"]:
                return content
    return None


def another_run(one: Path, other: Path) -> bool:
    """Whether two good checkpoints began with different options; False where one does not say (an earlier version)."""
    found = [origin_of(path) for path in (one, other)]
    return all(found) and found[0] != found[1]


def origin_of(path: Path) -> str | None:
    """The origin that a good checkpoint holds; None or empty for one of an earlier version."""
    file = path / REST if path.is_dir() else path
    return torch.load(file, map_location="meta", weights_only=True, mmap=path.is_file()).get("origin")


def recorded_data(path: Path, data: Any) -> dict[str, Any]:
    """The settings of the order of training that a good checkpoint holds for a data module; empty where it has none."""
    file = path / REST if path.is_dir() else path
    content = torch.load(file, map_location="meta", weights_only=True, mmap=path.is_file())
    return content.get(type(data).__qualname__, {}).get("settings", {})


def put_aside(path: Path) -> None:
    """Keeps a damaged checkpoint under another name, so that it neither passes for a good one nor replaces one."""
    if path.exists():
        path.replace(path.with_name(f"{path.stem}.damaged.ckpt"))


def damage(path: Path) -> str:
    """What is wrong with a checkpoint file, in words; empty for a good one. Reads all of it, but keeps nothing.

    PyTorch writes a checksum beside every tensor and does not look at it when it reads.
    """
    if path.is_dir():
        return sharded.damage(path)
    if not path.is_file():
        return "it is no regular file"
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            if bad := file.testzip():
                return f"{bad} does not match its checksum"
            # PyTorch's reader gives memory that nobody wrote for a member that is marked as a folder, and of two of one
            # name `testzip` reads only one.
            if len({member.filename for member in members}) < len(members) or any(m.external_attr for m in members):
                return "its list of contents is damaged"
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except zipfile.BadZipFile:
        return "it is cut short or no checkpoint"
    except Exception:  # whatever a file made by somebody else raises
        return "it holds something else than tensors and plain values"
    return "" if isinstance(content, dict) and "state_dict" in content else "it holds no weights"
