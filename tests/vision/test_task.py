"""The image classifier as a training task."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.training.run.cli import TaskCLI, run_task
from triune.core.training.run.folder import load_summary
from triune.core.training.run.recipes import folder, list_recipes
from triune.vision.data.augment import AugmentConfig
from triune.vision.data.module import ImageData
from triune.vision.evaluate.calibration import read_temperature
from triune.vision.evaluate.metrics import class_head
from triune.vision.masked.data import PlainImages
from triune.vision.masked.task import MaskedTask
from triune.vision.model import VisionTransformer
from triune.vision.preprocessing import Preprocessing
from triune.vision.task import VisionTask, patch_for

TINY = TransformerConfig(dim=16, depth=1, heads=2, position="none", norm="layernorm", init_residual="zero")
RECIPES = list_recipes(folder("triune.vision"))
OPTIONS = [
    *("--trainer.max_steps", "120", "--trainer.val_check_interval", "30", "--threads", "1"),
    *("--model.transformer.depth", "1", "--model.transformer.dim", "32", "--model.transformer.heads", "2"),
    *(
        "--model.optimizer.lr",
        "0.03",
        "--model.optimizer.adamw_lr",
        "0.02",
        "--model.ema",
        "0.9",
        "--data.batch_size",
        "64",
    ),
]


def run_vision(verb: str, args: list[str]) -> dict:
    return run_task("vision", verb, args, VisionTask, ImageData, "triune.vision")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits, as `triune vision fit` makes it."""
    path = tmp_path_factory.mktemp("vision") / "run"
    run_vision("fit", ["--run", str(path), *OPTIONS])
    return path


def built(**options: object) -> VisionTask:
    """A task with its model, outside of a trainer."""
    torch.manual_seed(0)
    task, data = VisionTask(TINY, **options), ImageData()  # type: ignore[arg-type]
    data.image_size, data.channels, data.classes, data.labels = (8, 8), 1, 3, ["a", "b", "c"]
    task.model = task.build_model(data)
    torch.nn.init.normal_(task.model.head.weight)
    return task


def batch_of(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    images = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"images": images, "labels": labels, "index": torch.arange(len(labels))}


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_loss_is_a_sum_over_images_and_evaluation_ignores_what_fills_up():
    task, batch = built(label_smoothing=0.3), batch_of(torch.tensor([0, 2, 1, 1]))
    logits = task.model(batch["images"])
    total, count = task.train().loss(batch)
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.3)
    assert count == 4
    assert total.item() / 4 == pytest.approx(expected.item(), rel=1e-5)
    total, count = task.eval().loss(batch | {"labels": torch.tensor([0, 2, -100, -100])})
    assert count == 2
    assert total.item() / 2 == pytest.approx(F.cross_entropy(logits[:2], batch["labels"][:2]).item(), rel=1e-5)


def test_mixed_labels_are_the_mean_of_their_parts():
    task, first, second = built(), torch.tensor([0, 1]), torch.tensor([2, 2])
    mixed = 0.3 * F.one_hot(first, 3) + 0.7 * F.one_hot(second, 3)
    parts = [task.train().loss(batch_of(labels)).total.item() for labels in (first, second)]
    assert task.loss(batch_of(mixed)).total.item() == pytest.approx(0.3 * parts[0] + 0.7 * parts[1], rel=1e-5)


def test_binary_loss_and_its_start():
    task, labels = built(binary=True, label_smoothing=0.1), torch.tensor([0, 2, 1])
    batch = batch_of(labels)
    p = task.model(batch["images"]).sigmoid()
    targets = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum()
    assert task.train().loss(batch).total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert task.loss(batch_of(F.one_hot(labels, 3).float())).total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert task.model.head.bias.exp().tolist() == pytest.approx([1 / 3] * 3)


def test_logit_adjustment_is_the_log_of_the_shares():
    task, labels = built(logit_adjustment=1.0), torch.tensor([0, 2, 1])
    batch = batch_of(labels)
    task._adjustment = torch.tensor([0.5, 0.25, 0.25]).log()
    expected = F.cross_entropy(task.model(batch["images"]) + torch.tensor([0.5, 0.25, 0.25]).log(), labels)
    assert task.train().loss(batch).total.item() / 3 == pytest.approx(expected.item(), rel=1e-5)
    plain = F.cross_entropy(task.model(batch["images"]), labels)
    assert task.eval().loss(batch).total.item() / 3 == pytest.approx(plain.item(), rel=1e-5), "not in evaluation"
    with pytest.raises(UserError, match="0 with binary"):
        VisionTask(logit_adjustment=1.0, binary=True)


def test_shares_are_those_of_the_training_images(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a", 30), ("b", 10)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    task, data = VisionTask(TINY, logit_adjustment=1.0), ImageData(str(tmp_path))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, max_steps=1, limit_val_batches=0)  # fmt: skip
    trainer.fit(task, data)
    counts = data.counts("train")
    assert task._log_shares().exp().tolist() == pytest.approx([count / sum(counts) for count in counts])


def noise_folder(root: Path, images: int, seed: int) -> Path:
    """Two class folders with so many grey images of noise each."""
    rng = np.random.default_rng(seed)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_run_is_scored_from_any_folder(tmp_path, monkeypatch):
    noise_folder(tmp_path / "images", 8, 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run_vision("fit", ["--run", "run", "--data.root", "images", *OPTIONS[2:], "--trainer.max_steps", "2"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["root"] == str(tmp_path / "images")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_vision("validate", [str(tmp_path / "run")])["val_images"] == 4
    new = noise_folder(tmp_path / "new", 4, 1)
    with pytest.raises(UserError, match="holds other images than this model was trained on"):
        run_vision("test", [str(tmp_path / "run"), "--data.root", str(new)])


def test_wrong_settings_are_said():
    with pytest.raises(UserError, match="label_smoothing is 1"):
        VisionTask(label_smoothing=1.0)
    with pytest.raises(UserError, match="ImageData"):
        VisionTask().build_model(None)


@pytest.mark.parametrize(
    ("size", "patch"), [((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((64, 96), 8), ((224, 224), 16), ((512, 384), 16)]
)
def test_patches_suit_the_image(size, patch):
    assert patch_for(size) == patch


def test_fine_tuning_keeps_the_rule_for_mirrors_and_sees_whole_images():
    recipe = next(recipe for recipe in list_recipes(folder("triune.vision")) if recipe.name == "finetune")
    augment = AugmentConfig(**yaml.safe_load(recipe.path.read_text())["data"]["augment"])
    data = ImageData(augment=augment)
    data.adopt(Preprocessing(crop_pct=0.875), (8, 8), 1, "a checkpoint")
    data.setup()
    assert augment.flip is None
    assert "not mirrored (the classes are characters" in data.describe()
    assert augment.crop == "resized"
    plain = ImageData()
    plain.adopt(Preprocessing(crop_pct=0.875), (8, 8), 1, "a checkpoint")
    plain.setup()
    assert "sees the central 77% of each image" in plain.describe()


# --- a run ------------------------------------------------------------------------------------------------------------


def test_it_learns_and_its_figures_are_complete(run):
    summary = load_summary(run)
    assert summary["val_top1"] > 0.5
    assert summary["val_images"] == 450
    assert summary["nll"] == pytest.approx(summary["val_loss"], rel=1e-5)
    assert summary["ece"] == pytest.approx(summary["val_ece"], rel=1e-4)
    assert summary["nll_calibrated"] < summary["nll"]
    assert summary["baseline_majority_class"] < 0.2
    assert 0.9 < summary["baseline_logistic_regression"] < 1
    assert summary["skipped_images"] == 0
    assert set(summary["per_class"]) == {str(digit) for digit in range(10)}
    assert {"brier", "brier_calibrated", "val_top5", "temperature"} <= set(summary)


def test_best_is_the_highest_accuracy(run):
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_top1"]]
    best = max(rows, key=lambda row: (float(row["val_top1"]), -float(row["val_loss"])))
    assert len(rows) == 4
    assert load_summary(run)["best_step"] == int(best["step"])
    assert load_summary(run)["val_top1"] == pytest.approx(float(best["val_top1"]), abs=1e-5)


def test_the_pictures_are_there(run):
    for name in ("confusion", "reliability", "mistakes", "learning_curves", "loss"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_validate_gives_the_same_figures_and_table(run, capsys):
    figures = run_vision("validate", [str(run)])
    summary = load_summary(run)
    assert {name: summary[name] for name in figures} == figures
    out = capsys.readouterr().out
    assert f"{summary['val_top1']:.2%}" in out
    assert f"logistic regression{summary['baseline_logistic_regression']:>15.2%}" in out
    assert json.loads((run / "validation.json").read_text())["ece"] == summary["ece"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_folder_without_a_readable_image_is_not_scored(run, tmp_path, damaged):
    (tmp_path / "new" / "3").mkdir(parents=True)
    if damaged:
        (tmp_path / "new" / "3" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="test side holds no images that can be read"):
        run_vision("test", [str(run), "--data.test_root", str(tmp_path / "new"), "--data.on_error", "skip"])


def test_a_labelled_folder_is_scored_by_the_run_alone(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("3", "7"):  # two of ten classes, in colour where training was grey
        (tmp_path / "new" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "new" / name / f"{i}.png")
    figures = run_vision("test", [str(run), "--data.test_root", str(tmp_path / "new")])
    assert figures["test_images"] == 8
    assert figures["temperature"] == load_summary(run)["temperature"]
    assert [name for name, value in figures["per_class"].items() if value is not None] == ["3", "7"]
    out = capsys.readouterr().out
    assert "8 test images" in out
    assert "8 colour images are read as grey, as the model was trained." in out
    assert "no test image of '0', '1', '2', '4' and 4 more" in out


def test_without_a_test_set_validation_is_scored_and_named_so(run, capsys):
    figures = run_vision("test", [str(run)])
    summary = load_summary(run)
    assert not [name for name in figures if name.startswith("test_")]
    assert figures["val_top1"] == summary["val_top1"]
    assert figures["nll_calibrated"] == summary["nll_calibrated"], "cross-fitted, as validate says it"
    assert "no test set" in figures["scored"]
    out = capsys.readouterr().out
    assert "450 validation images" in out
    assert "There is no test set" in out


def test_the_exported_model_is_the_judged_one(run):
    model, data = VisionTransformer.from_pretrained(run / "model").eval(), ImageData(val_fraction=0.25)
    data.setup()
    assert model.config.labels == data.labels
    assert model.config.preprocessing == data.preprocessing
    assert model.config.size == (8, 8)
    pixels, labels = data.arrays("val") or pytest.fail("digits must be in memory")
    with torch.no_grad():
        logits = model(data.preprocessing.normalise(pixels))
    judged, summary = class_head(data.labels).judge(logits, labels, {}, resamples=0).metrics, load_summary(run)
    assert judged["accuracy"] == summary["val_top1"]
    assert judged["nll"] == pytest.approx(summary["nll"], rel=1e-4)
    assert read_temperature(run / "model") == summary["temperature"]


def test_predictions_are_of_every_image_once(run):
    run_vision("predict", [str(run)])
    parts = torch.load(run / "predictions.pt")
    logits, labels, index = (torch.cat([part[name] for part in parts]) for name in ("logits", "labels", "index"))
    assert index.tolist() == list(range(450))
    assert float((logits.argmax(1) == labels).double().mean()) == load_summary(run)["val_top1"]


def test_a_checkpoint_refuses_other_classes(run, tmp_path):
    names = json.dumps([*"abcdefghij"])
    with pytest.raises(UserError, match="not those of the checkpoint: 'a' stands where '0' was"):
        run_vision("validate", [str(run), "--data.labels", names])


def test_metrics_bring_the_filled_batches_together():
    task, data = VisionTask(TINY), ImageData(batch_size=64)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(task, data, verbose=False)
    assert task.predicted is not None
    logits, labels, index = task.predicted
    assert index.tolist() == list(range(179))
    assert labels.tolist() == (data.arrays("val") or pytest.fail("digits must be in memory"))[1].tolist()
    judged = class_head(data.labels).judge(logits, labels, {}, resamples=0).metrics
    assert trainer.callback_metrics["val_top1"].item() == pytest.approx(judged["accuracy"])
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(2.302585, rel=1e-4)  # the head starts at zero


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_build_their_models(recipe, tmp_path, monkeypatch):
    assert recipe.about
    assert recipe.time
    assert recipe.expected
    monkeypatch.chdir(tmp_path)
    plain = recipe.name.startswith("pretrain")
    classes = (MaskedTask, PlainImages) if plain else (VisionTask, ImageData)
    verb = "pretrain" if plain else "fit"
    cli = TaskCLI("vision", verb, ["--config", recipe.name], *classes, "triune.vision")
    side = cli.datamodule.image_size or 32
    cli.datamodule.image_size, cli.datamodule.channels = (side, side), 3
    cli.datamodule.labels = cli.datamodule.labels or ["a", "b"]
    cli.datamodule.classes = len(cli.datamodule.labels)
    with torch.device("meta"):
        model = cli.model.build_model(cli.datamodule)
    if recipe.name.startswith(("vit-s16", "deit3")):
        assert 21e6 < sum(p.numel() for p in model.parameters()) < 23e6
    elif plain:
        noise = torch.zeros(1, cli.datamodule.patches, device="meta")
        assert model(torch.zeros(1, 3, side, side, device="meta"), noise).shape == (1,)
    else:
        assert model(torch.zeros(1, 3, side, side, device="meta")).shape == (1, cli.datamodule.classes)


def test_there_are_the_recipes_that_the_readme_names():
    names = {recipe.name for recipe in RECIPES}
    assert {
        "default",
        "demo",
        "fashion-mnist-cpu",
        "cifar10-gpu",
        "vit-s16-plain",
        "deit3-s16",
        "vit-s16-modern",
    } <= names
