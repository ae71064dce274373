"""Runs beside each other: the options that differ, their figures, and whether these can be compared at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import few, open_regular, read_json
from ...yaml_files import read_yaml
from .figures import Figure, Figures, better, evaluations
from .folder import RunFolder
from .rows import changed, read_rows

COST = (
    "parameters", "steps", "best_step", "tokens", "seconds", "tokens_per_second", "mfu", "memory_gb", "precision",
    "devices", "device", "threads",
)  # fmt: skip
"""Entries of a summary that say what a training took."""
BY_UNIT = ("loss", "perplexity")
"""Figures that are means over units, and mean something else where these are other ones (other tokens)."""
NOT_SET = "—"


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Args:
        name: short, and another for each run.
        folder: its folder.
        options: all of them by dotted name; values as JSON writes them.
        summary: of summary.json; empty while the training has not finished.
        evaluations: figures of its validation and test examples.
        rows: those of metrics.csv.
    """

    name: str
    folder: RunFolder
    options: dict[str, str]
    summary: dict[str, Any]
    evaluations: list[Figures]
    rows: list[dict[str, str]]

    def figure(self, side: str, name: str) -> Figure | None:
        """A figure of the run; None where it has none of this name."""
        found = (figures.figures for figures in self.evaluations if figures.side == side)
        return next((figure for several in found for figure in several if figure.name == name), None)


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Args:
        name: of the option or figure.
        values: of each run; None where it has none.
        best: numbers of the runs with the best value; empty where no side is better, or they cannot be compared.
        baselines: of each run, in words.
    """

    name: str
    values: list[Any]
    best: list[int] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """All that differs.

    Args:
        runs: in the order in which they were given.
        options: those that differ.
        figures: by side, those of the validation first.
        cost: what each training took.
        notes: sentences on what can be compared.
    """

    runs: list[Run]
    options: list[Row]
    figures: dict[str, list[Row]]
    cost: list[Row]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""

        def by_run(rows: list[Row]) -> dict[str, Any]:
            names = [run.name for run in self.runs]
            return {
                row.name: {
                    "values": dict(zip(names, row.values)), "best": [names[number] for number in row.best],
                    **({"baselines": dict(zip(names, row.baselines))} if any(row.baselines) else {}),
                }
                for row in rows
            }  # fmt: skip

        return {
            "runs": {run.name: str(run.folder.path.absolute()) for run in self.runs},
            "options": by_run(self.options), "figures": {side: by_run(rows) for side, rows in self.figures.items()},
            "cost": by_run(self.cost), "notes": self.notes,
        }  # fmt: skip


def compare(paths: Sequence[str]) -> Comparison:
    """Reads and compares runs.

    Raises:
        UserError: fewer than two, one twice, one that is no run, or a file of one is damaged.
    """
    folders = [RunFolder.open(path) for path in paths]
    if len(folders) < 2:
        raise UserError(f"{len(folders)} run is given, but comparing needs at least 2; give another.")
    real = [os.path.realpath(folder.path) for folder in folders]
    if twice := next((folder for folder, path in zip(folders, real) if real.count(path) > 1), None):
        raise UserError(f"{twice} is given twice; give each run once.")
    runs = [_read(folder, name) for folder, name in zip(folders, short_names(real))]
    alike, notes = _comparable(runs)
    sides = dict.fromkeys(figures.side for run in runs for figures in run.evaluations)
    figures = {side: _figures(runs, side, alike, notes) for side in sorted(sides, reverse=True)}
    return Comparison(runs, differing(runs), figures, _cost(runs), notes)


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _read(folder: RunFolder, name: str) -> Run:
    with open_regular(folder.config):
        content = read_yaml(folder.config, str(folder.config))
    if not isinstance(content, dict):
        raise UserError(f"{folder.config} holds no options; it is damaged, or this is no run.")
    summary = read_json(folder.summary) if folder.summary.is_file() else {}
    rows = [row for row in read_rows(folder.metrics).rows if row is not None] if folder.metrics.is_file() else []
    return Run(name, folder, flat(content), summary, evaluations(folder), rows)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Options by dotted name; a value is what JSON writes, a text itself."""
    found: dict[str, str] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return found


def differing(runs: Sequence[Run]) -> list[Row]:
    """The options that are not the same in all runs; one that a run does not have is shown as a dash."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    rows = [Row(name, [run.options.get(name, NOT_SET) for run in runs]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


# --- figures ----------------------------------------------------------------------------------------------------------


def _comparable(runs: list[Run]) -> tuple[bool, list[str]]:
    """Whether figures of the same name mean the same in all runs, as far as it is known, and sentences on it."""
    notes = [f"{run.name} has not finished; it has no figures yet." for run in runs if not run.summary]
    notes += filter(None, (changed(run.folder.metrics, run.summary.get("rows")) for run in runs))
    tasks = {run.name: " ".join((run.folder.task, run.folder.verb)).strip() for run in runs}
    if len(set(tasks.values())) > 1:
        told = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        return False, [*notes, f"These runs are of different tasks ({told}), so no figure is called the best."]
    finished = [run for run in runs if run.summary]
    contents = {run.name: _validated(run).get("content") for run in finished}
    if len({content for content in contents.values() if content}) > 1:
        groups: dict[str, list[str]] = {}
        for name, content in contents.items():
            groups.setdefault(content or "unknown", []).append(name)
        told = "; ".join(few(names) for names in groups.values())
        return False, [
            *notes, f"They were validated on different examples ({told}), so no figure is called the best."
        ]  # fmt: skip
    if unknown := [name for name, content in contents.items() if not content]:
        data = [{key: value for key, value in run.options.items() if key.startswith("data.")} for run in finished]
        same = all(one == data[0] for one in data)
        told = "have the same options of data" if same else "differ in options of data, so no figure is called the best"
        return same, [*notes, f"What {few(unknown)} was validated on is not recorded; these runs {told}."]
    if finished:
        count = _validated(finished[0]).get("examples", 0)
        notes.append(f"All were validated on the same {count:,} examples.")
    return True, notes


def _validated(run: Run) -> dict[str, Any]:
    found = run.summary.get("validated_on")
    return found if isinstance(found, dict) else {}


def _figures(runs: list[Run], side: str, alike: bool, notes: list[str]) -> list[Row]:
    """Each figure that a run has, with the best marked where it is known which side is better."""
    names = dict.fromkeys(
        figure.name for run in runs for found in run.evaluations if found.side == side for figure in found.figures
    )
    units = {_validated(run).get("units") for run in runs if run.summary} - {None}
    if side == "val" and alike and len(units) > 1:
        notes.append("Their losses are means over other units (other tokens), so that no loss is called the best.")
    rows, overlapping = [], []
    for name in names:
        found = [run.figure(side, name) for run in runs]
        known = [figure.value for figure in found if figure is not None]
        best: list[int] = []
        direction = None if len(units) > 1 and name in BY_UNIT else better(name)
        if alike and direction is not None and len(known) > 1 and len(set(known)) > 1:
            top = min(known) if direction == "low" else max(known)
            best = [number for number, figure in enumerate(found) if figure is not None and figure.value == top]
            if _overlap([figure for figure in found if figure is not None], found[best[0]]):
                overlapping.append(name.replace("_", " "))
        baselines = [_baseline(figure) for figure in found]
        rows.append(Row(name, [None if figure is None else figure.value for figure in found], best, baselines))
    if overlapping:
        notes.append(f"The 95 % intervals of the best and the next overlap: {', '.join(overlapping)}.")
    return rows


def _overlap(found: list[Figure], best: Figure | None) -> bool:
    """Whether the interval of another figure reaches that of the best."""
    if best is None or best.interval is None:
        return False
    others = [figure.interval for figure in found if figure is not best and figure.interval is not None]
    return any(low <= best.interval[1] and best.interval[0] <= high for low, high in others)


def _baseline(figure: Figure | None) -> str:
    return "" if figure is None else ", ".join(f"{name} {value:.4g}" for name, value in figure.baselines.items())


def _cost(runs: list[Run]) -> list[Row]:
    rows = [Row(name, [run.summary.get(name) for run in runs]) for name in COST]
    versions = [run.summary.get("versions") for run in runs]
    held = [one if isinstance(one, dict) else {} for one in versions]
    names = dict.fromkeys(name for one in held for name in one)
    rows += [row for name in names if len({*(row := Row(name, [one.get(name) for one in held])).values}) > 1]
    return [row for row in rows if any(value is not None for value in row.values)]
