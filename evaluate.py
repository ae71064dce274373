"""`triune evaluate RUN --tasks …`: a trained model on tables of labels, or on tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import UserError
from .core.files import OVERWRITE, check_new, read_bytes, read_json, write_atomic, write_json
from .core.options import Parser, whole
from .core.shown import csv_text, print_table
from .core.task import named
from .tasks import tasks

if TYPE_CHECKING:
    from .core.labelled.run import Modality

ENDINGS = (".json", ".csv")
WITHOUT = (
    "Tasks of lm-evaluation-harness need that library: pip install 'triune[evaluate]' (or lm-eval). Tables of labels "
    "(.csv, .tsv, .jsonl, .parquet) need nothing."
)


def parser() -> argparse.ArgumentParser:
    """The options of `triune evaluate`."""
    p = Parser(
        prog="triune evaluate",
        description="Judge a trained model on further tasks. A model with a head for labels (--data.table) takes "
        "tables, or a YAML file that lists some (`tables:`, each with `table`, and `input`, `target`, `name` where "
        "they are not those of the training). A language model takes tasks of lm-evaluation-harness by name, or the "
        "YAML file of one.",
    )
    p.add_argument(
        "model", metavar="RUN", help="a run or a model folder; a checkpoint of a classifier or a language model"
    )
    p.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="tables, YAML files, or names of tasks")
    p.add_argument(
        "--include", action="append", default=[], metavar="FOLDER", help="further tasks of the harness lie here"
    )
    p.add_argument("--shots", type=whole(0), help="examples before each question (default: those of the task)")
    p.add_argument("--limit", type=whole(1), help="only the first examples of each task of the harness")
    p.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop", help="what rows of tables that cannot be used do"
    )
    p.add_argument("--batch_size", type=whole(1), default=64, help="inputs of a batch, at most (default: 64)")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures: .json or .csv")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    return p


def main(args: list[str]) -> int:
    """Runs `triune evaluate`; returns 0, or 2 where an input could not be read."""
    options = parser().parse_args(args)
    if options.out is not None:
        if options.out.suffix not in ENDINGS:
            raise UserError(f"--out is '{options.out}', but must end in {' or '.join(ENDINGS)}; give such a name.")
        check_new([options.out], options.overwrite)
    of_tables = [word for word in options.tasks if _is_table(word)]
    if of_tables and len(of_tables) < len(options.tasks):
        other = next(word for word in options.tasks if word not in of_tables)
        raise UserError(f"'{of_tables[0]}' is a table and '{other}' is none; evaluate them one after the other.")
    found, code = (_tables if of_tables else _harness)(options)
    if options.out is not None:
        if options.out.suffix == ".json":
            write_json(options.out, {"model": options.model, **found})
        else:
            write_atomic(options.out, _csv(found["figures"]).encode())
        print(f"The figures are in {options.out}.")
    return code


def _is_table(word: str) -> bool:
    """Whether a word of --tasks is a table, or a file that lists some."""
    from .core.labels.table import is_table

    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return re.search(rb"^tables:", read_bytes(path, 1_000_000), re.M) is not None
    return is_table(path) or (path.is_file() and path.suffix != "")


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    for name in ("include", "shots", "limit"):
        if getattr(options, name) not in (None, []):
            raise UserError(
                f"--{name} is for tasks of lm-evaluation-harness, and changes nothing in tables; leave it out."
            )
    from .core.labelled.evaluate import judge_tables, listed, rows_of

    several = listed(options.tasks)
    modality = _modality(options.model)
    skip = options.on_error == "skip"
    judged = judge_tables(modality, options.model, several, options.batch_size, options.device, skip)
    rows = rows_of(judged)
    shown = [
        [row["table"], f"{row['examples']:,}", row["figure"].replace("_", " "), _number(row["value"]), _between(row),
         _number(row["constant_answer"])]
        for row in rows
    ]  # fmt: skip
    _show(["table", "examples", "figure", "value", "95 % interval", "constant answer"], shown)
    notes = [f"{one.name}: {note}" for one in judged for note in one.notes]
    for note in notes:
        print(f"{note}.")
    return {"figures": rows, "notes": notes}, 2 if any(one.failed for one in judged) else 0


def _modality(name: str) -> Modality:
    """The task of a model with a head. Raises UserError for another model."""
    from .convert import task_of
    from .core.checkpoints.native import CONFIG
    from .core.labelled.predict import is_checkpoint
    from .core.training.run.folder import RunFolder, model_folder

    if is_checkpoint(name) and not _is_ours(Path(name) / CONFIG):
        found = tasks()[task_of(name)].modality  # a classifier of another library
        if found:
            return named(found)
    folder = model_folder(name, RunFolder(name).task or "TASK")
    kind = str(read_json(folder / CONFIG).get("architecture"))
    for task in tasks().values():
        if task.modality and kind in task.own:
            modality: Modality = named(task.modality)
            if modality.model.__name__ == kind:
                return modality
    raise UserError(
        f"'{name}' is a {kind}, which has no head for the labels of a table; train one with `fit --data.table`."
    )


def _is_ours(path: Path) -> bool:
    return path.is_file() and read_json(path).get("library") == "triune"


# --- the harness ------------------------------------------------------------------------------------------------------


def _harness(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    if options.on_error != "stop":
        raise UserError("--on_error is for tables of labels, and changes nothing in other tasks; leave it out.")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(WITHOUT)
    model, tokenizer = named("triune.text.generate:load")(options.model, options.device)
    run = named("triune.text.harness:run")
    rows, notes = run(
        model.eval(), tokenizer, options.tasks, options.include, options.shots, options.limit, options.batch_size
    )
    shown = [
        [row["task"], "" if row["examples"] is None else f"{row['examples']:,}", row["figure"], _number(row["value"]),
         "" if not row["error"] else f"± {_number(row['error'])}", _number(row["chance"])]
        for row in rows
    ]  # fmt: skip
    _show(["task", "examples", "figure", "value", "standard error", "chance"], shown)
    for note in notes:
        print(f"{note}.")
    return {"figures": rows, "notes": notes}, 0


# --- showing ----------------------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    from .core.evaluate.judgement import shown

    return "" if value is None else shown(value)


def _between(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"{_number(row['low'])} to {_number(row['high'])}"


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines, before = [], ""
    for row in rows:
        lines.append(["", "", *row[2:]] if row[0] == before else list(row))
        before = row[0]
    texts = {number for number, name in enumerate(columns) if name in ("table", "task", "figure")}
    print_table(columns, lines, texts)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(rows[0]) if rows else []
    return csv_text(columns, ([row[name] for name in columns] for row in rows))
