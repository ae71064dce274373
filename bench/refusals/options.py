"""Every leaf option of every verb with bad values, made from the parsers themselves."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from triune import cli
from triune.core.training.run import cli as training
from triune.core.training.run.arguments import RUN_VARIABLE

GOOD = {
    ("text", "fit"): "--run run --data.files ok/ok.txt --data.tokenizer bytes --data.cache cache",
    ("text", "pretrain"): "--run run --data.files ok/ok.txt --data.tokenizer bytes --data.cache cache",
    ("vision", "fit"): "--run run --data.root ok/img --data.cache cache",
    ("vision", "pretrain"): "--run run --data.root ok/img --data.cache cache",
    ("protein", "fit"): "--run run",
    ("protein", "pretrain"): "--run run --data.files ok/many.fasta",
    ("vision", "check"): "ok/img --cache cache",
    ("vision", "probe"): "--model ok/vit --data.root ok/img --data.cache cache",
    ("vision", "classify"): "ok/a.png --run ok/vit",
    ("vision", "export"): "ok/vit --torch-export out.pt2",
    ("protein", "prepare"): "set --arrays ok/chains.npz --no-mmseqs --val 0.3",
    ("protein", "dca"): "ok/ok.a3m --force",
    ("protein", "contacts"): "ok/ok.a3m --run ok/pair --no-png",
    ("text", "check"): "ok/ok.txt --data.tokenizer bytes",
    ("text", "generate"): "ok/lm --prompt a --max-tokens 2",
    ("info",): "ok/lm",
    ("convert",): "ok/lm out --to triune",
    ("demo",): "--smallest --run demo",
    ("lens", "heads"): "ok/lm",
    ("lens", "ablate"): "ok/lm --controls 1 --top 1",
    ("lens", "patch"): "ok/lm abc abd",
    ("lens", "depth"): "ok/lm abc",
    ("lens", "attention"): "ok/lm abc",
    ("lens", "birth"): "--steps 1",
    ("recall",): "--steps 1 --mixer gru --pairs 2 --length 16",
    ("scaling",): "ok/runs.csv",
}
"""A command line of each verb that works; verbs that score take the options of `fit`."""

BAD = {
    int: ("-1", "0", "1000000000000000000", "nan", "inf", "1.5", "x", "", "[1, 2]", "{a: 1}"),
    float: ("-1", "0", "1e30", "1e400", "-inf", "nan", "x", "", "[0.1, 0.2]"),
    bool: ("maybe", "2", "", "[true]"),
    str: ("", "no such thing", "\ud800", "[a, b]", "{a: 1}", "-1", "nan", "1000000000000000000", "ok/img", "/dev/zero"),
}
NONSENSE = ("-1", "nan", "inf", "-inf", "1e400", "x", "", "maybe", "\ud800", "/dev/zero")
"""Values that no option has a use for, but for these:"""
MEANINGFUL = {
    "--trainer.max_epochs=-1": "no bound on the epochs",
    "--trainer.max_steps=-1": "no bound on the steps",
    "--trainer.num_sanity_val_steps=-1": "the whole validation set",
    "--prompt=": "what a text begins with",
    "--stop=": "no text to stop at",
}
NAMES = (
    "--data.cache",
    "--cache",
    "--torch-export",
    "--onnx",
    "--out",
    "--output",
    "--attention",
    "--json",
    "--png",
    "--html",
)
"""Options that name a file or folder to make, for which these texts are names like any other:"""
ANY_NAME = ("-1", "nan")


def judge(option: str, value: str, code: Any, sentence: str) -> str:
    """What is wrong with how a value was met, in words; empty where nothing is."""
    if code == 2:
        return "" if "error: " in sentence and "Traceback" not in sentence else "no sentence"
    if code not in (0, 1) or "Traceback" in sentence:
        return "it broke"
    if option in NAMES and value in ANY_NAME:
        return ""
    return "nonsense was taken" if value in NONSENSE and f"{option}={value}" not in MEANINGFUL else ""


class Captured(BaseException):
    """Holds the parser of a verb, which is all that is wanted of it."""


def parser_of(words: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser that a verb uses."""

    def capture(parser: Any, *_: Any, **__: Any) -> Any:
        raise Captured(parser)

    def of_training(_: Any, parser: Any, __: Any) -> Any:
        raise Captured(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", capture),
        mock.patch.object(training.TaskParser, "parse_args", capture),
        mock.patch.object(training.TaskCLI, "parse_arguments", of_training),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            cli.main([*words, "--run", "none"] if words[-1] in ("fit", "pretrain") else list(words))
        except Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{words} has no parser")


def leaves(parser: argparse.ArgumentParser) -> Iterator[tuple[str, tuple[type, ...]]]:
    """The options that take a value, and the types that the values may have."""
    for action in parser._actions:
        option = next((name for name in action.option_strings if name.startswith("--")), None)
        hint = getattr(action, "_typehint", None) or action.type
        if option is None or option.endswith(".help") or option in ("--help", "--config", "--print_config", "--run"):
            continue
        if hint is None and action.nargs == 0:
            continue
        if hint is None and "Config" in type(action).__name__:  # a group, or a file of options
            continue
        inside = {int, float} if inspect.isfunction(hint) else _inside(hint)
        kinds = tuple(kind for kind in BAD if kind in inside) or (str,)
        yield option, kinds


def _inside(hint: Any) -> set[Any]:
    return {hint}.union(*map(_inside, typing.get_args(hint))) if typing.get_args(hint) else {hint}


def pairs(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each option of a verb with each bad value for its types."""
    found = []
    for option, kinds in leaves(parser_of(words)):
        values = dict.fromkeys(value for kind in kinds for value in BAD[kind])
        found += [(option, value) for value in values]
    return found


def verbs() -> list[tuple[str, ...]]:
    """All commands whose options are tried; `demo` trains for a minute and has no option with a value but --run."""
    return [words for words in GOOD if words != ("demo",)]


def attempt(
    words: tuple[str, ...], option: str, value: str, place: Path, settings: list[str] | None = None
) -> tuple[Any, str]:
    """Exit code and last line on standard error of a verb with one bad value; without training, unless `settings` say
    how.
    """
    shown = io.StringIO()
    line = [*words, *GOOD[words].split(), *(settings or []), f"{option}={value}"]
    with (
        mock.patch.object(training, "_fit", return_value={}) if settings is None else contextlib.nullcontext(),
        contextlib.chdir(place),
        contextlib.redirect_stderr(shown),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            code: Any = cli.main(line)
        except SystemExit as error:
            code = error.code
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {error}"
        finally:
            os.environ.pop(RUN_VARIABLE, None)
    return code, (shown.getvalue().strip().splitlines() or [""])[-1]
