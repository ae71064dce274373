"""A model of class folders on a table, a model of a table on class folders, and the answers of both as files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from triune.cli import main
from triune.core.checkpoints.checksums import write_config

CLASSES = ("cat", "dog", "owl")
SMALL = ["--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
SHORT = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "6", "--threads", "1", "--data.batch_size", "16"]
COLUMNS = ["--data.input", "file", "--data.target", "what"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images of three shades in class folders, the same in a table, and a model of each."""
    where, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    rows = []
    for i in range(60):
        name = CLASSES[i % 3]
        (where / "photos" / name).mkdir(parents=True, exist_ok=True)
        grey = (80 + 30 * (i % 3) + random.normal(0, 60, (8, 8))).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(where / "photos" / name / f"{i}.png")
        rows.append(f"photos/{name}/{i}.png,{name},{'val' if i % 4 == 0 else 'train'}")
    (where / "table.csv").write_text("\n".join(["file,what,side", *rows]) + "\n")
    line = ["--data.table", str(where / "table.csv"), *COLUMNS, *SMALL, *SHORT, "--data.split", "side"]
    assert main(["vision", "fit", *line, "--run", str(where / "table")]) == 0
    folders = ["--data.root", str(where / "photos"), *SMALL, *SHORT, "--run", str(where / "folders")]
    assert main(["vision", "fit", *folders]) == 0
    return where


def test_a_model_of_a_table_scores_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, root = str(place / "table"), str(place / "photos")
    copy = place / "copy.csv"
    copy.write_text((place / "table.csv").read_text())
    scored = []
    for more in (["--data.table", str(copy)], ["--data.test_root", root]):
        assert main(["vision", "test", run, *more]) == 0
        scored.append(json.loads((place / "table" / "test.json").read_text())["judged"])
    assert scored[0]["count"] == scored[1]["count"] == 60
    assert scored[0]["metrics"] == pytest.approx(scored[1]["metrics"], abs=1e-9)
    capsys.readouterr()
    assert main(["vision", "test", run, "--data.root", root]) == 2
    assert "scored with `test RUN --data.test_root FOLDER`" in capsys.readouterr().err
    line = ["vision", "fit", "--data.table", str(copy), *COLUMNS, *SMALL, *SHORT, "--run", str(place / "none")]
    assert main([*line, "--data.test_root", root]) == 2
    assert "data.test_root is given beside data.table" in capsys.readouterr().err


def test_a_model_of_folders_scores_a_table_and_answers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(place / "folders"), place / "figures.json"
    assert main(["vision", "test", run, "--data.table", str(place / "table.csv"), *COLUMNS, "--out", str(out)]) == 0
    assert main(["vision", "test", run, "--data.test_root", str(place / "photos")]) == 0
    figures = json.loads(out.read_text())["metrics"]
    assert figures["accuracy"] == pytest.approx(json.loads((place / "folders" / "test.json").read_text())["test_top1"])
    answers = place / "answers.json"
    line = ["vision", "predict", run, "--table", str(place / "table.csv"), "--input", "file", "--out", str(answers)]
    assert main(line) == 0
    rows = json.loads(answers.read_text())
    assert np.mean([row["label"] == row["what"] for row in rows]) == pytest.approx(figures["accuracy"])
    assert main(["vision", "predict", run, str(place / "photos" / "cat" / "0.png")]) == 0
    assert "probability" in capsys.readouterr().out


def test_a_row_without_an_image_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "hole.csv").write_text("file,what\nphotos/cat/0.png,cat\n,dog\n")
    out = str(place / "hole.jsonl")
    line = ["vision", "predict", str(place / "table"), "--table", str(place / "hole.csv"), "--input", "file"]
    assert main([*line, "--out", out]) == 2
    said = capsys.readouterr().err
    assert f"row 2 of '{place / 'hole.csv'}' names no image; fill it." in said and "1 answers are in" in said
    assert main(["vision", "predict", str(place / "table"), str(place / "hole.csv")]) == 2
    assert "hole.csv' is a table; pass it as --table FILE --input COLUMN." in capsys.readouterr().err


def test_classify_takes_a_model_of_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["vision", "classify", str(place / "photos" / "cat"), "--run", str(place / "table")]
    assert main(line) == 0
    assert capsys.readouterr().out.count(".png") == 20
    assert main([*line, "--json"]) == 2
    assert "use `triune vision predict" in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["all", "val"])
def test_ranks_are_those_of_the_probabilities_that_are_written(place: Path, rows: str) -> None:
    """AUROC and average precision of `test`, and of `validate`, are scikit-learn's of the file that `predict` writes: a
    temperature does not keep the order of examples.
    """
    run, out = place / "table", place / f"{rows}.csv"
    whole = place / "whole.csv"
    whole.write_text((place / "table.csv").read_text())
    if rows == "all":
        run = Path(shutil.copytree(run, place / "cold"))
        config = json.loads((run / "model" / "config.json").read_text())
        config["model"]["head"]["calibration"] = {"temperature": 0.02}  # one under which the order is another
        write_config(run / "model", config)
        assert main(["vision", "test", str(run), "--data.table", str(whole)]) == 0
        judged = json.loads((run / "test.json").read_text())["judged"]
    else:
        assert main(["vision", "validate", str(run)]) == 0
        judged = json.loads((run / "summary.json").read_text())["judged"]
    line = ["vision", "predict", str(run), "--table", str(whole), "--input", "file", "--out", str(out)]
    assert main([*line, "--overwrite"]) == 0
    with out.open() as file:
        answers = list(csv.DictReader(file))
    if rows == "val":
        answers = [row for row in answers if row["side"] == "val"]
    assert judged["count"] == len(answers)
    for name, score in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        found = [score([row["what"] == c for row in answers], [float(row[f"p_{c}"]) for row in answers])
                 for c in CLASSES]  # fmt: skip
        assert judged["metrics"][name] == pytest.approx(np.mean(found), abs=1e-12)
