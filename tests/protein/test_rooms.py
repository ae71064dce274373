"""Which rooms of this task know which."""

import ast
from pathlib import Path

import triune.protein

ROOM = Path(triune.protein.__file__).parent


def imported(folder: str) -> set[str]:
    """The rooms of this task that the files of a folder import, lazily or not, as `data.prepare` or `read`."""
    found = set()
    for file in (ROOM / folder).rglob("*.py"):
        depth = len(file.relative_to(ROOM).parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == depth and node.module:
                found.add(node.module)
    return found


def test_prediction_does_not_know_the_preparer_of_training_sets() -> None:
    assert not {name for name in imported("predict") if name.startswith("data")}


def test_the_readers_know_no_other_room() -> None:
    assert imported("read") == set()
