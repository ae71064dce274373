"""`triune recall`: trains small models with the mixers that are named, and shows what each can remember."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ..core.canvas import BLUE, GREEN, GREY, PALE, RED, figure, literal, plain, save
from ..core.errors import UserError
from ..core.files import write_json
from ..core.options import SEED, Parser, add_output, picture_beside, whole
from ..core.version import __version__
from .expected import expected
from .names import choose, sized
from .tasks import TASKS, find

MIXERS = "softmax,window:16,gru,ssd,gated_delta,MMMA"
EVERY = (
    *("softmax", "window:32", "linear", "retention", "ssd", "mamba", "gated_delta", "rglru", "lstm", "gru", "titans"),
    *("titans:gate", "titans:layer", "titans:context", "convolution", "MMMA"),
)
"""What `--mixer all` stands for."""
TITLE = """
got: accuracy, for lag the KL divergence in nats, of several seeds their mean and range; ! where one is not as expected
rows: those with every answer right; floor: chance, for lag the mixture of all lags
bytes: what generation keeps of one row"""
DROPPED = ("s", "rows", "floor", "pairs", "expected", "bytes")
"""Columns of the table that a narrow terminal does without, the first one first."""
COLOURS = (BLUE, RED, GREEN, "#e0a030", "#7b4fa3", GREY, "#5b4636", PALE)


def parser() -> argparse.ArgumentParser:
    """The options of `triune recall`."""
    p = Parser(
        prog="triune recall",
        description="Train small models (2 or 3 layers of width 64, without feed-forward layers) on tasks whose right "
        "answers are known, and show how much each mixer remembers and in how many bytes. One mixer on one task takes "
        "one or two minutes on two cores, `--task all` about half an hour.",
        epilog="tasks: " + "; ".join(f"{name}: {task.about}" for name, task in TASKS.items()),
    )
    p.add_argument("--task", default="mqar", help="tasks, separated by commas, or all (default: mqar)")
    p.add_argument(
        "--mixer", default=MIXERS,
        help=f"mixers, separated by commas: softmax, window:TOKENS, a kind such as mamba2 (ssd), titans:FORM (gate, "
        f"layer, context), or a pattern with a letter a layer; or all (default: {MIXERS})",
    )  # fmt: skip
    p.add_argument("--pairs", help="numbers of pairs to remember, separated by commas (default: 8; needle: 4)")
    p.add_argument("--state", help="sizes of the state, separated by commas, of mixers that have one (default: theirs)")
    p.add_argument("--length", type=whole(8, 1 << 20), help="tokens of a row (default: 64; needle: 512)")
    p.add_argument("--steps", type=whole(1, 1_000_000), help="steps of training (default: those of the task)")
    p.add_argument("--seed", type=SEED, default=0, help="of weights and training rows (default: 0)")
    p.add_argument("--seeds", type=whole(1, 100), default=1, help="trainings of each model, with seeds from --seed on")
    add_output(p, "recall.json")
    return p


def main(args: list[str]) -> int:
    """Runs `triune recall` and returns its exit code."""
    options = parser().parse_args(args)
    picture = picture_beside(options)
    jobs = plan(options)
    from .train import recall

    done: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, 1):
        done.append(recall(**job, watch=Line(f"{number}/{len(jobs)} {job['task']} {job['mixer']}")))
        write_json(
            options.output, {"command": command(args), "version": __version__, "threads": _threads(), "rows": done}
        )
        print(sentence(done[-1]))
    table(done)
    draw(done, picture)
    print(f"Written: {options.output}, {picture}")
    return 0


def command(args: list[str]) -> str:
    """The command line as it was typed."""
    return " ".join(["triune recall", *args])


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is to be trained: the arguments of `recall`, one entry a model.

    Raises:
        UserError: an option is out of range, or nothing uses it.
    """
    names = list(TASKS) if options.task == "all" else words("--task", options.task)
    pairs = numbers("--pairs", options.pairs)
    states = numbers("--state", options.state)
    chosen = list(EVERY) if options.mixer == "all" else words("--mixer", options.mixer)
    jobs = []
    for name in names:
        task = find(name)
        for mixer in chosen:
            kinds = choose(mixer, task.depth).layers
            sizes = states if any(sized(kind, 1) for kind in kinds) else [None]
            for count in pairs if task.pairs else [None]:
                task.check(options.length or task.length, count)
                for size in sizes:
                    job = {"task": name, "mixer": mixer, "pairs": count, "state": size}
                    job |= {"length": options.length, "steps": options.steps}
                    jobs += [job | {"seed": options.seed + more} for more in range(options.seeds)]
    if options.pairs and not any(job["pairs"] for job in jobs):
        raise UserError(f"--pairs is {options.pairs}, but no task of {', '.join(names)} has pairs; leave it out.")
    if options.state and not any(job["state"] for job in jobs):
        raise UserError(
            f"--state is {options.state}, but no mixer of {', '.join(chosen)} has such a size; leave it out."
        )
    return jobs


def words(option: str, text: str) -> list[str]:
    """The names of a list with commas. Raises UserError when one is empty or stands twice."""
    found = [word.strip() for word in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise UserError(f"{option} is '{text}', but must be different names, separated by commas.")
    return found


def numbers(option: str, text: str | None) -> list[Any]:
    """The positive numbers of a list with commas; [None] for no text. Raises UserError for anything else."""
    if text is None:
        return [None]
    found = [word.strip() for word in text.split(",")]
    good = all(word.isascii() and word.isdigit() and 0 < int(word) <= 1 << 16 for word in found)
    if not good or len(set(found)) < len(found):
        raise UserError(f"{option} is '{text}', but must be different numbers from 1 to 65,536, separated by commas.")
    return [int(word) for word in found]


class Line:
    """One line about a training: redrawn in a terminal, and left out of a file.

    Args:
        head: what is trained.
    """

    def __init__(self, head: str) -> None:
        self.head, self.shown, self.start = head, 0.0, time.monotonic()

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Shows that `step` of `steps` is done."""
        now, width = time.monotonic(), 20
        if not sys.stdout.isatty() or (now - self.shown < 0.2 and step < steps):
            return
        self.shown = now
        full = step * width // steps
        left = (now - self.start) / step * (steps - step)
        text = f"{self.head}  {step}/{steps} {'━' * full}{'╌' * (width - full)}  loss {loss:.3f}  {left:.0f} s left"
        print(f"\r\x1b[K{text}" if step < steps else "\r\x1b[K", end="", flush=True)


def title(row: dict[str, Any]) -> str:
    """The mixer of a row, with the size of its state where one was asked for."""
    return row["mixer"] + (f" (state {row['state']})" if row["state"] else "")


def got(row: dict[str, Any]) -> tuple[str, float]:
    """The name and the value of what a row is judged by: KL divergence for `lag`, else accuracy."""
    return ("kl", row["kl"]) if "kl" in row else ("accuracy", row["accuracy"])


def sentence(row: dict[str, Any]) -> str:
    """One row in words."""
    name, value = got(row)
    pairs = f", {row['pairs']} pairs" if row["pairs"] else ""
    said, verdict = judged(row)
    return (
        f"{row['task']}{pairs}, {title(row)}: {name} {value:.3f}"
        + (f", expected {said}: {verdict}" if said else "")
        + f"; {row['state_bytes']:,} bytes of state, {row['seconds']:.0f} s"
    )


def judged(row: dict[str, Any]) -> tuple[str, str]:
    """What is expected of a row, and whether it came; empty texts where nothing is known."""
    wanted = expected(row)
    if wanted is None:
        return "", ""
    low, high = wanted
    value = got(row)[1]
    said = f">= {low:g}" if high is None else f"<= {high:g}"
    fine = value >= low if high is None else value <= high
    return said, "as expected" if fine else "NOT as expected"


def table(rows: list[dict[str, Any]]) -> None:
    """Prints all rows, those of several seeds as one: expected beside got, chance and oracles, bytes of state. A narrow
    terminal gets fewer columns, whole ones.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, cells = Console(), [_cells(same) for same in by_seed(rows)]
    names = list(cells[0]) if cells else []
    for dropped in ("", *DROPPED):
        names = [name for name in names if name != dropped]
        tight: Any = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
        shown = Table(title=TITLE, title_justify="left", title_style="", **tight)
        for name in names:
            shown.add_column(name, justify="left" if name in ("task", "mixer") else "right", no_wrap=True)
        for row in cells:
            shown.add_row(*(row[name] for name in names))
        if sum(max(map(len, [name, *(row[name] for row in cells)])) + 2 for name in names) <= console.width:
            break
    console.print(shown)
    for oracles in {row["task"]: row["oracles"] for row in rows if "oracles" in row}.values():
        known = ", ".join(f"{name.replace('_', ' ')} {abs(value):.4f}" for name, value in oracles.items())
        print(f"lag, KL divergence without learning: {known}")


def _cells(same: list[dict[str, Any]]) -> dict[str, str]:
    """One line of the table by column, of rows that differ in their seed only."""
    row, values = same[0], [got(row)[1] for row in same]
    is_kl = got(row)[0] == "kl"
    mark = " !" if any(judged(row)[1].startswith("NOT") for row in same) else ""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(same) > 1 else ""
    return {
        "task": row["task"],
        "pairs": str(row["pairs"] or ""),
        "mixer": title(row),
        "expected": judged(row)[0],
        "got": f"{'KL ' if is_kl else ''}{mean(values):.3f}{spread}{mark}",
        "rows": f"{mean([row['exact'] for row in same]):.3f}",
        "floor": f"{row['oracles']['mixture'] if is_kl else row['chance']:.3f}",
        "bytes": f"{row['state_bytes']:,}",
        "s": f"{mean([row['seconds'] for row in same]):.0f}",
    }


def by_seed(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows that differ in their seed only, together."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in ("task", "mixer", "pairs", "state", "length", "steps")), []).append(row)
    return list(found.values())


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Draws accuracy over pairs and over bytes of state (PNG); `lag` and `induction` have the second only.

    A point is the mean over seeds, the bar through it their range.
    """
    points = [same[0] | {"values": [got(row)[1] for row in same]} for same in by_seed(rows)]
    points.sort(key=lambda row: (row["pairs"] or 0, row["state_bytes"]))
    tasks = list(dict.fromkeys(row["task"] for row in points))
    drawn = figure(11, 3.6 * len(tasks))
    axes = drawn.subplots(len(tasks), 2, squeeze=False)
    for line, task in zip(axes, tasks):
        here = [row for row in points if row["task"] == task]
        for number, mixer in enumerate(dict.fromkeys(row["mixer"] for row in here)):
            mine = [row for row in here if row["mixer"] == mixer]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^vP*X"[number // len(COLOURS) % 8]}
            for axis, x, other in zip(line, ("pairs", "state_bytes"), ("state", "pairs")):
                for fixed in dict.fromkeys(row[other] for row in mine):  # a line joins what differs in one thing only
                    _line(axis, x, [row for row in mine if row[other] == fixed and row[x]], style, literal(mixer))
        _finish(line, here, task)
    save(drawn, target)


def _line(axis: Any, x: str, rows: list[dict[str, Any]], style: dict[str, str], label: str) -> None:
    """The points of one mixer, joined by a line; the label stands once."""
    if not rows:
        return
    named = label in axis.get_legend_handles_labels()[1]
    places, means = [row[x] for row in rows], [mean(row["values"]) for row in rows]
    axis.plot(places, means, label=None if named else label, linewidth=1.2, **style)
    low, high = ([end(row["values"]) for row in rows] for end in (min, max))
    axis.vlines(places, low, high, colors=style["color"], linewidth=1.2)


def _finish(line: Any, rows: list[dict[str, Any]], task: str) -> None:
    """Labels the two pictures of one task, and draws what can be had without learning."""
    name = got(rows[0])[0]
    floor = max(row["oracles"]["mixture"] for row in rows) if name == "kl" else rows[0]["chance"]
    label = "KL divergence (nats)" if name == "kl" else "accuracy"
    for axis, x in zip(line, ("pairs", "bytes of state of one row")):
        axis.set_xlabel(x)
        axis.set_ylabel(label)
        axis.axhline(floor, color=GREY, linestyle=":", linewidth=1.2)
        if name == "accuracy":
            axis.set_ylim(-0.03, 1.03)
        else:
            axis.set_ylim(bottom=0)
        plain(axis)
    pairs = sorted({row["pairs"] for row in rows if row["pairs"]})
    if pairs:
        line[0].set_xscale("log", base=2)
        line[0].set_xticks(pairs, [str(count) for count in pairs])
    else:
        line[0].set_visible(False)
    line[1].set_xscale("log", base=2)
    line[1].set_title(f"{task}: dotted, {'mixture of the lags' if name == 'kl' else 'chance'}", loc="left", fontsize=11)
    line[0].set_title(f"{task}: {TASKS[task].about}, rows of {rows[0]['length']} tokens", loc="left", fontsize=11)
    line[1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
