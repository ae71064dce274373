"""Several kinds of target in one model, from the command line of each task."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_tables import CLASSES, MODALITIES, fit, read, run, table, write

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.labelled.evaluate import Listed, judge_tables
from triune.core.labelled.predict import answers, opened
from triune.core.labelled.run import Inputs
from triune.protein.language.model import SequenceConfig, SequenceModel

KINDS = ("--data.kind", "kind=classify", "--data.split", "side")


@pytest.mark.parametrize("task", list(CLASSES))
def test_a_class_a_number_and_a_name(task: str, tmp_path: Path) -> None:
    where = table(task, tmp_path)
    rows = read(where)
    write(where, [row | {"who": "" if i % 4 == 0 else row["who"]} for i, row in enumerate(rows)])
    summary = fit(task, where, "kind,size,who", *KINDS, "--model.head", '{"weights": {"size": 0.5}}')
    judged = summary["judged"]
    assert judged["kind"] == "several" and judged["count"] == 10
    assert {"val_skill", "val_kind.accuracy", "val_size.mae", "val_who.macro_f1"} <= set(summary)
    assert {row["target"] for row in judged["per_class"]} == {"kind", "size", "who"}
    assert list(summary["calibration"]) == ["kind", "size", "who"]
    names = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert {"kind_confusion.png", "size_predicted.png", "who_confusion.png"} <= names
    assert "By class, validation: kind" in (tmp_path / "run" / "report.html").read_text()
    again = run(task, "validate", tmp_path / "run")
    assert again["judged"]["metrics"] == pytest.approx(judged["metrics"], abs=1e-6)
    if task != "text":  # what follows is the same code for all
        return
    out = tmp_path / "answers.jsonl"
    line = ["text", "predict", str(tmp_path / "run"), "--table", str(where), "--input", "what", "--out", str(out)]
    assert main([*line, "--device", "cpu"]) == 0
    written: list[dict[str, Any]] = [json.loads(each) for each in out.read_text().splitlines()]
    for row in written:
        assert sum(row[f"kind.p_{name}"] for name in ("10", "2", "3")) == pytest.approx(1, abs=1e-6)
        assert row["kind.label"] in ("10", "2", "3") and np.isfinite(row["size.value"])
    # Another table has two of the columns alone, in another order, and few of the classes.
    few = [row for row in read(where) if row["kind"] != "2"][::-1]
    other = write(
        tmp_path / "few.csv", [{"size": row["size"], "what": row["what"], "kind": row["kind"]} for row in few]
    )
    scored = run(task, "test", tmp_path / "run", "--data.table", other, "--data.target", "size,kind")
    model, reader = opened(MODALITIES[task], str(tmp_path / "run"), "cpu")
    cells = [row["what"] for row in few]
    found, failed = answers(model, reader, Inputs(cells, cells, tmp_path), {}, 16)
    assert not failed
    right = np.mean([row["kind.label"] == known["kind"] for row, known in zip(found, few)])
    assert scored["test_kind.accuracy"] == pytest.approx(right)
    far = [abs(row["size.value"] - float(known["size"])) for row, known in zip(found, few) if known["size"]]
    assert scored["test_size.mae"] == pytest.approx(np.mean(far))
    assert not any(name.startswith("test_who.") for name in scored)
    listed = Listed(str(other), target="kind,size", name="x")
    figures = judge_tables(MODALITIES[task], str(tmp_path / "run"), [listed], device="cpu")[0].judgement.metrics
    assert figures == pytest.approx(scored["judged"]["metrics"], abs=1e-6)


def test_two_labels_for_each_residue(tmp_path: Path) -> None:
    where = table("protein", tmp_path)
    rows = read(where)
    turned = str.maketrans("HEC", "bbe")
    write(where, [row | {"depth": row["tags"].translate(turned) if i % 5 else ""} for i, row in enumerate(rows)])
    summary = fit("protein", where, "tags,depth", "--data.kind", "tags=tag,depth=tag", "--data.split", "side")
    held = [row for row in read(where) if row["side"] == "val"]
    assert summary["judged"]["count"] == sum(len(row["what"]) for row in held)
    model, reader = opened(MODALITIES["protein"], str(tmp_path / "run"), "cpu")
    cells = [row["what"] for row in held]
    found, _ = answers(model, reader, Inputs(cells, cells), {}, 4)
    pairs = [(a, b) for row, known in zip(found, held) for a, b in zip(row["tags.label"], known["tags"])]
    assert summary["val_tags.accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert all(len(row["depth.label"]) == len(cell) for row, cell in zip(found, cells))
    rows = read(where)
    (tmp_path / "other").mkdir()
    where = write(tmp_path / "other" / "table.csv", [*rows[:1], rows[1] | {"depth": "be"}, *rows[2:]])
    with pytest.raises(UserError, match=r"row 2 of .* has 13 in 'tags', 2 in 'depth' labels"):
        fit("protein", where, "tags,depth", "--data.kind", "tags=tag,depth=tag")


def test_a_probe_answers_every_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = table("protein", tmp_path)
    config = SequenceConfig(transformer=TransformerConfig(dim=32, depth=1, heads=2, position="rotary"))
    SequenceModel(config).save_pretrained(tmp_path / "run")
    line = ["protein", "probe", "--model", str(tmp_path / "run"), "--data.table", str(where), "--data.input", "what",
            "--data.target", "kind,size", *KINDS, "--json", "--cache", str(tmp_path), "--device", "cpu"]  # fmt: skip
    capsys.readouterr()
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "several" and [score["name"][:4] for score in found["scores"]][:2] == ["line", "k-NN"]
    assert {"skill", "kind.accuracy", "size.mae"} <= set(found["scores"][0]["metrics"])


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"size": "four"}, ["kind,size"], r"'size' in row 3 of .* is 'four', but must be a number"),
        ({}, ["kind,sise,who"], r"sise.*did you mean 'size'"),
        ({}, ["kind,size", "--data.kind", "kinds=classify"], r"names the column 'kinds' \(did you mean 'kind'"),
        ({}, ["kind,size", "--data.kind", "kind=class"], r"kind of the target is 'class'"),
        ({}, ["kind,tags", "--data.kind", "tags=tag"], r"'tags' of .* has a label for each token and 'kind' one for"),
        ({}, ["kind,size", *KINDS, "--data.balanced", "true"], "must be false for a target of kind several"),
        ({}, ["kind,size", *KINDS, "--model.head", '{"weights": {"sise": 2}}'], "names the column 'sise'"),
        ({}, ["kind,kind"], "'kind' is named twice"),
    ],
)
def test_what_cannot_be_used_is_named(changes: dict[str, str], words: list[str], message: str, tmp_path: Path) -> None:
    where = table("protein", tmp_path)
    rows = read(where)
    write(where, [*rows[:2], rows[2] | changes, *rows[3:]])
    with pytest.raises(UserError, match=message):
        fit("protein", where, words[0], *words[1:])


def test_a_number_unseen_in_training_and_a_class_are_named_when_scored(tmp_path: Path) -> None:
    where = table("protein", tmp_path)
    fit("protein", where, "kind,size", *KINDS)
    rows = read(where)
    other = write(tmp_path / "other.csv", [*rows[:4], rows[4] | {"kind": "7"}, rows[5] | {"size": "x"}, *rows[6:]])
    with pytest.raises(UserError, match=r"'kind' in row 5 of .* is '7', but must be a class of the model"):
        run("protein", "test", tmp_path / "run", "--data.table", other)
    scored = run("protein", "test", tmp_path / "run", "--data.table", other, "--data.on_error", "skip")
    assert scored["judged"]["count"] == 60
    with pytest.raises(UserError, match=r"data.target is who, but the model was trained on kind, size"):
        run("protein", "test", tmp_path / "run", "--data.table", other, "--data.target", "who")
