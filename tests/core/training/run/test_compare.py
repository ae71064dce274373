"""Comparing runs: only what differs, the best where it is known, and never of runs that cannot be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from triune.cli import main
from triune.core.training.content import content_of
from triune.core.training.run.compare import compare, flat, short_names
from triune.core.training.run.folder import RunFolder

Make = Callable[..., RunFolder]
SAME = {"validated_on": {"content": "a", "examples": 7, "units": 70}}


def row(found, table: str, name: str):
    rows = found.options if table == "options" else found.figures[table]
    return next(row for row in rows if row.name == name)


def test_the_best_is_marked_by_the_better_side(make_run: Make, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", **SAME)
    b = make_run(tmp_path / "b", val_loss=0.4, judged={}, val_accuracy=0.7, versions={"torch": "3"}, **SAME)
    found = compare([str(a), str(b)])
    assert row(found, "val", "loss").best == [1] and row(found, "val", "accuracy").best == [0]
    assert row(found, "val", "accuracy").baselines == ["constant answer 0.4", ""]
    assert "All were validated on the same 7 examples." in found.notes and found.options == []
    assert [(r.name, r.values) for r in found.cost if r.name == "torch"] == [("torch", ["2", "3"])]
    c = make_run(tmp_path / "c", **SAME)  # equal figures: none is the best
    assert row(compare([str(a), str(c)]), "val", "loss").best == []


def test_overlapping_intervals_are_said(make_run: Make, tmp_path: Path) -> None:
    def judged(value: float, low: float, high: float) -> dict:
        return {"judged": {"intervals": {"accuracy": [low, high]}}, "val_accuracy": value}

    runs = [make_run(tmp_path / name, **judged(*ends), **SAME) for name, ends in
            (("a", (0.7, 0.6, 0.8)), ("b", (0.75, 0.7, 0.8)), ("c", (0.9, 0.85, 0.95)))]  # fmt: skip
    assert any("overlap: accuracy" in note for note in compare([str(run) for run in runs[:2]]).notes)
    assert not any("overlap" in note for note in compare([str(run) for run in runs]).notes)


def test_runs_of_other_examples_tasks_and_tokens_are_told_apart(make_run: Make, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", **SAME)
    b = make_run(tmp_path / "b", val_loss=0.4, validated_on={"content": "b", "examples": 7, "units": 70})
    c = make_run(
        tmp_path / "c", val_loss=0.4, val_accuracy=0.8, validated_on={"content": "a", "examples": 7, "units": 9}
    )
    d = make_run(tmp_path / "d", val_loss=0.4)
    d.config.write_text("# triune protein fit\ndata:\n  table: x\n")
    e = make_run(tmp_path / "e", val_loss=0.4)
    e.config.write_text("# triune text fit\ndata:\n  table: other\n")
    for other, said, best in (
        (b, "validated on different examples (a; b)", []), (c, "no loss is called the best", []),
        (d, "different tasks (a: text fit, d: protein fit)", []), (e, "differ in options of data", []),
    ):  # fmt: skip
        found = compare([str(a), str(other)])
        assert row(found, "val", "loss").best == best
        assert any(said in note for note in found.notes), found.notes
    assert row(compare([str(a), str(c)]), "val", "accuracy").best == [1]  # not a mean over tokens


def test_only_options_that_differ_by_dotted_name(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, **SAME) for name in "ab"]
    options = {"model": {"dim": 8, "bias": True, "windows": [1, 2]}, "seed": 1}
    for run, changed in zip(runs, ({"dim": 16}, {"bias": "true", "more": None, "windows": [1, 3]})):
        run.config.write_text("# triune text fit\n" + yaml.safe_dump(options | {"model": options["model"] | changed}))
    found = {row.name: row.values for row in compare([str(run) for run in runs]).options}
    assert found == {"model.dim": ["16", "8"], "model.windows": ["[1, 2]", "[1, 3]"], "model.more": ["—", "null"]}
    assert flat({"a": {}, "b": {"c": {"d": 1.5}}}) == {"a": "{}", "b.c.d": "1.5"}
    assert short_names(["/x/a/run", "/x/b/run"]) == ["a/run", "b/run"] and short_names(["/x/a", "/y/b"]) == ["a", "b"]


def test_files_hold_what_is_printed(make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a", **SAME), make_run(tmp_path / "b", val_loss=0.25, **SAME)
    files = {ending: tmp_path / f"out.{ending}" for ending in ("csv", "json", "png")}
    assert main(["compare", str(a), str(b), "--out", str(files["csv"]), "--png", str(files["png"])]) == 0
    printed = capsys.readouterr().out
    assert "0.2500 *" in printed and "All options are the same." in printed
    rows = {line["name"]: line for line in csv.DictReader(files["csv"].read_text().splitlines())}
    assert rows["loss"]["b"] == "0.25" and rows["loss"]["best"] == "b" and rows["seconds"]["a"] == "61.0"
    from PIL import Image

    with Image.open(files["png"]) as picture:
        assert picture.width > 1000
    assert main(["compare", str(a), str(b), "--out", str(files["json"])]) == 0
    content = json.loads(files["json"].read_text())
    assert content["figures"]["val"]["loss"] == {"values": {"a": 0.5, "b": 0.25}, "best": ["b"]}
    for run in (a, b):
        run.metrics.unlink()
    assert main(["compare", str(a), str(b), "--png", str(tmp_path / "no.png")]) == 0
    assert "no curves to draw" in capsys.readouterr().out and not (tmp_path / "no.png").exists()


def test_mistakes_and_damage_are_one_sentence(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path / "a", **SAME), make_run(tmp_path / "b", **SAME)
    file = tmp_path / "x.ckpt"
    file.write_bytes(b"x")
    for words, said in (
        ([a], "at least 2"), ([a, f"{a}/"], "given twice"), ([a, file], "is a file, not a run folder"),
        ([a, tmp_path], "is not a run folder"), ([a, b, "--out", "x.txt"], "must end in .json or .csv"),
        ([a, b, "--png", file], "must end in .png"), ([a, b, "--out", tmp_path / "a/summary.json"], "exists already"),
    ):  # fmt: skip
        assert main(["compare", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for path, text in ((b.summary, "{"), (b.summary, "[]"), (b.config, "a: [1"), (b.config, "- 1")):
        before = path.read_text()
        path.write_text(text)
        assert main(["compare", str(a), str(b)]) == 2
        error = capsys.readouterr().err
        assert str(path) in error and "Traceback" not in error
        path.write_text(before)
    b.summary.unlink()
    assert main(["compare", str(a), str(b)]) == 0
    assert "b has not finished; it has no figures yet." in capsys.readouterr().out


def test_the_hash_of_examples_does_not_depend_on_their_order() -> None:
    assert content_of(["a", "b"]) == content_of([b"b", b"a"]) != content_of(["a", "b", "b"]) != content_of(["ab"])
