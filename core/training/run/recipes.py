"""Named configurations that ship with a task. Standard library only, so that listing them is instant.

A recipe is a YAML file whose comment at the top says what it is:

    # One line that describes it.
    # time: 2 min on two cores
    # expected: val_loss 1.60
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ...errors import UserError, nearest
from ...files import check_regular, parsing


@dataclass(frozen=True)
class Recipe:
    """A shipped configuration: its file and what its header says (empty where it says nothing)."""

    name: str
    path: Path
    about: str
    time: str
    expected: str

    def notes(self) -> list[tuple[str, str]]:
        """`[("time", …), ("expected", …)]`."""
        return [("time", self.time), ("expected", self.expected)]


def folder(package: str) -> Path:
    """Where the package of a task ("triune.text") keeps its recipes."""
    return Path(str(files(package.removesuffix(".recipes")))) / "recipes"


def list_recipes(where: Path) -> list[Recipe]:
    """All recipes in a folder, by name; empty when there is none."""
    return [_read(path) for path in sorted(where.glob("*.yaml"))]


def _read(path: Path) -> Recipe:
    about, notes = "", {"time": "", "expected": ""}
    with parsing(path, "a recipe"):
        lines = check_regular(path).read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        key, colon, value = text.partition(":")
        if colon and key.lower() in notes:
            notes[key.lower()] = value.strip()
        elif not about:
            about = text
    return Recipe(path.stem, path, about, **notes)


def find_config(name: str, package: str) -> Path:
    """The file that `--config name` means: a file of the user's, else a recipe.

    Raises:
        UserError: neither; names the nearest recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {recipe.name: recipe.path for recipe in list_recipes(folder(package))}
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    if path.is_dir():
        raise UserError(f"--config {name} is a folder; name a YAML file, such as {path / 'config.yaml'}.")
    recipes = f"the recipes are {', '.join(sorted(known))}" if known else "and no recipes ship with this task"
    raise UserError(f"--config {name}: neither a file nor a recipe{nearest(name, known)}; {recipes}.")
