"""Data sets with splits as sources of text: a name on the Hugging Face hub, what `save_to_disk` wrote, Parquet."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.errors import UserError
from ...core.files import few
from ...core.stores import Cache, Remote, found, is_url, local_path
from .columns import saved_files, saved_set
from .corpus import Corpus
from .split import Side

OF_SIDE: dict[str, Side | None] = {
    "train": "train", "training": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val",
    "test": None, "testing": None,
}  # fmt: skip
"""Which side a split is; None for those that are left out."""
LEFT_OUT = "file of a test split"


def find_set(
    name: str, text_field: str = "text", skip_bad: bool = False, cache: Cache | None = None
) -> tuple[Corpus, Corpus | None]:
    """The texts of a data set for training, and those of its validation split, if it has one.

    Args:
        name: a folder that `save_to_disk` of the package datasets wrote; a Parquet file, or a folder or URL with such
            files, whose names or folders begin with train, validation or test; else a name on the Hugging Face hub,
            `owner/name` or `owner/name:configuration`, with or without `hf:` before it.
        text_field, skip_bad, cache: see `Corpus`.

    Raises:
        UserError: there is no such set, it has no split for training, or a package is missing.
    """
    cache = cache or Cache.of(None)
    splits = _splits(name)
    sides: dict[Side, list[tuple[Path | Remote, bool]]] = {}
    skipped: Counter[str] = Counter()
    if len(splits) == 1 and "train" not in splits:
        splits = {"train": next(iter(splits.values()))}
    for split, files in splits.items():
        side = OF_SIDE.get(split.lower())
        if side is None:
            skipped[LEFT_OUT] += len(files)
        else:
            sides.setdefault(side, []).extend((file, True) for file in files)
    if "train" not in sides:
        raise UserError(f"'{name}' has no split called train, only {few(sorted(splits))}; give another data set.")
    train = Corpus(sides["train"], text_field, skip_bad, cache, skipped)
    return train, Corpus(sides["val"], text_field, skip_bad, cache) if "val" in sides else None


def _splits(name: str) -> dict[str, Any]:
    """The files of each split."""
    if not name.strip():
        raise UserError("data.dataset is empty, but must name a data set; leave it out for none.")
    if is_url(name) and (path := local_path(name)) is None:
        return _by_name({file: _below(file.url, name) for file in found(name)}, name)
    path = Path(str(local_path(name)) if is_url(name) else name.removeprefix("hf:")).expanduser()
    if name.startswith("hf:") or not path.exists():
        return _of_hub(name)
    if path.is_dir() and saved_set(path):
        return dict(saved_files(path))
    files = {path: path.name} if path.is_file() else {file: _below(str(file), str(path)) for file in path.rglob("*")}
    return _by_name(files, name)


def _below(file: str, folder: str) -> str:
    """The part of a name behind the folder's; the last part where that is nothing."""
    return file.removeprefix(folder.rstrip("/")).strip("/") or PurePosixPath(file).name


def _by_name(files: dict[Any, str], where: str) -> dict[str, list[Any]]:
    """Parquet files by the split that their name, or else one of their folders, begins with; else all are train."""
    splits: dict[str, list[Any]] = {}
    for file, name in sorted(files.items(), key=lambda item: item[1]):
        if not name.lower().endswith((".parquet", ".arrow")) or PurePosixPath(name).name.startswith("."):
            continue
        words = [re.split(r"[^a-zA-Z]", part)[0].lower() for part in reversed(PurePosixPath(name).parts)]
        split = next((word for word in words if word in OF_SIDE), "train")
        splits.setdefault(split, []).append(file)
    if not splits:
        raise UserError(
            f"'{where}' holds no Parquet file, and is none that `save_to_disk` wrote; texts of other kinds are read by"
            " --data.files."
        )
    return splits


def _of_hub(name: str) -> dict[str, list[Path]]:
    """The Arrow files into which the package datasets puts a set of the hub; without a network what it has kept."""
    if not re.fullmatch(r"(hf:)?[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", name):
        raise UserError(f"There is no file or folder '{name}', and a name on the hub is owner/name; give one of them.")
    try:
        import datasets  # pyright: ignore[reportMissingImports] (an optional extra)
    except ImportError:
        raise UserError(
            f"There is no file or folder '{name}', and to look for it on the Hugging Face hub needs the package"
            " datasets: pip install 'triune[datasets]'."
        ) from None
    plain, _, configuration = name.removeprefix("hf:").partition(":")
    try:
        loaded = datasets.load_dataset(plain, configuration or None)
    except Exception as error:  # the library raises many kinds
        text = str(error).strip().splitlines()
        raise UserError(f"data.dataset '{name}' cannot be loaded ({(text or ['no reason'])[0].rstrip('.')}).") from None
    return {str(split): [Path(file["filename"]) for file in table.cache_files] for split, table in loaded.items()}
