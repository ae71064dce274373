"""Folders of images: one folder for each class, alone or within train/, val/ and test/ (torchvision's ImageFolder)."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...core.errors import UserError
from ...core.files import check_name, few
from .collection import SIDES, Collection, Images, Paths, Side, side_of
from .images import EXTENSIONS, UNREAD
from .names import join

LAYOUT = "give it one folder for each class (cats/…, dogs/…), or train/ and val/ folders that hold those"
_NO_CLASSES = {
    "annotation", "annotations", "docs", "imagesets", "labels", "lists", "masks", "meta", "metadata", "splits",
}  # fmt: skip
"""Names of folders that data sets have beside their class folders; such a folder without images is no class."""
_SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    # "._cat.jpg" is what macOS leaves beside "cat.jpg"
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def walk(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """The image files at any depth, sorted within each folder, and the number of other files by their ending.

    Hidden files and folders are passed over, and linked folders are followed, each once. `fit`, `check` and `classify`
    all find images with this. Raises UserError for a name that is not UTF-8: tables, caches and pictures hold names.
    """
    found: list[str] = []
    others: Counter[str] = Counter()
    for path, files in _visited(folder):
        for name in files:
            if is_image(name):
                found.append(check_name(os.path.join(path, name)))
            elif not name.startswith("."):
                others[os.path.splitext(name)[1].lower() or "no ending"] += 1
    return found, others


def unread_note(others: Counter[str]) -> list[str]:
    """A sentence about photographs among the other files (by their ending) of a folder, if there are any."""
    kinds = [f"{ending} {count:,}" for ending, count in others.most_common() if ending in UNREAD]
    count = sum(others[ending] for ending in UNREAD)
    photos = "photograph is" if count == 1 else "photographs are"
    return [
        f"{count:,} {photos} left out, since their format is not read ({few(kinds)}): convert them to JPEG or PNG."
    ] * (count > 0)


def collect(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Image files behind file names, folders and globs, each once, and sentences about inputs that hold none.

    Photographs in folders whose format is not read are said on standard error.
    """
    files: dict[str, None] = {}
    problems = []
    for text in inputs:
        path, found = Path(text), [text]
        if path.is_dir():
            found, others = walk(path)
            found.sort()
            for note in unread_note(others):
                print(f"note: '{text}': {note}", file=sys.stderr)
        elif not path.exists() and glob.has_magic(text):
            found = sorted(f for f in glob.glob(text, recursive=True) if Path(f).is_file())
        if not found:
            problems.append(f"'{text}' {'holds no image files' if path.is_dir() else 'matches no file'}.")
        files |= dict.fromkeys(found)
    return list(files), problems


def _visited(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Each visible folder at any depth, from the top, and the names of its files in sorted order."""
    visited: set[str] = set()
    for path, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted(filter(_visible, inner))
        yield path, sorted(files)


def _holds_images(folder: Path) -> bool:
    """Whether there is an image at any depth; stops at the first."""
    return any(is_image(name) for _, files in _visited(folder) for name in files)


def folders(root: Path) -> Collection:
    """Class folders, or folders of them called train, val and test (or training, validation, dev, …).

    Also read is a split within each class (cats/train/…, cats/test/…). A folder `train` with images of its own is a
    class of that name; a folder `test` or `val` without class folders holds unlabelled images and is left out. Such
    readings are in the collection's notes.

    Raises:
        UserError: no class folders, or folders that can be read in two ways.
    """
    root = descend(root)
    inner = _subfolders(root)
    classes, more = _without_sidecars(inner)
    if split := _split_within(classes):
        if all(side_of(folder.name) for folder in classes):
            raise UserError(
                f"'{root}' holds {_names(classes)}, and each of them train/ and others, so either can be the classes: "
                "rename the class folders."
            )
        return _collection(root, split, [*more, "The split within each class folder is used."])
    named = {
        folder: side
        for folder in inner
        if (side := side_of(folder.name)) and any(map(_holds_images, _subfolders(folder)))
    }
    if "train" in named.values() or (named and len(named) == len(inner)):
        return _sides(root, inner, named)
    if inner and all(side_of(folder.name) for folder in inner):
        raise UserError(
            f"'{root}' holds {_names(inner)} with images, but these hold no class folders: {LAYOUT}; unlabelled images "
            "are for `triune vision classify`."
        )
    notes = [
        f"The folder '{folder.name}' of '{root}' is read as a class: there are no train/ and val/ of class folders."
        for folder in inner
        if side_of(folder.name)
    ]
    if not classes:
        loose = _loose(root)
        held = f"{loose:,} images but no class folders" if loose else "no class folders"
        raise UserError(f"'{root}' holds {held}: {LAYOUT}.")
    _refuse_half_split(classes)
    return _collection(root, {"train": {folder.name: folder for folder in classes}}, [*notes, *more])


def _sides(root: Path, inner: list[Path], named: dict[Path, Side]) -> Collection:
    """The collection of a folder that holds train/ and the like."""
    sides: dict[Side, Path] = {}
    for folder, side in named.items():
        if side in sides:
            raise UserError(
                f"'{root}' holds '{sides[side].name}' and '{folder.name}', which are both for {side}: keep one of them."
            )
        sides[side] = descend(folder)
    classes: dict[Side, dict[str, Path]] = {side: {} for side in sides}
    notes = []
    for side, folder in sides.items():
        kept, more = _without_sidecars(_subfolders(folder))
        classes[side] = {path.name: path for path in kept}
        notes += [*more, *_note_loose(folder)]
    training = set(classes.get("train", ()))
    common = any(side != "train" and training & set(of) for side, of in classes.items())
    for folder in inner:
        if folder in named:
            continue
        images = len(walk(folder)[0])
        if images and side_of(folder.name) is None and not common:
            raise UserError(
                f"'{root}' holds a training folder and also '{folder.name}' with {images:,} images, so either both are "
                f"classes or '{folder.name}' is no part of the data: give --data.root "
                f"'{next(path for path, side in named.items() if side == 'train')}', or keep only train, val and test."
            )
        if images:
            what = "without class folders, so they are unlabelled" if side_of(folder.name) else "beside train"
            notes.append(f"'{folder}' is left out: it holds {images:,} images {what}.")
    for side in [side for side in ("val", "test") if side in classes]:
        unknown = sorted(set(classes[side]) - training)
        if training and len(classes[side]) == 1 and unknown:
            notes.append(f"'{sides[side]}' is left out: it holds only '{unknown[0]}', which is no class of training.")
            del classes[side]
    return _collection(root, classes, notes)


def _split_within(classes: list[Path]) -> dict[Side, dict[str, Path]]:
    """By side the folder of each class, where every class folder holds train/ and nothing but sides; else empty."""
    found: dict[Side, dict[str, Path]] = {}
    for folder in classes:
        inner = _subfolders(folder)
        sides = {side: path for path in inner if (side := side_of(path.name))}
        if "train" not in sides or len(sides) != len(inner) or _loose(folder):
            return {}
        for side, path in sides.items():
            if _holds_images(path):
                found.setdefault(side, {})[folder.name] = path
    return found if len(found) > 1 and len(classes) > 1 else {}


def _refuse_half_split(classes: list[Path]) -> None:
    """Raises UserError when some class folders, but not all, are divided into train/ and others."""
    divided = []
    for folder in classes:
        sides = {side_of(path.name) for path in _subfolders(folder)} - {None}
        if "train" in sides and len(sides) > 1:
            divided.append(folder)
    if divided:
        whole = next((folder for folder in classes if folder not in divided), divided[0])
        raise UserError(
            f"The class folder '{divided[0]}' is divided into train/ and others, but '{whole}' holds images that are "
            "not: divide all of them, or none."
        )


def _collection(root: Path, sides: dict[Side, dict[str, Path]], notes: list[str]) -> Collection:
    """The images of folders by side and class; the classes are those of training, or of all sides without that."""
    classes = sorted(sides.get("train") or {name for of in sides.values() for name in of})
    collection = Collection(classes, {}, notes=[*notes, *_note_loose(root)])
    parts: dict[Side, tuple[list[str], list[str]]] = {}
    deep = []
    for side, of in sorted(sides.items(), key=lambda item: SIDES.index(item[0])):
        names: list[str] = []
        texts: list[str] = []
        for text, folder in of.items():
            found, others = walk(folder)
            names += found
            texts += [text] * len(found)
            collection.others += others
            if not found:
                collection.empty += [str(folder)] * (side == "train")
            elif len({os.path.dirname(name) for name in found}) > 1 and not _loose(folder):
                deep.append(folder.name)
        parts[side] = names, texts
    if deep:
        collection.notes.append(f"Folders within a class folder are not told apart ({few(list(dict.fromkeys(deep)))}).")
    for side, (names, texts) in parts.items():
        labels = join(texts, classes, str(next(iter(sides[side].values())).parent) if names else side)
        collection.sides[side] = Images(names, labels, Paths(names))
    return collection


def descend(folder: Path) -> Path:
    """Passes through folders that hold nothing but one folder of folders, as archives often do."""
    while True:
        inner = _subfolders(folder)
        if len(inner) != 1 or not _subfolders(inner[0]) or _loose(folder):
            return folder
        if side_of(inner[0].name):
            return folder
        folder = inner[0]


def _without_sidecars(inner: list[Path]) -> tuple[list[Path], list[str]]:
    """Class folders without those that are none by name and hold no image, and sentences about the latter."""
    aside = [folder for folder in inner if folder.name.lower() in _NO_CLASSES and not _holds_images(folder)]
    kept = [folder for folder in inner if folder not in aside]
    return kept, [f"'{folder}' holds no images and is no class." for folder in aside]


def _note_loose(folder: Path) -> list[str]:
    loose = _loose(folder)
    return [f"{loose:,} images directly in '{folder}' belong to no class and are left out."] if loose else []


def _loose(folder: Path) -> int:
    """Images directly in a folder."""
    return sum(is_image(path.name) for path in folder.iterdir())


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path.name))


def _visible(name: str) -> bool:
    return not name.startswith((".", *_SYSTEM))


def _names(paths: list[Path]) -> str:
    return few([f"'{path.name}'" for path in paths])
