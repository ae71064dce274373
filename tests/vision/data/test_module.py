"""Images in: every layout, splits without leaks, batches, exact resume, augmentation, and the mistakes of users."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from triune.core.errors import UserError
from triune.vision.data import colours, images
from triune.vision.data.augment import AugmentConfig, change_pixels, erase, mix, random_box
from triune.vision.data.loader import Draw, InOrder, Shuffled
from triune.vision.data.module import ImageData
from triune.vision.data.split import hold_out


def picture(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def folder(root: Path, counts: dict[str, int], start: int = 0, size: tuple[int, int] = (12, 12)) -> Path:
    """Class folders with PNG files, each with pixels of its own."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(start, size).save(root / name / f"{i:03d}.png")
            start += 1
    return root


def made(root: Path | str | None = None, **settings: Any) -> ImageData:
    data = ImageData(None if root is None else str(root), **{"batch_size": 4} | settings)
    data.setup()
    return data


def seen(data: ImageData, loader: Any) -> list[dict[str, Tensor]]:
    return [data.on_after_batch_transfer(batch) for batch in loader]


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_digits_without_any_file() -> None:
    data = made(val_fraction=0.25, batch_size=64)
    assert (data.classes, data.image_size, data.channels) == (10, (8, 8), 1)
    assert data.labels == list("0123456789")
    assert data.figures()["images_train"] + data.figures()["images_val"] == 1797
    assert data.describe().startswith(
        "scikit-learn's digits: 10 classes, 1,347 to train on and 450 to validate on, 8×8×1"
    )
    assert all(44 <= count <= 46 for count in data.counts("val"))
    batch = seen(data, data.train_dataloader())[0]
    assert batch["images"].shape == (64, 1, 8, 8)
    assert "position" not in batch
    pixels, labels = data.arrays("train") or pytest.fail("digits must be in memory")
    normal = data.preprocessing.normalise(pixels)
    assert abs(float(normal.mean())) < 1e-3
    assert abs(float(normal.std()) - 1) < 1e-2
    assert labels.tolist().count(3) == data.counts("train")[3]


def test_class_folders_and_training_validation_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 10, "dog": 6})
    (root / "cat" / "deeper").mkdir()
    picture(99).save(root / "cat" / "deeper" / "x.PNG")
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    data = made(root)
    assert data.labels == ["cat", "dog"]
    assert sum(data.counts("train")) + sum(data.counts("val")) == 17
    split = tmp_path / "b"
    folder(split / "train", {"cat": 5, "dog": 5})
    folder(split / "Validation", {"cat": 2, "dog": 3}, 50)
    folder(split / "test", {"cat": 1, "dog": 2}, 70)
    data = made(split, image_size=[8, 6], channels=1)
    assert [data.counts(side) for side in ("train", "val", "test")] == [[5, 5], [2, 3], [1, 2]]
    assert next(iter(data.val_dataloader()))["images"].shape == (4, 1, 8, 6)
    same = made(split / "train", val_root=str(split / "Validation"), test_root=str(split / "test"))
    assert same.counts("val") == [2, 3]


def _tar(source: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as tar:
        tar.add(source, arcname="wrapped/train")
    return target


def test_archives_are_extracted_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 5, "dog": 5})
    packed = _tar(root, tmp_path / "a.tar.gz")
    first = made(packed, cache=str(tmp_path / "cache"))
    assert sum(first.counts("train")) + sum(first.counts("val")) == 10
    folders = list((tmp_path / "cache" / "archives").iterdir())
    assert len(folders) == 1
    assert made(packed, cache=str(tmp_path / "cache")).names == first.names
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as package:
        for file in root.rglob("*.png"):
            package.write(file, file.relative_to(tmp_path))
    assert sum(made(tmp_path / "a.zip").counts("train")) == sum(first.counts("train"))


def test_archives_cannot_write_outside(tmp_path: Path) -> None:
    content = io.BytesIO(b"x")
    for name in ("../evil.png", "/tmp/evil-absolute.png"):
        with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            content.seek(0)
            tar.addfile(entry, content)
        with pytest.raises(UserError):
            made(tmp_path / "bad.tar.gz", cache=str(tmp_path / "cache"))
    assert not list(tmp_path.rglob("evil.png"))
    assert not Path("/tmp/evil-absolute.png").exists()
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as package:
        package.writestr("../evil.png", b"x")
    with pytest.raises(UserError, match="unsafe"):
        made(tmp_path / "bad.zip")
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(b"no tar")[:-3])
    with pytest.raises(UserError, match="cannot be read as an archive"):
        made(tmp_path / "cut.tar.gz")


def test_archive_bombs_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triune.vision.data import archives

    monkeypatch.setattr(archives, "_FREE_BYTES", 1000)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("a/big.png")
        entry.size = 10_000_000
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    with pytest.raises(UserError, match="suspicious"):
        made(tmp_path / "bomb.tar.gz", cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "archives").iterdir()) == []


def idx(path: Path, array: np.ndarray, packed: bool) -> None:
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    (path.with_name(path.name + ".gz") if packed else path).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 6)):
        idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 7, 5), dtype=np.uint8), packed)
        idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 3, packed)
    data = made(tmp_path, labels=["shirt", "shoe", "bag"])
    assert (data.image_size, data.channels, data.labels) == ((7, 5), 1, ["shirt", "shoe", "bag"])
    assert sum(data.counts("train")) + sum(data.counts("val")) == 30
    assert data.counts("test") == [2, 2, 2]
    with pytest.raises(UserError, match="names 1 classes, but the data have 3"):
        made(tmp_path, labels=["a"])


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    idx(images, np.zeros((4, 2, 2), np.uint8), False)
    with pytest.raises(UserError, match="no labels beside it"):
        made(tmp_path)
    idx(labels, np.zeros(3, np.uint8), False)
    with pytest.raises(UserError, match=r"holds 4 images, but .* 3 labels"):
        made(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"should hold 16 bytes .* but holds 15"):
        made(tmp_path)
    images.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(UserError, match="claims"):
        made(tmp_path)
    images.write_bytes(b"junk")
    with pytest.raises(UserError, match="not an IDX file"):
        made(tmp_path)


def test_webdataset_shards_are_read_in_place(tmp_path: Path) -> None:
    def shard(name: str, samples: list[tuple[str, str, int]]) -> None:
        with tarfile.open(tmp_path / name, "w") as tar:
            for key, label, seed in samples:
                buffer = io.BytesIO()
                picture(seed).save(buffer, "PNG")
                for extension, content in (("png", buffer.getvalue()), ("cls", label.encode())):
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))

    shard("train-000.tar", [(f"a{i}", str(i % 2), i) for i in range(6)])
    shard("train-001.tar", [(f"b{i}", str(i % 2), 10 + i) for i in range(6)])
    shard("val-000.tar", [("v0", "0", 50), ("v1", "1", 51)])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = made(tmp_path)
    assert data.labels == ["cat", "dog"]
    assert data.counts("train") == [6, 6]
    assert data.names["val"] == ["val-000.tar:v0", "val-000.tar:v1"]
    pixels, _ = data.arrays("val") or pytest.fail("small images must be in memory")
    assert torch.equal(pixels[1].permute(1, 2, 0), torch.from_numpy(np.asarray(picture(51)).copy()))
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="cannot be read as a list of classes"):
        made(tmp_path)
    (tmp_path / "classes.txt").unlink()
    shard("train-002.tar", [("c", "one", 90)])
    with pytest.raises(UserError):  # names among numbers: the validation shards lack the class
        made(tmp_path / "train-002.tar")


def test_parquet_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def encoded(seed: int) -> bytes:
        buffer = io.BytesIO()
        picture(seed).save(buffer, "PNG")
        return buffer.getvalue()

    for name, seeds in (("train", range(12)), ("test", range(50, 54))):
        rows = {"image": [{"bytes": encoded(seed), "path": None} for seed in seeds],
                "label": ["ab"[seed % 2] for seed in seeds]}  # fmt: skip
        parquet.write_table(pyarrow.table(rows), tmp_path / f"{name}-00000.parquet")
    data = made(tmp_path)
    assert data.labels == ["a", "b"]
    assert data.counts("test") == [2, 2]


def test_parquet_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    for settings_ in ({"root": str(tmp_path)}, {"dataset": "hf:a/b"}):
        with pytest.raises(UserError, match=r"triune\[datasets\]"):
            ImageData(**settings_).setup()


def test_torchvision_sets_that_are_already_there(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), False)
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10, False)
    data = made(tmp_path, dataset="FashionMNIST", val_fraction=0.5)
    assert data.labels[0] == "T-shirt/top"
    assert data.counts("test") == [1] * 10
    with pytest.raises(UserError, match="did you mean 'CIFAR10'"):
        made(dataset="CIFAR-10")


# --- splits -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=8, max_size=80),
    st.floats(0.05, 0.6),
    st.integers(0, 9),
)
def test_held_out_groups_stay_together(images: list[tuple[int, int]], fraction: float, seed: int) -> None:
    digests, labels = [str(content) for content, _ in images], np.array([label for _, label in images])
    try:
        held = hold_out(digests, labels, fraction, seed)
    except UserError:
        return
    sides: dict[str, set[bool]] = {}
    for digest, side in zip(digests, held.tolist(), strict=True):
        sides.setdefault(digest, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    order = np.random.default_rng(seed).permutation(len(images))
    if len(set(images)) == len(set(digests)):  # no picture under two labels
        again = hold_out([digests[i] for i in order], labels[order], fraction, seed)
        assert (again == held[order]).all(), "the split must not depend on the order of the files"


def test_split_is_stratified_and_seeded() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    digests = [str(i) for i in range(160)]
    held = hold_out(digests, labels, 0.2, 0)
    assert np.bincount(labels[held]).tolist() == [20, 10, 2]
    assert (hold_out(digests, labels, 0.2, 0) == held).all()
    assert (hold_out(digests, labels, 0.2, 1) != held).any()
    with pytest.raises(UserError, match="No image can be held out"):
        hold_out(["a", "b"], np.array([0, 1]), 0.1, 0)


def test_identical_pixels_never_on_two_sides(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 12, "dog": 12})
    for i in range(6):  # the same pixels under other names and in another format
        Image.open(root / "cat" / f"{i:03d}.png").save(root / "cat" / f"copy{i}.bmp")
    for seed in range(4):
        data = made(root, val_fraction=0.4, seed=seed)
        assert data.duplicates == 6
        sides = [{pixels.numpy().tobytes() for pixels in data.arrays(side)[0]} for side in ("train", "val")]  # type: ignore[index]
        assert not sides[0] & sides[1]


def test_training_copies_of_given_validation_images_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "a"
    folder(root / "train", {"cat": 5, "dog": 5})
    folder(root / "val", {"cat": 2, "dog": 2}, 50)
    picture(51).save(root / "train" / "dog" / "leak.png")
    data = made(root)
    assert data.leaked == 1
    assert data.counts("train") == [5, 5]
    assert data.counts("val") == [2, 2]


def test_training_images_that_are_all_held_out_too_are_refused(tmp_path: Path) -> None:
    for side in ("train", "val"):
        folder(tmp_path / "a" / side, {"cat": 3, "dog": 3})
    with pytest.raises(UserError, match=r"All 6 training images have the pixels of images of validation or test"):
        made(tmp_path / "a")


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, 0])
@pytest.mark.parametrize("batch_size", [3, 7])
def test_validation_counts_every_image_once_in_batches_of_one_shape(
    tmp_path: Path, batch_size: int, memory: float
) -> None:
    root = tmp_path / "a"
    folder(root / "train", {"cat": 5, "dog": 5})
    folder(root / "val", {"cat": 7, "dog": 3}, 50)
    data = made(root, batch_size=batch_size, image_size=72, memory=memory)
    assert (data.arrays("val") is not None) == bool(memory)
    batches = seen(data, data.val_dataloader())
    assert {batch["images"].shape for batch in batches} == {(batch_size, 3, 72, 72)}
    index = torch.cat([batch["index"] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert index[index >= 0].tolist() == list(range(10))
    assert labels[index >= 0].tolist() == [0] * 7 + [1] * 3
    assert (labels[index < 0] == -100).all()
    assert data.names["val"][7].endswith("dog/000.png")


def test_validation_pixels_are_those_of_a_file_classified_alone(tmp_path: Path) -> None:
    from triune.vision.data.images import read_image

    for size, image_size, memory in (((12, 12), 10, 1), ((90, 70), 66, 1), ((90, 70), 66, 0)):
        root = folder(tmp_path / f"{image_size} {memory}", {"cat": 6, "dog": 6}, size=size)
        data = made(root, image_size=image_size, memory=memory)
        batch = seen(data, data.val_dataloader())[0]
        name = data.names["val"][0]
        alone = data.preprocessing.normalise(data.preprocessing.pixels(read_image(name), data.image_size))
        torch.testing.assert_close(batch["images"][0], alone)


def test_an_epoch_visits_each_image_once_and_epochs_differ() -> None:
    order = Shuffled(22, 4, seed=3)
    epochs = [[draw.indices.tolist() for draw in order] for _ in range(2)]
    for epoch in epochs:
        flat = [i for batch in epoch for i in batch]
        assert len(flat) == len(set(flat)) == 20
    assert epochs[0] != epochs[1]
    both = [Shuffled(22, 2, rank, 2, seed=3).batch(7).indices.tolist() for rank in range(2)]
    assert both[0] + both[1] == order.batch(7).indices.tolist()
    ranks = [[i for draw in InOrder(10, 3, rank, 2) for i in draw.indices.tolist()] for rank in range(2)]
    assert sorted(i for i in ranks[0] + ranks[1] if i >= 0) == list(range(10))
    assert len(ranks[0]) == len(ranks[1]) == 6


def test_repeats_put_copies_far_apart() -> None:
    order = Shuffled(50, 12, seed=0, repeats=3)
    for draw in order:
        assert len(draw.indices) == 12
        assert sorted(np.unique(draw.indices, return_counts=True)[1].tolist()) == [3, 3, 3, 3]
        assert (draw.indices != np.roll(draw.indices, 1)).all()


class Recorder(lightning.LightningModule):
    """Trains nothing; notes what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.shown: list[tuple[list[int], float]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.shown.append((batch["index"].tolist(), float(batch["images"].double().sum())))
        return self.weight * 0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("image_size", [12, 70])
def test_resume_within_an_epoch_is_exact(tmp_path: Path, image_size: int) -> None:
    root = folder(tmp_path / "a", {"cat": 12, "dog": 12})
    augment = AugmentConfig(crop="resized", policy="rand", mixup=0.2, erasing=0.5)

    def run(steps: int, checkpoint: Path | None = None) -> tuple[Recorder, lightning.Trainer]:
        module = Recorder()
        trainer = lightning.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        data = ImageData(str(root), batch_size=4, image_size=image_size, augment=augment, workers=0)
        trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint))
        return module, trainer

    whole, _ = run(13)
    first, trainer = run(7)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = run(13, tmp_path / "last.ckpt")
    assert len(whole.shown) == 13
    assert first.shown + rest.shown == whole.shown


def test_workers_make_the_same_batches(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 6, "dog": 6})
    settings_ = {"image_size": 70, "augment": AugmentConfig(crop="resized")}
    one = seen(here := made(root, workers=0, **settings_), here.train_dataloader())
    two = seen(there := made(root, workers=2, **settings_), there.train_dataloader())
    assert len(one) == len(two) == 2
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(one, two, strict=True))


def test_decoded_pixels_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "a", {"cat": 6, "dog": 6})
    first = made(root)
    with monkeypatch.context() as patch:
        patch.setattr("triune.vision.data.batches.read_image", lambda *_: pytest.fail("decoded again"))
        patch.setattr("triune.vision.data.scan.look", lambda *_: pytest.fail("checked again"))
        again = made(root)
    assert torch.equal(first.arrays("train")[0], again.arrays("train")[0])  # type: ignore[index]
    picture(1000).save(root / "cat" / "003.png")
    changed = made(root)
    every = [p.numpy().tobytes() for side in ("train", "val") for p in changed.arrays(side)[0]]  # type: ignore[index]
    assert np.asarray(picture(1000)).transpose(2, 0, 1).tobytes() in every


@pytest.mark.parametrize("grey", [True, False])
def test_a_file_is_decoded_once_in_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grey: bool) -> None:
    root = folder(tmp_path / "a", {"cat": 8, "dog": 8})
    if grey:
        for file in root.rglob("*.png"):
            Image.open(file).convert("L").save(file)
    decoded: list[str] = []
    original = images.decode

    def counting(opened: Any, *arguments: Any) -> Any:
        decoded.append(opened.name)
        return original(opened, *arguments)

    for place in ("scan", "images"):
        monkeypatch.setattr(f"triune.vision.data.{place}.decode", counting)
    data = made(root, image_size=[16, 10])
    assert len(decoded) == len(set(decoded)) == 16
    pixels = data.arrays("val")[0]  # type: ignore[index]
    for index, name in enumerate(data.names["val"]):
        expected = data.preprocessing.pixels(Image.open(name), (16, 10))
        assert torch.equal(pixels[index], expected)


def test_an_image_unlike_the_others_changes_what_was_guessed(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 40, "dog": 40})
    names = sorted(root.rglob("*.png"))
    picture(500, (30, 20)).save(names[37])
    data = made(root)
    assert data.image_size == (224, 224)
    pixels = data.arrays("train")[0]  # type: ignore[index]
    assert torch.equal(pixels[5], data.preprocessing.pixels(Image.open(data.names["train"][5]), (224, 224)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_the_range_of_16_bit_files_is_that_of_the_set(tmp_path: Path, bits: int, kind: str) -> None:
    rng, white = np.random.default_rng(0), (1 << bits) - 1
    for name in ("cat", "dog"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for i in range(6):
            values = rng.integers(0, 1 + white // (i + 1), (9, 9), dtype=np.int64).astype(np.uint16)
            values[0, 0] = white if i == 0 else 0
            Image.fromarray(values).save(tmp_path / "a" / name / f"{i}.{kind}")
    data = made(tmp_path / "a")
    assert data.preprocessing.grey_bits == bits
    assert any(f"{bits} bits in 16-bit files" in note for note in data.notes) == (bits != 16)
    for side in ("train", "val"):
        for pixels, name in zip(data.arrays(side)[0], data.names[side], strict=True):  # type: ignore[index]
            expected = np.rint(np.asarray(Image.open(name)).astype(float) * (255 / white))
            assert np.abs(pixels[0].numpy() - expected).max() <= 1
    again = made(tmp_path / "a")
    assert torch.equal(again.arrays("train")[0], data.arrays("train")[0])  # type: ignore[index]


def deep_colour(path: Path, values: np.ndarray) -> None:
    """A PNG of 16-bit colour, which Pillow does not write. `values` uint16 [height, width, 3]."""
    height, width, _ = values.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def test_colour_of_few_bits_in_16_bit_files_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(3):
            values = rng.integers(0, 4096, (9, 9, 3))
            deep_colour(tmp_path / "few" / name / f"{i}.png", values)
            deep_colour(tmp_path / "all" / name / f"{i}.png", values * 16)
    assert made(tmp_path / "all").channels == 3
    with pytest.raises(UserError, match="6 colour images of 16 bits have values below 4,096"):
        made(tmp_path / "few")


def test_floats_of_two_ranges_are_refused(tmp_path: Path) -> None:
    """One almost black image among values up to 255 would become bright."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(3):
            for root, most in (("bytes", 255), ("unit", 1), ("mixed", 255 if i else 0.9)):
                (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
                values = rng.random((9, 9)).astype(np.float32)
                Image.fromarray(values / values.max() * most).save(tmp_path / root / name / f"{i}.tif")
    for root in ("bytes", "unit"):
        assert made(tmp_path / root).channels == 1
    with pytest.raises(UserError, match="Of 6 images of floating-point values 2 reach up to 1 and the others further"):
        made(tmp_path / "mixed")


# --- augmentation -----------------------------------------------------------------------------------------------------


def change(config: AugmentConfig, pixels: Tensor, seed: int = 0) -> Tensor:
    return change_pixels(pixels, config, np.random.default_rng(seed), mirror=True, cropped=False)


def test_nothing_changes_when_everything_is_off() -> None:
    pixels = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8)
    off = AugmentConfig(crop="none", flip=False)
    assert torch.equal(change(off, pixels), pixels.float() / 255)
    still = AugmentConfig(crop="none", flip=False, rotate=1e-9, zoom=1e-9)
    torch.testing.assert_close(change(still, pixels), pixels.float() / 255, atol=1e-4, rtol=0)


def test_padded_crop_moves_each_image_by_its_own_offset() -> None:
    pixels = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    out = (change(AugmentConfig(padding=2, flip=False), pixels) * 255).round().to(torch.uint8)
    padded = torch.nn.functional.pad(pixels[:1], (2,) * 4)
    allowed = {padded[0, 0, y : y + 8, x : x + 8].numpy().tobytes() for y in range(5) for x in range(5)}
    found = {image[0].contiguous().numpy().tobytes() for image in out}
    assert found <= allowed
    assert len(found) == 25


def test_flip_mirrors_about_half_unless_the_data_forbid_it() -> None:
    pixels = torch.zeros(400, 1, 4, 4, dtype=torch.uint8)
    pixels[..., 0] = 255
    flipped = change(AugmentConfig(crop="none"), pixels)[:, 0, 0, 3].sum()
    assert 150 < flipped < 250
    data = made(batch_size=64, augment=AugmentConfig(crop="none"))
    pixels, _ = data.arrays("train") or pytest.fail("digits must be in memory")
    batch = next(iter(data.train_dataloader()))
    shown = data.on_after_batch_transfer(batch)["images"]
    torch.testing.assert_close(shown, data.preprocessing.normalise(pixels[batch["index"]]))  # digits are not mirrored


def test_rotation_turns_by_the_drawn_angle() -> None:
    """A quarter turn is exact, so it can be compared."""
    from triune.vision.data.augment import _warp

    x = torch.rand(1, 1, 6, 6)
    quarter = np.array([[[0.0, 1.0], [-1.0, 0.0]]])
    torch.testing.assert_close(_warp(x, (quarter, np.zeros((1, 2)))), x.rot90(-1, (2, 3)), atol=1e-5, rtol=0)
    moved = _warp(torch.rand(1, 1, 4, 6), (np.eye(2)[None], np.array([[2.0, 0.0]])))
    assert (moved[..., 4:] == 0).all()
    wide = torch.rand(1, 1, 4, 6)
    torch.testing.assert_close(_warp(wide, (np.eye(2)[None], np.array([[2.0, 1.0]])))[..., :3, :4], wide[..., 1:, 2:])


@pytest.mark.parametrize("policy", ["three", "rand", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_the_range_and_are_reproducible(policy: str, channels: int) -> None:
    pixels = torch.randint(0, 256, (64, channels, 12, 16), dtype=torch.uint8)
    config = AugmentConfig(policy=policy, color_jitter=0.4, crop="resized")  # type: ignore[arg-type]
    out = change(config, pixels)
    assert out.shape == pixels.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(out, change(config, pixels))
    assert not torch.equal(out, change(config, pixels, seed=1))


@pytest.mark.parametrize("name", colours.COLOUR)
def test_colour_operations_equal_torchvisions(name: str) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8))
    x[1] //= 3
    x[2, :, :8] = 17
    amount, factor = 0.5, 1 + 0.9 * 0.5
    expected = {
        "brightness": lambda: functional.adjust_brightness(x, factor),
        "color": lambda: functional.adjust_saturation(x, factor),
        "contrast": lambda: functional.adjust_contrast(x, factor),
        "sharpness": lambda: functional.adjust_sharpness(x, factor),
        "posterize": lambda: functional.posterize(x, 6),
        "solarize": lambda: functional.solarize(x, 127.5),
        "autocontrast": lambda: functional.autocontrast(x),
        "equalize": lambda: functional.equalize(x),
    }[name]()
    names, amounts = np.array([name] * 3), np.full(3, amount)
    ours = colours.apply(x.float() / 255, names, amounts, "rand") * 255
    assert (ours - expected.float()).abs().max() < 1.3, "they may differ by rounding"


def test_random_boxes_lie_inside_with_the_asked_area() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = random_box(80, 60, 0.2, rng)
        assert 0 <= left < right <= 80
        assert 0 <= top < bottom <= 60
        areas.append((right - left) * (bottom - top) / 4800)
        assert 0.7 < (right - left) / (bottom - top) < 1.45
    assert min(areas) > 0.17
    assert max(areas) > 0.85
    left, top, right, bottom = random_box(1000, 10, 0.9, rng)
    assert (bottom - top, right - left) == (10, 13)


@pytest.mark.parametrize("kinds", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_labels_are_the_shares_of_the_pixels(kinds: dict[str, float]) -> None:
    batch, classes = 40, 40
    x = torch.arange(batch).float()[:, None, None, None].expand(batch, 1, 20, 20)
    mixed, target = mix(x, torch.arange(batch), classes, AugmentConfig(**kinds), np.random.default_rng(0))
    torch.testing.assert_close(target.sum(1), torch.ones(batch))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), target @ torch.arange(batch).float(), atol=1e-4, rtol=0)
    off, target = mix(x, torch.arange(batch), classes, AugmentConfig(**kinds, mix_chance=0), np.random.default_rng(0))
    assert torch.equal(off, x)
    assert torch.equal(target, torch.eye(batch))


def test_erasing_blanks_one_rectangle() -> None:
    out = erase(torch.ones(300, 2, 20, 20), 0.5, np.random.default_rng(0))
    blank = (out == 0).float()
    touched = blank.flatten(1).any(1)
    assert 110 < int(touched.sum()) < 190
    for image in blank[touched][:20]:
        rows, columns = image[0].any(1), image[0].any(0)
        assert image.sum() == 2 * rows.sum() * columns.sum()
        assert torch.equal(image[0], image[1])


def test_batches_with_mixing_hold_probabilities(tmp_path: Path) -> None:
    data = made(folder(tmp_path / "a", {"cat": 8, "dog": 8}), augment=AugmentConfig(mixup=0.8, cutmix=1.0, erasing=0.5))
    for batch in seen(data, data.train_dataloader()):
        assert batch["labels"].dtype == torch.float32
        torch.testing.assert_close(batch["labels"].sum(1), torch.ones(4))
    assert all(batch["labels"].dtype == torch.int64 for batch in seen(data, data.val_dataloader()))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_photographs_in_formats_that_are_not_read_are_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 10, "dog": 10})
    for i in range(3):
        (root / "cat" / f"{i}.CR2").write_bytes(b"raw")
    said = "3 photographs are left out, since their format is not read (.cr2 3): convert them to JPEG or PNG."
    assert said in made(root).notes
    (root / "emu").mkdir()
    (root / "emu" / "a.jxl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"emu' holds no images.*\.jxl 1"):
        made(root)


def test_unreadable_images_stop_or_are_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 10, "dog": 10})
    (root / "cat" / "bad.jpg").write_text("<html>404")
    (root / "dog" / "empty.png").write_bytes(b"")
    whole = (root / "dog" / "000.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        made(root)
    text = str(error.value)
    for words in (
        "3 of 23 images",
        "bad.jpg' is a web page",
        "empty.png' is empty",
        "cut.png' is",
        "--data.on_error skip",
    ):
        assert words in text
    data = made(root, on_error="skip")
    assert data.skipped == 3
    names = data.names["train"] + data.names["val"]
    assert len(names) == 20
    assert not [name for name in names if name.endswith(("bad.jpg", "empty.png", "cut.png"))]
    for side in ("train", "val"):
        pixels, labels = data.arrays(side)  # type: ignore[misc]
        for name, image, label in zip(data.names[side], pixels, labels, strict=True):
            assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(np.asarray(Image.open(name)).copy()))
            assert data.labels[label] == Path(name).parent.name
    for i in range(15):
        (root / "cat" / f"e{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="and 8 more"):
        made(root)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"cat": 5}, "one class only"),
        ({"cat": 5, "dog": 0}, r"dog' holds no images"),
        ({}, "no class folders"),
    ],
)
def test_class_folders_that_make_no_sense(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    root = tmp_path / "a"
    root.mkdir()
    with pytest.raises(UserError, match=words):
        made(folder(root, counts))


def test_sides_with_other_classes(tmp_path: Path) -> None:
    root = tmp_path / "a"
    folder(root / "train", {"cat": 4, "dog": 4})
    folder(root / "val", {"cat": 2, "cow": 2}, 50)
    with pytest.raises(UserError, match=r"has 'cow' that training lacks and lacks 'dog'"):
        made(root)
    (root / "val" / "dog").mkdir()
    with pytest.raises(UserError, match="has 'cow'"):
        made(root)


def test_all_images_of_a_class_unreadable(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"cat": 5, "dog": 5})
    for file in (root / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="class 'dog' has no training images left"):
        made(root, on_error="skip")


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"batch_size": 0}, "batch_size"),
        ({"channels": 2}, "channels"),
        ({"image_size": [1, 2, 3]}, "image_size"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range(settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ImageData(**settings_)


@pytest.mark.parametrize(
    "settings_", [{"erasing": 2}, {"magnitude": 31}, {"crop": "x"}, {"policy": "x"}, {"repeats": 0}]
)
def test_augmentations_out_of_range(settings_: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings_))):
        AugmentConfig(**settings_)


def test_places_that_do_not_exist_and_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root .* does not exist"):
        made(tmp_path / "no")
    with pytest.raises(UserError, match=r"data\.val_root .* does not exist"):
        made(val_root=str(tmp_path / "no"))
    (tmp_path / "file.xyz").write_text("x")
    with pytest.raises(UserError, match="must be a folder"):
        made(tmp_path / "file.xyz")
    picture(0).save(tmp_path / "loose.png")
    with pytest.raises(UserError, match="1 images but no class folders"):
        made(tmp_path)
    data = made(folder(tmp_path / "few", {"cat": 5, "dog": 5}), batch_size=64)
    batches = list(data.train_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [8], "a folder smaller than a batch is one batch"
    assert "A batch has all 8 training images" in data.describe()


def test_a_file_that_breaks_after_the_check_stops_with_its_name(tmp_path: Path) -> None:
    data = made(folder(tmp_path / "a", {"cat": 5, "dog": 5}), memory=0)
    Path(data.names["val"][1]).write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        list(data.val_dataloader())
    source = data._source("val")
    assert source[Draw(None, np.array([0, -1]))]["labels"].tolist() == [0, -100]
