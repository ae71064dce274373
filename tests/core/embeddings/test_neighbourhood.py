"""Copies, leaks and doubtful labels among vectors, and among the rows of a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from triune import cli
from triune.core.embeddings.neighbourhood import Items, look
from triune.core.labelled.check import trigrams


def test_pairs_sides_and_labels() -> None:
    """Two groups of five vectors; one has a wrong label, two are near copies over the sides, two are equal."""
    rng = np.random.default_rng(0)
    centres = np.eye(8)[[0] * 5 + [1] * 5] * 3
    values = (centres + 0.3 * rng.standard_normal((10, 8))).astype(np.float32)
    values[3] = values[1] * 1.01
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, -100])
    sides = ["train", "train", "val", "val", "train", "train", "val", "val", "train", "train"]
    same = [0, 1, 2, 3, 4, 5, 6, 5, 8, 9]
    found = look(values, Items([f"n{i}" for i in range(10)], sides, labels, ["a", "b"], same), 0.9999, 3, "test")
    assert [pair[:2] for pair in found.pairs] == [(5, 7), (1, 3)]
    assert [pair[3] for pair in found.pairs] == [True, False]
    assert found.pairs[1][2] == pytest.approx(1.0, abs=1e-5)
    assert {pair[:2] for pair in found.leaks} == {(5, 7), (1, 3)}
    assert not found.contradictions
    assert [(found.items.names[d.row], d.other) for d in found.doubts.doubts] == [("n4", 0)]  # type: ignore[union-attr]
    rows = found.rows()
    assert [row["kind"] for row in rows] == ["copy", "near", "label"]
    assert rows[2]["label"] == "b" and rows[2]["other_label"] == "a" and rows[2]["votes"] == 1.0
    text = found.text()
    assert "pairs on two sides, so that what is judged was trained on: 2" in text and "100% say a: n4" in text
    assert json.loads(json.dumps(found.to_dict()))["leaks"] == 2


def test_no_labels_and_equal_labels_are_said() -> None:
    values = np.eye(3, dtype=np.float32)
    items = Items(["x", "y", "z"], [""] * 3, np.full(3, -100), [], [0, 1, 2])
    found = look(values, items, 0.9, 2, "test")
    assert found.doubts is None and not found.pairs and "no labels" in found.text()
    one = Items(["x", "y", "z"], [""] * 3, np.zeros(3, dtype=np.int64), ["a"], [0, 1, 2])
    assert look(values, one, 0.9, 2, "test").doubts is None


def test_equal_contents_are_joined_once() -> None:
    values = np.ones((4, 2), dtype=np.float32)
    items = Items(list("abcd"), ["train", "train", "val", "val"], np.full(4, -100), [], ["s", "s", "s", "t"])
    found = look(values, items, 0.99, 2, "test")
    assert [pair[:2] for pair in found.pairs if pair[3]] == [(0, 1), (0, 2)]
    assert {pair[:2] for pair in found.pairs if not pair[3]} == {(0, 3), (1, 3), (2, 3)}


def test_runs_of_characters() -> None:
    def cosine(one: str, other: str) -> float:
        a, b = trigrams(one, Path()), trigrams(other, Path())
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine("The  cat sat", "the cat sat") == pytest.approx(1.0)
    assert (
        cosine("the cat sat on the mat", "the cat sat on the mat!")
        > 0.9
        > 0.3
        > cosine("the cat sat", "zebra xylophone")
    )


KINDS = {
    "text": (["good film", "fine film", "nice film"], ["dull evening", "bad evening", "long evening"]),
    "protein": (["MKVLAAGIVG", "MKVLSSGIVG", "MKVLAAQWER"], ["GGSPKEGGSP", "GGSPKETTSP", "YYSPKEGGSP"]),
}


@pytest.mark.parametrize("task", KINDS)
def test_tables_of_texts_and_proteins(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = KINDS[task]
    rows = [f"{text},{label},train" for label, texts in (("x", one), ("y", two)) for text in texts]
    (tmp_path / "t.csv").write_text("\n".join(["input,label,side", *rows, f"{one[1]},y,val"]))
    line = [task, "check", "--data.table", str(tmp_path / "t.csv"), "--data.input", "input", "--data.target", "label"]
    out = tmp_path / "found.jsonl"
    assert cli.main([*line, "--data.split", "side", "--neighbours", "--k", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "pairs with two labels: 1" in said
    found = [json.loads(row) for row in out.read_text().splitlines()]
    copies = [row for row in found if row["kind"] == "copy"]
    assert [(row["side"], row["other_side"], row["other_label"]) for row in copies] == [("train", "val", "y")]
    assert cli.main(line) == 2
    assert "--neighbours" in capsys.readouterr().err
    assert cli.main([*line, "--neighbours", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert cli.main([*line[:5], "inputs", "--neighbours"]) == 2
    assert "did you mean 'input'" in capsys.readouterr().err


def test_too_few_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input\na\n")
    assert (
        cli.main(["text", "check", "--data.table", str(tmp_path / "t.csv"), "--data.input", "input", "--neighbours"])
        == 2
    )
