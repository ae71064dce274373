"""GGUF files: their header and their tensors. What they mean is in `gguf_families.py`.

Layout: the specification of GGUF (versions 2 and 3). The `gguf` package of llama.cpp knows the quantised formats; its
reader needs seconds for the vocabulary of a small model, so the header is read here.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.files import check_regular

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MOST_VALUES = 1 << 22
"""Values of all lists together: a vocabulary has some hundred thousand, and each takes up to a hundred bytes here."""
MOST_NESTED = 2
"""Lists within each other."""
MOST_AXES = 4
"""Of a tensor, as in the original."""


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


class _Damaged(Exception):
    """What is wrong with a header; the end of a sentence, in words."""


class _Cursor:
    """Reads the header from front to back; nothing that it says is believed before the file is long enough for it."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at, self.values = content, 0, 0

    def number(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self.room(size, "its header")
        (value,) = struct.unpack_from("<" + code, self.content, self.at)
        self.at += size
        return value

    def count(self, least: int, what: str) -> int:
        """A number of things of at least `least` bytes each."""
        count = self.number("Q")
        self.room(count * least, f"{count:,} {what}")
        return count

    def room(self, size: int, what: str) -> None:
        if self.at + size > len(self.content):
            raise _Damaged(f"it is too short for {what}")

    def text(self) -> str:
        size = self.number("Q")
        self.room(size, f"a text of {size:,} bytes")
        start, self.at = self.at, self.at + size
        return self.content[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(self.code(kind))
        inner = self.number("I")
        size = {_STRING: 8, _ARRAY: 12}.get(inner) or struct.calcsize("<" + self.code(inner))
        count = self.count(size, "values of a list")
        self.values += count
        if self.values > MOST_VALUES or depth >= MOST_NESTED:
            raise _Damaged(
                f"it has lists of more than {MOST_VALUES:,} values, or more than {MOST_NESTED} in each other"
            )
        if inner in (_STRING, _ARRAY):
            return [self.value(inner, depth + 1) for _ in range(count)]
        start, self.at = self.at, self.at + size * count
        return list(np.frombuffer(self.content, "<" + np.dtype(_NUMBERS[inner]).str[1:], count, start).tolist())

    @staticmethod
    def code(kind: int) -> str:
        if kind not in _NUMBERS:
            raise _Damaged(f"it has a value of the unknown kind {kind}")
        return _NUMBERS[kind]


def read_header(path: Path) -> Header:
    """Metadata and the table of tensors. Raises UserError for a file that is damaged or of another kind."""
    return _read_header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_header(path: Path, _: int) -> Header:
    try:
        with check_regular(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4] != b"GGUF":
                raise UserError(f"'{path}' is not a GGUF file; it was damaged or is another file.")
            cursor = _Cursor(content)
            cursor.at = 4
            _check_version(path, cursor.number("I"))
            count, pairs = cursor.count(24, "tensors"), cursor.count(12, "pairs of metadata")
            metadata = _unique(((cursor.text(), cursor.value(cursor.number("I"))) for _ in range(pairs)), "key")
            infos = _unique(((cursor.text(), _info(cursor)) for _ in range(count)), "tensor")
            align = metadata.get("general.alignment", 32)
            if type(align) is not int or align < 1 or align % 8:
                raise _Damaged(f"its general.alignment is {align!r}, but must be a positive multiple of 8")
            data = -(-cursor.at // align) * align
            _check_places(infos, align, len(content) - data)
    except (_Damaged, ValueError, OSError) as error:  # the last ones: of an empty file
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' cannot be read as GGUF ({error}); it was cut short or damaged.") from None
    return Header(path, metadata, {name: at._replace(offset=data + at.offset) for name, at in infos.items()})


def _check_version(path: Path, version: int) -> None:
    if version in (2, 3):
        return
    turned = int.from_bytes(version.to_bytes(4, "little"), "big")
    if turned in (2, 3):
        raise UserError(f"'{path}' is a GGUF file for big-endian machines; take one for little-endian ones.")
    raise UserError(
        f"'{path}' is GGUF of version {version}, but must be of version 2 or 3; make it anew with a current converter."
    )


def _unique(pairs: Iterable[tuple[str, Any]], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Damaged(f"it has the {what} '{name[:80]}' twice")
        found[name] = value
    return found


def _info(cursor: _Cursor) -> TensorInfo:
    axes = cursor.number("I")
    if axes > MOST_AXES:
        raise _Damaged(f"it has a tensor of {axes:,} axes, more than {MOST_AXES}")
    shape = tuple(cursor.number("Q") for _ in range(axes))
    return TensorInfo(shape[::-1], cursor.number("I"), cursor.number("Q"))


def _check_places(infos: Mapping[str, TensorInfo], align: int, size: int) -> None:
    """Tensors lie within the file, one behind the other."""
    sizes = _block_sizes()
    end, last = 0, ""
    for name, info in sorted(infos.items(), key=lambda item: item[1].offset):
        shown, count = name[:80], math.prod(info.shape)
        if not count:
            raise _Damaged(f"its tensor '{shown}' has a length of 0 in its shape {info.shape}")
        if info.offset % align:
            raise _Damaged(f"its tensor '{shown}' does not begin at a multiple of {align}")
        if info.offset < end:
            raise _Damaged(f"its tensors '{last}' and '{shown}' lie over each other")
        block, bytes_ = sizes.get(info.kind, (1, 0))  # what is not known here is refused where it is read
        if info.shape[-1:] and info.shape[-1] % block:
            raise _Damaged(f"rows of its tensor '{shown}' have {info.shape[-1]:,} values, no multiple of {block}")
        end, last = info.offset + count // block * bytes_, shown
        if end > size:
            raise _Damaged(f"its tensor '{shown}' of the shape {info.shape} ends behind the file")


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Values and bytes of a block of each format; nothing without the `gguf` package."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        return {}
    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


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
