"""A fourth modality is one folder and one name in a list: a toy task in a temporary folder is listed, trains, is judged
and continues.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import triune
from triune import tasks
from triune.cli import main

FILES = {
    "__init__.py": '''
"""Forecasts of series."""

from ..core.task import Task, training

TASK = Task(
    about="forecasts of series of numbers",
    verbs=training("triune.series.task:SeriesTask", "triune.series.data:SeriesData", names=("fit", "validate")),
    examples="  triune series fit                                         train on sines",
)
''',
    "model.py": '''
"""The model of series."""

from torch import Tensor, nn

from ..core.config import TransformerConfig
from ..core.transformer import Transformer


class SeriesModel(nn.Module):
    """Forecasts the next value of series `[batch, tokens, 1]`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inputs = nn.Linear(1, config.dim)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(self.inputs(x)))
''',
    "data.py": '''
"""Sines of random frequency and phase, made from a number each."""

import numpy as np
import torch

from ..core.training.data import Batches, InOrder, ResumableData, Shuffled


class Sines:
    """Batches of sines: `sines[draw]`."""

    def __getitem__(self, draw):
        random = [np.random.default_rng(int(index) + 1) for index in draw.indices]
        rows = [np.sin(r.uniform(0.1, 1) * np.arange(24) + r.uniform(0, 6)) for r in random]
        return {"series": torch.tensor(np.stack(rows), dtype=torch.float32)[..., None]}


class SeriesData(ResumableData):
    """Sines.

    Args:
        count: sines to train on.
        batch_size: sines of a batch.
    """

    def __init__(self, count: int = 64, batch_size: int = 8) -> None:
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def train_dataloader(self):
        return Batches(Sines(), Shuffled(self.count, self.batch_size, *self.ranks(), 0, self.position))

    def val_dataloader(self):
        return Batches(Sines(), InOrder(16, self.batch_size, *self.ranks()))

    def order_settings(self):
        return {"count": self.count, "batch_size": self.batch_size}
''',
    "task.py": '''
"""Training forecasts."""

from ..core.config import TransformerConfig
from ..core.training.module import Loss, TrainingModule
from .model import SeriesModel

TINY = TransformerConfig(dim=16, depth=1, heads=2, causal=True)


class SeriesTask(TrainingModule):
    """A model that forecasts the next value.

    Args:
        transformer: the core.
        training: see `TrainingModule`.
    """

    def __init__(self, transformer: TransformerConfig = TINY, **training) -> None:
        super().__init__(**training)
        self.config = transformer

    def build_model(self, data):
        return SeriesModel(self.config)

    def loss(self, batch):
        x = batch["series"]
        error = (self(x[:, :-1]) - x[:, 1:]).square()
        return Loss(error.sum(), error.numel())

    def slots(self, batch):
        return batch["series"].numel()
''',
    "recipes/default.yaml": """
# A few steps on sines.
# time: seconds
trainer:
  max_steps: 6
  val_check_interval: 3
  accelerator: cpu
""",
}


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The toy task as a folder of the package; returns an empty folder to work in."""
    for name, text in FILES.items():
        path = tmp_path / "rooms" / "series" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    monkeypatch.setattr(triune, "__path__", [*triune.__path__, str(tmp_path / "rooms")])
    monkeypatch.setattr(tasks, "NAMES", (*tasks.NAMES, "series"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("triune.series")]:
        del sys.modules[name]
    if "series" in vars(triune):
        delattr(triune, "series")


def test_it_is_listed(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and "forecasts of series of numbers  (fit, validate)" in capsys.readouterr().out
    assert main(["series"]) == 0 and "train on sines" in capsys.readouterr().out
    assert main(["recipes"]) == 0 and "triune series fit --config …\n  default\n" in capsys.readouterr().out
    assert main(["series", "fitt"]) == 2 and "did you mean 'fit'?" in capsys.readouterr().err


def test_it_trains_is_judged_and_continues(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["series", "fit", "--run", "run"]) == 0
    said = capsys.readouterr().out
    assert "val_loss" in said and "6/6" not in said.splitlines()[0]
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] == 6 and summary["task"] == "series"
    assert main(["series", "validate", "run"]) == 0
    judged = json.loads(Path("run/validation.json").read_text())
    assert judged["val_loss"] == pytest.approx(summary["val_loss"])
    page = Path("run/report.html").read_text()  # written by the training, and again by `validate`
    assert "Validation (validation.json)" in page and "<h3>loss</h3>" in page
    assert main(["series", "fit", "--run", "run", "--resume", "true", "--trainer.max_steps", "9"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 9
