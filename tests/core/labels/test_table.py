"""Tables are read as they are written, or refused in one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from triune.core.errors import UserError
from triune.core.labels.join import join
from triune.core.labels.table import Table, is_table, read_table


def table(folder: Path, content: str | bytes, name: str = "t.csv", columns: tuple[str, ...] = ("x", "y")) -> Table:
    raw = content if isinstance(content, bytes) else content.encode()
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return read_table(path, columns)


PLAIN = "x,y,z\na,1,\nb,2,q\n"
SAME = {
    "commas": PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "bars": PLAIN.replace(",", "|"),
    "Windows lines": PLAIN.replace("\n", "\r\n"),
    "old lines of a Macintosh": PLAIN.replace("\n", "\r"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16, the other way": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
    "quotes": '"x","y","z"\n"a","1",""\n"b","2","q"\n',
    "no last line end": PLAIN.rstrip("\n"),
    "blank lines": "\n" + PLAIN.replace("\nb", "\n\nb") + "\n\n",
    "a first line of Excel": "sep=;\n" + PLAIN.replace(",", ";"),
    "spaces in the first line": PLAIN.replace("x,y,z", " x , y,z "),
}


@pytest.mark.parametrize("about", SAME)
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_forms_of_one_table(tmp_path: Path, about: str, name: str) -> None:
    found = table(tmp_path, SAME[about], name, ("z", "x", "y"))
    assert found.columns == {"z": [None, "q"], "x": ["a", "b"], "y": ["1", "2"]}
    assert list(found.lines) == [1, 2] and len(found) == 2 and found.names == ["x", "y", "z"]


def test_cells_stay_as_they_are(tmp_path: Path) -> None:
    found = table(tmp_path, 'x,y\n"a\r\nb, ""c""",  HH E \n NA ,5" pipe\n')
    assert found.columns == {"x": ['a\r\nb, "c"', " NA "], "y": ["  HH E ", '5" pipe']}


def test_the_separator_is_the_one_that_gives_the_columns(tmp_path: Path) -> None:
    found = table(tmp_path, "x;a,y;b\n1;2;3\n", columns=("a,y",))
    assert found.columns == {"a,y": ["2"]}
    assert found.notes == ["its cells are separated by semicolons"]


def test_quotes_of_texts_between_tabs(tmp_path: Path) -> None:
    found = table(tmp_path, 'x\ty\n"Hello\t1\nno\t0\nworld"\t1\nsays "a"\t0\n', "t.tsv")
    assert found.columns["x"] == ['"Hello', "no", 'world"', 'says "a"']
    assert any("quotes" in note for note in found.notes)
    found = table(tmp_path, 'x\ty\n"Hello" he said\t1\n', "t.tsv")
    assert found.columns["x"] == ['"Hello" he said']
    found = table(tmp_path, 'x\ty\n"a\tb"\t1\n"c\nd"\t1\n', "t.tsv")
    assert found.columns["x"] == ["a\tb", "c\nd"] and not found.notes


def test_typed_cells(tmp_path: Path) -> None:
    rows = [{"x": "a", "y": 1}, {"x": "", "y": [1.5, "q", None]}, {"y": True, "z": {"q": 1}}]
    for name in ("t.jsonl", "t.jsonl.gz"):
        found = table(tmp_path, "\n".join(map(json.dumps, rows)), name)
        assert found.columns == {"x": ["a", None, None], "y": [1, [1.5, "q", None], True]}
        assert found.names == ["x", "y", "z"]
    assert table(tmp_path, json.dumps(rows), "t.json").columns == found.columns
    apart = table(tmp_path, "\n\n".join(map(json.dumps, rows)), "t.jsonl")
    assert list(apart.lines) == [1, 3, 5] and apart.where(1).startswith("row 3")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "x": ["a", "", None],
        "y": [1.5, None, float("inf")],
        "i": [1, 2, None],
        "b": [True, None, False],
        "l": [["p", "q"], [], None],
        "d": pa.array(["u", "v", "u"]).dictionary_encode(),
        "t": pa.array([0, 1, 2], pa.timestamp("s")),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", ["b", "x", "y", "i", "l", "d"])
    assert found.columns == {
        "b": [True, None, False],
        "x": ["a", None, None],
        "y": [1.5, None, float("inf")],
        "i": [1, 2, None],
        "l": [["p", "q"], [], None],
        "d": ["u", "v", "u"],
    }
    assert found.names == list(columns)
    with pytest.raises(UserError, match=r"'t' of .* has the type timestamp"):
        read_table(tmp_path / "t.parquet", ["t"])
    with pytest.raises(UserError, match="no column 'zz'"):
        read_table(tmp_path / "t.parquet", ["zz"])


BAD = {
    "no file": ("missing.csv", None, "cannot be read"),
    "empty": ("t.csv", "", "is empty"),
    "no rows": ("t.csv", "x,y\n", "holds no rows"),
    "no such column": ("t.csv", "x,yy\n1,2\n", r"no column 'y' \(did you mean 'yy'\?\); its columns are 'x', 'yy'"),
    "another case": ("t.csv", "x,Y\n1,2\n", r"no column 'y' \(did you mean 'Y'\?\)"),
    "no first line": ("t.csv", "1,2\n3,4\n", "no column 'x'"),
    "a column twice": ("t.csv", "x,y,y\n1,2,3\n", "2 columns that are called 'y'"),
    "more cells": ("t.csv", "x,y\n1,2\n1,2,3\n", r"Row 2 .* has 3 cells, more than the 2"),
    "fewer cells": ("t.csv", "x,y\n1,2\n\n1\n", r"Row 2 .* has 1 cells, fewer"),
    "a quote that is not closed": ("t.csv", 'x,y\n1,2\n3,"4\n5,6\n', r"Row 2 .* a quote that is not closed"),
    "more behind a quote": ("t.csv", 'x,y\n1,2\n3,"4"5\n', r"Row 2 .* quote"),
    "Latin-1": ("t.csv", "x,y\n1,é\n".encode("latin-1"), r"not UTF-8 text.*0xe9.*iconv"),
    "UTF-16 without a mark": ("t.csv", "x,y\n1,2\n".encode("utf-16-le"), "NUL character"),
    "a mark of UTF-16 alone": ("t.csv", b"\xff\xfex,y\n1,2\n3,4", "not UTF-16"),
    "a spreadsheet": ("t.xlsx", "PK", "save it as CSV"),
    "a spreadsheet as CSV": ("t.csv", b"PK\x03\x04x,y\n", "spreadsheet"),
    "Parquet as CSV": ("t.csv", b"PAR1x,y\n", "is Parquet"),
    "damaged Parquet": ("t.parquet", b"PAR1x,y\n", "cannot be read as Parquet"),
    "damaged gzip": ("cut.csv.gz", gzip.compress(b"x,y\n" + b"1,2\n" * 9999)[:-20], "cannot be read"),
    "no gzip": ("no.csv.gz", b"x,y\n1,2\n", "cannot be read"),
    "another ending": ("t.foo", "x,y\n1,2\n", r"ends in '.foo'"),
    "bad JSON": ("t.jsonl", '{"x": 1, "y": 2}\n{"x": 1, y}\n', r"t.jsonl:2 is not valid JSON"),
    "JSON that is no object": ("t.jsonl", '{"x": 1, "y": 2}\n[1]\n', r"t.jsonl:2 holds no JSON object but list"),
    "an object in a cell": ("t.jsonl", '{"x": 1, "y": {"a": 1}}\n', r"'y' holds an object"),
    "no such field": ("t.jsonl", '{"x": 1, "yy": 2}\n', r"no column 'y' \(did you mean 'yy'\?\)"),
    "no rows of JSON": ("t.jsonl", "\n\n", "holds no rows"),
    "a folder": (".", None, "is a folder"),
}


@pytest.mark.parametrize("about", BAD)
def test_bad_tables_are_refused_in_a_sentence(tmp_path: Path, about: str) -> None:
    name, content, words = BAD[about]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        read_table(tmp_path / name, ["x", "y"])
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text


def test_other_rows_are_read_where_asked(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\na,1\nb\nc,3\nd,4,5\n")
    wrong: list[UserError] = []
    found = read_table(tmp_path / "t.csv", ["x"], wrong.append)
    assert found.columns == {"x": ["a", "c"]} and list(found.lines) == [1, 3]
    assert [str(error)[:5] for error in wrong] == ["Row 2", "Row 4"]
    (tmp_path / "t.jsonl").write_text('{"x": 1}\n{\n{"x": 2}\n')
    found = read_table(tmp_path / "t.jsonl", ["x"], wrong.append)
    assert found.columns == {"x": [1, 2]} and list(found.lines) == [1, 3] and len(wrong) == 3


def test_a_packed_file_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"x,y\n")
        for _ in range(80):
            file.write(b"0" * (1 << 20) + b",0\n")
    with pytest.raises(UserError, match="unpacks to more"):
        read_table(path, ["x"])


def test_names_of_tables() -> None:
    assert [is_table(n) for n in ("a.CSV", "a.tsv.gz", "a.parquet", "a.jsonl")] == [True] * 4
    assert [is_table(n) for n in ("a.txt", "a.fasta", "a.json", "csv")] == [False] * 4


# -- join -------------------------------------------------------------------------------------------------------------


def test_names_meet_rows_by_key(tmp_path: Path) -> None:
    found = table(tmp_path, "x,y\nb ,1\nc,2\na,3\nq,4\n")
    joined = join(["a", "b", "other", "c"], found, "x", "'p.fasta'")
    assert joined.rows.tolist() == [2, 0, -1, 1] and joined.found.tolist() == [True, True, False, True]
    assert "1 of 4 of 'p.fasta' have no row" in joined.notes[0] and "'other'" in joined.notes[0]
    assert "1 of 4 rows" in joined.notes[1] and "'q'" in joined.notes[1]


@pytest.mark.parametrize(
    ("content", "names", "words"),
    [
        ("x,y\na,1\nb,2\na,3\n", ["a"], "'a' in row 1 and in row 3"),
        ("x,y\na,1\n,2\n", ["a"], "in row 2 .* is empty"),
        ("x,y\na,1\nb,2\n", ["a", "b", "a "], "'a' is the name of two"),
        ("x,y\na,1\nb,2\n", ["p", "q"], "holds no name of the inputs.*'p', 'q'.*'a', 'b'"),
    ],
)
def test_names_that_do_not_meet(tmp_path: Path, content: str, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        join(names, table(tmp_path, content), "x")
