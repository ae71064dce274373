"""Labels from a table, from the command line of each task: trained, scored again, continued, and used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triune.cli import main
from triune.core.embeddings.store import read_vectors
from triune.core.errors import UserError
from triune.core.labelled.evaluate import Listed, judge_tables
from triune.core.labelled.predict import answers, opened
from triune.core.labelled.run import Inputs
from triune.core.task import named
from triune.core.training.run.cli import run_task
from triune.protein.language import labels as protein
from triune.tasks import tasks
from triune.text import labels as text
from triune.text.tokenizer import Tokenizer
from triune.vision import labels as vision

SHORT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--threads", "1", "--data.batch_size", "8"]
SMALL = ["--model.transformer.dim", "32", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
CLASSES: dict[str, tuple[Any, Any]] = {
    "text": (text.TextLabels, text.TextTable),
    "vision": (vision.ImageLabels, vision.ImageTable),
    "protein": (protein.ProteinLabels, protein.ProteinTable),
}
MODALITIES = {name: named(task.modality) for name, task in tasks().items()}
ROWS = 60


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def inputs(task: str, folder: Path, count: int) -> list[str]:
    random = np.random.default_rng(0)
    if task == "text":
        return [f"the {random.choice(['cat', 'dog', 'owl'])} saw number {i}" for i in range(count)]
    if task == "protein":
        return ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 12 + i % 7)) for i in range(count)]
    for i in range(count):
        Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    return [f"{i}.png" for i in range(count)]


def table(task: str, folder: Path, count: int = ROWS) -> Path:
    """A table with a target of each kind; one of the classes has the name of a number out of order."""
    cells = inputs(task, folder, count)
    return write(
        folder / "table.csv",
        [
            {
                "what": cell, "kind": ("10", "2", "3")[i % 3], "size": f"{0.5 * i:.1f}" if i % 5 else "", "a": i % 2,
                "b": int(i % 3 == 0), "tags": "".join("HEC"[(i + j) % 3] for j in range(len(cell))),
                "who": f"p{i % 10}",
                "side": "val" if i % 6 == 0 else "test" if i % 6 == 1 else "train",
            }
            for i, cell in enumerate(cells)
        ],
    )  # fmt: skip


def run(task: str, verb: str, *words: object) -> dict[str, Any]:
    module, data = CLASSES[task]
    return run_task(
        task,
        verb,
        [str(word) for word in words],
        module,
        data,
        f"triune.{task}",
    )


def fit(task: str, where: Path, target: str, *more: object) -> dict[str, Any]:
    options = ["--data.table", where, "--data.input", "what", "--data.target", target, *SHORT, *SMALL]
    return run(task, "fit", *options, "--run", where.parent / "run", *more)


def padding(run: Path) -> set[float]:
    return {float(row["padding"]) for row in read(run / "metrics.csv") if row["padding"]}


@pytest.mark.parametrize("task", list(CLASSES))
def test_a_class_is_trained_scored_and_answered(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = table(task, tmp_path)
    summary = fit(task, where, "kind", "--data.split", "side")
    assert summary["judged"]["count"] == 10 and summary["judged"]["kind"] == "classify"
    again = run(task, "validate", tmp_path / "run")
    assert again["val_loss"] == pytest.approx(summary["val_loss"], abs=1e-6)
    assert again["judged"]["metrics"] == pytest.approx(summary["judged"]["metrics"], abs=1e-6)
    # Another table has few of the classes, in another order, and is joined by their names.
    rows = read(where)
    few = write(tmp_path / "few.csv", [row for row in rows if row["kind"] != "2"][::-1])
    scored = run(task, "test", tmp_path / "run", "--data.table", few)
    assert scored["judged"]["count"] == 40
    listed = tmp_path / "tables.yaml"
    listed.write_text("tables:\n  - few.csv\n  - {table: table.csv, name: all, input: what, target: kind}\n")
    line = ["evaluate", str(tmp_path / "run"), "--tasks", str(listed), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert {row["table"]: row["examples"] for row in figures} == {"few.csv": 40, "all": 60}
    mine = {row["figure"]: row for row in figures if row["table"] == "few.csv"}
    judged = scored["judged"]
    assert {name: row["value"] for name, row in mine.items()} == pytest.approx(judged["metrics"], abs=1e-6)
    constant = {name: row["constant_answer"] for name, row in mine.items() if row["constant_answer"] is not None}
    assert constant == pytest.approx(judged["baseline"], abs=1e-6)
    for name in judged["intervals"]:  # of other resamples, since `test` has the rows in another order
        assert mine[name]["low"] <= mine[name]["value"] <= mine[name]["high"] or name.endswith("calibrated")
    model, reader = opened(MODALITIES[task], str(tmp_path / "run"), "cpu")
    assert list(model.head.spec.names) == ["2", "3", "10"]
    cells = [row["what"] for row in read(few)]
    found, failed = answers(model, reader, Inputs(cells, cells, tmp_path), {}, 16)
    assert not failed
    right = np.mean([row["label"] == known["kind"] for row, known in zip(found, read(few))])
    assert scored["test_accuracy"] == pytest.approx(right)
    for row in found:
        assert sum(value for name, value in row.items() if name.startswith("p_")) == pytest.approx(1, abs=1e-6)
    out = tmp_path / "answers.jsonl"
    line = [task, "predict", str(tmp_path / "run"), "--table", str(few), "--input", "what", "--out", str(out)]
    assert main([*line, "--device", "cpu"]) == 0
    written = [json.loads(each) for each in out.read_text().splitlines()]
    assert [row["label"] for row in written] == [row["label"] for row in found]
    assert written[0]["what"] == cells[0] and written[0]["kind"] == "3"
    assert main(line) == 2  # the file exists
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("task", list(CLASSES))
def test_numbers_with_missing_ones_and_groups(task: str, tmp_path: Path) -> None:
    where = table(task, tmp_path)
    summary = fit(task, where, "size", "--data.group", "who", "--data.val_fraction", "0.3")
    assert summary["judged"]["kind"] == "regress" and "val_mae" in summary
    model, reader = opened(MODALITIES[task], str(tmp_path / "run"), "cpu")
    found, _ = answers(model, reader, Inputs(inputs(task, tmp_path, 3), ["x"] * 3, tmp_path), {}, 2)
    assert all(np.isfinite(row["value"] if "value" in row else row["size"]) for row in found)


def test_several_labels_at_once(tmp_path: Path) -> None:
    where = table("vision", tmp_path)
    summary = fit("vision", where, "a,b")
    assert padding(tmp_path / "run") <= {0.0} and summary["unit"] == "label"
    assert summary["judged"]["kind"] == "multilabel"


def test_a_label_for_each_residue(tmp_path: Path) -> None:
    where = table("protein", tmp_path)
    summary = fit("protein", where, "tags", "--data.kind", "tag", "--data.split", "side")
    assert all(0 <= value < 0.7 for value in padding(tmp_path / "run"))
    rows = [row for row in read(where) if row["side"] == "val"]
    assert summary["judged"]["count"] == sum(len(row["what"]) for row in rows)
    model, reader = opened(MODALITIES["protein"], str(tmp_path / "run"), "cpu")
    cells = [row["what"] for row in rows]
    found, _ = answers(model, reader, Inputs(cells, cells), {}, 4)
    assert [len(row["label"]) for row in found] == [len(cell) for cell in cells]
    judged = judge_tables(MODALITIES["protein"], str(tmp_path / "run"), [Listed(str(where), name="x")], device="cpu")[0]
    assert judged.judgement.count == sum(len(row["what"]) for row in read(where)) and not judged.failed
    right = np.mean([a == b for row, known in zip(found, rows) for a, b in zip(row["label"], known["tags"])])
    assert summary["val_accuracy"] == pytest.approx(right)


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder in ("one", "two"):
        table("text", tmp_path / folder)
    fit("text", tmp_path / "one" / "table.csv", "kind", "--model.schedule.kind", "constant")
    options = ["--model.schedule.kind", "constant"]
    where = tmp_path / "two" / "table.csv"
    base = ["--data.table", where, "--data.input", "what", "--data.target", "kind", *SMALL, *options]
    short = [word if word != "4" else "2" for word in SHORT]
    run("text", "fit", *base, *short, "--run", where.parent / "run")
    run("text", "fit", "--run", where.parent / "run", "--resume", "true", "--trainer.max_steps", 4)
    states = [
        torch.load(tmp_path / name / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_sequences_by_name(tmp_path: Path) -> None:
    where = table("protein", tmp_path)
    rows = read(where)
    (tmp_path / "all.fasta").write_text("".join(f">c{i}\n{row['what']}\n" for i, row in enumerate(rows)))
    named = [row | {"what": f"c{i}"} for i, row in enumerate(rows)]
    write(where, named[::-1])
    summary = fit("protein", where, "tags", "--data.kind", "tag", "--data.fasta", tmp_path / "all.fasta")
    assert summary["judged"]["kind"] == "tag"
    write(where, [named[0] | {"what": "nobody"}, *named[1:]])
    with pytest.raises(UserError, match=r"'nobody' in row 1 of .* is no record"):
        run("protein", "fit", "--data.table", where, "--data.input", "what", "--data.target", "kind", *SHORT, *SMALL,
            "--data.fasta", tmp_path / "all.fasta", "--run", tmp_path / "other")  # fmt: skip


@pytest.mark.parametrize(
    ("task", "changes", "words", "message"),
    [
        ("text", {}, ["--data.target", "kinds"], "kinds"),
        ("text", {}, ["--data.target", "what"], "both 'what'"),
        ("text", {"what": ""}, ["--data.target", "kind"], "'what' is empty in row 3"),
        ("vision", {"what": "no.png"}, ["--data.target", "kind"], "no.png' in row 3 .* is no file"),
        ("vision", {}, ["--data.target", "tags", "--data.kind", "tag"], "tag"),
        ("protein", {"what": "ACGT1"}, ["--data.target", "kind"], "'1' at position 5"),
        ("protein", {"tags": "HH"}, ["--data.target", "tags", "--data.kind", "tag"], "row 3 .* has 2 labels for 14"),
        ("text", {}, ["--data.target", "kind", "--data.split", "side", "--data.test_fraction", "0.1"], "test_fraction"),
        ("text", {}, ["--data.target", "kind", "--data.tokenizer", "bytes", "--data.vocab_size", "300"], "vocab_size"),
        ("text", {}, ["--data.target", "kind", "--model.pool", "middle"], "pool is 'middle'"),
        ("text", {}, ["--data.target", "kind", "--model.head", '{"class_weight": "balanced"}'], "class_weight"),
    ],
)
def test_what_cannot_be_used_is_named(
    task: str, changes: dict[str, str], words: list[str], message: str, tmp_path: Path
) -> None:
    where = table(task, tmp_path)
    rows = read(where)
    write(where, [*rows[:2], rows[2] | changes, *rows[3:]])
    with pytest.raises(UserError, match=message):
        run(
            task,
            "fit",
            "--data.table",
            where,
            "--data.input",
            "what",
            *SHORT,
            *SMALL,
            "--run",
            tmp_path / "run",
            *words,
        )
    assert not (tmp_path / "run" / "summary.json").exists()


def test_bad_rows_are_left_out_when_asked(tmp_path: Path) -> None:
    where = table("protein", tmp_path)
    rows = read(where)
    write(where, [*rows[:2], rows[2] | {"what": "ACGT1"}, *rows[3:]])
    summary = fit("protein", where, "kind", "--data.on_error", "skip")
    assert summary["judged"]["count"] >= 3


@pytest.mark.parametrize("task", list(CLASSES))
def test_vectors_are_those_of_the_model(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = table(task, tmp_path)
    fit(task, where, "kind")
    out = tmp_path / "vectors.npz"
    line = ["embed", "--run", str(tmp_path / "run"), "--table", str(where), "--input", "what", "--device", "cpu"]
    assert main([*line, "--out", str(out)]) == 0
    found = read_vectors(out)
    cells = [row["what"] for row in read(where)]
    assert found.names == cells
    model, reader = opened(MODALITIES[task], str(tmp_path / "run"), "cpu")
    with torch.inference_mode():
        for cell, vector in zip(cells[:7], found.values):
            alone = model.vectors(reader.batch([reader.one(cell, cell, tmp_path)]))[0]
            np.testing.assert_allclose(vector, alone.numpy(), atol=1e-6)
    assert main([*line, "--out", str(tmp_path / "t.npz"), "--tokens", "--layer", "1"]) == 0
    tokens = read_vectors(tmp_path / "t.npz")
    first = [row for row, name in enumerate(tokens.names) if name == cells[0]]
    assert tokens.places["token"][first].tolist() == list(range(len(first)))
    if task == "protein":
        assert len(first) == len(cells[0])
    assert main([*line, "--out", str(out)]) == 2 and "exists" in capsys.readouterr().err
    assert main([*line, "--out", str(tmp_path / "u.npz"), "--layer", "9"]) == 2
    assert "has 1 blocks" in capsys.readouterr().err


def test_vectors_of_several_layers_are_those_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = table("protein", tmp_path)
    fit("protein", where, "kind", "--model.transformer.depth", "2")
    line = ["embed", "--run", str(tmp_path / "run"), "--table", str(where), "--input", "what", "--device", "cpu"]
    for kind in ([], ["--tokens"]):
        found = {}
        for layers in ("1", "2", "2,1"):
            out = tmp_path / f"{len(kind)}-{layers}.npz"
            assert main([*line, "--layer", layers, *kind, "--out", str(out)]) == 0
            found[layers] = read_vectors(out)
        both = found["2,1"]
        for layer in (1, 2):
            rows = both.places["layer"] == layer
            alone = found[str(layer)]
            assert [name for name, there in zip(both.names, rows) if there] == alone.names
            np.testing.assert_array_equal(both.values[rows], alone.values)
            assert not kind or both.places["token"][rows].tolist() == alone.places["token"].tolist()
    for layers, words in (("1,1", "different ones"), ("0,1", "of at least 1"), ("1,3", "has 2 blocks")):
        assert main([*line, "--layer", layers, "--out", str(tmp_path / "u.npz")]) == 2
        assert words in capsys.readouterr().err


def test_a_tokenizer_that_a_checkpoint_restores_keeps_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those around a text, all ends, and the template; the stored tokenizer itself does not say them."""
    backend = Tokenizer.characters(["abc<>"]).backend
    backend.add_special_tokens(["<s>", "</s>", "<end>"])
    end = backend.token_to_id("<end>")
    options = {"table": str(table("text", tmp_path)), "input": "what", "target": "kind"}
    first, again = text.TextTable(**options), text.TextTable(**options)
    first.tokenizer = Tokenizer(backend, "</s>", [end], "{{ messages }}", "<s>")
    base = text.TextTable.__mro__[1]
    monkeypatch.setattr(base, "trained", property(lambda self: {}))
    monkeypatch.setattr(base, "continue_as", lambda self, trained: None)
    again.continue_as(json.loads(json.dumps(first.trained)))
    assert again.tokenizer is not None
    for name in ("bos_id", "eos_id", "end_ids", "chat_template"):
        assert getattr(again.tokenizer, name) == getattr(first.tokenizer, name), name
    assert end in again.tokenizer.end_ids


def test_a_table_that_changed_is_said(tmp_path: Path) -> None:
    where = table("text", tmp_path)
    fit("text", where, "kind")
    run("text", "validate", tmp_path / "run")
    data = notes_of_scoring(tmp_path / "run", where)
    assert not any("not what it was" in note for note in data)
    write(where, read(where)[3:])
    assert any("not what it was" in note for note in notes_of_scoring(tmp_path / "run", where))


def notes_of_scoring(folder: Path, where: Path) -> list[str]:
    """The notes of the data that score a run."""
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    data = text.TextTable(table=str(where), input="what", target="kind")
    data.continue_as(content["labelled"])
    data.setup()
    assert data.rows is not None
    return data.rows.notes


def test_a_fasta_file_with_a_bad_record_is_answered_but_for_it(tmp_path: Path) -> None:
    (tmp_path / "some.fasta").write_text(">a one\nACDEFGHIK\n>bad\nAC1D\n>a two\nacdef*\n>none\n")
    found = MODALITIES["protein"].expand([str(tmp_path / "some.fasta")])
    assert found == [("ACDEFGHIK", "a one"), ("AC1D", "bad"), ("ACDEF", "a two"), ("", "none")]
    where = table("protein", tmp_path)
    fit("protein", where, "kind")
    line = ["protein", "predict", str(tmp_path / "run"), str(tmp_path / "some.fasta"), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "answers.csv")]) == 2
    rows = read(tmp_path / "answers.csv")
    assert [bool(row["label"]) for row in rows] == [True, False, True, False]
    assert "'1' at position 3" in rows[1]["problem"]
