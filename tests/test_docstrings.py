"""Shapes in docstrings stand in backticks, so that they read as `[batch, tokens, dim]` everywhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import triune

ROOT = Path(triune.__file__).parent
AXES = "batch|tokens|residues|rows|images|dim|heads|queries|keys|examples|classes|chains|context|channels|layers|pairs"


def test_shapes_stand_in_backticks() -> None:
    wrong = []
    for path in (path for room in ("core", "vision", "protein", "text") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                plain = re.sub(r"`[^`]*`", "", ast.get_docstring(node) or "")
                wrong += [
                    f"{path.relative_to(ROOT)}: {found}" for found in re.findall(rf"\[(?:{AXES})\b[^\]]*\]", plain)
                ]
    assert wrong == []
