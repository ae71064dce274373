"""Options of the commands that do not train: one parser whose mistakes are sentences, and numbers with bounds.

The standard library's parser prints its usage before what is wrong, takes shortened names (`--ov` for `--overwrite`),
and takes an empty value for a text or for the present folder.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError, nearest
from .files import OVERWRITE, check_new


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises UserError for every mistake.

    Args:
        prog: the command.
        may_be_empty: names of options for which an empty text means something.
    """

    def __init__(self, prog: str, may_be_empty: tuple[str, ...] = (), **settings: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, **settings)
        self.may_be_empty = may_be_empty

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        if text.startswith("unrecognized arguments: "):
            word = text.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            text = f"Unknown option '{word}'{nearest(word, known)}"
        raise UserError(f"{text}; `{self.prog} --help` lists all.")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        name = _name(action)
        if not arg_string.strip() and name not in self.may_be_empty:
            raise UserError(f"{name} is empty, but must have a value; `{self.prog} --help` says which.")
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            what = {int: "a whole number", float: "a number", Path: "a path"}.get(action.type, "another value")  # type: ignore[call-overload]
            raise UserError(f"{name} is '{arg_string}', but must be {what}.") from None
        except _Bounds as bounds:
            raise UserError(f"{name} is {arg_string}, but must be {bounds}.") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = [str(choice) for choice in action.choices]
            raise UserError(
                f"{_name(action)} is '{value}'{nearest(str(value), words)}, but must be {' or '.join(words)}."
            )


class _Bounds(Exception):
    """What a number must be, in words."""


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type of option: whole numbers from `least` to `most`."""
    span = f"from {least:,} to {most:,}" if most is not None else f"of at least {least:,}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _Bounds(f"a whole number {span}") from None
        if value < least or (most is not None and value > most):
            raise _Bounds(f"a whole number {span}")
        return value

    return parse


def wholes(least: int) -> Callable[[str], tuple[int, ...]]:
    """A type of option: different whole numbers from `least` on, with commas between them."""
    one = whole(least)

    def parse(text: str) -> tuple[int, ...]:
        try:
            found = tuple(one(part) for part in text.split(","))
        except _Bounds:
            found = ()
        if not found or len(set(found)) < len(found):
            raise _Bounds(f"a whole number of at least {least:,}, or several different ones with commas between them")
        return found

    return parse


def number(above: float, most: float) -> Callable[[str], float]:
    """A type of option: numbers above `above`, up to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not above < value <= most:
            raise _Bounds(f"a number above {above:g} and at most {most:,g}")
        return value

    return parse


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds --output, a JSON file beside which a picture lies, and --overwrite."""
    parser.add_argument("--output", type=Path, default=Path(name), help="file to write; a picture lies beside it")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE)


def picture_beside(options: argparse.Namespace) -> Path:
    """The picture beside --output, once it is sure that both may be written. Raises UserError when not."""
    if options.output.suffix != ".json":
        raise UserError(f"--output is '{options.output}', but must end in .json; give such a name.")
    picture = options.output.with_suffix(".png")
    check_new([options.output, picture], options.overwrite)
    return picture


SEED = whole(0, 2**63 - 1)
"""What starts a generator of random numbers."""
