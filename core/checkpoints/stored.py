"""Tensors of safetensors files, read when they are asked for and written where they lie: no second copy of a model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..files import check_regular, written_whole

AT_ONCE = 256 << 20
"""Bytes of tensors that are read before what was mapped of the files is given back."""


class Stored(Mapping[str, Tensor]):
    """The tensors of safetensors files by name.

    Args:
        paths: the files; of a name in several the last counts.

    Raises:
        UserError: a file is damaged, or, when a tensor is asked for, was replaced since.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._open: dict[Path, Any] = {}
        self._marks: dict[Path, tuple[int, int, int]] = {}
        self._read = 0
        self._where = {name: path for path in paths for name in self._file(path).keys()}  # noqa: SIM118 (no mapping)

    def _file(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._open:
            found = check_regular(path).stat()
            mark = found.st_ino, found.st_size, found.st_mtime_ns
            if self._marks.setdefault(path, mark) != mark:  # it is opened again after `AT_ONCE` bytes
                raise UserError(f"'{path}' was replaced while its tensors were read; start again.")
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"'{path}' cannot be read as safetensors ({error}); it was cut short or damaged."
                ) from None
        return self._open[path]

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError

        path = self._where[name]
        try:
            tensor: Tensor = self._file(path).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"'{path}' cannot be read as safetensors ({error}); it was cut short or damaged.") from None
        self._read += tensor.nbytes
        if self._read > AT_ONCE:  # what is still in use stays mapped
            self._open, self._read = {}, 0
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where


class Renamed(Mapping[str, Tensor]):
    """Tensors of another mapping under other names, read when they are asked for.

    Args:
        tensors: under their own names.
        names: the name there of each name here.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, dict(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, which is complete or not there, without a second copy of the tensors in memory.

    Args:
        path: its folder is made where it is missing.
        tensors: contiguous, on the CPU, none in the memory of another.
        metadata: names and texts for the header.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with written_whole(path) as part:
        try:
            save_file(dict(tensors), part, dict(metadata))
        except SafetensorError as error:  # which also stands for what the system said, by its number
            said = re.search(r"os error (\d+)", str(error))
            if said is None:
                raise
            number = int(said[1])
            raise OSError(number, os.strerror(number), str(path)) from None
        with part.open("rb+") as file:
            os.fsync(file.fileno())
