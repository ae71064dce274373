"""Image sets that are arrays: scikit-learn's digits, IDX files, the sets torchvision downloads."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError, nearest
from ...core.files import open_regular
from .collection import Collection, Images, Paths, Side, side_of

_IDX = re.compile(r"(?P<part>.+?)[-.]images[-.]idx3[-.]ubyte(?P<gz>\.gz)?$")
_MAX_GROWTH = 1032  # the most that a byte of gzip can stand for
NAMED = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "Flowers102", "OxfordIIITPet")


def digits() -> Collection:
    """The 1,797 handwritten digits of 8×8 pixels in scikit-learn (NIST, E. Alpaydin and C. Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "The built-in digits need scikit-learn (pip install scikit-learn); or give --data.root."
        ) from None
    values, labels = load_digits(return_X_y=True)
    # Each pixel counts the inked dots of a 4×4 square, 0 to 16.
    array = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = _images(array, labels.astype(np.int64), "digit")
    return Collection([str(digit) for digit in range(10)], {"train": images}, numbered=True, mirror=False)


def _images(array: np.ndarray, labels: np.ndarray, name: str) -> Images:
    return Images([f"{name} {i}" for i in range(len(labels))], labels, array=array)


def idx_files(folder: Path) -> dict[str, Path]:
    """The image files in MNIST's format in a folder, by what stands before "-images"."""
    return {match["part"]: path for path in sorted(folder.iterdir()) if (match := _IDX.match(path.name))}


def idx(folder: Path) -> Collection:
    """`train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]` and the same for `t10k` or `test`.

    Raises:
        UserError: a file is missing, cut short, or not in this format.
    """
    sides: dict[Side, Images] = {}
    for part, path in idx_files(folder).items():
        side = "test" if part == "t10k" else side_of(part)
        if side is None:
            continue
        names = [path.name.replace("images", "labels").replace("idx3", "idx1")]
        names.append(names[0].removesuffix(".gz") if names[0].endswith(".gz") else names[0] + ".gz")
        beside = next((folder / name for name in names if (folder / name).is_file()), None)
        if beside is None:
            raise UserError(f"'{path}' has no labels beside it ({names[0]}).")
        array, labels = read_idx(path, 3), read_idx(beside, 1).astype(np.int64)
        if len(array) != len(labels):
            raise UserError(f"'{path}' holds {len(array):,} images, but '{beside}' {len(labels):,} labels.")
        sides[side] = _images(array, labels, part)
    if not sides:
        raise UserError(f"'{folder}' holds no train-images-idx3-ubyte, only {', '.join(idx_files(folder))}.")
    classes = 1 + max(int(side.labels.max(initial=0)) for side in sides.values())
    # Files of this kind hold digits as often as clothes, and no hint which.
    return Collection([str(i) for i in range(classes)], sides, numbered=True, mirror=False)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An uint8 array of `axes` dimensions from an IDX file, gzipped or not (Y. LeCun's format).

    Raises:
        UserError: another format, or a file shorter or longer than its header says.
    """
    try:
        with open_regular(path) as file:
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes([0, 0, 8, axes]):
                raise UserError(
                    f"'{path}' is not an IDX file of {axes}-dimensional bytes (it starts with {header[:4].hex()})."
                )
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
            expected = int(np.prod(shape, dtype=np.float64))
            # gzip packs at most to a thousandth; without it the file must be as long as the header says.
            most = _MAX_GROWTH * path.stat().st_size
            if not 0 < expected <= most:
                raise UserError(
                    f"'{path}' claims {expected:,} bytes {shape}, but can hold at most {most:,}, and at least one."
                )
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read ({error}): download it again.") from None
    if len(content) != expected:
        much = "more" if len(content) > expected else f"{len(content):,}"
        raise UserError(f"'{path}' should hold {expected:,} bytes {shape}, but holds {much}: download it again.")
    return np.frombuffer(content, np.uint8).reshape(shape)


def named(dataset: str, root: str | None, cache: Path) -> Collection:
    """A set that torchvision knows, downloaded into `root` (or the cache) if it is not there yet.

    Raises:
        UserError: an unknown name, or no way to download it.
    """
    if dataset not in NAMED:
        raise UserError(
            f"data.dataset is '{dataset}'{nearest(dataset, NAMED)}, but must be one of {', '.join(NAMED)}, or "
            "hf:owner/name from the Hugging Face hub."
        )
    folder = Path(root).expanduser() if root else cache / "torchvision"
    try:
        return _torchvision(dataset, folder)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{dataset} cannot be loaded from or downloaded to '{folder}' ({error}): check the network, or put the "
            "files there."
        ) from None


def _torchvision(dataset: str, folder: Path) -> Collection:
    from torchvision import datasets

    kind: Any = getattr(datasets, dataset)
    if dataset in ("Flowers102", "OxfordIIITPet"):
        parts: dict[Side, str] = {"train": "train", "val": "val", "test": "test"}
        if dataset == "OxfordIIITPet":
            parts = {"train": "trainval", "test": "test"}
        loaded = {side: kind(str(folder), split=part, download=True) for side, part in parts.items()}
        sides: dict[Side, Images] = {}
        for side, data in loaded.items():
            paths = [str(path) for path in (data._images if dataset == "OxfordIIITPet" else data._image_files)]
            sides[side] = Images(paths, np.array(data._labels, dtype=np.int64), Paths(paths))
        return Collection(list(loaded["train"].classes), sides, numbered=True)
    loaded = {side: kind(str(folder), train=side == "train", download=True) for side in ("train", "test")}
    sides = {
        side: _images(
            torch.as_tensor(data.data).numpy(),
            torch.as_tensor(data.targets).numpy().astype(np.int64),
            f"{dataset} {side}",
        )
        for side, data in loaded.items()
    }
    return Collection(list(loaded["train"].classes), sides, numbered=True, mirror=dataset != "MNIST")
