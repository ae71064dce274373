"""GGUF files written: header, then one tensor after the other, so that no second copy of the model is needed.

Layout: the specification of GGUF, version 3.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 32
_ARRAYS = {"uint8": 0, "int8": 1, "int32": 5, "float32": 6, "bool": 7}


class Planned(NamedTuple):
    """A tensor that will be written.

    shape: slowest axis first.
    kind: number of its format.
    size: bytes.
    content: makes them.
    """

    shape: tuple[int, ...]
    kind: int
    size: int
    content: Callable[[], np.ndarray]


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A value with its type before it: numbers are uint32, int32 (negative ones) and float32, lists have one type."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, _ARRAYS[value.dtype.name], len(value)) + value.tobytes()
    if value and isinstance(value[0], bool):
        return _value(np.array(value, dtype=bool))
    texts = [_text(text) for text in value]
    return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(texts)


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Planned]) -> None:
    """Writes a file: metadata (bool, int, float, text, list of texts, or an array of one axis), then the tensors.

    Raises:
        ValueError: a tensor does not have the size that was planned.
    """
    infos: list[bytes] = []
    offset = 0
    for name, planned in tensors.items():
        axes: Sequence[int] = planned.shape[::-1]
        infos.append(_text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, planned.kind, offset))
        offset += planned.size + _padding(planned.size)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        file.write(b"".join(infos))
        file.write(bytes(_padding(file.tell())))
        for name, planned in tensors.items():
            content = planned.content()
            if content.nbytes != planned.size:
                raise ValueError(f"{name} has {content.nbytes:,} bytes, not {planned.size:,}")
            file.write(content.data if content.flags.c_contiguous else content.tobytes())
            file.write(bytes(_padding(planned.size)))
        file.flush()
        os.fsync(file.fileno())
