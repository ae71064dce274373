"""What the mixers are expected to reach with the default settings: published figures, not all measured here."""

from __future__ import annotations

from typing import Any

from .tasks import TASKS, settings

Bound = tuple[float, float | None]
"""(least, None) for a value of at least `least`; (0, most) for one of at most `most`."""


def expected(row: dict[str, Any]) -> Bound | None:
    """The bound on the accuracy, for `lag` on the KL divergence, of a row that `recall` returned.

    None where nothing is known: for other settings than the defaults, and for mixers that were not measured.
    """
    usual = settings(TASKS[row["task"]])
    if row["state"] is not None or row["dim"] != 64 or any(row[k] != usual[k] for k in ("length", "steps")):
        return None
    kinds = set(row["layers"])
    if row["task"] == "lag":
        return (0, 0.05) if row["mixer"] in ("softmax", "attention") else None
    if row["task"] != "mqar" or row["pairs"] not in (4, 8):
        return None
    if row["mixer"].startswith("window:"):
        return (0, 0.4) if int(row["mixer"].split(":")[1]) <= 16 else None
    if "attention" in kinds:
        return 0.98, None
    if kinds <= {"gru", "lstm"}:
        return 0, 0.4
    if kinds == {"gated_delta"} and row["pairs"] == 4:
        return 0.9, None
    return (0, 0.6) if kinds == {"mamba2"} and row["depth"] == 2 and row["pairs"] == 8 else None
