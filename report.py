"""`triune report RUN`: writes the page of a run again, from the files in its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from .core.errors import UserError
from .core.files import check_new, read_json
from .core.options import Parser


def parser() -> argparse.ArgumentParser:
    """The options of `triune report`."""
    p = Parser(
        prog="triune report",
        description="Write one HTML page of a run: figures beside baselines, curves, pictures, options and command. It "
        "asks no network. A training writes it at its end, and validate and test refresh it.",
    )
    p.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, finished or not")
    p.add_argument("--out", type=Path, help="file to write, of one run (default: report.html in its folder)")
    return p


def main(args: list[str]) -> int:
    """Runs `triune report` and returns its exit code."""
    options = parser().parse_args(args)
    if options.out is not None:
        if len(options.runs) > 1:
            raise UserError(f"--out is {options.out}, but {len(options.runs)} runs are given; leave it out.")
        if options.out.suffix not in (".html", ".htm"):
            raise UserError(f"--out is '{options.out}', but must end in .html; give such a name.")
        check_new([options.out], overwrite=True)
    from .core.training.run.folder import RunFolder
    from .core.training.run.page import write_page
    from .core.training.run.rows import changed

    for run in [RunFolder.open(path) for path in options.runs]:
        print(f"{write_page(run, options.out)} can be opened in a browser.")
        known = read_json(run.summary).get("rows") if run.summary.is_file() else None
        if about := changed(run.metrics, known):
            print(about)
    return 0
