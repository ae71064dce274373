"""The rules of the house about imports."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import triune
from triune import core

ROOT = Path(triune.__file__).parent
TASKS = ("vision", "protein", "text")
HEAVY = ("torch", "lightning", "numpy", "torchvision", "timm", "matplotlib", "tokenizers", "rich")


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file of the package imports, wherever in the file."""
    package = ("triune", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_the_walk_sees_imports() -> None:
    names = list(imported(ROOT / "text" / "model.py"))
    assert "triune.core.config.TransformerConfig" in names
    assert "torch.nn" in names


@pytest.mark.parametrize("room", ["core", *TASKS])
def test_rooms_import_no_task_but_their_own(room: str) -> None:
    assert files(room)
    others = tuple(f"triune.{task}" for task in TASKS if task != room)
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(room)
        for name in imported(path)
        if name.startswith(others)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ["core", *TASKS])
def test_imports_inside_the_package_are_relative(room: str) -> None:
    wrong = []
    for path in files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "triune":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


@pytest.mark.parametrize("statement", ["import triune", "import triune.core", "import triune.core.config"])
def test_nothing_heavy_is_imported_at_start_up(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_names_of_the_core_are_found_from_the_top_in_a_fresh_interpreter() -> None:
    code = "from triune import Transformer, TransformerConfig; print(Transformer.__module__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "triune.core.transformer"


@pytest.mark.parametrize("name", core.__all__)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    thing = getattr(core, name)
    assert getattr(triune, name) is thing
    assert inspect.getdoc(thing)
    assert not (inspect.getdoc(thing) or "").startswith(f"{name}("), "a dataclass without a docstring of its own"


def test_public_names_are_listed_once() -> None:
    assert sorted(core._HOME) == core.__all__ == dir(core)


@pytest.mark.parametrize("module", [triune, core])
def test_unknown_name_is_an_attribute_error(module: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Transformr'"):
        module.Transformr  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
