"""Labels of patches: masks beside images, read, moved with them, summed up, trained, scored and answered."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from triune.cli import main
from triune.core.errors import UserError
from triune.core.labelled.predict import main as predict
from triune.core.labelled.predict import names_apart
from triune.core.labels.table import read_table
from triune.core.labels.targets import Target, infer
from triune.core.losses import IGNORED
from triune.core.training.run.cli import run_task
from triune.vision.data.augment import AugmentConfig, change_both
from triune.vision.data.images import UnreadableImage
from triune.vision.data.masks import Masks
from triune.vision.evaluate.patches import mean_iou
from triune.vision.heads import whole_trunk
from triune.vision.labelled import MODALITY
from triune.vision.labels import ImageLabels, ImageTable
from triune.vision.masks import (
    MASKS,
    as_mask,
    fitted,
    from_planes,
    masks_up_to,
    patch_labels,
    planes,
    read_mask,
    reference_patch_labels,
    size_of,
)
from triune.vision.model import VisionTransformerConfig
from triune.vision.predictor import ImagePredictor, ImageReader
from triune.vision.preprocessing import Preprocessing

SHORT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--threads", "1", "--data.batch_size", "8"]
SMALL = ["--model.transformer.dim", "32", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def blocks(size: tuple[int, int], seed: int, classes: int = 3) -> np.ndarray:
    """Large areas of one class each, `[height, width]`."""
    coarse = np.random.default_rng(seed).integers(0, classes, (3, 4), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.NEAREST))


def pictures(folder: Path, size: tuple[int, int] = (16, 16), count: int = 24, unlabelled: int = 255) -> Path:
    """A table of images that show their masks, and the masks, of which a corner has no label."""
    rows = []
    for i in range(count):
        mask = blocks(size, i)
        Image.fromarray(mask * 100).save(folder / f"{i}.png")
        mask = mask.copy()
        mask[:2, :5] = unlabelled
        Image.fromarray(mask).save(folder / f"m{i}.png")
        rows.append({"image": f"{i}.png", "mask": f"m{i}.png", "side": "val" if i % 4 == 0 else "train"})
    return write(folder / "table.csv", rows)


def target(folder: Path, cells: list[Any], **options: Any) -> Target:
    lines = "\n".join(json.dumps({"image": "a.png", "mask": cell}) for cell in cells)
    (folder / "t.jsonl").write_text(lines)
    return infer(read_table(folder / "t.jsonl", ["mask"]), ["mask"], masks=MASKS, **options)


def test_a_patch_has_the_commonest_label_or_the_mean() -> None:
    random = np.random.default_rng(0)
    for classes, patch in ((3, (4, 4)), (2, (2, 6)), (5, (12, 3)), (None, (4, 6))):
        pixels = torch.from_numpy(random.integers(0, classes or 9, (2, 12, 24)).astype(np.float32))
        pixels[torch.from_numpy(random.random((2, 12, 24)) < 0.4)] = float("nan")
        pixels[0, :12, :12] = float("nan")  # whole patches without a label
        found, expected = patch_labels(pixels, patch, classes), reference_patch_labels(pixels, patch, classes)
        if classes is None:
            torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=0)
        else:
            assert torch.equal(found, expected)
        assert torch.equal(from_planes(planes(pixels)).nan_to_num(-1), pixels.nan_to_num(-1))
    tied = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert patch_labels(tied, (2, 2), 2).tolist() == [[0]]


def test_masks_may_be_as_large_as_their_images(tmp_path: Path) -> None:
    Image.new("L", (1000, 200), 1).save(tmp_path / "m.png")
    with pytest.raises(UnreadableImage, match="is too large"):
        masks_up_to(0.1).read(tmp_path / "m.png")
    assert masks_up_to(0.2).read(tmp_path / "m.png").values.shape == (200, 1000)
    data = ImageTable(table="t.csv", input="image", target="mask", max_megapixels=0.1)
    assert data.MASKS is not None
    with pytest.raises(UnreadableImage, match="at most 100,000 are read"):
        data.MASKS.read(tmp_path / "m.png")


def test_predict_and_embed_may_read_larger_images(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300)).save(tmp_path / "a.png")
    reader = ImageReader(VisionTransformerConfig(), 100_000)
    with pytest.raises(UnreadableImage, match="--max_megapixels of predict and embed"):
        reader.one("a.png", "a", tmp_path)
    reader.accept(0.12)
    assert reader.one("a.png", "a", tmp_path).ndim == 3


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize(("size", "crop"), [((40, 64), 1.0), ((64, 40), 0.8), ((24, 24), 0.9), ((16, 16), 1.0)])
def test_a_mask_is_fitted_as_its_image_is(tmp_path: Path, size: tuple[int, int], crop: float, resize: Any) -> None:
    shown = np.random.default_rng(0).integers(0, 9, size, np.uint8)
    Image.fromarray(shown).save(tmp_path / "a.png")
    preprocessing = Preprocessing(interpolation="nearest", crop_pct=crop, resize=resize)
    mask = target(tmp_path, ["a.png", "a.png"]).values[0]
    image = preprocessing.pixels(Image.fromarray(shown), (16, 16))[0].numpy()
    assert np.array_equal(fitted(mask, tmp_path / "a.png", preprocessing, (16, 16)), image)
    # And back: what the answers say at each pixel gives the same answers again.
    answers = np.arange(16).reshape(4, 4)
    back = as_mask(answers, (size[1], size[0]), preprocessing, (16, 16))
    assert back.shape == size
    Image.fromarray(np.where(np.isnan(back), 255, back).astype(np.uint8)).save(tmp_path / "b.png")
    again = fitted(target(tmp_path, ["b.png"]).values[0], tmp_path / "a.png", preprocessing, (16, 16))
    pixels = torch.from_numpy(np.where(again == IGNORED, np.nan, again.astype(np.float32)))
    assert patch_labels(pixels[None], (4, 4), 16)[0].tolist() == list(range(16))


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(crop="pad", padding=5), AugmentConfig(crop="none", flip=True),
        AugmentConfig(crop="pad", rotate=40, zoom=0.3), AugmentConfig(crop="resized", rotate=10),
        AugmentConfig(policy="rand", magnitude=20),
    ],
)  # fmt: skip
def test_masks_move_with_their_images(config: AugmentConfig) -> None:
    labels = torch.from_numpy(np.stack([blocks((48, 40), seed) for seed in range(8)])).float() + 1  # 0 is outside
    pixels = (labels * 60).byte()[:, None]
    images, pair = change_both(pixels, planes(labels), config, np.random.default_rng(1), True, False)
    assert pair is not None and pair.shape == (8, 2, 48, 40)
    moved = from_planes(pair)
    assert not torch.equal(moved, labels)
    # Where all neighbours have one label, interpolation changes nothing, and the image shows that label.
    around = moved.nan_to_num(-9).unfold(1, 5, 1).unfold(2, 5, 1).flatten(3)
    inside = around.amax(-1) == around.amin(-1)
    here, shown = moved[:, 2:-2, 2:-2][inside], images[:, 0, 2:-2, 2:-2][inside]
    known = here == here
    assert int(known.sum()) > 2000
    if config.policy == "none":
        torch.testing.assert_close(shown[known], here[known] * 60 / 255, atol=2e-3, rtol=0)
    else:  # colours change too, but those of one label alike
        for image in range(8):
            one = moved[image, 2:-2, 2:-2][inside[image]]
            values = images[image, 0, 2:-2, 2:-2][inside[image]]
            inner = [float(values[one == label].std()) for label in one.unique() if int((one == label).sum()) > 30]
            assert np.median(inner) < 0.02


def test_masks_are_cut_with_images_that_are_read_for_each_batch(tmp_path: Path) -> None:
    where = pictures(tmp_path, (90, 120))
    data = ImageTable(
        table=str(where), input="image", target="mask", split="side", image_size=72, cache=str(tmp_path / "cache"),
        augment=AugmentConfig(crop="resized", flip=False, min_area=0.2), batch_size=8, workers=0,
    )  # fmt: skip
    data.setup()
    batch = next(iter(data.train_dataloader()))
    labels, images = from_planes(batch["masks"].float()), batch["images"][:, 0].float()
    around = labels.nan_to_num(-9).unfold(1, 5, 1).unfold(2, 5, 1).flatten(3)
    inside = (around.amax(-1) == around.amin(-1)) & (around.amin(-1) >= 0)
    assert int(inside.sum()) > 8 * 72 * 72 / 3
    gap = (images[:, 2:-2, 2:-2] - labels[:, 2:-2, 2:-2] * 100).abs()[inside]
    assert float((gap < 8).float().mean()) > 0.99  # bicubic pixels reach further than two


def test_files_of_masks_are_read_by_their_numbers(tmp_path: Path) -> None:
    values = blocks((12, 10), 0)
    rgb = Image.fromarray(values).convert("RGB")
    forms: dict[str, Image.Image] = {"l.png": Image.fromarray(values), "rgb.png": rgb}
    palette = Image.fromarray(values)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    forms |= {"p.png": palette, "p.gif": palette, "wide.png": Image.fromarray(values.astype(np.uint16))}
    forms |= {"rgba.png": forms["rgb.png"].convert("RGBA"), "f.tif": Image.fromarray(values.astype(np.float32))}
    for name, image in forms.items():
        image.save(tmp_path / name)
        raw = read_mask(tmp_path / name)
        assert np.array_equal(raw.values, values), name
        assert raw.palette == name.startswith("p."), name
    Image.fromarray(values > 0).save(tmp_path / "one.png")
    assert np.array_equal(read_mask(tmp_path / "one.png").values, values > 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "turned.png").values, np.rot90(values, -1))
    assert size_of(tmp_path / "turned.png") == (12, 10)
    colours = np.stack([values, values + 1, values], -1)
    Image.fromarray(colours).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match="one number in each pixel"):
        read_mask(tmp_path / "colour.png")


def test_what_the_values_of_masks_mean(tmp_path: Path) -> None:
    def save(name: str, values: Any) -> str:
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / name)
        return name

    border = target(tmp_path, [save("a.png", [[0, 1], [255, 7]])])
    assert border.names == ["0", "1", "7"] and "255 means no label" in " ".join(border.notes)
    assert border.values[0].labels().tolist() == [[0, 1], [IGNORED, 2]]
    binary = target(tmp_path, [save("b.png", [[0, 255]])])
    assert binary.names == ["0", "255"] and binary.values[0].labels().tolist() == [[0, 1]]
    chosen = target(tmp_path, ["a.png"], missing=("7",))
    assert chosen.names == ["0", "1", "255"] and chosen.values[0].labels().tolist() == [[0, 1], [2, IGNORED]]
    numbers = target(tmp_path, ["a.png"], kind="tag:numbers")
    assert numbers.numbers and numbers.values[0].labels().tolist() == [[0, 1], [255, 7]]
    grid = target(tmp_path, [[["sky", "sea"], ["sea", None]], '[["sea"]]', None])
    assert grid.names == ["sea", "sky"] and grid.missing.tolist() == [False, False, True]
    assert grid.values[0].labels().tolist() == [[1, 0], [0, IGNORED]]
    assert target(tmp_path, [[["a", "b"]], ["a", "b", "b", "a"]], kind="tag").values[1].labels().tolist() == [
        [0, 1],
        [1, 0],
    ]
    assert target(tmp_path, [[[0.5, 1.25]]]).numbers
    scored = target(tmp_path, ["b.png"], kind="tag", names=["0", "1"], numbers=False)
    assert scored.values[0].labels().tolist() == [[0, IGNORED]]
    many = save("c.png", np.arange(100).reshape(10, 10))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "j.jpg")
    save("zero.png", [[0, 0]])
    for cells, options, words in (
        ([many], {}, "tag:classes or tag:numbers"), (["j.jpg", many], {"kind": "tag:classes"}, "JPEG"),
        (["zero.png"], {}, "'0' everywhere"), (["a.png", "lost.png"], {}, r"lost.png' in row 2 .* is no file"),
        (["a.png"], {"kind": "tag", "names": ["0", "1"], "numbers": False}, r"row 1 .* has the label '7'"),
        ([[["a", "b"], ["a"]]], {}, "each with as many labels"), (["abc"], {"kind": "tag"}, "the file of a mask"),
        ([["a", "b", "a"]], {"kind": "tag"}, "no square"), (['[["a", ["b"]]]'], {}, "without lists in them"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            target(tmp_path, cells, **options)
    kept = target(tmp_path, ["a.png", "lost.png"], on_unseen="ignore")
    assert kept.missing.tolist() == [False, True] and any("lost.png" in note for note in kept.notes)
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="2 × 2 pixels, but must have the shape of its image"):
        fitted(border.values[0], tmp_path / "wide.png", Preprocessing(), (8, 8))


def read_column(path: Path, name: str) -> list[str]:
    with path.open() as file:
        return [row[name] for row in csv.DictReader(file) if row[name]]


def run(verb: str, *words: object) -> dict[str, Any]:
    return run_task("vision", verb, [str(word) for word in words], ImageLabels, ImageTable, "triune.vision")


def test_masks_are_trained_scored_and_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = pictures(tmp_path)
    cache = ["--data.cache", tmp_path / "cache"]
    line = ["--data.table", where, "--data.input", "image", "--data.target", "mask", "--data.split", "side", *cache]
    summary = run("fit", *line, *SHORT, *SMALL, "--model.patch_size", "4", "--run", tmp_path / "run")
    assert summary["judged"]["kind"] == "tag" and summary["judged"]["count"] == 6 * 16
    assert (tmp_path / "run" / "patches.png").is_file() and "val_mean_iou" in summary
    again = run("validate", tmp_path / "run")
    assert again["judged"]["metrics"] == pytest.approx(summary["judged"]["metrics"], abs=1e-6)
    # By hand: the model's answers beside the commonest label of each patch.
    model: Any = ImagePredictor.from_pretrained(tmp_path / "run" / "model").eval()
    right, truth, named = [], [], []
    for i in range(0, 24, 4):
        shown = torch.from_numpy(np.array(Image.open(tmp_path / f"{i}.png")))[None, None]
        with torch.no_grad():
            tokens = model.trunk.tokens(model.trunk.config.preprocessing.normalise(shown))[:, 1:]
            outputs = model.head.each.linear(tokens)[0]
        mask = np.array(Image.open(tmp_path / f"m{i}.png")).astype(np.float32)
        labels = reference_patch_labels(torch.from_numpy(np.where(mask == 255, np.nan, mask))[None], (4, 4), 3)[0]
        right += (outputs.argmax(-1) == labels).tolist()
        truth += labels.tolist()
        named += outputs.argmax(-1).tolist()
    assert summary["val_accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
    assert summary["val_mean_iou"] == pytest.approx(mean_iou(np.array(truth), np.array(named), 3))
    expected = jaccard_score(truth, named, average="macro", labels=sorted({*truth, *named}))
    assert mean_iou(np.array(truth), np.array(named), 3) == pytest.approx(expected)
    constant = summary["judged"]["baseline"]
    same = next(c for c in truth if truth.count(c) == round(constant["accuracy"] * len(truth)))
    macro = jaccard_score(truth, [same] * len(truth), average="macro", labels=sorted({*truth}))
    assert constant["mean_iou"] == pytest.approx(macro)
    assert 0 <= float(read_column(tmp_path / "run" / "metrics.csv", "padding")[-1]) < 0.5
    # Other tables, and answers that can be labels again.
    some = write(tmp_path / "some.csv", [{"image": f"{i}.png", "mask": f"m{i}.png"} for i in range(0, 24, 4)])
    scored = run("test", tmp_path / "run", "--data.table", some)
    assert scored["test_accuracy"] == pytest.approx(summary["val_accuracy"], abs=1e-6)
    out, masks = tmp_path / "answers.jsonl", tmp_path / "masks"
    line = ["vision", "predict", str(tmp_path / "run"), "--table", str(some), "--input", "image", "--device", "cpu"]
    assert main([*line, "--out", str(out), "--masks", str(masks)]) == 0
    answers = [json.loads(each) for each in out.read_text().splitlines()]
    assert np.array(answers[1]["label"]).shape == (4, 4)
    assert [int(v) for row in answers for v in np.ravel(row["label"])] == named
    assert [row["predicted_mask"] for row in answers] == [f"masks/{i}.png" for i in range(0, 24, 4)]
    painted = np.array(Image.open(masks / "4.png"))
    assert painted.shape == (16, 16) and np.array_equal(painted[::4, ::4], np.array(answers[1]["label"], int))
    assert main([*line, "--masks", str(masks)]) == 2  # it exists
    assert main(["evaluate", str(tmp_path / "run"), "--tasks", str(some), "--out", str(tmp_path / "e.json"),
                 "--device", "cpu"]) == 0  # fmt: skip
    figures = {row["figure"]: row["value"] for row in json.loads((tmp_path / "e.json").read_text())["figures"]}
    assert figures["accuracy"] == pytest.approx(summary["val_accuracy"], abs=1e-6)
    assert main(["vision", "predict", str(tmp_path / "run"), "0.png", "--tta", "flip"]) == 2
    with pytest.raises(UserError, match="answers for each patch"):
        whole_trunk(model, "hf")
    line = ["vision", "probe", "--model", str(tmp_path / "run"), "--data.table", str(where), "--data.input", "image",
            "--data.target", "mask", "--data.split", "side", "--cache", str(tmp_path / "cache"), "--json"]  # fmt: skip
    capsys.readouterr()
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["judged"], found["train"]) == ("patches", 96, 18 * 16)
    assert found["scores"][0]["metrics"]["accuracy"] > found["scores"][-1]["metrics"]["accuracy"]


def test_values_of_masks_have_names(tmp_path: Path) -> None:
    where = pictures(tmp_path)
    names = {"2": "sea", "0": "sky", "1": "shore", "9": "moon"}
    line = ["--data.table", where, "--data.input", "image", "--data.target", "mask", "--data.split", "side",
            "--data.cache", tmp_path / "cache"]  # fmt: skip
    line += ["--data.labels", json.dumps(names)]
    summary = run("fit", *line, *SHORT, *SMALL, "--model.patch_size", "4", "--run", tmp_path / "run")
    assert [row["name"] for row in summary["judged"]["per_class"]] == ["sky", "shore", "sea"]
    some = write(tmp_path / "some.csv", [{"image": f"{i}.png", "mask": f"m{i}.png"} for i in range(0, 24, 4)])
    scored = run("test", tmp_path / "run", "--data.table", some)
    assert scored["test_accuracy"] == pytest.approx(summary["val_accuracy"])
    other = ["--data.labels", json.dumps(names | {"0": "land"})]
    assert main(["vision", "test", str(tmp_path / "run"), "--data.table", str(some), *other]) == 2
    assert main(["evaluate", str(tmp_path / "run"), "--tasks", str(some), "--device", "cpu"]) == 0
    out, folder = tmp_path / "answers.jsonl", tmp_path / "masks"
    predict(MODALITY, [str(tmp_path / "run"), str(tmp_path / "4.png"), "--out", str(out), "--masks", str(folder)])
    answers, mask = json.loads(out.read_text())["label"], np.array(Image.open(folder / "4.png"))
    assert [[names[str(value)] for value in row] for row in mask[::4, ::4]] == answers  # the values, not the places


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "sky", "1": "sea"}, r"names 0, 1, but 'mask' .* holds 2 too; name all values"),
        (["sky", "sea", "land"], "must be a mapping from the values of masks"),
        ({"0": "sky", "1": "sea", "2": "sky"}, "calls two values 'sky'"),
    ],
)
def test_names_of_values_are_complete_and_differ(labels: Any, message: str, tmp_path: Path) -> None:
    where = pictures(tmp_path)
    with pytest.raises(UserError, match=message):
        ImageTable(table=str(where), input="image", target="mask", labels=labels, cache=str(tmp_path / "c")).setup()


def test_masks_are_called_after_their_images() -> None:
    assert names_apart(["a/x.png", "b/y.png"]) == ["x", "y"]
    assert names_apart(["top/a/x.png", "top/b/X.jpg", "top/y.png"]) == ["a/x", "b/X", "y"]
    assert names_apart(["a/x.png", "a/x.jpg", "b/x.png"]) == ["a/x.png", "a/x.jpg", "b/x"]
    assert names_apart(["x.png", "x.png", "x_2.png"]) == ["x", "x_2", "x_2_2"]
    assert names_apart([]) == []


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    line = ["vision", "predict", str(tmp_path / "none"), "0.png", "--masks", str(tmp_path / "masks")]
    code = (
        "import sys; from pathlib import Path; from triune.core.lock import claim; claim([Path(sys.argv[1])]); "
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, line[-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        with pytest.raises(UserError, match="masks"):
            predict(MODALITY, line[2:])
        other.communicate("")
    with pytest.raises(UserError, match="none"):  # the folder is free, the run is not there
        predict(MODALITY, line[2:])


def test_numbers_of_patches_from_grids_and_a_class_token(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [
        {"image": f"{i}.png", "grid": json.dumps((np.arange(16).reshape(4, 4) * 0.5 + i).tolist())} for i in range(24)
    ]
    where = write(tmp_path / "grids.csv", rows)
    data = ImageTable(
        table=str(where), input="image", target="grid", cache=str(tmp_path / "cache"), batch_size=8,
        augment=AugmentConfig(crop="none", flip=False),
    )  # fmt: skip
    data.setup()
    from triune.vision.model import VisionTransformerConfig

    data.label_patches(VisionTransformerConfig(image_size=16, patch_size=4, channels=1, registers=2))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())))
    assert batch["targets"].shape == (8, 3 + 16) and batch["targets"][:, :3].isnan().all()
    for row, found in zip(batch["index"].tolist(), batch["targets"][:, 3:]):
        assert found.tolist() == (np.arange(16) * 0.5 + row).tolist()
    assert data.target_of("train").values[0].tolist() == (np.arange(16) * 0.5 + data.side("train")[0]).tolist()


def test_masks_of_two_bytes_and_of_files_are_the_same(tmp_path: Path) -> None:
    where = pictures(tmp_path)
    table = read_table(where, ["mask", "image"])
    found = infer(table, ["mask"], masks=MASKS)
    paths = [str(tmp_path / name) for name in table.columns["image"]]
    values: Any = found.values
    kept = Masks(values, paths, Preprocessing(), (16, 16), 300)
    kept.remember(np.arange(3))
    for row in range(3):
        direct = Masks(values, paths, Preprocessing(), (16, 16), 300)[row]
        torch.testing.assert_close(kept[row], direct, equal_nan=True)
        assert int(direct.isnan().sum()) == 10
