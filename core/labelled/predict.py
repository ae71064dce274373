"""`triune TASK predict RUN INPUT …`: the answers of a model with a head, as a table."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.native import CONFIG
from ..errors import UserError
from ..files import OVERWRITE, check_new, few, read_json, written_whole
from ..labels.table import is_table
from ..lock import claim
from ..options import Parser, whole
from ..options import number as between
from ..shown import print_table
from ..training.run.folder import ROOT, model_folder
from ..views import ABOUT, KINDS
from .model import LabelledModel
from .reader import Reader
from .run import Inputs, Modality, device_of, run

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
MOST_SHOWN = 40
"""Rows that the terminal shows."""


def parser(modality: Modality) -> Parser:
    """The options of `triune TASK predict` for a model with a head."""
    name = f"triune {modality.task} predict"
    p = Parser(name, description="The answers of a model that was trained on a table, with calibrated probabilities or "
               "intervals.")  # fmt: skip
    p.add_argument("run", metavar="RUN", help="folder of the run or of its model")
    p.add_argument("inputs", metavar="INPUT", nargs="*", help="what to answer; - reads a line each from standard input")
    p.add_argument("--table", metavar="FILE", help="take the inputs from a table; its columns stand beside the answers")
    p.add_argument("--input", metavar="COLUMN", help="the column of the inputs in --table")
    p.add_argument("--out", type=Path, help=f"file to write: {', '.join(ENDINGS)}; left out: a table is printed")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--batch_size", type=whole(1), default=64, help="inputs of a batch, at most (default: 64)")
    if modality.painter is not None:
        masks = "also write the answers to the patches of each image as a mask of its size into this new folder"
        p.add_argument("--masks", type=Path, metavar="FOLDER", help=masks)
        p.add_argument("--max_megapixels", type=between(0, 10_000), help="larger images are not read (default: 80)")
    if modality.views is not None:
        p.add_argument("--tta", choices=KINDS, default="none", help=ABOUT)
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


def main(modality: Modality, args: list[str]) -> int:
    """Runs `triune TASK predict`; returns 0, or 2 where an input could not be read."""
    options = parser(modality).parse_args(args)
    if options.out is not None:
        if options.out.suffix not in ENDINGS:
            raise UserError(f"--out is '{options.out}', but must end in one of {', '.join(ENDINGS)}.")
        check_new([options.out], options.overwrite)
    if modality.painter is not None and options.masks is not None:
        _check_folder(options.masks, options.out)
    inputs, others = inputs_of(modality, options.inputs, options.table, options.input)
    model, reader = opened(modality, options.run, options.device)
    if modality.painter is not None and options.max_megapixels is not None:
        reader.accept(options.max_megapixels)
    call: Any = model
    if modality.views is not None and options.tta != "none":
        call, notes = modality.views(model, options.tta, options.run)
        print("\n".join(notes), file=sys.stderr)
    paint = None
    if modality.painter is not None and options.masks is not None:
        paint = _painting(modality.painter(model, options.masks), inputs, options.out)
    rows, failed = answers(model, reader, inputs, others, options.batch_size, call, paint)
    if options.out is None:
        show(rows)
    else:
        write(rows, options.out)
        print(f"{len(rows) - failed:,} answers are in {options.out}.", file=sys.stderr)
    if paint is not None:
        print(f"{len(rows) - failed:,} masks are in {options.masks}.", file=sys.stderr)
    for note in reader.notes():
        print(f"{note}.", file=sys.stderr)
    if not model.head.spec.calibration:
        print("The answers are not calibrated: no calibration is stored with this model.", file=sys.stderr)
    return 2 if failed else 0


def _check_folder(folder: Path, out: Path | None) -> None:
    """Claims the folder of the masks. Raises UserError where it is there and holds something, where a file is, or where
    another process fills it.
    """
    if out is not None and os.path.abspath(folder) == os.path.abspath(out):
        raise UserError(f"--masks and --out are both '{folder}', but must be two names; give another one.")
    claim([folder])
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--masks is '{folder}', which exists already; give the name of a new folder.")


def _painting(paint: Any, inputs: Inputs, out: Path | None) -> Callable[[int, dict[str, Any]], str]:
    """What writes the mask of an input, given its number and the answers to its parts; it returns the name of the file,
    relative to that of the answers, as the cell of a table that is to be trained on names a mask.
    """
    names = names_apart([str(inputs.beside / Path(cell).expanduser()) for cell in inputs.cells])
    beside = Path() if out is None else out.parent

    def write_one(number: int, found: dict[str, Any]) -> str:
        written = paint(names[number], inputs.cells[number], inputs.beside, found)
        return Path(os.path.relpath(written, beside)).as_posix()

    return write_one


def names_apart(files: Sequence[str]) -> list[str]:
    """A name without ending for what is made of each file: its own, with its folder below the one that all share, and
    with its ending, where others would have the same; a number behind a file that is there more than once.
    """
    all_paths = [Path(os.path.abspath(file)) for file in files]
    paths = list(dict.fromkeys(all_paths))
    shared = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    below = [(path.parent.relative_to(shared), path) for path in paths]
    forms = [(path.stem, str(folder / path.stem), str(folder / path.name)) for folder, path in below]
    names = [form[0] for form in forms]
    for longer in (1, 2):
        often = Counter(name.casefold() for name in names)
        names = [form[longer] if often[name.casefold()] > 1 else name for form, name in zip(forms, names)]
    once, taken, found = dict(zip(paths, names)), set[str](), list[str]()
    for path in all_paths:
        tries = (once[path] if k == 1 else f"{once[path]}_{k}" for k in range(1, len(all_paths) + 2))
        found.append(next(one for one in tries if one.casefold() not in taken))
        taken.add(found[-1].casefold())
    return found


def inputs_of(
    modality: Modality, words: Sequence[str], table: str | None, column: str | None
) -> tuple[Inputs, dict[str, list[Any]]]:
    """The inputs of a command line, and what else its table says of each."""
    if table is not None and words:
        raise UserError(f"Inputs ({few(list(words))}) and --table are both given; give one of the two.")
    if (table is None) != (column is None):
        given, other = ("--table", "--input COLUMN") if table else ("--input", "--table FILE")
        raise UserError(f"{given} is given without {other}; give both.")
    if table is not None and column is not None:
        from ..labels.table import read_table

        found = read_table(table, read_table(table).names)
        if column not in found.columns:
            found = read_table(table, [column])  # says which columns there are
        cells = ["" if cell is None else str(cell) for cell in found.columns[column]]
        names = [found.where(row) for row in range(len(found))]
        return Inputs(cells, names, found.path.parent), found.columns
    piped = list(words) == ["-"]
    if piped:
        words = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not words:
        raise UserError("No input is given; give some, - for standard input, or --table FILE --input COLUMN.")
    if piped and modality.words:
        pairs = [(line, f"text {number}" if len(line) > 60 else line) for number, line in enumerate(words, 1)]
    else:
        for word in () if modality.words else words:
            if is_table(Path(word)) and Path(word).is_file():
                raise UserError(f"'{word}' is a table; pass it as --table FILE --input COLUMN.")
        pairs = modality.expand(words)
    return Inputs([cell for cell, _ in pairs], [name for _, name in pairs]), {"input": [name for _, name in pairs]}


def opened(modality: Modality, run_or_folder: str, device: str | None = None) -> tuple[LabelledModel, Reader]:
    """A model with a head, on its device, and what reads its inputs: a run, a model folder, or a classifier of another
    library. Raises UserError where there is no head.
    """
    if _has_our_head(run_or_folder, modality):
        folder = model_folder(run_or_folder, modality.task)
        model = modality.model.from_pretrained(folder).eval().to(device_of(device))
        return model, modality.reader(model, folder)
    found = modality.headed(run_or_folder) if modality.headed else None
    if found is None:
        raise UserError(
            f"'{run_or_folder}' has no head for labels of {modality.task} inputs; train one: triune "
            f"{modality.task} fit --data.table FILE --model.pretrained {run_or_folder}."
        )
    return found[0].to(device_of(device)), found[1]


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a checkpoint and no run: a folder with a config.json, a file, or a name of the hub."""
    path = Path(name)
    if path.is_dir():
        return (path / CONFIG).is_file()
    return path.is_file() or (name.count("/") == 1 and name.split("/")[0] not in (ROOT, ".", "..", "~"))


def _has_our_head(name: str, modality: Modality) -> bool:
    """Whether a name is that of a run whose model has a head for a table, of such a model, or of nothing."""
    held = next((f for f in (Path(name) / CONFIG, Path(name) / "model" / CONFIG) if f.is_file()), None)
    if held is None:
        return not is_checkpoint(name)
    return read_json(held).get("architecture") == modality.model.__name__


def other_head(run: str, modality: Modality) -> bool:
    """Whether a run holds a model that was trained without a table, and has classes all the same."""
    if _has_our_head(run, modality) or modality.headed is None:
        return False
    return modality.headed(run) is not None


def answers(
    model: LabelledModel,
    reader: Reader,
    inputs: Inputs,
    others: dict[str, list[Any]],
    batch_size: int,
    call: Any = None,
    paint: Any = None,
) -> tuple[list[dict[str, Any]], int]:
    """A row for each input: what is known of it, the answers, and a `problem` where it could not be read; and how many
    could not. `call` gives the outputs for a batch in the place of the model, `paint` gets the number of each input and
    the answers to its parts, and returns the name of the mask that it writes.
    """
    rows: list[dict[str, Any]] = []
    failed = 0
    per_token = model.head.per_token

    for number, sample, output in run(model, reader, inputs, call or model, batch_size, "answering"):
        row = {name: cells[number] for name, cells in others.items()}
        if isinstance(output, UserError):
            failed += 1
            print(str(output), file=sys.stderr)
            rows.append(row | {"problem": str(output)})
            continue
        if per_token:
            places = reader.places(sample)
            found = model.head.predict(output[places])
            drawn = {} if paint is None else {"mask": paint(number, found)}
            cells = {
                name: _tagged(values, places >= 0, reader.between, partial(reader.arranged, sample=sample))
                for name, values in found.items()
            } | drawn
        else:
            cells = {name: _cell(values[0]) for name, values in model.head.predict(output[None]).items()}
        rows.append(row | renamed(cells, row))
    return rows, failed


def renamed(found: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """Answers under names that no column of the table has."""
    return {f"predicted_{name}" if name in taken else name: value for name, value in found.items()}


def _cell(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _tagged(values: np.ndarray, known: np.ndarray, between: str | None, arranged: Any) -> Any:
    """What a cell holds of the parts of one input: a text of their letters or words, or a list; None for a part without
    an answer.
    """
    listed = [_cell(value) if there else None for value, there in zip(values, known)]
    letters = [value for value in listed if isinstance(value, str)]
    if (
        between is not None
        and letters
        and len(letters) == len(listed)
        and all(len(v.split() if between else v) == 1 for v in letters)
    ):
        return between.join(letters)
    return arranged([round(value, 5) if isinstance(value, float) else value for value in listed])


def columns_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All columns, in the order they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes a table whole or not at all, in the format of its ending."""
    names = columns_of(rows)
    with written_whole(path) as part:
        if path.suffix in (".json", ".jsonl"):
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            begin, between, end = (
                ("[\n", ",\n", "\n]\n") if path.suffix == ".json" else ("", "\n", "\n" if rows else "")
            )
            with part.open("w", encoding="utf-8") as file:
                file.writelines((begin, between.join(lines), end))
        elif path.suffix == ".parquet":
            _write_parquet(rows, names, part)
        else:
            import csv

            with part.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                table.writerow(names)
                table.writerows([_text(row.get(name)) for name in names] for row in rows)


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


def _write_parquet(rows: list[dict[str, Any]], names: list[str], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError("Writing .parquet needs pyarrow: pip install 'triune[datasets]', or write .csv.") from None
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the first rows as a table; probabilities of classes beyond the named one only in files."""
    names = [name for name in columns_of(rows) if not name.rpartition(".")[2].startswith("p_")]
    print_table(names, ([_short(row.get(name)) for name in names] for row in rows[:MOST_SHOWN]), None)
    if len(rows) > MOST_SHOWN:
        print(f"… and {len(rows) - MOST_SHOWN:,} more; --out FILE writes all, with the probability of every class.")


def _summed_up(rows: list[list[Any]]) -> str:
    """A grid in a few words: the part of each label, the commonest first, or the mean of its numbers."""
    values, size = [value for row in rows for value in row], f"{len(rows)}×{len(rows[0])}"
    if all(isinstance(value, float) for value in values):
        return f"{size}, mean {sum(values) / len(values):.4g}"
    parts = [f"{label} {count / len(values):.0%}" for label, count in Counter(values).most_common(4)]
    return f"{size}: {', '.join(parts)}{', …' if len(set(values)) > 4 else ''}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        return _summed_up(value)
    text = str(_text(value))
    return text if len(text) <= 80 else f"{text[:60]}…{text[-18:]}"
