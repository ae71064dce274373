"""The figures of a run as people read them: each with its interval, what a baseline reaches, and its better side.

They are taken from `summary.json`, `validation.json` or `test.json`, so that no weights are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ...files import read_json
from .folder import RunFolder

LOWER = (
    "loss", "nll", "ece", "adaptive_ece", "brier", "mae", "rmse", "scaled_mae", "rank_mae", "pinball", "perplexity",
    "bits_per_byte", "width",
)  # fmt: skip
HIGHER = (
    "accuracy", "top1", "top5", "balanced", "balanced_accuracy", "macro_f1", "micro_f1", "f1", "precision", "recall",
    "exact", "exact_match", "token_accuracy", "average_precision", "auroc", "r2", "spearman", "quadratic_kappa",
    "auc", "p_at_l", "p_at_l2", "p_at_l5", "skill", "mean_iou",
)  # fmt: skip
"""Figures whose better side is known; of any other (a coverage, a temperature) none is called the best."""
BASELINE = "baseline_"
"""Names that begin so are accuracies of simple methods on the same examples."""
ACCURACIES = ("top1", "accuracy")
NOT_MEASURED = ("temperature", "decoded", "not_judged", "scored", "calibration", "judged", "per_class")
"""Entries of a summary before its `task` that are no figures to compare."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        name: without the side it is of.
        value: finite; a whole number is a count.
        interval: 95 % of the resamples lie within; None where it is not known.
        baselines: what simpler answers reach, by their names.
        ceiling: what a perfect answer reaches, where that is less than everything.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    ceiling: float | None = None

    @property
    def better(self) -> Literal["low", "high"] | None:
        """Its better side; None where it is not known."""
        return better(self.name)


@dataclass(frozen=True)
class Figures:
    """The figures of one evaluation.

    Args:
        side: "val" or "test".
        source: the file they are from.
        figures: in the order of the file.
        per_class: a row for each class, label or target.
        notes: sentences that a reader must know.
    """

    side: str
    source: str
    figures: list[Figure]
    per_class: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def better(name: str) -> Literal["low", "high"] | None:
    """The better side of a figure by its name ("val_loss", "nll_calibrated", "long_p_at_l5"); None where not known."""
    name = side_of(name)[1].split("_neff_")[0].removesuffix("_calibrated")

    def is_one(words: tuple[str, ...]) -> bool:
        return any(name == word or name.endswith((f"_{word}", f".{word}")) for word in words)

    return "low" if is_one(LOWER) else "high" if is_one(HIGHER) else None


def side_of(name: str) -> tuple[str, str]:
    """The side in front of a figure's name ("val", "test" or none), and the rest."""
    for side in ("val", "test"):
        if name.startswith(f"{side}_"):
            return side, name[len(side) + 1 :]
    return "", name


def figures_of(content: dict[str, Any], source: str) -> Figures:
    """The figures in the content of one of a run's files; damaged entries are left out."""
    metrics: dict[str, Any] = {}
    for name, value in content.items():
        if name == "task":  # what follows says how it was trained
            break
        metrics[name] = value
    named = [side_of(name)[0] for name in metrics]
    side = "test" if "test" in named else "val"
    judged = metrics.get("judged")
    judged = judged if isinstance(judged, dict) else {}
    numbers = {side_of(name)[1]: value for name, value in metrics.items() if _is_number(value)}
    for name in NOT_MEASURED:
        numbers.pop(name, None)
    simple = {_words(name[len(BASELINE) :]): numbers.pop(name) for name in list(numbers) if name.startswith(BASELINE)}
    constant, intervals = _numbers(judged.get("baseline")), judged.get("intervals")
    intervals = intervals if isinstance(intervals, dict) else {}
    found, accuracy = [], next((name for name in ACCURACIES if name in numbers), None)
    for name, value in numbers.items():
        if any(mark in name and name.replace(mark, "", 1) in numbers for mark in ("_chance", "_ceiling")):
            continue
        baselines = {"constant answer": constant[name]} if name in constant else {}
        baselines |= {"chance": chance} if (chance := _beside(numbers, name, "_chance")) is not None else {}
        baselines |= simple if name == accuracy else {}
        ends = intervals.get(name)
        interval = tuple(map(float, ends)) if isinstance(ends, list) and all(map(_is_number, ends)) else ()
        low_high = (interval[0], interval[1]) if len(interval) == 2 else None
        found.append(Figure(name, value, low_high, baselines, _beside(numbers, name, "_ceiling")))
    return Figures(side, source, found, _classes(metrics, judged), _notes(metrics, judged))


def _beside(numbers: dict[str, float], name: str, mark: str) -> float | None:
    """What stands beside a figure: `p_at_l_chance`, or `p_at_l_chance_neff_10_50` of `p_at_l_neff_10_50`."""
    head, bins, tail = name.partition("_neff_")
    return numbers.get(f"{head}{mark}{bins}{tail}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(content: Any) -> dict[str, float]:
    pairs = content.items() if isinstance(content, dict) else ()
    return {str(name): float(value) for name, value in pairs if _is_number(value)}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _classes(metrics: dict[str, Any], judged: dict[str, Any]) -> list[dict[str, Any]]:
    rows = judged.get("per_class")
    if isinstance(rows, list):
        return [row for row in rows if isinstance(row, dict)]
    held = metrics.get("per_class")
    return [{"name": name, "accuracy": value} for name, value in held.items()] if isinstance(held, dict) else []


def _notes(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    notes = judged.get("notes")
    own = [metrics[name] for name in ("scored", "not_judged") if isinstance(metrics.get(name), str)]
    return [*own, *(str(note) for note in (notes if isinstance(notes, list) else []))]


def evaluations(run: RunFolder) -> list[Figures]:
    """The figures of the validation examples, by the later of `summary.json` and `validation.json`, and those of
    `test.json`, where there are any.

    Raises:
        UserError: one of the files is damaged.
    """
    held = [path for path in (run.summary, run.validation) if path.is_file()]
    newest = max(held, key=lambda path: path.stat().st_mtime_ns, default=None)
    files = [path for path in (newest, run.path / "test.json") if path is not None and path.is_file()]
    found = [figures_of(read_json(path), path.name) for path in files]
    return [figures for figures in found if figures.figures or figures.notes]
