"""A training that a signal ends, at any hook of Lightning's, goes on as if it had not been ended."""

from __future__ import annotations

import csv
import itertools
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from triune.core.errors import Stopped
from triune.core.training.data import Batches, ResumableData, Shuffled
from triune.core.training.module import Loss, TrainingModule
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.run.checkpoints import Checkpoints
from triune.core.training.run.folder import RunFolder
from triune.core.training.run.signals import StopOnSignal
from triune.core.training.run.telemetry import Telemetry
from triune.core.training.schedules import ScheduleConfig

STEPS, LENGTH = 12, 7
TIMES = ("seconds", "units_per_second", "slots_per_second", "mfu", "data_wait", "memory_gb", "eta")


class Numbers:
    """A batch of a draw."""

    def __getitem__(self, draw: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int(draw.position))
        return {"x": torch.randn(2, 4, generator=generator)}


class Data(ResumableData):
    def order_settings(self) -> dict[str, Any]:
        return {}

    def train_dataloader(self) -> Batches:
        return Batches(Numbers(), Shuffled(2 * LENGTH, 2, position=self.position))

    def val_dataloader(self) -> DataLoader:
        return DataLoader([{"x": torch.randn(4, generator=torch.Generator().manual_seed(i))} for i in range(4)], 2)  # pyright: ignore[reportArgumentType]


class Model(TrainingModule):
    def build_model(self, data: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 4))

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        return Loss((self(batch["x"]) - batch["x"].roll(1, 1)).square().sum(), len(batch["x"]))

    def slots(self, batch: dict[str, Tensor]) -> int:
        return len(batch["x"])


class Send(pl.Callback):
    """Sends a signal to this process at the first call of a hook after so many optimizer steps."""

    def __init__(self, number: int, hook: str, step: int) -> None:
        self.number: int | None = number
        self.step = step
        setattr(self, hook, self._send)

    def _send(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.number and trainer.global_step >= self.step and not trainer.sanity_checking:
            number, self.number = self.number, None
            signal.raise_signal(number)


def train(folder: Path, resume: bool = False, more: list[pl.Callback] | None = None, **limits: Any) -> StopOnSignal:
    warnings.filterwarnings("ignore", module="lightning")
    pl.seed_everything(1 + resume)
    run, stop = RunFolder(folder), StopOnSignal()
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    telemetry = Telemetry(run.metrics)
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[telemetry, stop, *(more or []), Checkpoints(run, telemetry)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, inference_mode=False,
        log_every_n_steps=2, gradient_clip_val=1.0, num_sanity_val_steps=0, **limits,
    )  # fmt: skip
    module = Model(OptimizerConfig(lr=0.02, name="adamw"), ScheduleConfig(), ema=0.9)
    trainer.fit(module, Data(), ckpt_path=str(run.last) if resume else None, weights_only=True)
    return stop


def left_behind(folder: Path) -> dict[str, Any]:
    """What two runs are compared by: states, the best weights, rows of metrics."""
    run = RunFolder(folder)
    last, best = (torch.load(path, weights_only=True) for path in (run.last, run.best))
    names = ("state_dict", "optimizer_states", "lr_schedulers", "ema", "rng", "global_step", "epoch")
    with run.metrics.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    state = {name: last[name] for name in names}
    return {"last": state, "best": {name: best[name] for name in ("state_dict", "ema", "global_step")}, "rows": rows}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Asserts that nested values are equal, down to the last bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


LIMITS: dict[str, dict[str, Any]] = {
    "steps": {"max_steps": STEPS, "val_check_interval": 3, "check_val_every_n_epoch": None},
    "windows": {
        "max_steps": STEPS, "val_check_interval": 5, "check_val_every_n_epoch": None, "accumulate_grad_batches": 3
    },
    "epochs": {"max_epochs": 2},
    "windows and epochs": {"max_epochs": 4, "accumulate_grad_batches": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What uninterrupted runs leave behind."""
    found = {}
    for name, limits in LIMITS.items():
        folder = tmp_path_factory.mktemp("whole")
        train(folder, **limits)
        found[name] = left_behind(folder)
    return found


HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_validation_start", "on_validation_batch_start",
         "on_validation_batch_end", "on_validation_end", "on_train_epoch_end")  # fmt: skip


def points() -> list[Any]:
    """Signals, hooks, steps and forms of training; but for a few they run with --slow only."""
    found = []
    for number, hook, step, limits in itertools.product(
        (signal.SIGTERM, signal.SIGINT), HOOKS, (1, 6, 7, STEPS), LIMITS
    ):
        always = step == 6 and limits.startswith("windows")
        found.append(pytest.param(number, hook, step, limits, marks=() if always else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("number", "hook", "step", "limits"), points())
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, whole: dict[str, dict[str, Any]], number: int, hook: str, step: int, limits: str
) -> None:
    send, code = Send(number, hook, step), None
    try:
        train(tmp_path, more=[send], **LIMITS[limits])
    except Stopped as stop:
        code = stop.code
    if send.number is None:  # else no such hook is left at that step
        assert code == 143 if number == signal.SIGTERM and step < STEPS else code in (None, 143)
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        assert saved >= step or step == STEPS
        train(tmp_path, resume=True, **LIMITS[limits])
    assert_same(left_behind(tmp_path), whole[limits])


def test_a_time_limit_ends_a_run_that_goes_on_as_if_it_had_not_been(
    tmp_path: Path, whole: dict[str, dict[str, Any]]
) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.should_stop or trainer.global_step == 4

    train(tmp_path, more=[Stop()], **LIMITS["steps"])
    run = RunFolder(tmp_path)
    assert torch.load(run.best, weights_only=True)["global_step"] == 4
    assert run.planned.is_file()
    train(tmp_path, resume=True, **LIMITS["steps"])
    assert not run.planned.exists()
    assert_same(left_behind(tmp_path), whole["steps"])
