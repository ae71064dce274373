"""What the mixers are expected to reach with the default settings: published figures, not all measured here."""

from __future__ import annotations

from typing import Any

from .tasks import TASKS, settings

SMALL = 8
"""A state of SSD that eight pairs do not fit into."""
Bound = tuple[float, float | None]
"""(least, None) for a value of at least `least`; (0, most) for one of at most `most`."""


def expected(row: dict[str, Any]) -> Bound | None:
    """The bound on the accuracy, for `lag` on the KL divergence, of a row that `recall` returned.

    None where nothing is known: for other settings than the defaults, and for mixers that were not measured.
    """
    usual = settings(TASKS[row["task"]])
    if row["dim"] != 64 or any(row[k] != usual[k] for k in ("length", "steps")):
        return None
    if row["task"] == "mqar" and row["state"] == SMALL and row["pairs"] == 8:
        return _small(row)
    if row["state"] is not None:
        return None
    if row["task"] == "lag":
        return (0, 0.05) if row["mixer"] in ("softmax", "attention") else None
    if row["task"] == "needle" and row["pairs"] == usual["pairs"]:
        return _needle(row["mixer"])
    return _mqar(row) if row["task"] == "mqar" and row["pairs"] in (4, 8) else None


def _small(row: dict[str, Any]) -> Bound | None:
    """SSD with so small a state that eight pairs do not fit, alone and beside attention."""
    if set(row["layers"]) == {"mamba2"} and row["depth"] == 2:
        return 0, 0.6
    return (0.98, None) if row["mixer"] == "MMMA" else None


def _needle(mixer: str) -> Bound | None:
    kind, _, word = mixer.partition(":")
    if kind == "window":
        return (0, 0.1) if int(word) <= 32 else None  # two layers look back twice as far
    return (0.9, None) if mixer == "titans:gate" else None


def _mqar(row: dict[str, Any]) -> Bound | None:
    kinds = set(row["layers"])
    if row["mixer"].startswith("window:"):
        return (0, 0.4) if int(row["mixer"].split(":")[1]) <= 16 else None
    if "attention" in kinds:
        return 0.98, None
    if kinds <= {"gru", "lstm"}:
        return 0, 0.4
    return (0.9, None) if kinds == {"gated_delta"} and row["pairs"] == 4 else None
