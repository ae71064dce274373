"""`triune vision pretrain`: images without labels, exact resume, and what its encoder is used for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triune import cli
from triune.core.errors import UserError
from triune.vision.data.augment import AugmentConfig
from triune.vision.masked.data import PlainImages
from triune.vision.masked.task import DECODER_FOLDER
from triune.vision.model import VisionTransformer

SMALL = [
    *("--threads", "1", "--data.batch_size", "8", "--trainer.val_check_interval", "2"),
    *("--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"),
    *("--model.decoder.dim", "8", "--model.decoder.heads", "1", "--model.patch_size", "4"),
]


def draw(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes noise images of 16 x 16 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images without folders."""
    return draw(tmp_path_factory.mktemp("flat") / "photographs", 40)


def pretrain(flat: Path, run: Path, steps: int, *more: str) -> int:
    line = ["vision", "pretrain", "--run", str(run), "--data.root", str(flat), "--trainer.max_steps", str(steps)]
    return cli.main([*line, *SMALL, *more])


@pytest.fixture(scope="module")
def run(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masked") / "run"
    assert pretrain(flat, path, 4) == 0
    return path


def test_images_without_labels_train_an_encoder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert "probe_after" not in summary
    assert (run / "reconstructions.png").stat().st_size > 10_000
    encoder = VisionTransformer.from_pretrained(run / "model")
    assert encoder.config.classes == 0
    assert encoder.features(torch.randn(2, 3, 16, 16)).shape == (2, 16)
    assert (run / "model" / DECODER_FOLDER / "model.safetensors").is_file()
    assert cli.main(["vision", "validate", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"val_loss {summary['val_loss']:.4f}" in said, "the same patches are hidden again"
    assert "no probe: too few images have a class" in said


def test_training_resumes_bit_identically(flat: Path, tmp_path: Path) -> None:
    same = ["--model.schedule.kind", "constant", "--model.schedule.warmup", "0", "--model.ema", "0.5"]
    assert pretrain(flat, tmp_path / "whole", 4, *same) == 0
    assert pretrain(flat, tmp_path / "half", 2, *same) == 0
    line = ["vision", "pretrain", "--run", str(tmp_path / "half"), "--resume", "true", "--trainer.max_steps", "4"]
    assert cli.main(line) == 0
    straight, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "half")
    )
    for part in ("state_dict", "ema"):
        assert straight[part].keys() == resumed[part].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in straight["state_dict"].items())


def test_fit_probe_and_embed_take_the_encoder(run: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        draw(tmp_path / "photos" / name, 12, seed=number + 1)
    root = ["--data.root", str(tmp_path / "photos")]
    line = ["vision", "fit", "--run", str(tmp_path / "fit"), "--model.pretrained", str(run), *root]
    assert cli.main([*line, "--trainer.max_steps", "1", "--model.freeze.blocks", "1", "--data.batch_size", "8"]) == 0
    tuned = VisionTransformer.from_pretrained(tmp_path / "fit" / "model")
    before = VisionTransformer.from_pretrained(run / "model")
    assert tuned.config.classes == 2
    name = "transformer.blocks.0.ffn.up.weight"
    assert torch.equal(tuned.get_parameter(name), before.get_parameter(name)), (
        "frozen, so still that of the pretraining"
    )
    assert cli.main(["vision", "probe", "--model", str(run), *root, "--json"]) == 0
    vectors = tmp_path / "vectors.npz"
    assert cli.main(["embed", str(tmp_path / "photos"), "--run", str(run), "--out", str(vectors)]) == 0
    found = np.load(vectors)
    assert any(found[key].shape == (24, 16) for key in found.files)
    assert cli.main(["vision", "pretrain", "--run", str(tmp_path / "more"), *root, "--model.pretrained", str(run),
                     "--trainer.max_steps", "1", "--data.batch_size", "8"]) == 0  # fmt: skip


def test_a_probe_judges_where_images_have_classes(tmp_path: Path) -> None:
    """Grey levels tell the two classes apart; the probe of the weights before the training is kept over a resume."""
    rng = np.random.default_rng(0)
    for name, grey in (("dark", 60), ("light", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            noise = rng.integers(-40, 40, (16, 16))
            Image.fromarray((grey + noise).astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    assert pretrain(tmp_path / "photos", tmp_path / "run", 2, "--data.val_fraction", "0.3") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["probe_after"] == 1.0 and summary["probe_pixels"] == 1.0 and summary["probe_constant"] == 0.5
    assert 0 <= summary["probe_before"] <= 1
    assert summary["probe_train"] == 56 and summary["probe_judged"] == 24
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["probe_before"]["linear"] == summary["probe_before"]


# --- images -----------------------------------------------------------------------------------------------------------


def test_every_image_counts_and_those_of_val_are_held_out(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "cat", 6, 1)
    draw(tmp_path / "train" / "dog", 6, 2)
    draw(tmp_path / "unlabeled", 5, 3)
    draw(tmp_path / "train", 2, 4)
    draw(tmp_path / "val" / "cat", 3, 5)
    draw(tmp_path / "test", 4, 6)
    data = PlainImages(root=str(tmp_path), batch_size=4)
    data.setup()
    assert {side: len(names) for side, names in data.names.items()} == {"train": 19, "val": 3, "test": 4}
    assert data.labels == ["cat", "dog"]
    assert len(data.labelled("train", 100)) == 12
    assert "12 of them with one of 2 classes" in data.describe()
    data.patches = 16
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())))
    assert batch["noise"].shape == (4, 16) and 0 <= float(batch["noise"].min()) < float(batch["noise"].max()) < 1
    one, two = ({"images": batch["images"], "index": torch.tensor(index)} for index in ([0, 2, 3, 5], [2, 0, 1, 4]))
    first, second = (data.on_after_batch_transfer(part)["noise"] for part in (one, two))
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0]), "validation: by the image"


def test_a_validation_folder_of_its_own(tmp_path: Path) -> None:
    data = PlainImages(root=str(draw(tmp_path / "a", 9)), val_root=str(draw(tmp_path / "b" / "cat", 4, 1)))
    data.setup()
    assert len(data.names["train"]) == 9 and len(data.names["val"]) == 4


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.labels"):
        PlainImages(labels=["a"])
    with pytest.raises(UserError, match="mixup"):
        PlainImages(augment=AugmentConfig(mixup=0.2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images at any depth"):
        PlainImages(root=str(tmp_path / "empty")).setup()
