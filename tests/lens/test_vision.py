"""`triune lens` on image models: patterns of the grid, effects of hiding, and what each depth names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.lens.record import record_attention
from triune.lens.command import main as lens_main
from triune.vision.evaluate.explain import explain
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing


def build(**options) -> VisionTransformer:
    torch.manual_seed(0)
    config = VisionTransformerConfig(
        **{
            "image_size": [12, 16], "patch_size": 4, "channels": 1, "classes": 3, "labels": ["cat", "dog", "emu"],
            "registers": 1, "preprocessing": Preprocessing(mean=[0.5], std=[0.5], crop_pct=1.0),
            "transformer": TransformerConfig(dim=16, depth=2, heads=2, position="none"),
        }
        | options
    )  # fmt: skip
    model = VisionTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(1)
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (12, 16), dtype=np.uint8)).save(file)
    return [str(file) for file in files]


def asked(model: VisionTransformer, folder: Path, question: str, *words: str) -> dict:
    model.save_pretrained(folder / "model")
    out = folder / "out.json"
    assert main(["lens", question, str(folder / "model"), *words, "--json", str(out), "--overwrite"]) == 0
    return json.loads(out.read_text())


def inputs(model: VisionTransformer, files: list[str]) -> torch.Tensor:
    pixels = [model.config.preprocessing.pixels(Image.open(file).convert("L"), (12, 16)) for file in files]
    return model.config.preprocessing.normalise(torch.stack(pixels))


def test_scores_are_sums_over_the_grid(images: list[str], tmp_path: Path) -> None:
    model = build()
    found = asked(model, tmp_path, "heads", images[0], "--effects", "none")["scores"]
    with torch.no_grad(), record_attention(model, lambda _, weights: weights) as seen:
        model(inputs(model, images[:1]))
    row = torch.arange(12) // 4
    column = torch.arange(12) % 4
    near = {
        "same row": (row[:, None] == row[None]) & ~torch.eye(12, dtype=torch.bool),
        "same column": (column[:, None] == column[None]) & ~torch.eye(12, dtype=torch.bool),
        "neighbours": ((row[:, None] - row[None]).abs() <= 1) & ((column[:, None] - column[None]).abs() <= 1)
        & ~torch.eye(12, dtype=torch.bool),
    }  # fmt: skip
    for layer, weights in enumerate(seen.values()):
        patches = weights[0, :, 2:, 2:]  # behind class token and register
        for name, keys in near.items():
            expected = (patches * keys).sum(-1).mean(-1)
            torch.testing.assert_close(torch.tensor(found[name][layer]), expected, atol=1e-5, rtol=1e-5)
        expected = weights[0, :, 2:, 0].mean(-1)
        torch.testing.assert_close(torch.tensor(found["class token"][layer]), expected, atol=1e-5, rtol=1e-5)


def test_weights_and_effects_are_those_of_classify(images: list[str], tmp_path: Path) -> None:
    """The lens says of an image what `triune vision classify --attention` says."""
    model = build()
    found = asked(model, tmp_path, "attention", images[0])
    expected = explain(model, inputs(model, images[:1])[0])
    effects = torch.tensor([float("nan") if v is None else v for v in found["effects"][0]])
    assert effects[:2].isnan().all()
    torch.testing.assert_close(effects[2:], expected.effect.flatten().float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        torch.tensor(found["weights"][0][2:]) * 14, expected.rollout.flatten(), atol=1e-4, rtol=1e-4
    )
    assert found["rank_correlation"] == pytest.approx(expected.correlation, abs=1e-3)


def test_agreement_over_many_images(images: list[str], tmp_path: Path) -> None:
    model = build()
    table = asked(model, tmp_path, "attention", *images)["tables"][-1]
    assert table["title"] == "Weights and effects over 3 images"
    found = [explain(model, image) for image in inputs(model, images)]
    r = sorted(one.correlation for one in found)
    assert table["rows"][0][1] == pytest.approx(r[1], abs=1e-6)
    lost = sorted(one.deleted["rollout"] for one in found)
    assert table["rows"][1][1] == pytest.approx(lost[1], abs=1e-6)


def test_depths_and_patches(images: list[str], tmp_path: Path) -> None:
    model = build()
    found = asked(model, tmp_path, "depth", *images)
    assert found["curves"]["same class as at the end"][-1] == 1
    with torch.no_grad():
        logits = model(inputs(model, images))
    best = logits.softmax(-1).max(-1).values.mean()
    assert found["curves"]["probability of it"][-1] == pytest.approx(float(best), abs=1e-5)
    patched = asked(model, tmp_path, "patch", *images[:2], "--answer", "cat", "--against", "emu")
    assert patched["effects"][-1][0] == pytest.approx(1, abs=1e-5)  # the class token after the last block is the answer
    assert len(patched["effects"][0]) == 14


def test_a_backbone_is_measured_by_likeness(images: list[str], tmp_path: Path) -> None:
    model = build(classes=0, labels=[])
    found = asked(model, tmp_path, "ablate", *images[:2], "--top", "1", "--controls", "2")
    assert found["measure"] == "similarity" and found["whole"] == pytest.approx(1, abs=1e-6)
    assert found["sets"][0]["without"] < 1
    effects = [v for v in asked(model, tmp_path, "attention", images[0])["effects"][0] if v is not None]
    assert min(effects) >= -1e-6 and max(effects) > 0
    cut = asked(model, tmp_path, "attention", images[0], "--head", "1.0")["effects"][0]
    assert len(cut) == 14 and max(cut) > 0


def test_mistakes_are_sentences(images: list[str], tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "model")
    build(classes=0, labels=[]).save_pretrained(tmp_path / "backbone")
    for words, sentence in [
        (["heads", "model"], "no image was given"),
        (["heads", "model", "none.png"], "none.png"),
        (["heads", "model", images[0], "--structure", "x.pdb"], "are for proteins"),
        (["patch", "model", images[0]], "patching takes two"),
        (["patch", "model", *images[:2], "--answer", "cta"], "did you mean 'cat'"),
        (["patch", "backbone", *images[:2]], "has no classes"),
        (["heads", "backbone", images[0], "--effects", "estimate"], "needs a slope"),
        (["heads", "model", images[0], "--measure", "accuracy"], "must be log-probability or agreement"),
    ]:
        with pytest.raises(UserError, match=sentence) as error:
            lens_main([words[0], str(tmp_path / words[1]), *words[2:]])
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
