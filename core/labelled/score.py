"""`triune TASK test CHECKPOINT --data.table …`: a classifier of another library on the labels of a table."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import OVERWRITE, check_new, write_atomic
from ..options import Parser, whole
from .evaluate import Listed, judge_tables
from .run import Modality


def parser(modality: Modality) -> Parser:
    """The options of `triune TASK test` for a checkpoint that is no run."""
    p = Parser(
        f"triune {modality.task} test",
        description="Score a classifier of another library, with its own head, on the labels of a table. Classes meet "
        "by their names.",
    )
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub name of the classifier")
    p.add_argument("--data.table", dest="table", required=True, metavar="FILE", help="CSV, TSV, JSON lines or Parquet")
    p.add_argument("--data.input", dest="input", required=True, metavar="COLUMN", help="what the model reads")
    p.add_argument("--data.target", dest="target", required=True, metavar="COLUMN[,COLUMN…]", help="the labels")
    p.add_argument("--data.on_error", dest="on_error", choices=("stop", "skip"), default="stop", help="at bad rows")
    p.add_argument("--batch_size", type=whole(1), default=64, help="inputs of a batch, at most (default: 64)")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    p.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON to this file")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    return p


def main(modality: Modality, args: list[str]) -> int:
    """Runs `triune TASK test` for a checkpoint; returns 0, or 2 where an input could not be read."""
    options = parser(modality).parse_args(args)
    check_new([options.out] if options.out else [], options.overwrite)
    table = Listed(options.table, options.input, options.target, Path(options.table).name)
    skip = options.on_error == "skip"
    judged = judge_tables(modality, options.checkpoint, [table], options.batch_size, options.device, skip)[0]
    notes = [f"{note[:1].upper()}{note[1:]}." for note in judged.notes]
    parts = [judged.judgement.table(), judged.judgement.class_table(), *notes]
    print("\n".join(part for part in parts if part))
    if options.out:
        content = judged.judgement.to_dict() | {"model": options.checkpoint, "table": options.table}
        write_atomic(options.out, f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode())
    return 2 if judged.failed else 0
