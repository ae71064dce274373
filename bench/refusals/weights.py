"""Weights that cannot be used: GGUF files, safetensors, configurations and numbers of checkpoints."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from .made import Case, Content, folder, pipe, single, table

INFO = "info {}"
USE = "text generate {} --prompt a --max-tokens 2"
SHOW = "vision classify ok/a.png --run {}"
MAP = "protein contacts ok/ok.a3m --run {}"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key of the metadata of a GGUF file; kind 4 is uint32, 8 a string, 9 an array."""
    return text(key) + struct.pack("<I", kind) + value


def gguf(pairs: list[bytes], tensors: list[bytes] = (), data: bytes = bytes(64), **counts: int) -> bytes:  # type: ignore[assignment]
    count, keys = counts.get("count", len(tensors)), counts.get("keys", len(pairs))
    return b"GGUF" + struct.pack("<IQQ", 3, count, keys) + b"".join([*pairs, *tensors]) + data


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, at: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)


LLAMA = pair("general.architecture", 8, text("llama"))
ALIGN = "general.alignment"
GGUFS: list[tuple[str, Content, str]] = [
    ("an alignment of 0", gguf([pair(ALIGN, 4, struct.pack("<I", 0))], [tensor("t", (2,))]), "GGUF"),
    ("an alignment of 3", gguf([pair(ALIGN, 4, struct.pack("<I", 3))], [tensor("t", (2,))]), "GGUF"),
    ("a text as alignment", gguf([pair(ALIGN, 8, text("x"))], [tensor("t", (2,))]), "GGUF"),
    ("an alignment that is no number", gguf([pair(ALIGN, 6, struct.pack("<f", float("nan")))]), "GGUF"),
    ("2^64 - 1 keys", gguf([LLAMA], keys=2**64 - 1), "GGUF"),
    ("a key of 2^63 bytes", gguf([struct.pack("<Q", 2**63)]), "GGUF"),
    ("an array of 2^62 texts", gguf([pair("a", 9, struct.pack("<IQ", 8, 2**62))]), "GGUF"),
    ("an array of 2^62 numbers", gguf([pair("a", 9, struct.pack("<IQ", 4, 2**62))]), "GGUF"),
    ("arrays in arrays", gguf([pair("a", 9, struct.pack("<IQ", 9, 1) * 5000)]), "GGUF"),
    ("a value of no kind", gguf([pair("a", 99, b"")]), "GGUF"),
    ("no architecture", gguf([], [tensor("t", (2,))]), "GGUF|architecture|not supported"),
    ("an architecture that is a number", gguf([pair("general.architecture", 4, bytes(4))]), "not supported|GGUF"),
    ("no settings", gguf([LLAMA], [tensor("token_embd.weight", (2, 2))]), "GGUF|lacks|has no"),
    ("a tensor of 2^62 numbers", gguf([LLAMA], [tensor("t", (2**31, 2**31))]), "GGUF|lacks|has no"),
    ("a tensor of 4,000 axes", gguf([LLAMA], [tensor("t", (1,) * 4000)]), "GGUF|lacks|has no"),
    ("the beginning alone", b"GGUF", "GGUF"),
    ("another byte order", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
]


def safetensors(header: Any, data: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS: list[tuple[str, Content, str]] = [
    ("a header of no JSON", safetensors(b"hello"), "safetensors"),
    ("a header that is a list", safetensors([]), "safetensors"),
    ("a tensor behind the end", safetensors({"a": entry([4], 0, 16)}, bytes(8)), "safetensors"),
    ("tensors on each other", safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "safetensors"),
    ("a negative size", safetensors({"a": entry([-2], 0, 8)}, bytes(8)), "safetensors"),
    ("a size of 2^64", safetensors({"a": entry([2**32, 2**32], 0, 8)}, bytes(8)), "safetensors"),
    ("a type of no kind", safetensors({"a": entry([2], 0, 8, "F7")}, bytes(8)), "safetensors"),
    ("deep nesting", safetensors(b'{"a":' * 10_000), "safetensors"),
]
NO_MODELS: list[tuple[str, str, dict[str, Content], str]] = [
    ("no such folder", "none", {}, "none"),
    ("an empty folder", "x", {"x": folder}, "x"),
    ("a pipe", "x", {"x": pipe}, "x"),
    ("a text", "x.txt", {"x.txt": b"hello"}, "x"),
    ("a name that is not UTF-8", "caf\udce9", {}, "UTF-8"),
    ("an endless device", "/dev/zero", {}, "/dev/zero"),
    ("an empty config.json", "x", {"x/config.json": b""}, "config.json"),
    ("a config.json that is a folder", "x", {"x/config.json": folder}, "config.json|x"),
    ("a config.json and no weights", "x", {"x/config.json": b'{"model_type": "llama"}'}, "x"),
]


def cases() -> Iterator[Case]:
    """All of this room."""
    yield from table("GGUF", USE, single(".gguf", GGUFS))
    yield from table("safetensors", INFO, single(".safetensors", SAFETENSORS))
    for room, command in (("generate", USE), ("classify", SHOW), ("contacts", MAP)):
        yield from table(f"models of {room}", command, NO_MODELS)
