"""What a training takes, measured on a few of its real steps: time, peak memory, work, and the largest batch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..data import Batches
from . import machine
from .flops import count_step, on_fake_tensors
from .live import Live
from .progress import Progress
from .session import Session
from .telemetry import total_steps

WARM, LEAST, MOST, SECONDS = 3, 6, 400, 8.0
"""Steps before the measured ones; the fewest and most of these; and the time after which there are enough."""
JUDGED = 8
"""Batches of the validation that are measured, from all over it."""
ROOM = 0.95
"""Part of the free memory that a batch may fill."""


@dataclass
class Estimate:
    """What a training will take; None where that is not known.

    Args:
        parameters: numbers in the model.
        step_flops: of forward and backward pass of an optimizer step, by the convention of flops.py.
        step_seconds: of an optimizer step, with its data.
        steps: optimizer steps of the whole training.
        validations: how many of these, and `validation_seconds` each takes, with the checkpoint.
        seconds: of the whole training, validations included.
        memory_gb: peak, as the training will show it, in 1e9 bytes.
        free_gb: that it may use.
        batch_size, largest_batch: of a device, and the largest for which memory suffices.
    """

    parameters: int
    step_seconds: float
    validations: int | None
    validation_seconds: float
    steps: int | None
    seconds: float | None
    memory_gb: float | None
    free_gb: float | None
    step_flops: int | None = None
    batch_size: int | None = None
    largest_batch: int | None = None


class Probe(Callback):
    """Times the steps of a training and ends it when there are enough of them.

    Args:
        clock: seconds, monotonic.
        warm: steps before the measured ones.
        least: the fewest measured ones, unless they take eight times `seconds`.
        seconds: after which there are enough of them.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        warm: int = WARM,
        least: int = LEAST,
        seconds: float = SECONDS,
    ) -> None:
        self.clock, self.warm, self.least, self.seconds = clock, warm, least, seconds
        self.batch: Any = None
        """The first batch of training, on the device."""
        self.steps: list[float] = []
        self.judged: list[float] = []
        """Seconds of optimizer steps, and of batches of validation."""
        self.saving = 0.0
        self.validation_batches = 0
        self.batches: float = 0
        self._spent, self._mark = 0.0, 0.0
        self._step = 0
        self._begin: float | None = None
        self._over: float | None = None
        self._judging = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.batch is None:
            self.batch = batch
            self.batches = trainer.num_training_batches
            self._step, self._mark, self._begin = trainer.global_step, self.clock(), self.clock()
        if self._over is not None:  # what came between does not belong to the step
            self._over, self._mark = None, self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = self.clock()
        self._spent, self._mark = self._spent + now - self._mark, now
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.steps.append(self._spent)
        self._spent = 0.0
        assert self._begin is not None
        measured, spent = len(self.steps) - self.warm, now - self._begin
        enough = measured >= MOST or (measured >= self.least and spent >= self.seconds)
        if enough or spent >= 8 * self.seconds:
            trainer.should_stop = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._judging = self.clock()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not trainer.sanity_checking:
            self.judged.append(self.clock() - self._judging)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over = self.clock()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._over is not None:
            self.saving = self.clock() - self._over

    @property
    def step_seconds(self) -> float:
        """The mean of the measured steps, of all where these are few; those that something held up are left out."""
        steps = sorted(self.steps[self.warm :] if len(self.steps) > self.warm else self.steps[-1:])
        kept = steps[: max(1, math.ceil(0.95 * len(steps)))]
        return sum(kept) / len(kept)


def estimate(session: Session) -> Estimate:
    """Trains a little, in the run folder of the session, and says what the whole training takes.

    Trainer, model and data of the session are used up.

    Raises:
        UserError: the training cannot start.
    """
    probe, trainer, model = Probe(), session.trainer, session.model
    free = free_memory(session.device)
    total = _sample_validation(session, probe)
    take_steps(session, probe)
    steps, memory = total_steps(trainer), machine.peak_memory(session.device)
    validations = None if steps is None else _validations(trainer, steps, probe.batches)
    mean = sum(probe.judged) / len(probe.judged) if probe.judged else 0.0
    validation = mean * total() + probe.saving
    seconds = None if steps is None or validations is None else steps * probe.step_seconds + validations * validation
    found = Estimate(
        sum(p.numel() for p in model.parameters()), probe.step_seconds, validations, validation, steps, seconds, memory,
        free,
    )  # fmt: skip
    _add_work(found, session, probe.batch)
    return found


def take_steps(session: Session, probe: Probe) -> None:
    """Trains, in the run folder of the session, until the probe has seen enough."""
    trainer = session.trainer
    before = [callback for callback in trainer.callbacks if not isinstance(callback, Progress)]  # pyright: ignore
    trainer.callbacks = [*before[:1], probe, *before[1:]]  # pyright: ignore[reportAttributeAccessIssue]
    trainer.loggers = []
    trainer.fit_loop.epoch_loop.min_steps = trainer.fit_loop.min_epochs = None
    trainer.fit(session.model, session.data)


def _sample_validation(session: Session, probe: Probe) -> Callable[[], int]:
    """Lets validation take a few batches from all over it; returns what says how many there are after all."""
    data, trainer, make = session.data, session.trainer, session.data.val_dataloader
    limit: Any = trainer.limit_val_batches
    trainer.limit_val_batches = 1.0 if limit else 0
    trainer.num_sanity_val_steps = 0
    count = [0]

    def sampled() -> Any:
        loader = make()
        if not isinstance(loader, Batches):
            return loader
        draws = list(loader.order)
        number = min(len(draws), limit) if isinstance(limit, int) else int(len(draws) * limit)
        count[0], draws = number, draws[:number]
        loader.order = draws[:: max(1, math.ceil(number / JUDGED))]  # pyright: ignore[reportAttributeAccessIssue]
        return loader

    data.val_dataloader = sampled  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: count[0]


def _validations(trainer: Any, steps: int, batches: float) -> int:
    """Validations of a training of so many optimizer steps, with the one at its end."""
    done, every = steps * trainer.accumulate_grad_batches, trainer.val_check_batch
    if not trainer.limit_val_batches or every in (None, 0):
        return 0
    if trainer.check_val_every_n_epoch is None or not math.isfinite(batches):
        whole, rest = divmod(done, every) if math.isfinite(every) else (0, 1)
        return int(whole) + bool(rest)
    epochs, rest = divmod(done, batches)
    per_epoch = int(batches // every) if math.isfinite(every) else 0
    found = int(epochs) // trainer.check_val_every_n_epoch * per_epoch + int(rest // every)
    return found + bool(rest % every or (not rest and (not per_epoch or batches % every)))


# --- memory -----------------------------------------------------------------------------------------------------------


def own_memory() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def free_memory(device: torch.device) -> float | None:
    """What this process may use in 1e9 bytes, with what it has: of the GPU, or of the machine and its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device)) / 1e9
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        own = own_memory()
        free = int(lines["MemAvailable"].split()[0]) * 1024 + own
    except (OSError, KeyError, ValueError):
        return None
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if most != "max":
            free = min(free, int(most) - used + own)
    except (OSError, ValueError):
        pass
    return free / 1e9


def batch_bytes(module: Any, batch: Any, rows: int, more: int) -> int:
    """Most bytes alive at once in forward and backward pass on a batch of `more` rows, made of one of `rows`.

    Runs on fake tensors, as `count_step` does, and raises what that raises.
    """

    def grown(value: Tensor) -> Tensor:
        shape = (more, *value.shape[1:]) if value.dim() and value.shape[0] == rows else value.shape
        return torch.empty(shape, dtype=value.dtype, device="meta")

    live = Live()
    on_fake_tensors(module, tree_map_only(Tensor, grown, batch), live)
    return live.most


def _add_work(found: Estimate, session: Session, batch: Any) -> None:
    """Adds FLOPs and the largest batch, where they can be computed without running the model."""
    module, trainer = session.model, session.trainer
    module.train()
    # Rows of a batch: what all its tensors have in common.
    sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    rows = max(set(sizes), key=sizes.count) if sizes else None
    try:
        found.step_flops = count_step(module, batch) * trainer.accumulate_grad_batches * trainer.world_size
        if not rows or found.free_gb is None or found.memory_gb is None:
            return
        found.batch_size = rows
        one, two = (batch_bytes(module, batch, rows, factor * rows) for factor in (2, 4))
    except Exception:  # any operator may lack a fake form; a missing number is no reason to stop
        return
    each = (two - one) / (2 * rows)
    free = ROOM * found.free_gb * 1e9 - found.memory_gb * 1e9
    if each > 0:
        found.largest_batch = max(0, rows + math.floor(free / each))
