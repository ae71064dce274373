"""Every leaf option of every verb with bad values, made from the parsers themselves."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import shlex
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from triune import cli
from triune.core.training.run import cli as training
from triune.core.training.run.arguments import RUN_VARIABLE
from triune.recall import emergence
from triune.vision.probe import OptionParser

from .lines import GOOD, Words

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
    "--first=-1": "residues are numbered from below 0, too",
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
TEXTS = ("--prompt", "--system", "--stop", "--api-key", "--name", "--answer", "--against")
"""Options whose value is a text, which may be anything but empty or what no file can hold."""


def judge(option: str, value: str, code: Any, sentence: str) -> str:
    """What is wrong with how a value was met, in words; empty where nothing is."""
    if code == 2:
        return "" if "error: " in sentence and "Traceback" not in sentence else "no sentence"
    if code not in (0, 1) or "Traceback" in sentence:
        return "it broke"
    if option in TEXTS and value and value.isprintable():
        return ""
    if option in NAMES and value in ANY_NAME:
        return ""
    return "nonsense was taken" if value in NONSENSE and f"{option}={value}" not in MEANINGFUL else ""


class Captured(BaseException):
    """Holds the parser of a verb, which is all that is wanted of it."""


def line_of(words: Words) -> list[str]:
    """The whole of a command line that works."""
    return [*words, *shlex.split(GOOD[words])]


def parser_of(words: Words, place: Path) -> argparse.ArgumentParser:
    """The parser that a verb uses; its line is read in `place`, where `ok` is."""

    def capture(parser: Any, *_: Any, **__: Any) -> Any:
        raise Captured(parser)

    def of_training(_: Any, parser: Any, __: Any) -> Any:
        raise Captured(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", capture),
        mock.patch.object(training.TaskParser, "parse_args", capture),
        mock.patch.object(OptionParser, "parse_args", capture),
        mock.patch.object(training.TaskCLI, "parse_arguments", of_training),
        contextlib.chdir(place),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            cli.main(line_of(words))
        except Captured as captured:
            return captured.args[0]
        finally:
            os.environ.pop(RUN_VARIABLE, None)
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


def pairs(words: Words, place: Path) -> list[tuple[str, str]]:
    """Each option of a verb with each bad value for its types; `place` is as for `parser_of`."""
    found = []
    for option, kinds in leaves(parser_of(words, place)):
        values = dict.fromkeys(value for kind in kinds for value in BAD[kind])
        found += [(option, value) for value in values]
    return found


def _once(train: Callable[..., None]) -> Callable[..., None]:
    """Training of one step."""
    return lambda model, loss, steps, *others, **settings: train(model, loss, 1, *others, **settings)


def attempt(words: Words, option: str, value: str, place: Path, settings: list[str] | None = None) -> tuple[Any, str]:
    """Exit code and last line on standard error of a verb with one bad value, or as it is without an option; without
    training, scoring or serving, unless `settings` say how to train.
    """
    shown, work = io.StringIO(), contextlib.ExitStack()
    if settings is None:
        for name in ("_fit", "_evaluate"):
            work.enter_context(mock.patch.object(training, name, return_value={}))
        work.enter_context(mock.patch("triune.text.serve._serve", return_value=0))
        work.enter_context(mock.patch.object(emergence, "train", _once(emergence.train)))
    line = [*line_of(words), *(settings or []), *([f"{option}={value}"] if option else [])]
    with (
        work,
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
