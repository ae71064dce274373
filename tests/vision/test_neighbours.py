"""`triune vision check --neighbours`: copies, leaks and labels among images, by pixels and by a model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triune import cli
from triune.core.config import TransformerConfig
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.neighbours import descriptor


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of stripes; one picture is on both sides, another again as JPEG, and one in the wrong class."""
    rng = np.random.default_rng(0)
    places = np.arange(32)
    for side, count in (("train", 9), ("val", 3)):
        for name, axis in (("flat", 0), ("tall", 1)):
            (tmp_path / "p" / side / name).mkdir(parents=True)
            for number in range(count):
                wave = 90 * np.sin(places * (0.3 + 0.002 * number)) + 128
                grey = np.broadcast_to(wave[:, None] if axis == 0 else wave[None], (32, 32)) + rng.normal(
                    0, 12, (32, 32)
                )
                draw(grey, tmp_path / "p" / side / name / f"{number}.png")
    with Image.open(tmp_path / "p" / "train" / "flat" / "0.png") as first:
        first.save(tmp_path / "p" / "val" / "flat" / "again.png")
        first.save(tmp_path / "p" / "val" / "flat" / "small.jpg", quality=50)
    with Image.open(tmp_path / "p" / "train" / "flat" / "4.png") as fourth:
        fourth.rotate(180).save(tmp_path / "p" / "train" / "tall" / "wrong.png")
    return tmp_path / "p"


def draw(grey: np.ndarray, path: Path) -> None:
    Image.fromarray(np.stack([grey.clip(0, 255)] * 3, -1).astype(np.uint8)).save(path)


def test_copies_leaks_and_labels(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "found.csv", tmp_path / "sheet.png"
    line = ["vision", "check", str(photos), "--cache", str(tmp_path / "cache"), "--neighbours", "--threshold", "0.99"]
    assert cli.main([*line, "--k", "5", "--out", str(out), "--sheet", str(sheet)]) == 1  # the leak is serious
    said = capsys.readouterr().out
    assert "pairs on two sides, so that what is judged was trained on:" in said
    with out.open() as file:
        rows = list(csv.DictReader(file))
    names = {(row["kind"], Path(row["name"]).name, Path(row["other"]).name) for row in rows if row["other"]}
    assert ("copy", "0.png", "again.png") in names
    assert any(kind == "near" and "small.jpg" in (one, other) and {one, other} & {"0.png", "again.png"}
               for kind, one, other in names)  # fmt: skip
    assert [Path(row["name"]).name for row in rows if row["kind"] == "label"] == ["wrong.png"]
    with Image.open(sheet) as picture:
        assert picture.size[0] > 1000
    assert cli.main([*line, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["neighbours"]["leaks"] >= 2


def test_by_a_model_and_of_a_table(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    core = TransformerConfig(dim=16, depth=1, heads=2, position="none")
    VisionTransformer(VisionTransformerConfig(32, 8, classes=0, transformer=core, pool="mean")).save_pretrained(
        tmp_path / "model"
    )
    line = ["vision", "check", str(photos), "--cache", str(tmp_path / "cache"), "--neighbours"]
    assert cli.main([*line, "--pretrained", str(tmp_path / "model")]) == 1
    assert "by the vectors of" in capsys.readouterr().out
    files = sorted((photos / "train").rglob("*.png"))
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows, "p/none.png,flat"]))
    table = [
        "vision",
        "check",
        "--data.table",
        str(tmp_path / "t.csv"),
        "--data.input",
        "file",
        "--data.target",
        "label",
    ]
    assert cli.main([*table, "--neighbours", "--k", "5"]) == 2, "a file that is not there is named, the others are done"
    said = capsys.readouterr()
    assert "none.png" in said.err and "wrong.png" in said.out
    assert cli.main([*table, "--neighbours", "--pretrained", str(tmp_path / "model"), "--k", "5"]) == 2


def test_options_that_do_not_go_together(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, word in (
        (["--k", "3"], "--neighbours"),
        (["--neighbours", "--run", "a", "--pretrained", "b"], "give one"),
        (["--neighbours", "--sheet", "x.jpg"], "must end in .png"),
    ):
        assert cli.main(["vision", "check", str(photos), *more]) == 2
        assert word in capsys.readouterr().err


def test_the_descriptor_knows_no_brightness() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(20, 200, (40, 30, 3)).astype(np.uint8)
    dark, light = (descriptor(Image.fromarray(pixels + more)) for more in (np.uint8(0), np.uint8(30)))
    assert dark.shape == (768,) and np.allclose(dark, light, atol=1.0)
    assert abs(float(dark.reshape(-1, 3).mean())) < 1e-3
