"""Cells become the target that they call for, by key; what says nothing or two things is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triune.core import losses
from triune.core.errors import UserError
from triune.core.labels.cells import numbers_of
from triune.core.labels.classes import IGNORED
from triune.core.labels.guess import parsed_kinds
from triune.core.labels.table import Table, read_table
from triune.core.labels.targets import Target, infer, match_lengths


def made(**columns: list[Any]) -> Table:
    count = len(next(iter(columns.values())))
    cells = {name: [None if cell == "" else cell for cell in column] for name, column in columns.items()}
    return Table(Path("t.csv"), cells, range(1, count + 1), list(columns))


def target(cells: list[Any] | str, kind: str | None = None, names: list[str] | None = None, **options: Any) -> Target:
    return infer(made(y=cells.split(",") if isinstance(cells, str) else cells), ["y"], kind, names, **options)


def test_the_mark_of_missing_targets_is_that_of_the_losses() -> None:
    assert IGNORED == losses.IGNORED


MANY = [str(i * 3) for i in range(30)]
KINDS = {
    "texts": ("b,a,b,a", "classify", ["a", "b"], [1, 0, 1, 0]),
    "0 and 1": ("0,1,1,", "classify", ["0", "1"], [0, 1, 1, -100]),
    "true and false": ("True,false,TRUE", "classify", ["false", "true"], [1, 0, 1]),
    "bools": ([True, False, None, True], "classify", ["false", "true"], [1, 0, -100, 1]),
    "whole numbers": ("10,2,NA,10,nan,2", "classify", ["2", "10"], [1, 0, -100, 1, -100, 0]),
    "whole numbers with points": ("1.0,2.0,1.0", "classify", ["1", "2"], [0, 1, 0]),
    "whole floats": ([1.0, 2.0, 1.0, float("nan")], "classify", ["1", "2"], [0, 1, 0, -100]),
    "numbers of two types": ([1, 2.0, 1.0, 2], "classify", ["1", "2"], [0, 1, 0, 1]),
    "codes": ("007,08,007,08,7", "classify", ["007", "7", "08"], [0, 2, 0, 2, 1]),
    "classes in natural order": ("c10,c2,c10,c2", "classify", ["c2", "c10"], [1, 0, 1, 0]),
    "spaces around": ("cat ,cat, dog,dog,NA,NA", "classify", ["NA", "cat", "dog"], [1, 1, 2, 2, 0, 0]),
    "one letter in two forms": (["é", "e\u0301", "a", "a"], "classify", ["a", "é"], [1, 1, 0, 0]),
    "numbers": ("0.5,-1e2,.25,+3,NaN", "regress", ["y"], [[0.5], [-100], [0.25], [3], [np.nan]]),
    "many whole numbers": (MANY, "regress", ["y"], [[float(v)] for v in MANY]),
    "joined": ("a|b,b,,c|a", "multilabel", ["a", "b", "c"], [[1, 1, 0], [0, 1, 0], [np.nan] * 3, [1, 0, 1]]),
    "lists": ([["a", "b"], [], None], "multilabel", ["a", "b"], [[1, 1], [0, 0], [np.nan] * 2]),
    "lists as text": (['["a"]', "['b', 'a']", "[]"], "multilabel", ["a", "b"], [[1, 0], [1, 1], [0, 0]]),
}


@pytest.mark.parametrize("about", KINDS)
def test_kinds(about: str) -> None:
    cells, kind, names, values = KINDS[about]
    found = target(cells)
    assert (found.kind, found.names) == (kind, names)
    np.testing.assert_array_equal(found.values, values)  # type: ignore[arg-type]
    assert found.said.endswith("--data.kind says otherwise.")
    again = target(cells, kind, names)  # as a trained model reads the same cells
    np.testing.assert_array_equal(again.values, values)  # type: ignore[arg-type]


def test_several_columns() -> None:
    found = infer(made(a=["1", "0", ""], b=["yes", "no", ""], c=[True, False, None]), ["c", "a", "b"])
    assert (found.kind, found.names) == ("multilabel", ["c", "a", "b"])
    np.testing.assert_array_equal(found.values, [[1, 1, 1], [0, 0, 0], [np.nan] * 3])
    assert found.values.dtype == np.float32 and found.missing.tolist() == [False, False, True]  # type: ignore[union-attr]
    found = infer(made(a=["1", "0", ""], b=["0.5", "?", "2"]), ["a", "b"])
    assert (found.kind, found.names) == ("regress", ["a", "b"])
    np.testing.assert_array_equal(found.values, [[1, 0.5], [0, np.nan], [np.nan, 2]])
    assert any("'a' hold 0 and 1" in note for note in found.notes) and any("'?'" in note for note in found.notes)


def test_columns_of_different_kinds_have_a_head_each() -> None:
    for column, kind in ((["yes", "no"], "classify"), ([["a"], ["b"]], "multilabel"), (["x", "x|y"], "multilabel")):
        found = infer(made(a=["1.5", "2"], b=column), ["a", "b"])
        assert found.kind == "several" and [part.kind for part in found.parts] == ["regress", kind]
    with pytest.raises(UserError, match=r"names the column 'bb' \(did you mean 'b'\?\), which is no target"):
        infer(made(a=["1.5", "2"], b=["x", "y"]), ["a", "b"], {"bb": "classify"})
    with pytest.raises(UserError, match=r"kind of the target is 'class'.*but must be"):
        infer(made(a=["1.5", "2"], b=["x", "y"]), ["a", "b"], {"b": "class"})
    assert parsed_kinds("a=regress, b=ordinal") == {"a": "regress", "b": "ordinal"} and parsed_kinds("tag") == "tag"
    for text, words in (
        ("a=regress,b", "has 'b', but must be one kind"),
        ("a=tag,a=tag", "names the column 'a' twice"),
    ):
        with pytest.raises(UserError, match=words):
            parsed_kinds(text)


def test_labels_of_tokens_in_two_columns_are_as_many() -> None:
    found = infer(made(a=["HE", "EEH"], b=[[0.5, 1.5], None]), ["a", "b"], {"a": "tag", "b": "tag"})
    np.testing.assert_array_equal(found.values[0], [[1, 0.5], [0, 1.5]])
    np.testing.assert_array_equal(found.values[1], [[0, np.nan], [0, np.nan], [1, np.nan]])
    with pytest.raises(UserError, match=r"row 1 of 't.csv' has 2 in 'a', 3 in 'b' labels"):
        infer(made(a=["HE", "EEH"], b=["bbe", "eee"]), ["a", "b"], {"a": "tag", "b": "tag"})
    with pytest.raises(UserError, match=r"'a' of 't.csv' has a label for each token and 'b' one for the whole input"):
        infer(made(a=["HE", "EEH"], b=["x", "y"]), ["a", "b"], {"a": "tag"})


def test_columns_meet_a_model_by_key() -> None:
    found = infer(made(b=["1", "2"], a=["3", "4"]), ["b", "a"], "regress", ["a", "c", "b"])
    np.testing.assert_array_equal(found.values, [[3, np.nan, 1], [4, np.nan, 2]])
    with pytest.raises(UserError, match=r"The model has no target 'bb'.*did you mean 'b'"):
        infer(made(bb=["1", "2"], a=["3", "4"]), ["bb", "a"], "regress", ["a", "b"])
    found = infer(made(z=["1", "1"]), ["z"], "regress", ["y"])
    assert found.names == ["y"] and any("'z' of the table is what the model calls 'y'" in note for note in found.notes)


def test_ordinal() -> None:
    found = target("3,1,5,1,NA", "ordinal")
    assert (found.names, list(found.values)) == (["1", "3", "5"], [1, 0, 2, 0, -100])
    assert any("never occur" in note for note in found.notes)
    found = target("mid,low,high,low", "ordinal", order=["low", "mid", "high", "top"])
    assert (found.names, list(found.values)) == (["low", "mid", "high", "top"], [1, 0, 2, 0])
    with pytest.raises(UserError, match="whose order nobody can know"):
        target("mid,low,high,low", "ordinal")
    with pytest.raises(UserError, match="lacks 'mid'"):
        target("mid,low,high,low", "ordinal", order=["low", "high"])


def test_tags() -> None:
    found = target(["HHE", "-CE", None], "tag")
    assert found.names == ["-", "C", "E", "H"] and not found.numbers
    assert isinstance(found.values, list) and [part.tolist() for part in found.values] == [[3, 3, 2], [0, 1, 2], []]
    assert [p.tolist() for p in target(["HHE", "-CE"], "tag", missing=["-"]).values][1] == [-100, 0, 1]
    found = target([[0.5, None, 2], ["", 1.0]][:1] + [[1.0]], "tag")
    assert found.numbers and found.names == ["y"]
    np.testing.assert_array_equal(found.values[0], [0.5, np.nan, 2])
    found = target([[0, 1, 1], [2]], "tag")
    assert not found.numbers and found.names == ["0", "1", "2"] and any("classes" in note for note in found.notes)
    assert target([[0, 1, 1], [2]], "tag", numbers=True).numbers
    found = target([["B-PER", "O"], ["O"]], "tag", ["O", "B-PER"])
    assert [part.tolist() for part in found.values] == [[1, 0], [0]]
    with pytest.raises(UserError, match="lacks 'X'"):
        target(["HX"], "tag", ["H", "E"])
    assert target(["HX"], "tag", ["H", "E"], on_unseen="ignore").values[0].tolist() == [0, -100]


def test_as_many_labels_as_the_input_has_parts_are_tags() -> None:
    found = target(["HHE", "HE", ""], parts_of=[3, 2, 4])
    assert found.kind == "tag" and "as many labels as their inputs have parts; --data.kind says" in found.said
    assert target(["N V N", "V N"], parts_of=[3, 2], apart=True).kind == "tag"
    assert target([["N", "V", "B-X"], ["V", "N"]], parts_of=[3, 2]).kind == "tag"
    assert target(["[0.5, 1.5, 2]", "[1, 0]"], parts_of=[3, 2]).numbers
    assert target(["HHE", "HE", "HHE", "HE"], parts_of=[3, 2, 3, 3]).kind == "classify"
    assert target(["dog", "cat", "dog", "cat"], parts_of=[3, 3, 3, 3]).kind == "classify"
    assert target(["HHE", "HE", "HHE", "HE"], "classify", parts_of=[3, 2, 3, 2]).kind == "classify"
    # Of long inputs one damaged row in ten does not hide what the column is; of short ones it may be chance.
    long, short = [["HEC" * (4 + i) for i in range(10)], ["HE" * (1 + i % 2) for i in range(10)]]
    for cells, kind in ((long, "tag"), (short, "classify")):
        parts = [len(cell) for cell in cells]
        assert target(cells, parts_of=parts).kind == "tag"
        assert target(cells, parts_of=[parts[0] + 1, *parts[1:]]).kind == kind


def test_tags_that_look_alike_or_missing_are_said() -> None:
    notes = "; ".join(target(["Hh-", "HE"], "tag").notes)
    assert "'H', 'h' look alike" in notes and """'-' is a class of 'y'; --data.missing '["-"]' makes it""" in notes


def test_tags_of_numbers_in_text() -> None:
    found = target(["0.5 1 -2e1", "0.25", ""], "tag")
    assert found.numbers and [part.tolist() for part in found.values] == [[0.5, 1, -20], [0.25], []]
    found = target(["0, 1,1", "2;0"], "tag")
    assert not found.numbers and [part.tolist() for part in found.values] == [[0, 1, 1], [2, 0]]
    assert [part.tolist() for part in target(["011", "20"], "tag").values] == [[0, 1, 1], [2, 0]]
    assert target(["H E", "HH"], "tag").names == [" ", "E", "H"]


def test_cells_with_mistakes_are_missing_where_asked() -> None:
    found = target([*NUMBERS, "five", "inf", "3,5"], on_unseen="ignore")
    assert found.kind == "regress" and found.missing.tolist() == [False] * 30 + [True] * 3
    assert sum("row 31" in note or "row 32" in note or "row 33" in note for note in found.notes) == 3
    found = target(["1", "2", *["x"] * 9, "y", "z", "q"], "regress", on_unseen="ignore")
    assert int(found.missing.sum()) == 12 and any("more cells" in note for note in found.notes)


def test_blocks_of_plain_numbers_are_read_as_others() -> None:
    for cells in (
        ["1", "-2.5", "1e3", "+.5", "7."],
        ["1", "007"],
        ["1", "1-2"],
        ["1", "e5"],
        ["1e999", "1"],
        ["", "1"],
    ):
        quick, slow = numbers_of([cell or None for cell in cells]), numbers_of([f" {cell} " for cell in cells])
        np.testing.assert_array_equal(quick.values, slow.values)
        assert (quick.bad, quick.bad_count, quick.infinite, quick.codes) == (
            slow.bad, slow.bad_count, slow.infinite, slow.codes
        )  # fmt: skip


def test_tags_of_another_length() -> None:
    table = made(y=["HHE", "HE", ""])
    found, wrong = match_lengths(infer(table, ["y"], "tag"), [3, 3, 5], table, "residues")
    assert [len(part) for part in found.values] == [3, 0, 0]
    assert [row for row, _ in wrong] == [1]
    assert "row 2 of 't.csv' has 2 labels (of a text each" in str(wrong[0][1])


def test_a_model_meets_labels_by_key() -> None:
    names = ["dog", "cat", "1"]
    found = target(["cat ", "1.0", 1, "dog", ""], "classify", names)
    assert list(found.values) == [1, 2, 2, 0, -100] and found.names == names
    with pytest.raises(UserError, match=r"'y' in row 2 of 't.csv' is 'cats', but must be a class of the model"):
        target(["cat", "cats"], "classify", names)
    found = target(["cat", "cats", "cats"], "classify", names, on_unseen="ignore")
    assert list(found.values) == [1, -100, -100] and any("3" not in note and "'cats'" in note for note in found.notes)
    assert list(target(["cat", "cat"], "classify", names).values) == [1, 1]  # one class alone may be scored
    found = target([["a", "zz"]], "multilabel", ["b", "a"], on_unseen="ignore")
    np.testing.assert_array_equal(found.values, [[0, 1]])
    with pytest.raises(UserError, match="lacks 'zz'"):
        target([["a", "zz"]], "multilabel", ["b", "a"])


def test_notes() -> None:
    def notes(*args: Any, **options: Any) -> str:
        return "; ".join(target(*args, **options).notes)

    assert "'Cat', 'cat' look alike" in notes("cat,Cat,dog,dog,cat,Cat")
    assert "'NA' is a class of 'y' (2 rows); --data.missing NA" in notes("cat,cat,NA,NA")
    assert "'dog' of 'y' has one row alone" in notes("cat,dog,cat")
    assert "of 4 rows have no target: 2" in notes("a,b,,", missing=())
    assert list(target("a,b,NA,a,b", missing=["NA"]).values) == [0, 1, -100, 0, 1]
    assert list(target("1,2,unknown,1,2", missing=["unknown"]).values) == [0, 1, -100, 0, 1]
    assert "cells of 'y' with spaces around them, which do not count: 1" in notes("a, a,b,b")
    assert "unit 'kg'" in notes("1 kg,2 kg,1 kg,2 kg")
    assert "cells of 'y' that hold ;, which is taken for a letter" in notes(["a"] * 50 + ["b"] * 50 + ["c;d"] * 2)
    assert "classes of 'y' ('a,b')" in notes(["a,b", "b", "a,c", "b"])
    assert "commas" not in notes(["Paris, France", "Lyon, France", "Rome"] * 2)
    assert "look like dates" in notes(["2024-01-05", "2024-02-05", "2024-01-05"])


NUMBERS = [f"{i}.5" for i in range(30)]
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "constant class": ("a,a,a", {}, "'y' of 't.csv' is 'a' in all 3 rows"),
    "constant number": ("0.5,0.5", {}, "is 0.5 in all 2 rows"),
    "constant whole number": ("1,1,1", {}, "is '1' in all 3 rows"),
    "constant sets": ("a|b,b|a", {}, "the same labels in all 2 rows"),
    "constant tags": (["HH", "H"], {"kind": "tag"}, "is 'H' for all tokens"),
    "constant tags of numbers": ([[0.5], [0.5]], {"kind": "tag"}, "is 0.5 for all tokens"),
    "all missing": (",,", {}, "No row of 't.csv' has a target"),
    "all missing words": ("NA,nan,NULL", {"kind": "regress"}, "No row of 't.csv' has a target"),
    "all missing, numbers": ("NA,nan,NULL", {}, "No row .* all 3 are missing in 'y', 'NA'"),
    "ids": ("ab,cd,ef,gh", {}, "another text in each of its 4 rows"),
    "nearly ids": ([f"q{i}" for i in range(40)] + ["q1"], {}, "40 classes in 41 rows"),
    "numbers of rows": ([str(i) for i in range(30)], {}, "counts up by one from 0 to 29"),
    "text among numbers": ([*NUMBERS, "five"], {}, "row 31 of 't.csv' is 'five', but must be a number"),
    "text in numbers": ("1,2,x", {"kind": "regress"}, "row 3 .* is 'x', but must be a number"),
    "infinite": ([*NUMBERS, "inf"], {}, "'inf', but must be a finite number"),
    "infinite, asked for": ("1,2,-Infinity", {"kind": "regress"}, "'-Infinity', but must be a finite number"),
    "too large": ("1,2,1e999", {}, "'1e999', but must be a finite number"),
    "decimal commas": (["3,5", "4,25", "1"], {}, "is '3,5', but must be a number with a point; write 3.5"),
    "thousands": (["1,234.5", "2,000.5", "1.5"], {"kind": "regress"}, "without separators of thousands"),
    "thousands with spaces": (["1 234", "2 000"], {}, "without separators of thousands"),
    "units": ([f"{i} mm" for i in range(30)], {}, "is '0 mm', but must be a number alone; leave out 'mm'"),
    "units, asked for": ("5 kg,6 kg", {"kind": "regress"}, "row 1 .* is '5 kg'"),
    "percent": ("5%,6", {"kind": "regress"}, "leave out '%'"),
    "digits of other scripts": ("１２,3", {"kind": "regress"}, "is '１２', but must be a number"),
    "underscores": ("1_0,3", {"kind": "regress"}, "is '1_0'"),
    "two separators": ("a|b,b;c", {}, r"hold \| and ;"),
    "lists for one class": ([["a"], ["b"]], {"kind": "classify"}, "must be one class"),
    "lists for numbers": ([["a"], ["b"]], {"kind": "regress"}, "must be a number"),
    "lists and texts": (["[a", "b"], {"kind": "multilabel", "names": ["b"]}, r"lacks '\[a'"),
    "damaged list": (['["a"', "[]"], {"kind": "multilabel"}, "must be a list of labels"),
    "empty label": ([["a", ""], ["b"]], {}, "labels that are not empty"),
    "nested list": ([[["a"]], [["b"]]], {}, "must be a list of labels"),
    "number as tags": ([5, 6], {"kind": "tag"}, "must be a label for each token"),
    "text among tags of numbers": ([[0.5, "a"]], {"kind": "tag", "numbers": True}, "mend 'a' in it"),
    "too large for 32 bits": ("1.5,1e300,2", {}, "row 2 .* is '1e300', but must be between -1e\\+30 and 1e"),
    "too small": ("1.5e-40,2e-40", {}, "all smaller than 1e-30; write them in a smaller unit"),
    "too alike": ([f"{10**12 + i * 7 % 100}" for i in range(60)], {}, "29.* around 1e\\+12, which numbers of 32 bits"),
    "many dates": ([f"2024-01-{i + 1:02}" for i in range(28)] * 2, {}, "is '2024-01-01', but must be a number or a"),
    "many times": ([f"{i}:30" for i in range(24)] * 2, {}, "'0:30', but must be a number or a class; write dates"),
    "yes and no in three ways": ("yes,no,true,0,yes", {}, r"in several ways \(0, no, true, yes\)"),
    "a few lists": (['["a"]', "b", "a", "b"], {}, "row 2 .* is 'b', but must be a list, as in row 1; write one"),
    "lists of amounts": ([[0.5, 1], [1, 2]], {}, "must be a list of labels, which numbers that are not whole"),
    "text among numbers of tokens": ([[0.5, 1], [2, "x"]], {"kind": "tag"}, "row 2 .* a list of numbers; mend 'x' in"),
    "order not given": ("low,high,low", {"kind": "ordinal"}, """as --data.order '\\["LOW", "HIGH"\\]', or write"""),
    "unknown kind": ("a,b", {"kind": "clasify"}, "did you mean 'classify'"),
    "too many steps": (NUMBERS * 50 + [f"{i}.25" for i in range(1001)] * 2, {"kind": "ordinal"}, "steps"),
}


@pytest.mark.parametrize("about", BAD)
def test_bad_targets_are_refused_in_a_sentence(about: str) -> None:
    cells, options, words = BAD[about]
    with pytest.raises(UserError, match=words) as caught:
        target(cells, **options)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": ["1", "2"], "b": ["3", "3"]}, "'b' of 't.csv' is 3 in all 2 rows"),
        ({"a": ["1", "2"], "b": ["", ""]}, "'b' of 't.csv' is missing in all rows"),
        ({"a": ["1", "1"], "b": ["0", "0"]}, "All labels"),
        ({"a": ["1.5", "2"], "b": ["3", "4 kg"]}, "row 2 .* is '4 kg'.*--data.kind b=classify"),
        ({"a": ["x", "y", "x"], "b": ["3", "4", "four"]}, "row 3 .* is 'four'.*--data.kind b=classify"),
        ({"a": ["x", "y", "x"], "b": ["", "", ""]}, "all 3 are missing in 'b'"),
        ({"a": ["x", "y", "x"], "b": ["2.5", "2.5", "2.5"]}, "'b' .* is 2.5 in all"),
    ],
)
def test_bad_columns(columns: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        infer(made(**columns), list(columns))


def test_from_files_of_every_kind(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"y": 1.0}, {"y": 2.0}, {"y": None}, {"y": 1.0}]
    parquet.write_table(pa.table({"y": [row["y"] for row in rows]}), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.csv").write_text("y,x\n1.0,\n2.0,\n,\n1.0,\n")
    for name in ("t.parquet", "t.jsonl", "t.csv"):
        found = infer(read_table(tmp_path / name, ["y"]), ["y"])
        assert found.names == ["1", "2"] and list(found.values) == [0, 1, -100, 0]
        assert found.take(np.array([1, 0])).values.tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [None, "classify", "multilabel"])
def test_an_order_of_what_has_none_is_refused(tmp_path: Path, kind: str | None) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    with pytest.raises(UserError, match=r"^An order of classes is given \(y, x\), but 'label' is read as "):
        infer(read_table(path, ["label"]), ["label"], kind, order=["y", "x"])
