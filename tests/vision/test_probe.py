"""Frozen features judged: the two classifiers, what is kept, what is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.vision.data.module import ImageData
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing
from triune.vision.probe import (
    NEIGHBOURS,
    Features,
    ProbedImages,
    Result,
    Score,
    compute,
    linear_probe,
    main,
    nearest_neighbours,
    probe,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A model whose pooled vector is what the colour of an image says, and no more."""
    torch.manual_seed(0)
    core = TransformerConfig(dim=16, depth=1, heads=2, position="none", init_residual="zero")
    config = VisionTransformerConfig(
        image_size=16, patch_size=8, classes=0, transformer=core, pool="mean", preprocessing=Preprocessing([0.4], [0.3])
    )
    VisionTransformer(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 24 x 20 pixels that differ in colour: 30 images of each, and some to test on."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 5)):
        for name, channel in (("red", 0), ("blue", 2)):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (24, 20, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}.png")
    return tmp_path / "images"


def of(folder: Path, **options: object) -> ImageData:
    return ImageData(root=str(folder), cache=str(folder.parent / "cache"), batch_size=16, val_fraction=0.2, **options)  # type: ignore[arg-type]


def test_features_are_the_models_and_are_computed_once(
    checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe(checkpoint, of(folder))
    assert [score.name for score in first.scores] == [
        "linear probe", "k-NN (k = 20, cosine)", "logistic regression on pixels", "majority class",
    ]  # fmt: skip
    assert (first.train, first.judged, first.classes, first.image_size) == (48, 12, 2, (16, 16))
    assert [score.top1 for score in first.scores] == [1.0, 1.0, 1.0, 0.5]
    assert first.feature_seconds > 0

    def never(*_: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr("triune.vision.probe.compute", never)
    again = probe(checkpoint, of(folder))
    assert again.feature_seconds == 0
    assert [s.top1 for s in again.scores] == [s.top1 for s in first.scores]
    for changed in (of(folder, image_size=24), of(folder, interpolation="nearest")):
        with pytest.raises(AssertionError, match="computed again"):
            probe(checkpoint, changed)
    with pytest.raises(AssertionError, match="computed again"):
        probe(checkpoint, of(folder), limit=20)
    model = VisionTransformer.from_pretrained(checkpoint)
    with torch.no_grad():
        model.patch_embed.weight[0, 0, 0, 0] += 1e-3
    model.save_pretrained(checkpoint)
    with pytest.raises(AssertionError, match="computed again"):
        probe(checkpoint, of(folder))


def test_what_is_known_is_found_by_content_and_nothing_is_decoded(
    checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(where: Path) -> ProbedImages:
        return ProbedImages(root=str(where), cache=str(folder.parent / "cache"), batch_size=16, val_fraction=0.2)

    first = probe(checkpoint, known(folder))
    moved = folder.rename(folder.parent / "moved")
    again = probe(checkpoint, known(moved))  # the files are looked at, under their new names
    assert again.feature_seconds == 0
    monkeypatch.setattr("triune.vision.data.batches.load", lambda *_: pytest.fail("an image was decoded"))
    monkeypatch.setattr("triune.vision.data.found.load", lambda *_: pytest.fail("an image was decoded"))
    monkeypatch.setattr("triune.vision.probe.logistic_regression", lambda *_: pytest.fail("fitted again"))
    third = probe(checkpoint, known(moved))
    assert [s.top1 for s in third.scores] == [s.top1 for s in first.scores]
    assert third.scores[2].note == first.scores[2].note


def test_a_damaged_cache_is_made_anew(checkpoint: str, folder: Path) -> None:
    first = probe(checkpoint, of(folder))
    for path in (folder.parent / "cache" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = probe(checkpoint, of(folder))
    assert again.feature_seconds > 0
    assert [s.top1 for s in again.scores] == [s.top1 for s in first.scores]


def test_compute_takes_the_rows_in_order(checkpoint: str, folder: Path) -> None:
    model, data = VisionTransformer.from_pretrained(checkpoint), of(folder)
    config = model.config
    data.adopt(config.preprocessing, config.input_size, config.channels, "it")
    data.setup()
    rows = [40, 3, 17, 5, 0] * 5  # more than one batch
    vectors, thumbnails = compute(model, data, "train", rows)
    with torch.inference_mode():
        for row, vector, small in zip(rows, vectors, thumbnails):
            pixels = data.picture("train", row)
            torch.testing.assert_close(vector, model.features(config.preprocessing.normalise(pixels[None]))[0])
            assert torch.equal(small, pixels)


def made_up(count: int, classes: int, spread: float, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(9)) * 3
    labels = torch.arange(count) % classes
    vectors = centres[labels] + spread * torch.randn(count, 12, generator=generator)
    return Features(vectors, labels, torch.zeros(count, 1, 2, 2, dtype=torch.uint8))


def test_the_linear_probe_is_near_the_best_possible() -> None:
    train, val = made_up(400, 4, 4.0, 1), made_up(400, 4, 4.0, 2)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(9)) * 3
    best = float((torch.cdist(val.vectors, centres).argmin(1) == val.labels).double().mean())
    assert 0.5 < best < 0.999
    found = linear_probe(train, val)
    assert found.top1 is not None
    assert best - 0.06 <= found.top1 <= best + 0.03
    noise = dataclasses.replace(val, labels=val.labels[torch.randperm(400)])
    assert (linear_probe(train, noise).top1 or 0) < 0.4


def test_neighbours_vote_by_their_cosine() -> None:
    train, val = made_up(100, 5, 4.0, 1), made_up(40, 5, 4.0, 2)
    right = 0
    for vector, label in zip(val.vectors, val.labels):
        cosine = torch.cosine_similarity(vector[None], train.vectors)
        votes = torch.zeros(5)
        for i in cosine.argsort(descending=True)[:NEIGHBOURS]:
            votes[train.labels[i]] += torch.exp(cosine[i] / 0.07)
        right += int(votes.argmax() == label)
    assert nearest_neighbours(train, val, 5).top1 == right / 40
    few = made_up(10, 5, 0.1, 3)
    assert nearest_neighbours(few, val, 5).name == "k-NN (k = 10, cosine)"


def result(probe: float, pixels: float, judged: int = 1000) -> Result:
    scores = [Score("linear probe", probe, 1.0), Score("k-NN", probe - 0.02, 1.0), Score("pixels", pixels, 1.0)]
    return Result("dino", "data", "val", 500, judged, 10, (16, 16), [*scores, Score("majority", 0.1, 0.0)], 2.0)


def test_the_verdict_says_no_more_than_is_known() -> None:
    assert "no more about these classes than the baselines do (+1.0 points" in result(0.71, 0.70).verdict()
    assert "no more about these classes" in result(0.60, 0.70).verdict()
    assert "+10.0 points" in result(0.80, 0.70).verdict()
    assert "err on 20.0% of the images, which is the most that fine-tuning can gain" in result(0.80, 0.70).verdict()
    assert "with 50 images a class only a run can tell" in result(0.80, 0.70).verdict()
    assert "--model.pretrained dino" in result(0.80, 0.70).verdict()
    assert "little left for fine-tuning to gain" in result(0.99, 0.70).verdict()
    # The same figures on few images say less.
    assert "no more about these classes" in result(0.80, 0.70, judged=50).verdict()


def test_the_command(checkpoint: str, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["--model", checkpoint, "--data.root", str(folder), "--data.cache", str(tmp_path / "c")]
    assert main([*given, "--limit", "30", "--test", "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "10 test images, 30 to learn from" in printed
    assert "100.00%" in printed
    assert main([*given, "--limit", "30", "--test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"][0]["top1"] == 1.0
    assert found["feature_seconds"] == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert [s["top1"] for s in written["scores"]] == [s["top1"] for s in found["scores"]]
    assert "points" in written["verdict"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--limit", "3"], "--limit is 3, but must be at least 10"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--data.channels", "1"], "data.channels is 1"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--lmit", "30"], "did you mean '--limit'"),
        (["--model", "no/such/thing"], "neither a folder, a file, nor a name"),
    ],
)
def test_mistakes_are_one_sentence(checkpoint: str, folder: Path, extra: list[str], words: str) -> None:
    given = ["--model", checkpoint, "--data.root", str(folder), "--data.cache", str(folder.parent / "c")]
    with pytest.raises(UserError) as caught:
        main([*given, *extra])
    assert words in str(caught.value)


def test_no_test_images(checkpoint: str) -> None:
    with pytest.raises(UserError, match="There are no test images"):
        probe(checkpoint, ImageData(), side="test")
