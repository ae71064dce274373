"""`triune vision check FOLDER --neighbours`: copies, leaks and doubtful labels among images, and a sheet of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.embeddings.neighbourhood import Found, Items, look
from ..core.errors import UserError
from ..core.files import OVERWRITE, check_new
from ..core.options import Parser, number, whole
from ..core.training.run.machine import usable_cores
from ..core.work import progress
from .data.batches import load
from .data.collection import Collection
from .data.scan import Record

SIDE = 16
"""Pixels of a side of the descriptor without a model."""
BATCH = 64
BY = f"{SIDE}×{SIDE} pixels less their mean"
"""What compares images without a model."""
MOST_DRAWN = 12
"""Pairs, and labels in doubt, of the sheet."""
PLAIN, MODEL = 0.99, 0.98
"""Cosines from which on two images are alike, by the descriptor and by a model."""


def add_options(parser: Parser) -> None:
    """The options of `triune vision check` that belong to neighbours."""
    p = parser.add_argument_group("neighbours")
    p.add_argument(
        "--neighbours", action="store_true",
        help="also list copies, near copies, pairs on two sides, and labels that the nearest images contradict; by "
        f"{BY}, or by a model",
    )  # fmt: skip
    p.add_argument("--run", help="compare by the vectors of a run's model")
    p.add_argument("--pretrained", help="compare by those of a checkpoint, as for --model.pretrained")
    p.add_argument(
        "--threshold", type=number(0, 1),
        help=f"least cosine of two that are alike (default: {PLAIN}, of a model {MODEL})",
    )  # fmt: skip
    p.add_argument("--k", type=whole(1, 1000), help="neighbours that are asked about a label (default: 10)")
    p.add_argument("--out", type=Path, help="table to write: .csv, .tsv, .jsonl, .parquet")
    p.add_argument("--sheet", type=Path, help="picture to write: .png")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    from ..core.labelled.predict import ENDINGS

    own = ("run", "pretrained", "threshold", "k", "out", "sheet")
    given = [name for name in own if getattr(options, name) is not None]
    if given and not options.neighbours:
        raise UserError(f"--{given[0]} is given without --neighbours, to which it belongs; give both.")
    if options.run and options.pretrained:
        raise UserError("--run and --pretrained are both given; give one.")
    for path, endings in ((options.out, ENDINGS), (options.sheet, (".png",))):
        if path is not None and path.suffix not in endings:
            raise UserError(f"'{path}' must end in {' or '.join(endings)}; give such a name.")
    check_new([path for path in (options.out, options.sheet) if path is not None], options.overwrite)


def neighbours(collection: Collection, records: dict[str, list[Record]], options: argparse.Namespace) -> Found:
    """Compares all images that can be read, and writes what was asked for."""
    places = [
        (side, index)
        for side in collection.sides
        for index in range(len(collection.sides[side]))
        if not records[side][index].problem
    ]
    if len(places) < 2:
        raise UserError("Fewer than two images can be read, so that none has a neighbour; give more.")
    name = options.run or options.pretrained
    values = _described(collection, places) if name is None else _by_model(collection, places, name)
    items = Items(
        [collection.sides[side].names[index] for side, index in places],
        [side if len(collection.sides) > 1 else "" for side, _ in places],
        np.array([collection.sides[side].labels[index] for side, index in places], dtype=np.int64),
        collection.classes,
        [records[side][index].digest for side, index in places],
    )
    threshold = options.threshold if options.threshold is not None else (PLAIN if name is None else MODEL)
    by = BY if name is None else f"the vectors of {name}, less their mean"
    found = look(values, items, threshold, options.k or 10, by)
    if options.out is not None:
        from ..core.labelled.predict import write

        write(found.rows(), options.out)
    if options.sheet is not None:
        sheet(found, lambda row: load(collection.sides[places[row][0]], places[row][1], 3), options.sheet)
    return found


def descriptor(image: Any) -> np.ndarray:
    """A picture as float32 `[768]`: its colours in 16 x 16 parts, each channel less its mean; zeros for one colour."""
    from PIL.Image import Resampling

    small = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Resampling.BOX), dtype=np.float32)
    return (small - small.mean((0, 1), keepdims=True)).reshape(-1)


def described_file(cell: str, beside: Path) -> np.ndarray:
    """`descriptor` of the image file that a cell of a table names. Raises UserError for one that cannot be read."""
    from .data.images import read_image

    path = beside / Path(cell).expanduser()
    return descriptor(read_image(path, 3, str(path)))


def _described(collection: Collection, places: list[tuple[str, int]]) -> np.ndarray:
    """`descriptor` of each image, `[images, 768]`."""

    def one(place: tuple[str, int]) -> np.ndarray:
        return descriptor(load(collection.sides[place[0]], place[1], 3))

    with ThreadPoolExecutor(usable_cores()) as pool, progress("comparing", len(places), "images") as advance:
        found = []
        for vector in pool.map(one, places):
            found.append(vector)
            advance(1)
    return np.stack(found)


def _by_model(collection: Collection, places: list[tuple[str, int]], name: str) -> np.ndarray:
    """The pooled vectors of a model, less their mean, `[images, width]`."""
    from ..core.labelled.run import device_of
    from .classify import open_model

    device = device_of(None)
    model = open_model(name)[0].eval().to(device)
    config, found = model.config, []

    def one(place: tuple[str, int]) -> Tensor:
        image = load(collection.sides[place[0]], place[1], config.channels)
        return config.preprocessing.pixels(image, config.input_size)

    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        progress("comparing", len(places), "images") as advance,
        torch.inference_mode(),
    ):
        for start in range(0, len(places), BATCH):
            pixels = torch.stack(list(pool.map(one, places[start : start + BATCH]))).to(device)
            found.append(model.features(config.preprocessing.normalise(pixels)).float().cpu())
            advance(len(pixels))
    values = torch.cat(found).numpy()
    return values - values.mean(0, keepdims=True)


def sheet_of_table(found: Found, cells: list[str], beside: Path, target: Path) -> None:
    """`sheet` of the images that cells of a table name, relative to the folder `beside`."""
    from .data.images import read_image

    def image(row: int) -> Any:
        path = beside / Path(cells[row]).expanduser()
        return read_image(path, 3, str(path))

    sheet(found, image, target)


def sheet(found: Found, image: Callable[[int], Any], target: Path) -> None:
    """Draws pairs side by side, those on two sides first, and images whose label is in doubt; `image` gives that of a
    row.
    """
    from ..core.canvas import RED, clip, figure, save
    from .evaluate.plots import show

    leaks = set(found.leaks)
    pairs = [*found.leaks, *(pair for pair in found.pairs if pair not in leaks)][:MOST_DRAWN]
    doubts = (found.doubts.doubts if found.doubts else [])[:MOST_DRAWN]
    rows = max(1, -(-len(pairs) // 3) + -(-len(doubts) // 6))
    drawn = figure(10.8, 2.2 * rows + 0.5)
    grid = drawn.subplots(rows, 6, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()

    def put(axes: Any, row: int, words: str, red: bool = False) -> None:
        show(axes, image(row))
        side, label = found.items.sides[row], found.items.label(row)
        said = " · ".join(filter(None, (side, clip(label, 18))))
        axes.set_title(f"{said}\n{words}", fontsize=8, color=RED if red else "black")

    for place, (first, second, cosine, equal) in enumerate(pairs):
        line, column = divmod(place, 3)
        leak = found.items.sides[first] != found.items.sides[second]
        alike = "equal" if equal else f"cosine {cosine:.3f}"
        put(grid[line][2 * column], first, alike, leak)
        put(grid[line][2 * column + 1], second, alike, leak)
    below = -(-len(pairs) // 3)
    for place, doubt in enumerate(doubts):
        line, column = divmod(place, 6)
        other = clip(str(found.items.classes[doubt.other]), 18)
        put(grid[below + line][column], doubt.row, f"{doubt.votes:.0%} near: {other}")
    title = f"{len(found.pairs):,} pairs alike (two sides in red), {len(found.doubts.doubts) if found.doubts else 0:,} "
    drawn.suptitle(f"{title}labels in doubt", x=0.01, ha="left", fontsize=10)
    save(drawn, target)
