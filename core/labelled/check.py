"""`triune TASK check --data.table FILE --neighbours`: copies, leaks and doubtful labels among the rows of a table."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..embeddings.neighbourhood import Found, Items, look
from ..errors import UserError
from ..files import OVERWRITE, check_new, read_json
from ..labels.table import Table, read_table
from ..labels.targets import infer
from ..losses import IGNORED
from ..options import Parser, number, whole
from .predict import ENDINGS, opened, write
from .run import Inputs, Modality, device_of, run

WIDTH = 1024
"""Numbers of the descriptor of a text."""
PLAIN, MODEL = 0.95, 0.98
"""Cosines from which on two rows are alike, by the descriptor and by a model."""
OF_TABLES = "With --data.table FILE --data.input COLUMN --neighbours the rows of a table are checked."
Describe = Callable[[str, Path], np.ndarray]
"""From a cell and the folder of its table to a vector. Raises UserError for an input that cannot be read."""
Draw = Callable[[Found, list[str], Path, Path], None]
"""Draws what was found, given the cell of each row, the folder of the table, and the file to write."""


def asked_for(args: Sequence[str]) -> bool:
    """Whether a command line of `check` is about a table."""
    return any(word.split("=")[0] == "--data.table" for word in args)


def trigrams(cell: str, beside: Path) -> np.ndarray:
    """How often each run of three characters occurs in a text without capitals, as float32 `[1024]`: the square roots
    of the counts, at places that a checksum of the characters gives.
    """
    text, found = f" {' '.join(cell.lower().split())} ", np.zeros(WIDTH, np.float32)
    for at in range(len(text) - 2):
        found[zlib.crc32(text[at : at + 3].encode()) % WIDTH] += 1
    return np.sqrt(found)


def parser(task: str, by: str, drawn: bool = False) -> Parser:
    """The options; `by` says what compares inputs without a model, `drawn` whether inputs can be drawn."""
    p = Parser(
        f"triune {task} check --data.table",
        description="List rows of a table that are copies or near copies, pairs on two sides of a split column, and "
        f"labels that the nearest rows contradict. Inputs are compared by {by}, or by the vectors of a model.",
    )
    p.add_argument("--data.table", dest="table", required=True, metavar="FILE", help="CSV, TSV, JSON lines or Parquet")
    p.add_argument("--data.input", dest="input", required=True, metavar="COLUMN", help="the column of the inputs")
    p.add_argument("--data.target", dest="target", metavar="COLUMN", help="the column of a label, one class a row")
    p.add_argument("--data.split", dest="split", metavar="COLUMN", help="the column of the sides: train, val, test")
    p.add_argument("--neighbours", action="store_true", help="compare all rows with each other; the only check so far")
    p.add_argument("--run", help="compare by the vectors of a run's model")
    p.add_argument("--pretrained", help="compare by those of a checkpoint, as for --model.pretrained")
    p.add_argument(
        "--threshold", type=number(0, 1),
        help=f"least cosine of two rows that are alike (default: {PLAIN}, of a model {MODEL})",
    )  # fmt: skip
    p.add_argument("--k", type=whole(1, 1000), default=10, help="neighbours that are asked about a label (default: 10)")
    p.add_argument("--out", type=Path, help=f"table to write: {', '.join(ENDINGS)}")
    if drawn:
        p.add_argument("--sheet", type=Path, help="picture to write: .png")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--json", action="store_true", help="print everything as JSON")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


def main(
    modality: Modality,
    args: list[str],
    describe: Describe = trigrams,
    by: str = "their runs of three characters",
    draw: Draw | None = None,
) -> int:
    """Runs the check; returns 0, or 2 where an input could not be read."""
    options = parser(modality.task, by, draw is not None).parse_args(args)
    if not options.neighbours:
        raise UserError("--data.table is given without --neighbours, the only check of a table; give both.")
    if options.run and options.pretrained:
        raise UserError("--run and --pretrained are both given; give one.")
    if options.device is not None and not (options.run or options.pretrained):
        raise UserError("--device is given without a model to run there (--run or --pretrained); leave it out.")
    picture = options.sheet if draw is not None else None
    for path, endings in ((options.out, ENDINGS), (picture, (".png",))):
        if path is not None and path.suffix not in endings:
            raise UserError(f"'{path}' must end in {' or '.join(endings)}; give such a name.")
    check_new([path for path in (options.out, picture) if path is not None], options.overwrite)
    wanted = [options.input, *(name for name in (options.target, options.split) if name)]
    table = read_table(options.table, wanted)
    name = options.run or options.pretrained
    values = _described(table, options, describe) if name is None else _by_model(modality, table, options)
    good = [row for row, value in enumerate(values) if not isinstance(value, UserError)]
    for value in values:
        if isinstance(value, UserError):
            print(str(value), file=sys.stderr)
    if len(good) < 2:
        raise UserError(f"Fewer than two rows of '{options.table}' can be read, so that none has a neighbour.")
    matrix = np.stack([values[row] for row in good])
    if name is not None:
        matrix = matrix - matrix.mean(0, keepdims=True)
        by = f"the vectors of {name}, less their mean"
    threshold = options.threshold if options.threshold is not None else (PLAIN if name is None else MODEL)
    kept = table.take(good)
    found = look(matrix, _items(kept, options), threshold, options.k, by)
    _show(found, options)
    if draw is not None and picture is not None:
        draw(found, [str(cell) for cell in kept.columns[options.input]], table.path.parent, picture)
        print(f"Written: {picture}", file=sys.stderr)
    return 2 if len(good) < len(values) else 0


def _show(found: Found, options: Any) -> None:
    if options.out is not None:
        write(found.rows(), options.out)
    print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if options.json else found.text())
    if options.out is not None:
        print(f"Written: {options.out}", file=sys.stderr)


def _items(table: Table, options: Any) -> Items:
    """The rows, with their sides and labels."""
    cells = [str(cell) for cell in table.columns[options.input]]
    names = [f"{_row(table, row)}: {_short(cell)}" for row, cell in enumerate(cells)]
    sides = [str(cell or "") for cell in table.columns[options.split]] if options.split else [""] * len(cells)
    labels, classes = np.full(len(cells), IGNORED), list[str]()
    if options.target:
        target = infer(table, [options.target], "classify")
        labels, classes = np.asarray(target.values), target.names
    return Items(names, sides, labels, classes, [" ".join(cell.split()) for cell in cells])


def _row(table: Table, row: int) -> str:
    """How a message calls a row, without the file, which is always the same."""
    return table.where(row).partition(" of '")[0]


def _short(cell: str) -> str:
    text = " ".join(cell.split())
    return text if len(text) <= 48 else f"{text[:36]}…{text[-11:]}"


def _described(table: Table, options: Any, describe: Describe) -> list[Any]:
    """A vector of each row, or what is wrong with it."""
    from ..work import progress

    found: list[Any] = []
    cells = table.columns[options.input]
    with progress("comparing", len(cells), "rows") as advance:
        for row, cell in enumerate(cells):
            try:
                if cell is None or not str(cell).strip():
                    raise UserError(f"{table.where(row)} has no input; fill it.")
                found.append(describe(str(cell), table.path.parent))
            except UserError as error:
                found.append(error)
            advance(1)
    return found


def _by_model(modality: Modality, table: Table, options: Any) -> list[Any]:
    """The pooled vector of each row, or what is wrong with it."""
    from ..checkpoints.native import CONFIG
    from ..training.run.folder import model_folder

    model = reader = None
    if options.run:
        folder = model_folder(options.run, modality.task)
        if read_json(folder / CONFIG).get("architecture") == modality.model.__name__:
            model, reader = opened(modality, options.run, options.device)
    if model is None or reader is None:
        model, reader = modality.trunk(options.run or options.pretrained, None)
        model = model.to(device_of(options.device))
    if model.config.pool is None:
        raise UserError("The model of this run answers every token, so that rows have no vector; give --pretrained.")
    cells = ["" if cell is None else str(cell) for cell in table.columns[options.input]]
    inputs = Inputs(cells, [table.where(row) for row in range(len(cells))], table.path.parent)
    called = run(model, reader, inputs, lambda batch: model.pooled(model.tokens(batch)), 64, "comparing")
    return [row if isinstance(row, UserError) else row.numpy() for _, _, row in called]
