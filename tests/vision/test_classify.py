"""`triune vision classify`: tables, JSON, calibrated probabilities, bad files, one-sentence mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.vision.classify import Classifier, main
from triune.vision.data.folders import collect, walk
from triune.vision.evaluate.calibration import store_temperature
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing

LABELS = ["cat", "dog", "[red]emu", "七"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with a model of 16 x 16 colour images, calibrated with a temperature of 2."""
    torch.manual_seed(0)
    config = VisionTransformerConfig(
        image_size=16, patch_size=8, classes=4, labels=LABELS,
        preprocessing=Preprocessing(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], crop_pct=0.8),
        transformer=TransformerConfig(dim=16, depth=2, heads=2, position="none"),
    )  # fmt: skip
    model = VisionTransformer(config)
    torch.nn.init.normal_(model.head.weight)
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").touch()
    model.save_pretrained(folder / "model")
    store_temperature(folder / "model", 2.0)
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (16, 16, 3)), ("wide [1].jpg", (20, 90, 3)), ("deep/grey.PNG", (40, 20))):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_json_holds_calibrated_probabilities(run, images, capsys):
    assert main([str(images), "--run", str(run), "--json", "--top", "9", "--batch-size", "2"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert err == ""
    assert [Path(row["file"]).name for row in rows] == ["a.png", "grey.PNG", "wide [1].jpg"]
    model = VisionTransformer.from_pretrained(run / "model").eval()
    for row in rows:
        with Image.open(row["file"]) as file:
            pixels = model.config.preprocessing.pixels(file.convert("RGB"), (16, 16))
        with torch.no_grad():
            logits = model(model.config.preprocessing.normalise(pixels)[None])[0]
        expected = dict(zip(LABELS, (logits.double() / 2).softmax(0).tolist()))
        found = {c["class"]: c["probability"] for c in row["classes"]}
        assert found == pytest.approx(expected, abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_bad_files_are_named_and_the_others_done(run, images, capsys):
    (images / "page.jpg").write_text("<html>404</html>")
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:200])
    (images / "empty.png").touch()
    missing = str(images / "no such.png")
    assert main([str(images), missing, str(images / "*.gif"), "--run", str(run), "--json"]) == 2
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 3
    lines = err.splitlines()
    assert len(lines) == 5
    for name, word in (
        ("page.jpg", "HTML"), ("cut.png", "cut short"), ("empty.png", "empty"), ("no such.png", "not exist"),
        ("*.gif", "matches no file"),
    ):  # fmt: skip
        assert sum(name in line and word in line for line in lines) == 1
    assert main([str(images / "page.jpg"), "--run", str(run), "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == []


def test_table(run, images, capsys):
    assert main([str(images / "a.png"), "--run", str(run / "model"), "--top", "2"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "a.png" in line)
    assert str(images / "a.png") in line
    assert line.count("%") == 2
    p = Classifier.load(run).probabilities([Image.open(images / "a.png")])[0]
    best = p.topk(2).indices.tolist()
    assert line.index(LABELS[best[0]]) < line.index(LABELS[best[1]])
    assert "not calibrated" not in out


def test_globs_folders_and_repeats(images):
    files, problems = collect([str(images / "*.png"), str(images / "a.png"), str(images / "**" / "*.PNG"), str(images)])
    assert [Path(f).name for f in files] == ["a.png", "grey.PNG", "wide [1].jpg"]
    assert problems == []
    # A file whose name looks like a pattern is itself.
    assert collect([str(images / "wide [1].jpg")]) == ([str(images / "wide [1].jpg")], [])
    (images / "none").mkdir()
    assert "holds no image files" in collect([str(images / "none")])[1][0]


def test_photographs_that_are_not_read_are_said(images, capsys):
    (images / "a.DNG").write_bytes(b"raw")
    (images / "b.jxl").write_bytes(b"x")
    (images / "notes.txt").write_text("no photograph")
    assert len(collect([str(images)])[0]) == 3
    said = "2 photographs are left out, since their format is not read (.dng 1, .jxl 1)"
    assert said in capsys.readouterr().err
    collect([str(images / "a.png")])
    assert capsys.readouterr().err == ""


def test_attention_picture(run, images, capsys):
    target = images / "out.png"
    args = [str(images / "a.png"), str(images / "wide [1].jpg"), "--run", str(run), "--attention", str(target)]
    assert main([*args, "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert err.count("Rank correlation") == 2
    assert set(rows[0]["explanation"]) == {"rank_correlation", "nats_lost_by_hiding_a_fifth", "rollout", "effect"}
    assert np.shape(rows[0]["explanation"]["effect"]) == (2, 2)
    with Image.open(target) as picture:
        assert picture.height > 600  # two rows
    plain = [str(images / "a.png"), "--run", str(run), "--json"]
    assert main(plain) == 0
    alone = json.loads(capsys.readouterr().out)
    for found, expected in zip(alone[0]["classes"], rows[0]["classes"], strict=True):
        assert found["class"] == expected["class"]
        assert found["probability"] == pytest.approx(expected["probability"])


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--top", "0"], "--top is 0"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--attention", "out.jpg"], "must end in .png"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--run", "no/such/run"], "no/such/run does not exist"),
    ],
)
def test_mistakes_are_one_sentence(run, images, extra, words):
    with pytest.raises(UserError) as caught:
        main([str(images), "--run", str(run), *extra])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_and_a_backbone_are_refused(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="no finished model"):
        Classifier.load(tmp_path)
    config = VisionTransformerConfig(
        image_size=8, patch_size=8, classes=0, transformer=TransformerConfig(dim=8, depth=1, heads=1, position="none")
    )
    VisionTransformer(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no classes"):
        Classifier.load(tmp_path)


def test_help_imports_no_torch():
    code = (
        "import sys; from triune.vision import classify, export\n"
        "for module in (classify, export):\n"
        "    try: module.main(['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'PIL', 'rich', 'numpy', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr
    assert "--attention" in done.stdout
    assert "--dynamic-batch" in done.stdout


def test_a_run_of_ours_is_opened_without_the_families_of_other_libraries(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triune.vision.checkpoints.pretrained", None)
    assert Classifier.load(run, "cpu").names


def test_classify_finds_the_images_that_training_finds(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/._a.png", ".ipynb_checkpoints/b.png", "@eaDir/c.png"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "real" / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.png").write_bytes(b"x")
    (tmp_path / "real" / "linked").symlink_to(tmp_path / "elsewhere")
    files, problems = collect([str(tmp_path / "real")])
    assert [Path(file).name for file in files] == ["a.png", "d.png"]
    assert files == walk(tmp_path / "real")[0]
    assert not problems
