"""Rows of a table with their sides: what training cannot learn is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triune.core.labelled.rows import Columns, read_rows


def notes_of(tmp_path: Path, targets: list[Any], *, columns: tuple[str, ...] = ("y",), kind: Any = None) -> str:
    path = tmp_path / "t.jsonl"
    rows = [
        {"x": f"text {i}", "s": "val" if i % 3 == 0 else "train"} | (cell if isinstance(cell, dict) else {"y": cell})
        for i, cell in enumerate(targets)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ". ".join(read_rows(Columns(table=str(path), input="x", target=columns, kind=kind, split="s")).notes)


ONLY_VAL = {
    "classes": (["c", "a", "b"] * 4, None, "'c' of 'y'"),
    "labels": ([["a", "d"], ["a", "b"], ["b"]] * 4, None, "'d' of 'y'"),
    "tags": (["HX", "HE", "EE"] * 4, "tag", "'X' of 'y'"),
    "steps": ([3, 1, 2] * 4, "ordinal", "'3' of 'y'"),
}


@pytest.mark.parametrize("about", ONLY_VAL)
def test_what_no_training_row_has_is_said(about: str, tmp_path: Path) -> None:
    targets, kind, named = ONLY_VAL[about]
    assert f"WARNING: no training row has {named}, so that it cannot be learned" in notes_of(
        tmp_path, targets, kind=kind
    )
    assert "WARNING" not in notes_of(tmp_path, targets + targets[1:], kind=kind)


def test_of_several_columns_the_one_is_named(tmp_path: Path) -> None:
    cells = [{"y": "ab"[i % 2], "z": ["c", "d", "e"][i % 3], "n": 0.5 * i} for i in range(12)]
    said = notes_of(tmp_path, cells, columns=("y", "z", "n"))
    assert said.count("WARNING") == 1 and "no training row has 'c' of 'z'" in said
