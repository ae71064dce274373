"""Layouts of folders: which folders are classes, which are sides, what is left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triune.core.errors import UserError
from triune.vision.data.collection import Collection
from triune.vision.data.find import Where, find
from triune.vision.data.folders import folders


def counted(collection: Collection) -> dict[str, dict[str, int]]:
    """Images by side and class, of the classes that have some."""
    found: dict[str, dict[str, int]] = {}
    for side, images in collection.sides.items():
        for label in images.labels:
            name = collection.classes[label]
            found.setdefault(side, {}).setdefault(name, 0)
            found[side][name] += 1
    return found


def test_a_class_called_train(tmp_path: Path, pictures: Any) -> None:
    found = folders(pictures.fill(tmp_path, {"train": 3, "bus": 4, "test": 2}))
    assert counted(found) == {"train": {"train": 3, "bus": 4, "test": 2}}
    assert sum("read as a class" in note for note in found.notes) == 2
    split = folders(pictures.fill(tmp_path / "x", {"train/train": 3, "train/bus": 2, "val/train": 1, "val/bus": 1}))
    assert counted(split) == {"train": {"train": 3, "bus": 2}, "val": {"train": 1, "bus": 1}}


def test_folders_beside_train(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    (root / "annotations").mkdir()
    (root / "annotations" / "cat.xml").write_text("<x/>")
    assert counted(folders(root)) == {"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "dog": 1}}
    pictures.fill(root, {"masks": 5})
    found = folders(root)
    assert counted(found)["train"] == {"cat": 2, "dog": 2}
    assert any("masks' is left out: it holds 5 images beside train" in note for note in found.notes)
    with pytest.raises(UserError, match=r"a training folder and also 'bus' with 3 images"):
        folders(pictures.fill(tmp_path / "b", {"train/cat": 2, "train/dog": 2, "bus": 3}))


def test_annotations_beside_class_folders_are_no_class(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"cat": 2, "dog": 2})
    (root / "Annotations").mkdir()
    found = folders(root)
    assert (found.classes, found.empty) == (["cat", "dog"], [])
    assert "no class" in found.notes[0]
    (root / "emu").mkdir()
    assert folders(root).empty == [str(root / "emu")], "any other empty folder may be a class without images"


@pytest.mark.parametrize("name", ["test", "val"])
def test_unlabelled_images_are_left_out(tmp_path: Path, pictures: Any, name: str) -> None:
    for layout in ({name: 4}, {f"{name}/unknown": 4}):
        root = tmp_path / next(iter(layout)).replace("/", "-")
        found = folders(pictures.fill(root, {"train/cat": 2, "train/dog": 2, **layout}))
        assert list(found.sides) == ["train"]
        assert any("is left out" in note for note in found.notes)


def test_only_unlabelled_sides(tmp_path: Path, pictures: Any) -> None:
    with pytest.raises(UserError, match="no class folders"):
        folders(pictures.fill(tmp_path, {"train": 3, "test": 3}))


def test_a_split_within_each_class(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"cat/train": 3, "cat/test": 1, "dog/train": 2, "dog/test": 2})
    assert counted(folders(root)) == {"train": {"cat": 3, "dog": 2}, "test": {"cat": 1, "dog": 2}}
    pictures.fill(root, {"emu": 3})
    with pytest.raises(UserError, match="is divided into train/ and others, but"):
        folders(root)


def test_a_split_within_classes_called_like_sides(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(
        tmp_path / "a", {"train/train": 2, "train/val": 1, "cat/train": 3, "cat/val": 1, "dog/train": 2}
    )
    assert counted(folders(root)) == {"train": {"train": 2, "cat": 3, "dog": 2}, "val": {"train": 1, "cat": 1}}
    with pytest.raises(UserError, match="either can be the classes"):
        folders(pictures.fill(tmp_path / "b", {f"{a}/{b}": 2 for a in ("train", "test") for b in ("train", "test")}))


def test_two_folders_for_one_side(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"train/cat": 1, "train/dog": 1, "val/cat": 1, "dev/cat": 1})
    with pytest.raises(UserError, match="'dev' and 'val', which are both for val"):
        folders(root)


def test_loose_images_and_deeper_folders_are_said(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"cat/a": 2, "cat/b": 1, "dog": 2, ".": 3})
    notes = folders(root).notes
    assert any("3 images directly in" in note for note in notes)
    assert any("not told apart (cat)" in note for note in notes)


def test_names_are_joined_whatever_the_file_system_did_to_them(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"train/caf\u00e9": 2, "train/bar": 2, "val/cafe\u0301": 1, "val/bar": 1})
    assert counted(folders(root))["val"] == {"caf\u00e9": 1, "bar": 1}


def test_a_class_may_be_missing_in_validation(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1, "test/dog": 2})
    found = find(Where(str(root)), tmp_path)
    assert counted(found)["val"] == {"cat": 1}
    assert counted(found)["test"] == {"dog": 2}
    assert "There is no validation image of 'dog'." in found.notes


def test_a_folder_for_one_side_that_holds_several(tmp_path: Path, pictures: Any) -> None:
    train = str(pictures.fill(tmp_path / "a", {"cat": 2, "dog": 2}))
    other = pictures.fill(tmp_path / "b", {"train/cat": 5, "train/dog": 5, "test/cat": 1, "test/dog": 2})
    found = find(Where(train, test_root=str(other)), tmp_path)
    assert counted(found)["test"] == {"cat": 1, "dog": 2}, "its own test folder, not its training folder"
    with pytest.raises(UserError, match="holds train and test sides, but none for val"):
        find(Where(train, val_root=str(other)), tmp_path)


def test_a_root_without_training_images(tmp_path: Path, pictures: Any) -> None:
    with pytest.raises(UserError, match="no training images, only a test side"):
        find(Where(str(pictures.fill(tmp_path, {"test/cat": 1, "test/dog": 2}))), tmp_path)
