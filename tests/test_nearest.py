"""`triune nearest` by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from triune.cli import main
from triune.core.embeddings.store import write_vectors

RNG = np.random.default_rng(0)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = RNG.standard_normal((40, 8)) * 0.3 + np.repeat(np.eye(2, 8) * 3, 20, axis=0)
    values[5] = values[3]
    names = [f"n{i}" for i in range(40)]
    write_vectors("v.npz", names, values, about={"model": "m"})
    write_vectors("q.npz", ["query"], values[7:8] * 2, about={"model": "m"})
    write_vectors("other.npz", ["query"], values[7:8], about={"model": "o"})
    write_vectors("short.npz", ["query"], values[7:8, :4])
    labels = ["cat" if i < 20 else "dog" for i in range(40)]
    labels[9] = "dog"
    rows = "".join(f"n{i},{label}\n" for i, label in reversed(list(enumerate(labels))))
    Path("t.csv").write_text("name,kind\n" + rows + "extra,cat\n")
    return tmp_path / "v.npz"


def test_neighbours(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nearest", "n3", "q.npz", "--index", "v.npz", "--k", "3", "--output", "o.json"]) == 0
    out = capsys.readouterr().out
    assert "1.0000  n5" in out and "1.0000  n7" in out
    found = json.loads(Path("o.json").read_text())
    assert [len(row["nearest"]) for row in found["queries"]] == [3, 3]
    assert found["queries"][0]["nearest"][0]["name"] == "n5" and found["index"] == "v.npz"
    assert "n3" not in [hit["name"] for hit in found["queries"][0]["nearest"]]


def test_copies(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nearest", "--index", "v.npz", "--duplicates", "--threshold", "0.9999", "--output", "o.json"]) == 0
    assert "1 pairs of 40 vectors" in capsys.readouterr().out
    assert json.loads(Path("o.json").read_text())["clusters"] == [["n3", "n5"]]


def test_labels(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["nearest", "--index", "v.npz", "--labels", "t.csv", "--target", "kind", "--output", "o.json"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "n9: dog -> cat" in shown.out and "1 of 41 rows of 't.csv' belong to none" in shown.err
    assert [doubt["name"] for doubt in json.loads(Path("o.json").read_text())["doubts"]] == ["n9"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("n3 --index missing.npz", "cannot be read"),
        ("n300 --index v.npz", "has no 'n300' (did you mean 'n30'?)"),
        ("t.csv --index v.npz", "embed it first"),
        ("other.npz --index v.npz", "differ in model ('o' and 'm')"),
        ("short.npz --index v.npz", "have 4 numbers, but those of 'v.npz' 8"),
        ("--index v.npz", "Nothing is asked for"),
        ("n3 --index v.npz --duplicates", "More than one thing"),
        ("n3 --index v.npz --threshold 0.5", "--threshold is of --duplicates"),
        ("--duplicates --index v.npz --threshold 1.5", "--threshold is 1.5, but must be"),
        ("--labels t.csv --index v.npz", "belong together"),
        ("--labels t.csv --target kinds --index v.npz", "no column 'kinds' (did you mean 'kind'?)"),
        ("--labels t.csv --target name --key kind --index v.npz", "another text in each"),
        ("n3 --index v.npz --output o.txt", "must end in .json"),
        ("n3 --index v.npz --output v.json/o.json", "is no folder"),
        ("n3", "--index"),
    ],
)
def test_mistakes(index: Path, capsys: pytest.CaptureFixture[str], options: str, words: str) -> None:
    Path("v.json").write_text("")
    assert main(["nearest", *options.split()]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.startswith("error: ") and "\n" not in shown.err.strip()
    assert sorted(path.name for path in index.parent.iterdir() if path.suffix == ".json") == ["v.json"]


def test_an_option_of_another_question_is_refused(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nearest", "--index", "v.npz", "--duplicates", "--key", "none"]) == 2
    assert capsys.readouterr().err.startswith("error: --key is of --labels, ")


def test_tables_and_a_contact_sheet(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for number in (3, 5, 7):
        Image.fromarray(np.full((6, 9, 3), 30 * number, np.uint8)).save(f"n{number}.png")
    Path("photos").mkdir()
    values = np.eye(3, 8) + 0.1
    write_vectors("p.npz", ["n3.png", "n5.png", "n7.png"], values)
    line = ["nearest", "n3.png", "--index", "p.npz", "--k", "2"]
    assert main([*line, "--sheet", "sheet.png", "--output", "near.csv"]) == 0
    with Image.open("sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20) or []}
        assert {(30 * number,) * 3 for number in (3, 5, 7)} <= colours
    assert Path("near.csv").read_text().splitlines()[:2] == [
        "query,rank,name,cosine",
        f"n3.png,1,n5.png,{cosine(values)}",
    ]
    assert main([*line[:1], "--index", "p.npz", "--duplicates", "--threshold", "0.1", "--sheet", "two.png",
                 "--output", "pairs.json"]) == 0  # fmt: skip
    assert len(json.loads(Path("pairs.json").read_text())["pairs"]) == 3
    capsys.readouterr()
    for more, words in (
        (["--sheet", "s.png", "--images", "photos"], "is no file; say where the names of the vectors start from"),
        (["--images", "photos"], "--images is of --sheet"),
        (["--sheet", "s.jpg"], "must end in .png"),
    ):
        assert main([*line, *more]) == 2
        assert words in capsys.readouterr().err


def cosine(values: np.ndarray) -> float:
    """Of the first two vectors, as the file has it."""
    from triune.core.embeddings.nearest import search

    return search(values[:1].astype(np.float32), values.astype(np.float32), 1, np.array([0])).cosines.tolist()[0][0]
