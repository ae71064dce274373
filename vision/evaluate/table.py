"""The table that training, validation and test print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .baselines import Baseline

NO_TEST = (
    "There is no test set: these are the validation images, which chose the weights. Calibrated metrics are "
    "cross-fitted. --data.test_root FOLDER scores others."
)


def table(metrics: dict[str, Any], baselines: Sequence[Baseline], notes: Sequence[str]) -> str:
    """The metrics of validation (`val_…`) or test (`test_…`) images beside those of the baselines, and sentences below.

    Args:
        metrics: as `VisionTask.finalise` gives them.
        baselines: of the validation images.
        notes: how the images were read.
    """
    side = "test" if "test_top1" in metrics else "val"
    if f"{side}_top1" not in metrics or "nll" not in metrics:
        return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
    count = metrics[f"{side}_images"]
    title = f"{count:,} {'test' if side == 'test' else 'validation'} image{'s' * (count != 1)}"
    rows = [(title, "top-1", "top-5", "NLL", "ECE")]
    top1, top5 = (f"{metrics[f'{side}_{name}']:.2%}" for name in ("top1", "top5"))
    rows.append(("this model", top1, top5, f"{metrics['nll']:.4f}", f"{metrics['ece']:.2%}"))
    if "temperature" in metrics:
        name = f"  at temperature {metrics['temperature']:.3g}"
        rows.append((name, "", "", f"{metrics['nll_calibrated']:.4f}", f"{metrics['ece_calibrated']:.2%}"))
    balanced = metrics.get(f"{side}_balanced")
    if balanced is not None and abs(balanced - metrics[f"{side}_top1"]) > 0.02:
        rows.append(("  mean over classes", f"{balanced:.2%}", "", "", ""))
    for baseline in baselines if side == "val" else []:
        note = baseline.note if baseline.top1 is None else ""
        rows.append((baseline.name, "—" if baseline.top1 is None else f"{baseline.top1:.2%}", note, "", ""))
    lines = [f"{row[0]:26}{row[1]:>8}  {row[2]:>7}  {row[3]:>7}  {row[4]:>7}".rstrip() for row in rows]
    return "\n".join([*lines, *([metrics["scored"]] if "scored" in metrics else []), *notes])
