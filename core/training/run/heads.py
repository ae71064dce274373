"""What each attention head looks at, measured at every validation and drawn over the training."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from ...canvas import figure, plain, save
from ...errors import UserError
from ...files import write_atomic
from ...subject import Subject

COLUMNS = ("step", "score", "layer", "head", "value")


class HeadScores(Callback):
    """Scores of all heads (previous token, induction, contacts, rows of patches, …) at every validation.

    They are computed from queries, keys and the log of the softmax's sum (`core.lens.scores`) on a small input that the
    task chooses (`TrainingModule.lens_subject`), with the weights that were validated. No weight, no random number and
    no batch of the training is touched.

    Args:
        file: the CSV to write, one row a step, score, layer and head; the picture lies beside it as PNG.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.picture = file, file.with_suffix(".png")
        self.subject: Subject | None = None
        self.rows: list[tuple[int, str, int, int, float]] = []
        self._batch: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError("--head_scores looks at whole weights, which --trainer.strategy fsdp2 cuts; leave one out.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.file.is_file():
            self.rows = [row for row in read_scores(self.file) if row[0] <= trainer.global_step]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and self.subject is None:
            self._batch = batch

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Callbacks come before the module, which here still holds the averaged weights, if there are some.
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        module: Any = pl_module
        if self.subject is None:
            self.subject, self._batch = module.lens_subject(self._batch), None
        assert self.subject is not None
        if trainer.sanity_checking:
            return
        self.subject.extra.pop("scores", None)
        scores = self.subject.scores()
        step = trainer.global_step
        self.rows = [row for row in self.rows if row[0] != step]  # validated twice
        for name, values in scores.items():
            for layer, heads in enumerate(values.tolist()):
                self.rows += [(step, name, layer, head, value) for head, value in enumerate(heads) if value == value]
        self._write()
        best = {
            f"heads/{name}": float(values[~values.isnan()].max()) for name, values in scores.items() if _any(values)
        }
        for logger in trainer.loggers:
            logger.log_metrics(best, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows and trainer.is_global_zero:
            draw(self.rows, self.picture)
            print(f"heads: {summary(self.rows)}; all in {self.file.name}, drawn in {self.picture.name}")

    def _write(self) -> None:
        held = io.StringIO(newline="")
        writer = csv.writer(held, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*row[:4], f"{row[4]:.6g}"] for row in self.rows)
        write_atomic(self.file, held.getvalue().encode())


def _any(values: Tensor) -> bool:
    return not bool(values.isnan().all())


def read_scores(file: Path) -> list[tuple[int, str, int, int, float]]:
    """The rows of `heads.csv`; without those that are cut or damaged."""
    found = []
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        for row in csv.DictReader(lines):
            try:
                values = (int(row["step"]), row["score"], int(row["layer"]), int(row["head"]), float(row["value"]))
            except (KeyError, TypeError, ValueError):
                continue
            found.append(values)
    return found


def summary(rows: list[tuple[int, str, int, int, float]]) -> str:
    """The best head of each score at the last step: `induction 0.93 (1.2)`."""
    last = max(row[0] for row in rows)
    best: dict[str, tuple[float, str]] = {}
    for step, name, layer, head, value in rows:
        if step == last and value > best.get(name, (-1.0, ""))[0]:
            best[name] = (value, f"{layer}.{head}")
    return ", ".join(f"{name} {value:.2f} ({head})" for name, (value, head) in best.items())


def draw(rows: list[tuple[int, str, int, int, float]], target: Path) -> None:
    """One panel a score, one line a head, the colour that of its layer."""
    import matplotlib

    names = list(dict.fromkeys(row[1] for row in rows))
    layers = 1 + max(row[2] for row in rows)
    across = min(3, len(names))
    drawn = figure(4.2 * across, 3.0 * -(-len(names) // across))
    colours = matplotlib.colormaps["viridis"]
    for number, name in enumerate(names, 1):
        axes = drawn.add_subplot(-(-len(names) // across), across, number)
        curves: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for step, score, layer, head, value in rows:
            if score == name:
                curves.setdefault((layer, head), []).append((step, value))
        shown: set[int] = set()
        for (layer, _), points in sorted(curves.items()):
            label = None if layer in shown else f"layer {layer}"
            shown.add(layer)
            colour = colours(layer / max(layers - 1, 1) * 0.9)
            axes.plot(*zip(*sorted(points)), color=colour, linewidth=1.1, marker=".", markersize=3, label=label)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("optimizer steps", fontsize=8)
        axes.tick_params(labelsize=8)
        plain(axes)
        if number == 1 and layers <= 8:
            axes.legend(fontsize=7, frameon=False)
    save(drawn, target)
