"""A model with a head judged on several tables of labels, without its training: the figures of each, with intervals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_keys
from ..errors import UserError
from ..evaluate.judgement import Judgement
from ..files import few
from ..labels.table import is_table
from ..training.run.folder import RunFolder
from ..yaml_files import read_yaml
from .predict import opened
from .rows import Columns, Rows, read_rows
from .run import Inputs, Modality, run


@dataclass(frozen=True)
class Listed:
    """One table to be judged on.

    Args:
        table: its file.
        input: column of what the model reads; None takes that of the training.
        target: columns of the labels; None takes those of the training.
        name: what the figures call it; empty takes the name of the file.
    """

    table: str
    input: str | None = None
    target: str | tuple[str, ...] | None = None
    name: str = ""


@dataclass(frozen=True)
class Judged:
    """The figures of one table.

    Args:
        name: of the table.
        judgement: its figures.
        failed: inputs that could not be read.
        notes: how the table was read, each a sentence without its full stop.
    """

    name: str
    judgement: Judgement
    failed: int
    notes: list[str]


def listed(words: Sequence[str]) -> list[Listed]:
    """The tables of a command line: files, or YAML files with a list `tables`, whose paths are relative to them.

    Raises:
        UserError: a word is neither, or an entry is not as it must be.
    """
    found: list[Listed] = []
    for word in words:
        path = Path(word)
        if path.suffix not in (".yaml", ".yml"):
            if not is_table(path):
                raise UserError(
                    f"'{word}' is no table (.csv, .tsv, .jsonl, .parquet) and no YAML file that lists some."
                )
            found.append(Listed(word, name=path.name))
            continue
        content = read_yaml(path, f"'{word}'")
        entries = content.get("tables") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise UserError(f"'{word}' has no list `tables`; write one entry a table, with `table: FILE` in it.")
        found += [_entry(entry, path) for entry in entries]
    names = [one.name for one in found]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two tables are called '{doubled}'; list them in a YAML file, each with another `name`.")
    return found


def _entry(entry: Any, path: Path) -> Listed:
    entry = {"table": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("table"), str):
        raise UserError(f"An entry of `tables` in '{path}' is {entry!r}, but must have `table: FILE`.")
    values = dict(check_keys(Listed, entry, f"tables of '{path}'"))
    for name, value in values.items():
        texts = isinstance(value, str) or (name == "target" and isinstance(value, list) and value)
        if not texts or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            raise UserError(f"`{name}` of a table in '{path}' is {value!r}, but must be a text; put it in quotes.")
    table = path.parent / values["table"]
    target = values.get("target")
    return Listed(
        str(table), values.get("input"), tuple(target) if isinstance(target, list) else target,
        values.get("name", table.name),
    )  # fmt: skip


def judge_tables(
    modality: Modality, folder: str, tables: Sequence[Listed], batch_size: int = 64, device: str | None = None,
    skip: bool = False,
) -> list[Judged]:  # fmt: skip
    """Judges the model of a run on each table, by the calibration that is stored with it.

    Args:
        modality: of its task.
        folder: of the run, or of its model.
        tables: which to judge on.
        batch_size: inputs of a batch, at most.
        device: to run on.
        skip: leaves out rows that cannot be used, rather than stopping.

    Raises:
        UserError: a table or one of its rows cannot be used.
    """
    model, reader = opened(modality, folder, device)
    spec, found = model.head.spec, []
    chosen, masks = _columns_of_training(folder), modality.masks
    if masks is not None and (called := model.config.reads.get("mask_names")):
        masks = masks._replace(called=called)
    asked = []
    for one in tables:  # all are read before the first is judged
        target = one.target or chosen.get("target") or spec.names
        names = tuple(part.strip() for part in target.split(",")) if isinstance(target, str) else tuple(target)
        column = one.input or chosen.get("input")
        if column is None:
            raise UserError(
                f"'{folder}' does not say which column its inputs were in; list the tables in a YAML file, each with "
                "`table`, `input` and `target`."
            )
        columns = Columns(one.table, str(column), names, missing=tuple(chosen.get("missing") or ()), skip=skip,
                          words=modality.words, masks=masks)  # fmt: skip
        asked.append((one, read_rows(columns, spec, "test")))
    for one, rows in asked:
        beside = rows.table.path.parent
        inputs = Inputs(rows.inputs, [rows.name(row) for row in range(len(rows))], beside)
        outputs, targets, groups, failed = _answers(model, reader, inputs, rows, batch_size, one.name)
        judgement = model.head.judge(outputs, targets, dict(spec.calibration), groups)
        found.append(Judged(one.name, judgement, failed, [*rows.notes, *reader.notes()]))
    return found


def _columns_of_training(folder: str) -> dict[str, Any]:
    """The columns that the training of a run read; nothing for a folder of a model."""
    path = RunFolder(folder).config
    content = read_yaml(path, str(path)) if path.is_file() else {}
    data = content.get("data") if isinstance(content, dict) else None
    return data if isinstance(data, dict) else {}


def _answers(
    model: Any, reader: Any, inputs: Inputs, rows: Rows, batch_size: int, label: str
) -> tuple[Tensor, Any, np.ndarray, int]:
    """Outputs `[examples, width]`, their targets, the row of each, and how many inputs could not be read.

    Examples are rows, or the tokens of rows.
    """
    outputs, kept, problems, places = [], [], [], []
    given: dict[int, np.ndarray] = {}
    values, per_token = rows.target.values, model.head.per_token
    for number, sample, output in run(model, reader, inputs, model, batch_size, f"answering {label}"):
        if isinstance(output, Tensor) and per_token:
            found = reader.labels(values[number], inputs.cells[number], inputs.beside)
            given[number], there = found, reader.whole(inputs.cells[number], sample)
            if (labels := len(found)) and labels != there:
                must = f"{there} {reader.parts}, but must have one for each; mend it."
                raise UserError(f"{rows.name(number)} has {labels} labels for {must}")
        if isinstance(output, UserError):
            problems.append(str(output))
            continue
        where = reader.places(sample) if per_token else np.zeros(1, np.int64)
        places.append(where >= 0)
        outputs.append(output[where[where >= 0]] if per_token else output[None])
        kept.append(number)
    if not kept:
        raise UserError(f"No input of '{label}' can be read; the first: {few(problems, 1)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if not per_token:
        assert isinstance(values, np.ndarray)
        return torch.cat(outputs), torch.from_numpy(values[kept]), np.asarray(kept), len(problems)
    whole = [given[number][: len(there)] for number, there in zip(kept, places)]
    each = [part[there[: len(part)]] for part, there in zip(whole, places)]
    outputs = [output[: len(part)] for output, part in zip(outputs, each)]
    groups = np.repeat(kept, [len(part) for part in each])
    return torch.cat(outputs), torch.from_numpy(np.concatenate(each)), groups, len(problems)


def rows_of(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row for each figure: `table`, `examples`, `figure`, `value`, `low`, `high` (95 %), `constant_answer`."""
    found = []
    for one in judged:
        j = one.judgement
        for name, value in j.metrics.items():
            low, high = j.intervals.get(name, (None, None))
            found.append({
                "table": one.name, "examples": j.count, "figure": name, "value": value, "low": low, "high": high,
                "constant_answer": j.baseline.get(name),
            })  # fmt: skip
    return found
