"""True numbers about a training run, without making the host wait for the device between log steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...experts import utilisation
from ..lightning_fixes import across, copies, own_part
from . import machine
from .flops import count_step
from .rows import MetricsFile

# A loader that pads every batch to another length would otherwise be counted for ever; then the share is unknown.
MOST_SHAPES = 16


@dataclass
class Snapshot:
    """What was known at the last log step; None means not known (yet). One row of `metrics.csv`."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 0
    units: int = 0
    """Real units (tokens, images, residue pairs) that losses have been computed on, all ranks, from the start."""
    seconds: float = 0.0
    """Wall time since training started, everything included; continues over a resumed run."""
    loss: float | None = None
    """Mean loss per real unit over the steps since the last row."""
    val_loss: float | None = None
    lr: float | None = None
    """Learning rate of the optimizer's first group."""
    grad_norm: float | None = None
    """Norm of the last gradient before clipping."""
    skipped: int = 0
    """Steps so far that changed nothing, because their loss or gradient was not finite."""
    units_per_second: float | None = None
    """Real units per second, all ranks, without warm-up, validation and checkpoints; waiting for data counts."""
    slots_per_second: float | None = None
    """The same for all positions, padding included."""
    padding: float | None = None
    """Share of positions that carry no loss: 1 - real / slots."""
    mfu: float | None = None
    """Share of the device's peak FLOP/s (see flops.py for what counts); None where peak or count is unknown."""
    data_wait: float | None = None
    """Share of the time that the host waited for the next batch."""
    memory_gb: float | None = None
    """Highest memory use so far in 1e9 bytes: PyTorch's on a GPU, the process's on a CPU."""
    eta: float | None = None
    """Seconds of training left at the present rate, validation not included."""


@dataclass
class _Window:
    """What rates are made of; starts anew after a log step and after the warm-up."""

    busy: float = 0.0  # seconds in steps
    wait: float = 0.0  # seconds between them
    units: float = 0.0
    slots: float = 0.0
    steps: int = 0
    flops: float = 0.0  # of this rank; nan once a batch could not be counted
    skipped: int = 0  # units of this rank in the row's sums that were counted before the window began

    @property
    def seconds(self) -> float:
        return self.busy + self.wait

    def add(self, other: _Window) -> None:
        for name in ("busy", "wait", "units", "slots", "steps", "flops"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Telemetry(Callback):
    """Counts and times the training, and writes a row every `trainer.log_every_n_steps` optimizer steps.

    The module must offer `last_batch` (`Loss` of the last micro-batch: detached `total` and `count` on the device),
    `last_grad_norm` (tensor or None) and `slots(batch) -> int`. Between log steps only device tensors are added up;
    nothing is read from the device. Rates leave out the first `warmup` optimizer steps of the process (compilation,
    allocation), validation, and what runs under `pause()`.

    Args:
        path: where `metrics.csv` goes; None for no file. Loggers of the trainer get the same numbers.
        warmup: optimizer steps that no rate includes.
        clock: seconds, monotonic; tests pass a fake.
    """

    def __init__(self, path: str | Path | None = None, warmup: int = 3, clock: Callable[[], float] = time.perf_counter):
        self.file = None if path is None else MetricsFile(path, [field.name for field in fields(Snapshot)])
        self.warmup = warmup
        self.clock = clock
        self.latest = Snapshot()
        self.flops_unknown = ""
        """Why the share of peak is unknown; empty while it is known."""
        self._measured = _Window()
        self._window = _Window()
        self._counts: dict[str, int] = {}
        self._peak: float | None = None
        self._pending_flops = 0.0
        # Sums since the last row; on the device, so that adding does not wait for it.
        self._total: Tensor | None = None
        self._count: Tensor | None = None
        self._slots = 0
        self._lost: Tensor | None = None  # units whose loss is not finite, and which no mean holds
        self._restored: tuple[float, int, int] = (0.0, 0, 0)
        self._rows: int | None = None  # of the file when the checkpoint was written
        self._checksum: int | None = None  # of these rows
        self._epoch = 0  # of the last batch
        self._seconds_before = 0.0
        self._start: float | None = None
        self._mark = self._begin = 0.0
        self._step = self._first_step = 0
        self._step_seconds: float | None = None

    # --- Lightning's hooks --------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = self._first_step = trainer.global_step
        self._peak = machine.peak_flops(machine.device_name(pl_module.device), trainer.precision)
        if self._peak is None:
            self.flops_unknown = "the peak rate of this device and precision is not in the table"
        if self.file and trainer.is_global_zero:
            said = self.file.rewind(trainer.global_step, self._rows, self._checksum)
            print(said, end="\n" if said else "", flush=True)
        self._start = self._mark = self.clock()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._window.wait += self.clock() - self._mark
        self._pending_flops = self._flops(pl_module, batch)
        self._begin = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._add(pl_module, batch)
        stepped = trainer.global_step != self._step
        self._step, self._epoch = trainer.global_step, trainer.current_epoch
        self._window.steps += stepped
        if stepped and self._is_log_step(trainer):
            self._log(trainer, pl_module)
        elif stepped and self._step - self._first_step == self.warmup:
            assert self._count is not None
            self._window = _Window(skipped=int(self._count.item()))
        else:
            self._window.busy += self.clock() - self._begin
        self._mark = self.clock()

    def _is_log_step(self, trainer: Any) -> bool:
        return self._step % trainer.log_every_n_steps == 0 or self._step == total_steps(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._count is None:
            return
        # What the device still has queued belongs to the steps, not to the validation.
        before = self.clock()
        self._count.item()
        self._window.busy += self.clock() - before

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
            self.latest.val_loss = values.get("val_loss", self.latest.val_loss)
            self.latest.seconds = self._seconds()
            units = self.latest.units + sum(part[1] for part in across(self._sums()))
            row = {"step": trainer.global_step, "epoch": self._epoch, "units": units}
            if self.file and trainer.is_global_zero:
                self.file.append(row | {"seconds": self.latest.seconds} | values)
        self._mark = self.clock()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.latest.seconds = self._seconds()
        self.latest.memory_gb = machine.peak_memory(pl_module.device)  # the last validation belongs to it

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps what runs inside (saving a checkpoint) out of all rates."""
        try:
            yield
        finally:
            self._mark = self.clock()

    def state_dict(self) -> dict[str, Any]:
        if self.file:
            self.file.known = {"count": self.file.rows, "checksum": self.file.checksum}
        return {
            "tokens": self.latest.units,
            "seconds": self._seconds(),
            "val_loss": self.latest.val_loss,
            "parts": across(self._sums()),
            "slots": self._slots,
            "epoch": self._epoch,
            "rows": self.file.rows if self.file else None,
            "checksum": self.file.checksum if self.file else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest.units = state_dict["tokens"]
        self.latest.val_loss = state_dict["val_loss"]
        self._seconds_before = state_dict["seconds"]
        parts = state_dict.get("parts") or [(*state_dict["sums"], 0)[:3]]  # older runs had those of one process
        self._restored = own_part([tuple(part) for part in parts])
        self._slots = state_dict["slots"]
        self._epoch = state_dict.get("epoch", 0)
        self._rows, self._checksum = state_dict.get("rows"), state_dict.get("checksum")
        if self.file and self._rows is not None and self._checksum is not None:
            self.file.known = {"count": self._rows, "checksum": self._checksum}

    # --- counting -----------------------------------------------------------------------------------------------------

    def _sums(self) -> tuple[float, int, int]:
        """Loss and units since the last row, and the units without a finite loss, of this process."""
        if self._total is None or self._count is None or self._lost is None:
            return self._restored
        return self._total.item(), int(self._count.item()), int(self._lost.item())

    def _seconds(self) -> float:
        return self._seconds_before + (0.0 if self._start is None else self.clock() - self._start)

    def _flops(self, module: Any, batch: Any) -> float:
        """FLOPs of one batch of this rank, counted once per shape; nan when unknown."""
        if self.flops_unknown:
            return math.nan
        shapes = str([tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)])
        shapes += str(module.thawed)  # what is frozen has no gradient to compute
        if shapes not in self._counts:
            if len(self._counts) == MOST_SHAPES:
                self.flops_unknown = f"batches have more than {MOST_SHAPES} shapes"
                return math.nan
            try:
                self._counts[shapes] = count_step(module, batch)
            except Exception as error:  # any operator may lack a fake form; a missing number must not stop the run
                reason = str(error).strip().splitlines()
                self.flops_unknown = f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"
                return math.nan
        return self._counts[shapes]

    def _add(self, module: Any, batch: Any) -> None:
        loss = module.last_batch
        if self._count is None or self._total is None or self._lost is None:
            total, count, lost = self._restored
            self._total = torch.tensor(total, dtype=torch.float32, device=loss.count.device)
            self._count = torch.tensor(count, dtype=torch.int64, device=loss.count.device)
            self._lost = torch.full_like(self._count, lost)
            self._window.skipped = count
        # A task may weigh its units; counted are whole ones.
        units = loss.count.round().long() if loss.count.is_floating_point() else loss.count
        good = loss.total.isfinite()
        self._count += units
        self._lost += units.masked_fill(good, 0)
        self._total += loss.total.masked_fill(~good, 0)
        slots = module.slots(batch)
        self._slots += slots
        self._window.slots += slots
        self._window.flops += self._pending_flops

    # --- reading, on log steps ----------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer, module: Any) -> None:
        assert self._count is not None
        assert self._total is not None
        assert self._lost is not None
        skipped = torch.full_like(self._count, self._window.skipped)
        # float32 (all that Apple's GPUs have) would round counts above 16 million.
        exact = torch.float32 if self._count.device.type == "mps" else torch.float64
        local = torch.stack([value.to(exact) for value in (self._count, skipped, self._lost, self._total)])
        sums = trainer.strategy.reduce(local, reduce_op="sum")
        assert isinstance(sums, Tensor)
        sums = sums / copies(trainer)
        count, skipped_count, lost, loss_sum = sums.tolist()  # the one place where the host waits for the device
        self._window.busy += self.clock() - self._begin
        different = trainer.world_size // copies(trainer)
        norm = module.last_grad_norm
        now = self.latest
        now.step, now.epoch, now.seconds = self._step, trainer.current_epoch, self._seconds()
        now.units += int(count)
        now.loss = loss_sum / (count - lost) if count > lost else None
        module.guard.review(module)
        now.skipped = module.guard.counts["skipped_steps"]
        now.grad_norm = None if norm is None else float(norm)
        now.lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        now.padding = 1 - count / (self._slots * different) if self._slots else None
        now.memory_gb = machine.peak_memory(module.device)
        self._window.units = count - skipped_count
        self._window.slots *= different
        if self._step - self._first_step > self.warmup and self._window.seconds > 0:
            self._rates(self._window, total_steps(trainer))
        self._write(trainer, utilisation(module))
        for sums in (self._count, self._lost, self._total):
            sums.zero_()
        self._slots, self._window = 0, _Window()

    def _rates(self, window: _Window, total: int | None) -> None:
        now = self.latest
        now.units_per_second = window.units / window.seconds
        now.slots_per_second = window.slots / window.seconds
        now.mfu = self._share(window)
        now.data_wait = window.wait / window.seconds
        fresh = window.seconds / window.steps
        self._step_seconds = fresh if self._step_seconds is None else 0.7 * self._step_seconds + 0.3 * fresh
        now.eta = None if total is None else max(0, total - self._step) * self._step_seconds
        self._measured.add(window)

    def _share(self, window: _Window) -> float | None:
        share = window.flops / window.seconds / self._peak if self._peak and window.seconds else math.nan
        return None if math.isnan(share) else share

    def _write(self, trainer: Trainer, experts: dict[str, float]) -> None:
        row = {k: v for k, v in asdict(self.latest).items() if k != "val_loss"} | experts
        if self.file and trainer.is_global_zero:
            self.file.append(row)
        numbers = {k: float(v) for k, v in row.items() if v is not None and k != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=self.latest.step)

    def totals(self) -> dict[str, Any]:
        """Figures over all steps that rates include, for `summary.json`; "tokens" are `Snapshot.units`."""
        window = self._measured
        return {
            "tokens": self.latest.units,
            "seconds": round(self.latest.seconds, 3),
            "tokens_per_second": window.units / window.seconds if window.seconds else None,
            "mfu": self._share(window),
            "data_wait": window.wait / window.seconds if window.seconds else None,
            "memory_gb": self.latest.memory_gb,
            "rows": (self.file.known or None) if self.file else None,
        }


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps this fit will take, or None when nothing bounds them.

    Not `trainer.estimated_stepping_batches`: touching it sets up the loaders early, which loses the state of a stateful
    loader on resume.
    """
    bounds = [trainer.max_steps] if trainer.max_steps and trainer.max_steps > 0 else []
    if trainer.max_epochs and trainer.max_epochs > 0 and math.isfinite(trainer.num_training_batches):
        bounds.append(trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return min(bounds, default=None)
