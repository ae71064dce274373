"""Image sets in tables: Parquet files and the Hugging Face hub, through the optional `datasets` package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from .collection import Collection, Images, Side, side_of


class Rows:
    """The images of a table: the stored bytes of a column."""

    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __getitem__(self, index: int) -> str | bytes:
        cell = self.table[index][self.column]
        return cell["bytes"] if cell["bytes"] is not None else cell["path"]

    def key(self, index: int) -> tuple[str, int, int] | None:
        # A table's fingerprint changes with its content.
        return f"hf:{self.table._fingerprint}:{index}", 0, 0


def _datasets() -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports] (an optional extra)
    except ImportError:
        raise UserError(
            "Parquet and Hugging Face data need the package datasets: pip install 'triune[datasets]'."
        ) from None
    return datasets


def parquet(path: Path) -> Collection:
    """Parquet files: one, or a folder of them whose names start with train, val(idation) or test.

    Raises:
        UserError: `datasets` is missing, or there is no image or label column.
    """
    datasets = _datasets()
    if (path / "dataset_info.json").exists():
        return _collection({"train": datasets.load_from_disk(str(path))}, str(path))
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.parquet")):
        side = side_of(re.split(r"[^a-zA-Z]", file.name)[0]) or "train"
        files.setdefault(side, []).append(str(file))
    return _collection(datasets.load_dataset("parquet", data_files=files), str(path))


def hub(name: str) -> Collection:
    """A data set of the Hugging Face hub, such as `uoft-cs/cifar10`.

    Raises:
        UserError: `datasets` is missing, the set cannot be loaded, or it has no image or label column.
    """
    try:
        loaded = _datasets().load_dataset(name)
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds
        raise UserError(f"data.dataset 'hf:{name}' cannot be loaded ({str(error).splitlines()[0]}).") from None
    return _collection(loaded, f"hf:{name}")


def _collection(tables: Any, where: str) -> Collection:
    datasets = _datasets()
    parts: dict[Side, Any] = {side: table for name, table in tables.items() if (side := side_of(name))}
    if not parts:
        raise UserError(f"'{where}' has no split called train, validation or test, only {', '.join(tables)}.")
    features = parts.get("train", next(iter(parts.values()))).features
    image = next((n for n, kind in features.items() if isinstance(kind, datasets.Image)), None)
    image = image or ("image" if "image" in features else None)
    candidates = [n for n, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    candidates += [n for n in ("label", "labels", "class", "fine_label") if n in features and n not in candidates]
    if image is None or not candidates:
        raise UserError(f"'{where}' needs a column with images and one with labels, but has {', '.join(features)}.")
    label = candidates[0]
    notes = [f"The classes of '{where}' are those of the column '{label}'."] if len(candidates) > 1 else []
    values = {side: list(table[label]) for side, table in parts.items()}
    for side in [side for side in values if side != "train" and all(x is None or x == -1 for x in values[side])]:
        notes.append(f"The {side} split of '{where}' has no labels and is left out.")
        del parts[side], values[side]
    classes, of = _classes(features[label], values)
    sides: dict[Side, Images] = {}
    for side, table in parts.items():
        missing = sum(x not in of for x in values[side])
        if missing:
            raise UserError(f"'{where}' has {missing:,} rows without a label in its {side} split.")
        labels = np.array([of[x] for x in values[side]], dtype=np.int64)
        images = Rows(table.cast_column(image, datasets.Image(decode=False)), image)
        sides[side] = Images([f"{where} {side} row {i}" for i in range(len(labels))], labels, images)
    return Collection(classes, sides, numbered=hasattr(features[label], "names"), notes=notes)


def _classes(kind: Any, values: dict[Side, list[Any]]) -> tuple[list[str], dict[Any, int]]:
    """Names of the classes, and the class of each value of the column; a null has none."""
    if hasattr(kind, "names"):
        return [str(name) for name in kind.names], {i: i for i in range(len(kind.names))}
    found = {x for column in values.values() for x in column if x is not None}
    # Whole numbers in their own order, anything else as text.
    numbers = all(isinstance(x, int) for x in found)
    known = sorted(found) if numbers else sorted(found, key=str)
    return [str(x) for x in known], {x: i for i, x in enumerate(known)}
