"""The form of docstrings and of messages: shapes in backticks, verbs in the indicative, sentences with a full stop."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import triune

ROOT = Path(triune.__file__).parent
FILES = [
    *ROOT.glob("*.py"),
    *(f for room in ("core", "vision", "protein", "text") for f in (ROOT / room).rglob("*.py")),
]
IMPERATIVES = re.compile(
    r"(Add|Apply|Build|Call|Check|Close|Compare|Compile|Compute|Convert|Copy|Count|Create|Cut|Decode|Delete|Draw|Drop|Encode|Ensure|Estimate|Fill|Find|Fit|Freeze|Generate|Get|Give|"
    r"Handle|Initialise|Initialize|Keep|Load|Make|Merge|Move|Open|Parse|Perform|Pick|Predict|Print|Raise|Read|Refuse|Remove|Replace|Report|Return|Run|Save|Say|Score|Select|Show|Sort|"
    r"Split|Start|Stop|Store|Take|Test|Train|Turn|Update|Use|Validate|Write|Yield)\b"
)
AXES = "batch|tokens|residues|rows|images|dim|heads|queries|keys|examples|classes|chains|context|channels|layers|pairs"


def test_shapes_stand_in_backticks() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                plain = re.sub(r"`[^`]*`", "", ast.get_docstring(node) or "")
                wrong += [
                    f"{path.relative_to(ROOT)}: {found}" for found in re.findall(rf"\[(?:{AXES})\b[^\]]*\]", plain)
                ]
    assert wrong == []


def test_docstrings_are_sentences_in_the_indicative() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                opening = text.split("\n\n")[0].rstrip()
                if opening[-1] not in ".:`" or IMPERATIVES.match(text):
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name}: {opening[:60]}")
    assert wrong == []


def _ending(node: ast.expr) -> str:
    """The last characters that stand in the code of a message; a full stop where a value ends it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return _ending(node.values[-1]) if isinstance(node.values[-1], ast.Constant) else "."
    return _ending(node.right) if isinstance(node, ast.BinOp) else "."


def test_messages_end_with_a_full_stop() -> None:
    wrong, seen = [], 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                seen += bool(node.args)
                if node.args and not _ending(node.args[0]).endswith((".", ".)")):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {_ending(node.args[0])[-60:]}")
    assert seen > 500
    assert wrong == []
