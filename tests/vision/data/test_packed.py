"""Images in shards: the same batches as from their files, damage in one sentence, work that goes on."""

from __future__ import annotations

import itertools
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from triune.cli import main
from triune.core.errors import UserError
from triune.core.shards import Folder
from triune.core.stores import Cache
from triune.vision.data import packing, scan
from triune.vision.data.augment import AugmentConfig
from triune.vision.data.module import ImageData
from triune.vision.data.packed import packed, read_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes in two forms, and shards of them."""
    root, draw = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    for number in range(40):
        name = root / "images" / "ab"[number % 2] / f"{number}.{'png' if number % 3 else 'jpg'}"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20 + number % 5, 24, 3), dtype=np.uint8)).save(name)
    assert main(["vision", "shard", str(root / "images"), str(root / "out"), "--rows", "9"]) == 0
    return root


def stream(root: Path, cache: Path, **options: Any) -> tuple[ImageData, list[dict[str, Any]]]:
    data = ImageData(root=str(root), image_size=16, batch_size=6, workers=0, cache=str(cache), **options)
    data.setup()
    batches = [*itertools.islice(data.train_dataloader(), 4), *data.val_dataloader()]
    return data, [data.on_after_batch_transfer(batch, 0) for batch in batches]


@pytest.mark.parametrize("options", [{}, {"memory": 0.0, "augment": AugmentConfig(crop="resized")}])
def test_batches_are_those_of_the_files(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    ours, found = stream(folder / "out", tmp_path, **options)
    theirs, expected = stream(folder / "images", tmp_path, **options)
    for batch, wanted in zip(found, expected, strict=True):
        assert batch.keys() == wanted.keys()
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert ours.labels == theirs.labels and ours.names == theirs.names
    assert ours.order_settings() == theirs.order_settings() and ours.trained.content == theirs.trained.content


def test_shards_in_a_store(folder: Path, tmp_path: Path) -> None:
    """The same batches; damage is named by its URL."""
    store: Any = fsspec.filesystem("memory")
    store.put(str(folder / "out"), "/packed", recursive=True)
    options: dict[str, Any] = {"memory": 0.0, "augment": AugmentConfig(crop="resized")}
    data = ImageData(root="memory://packed", image_size=16, batch_size=6, workers=0, cache=str(tmp_path), **options)
    data.setup()
    found = [*itertools.islice(data.train_dataloader(), 4), *data.val_dataloader()]
    found = [data.on_after_batch_transfer(batch, 0) for batch in found]
    for batch, wanted in zip(found, stream(folder / "out", tmp_path, **options)[1], strict=True):
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    content = bytearray(store.cat_file("/packed/train-00000.images"))
    content[50] ^= 1
    store.pipe("/packed/train-00000.images", bytes(content))
    encoded = packed(Folder("memory://packed", Cache(tmp_path / "new", 1e9))).sides["train"]
    with pytest.raises(UserError, match=r"'memory://packed/train-00000\.images' was altered"):
        encoded.source(0)
    store.rm("/packed", recursive=True)


def test_nothing_is_decoded_to_look_at_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {side: scan.scan(images, tmp_path, "") for side, images in packed_and_files(folder)}
    assert records["packed"] == records["files"]
    monkeypatch.setattr(scan, "look", None)  # calling it would fail
    assert scan.scan(packed(folder / "out").sides["train"], tmp_path, "") == records["files"]


def packed_and_files(folder: Path) -> list[tuple[str, Any]]:
    from triune.vision.data.folders import folders

    return [
        ("packed", packed(folder / "out").sides["train"]), ("files", folders(folder / "images").sides["train"])
    ]  # fmt: skip


def test_workers_read_the_same(folder: Path) -> None:
    images = packed(folder / "out").sides["train"]
    first = [images.source(index) for index in range(len(images))]
    again = pickle.loads(pickle.dumps(images))
    assert [again.source(index) for index in range(len(images))] == first
    assert len(images) == 40 and len(read_shards(folder / "out")[1]["train"]) == 5


def test_work_that_was_cut_short_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["vision", "shard", str(folder / "images"), str(tmp_path / "out"), "--rows", "9"]
    write, looked = packing._write, []

    def stop(folder: Path, name: str, found: Any) -> Any:
        if name.endswith("2"):
            raise KeyboardInterrupt
        return write(folder, name, found)

    monkeypatch.setattr(packing, "_write", stop)
    assert main(words) == 130
    with pytest.raises(UserError, match="is not finished"):
        packed(tmp_path / "out")
    monkeypatch.setattr(packing, "_write", write)
    look = packing.look
    monkeypatch.setattr(packing, "look", lambda *a: looked.append(a) or look(*a))
    assert main(words) == 0 and len(looked) == 40 - 18
    assert read_shards(tmp_path / "out")[1] == read_shards(folder / "out")[1]


@pytest.mark.parametrize("what", ["missing", "cut", "altered", "index", "names"])
def test_damage_is_one_sentence(folder: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    one = out / f"train-00001.{ {'index': 'index.npy', 'names': 'names.json'}.get(what, 'images') }"
    content = bytearray(one.read_bytes())
    if what == "missing":
        one.unlink()
    elif what == "cut":
        one.write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        one.write_bytes(content)
    expected = {"missing": "is missing", "cut": "is cut short"}.get(what, "was altered")
    assert main(["vision", "check", str(out), "--cache", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"The shard '{one}' {expected}" in said and said.count("\n") == 1
    with pytest.raises(UserError, match=expected):
        stream(out, tmp_path, memory=0.0)


def test_images_that_cannot_be_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = Path(shutil.copytree(folder / "images", tmp_path / "images"))
    (images / "a" / "broken.png").write_bytes(b"no image")
    assert main(["vision", "shard", str(images), str(tmp_path / "out")]) == 2
    assert "leave such images out: --on_error skip" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert main(["vision", "shard", str(images), str(tmp_path / "out"), "--on_error", "skip"]) == 0
    assert "40 train images, 1 left out" in capsys.readouterr().out
    assert main(["vision", "shard", str(images), str(images), "--on_error", "skip"]) == 2
