"""`triune check`: everything that is wrong with a configuration, and what its training takes, before it begins."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from . import changes, report, sentences
from .arguments import RUN_VARIABLE, check_yaml, run_and_configs
from .cli import TaskCLI
from .companions import Companions
from .faults import Line, faults
from .probe import Estimate, estimate
from .progress import duration, short
from .recipes import find_config


class Kind(NamedTuple):
    """What trains: a task and its verb, the classes of both, and the package with its recipes."""

    task: str
    verb: str
    module: Any
    data: Any
    package: str


def check(kind: Kind, args: list[str]) -> tuple[Estimate | None, list[str]]:
    """What the training of `triune TASK VERB ARGS` takes, and all that is wrong with it; one of the two is empty.

    The run folder of the command line is not touched: some steps are trained in a temporary one. Caches are filled, as
    training would.
    """
    before = os.environ.get(RUN_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="triune-check-") as name:
        try:
            return _check(kind, args, Path(name))
        finally:
            os.environ.pop(RUN_VARIABLE, None)
            if before is not None:
                os.environ[RUN_VARIABLE] = before


def _check(kind: Kind, args: list[str], folder: Path) -> tuple[Estimate | None, list[str]]:
    line, found = taken_apart(kind, args)

    def build(words: list[str]) -> TaskCLI:
        try:
            cli = TaskCLI(kind.task, kind.verb, words, kind.module, kind.data, kind.package, Companions())
            if cli.session.resume and cli.session.run:
                changes.accept(cli.changes(cli.session.run), cli.session.run, kind.task)
            return cli
        except UserError as error:
            raise UserError(str(error).replace(str(folder), "").replace("--config /", "--config ")) from None

    cli, more, left = faults(line, folder, build)
    found += more
    if cli is None:
        return None, found
    if found:
        # What the data say belongs to the list too, if these are still those of the command line.
        given = [name.startswith("data.") for name in left.names]
        if any(given) or not any(name.startswith("data.") for name in left.dropped):
            found += _data_faults(cli)
        return None, found
    words = ["--config", str(cli.session.run.config)] if cli.session.resume and cli.session.run else []
    words += line.without("run").without("resume").words(folder)
    try:
        return estimate(build([*words, "--run", str(folder / "run")]).session), []
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise
        return None, [sentence]


def taken_apart(kind: Kind, args: list[str]) -> tuple[Line, list[str]]:
    """The command line in parts, and what is wrong with its configuration files."""
    known, rest = run_and_configs(kind.verb, args)
    found, files = [], []
    for name in known.config:
        try:
            if name is None:
                raise UserError(f"--config needs a value; `triune {kind.task} {kind.verb} --help` says which.")
            files.append(check_yaml(find_config(name, kind.package)))
        except UserError as error:
            found.append(str(error))
    rest += ["--run", known.run] if known.run else []
    rest += ["--resume", known.resume] if known.resume != "false" else []
    return Line.read(files, rest), found


def _data_faults(cli: TaskCLI) -> list[str]:
    try:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise
        return [sentence]
    return []


def _sentence(error: Exception) -> str | None:
    return str(error) if isinstance(error, UserError) else sentences.of_library(error)


def main(kind: Kind, args: list[str]) -> int:
    """Prints what `check` finds; returns 0, or 2 where training would not start."""
    found, wrong = check(kind, args)
    if found is None:
        for text in wrong:
            print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    print("\n".join(lines(found)))
    return 0


def lines(found: Estimate) -> list[str]:
    """The estimate, in entries as those of the opening block."""
    entries = []
    if found.step_flops:
        entries.append(("work", f"{short_flops(found.step_flops)} in forward and backward pass of a step"))
    about = f"{found.step_seconds:.3g} s a step"
    if found.steps is not None and found.seconds is not None:
        about = f"about {duration(found.seconds)}: {found.steps:,} steps of {found.step_seconds:.3g} s"
        if found.validations:
            about += f", {found.validations:,} validations of {found.validation_seconds:.3g} s"
    entries.append(("time", about))
    if found.memory_gb is not None:
        free = f", of {found.free_gb:.1f} GB that are free" if found.free_gb is not None else ""
        entries.append(("memory", f"about {found.memory_gb:.2f} GB{free}"))
    if found.largest_batch is not None:
        entries.append(
            ("batch", f"{found.batch_size:,} on a device; memory suffices for about {found.largest_batch:,}")
        )
    return [report.entry(*entry) for entry in entries]


def short_flops(number: float) -> str:
    """1.23 TFLOP."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:.3g} {unit}FLOP"
    return f"{short(number)}FLOP"
