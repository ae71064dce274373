"""GGUF files: their header and their tensors. What they mean is in `gguf_models.py`.

Layout: the specification of GGUF (versions 2 and 3). The `gguf` package of llama.cpp knows the quantised formats; its
reader needs seconds for the vocabulary of a small model, so the header is read here.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """Where a tensor lies: shape (slowest axis first), number of its format, offset in the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What stands before the weights.

    Args:
        path: the file.
        metadata: keys and values.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str, otherwise: Any = None) -> Any:
        """A value of the architecture, such as `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", otherwise)


class _Cursor:
    """Reads the header from front to back."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.content, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        size = self.number("Q")
        start, self.at = self.at, self.at + size
        if self.at > len(self.content):
            raise struct.error("a string ends behind the file")
        return self.content[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in (_STRING, _ARRAY):
            return [self.value(inner) for _ in range(count)]
        size = struct.calcsize("<" + _NUMBERS[inner])
        start, self.at = self.at, self.at + size * count
        return list(np.frombuffer(self.content, "<" + np.dtype(_NUMBERS[inner]).str[1:], count, start).tolist())


def read_header(path: Path) -> Header:
    """Metadata and the table of tensors. Raises UserError for a file that is damaged or of another kind."""
    return _read_header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_header(path: Path, _: int) -> Header:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4] != b"GGUF":
                raise UserError(f"'{path}' is not a GGUF file; it was damaged or is another file.")
            cursor = _Cursor(content)
            cursor.at = 4
            version, count, pairs = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
            if version not in (2, 3):
                raise UserError(f"'{path}' is GGUF of version {version}, but only 2 and 3 (little-endian) can be read.")
            metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(pairs)}
            infos = [(cursor.text(), *_info(cursor)) for _ in range(count)]
            align = int(metadata.get("general.alignment", 32))
            data = -(-cursor.at // align) * align
    except (struct.error, KeyError, ValueError, TypeError, MemoryError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' cannot be read as GGUF ({error}); it was cut short or damaged.") from None
    return Header(path, metadata, {name: TensorInfo(shape, kind, data + at) for name, shape, kind, at in infos})


def _info(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
    return shape[::-1], cursor.number("I"), cursor.number("Q")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a file as float32, each read and dequantised when it is asked for: no second copy of the model.

    Raises UserError where the file is cut short, has a format the `gguf` package does not know, or that is missing.
    """

    def __init__(self, header: Header) -> None:
        self.header = header

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def __getitem__(self, name: str) -> Tensor:
        info, path = self.header.tensors[name], self.header.path
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError:
            raise UserError(f"'{path}' is a GGUF file; reading it needs: pip install 'triune[gguf]'.") from None
        try:
            kind = GGMLQuantizationType(info.kind)
            block, size = GGML_QUANT_SIZES[kind]
            blocks = math.prod(info.shape) // block
            # The package goes through a tensor sixteen rows at a time: long rows are faster.
            row = math.gcd(blocks, 2048)
            raw = np.asarray(np.memmap(path, np.uint8, "r", info.offset, (blocks // row, row * size)))
            values = np.array(dequantize(raw, kind), dtype=np.float32, copy=None if kind.name != "F32" else True)
            return torch.from_numpy(values).view(info.shape)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"'{name}' of '{path}' cannot be read ({error}); it was cut short or damaged.") from None
        except NotImplementedError as error:
            raise UserError(f"'{name}' of '{path}' cannot be read ({error}); take a file with Q4_K or Q8_0.") from None
