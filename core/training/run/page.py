"""`report.html` of a run: its figures beside baselines, its curves, pictures, options and origin, on one page."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...evaluate.judgement import shown
from ...files import open_regular, read_json, write_atomic
from ...page import curves, document
from ...page.curves import Line
from . import figures as figures_of_run
from .figures import Figures
from .folder import RunFolder
from .plot import smooth
from .progress import duration, short
from .rows import changed, read_rows

SIZES = ((1600, 0), (1600, 256), (1200, 128), (800, 64))
"""Longest side and colours of the pictures, tried until the page is small enough."""
MOST_PICTURES = 24
LARGEST_FILE = 50_000_000
"""Bytes of a picture that is looked at."""
LARGEST_CONFIG = 1_000_000
DRAWN_ANEW = "loss.png"
"""What the curves of the page show already."""
MOST_OPEN = 20
"""Classes of a table that is not folded."""
SPENT = {"lr": "learning rate", "units_per_second": "throughput", "grad_norm": "norm of the gradient",
         "padding": "padding", "memory_gb": "memory", "mfu": "share of peak"}  # fmt: skip
"""Columns of metrics.csv beside the losses and metrics, and what is drawn of them."""


def write_page(run: RunFolder, target: Path | None = None) -> Path:
    """Writes the page of a run, whole or not at all, and returns its path.

    Raises:
        UserError: a file of figures is damaged, or the page would be too large without any picture.
    """
    path = target or run.report
    write_atomic(path, run_page(run).encode())
    return path


def run_page(run: RunFolder) -> str:
    """The page of a run, with pictures as large as it can hold."""
    found = sorted(path for path in run.path.glob("*.png") if path.name != DRAWN_ANEW)
    text = ""
    for side, colours in SIZES:
        text = _page(run, *_pictures(found, side, colours))
        if len(text.encode()) <= document.LARGEST or not found:
            break
    else:
        names = ", ".join(path.name for path in found)
        text = _page(run, "", [f"Pictures that are too large for this page lie beside it: {names}."])
    return document.check_size(text, "shorten config.yaml, or read the files of the run themselves")


def _page(run: RunFolder, pictures: str, problems: list[str]) -> str:
    summary = read_json(run.summary) if run.summary.is_file() else {}
    title = f"{run.task or 'run'} · {run.path.absolute().name}"
    notes = [*_state(run, summary), *filter(None, [changed(run.metrics, summary.get("rows"))]), *problems]
    evaluations = figures_of_run.evaluations(run)
    body = [document.element("h1", title), *(document.element("p", note, "note") for note in notes)]
    body += [_figures(found) for found in evaluations]
    body += [_classes(found) for found in evaluations]
    body.append(document.section("Training", _curves(run, summary)))
    body.append(document.section("Pictures", f'<div class="pictures">{pictures}</div>' if pictures else ""))
    body.append(document.section("How it was made", _origin(summary), _config(run)))
    written = f"Written {time.strftime('%Y-%m-%d %H:%M:%S')} from the files of {run.path.absolute()}."
    body.append(document.element("p", written, "caption"))
    return document.document(title, "\n".join(part for part in body if part))


# --- state and figures ------------------------------------------------------------------------------------------------


def _state(run: RunFolder, summary: dict[str, Any]) -> list[str]:
    """Sentences on how far the training came, and on what."""
    if not summary:
        again = f"triune {run.task or 'TASK'} {run.verb} --run {run} --resume true"
        return [f"This training has not finished; what was measured so far is below. Continue: {again}"]
    parts = [f"{summary['steps']:,} steps" if isinstance(summary.get("steps"), int) else ""]
    if (best := summary.get("best_step")) is not None:
        parts.append(f"figures are of the weights of step {best}")
    if isinstance(count := summary.get("parameters"), int):
        parts.append(f"{count:,} parameters")
    seconds: Any = summary.get("seconds")
    if _number(seconds):
        parts.append(
            f"{short(float(summary.get('tokens') or 0))} {summary.get('unit', 'units')} in {duration(seconds)}"
        )
    if summary.get("device"):
        count = summary.get("devices") or 1
        parts.append(f"{count} x {summary['device']}" if count != 1 else str(summary["device"]))
    notes = [f"{summary.get('finished', '')}: {', '.join(part for part in parts if part)}."]
    if summary.get("interrupted"):
        notes.append("The training was stopped before its last step.")
    if skipped := summary.get("skipped_steps"):
        notes.append(f"{skipped:,} steps were left out, because their loss or gradient was not finite.")
    return notes


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figures(found: Figures) -> str:
    """The table of one evaluation; columns that would be empty are left out."""
    simple = list(dict.fromkeys(name for figure in found.figures for name in figure.baselines))
    intervals = any(figure.interval for figure in found.figures)
    ceilings = any(figure.ceiling is not None for figure in found.figures)
    columns = ["figure", "value", *["95 % interval"] * intervals, *simple, *["ceiling"] * ceilings]
    rows = []
    for figure in found.figures:
        between = "" if figure.interval is None else f"{shown(figure.interval[0])} to {shown(figure.interval[1])}"
        row = [figure.name.replace("_", " "), _shown(figure.value), *[between] * intervals]
        row += [_shown(figure.baselines.get(name)) for name in simple]
        rows.append([*row, *[_shown(figure.ceiling)] * ceilings])
    side = "Test" if found.side == "test" else "Validation"
    notes = [document.element("p", note, "note") for note in found.notes]
    table = document.table(columns, rows) if rows else ""
    return document.section(f"{side} ({found.source})", table, *notes)


def _shown(value: float | None) -> str:
    return "" if value is None else shown(value)


def _classes(found: Figures) -> str:
    targets = list(dict.fromkeys(row.get("target") for row in found.per_class))
    return "\n".join(_class_table(found, target) for target in targets)


def _class_table(found: Figures, target: str | None) -> str:
    """The rows of one column of labels; of all where there is one."""
    held = [{k: v for k, v in row.items() if k != "target"} for row in found.per_class if row.get("target") == target]
    columns = list(dict.fromkeys(name for row in held for name in row))
    rows = [[_cell(row.get(name)) for name in columns] for row in held]
    table = document.table(["" if name == "name" else name.replace("_", " ") for name in columns], rows)
    side = ("test" if found.side == "test" else "validation") + (f": {target}" if target else "")
    one, many = _called(held[0] if held else {})
    if len(rows) > MOST_OPEN:
        return document.folded(f"{len(rows):,} {many}, {side}", table)
    return document.section(f"By {one}, {side}", table)


def _called(row: dict[str, Any]) -> tuple[str, str]:
    """What a row of figures is of, one and several: a target of numbers, a label that may be there, or a class."""
    if "rmse" in row or "scaled_mae" in row:
        return "target", "targets"
    return ("label", "labels") if "positive" in row else ("class", "classes")


def _cell(value: Any) -> str:
    """A whole name, where the terminal would cut it."""
    return value if isinstance(value, str) else shown(value) if value is None or _number(value) else str(value)


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(run: RunFolder, summary: dict[str, Any]) -> str:
    """Losses, metrics of each validation, learning rate, speed: a chart each."""
    if not run.metrics.is_file():
        return ""
    columns, rows = read_rows(run.metrics)
    points = columns_of(columns, [row for row in rows if row is not None])
    losses, validated = points.pop("loss", []), points.pop("val_loss", [])
    smoothed = smooth([value for _, value in losses], len(losses) / 50)
    log = len(losses) > 200
    loss = [
        Line("", *_split(losses), colour=0, faint=True),
        Line("training", [step for step, _ in losses], smoothed, colour=0),
        Line("validation", *_split(validated), colour=1, points=len(validated) <= 60),
    ]
    unit = str(summary.get("loss_unit", ""))
    charts = [curves.curves("loss", loss, "steps", unit, log_x=log)]
    units = {"units_per_second": f"{summary.get('unit', 'units')}/s", "memory_gb": "GB"}
    titles = SPENT | {name: name[4:].replace("_", " ") for name in points if name.startswith("val_")}
    for name, title in titles.items():
        held = points.get(name, [])
        if len({value for _, value in held}) > 1:  # a constant is a number, not a curve
            metric = name.startswith("val_")
            line = Line("", *_split(held), colour=1 if metric else 2, points=metric and len(held) <= 60)
            charts.append(curves.curves(title, [line], "steps", units.get(name, "")))
    drawn = "\n".join(chart for chart in charts if chart)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def columns_of(
    columns: list[str], rows: list[dict[str, str]], along: str = "step"
) -> dict[str, list[tuple[float, float]]]:
    """`(step, value)` of each column of metrics.csv, where it has a value."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name in columns:
        if name != along:
            held = [(float(row[along]), float(row[name])) for row in rows if row.get(name) and row.get(along)]
            found[name] = [(at, value) for at, value in held if math.isfinite(value)]
    return found


def _split(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [at for at, _ in points], [value for _, value in points]


# --- pictures, options ------------------------------------------------------------------------------------------------


def _pictures(paths: list[Path], side: int, colours: int) -> tuple[str, list[str]]:
    """HTML of the pictures, and sentences about those that cannot be shown."""
    from PIL import Image

    shown, problems = [], []
    for path in paths[:MOST_PICTURES]:
        try:
            with open_regular(path) as file:
                if path.stat().st_size > LARGEST_FILE:
                    raise OSError("it is too large")
                content = file.read()
            if len(content) > 300_000 or colours:
                content = document.reduced(path, side, colours)
            else:
                with Image.open(path) as picture:
                    picture.verify()
            shown.append(document.picture(content, path.stem.replace("_", " ")))
        except (OSError, UserError, ValueError, SyntaxError, Image.DecompressionBombError):
            problems.append(f"{path.name} lies beside this page, but cannot be shown here.")
    if len(paths) > MOST_PICTURES:
        problems.append(f"{len(paths) - MOST_PICTURES} more pictures lie beside this page.")
    return "\n".join(shown), problems


def _origin(summary: dict[str, Any]) -> str:
    """The command, and what decides the numbers."""
    if not summary:
        return ""
    names = ("seed", "precision", "devices", "device", "cores", "threads", "memory_gb", "finished")
    rows = [[name.replace("_", " "), _cell(summary[name])] for name in names if summary.get(name) is not None]
    versions = summary.get("versions")
    rows += [[name, version] for name, version in (versions.items() if isinstance(versions, dict) else ())]
    command = document.element("pre", summary.get("command", ""))
    return command + document.table(["", ""], rows)


def _config(run: RunFolder) -> str:
    parts = []
    for path in [run.config, *sorted(run.path.glob("config.until-step-*.yaml"))]:
        try:
            with open_regular(path) as file:
                text = file.read(LARGEST_CONFIG).decode("utf-8", "replace")
        except (OSError, UserError):
            continue
        parts.append(document.folded(path.name, document.element("pre", text)))
    return "\n".join(parts)
