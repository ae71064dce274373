"""Views of images whose probabilities are averaged (`--tta`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from triune import cli
from triune.core.errors import UserError
from triune.core.heads.base import HeadSpec
from triune.core.heads.registry import make_head
from triune.vision.classify import Classifier
from triune.vision.views import averaged, check_views, count, mean_of_logits, views_of

SMALL = [
    *("--threads", "1", "--data.batch_size", "8", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"),
    *("--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"),
]


def test_views_are_the_image_its_corners_and_their_mirror_images() -> None:
    images = torch.arange(2 * 3 * 8 * 16.0).view(2, 3, 8, 16)
    for kind in ("none", "flip", "crops", "all"):
        found = views_of(images, kind)
        assert len(found) == count(kind) and torch.equal(found[0], images)
        assert all(view.shape == images.shape for view in found)
    assert torch.equal(views_of(images, "flip")[1], images.flip(-1))
    corner = views_of(images, "crops")[4]  # the last row and column are those of the image
    torch.testing.assert_close(corner[..., -1, -1], images[..., -1, -1])
    whole = views_of(images, "all")
    assert all(torch.equal(whole[i + 5], whole[i].flip(-1)) for i in range(5))


def test_probabilities_are_averaged() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.randn(4, 3, 4, 4)
    found = averaged(model, images, "all")
    expected = torch.stack([model(view).softmax(-1) for view in views_of(images, "all")]).mean(0)
    torch.testing.assert_close(found.softmax(-1), expected)
    assert torch.equal(averaged(model, images, "none"), model(images))
    one = model(images)
    torch.testing.assert_close(mean_of_logits(one[None]).softmax(-1), one.softmax(-1))


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_heads_average_what_they_answer(weights: str) -> None:
    outputs = torch.randn(3, 6, 4)
    names = ("a", "b", "c", "d")
    classify = make_head(
        HeadSpec("classify", names, {"class_weights": weights}, {"counts": [5, 1, 2, 9]}), 2
    )  # fmt: skip
    expected = classify.log_p(outputs, {}).exp().mean(0)
    torch.testing.assert_close(classify.log_p(classify.over_views(outputs), {}).exp(), expected, rtol=1e-5, atol=1e-6)
    counts = {"positive": [5, 1, 2, 9], "negative": [3, 9, 8, 1]}
    labels = make_head(HeadSpec("multilabel", names, {"positive_weights": weights}, counts), 2)
    expected = labels.log_odds(outputs, {}).sigmoid().mean(0)
    found = labels.log_odds(labels.over_views(outputs), {}).sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    numbers = make_head(HeadSpec("regress", ("x",)), 2)
    assert torch.equal(numbers.over_views(outputs), outputs.mean(0))


def draw(folder: Path, names: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    for grey, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = (60 + 120 * grey + rng.integers(-50, 50, (12, 12))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def test_a_run_is_judged_and_used_with_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw(tmp_path / "photos", ("dark", "light"))
    run = str(tmp_path / "run")
    assert (
        cli.main(["vision", "fit", "--run", run, "--data.root", str(root), "--data.val_fraction", "0.4", *SMALL]) == 0
    )
    image = str(root / "dark" / "00.png")
    capsys.readouterr()
    assert cli.main(["vision", "classify", image, "--run", run, "--tta", "flip", "--json"]) == 0
    before = capsys.readouterr()
    assert "calibrated as single views are" in before.err
    assert cli.main(["vision", "validate", run, "--tta", "flip"]) == 0
    assert "means over 2 views of each image (tta flip), calibrated for them" in " ".join(
        capsys.readouterr().out.split()
    )
    stored = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["views"]["flip"]["temperature"]
    assert cli.main(["vision", "classify", image, "--run", run, "--tta", "flip", "--json"]) == 0
    after = capsys.readouterr()
    assert "calibrated for them" in after.err
    plain = Classifier.load(run, "cpu")
    pixels = plain.inputs([plain.read(image)])
    with torch.inference_mode():
        p = torch.stack([plain.model(view).double().softmax(-1) for view in (pixels, pixels.flip(-1))]).mean(0)
    expected = (p.log() / stored).softmax(-1)[0]
    said = {entry["class"]: entry["probability"] for entry in json.loads(after.out)[0]["classes"]}
    assert said["dark"] == pytest.approx(float(expected[plain.names.index("dark")]), rel=1e-5)
    assert cli.main(["vision", "test", run, "--data.test_root", str(root), "--tta", "crops"]) == 0
    assert "calibrated as single views are" in " ".join(capsys.readouterr().out.split())
    again = Classifier.load(run, "cpu")
    assert again.temperature != stored or plain.temperature == stored
    assert replace(plain, views="flip").probabilities([plain.read(image)]).shape == (1, 2)


def test_mirror_images_of_digits_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="mirrors images"):
        check_views("all", mirrors=False)
    with pytest.raises(UserError, match="did you mean 'flip'"):
        check_views("flips", mirrors=True)
    root, run = draw(tmp_path / "digits", ("6", "9")), str(tmp_path / "run")
    line = ["vision", "fit", "--run", run, "--data.root", str(root), "--data.val_fraction", "0.4", *SMALL]
    assert cli.main([*line, "--tta", "crops"]) == 2
    assert "leave it out" in capsys.readouterr().err
    assert cli.main(line) == 0
    for command in (
        ["validate", run],
        ["test", run, "--data.test_root", str(root)],
        ["classify", str(root), "--run", run],
    ):
        assert cli.main(["vision", *command, "--tta", "flip"]) == 2
        assert "mirrors images" in capsys.readouterr().err
    assert cli.main(["vision", "classify", str(root / "6"), "--run", run, "--tta", "crops"]) == 0


def test_a_head_of_a_table_takes_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = draw(tmp_path / "photos", ("dark", "light")), str(tmp_path / "run")
    files = sorted(root.rglob("*.png"))
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
    (tmp_path / "t.csv").write_text("\n".join(["file,shade", *rows]))
    table = ["--data.table", str(tmp_path / "t.csv"), "--data.input", "file", "--data.target", "shade"]
    assert cli.main(["vision", "fit", "--run", run, *table, "--data.val_fraction", "0.4", *SMALL]) == 0
    capsys.readouterr()
    assert cli.main(["vision", "predict", run, str(files[0]), "--tta", "flip", "--out", str(tmp_path / "a.jsonl")]) == 0
    assert "calibrated as single views are" in capsys.readouterr().err
    assert cli.main(["vision", "validate", run, "--tta", "flip"]) == 0
    assert "calibrated for them" in capsys.readouterr().out
    assert cli.main(["vision", "predict", run, str(files[0]), "--tta", "flip", "--out", str(tmp_path / "b.jsonl")]) == 0
    assert "calibrated for them" in capsys.readouterr().err
    answers = [json.loads((tmp_path / name).read_text()) for name in ("a.jsonl", "b.jsonl")]
    assert all(0 < answer["probability"] <= 1 for answer in answers)
    assert cli.main(["vision", "test", run, *table, "--tta", "flip"]) == 0
