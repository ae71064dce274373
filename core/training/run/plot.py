"""The loss plot of a run."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

from ...canvas import BLUE, PALE, RED, figure, literal, plain, save
from .progress import short


def read_metrics(path: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """`(step, loss)` and `(step, val_loss)` pairs of a `metrics.csv`."""
    train, val = [], []
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                for column, points in (("loss", train), ("val_loss", val)):
                    # A row of which a part was written, or that was damaged, is no point.
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        points += [(int(row["step"]), float(row[column]))] if row.get(column) else []
    return train, val


def smooth(values: list[float], span: float) -> list[float]:
    """Exponential average over about `span` values, without the pull of the first one."""
    keep, average, weight, smoothed = 1 - 1 / max(1.0, span), 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(average / weight)
    return smoothed


def plot_loss(metrics: Path, target: Path, name: str, unit: str = "nats per token") -> bool:
    """Draws `target` (PNG) from `metrics.csv`; False when there is nothing to draw yet.

    The step axis is logarithmic beyond 200 rows, because most of the fall happens in the first few percent.
    """
    train, val = read_metrics(metrics)
    if len(train) + len(val) < 2:
        return False
    from matplotlib.ticker import FuncFormatter

    drawn, name = figure(8, 4.5), literal(name)
    axes = drawn.add_subplot()
    steps, losses = [s for s, _ in train], [v for _, v in train]
    axes.plot(steps, losses, color=PALE, linewidth=0.8, alpha=0.7)
    axes.plot(steps, smooth(losses, len(losses) / 50), color=BLUE, linewidth=1.8, label="training")
    if val:
        axes.plot(*zip(*val), color=RED, linewidth=1.8, marker="o", markersize=4, label="validation")
        best = min(val, key=lambda point: point[1])
        axes.annotate(f"{best[1]:.4f}", best, (0, 8), textcoords="offset points", ha="center", fontsize=9, color=RED)
        axes.set_title(f"{name}: best val_loss {best[1]:.4f} at step {best[0]:,}", loc="left", fontsize=11)
    else:
        axes.set_title(name, loc="left", fontsize=11)
    if len(train) > 200:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"loss ({unit})")
    plain(axes)
    axes.margins(x=0.02, y=0.08)
    axes.legend(frameon=False)
    save(drawn, target)
    return True
