"""`triune TASK probe --data.table …`: how much a checkpoint's frozen vectors say about the targets of a table.

The vectors are computed once and kept, by a hash of weights, inputs and reader. A linear layer and the nearest
neighbours are then matters of seconds, judged by the figures that `test` gives for a trained head.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..evaluate.judgement import Judgement
from ..files import OVERWRITE, check_new, write_atomic
from ..heads.base import HeadSpec
from ..heads.registry import make_head, prepare
from ..heads.tag import Tag
from ..labels.guess import parsed_kinds
from ..labels.targets import Target
from ..losses import IGNORED
from ..options import Parser, whole
from ..task import named
from ..work import cache_folder
from .classifiers import NEIGHBOURS, Vectors, linear_outputs, neighbour_outputs
from .opened import opened_vectors, weights_hash
from .reader import Reader
from .rows import Columns, Rows, read_rows
from .run import Inputs, Modality, run

MOST_ROWS, MOST_TAGS = 20_000, 30_000
"""Training rows, and labels of tokens of each side, that are used at most."""
SHOWN = 3
"""Figures of the printed table."""
VERSION = 1
"""Of what is kept; raised when the same model and inputs would give something else."""


def parser(modality: Modality) -> argparse.ArgumentParser:
    """The options of `triune TASK probe` for tables; those of the data are those of `fit`."""
    p = Parser(
        prog=f"triune {modality.task} probe",
        description="Judge a checkpoint by its frozen vectors: a linear layer and nearest neighbours on the targets of "
        "a table, beside numbers that no model has made and the best constant answer. The vectors are kept.",
    )
    p.add_argument("--model", required=True, metavar="NAME", help="folder, file, run or hub name of the checkpoint")
    p.add_argument("--data.table", dest="table", required=True, metavar="FILE", help="CSV, TSV, JSON lines or Parquet")
    p.add_argument("--data.input", dest="input", required=True, metavar="COLUMN", help="what the model reads")
    p.add_argument("--data.target", dest="target", required=True, metavar="COLUMN[,COLUMN…]", help="what is asked")
    for name, text in (
        ("kind", "classify, multilabel, regress, ordinal or tag (default: what the cells call for)"),
        ("split", "column that says train, val or test"), ("group", "column of what must not be on two sides"),
        ("order", "classes of an ordinal target, the lowest first, with commas"),
    ):  # fmt: skip
        p.add_argument(f"--data.{name}", dest=name, metavar="COLUMN" if name in ("split", "group") else None, help=text)
    if modality.task == "protein":
        p.add_argument("--data.fasta", dest="fasta", metavar="FILE", help="the sequences by name")
    if modality.resized is not None:
        p.add_argument("--data.image_size", dest="image_size", type=whole(1), metavar="PIXELS",
                       help="pixels of a side of images (default: as the checkpoint was trained)")  # fmt: skip
    p.add_argument("--data.on_error", dest="on_error", choices=("stop", "skip"), default="stop", help="at bad rows")
    p.add_argument("--data.seed", dest="seed", type=whole(0), default=0, help="of the split (default: 0)")
    p.add_argument("--pool", help="class, mean, attention, last or own (default: as suits the model)")
    p.add_argument("--limit", type=whole(10), help=f"training rows (default: at most {MOST_ROWS:,}, drawn)")
    p.add_argument("--test", action="store_true", help="judge the test rows instead of the validation rows")
    p.add_argument("--cache", metavar="DIR", help="where the vectors are kept (default: $TRIUNE_CACHE)")
    p.add_argument("--batch_size", type=whole(1), default=64, help="inputs of a batch, at most (default: 64)")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    p.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON to this file")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    return p


def main(modality: Modality, args: list[str]) -> int:
    """Runs `triune TASK probe` for a table and returns its exit code."""
    options = parser(modality).parse_args(args)
    check_new([options.out] if options.out else [], options.overwrite)
    found = Probe(modality, options).run()
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if options.out:
        write_atomic(options.out, f"{text}\n".encode())
    print(text if options.json else table(found))
    return 0


@dataclass(frozen=True)
class Computed:
    """Frozen vectors of some rows.

    Args:
        vectors: float32 `[parts of all rows, dim]`; of pooled vectors one part a row.
        counts: parts of each row, int64 `[rows]`; 0 for a row that cannot be read.
        plain: float32 `[rows, width]`, numbers that no model has made; None without.
        kept: they were not computed but read.
    """

    vectors: Tensor
    counts: Tensor
    plain: Tensor | None
    kept: bool = False


class Probe:
    """One probe of a checkpoint.

    Args:
        modality: whose.
        options: of the command line.
    """

    def __init__(self, modality: Modality, options: argparse.Namespace) -> None:
        self.modality, self.options = modality, options
        self.notes: list[str] = []

    def run(self) -> dict[str, Any]:
        """What was found, plain values. Raises UserError where table or checkpoint cannot be used."""
        options, rows = self.options, self._rows()
        tags = rows.target.per_token
        if tags and options.pool:
            raise UserError(f"--pool is {options.pool}, but a target of kind tag reads every token; leave it out.")
        there = {side: self._there(rows, side) for side in ("train", "test" if options.test else "val")}
        size = getattr(options, "image_size", None)
        model, reader = opened_vectors(self.modality, options.model, options.pool, options.device, size)
        reader = reader.for_tags() if tags else reader
        sides = {side: self._chosen(rows, side, found, reader) for side, found in there.items()}
        train, judged = sides.values()
        if rows.target.masked:
            self._label_patches(rows, reader, (train, judged))
        target = rows.target
        spec = prepare(target.kind, target.take(train), {"numbers": True} if target.numbers else None)
        start = time.perf_counter()
        parts = [self._computed(model, reader, rows, some, tags) for some in (train, judged)]
        seconds = 0.0 if all(part.kept for part in parts) else time.perf_counter() - start
        self.notes += reader.notes()
        sets = [_joined(part, target.take(some), some) for part, some in zip(parts, (train, judged))]
        if not all(len(part.rows) for part in sets):
            raise UserError("No row is left on one of the two sides; give more rows, or another --data.split.")
        scores = self._scores(spec, sets, parts, target, (train, judged))
        return {
            "model": options.model, "data": str(rows.table.path), "kind": target.kind, "side": list(sides)[1],
            "train": len(sets[0].rows), "judged": len(sets[1].rows), "unit": reader.parts if tags else "rows",
            "scores": scores, "feature_seconds": round(seconds, 2), "notes": [*rows.notes, *self.notes],
        }  # fmt: skip

    def _rows(self) -> Rows:
        options = self.options
        names = tuple(name.strip() for name in options.target.split(","))
        order = tuple(part.strip() for part in options.order.split(",")) if options.order else None
        columns = Columns(
            options.table, options.input, names, parsed_kinds(options.kind), order, split=options.split,
            group=options.group, seed=options.seed, skip=options.on_error == "skip",
            words=self.modality.words, masks=self.modality.masks,
        )  # fmt: skip
        resolve = None
        if getattr(options, "fasta", None):
            resolve = named(self.modality.table)(
                table=options.table, input=options.input, target=options.target, fasta=options.fasta,
                on_error=options.on_error,
            ).resolve  # fmt: skip
        return read_rows(columns, resolve=resolve)

    def _label_patches(self, rows: Rows, reader: Reader, chosen: tuple[np.ndarray, ...]) -> None:
        """Puts the labels of patches in the place of masks, for the rows that are used."""
        values: list[Any] = list(rows.target.values)
        for row in np.concatenate(chosen).tolist():
            try:
                values[row] = reader.labels(values[row], rows.inputs[row], rows.table.path.parent)
            except UserError as error:
                if self.options.on_error == "stop":
                    raise
                self.notes.append(f"left out: {str(error).rstrip('.')}")
                values[row] = np.zeros(0)
        rows.target = replace(rows.target, values=values)

    def _there(self, rows: Rows, side: str) -> np.ndarray:
        """All rows of a side. Raises UserError where there is none."""
        found = rows.sides.get(side, np.zeros(0, np.int64))
        if not len(found):
            hint = "; give --data.split, or leave --test out" if side == "test" else "; give more rows"
            raise UserError(f"'{rows.table.path}' has no {side} row{hint}.")
        return found

    def _chosen(self, rows: Rows, side: str, found: np.ndarray, reader: Reader) -> np.ndarray:
        """Rows of a side, drawn at random where there are more than are used."""
        order = np.random.default_rng(self.options.seed).permutation(found)
        most = self.options.limit if side == "train" else None
        values = rows.target.values
        if isinstance(values, list):
            ends = np.cumsum([reader.whole("", None) if rows.target.masked else len(values[row]) for row in order])
            order = order[: max(1, int(np.searchsorted(ends, MOST_TAGS, side="right")))]
        elif most is None and side == "train":
            most = MOST_ROWS
        order = order[:most]
        if len(order) < len(found):
            self.notes.append(f"{len(order):,} of {len(found):,} {side} rows are used")
        return np.sort(order)

    def _computed(self, model: Any, reader: Any, rows: Rows, some: np.ndarray, tags: bool) -> Computed:
        """Vectors of rows, from the cache where it knows these inputs, this model and this reader."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        cells, beside = [rows.inputs[row] for row in some], rows.table.path.parent
        digest = hashlib.blake2b(weights_hash(model).encode(), digest_size=16)
        digest.update(json.dumps([VERSION, reader.settings(), model.config.pool, model.config.reads, tags]).encode())
        for cell in cells:
            digest.update(reader.content(cell, beside) + b"\0")
        path = cache_folder(self.options.cache) / "features" / f"{digest.hexdigest()}.safetensors"
        if path.is_file():
            with contextlib.suppress(SafetensorError, OSError, KeyError):  # damaged: made anew
                found = load_file(path)
                if len(found["counts"]) == len(cells) and int(found["counts"].sum()) == len(found["vectors"]):
                    return Computed(found["vectors"], found["counts"], found.get("plain"), kept=True)
        made = self._compute(model, reader, rows, some, Inputs(cells, [rows.name(r) for r in some], beside), tags)
        content = {"vectors": made.vectors, "counts": made.counts}
        if made.plain is not None:
            content["plain"] = made.plain
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_atomic(path, save(content))
        return made

    def _compute(self, model: Any, reader: Any, rows: Rows, some: np.ndarray, inputs: Inputs, tags: bool) -> Computed:
        def call(batch: dict[str, Tensor]) -> Tensor:
            tokens = model.tokens(batch)
            return tokens.vectors if tags else model.pooled(tokens)

        vectors, counts, plain = [], [], []
        values = rows.target.values
        for number, sample, found in run(model, reader, inputs, call, self.options.batch_size, "vectors"):
            if isinstance(found, Tensor) and isinstance(values, list):
                labels, there = len(values[some[number]]), reader.whole(inputs.cells[number], sample)
                if labels != there:
                    must = f"{there} {reader.parts}, but must have one for each."
                    found = UserError(f"{inputs.names[number]} has {labels} labels for {must}")
            if isinstance(found, UserError):
                if self.options.on_error == "stop":
                    raise UserError(f"{found} Mend it, or leave such rows out with --data.on_error skip.")
                self.notes.append(f"left out: {str(found).rstrip('.')}")
                counts.append(0)
                plain.append(None)
                continue
            part = found[None]
            if tags:
                places = torch.from_numpy(reader.places(sample))
                part = found[places].masked_fill((places < 0)[:, None], torch.nan)
            vectors.append(part.clone())
            counts.append(len(part))
            plain.append(None if tags else reader.plain(inputs.cells[number], sample))
        width = vectors[0].shape[1] if vectors else 1
        numbers = [np.asarray(one, np.float32) for one in plain if one is not None]
        kept = torch.from_numpy(np.stack(numbers)) if numbers and len({len(one) for one in numbers}) == 1 else None
        return Computed(torch.cat([*vectors, torch.zeros(0, width)]), torch.tensor(counts), kept)

    def _scores(
        self, spec: HeadSpec, sets: list[Vectors], parts: list[Computed], target: Target,
        some: tuple[np.ndarray, np.ndarray],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The figures of each way, the constant answer last."""
        made = make_head(spec, 1)
        head = made.each if isinstance(made, Tag) else made
        train, judged = sets
        found: list[dict[str, Any]] = []

        def add(name: str, note: str, outputs: Tensor, started: float) -> Judgement:
            seconds = round(time.perf_counter() - started, 2)
            judgement = head.judge(outputs, judged.targets, {}, judged.rows)
            figures = {"metrics": judgement.metrics, "intervals": judgement.intervals}
            found.append({"name": name, **figures, "seconds": seconds, "note": note})
            return judgement

        start = time.perf_counter()
        outputs, penalty = linear_outputs(spec, train, judged)
        judgement = add("linear probe", f"L2 {penalty:g}, chosen on training rows", outputs, start)
        start = time.perf_counter()
        if (nearest := neighbour_outputs(spec, train, judged)) is not None:
            add(f"k-NN (k = {min(NEIGHBOURS, len(train.rows))}, cosine)", "", nearest, start)
        one, other = (part.plain for part in parts)
        if one is not None and other is not None and one.shape[1] == other.shape[1]:
            start = time.perf_counter()
            plainly = [
                _joined(Computed(numbers, (part.counts > 0).long(), None), target.take(rows), rows)
                for numbers, part, rows in zip((one, other), parts, some)
            ]
            outputs, penalty = linear_outputs(spec, plainly[0], plainly[1])
            add("linear, without the model", f"L2 {penalty:g}", outputs, start)
        constant = {"metrics": judgement.baseline, "intervals": {}}
        return [*found, {"name": "constant answer", **constant, "seconds": 0.0, "note": ""}]


def _joined(computed: Computed, target: Target, rows: np.ndarray) -> Vectors:
    """Vectors beside their targets, without those that lack one of the two."""
    counts = computed.counts.tolist()
    of = np.repeat(rows, counts)
    if isinstance(target.values, list):
        values = [part[:count] for part, count in zip(target.values, counts)]
        targets = torch.from_numpy(np.concatenate([*values, np.zeros(0, values[0].dtype)]))
        targets = targets.float()[:, None] if target.numbers else targets.long()
    else:
        values = torch.from_numpy(np.asarray(target.values))[torch.from_numpy(np.flatnonzero(np.array(counts) > 0))]
        targets = values.float() if values.is_floating_point() else values.long()
    there = ~targets.isnan().all(1) if targets.is_floating_point() else targets != IGNORED
    there &= ~computed.vectors.isnan().any(1)
    return Vectors(computed.vectors[there], targets[there], of[there.numpy()])


def table(found: dict[str, Any]) -> str:
    """What is printed."""
    scores = found["scores"]
    names = list(scores[0]["metrics"])[:SHOWN]
    unit = found["unit"]
    source = f"vectors of {found['train'] + found['judged']:,} {unit}"
    wide = max(len(source), *(len(score["name"]) for score in scores))
    heads = [name.replace("_", " ") for name in names]
    side = "test" if found["side"] == "test" else "validation"
    lines = [f"{found['judged']:,} {side} {unit}, {found['train']:,} to learn from ({found['kind']})"]
    lines.append(f"{'':{wide}}  " + "  ".join(f"{head:>17}" for head in heads) + "  seconds")
    for score in scores:
        cells = [f"{score['metrics'][name]:.4f}" if name in score["metrics"] else "—" for name in names]
        line = f"{score['name']:{wide}}  " + "  ".join(f"{cell:>17}" for cell in cells)
        lines.append(f"{line}  {score['seconds']:7.1f}  {score['note']}".rstrip())
    kept = "" if found["feature_seconds"] else "  kept from before"
    lines.append(f"{source:{wide}}" + " " * 19 * len(names) + f"  {found['feature_seconds']:7.1f}{kept}")
    first = scores[0]
    if names[0] in first["intervals"]:
        low, high = first["intervals"][names[0]]
        lines.append(f"The linear probe's {heads[0]} lies between {low:.4f} and {high:.4f} (95 %).")
    return "\n".join([*lines, *(f"{note[:1].upper()}{note[1:]}." for note in found["notes"])])
