"""Tensors of safetensors files, read and written one by one, so that a model needs no second copy in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
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


CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls the types of tensors."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, which is complete or not there, from one tensor after the other.

    The library's `save` holds two further copies of all tensors, and its `save_file` does not raise OSError on a full
    disk. The layout is of https://github.com/huggingface/safetensors: the length of the header in 8 bytes, the header
    as JSON, filled up with spaces to a multiple of 8 bytes, and the numbers in their own order, low bytes first.

    Args:
        path: its folder is made where it is missing.
        tensors: contiguous, on the CPU, of the types in `CODES`.
        metadata: names and texts for the header.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    # The widest numbers first, so that each tensor begins at a multiple of its width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
