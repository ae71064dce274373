"""All mistakes of a command line at once: each option that an error is about is left out, and the rest tried again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from ...errors import UserError
from ...yaml_files import read_yaml
from . import sentences
from .changes import leaves

MOST_TRIES = 150
"""Command lines that are tried, at most."""
T = TypeVar("T")


class Line(NamedTuple):
    """A command line in parts that can be left out.

    Args:
        files: the contents of the configuration files, in their order.
        options: the words of each option, its name first.
        dropped: names that are left out everywhere.
    """

    files: list[dict[str, Any]]
    options: list[list[str]]
    dropped: frozenset[str] = frozenset()

    @classmethod
    def read(cls, files: list[Path], words: list[str]) -> Line:
        """Takes a command line apart: the words behind an option are its values."""
        options: list[list[str]] = []
        for word in words:
            if word.startswith("--") or not options:
                options.append([word])
            else:
                options[-1].append(word)
        return cls([read_yaml(path, f"--config {path}") for path in files], options)

    @property
    def names(self) -> list[str]:
        """Every option that is given, such as "model.optimizer.lr"; of the command line first."""
        given = [_name(words) for words in self.options]
        given += [name for content in self.files for name in leaves(content)]
        return [name for name in dict.fromkeys(given) if name not in self.dropped]

    def without(self, name: str) -> Line:
        """The same line, less one option."""
        return self._replace(dropped=self.dropped | {name})

    def words(self, folder: Path) -> list[str]:
        """The command line; what is left of the configuration files is written into `folder`."""
        words = []
        for number, content in enumerate(self.files):
            path = folder / f"{number}.yaml"
            path.write_text(yaml.safe_dump(_less(content, self.dropped), sort_keys=False), encoding="utf-8")
            words += ["--config", str(path)] if _less(content, self.dropped) else []
        return words + [word for part in self.options if _name(part) not in self.dropped for word in part]


def _name(words: list[str]) -> str:
    return words[0].removeprefix("--").split("=")[0]


def _less(content: dict[str, Any], dropped: frozenset[str], above: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{above}{key}"
        if name in dropped:
            continue
        if isinstance(value, dict) and value:
            value = _less(value, dropped, f"{name}.")
            if not value:
                continue
        kept[key] = value
    return kept


def faults(line: Line, folder: Path, build: Callable[[list[str]], T]) -> tuple[T | None, list[str], Line]:
    """What `build` makes of a command line less what is wrong with it, all that is wrong, and what is left.

    Args:
        folder: for configuration files.
        build: raises UserError for a mistake, the first that it finds.
    """
    found: list[str] = []
    tries = MOST_TRIES

    def attempt(line: Line) -> tuple[T | None, str]:
        nonlocal tries
        tries -= 1
        try:
            return build(line.words(folder)), ""
        except UserError as error:
            return None, str(error)
        except Exception as error:
            if (sentence := sentences.of_library(error)) is None:
                raise
            return None, sentence

    made, error = attempt(line)
    while error:
        found.append(error)
        for name in _suspects(error, line.names):
            if tries <= 0:
                return None, found, line
            made, other = attempt(line.without(name))
            if other != error:
                line, error = line.without(name), other
                break
        else:
            return None, found, line
    return made, list(dict.fromkeys(found)), line


def _suspects(error: str, names: list[str]) -> Iterator[str]:
    """Options that an error may be about: those whose names it says, the longest and earliest name first; then all."""
    said: list[tuple[int, int, str]] = []
    for name in names:
        parts = name.split(".")
        for first in range(len(parts)):
            word = ".".join(parts[first:])
            if match := re.search(rf"(?<![\w.]){re.escape(word)}(?![\w])", error):
                said.append((first, match.start(), name))
                break
    ordered = [name for _, _, name in sorted(said)]
    yield from ordered
    yield from (name for name in names if name not in ordered)
