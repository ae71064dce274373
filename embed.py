"""`triune embed`: vectors of texts, proteins or images, of a run or a checkpoint, into a file with their names."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import UserError, nearest
from .core.files import OVERWRITE
from .core.options import Parser, whole, wholes
from .core.options import number as between
from .core.task import named
from .tasks import tasks

if TYPE_CHECKING:
    from torch import Tensor

    from .core.labelled.model import LabelledModel
    from .core.labelled.reader import Reader
    from .core.labelled.run import Inputs, Modality

PART = 512
"""Inputs whose vectors are written at once; what was written survives the end of the process."""

WHOLE = 16 << 20
"""Bytes of a file whose content tells whether it has changed; of a larger one its size and time do."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune embed`."""
    p = Parser(
        prog="triune embed",
        description="Write the vectors of inputs, pooled or of every token, with their names. What was written is kept "
        "when the command is stopped; the same command goes on.",
        epilog="`triune nearest` searches the file.",
    )
    p.add_argument("inputs", nargs="*", metavar="INPUT", help="texts, sequences or files; - reads standard input")
    p.add_argument("--run", metavar="RUN", help="a run of any task, or its model folder")
    p.add_argument("--pretrained", metavar="NAME", help="a checkpoint, as for --model.pretrained; needs --task")
    p.add_argument("--task", choices=sorted(tasks()), help="what the inputs are; of a run it is known")
    p.add_argument("--table", metavar="FILE", help="take the inputs from a table")
    p.add_argument("--input", metavar="COLUMN", help="the column of the inputs in --table")
    p.add_argument("--name", metavar="COLUMN", help="the column of their names in --table (default: the inputs)")
    p.add_argument("--pool", help="class, mean, attention, last or own (default: as the model was trained)")
    p.add_argument("--tokens", action="store_true", help="the vectors of all tokens, with their number, from 0")
    p.add_argument(
        "--layer", type=wholes(1), metavar="K[,K…]",
        help="after so many blocks (default: after all, and the final norm); of several, one vector a layer",
    )  # fmt: skip
    p.add_argument("--out", type=Path, required=True, help="file to write: .parquet, .npz or .npy")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--batch_size", type=whole(1), default=64, help="inputs of a batch, at most (default: 64)")
    p.add_argument("--max_megapixels", type=between(0, 10_000), help="larger images are not read (default: 80)")
    p.add_argument("--image_size", type=whole(1), metavar="PIXELS", help="of a side (default: the model's own)")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


def main(args: list[str]) -> int:
    """Runs `triune embed`; returns 0, or 2 where an input could not be read."""
    options = parser().parse_args(args)
    if (options.run is None) == (options.pretrained is None):
        raise UserError("One of --run RUN and --pretrained NAME must be given; give one.")
    if options.name is not None and options.table is None:
        raise UserError("--name is given without --table; inputs of the command line are their own names.")
    if options.tokens and options.pool:
        raise UserError("--tokens and --pool are both given; vectors of tokens are not pooled, leave one out.")
    from .core.labelled.opened import opened_vectors, weights_hash

    modality = _modality(options)
    name = options.run or options.pretrained
    model, reader = opened_vectors(modality, name, options.pool, options.device, options.image_size)
    if options.max_megapixels is not None:
        reader.accept(options.max_megapixels)
    inputs = _inputs(options, modality)
    from .core.embeddings.writer import Writer

    about = {
        "weights": weights_hash(model),  # a run of the same name may have been trained anew
        "model": str(options.run or options.pretrained), "task": modality.task,
        "layer": options.layer[0] if options.layer and len(options.layer) == 1 else options.layer,
        "pool": None if options.tokens else model.config.pool, "tokens": options.tokens,
    }  # fmt: skip
    about |= {} if options.image_size is None else {"image_size": options.image_size}
    writer = Writer.open(options.out, about, options.overwrite, _marks(inputs))
    failed = _write(model, reader, inputs, options, writer)
    count = writer.close(inputs.names)
    for note in reader.notes():
        print(f"{note}.", file=sys.stderr)
    print(f"{count:,} vectors are in {options.out}.", file=sys.stderr)
    return 2 if failed else 0


def _marks(inputs: Inputs) -> Callable[[str], int]:
    """From the name of an input to a number for its content: its text, or that of the file that it names."""
    import hashlib

    cells = dict(zip(inputs.names, inputs.cells, strict=True))

    def mark(name: str) -> int:
        text = str(cells.get(name, ""))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8)
        path = inputs.beside / text
        with contextlib.suppress(OSError, ValueError):  # a text is no name of a file
            if path.is_file():
                known = path.stat()
                small = known.st_size <= WHOLE
                digest.update(path.read_bytes() if small else repr((known.st_size, known.st_mtime_ns)).encode())
        return int.from_bytes(digest.digest(), "little") >> 1

    return mark


def _modality(options: argparse.Namespace) -> Modality:
    """The task of the inputs, by the option or the run."""
    from .core.training.run.folder import RunFolder

    name = options.task
    if options.run is not None:
        run = RunFolder(options.run)
        found = run.task if run.config.is_file() else ""
        if name and found and name != found:
            raise UserError(f"--task is {name}, but {options.run} is a run of {found}; leave --task out.")
        name = name or found
    if not name:
        raise UserError(f"--task is missing; give one of {', '.join(sorted(tasks()))}.")
    if not tasks()[name].modality:
        raise UserError(f"--task {name} has no vectors of inputs; give another.")
    return named(tasks()[name].modality)


def _inputs(options: argparse.Namespace, modality: Modality) -> Inputs:
    """What to read, under names that are different."""
    from .core.labelled.predict import inputs_of

    inputs, others = inputs_of(modality, options.inputs, options.table, options.input)
    if options.table is not None:
        column = options.name or options.input
        if column not in others:
            raise UserError(
                f"'{options.table}' has no column '{column}'{nearest(column, others)}; its columns are "
                f"{', '.join(others)}."
            )
        inputs.names = ["" if cell is None else str(cell) for cell in others[column]]
    seen: set[str] = set()
    for row, name in enumerate(inputs.names, 1):
        if name in seen or not name:
            way = "leave out one of them" if options.table is None else "name a column of different ones with --name"
            raise UserError(
                f"Input {row:,} is called '{name}', as another is, but each needs a name of its own; {way}."
            )
        seen.add(name)
    return inputs


def _write(model: LabelledModel, reader: Reader, inputs: Inputs, options: argparse.Namespace, writer: Any) -> int:
    """Adds the vectors that are not there yet; returns how many inputs could not be read."""
    import numpy as np

    from .core.labelled.run import Inputs, run

    left = [row for row, name in enumerate(inputs.names) if name not in writer.done]
    rest = Inputs([inputs.cells[i] for i in left], [inputs.names[i] for i in left], inputs.beside)
    failed, names, values = 0, [], []
    places: dict[str, list[Any]] = {"token": []} if options.tokens else {}
    several = options.layer is not None and len(options.layer) > 1
    if several:
        places["layer"] = []

    def flush() -> None:
        if values:
            joined = {name: np.concatenate(numbers) for name, numbers in places.items()}
            writer.add(names, np.concatenate(values), joined or None)
        for held in (names, values, *places.values()):
            held.clear()

    inputs_held = 0
    for number, _, found in run(model, reader, rest, _call(model, options), options.batch_size, "embedding"):
        if isinstance(found, UserError):
            failed += 1
            print(str(found), file=sys.stderr)
            continue
        for layer, one in zip(options.layer or (0,), found if several else found[None], strict=True):
            rows = one[one[:, -1] > 0, :-1] if options.tokens else one[None]
            names += [rest.names[number]] * len(rows)
            values.append(rows.numpy())
            numbers = {"token": np.arange(len(rows), dtype=np.int32), "layer": np.full(len(rows), layer, np.int32)}
            for name, held in places.items():
                held.append(numbers[name])
        inputs_held += 1
        if inputs_held % PART == 0:
            flush()
    flush()
    return failed


def _call(model: LabelledModel, options: argparse.Namespace) -> Callable[[dict[str, Tensor]], Tensor]:
    """From a batch to `[batch, dim]`, or to `[batch, tokens, dim + 1]`, whose last entry says which tokens count; of
    several layers these are stacked after the batch.
    """
    import torch

    blocks: Any = model.trunk.transformer.blocks  # type: ignore[attr-defined]
    layers = options.layer or ()
    if layers and max(layers) > len(blocks):
        raise UserError(f"--layer is {max(layers)}, but the model has {len(blocks)} blocks; give 1 to {len(blocks)}.")

    def written(tokens: Any) -> Tensor:
        if options.tokens:
            return torch.cat([tokens.vectors.float(), tokens.read[..., None].float()], dim=-1)
        return model.pooled(tokens)

    def call(batch: dict[str, Tensor]) -> Tensor:
        seen: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            return lambda block, given, out: seen.update({layer: out.clone()})

        hooks = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
        try:
            tokens = model.tokens(batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not layers:
            return written(tokens)
        each = [written(tokens._replace(vectors=seen[layer])) for layer in layers]
        return each[0] if len(each) == 1 else torch.stack(each, dim=1)

    return call
