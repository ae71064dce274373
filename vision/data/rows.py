"""Image sets in tables: Parquet files and the Hugging Face hub, through the optional `datasets` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from .collection import Collection, Images, Side

_SIDES: dict[str, Side] = {
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
}


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
        name = next((name for name in _SIDES if file.name.lower().startswith(name)), "train")
        files.setdefault(name, []).append(str(file))
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
    parts: dict[Side, Any] = {_SIDES[name]: table for name, table in tables.items() if name in _SIDES}
    if "train" not in parts:
        raise UserError(f"'{where}' has no train split, only {', '.join(tables)}.")
    features = parts["train"].features
    image = next((n for n, kind in features.items() if isinstance(kind, datasets.Image)), None)
    image = image or ("image" if "image" in features else None)
    label = next((n for n, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    label = label or next((n for n in ("label", "labels", "class", "fine_label") if n in features), None)
    if image is None or label is None:
        raise UserError(f"'{where}' needs a column with images and one with labels, but has {', '.join(features)}.")
    kind = features[label]
    texts = {side: table[label] for side, table in parts.items()}
    known = kind.names if isinstance(kind, datasets.ClassLabel) else sorted({str(x) for t in texts.values() for x in t})
    of = {value: i for i, value in enumerate(known)}
    sides: dict[Side, Images] = {}
    for side, table in parts.items():
        named = isinstance(kind, datasets.ClassLabel)
        labels = np.array([x if named else of[str(x)] for x in texts[side]], dtype=np.int64)
        if (labels < 0).any():
            raise UserError(f"'{where}' has {int((labels < 0).sum()):,} rows without a label in its {side} split.")
        images = Rows(table.cast_column(image, datasets.Image(decode=False)), image)
        sides[side] = Images([f"{where} {side} row {i}" for i in range(len(labels))], labels, images)
    return Collection([str(name) for name in known], sides)
