"""The rules of the house about imports."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import triune
from triune import core

ROOT = Path(triune.__file__).parent
ROOMS = ("vision", "protein", "text", "recall", "lens", "scaling")
HEAVY = ("torch", "lightning", "numpy", "torchvision", "timm", "matplotlib", "tokenizers", "rich")


def imported(path: Path, at_once: bool = False) -> Iterator[str]:
    """Absolute dotted names that a file of the package imports, wherever in the file, or `at_once` when it is
    imported itself.
    """
    package = ("triune", *path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
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


@pytest.mark.parametrize("room", ["core", *ROOMS])
def test_rooms_import_no_task_but_their_own(room: str) -> None:
    assert files(room)
    others = tuple(f"triune.{task}" for task in ROOMS if task != room)
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(room)
        for name in imported(path)
        if name.startswith(others)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ["core", *ROOMS])
def test_imports_inside_the_package_are_relative(room: str) -> None:
    wrong = []
    for path in files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "triune":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def module_of(path: Path) -> str:
    """`triune.core.files` of `core/files.py`; a package is named like its folder."""
    parts = ("triune", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def product() -> list[Path]:
    """All Python files of the package, without tests and measurements."""
    return [path for room in ("core", *ROOMS) for path in files(room)] + sorted(ROOT.glob("*.py"))


def graph() -> dict[str, set[str]]:
    """Which module of the package imports which, lazy and type-checking imports included."""
    modules = {module_of(path): path for path in product()}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = found.setdefault(module, set())
        for name in imported(path):
            # `from .run import machine` names a module; `from .files import few` names something inside of one.
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                names.add(target)
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (strongly connected components of more than one, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles(edges) == [["b", "c"]]


def test_no_modules_import_each_other() -> None:
    edges = graph()
    assert edges["triune.core.transformer"] >= {"triune.core.config", "triune.core.layers"}
    assert circles(edges) == []


def test_every_folder_with_python_files_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in product()}
    assert sorted(listed) == sorted(".".join(("triune", *folder.relative_to(ROOT).parts)) for folder in folders)
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_no_file_is_long() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in product()}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_constructors_and_modules_touch_no_files() -> None:
    """A constructor only constructs: it opens, reads, writes and prints nothing."""
    forbidden = {
        "open",
        "print",
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "mkdir",
        "unlink",
        "load_file",
    }
    wrong = []
    for path in product():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                for call in (call for call in ast.walk(node) if isinstance(call, ast.Call)):
                    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                    if name in forbidden:
                        wrong.append(f"{path.relative_to(ROOT)}:{call.lineno} {name}")
    assert wrong == []


@pytest.mark.parametrize("statement", ["import triune", "import triune.core", "import triune.core.config"])
def test_nothing_heavy_is_imported_at_start_up(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "used",
    [
        ["triune.vision.probe", "triune.vision.checkpoints.pretrained"],
        [
            "triune.core.labelled.probe",
            "triune.text.labelled",
            "triune.vision.labelled",
            "triune.protein.language.labelled",
        ],
    ],
)
def test_a_probe_imports_nothing_that_takes_longer_than_itself(used: list[str]) -> None:
    modules, waiting, found = {module_of(path): path for path in product()}, list(used), dict[str, set[str]]()
    while waiting:
        if (module := waiting.pop()) in found:
            continue
        names = set(imported(modules[module], at_once=True))
        found[module] = {name.split(".")[0] for name in names}
        targets = {name if name in modules else name.rpartition(".")[0] for name in names} & set(modules)
        waiting += [target.rsplit(".", depth)[0] for target in targets for depth in range(target.count("."))]
    assert "triune.core.labelled.classifiers" in found
    slow = {"lightning", "torchmetrics", "timm", "torchvision", "transformers", "matplotlib", "sklearn", "onnx"}
    assert {module: names & slow for module, names in found.items() if names & slow} == {}


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
