"""Checkpoints that cannot be used, and outputs that cannot be written."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .made import Case, Content, folder, packed, pipe, single, table

INFO = "info {}"
WEIGHTS = struct.pack("<Q", 2) + b"{}"
FILES: list[tuple[str, str, dict[str, Content], str]] = [
    ("no such checkpoint", "none.pt", {}, "no checkpoint"),
    ("an empty folder", "x", {"x": folder}, "config.json"),
    ("a header of 2^62 bytes", "x.safetensors", {"x.safetensors": struct.pack("<Q", 2**62)}, "safetensors"),
    ("a pickle that runs code", "x.pt", {"x.pt": b"cos\nsystem\n(S'true'\ntR."}, "cannot be read|could run code"),
    ("a bomb", "x.pt", {"x.pt": packed(data=bytes(100 << 20))}, "times its size"),
    ("a bomb of arrays", "x.npz", {"x.npz": packed(data=bytes(100 << 20))}, "times its size"),
    ("a GGUF of 2^63 tensors", "x.gguf", {"x.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0)}, "GGUF"),
    ("a GGUF of version 99", "x.gguf", {"x.gguf": b"GGUF" + struct.pack("<IQQ", 99, 0, 0)}, "version 99|GGUF"),
]
CONFIGS: list[tuple[str, Content, str]] = [
    ("an unknown model", b'{"model_type": "x"}', "not supported"),
    ("a config that is a list", b"[]", "must hold an object"),
    ("a config of depth 10,000,000", b"[" * 10_000_000, "nested"),
    ("a config that is a pipe", pipe, "config.json"),
    ("a config with a number of 5,000 digits", b'{"model_type": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ("a config with half a surrogate pair", rb'{"model_type": "\ud800"}', "surrogate"),
]
OUTPUTS: list[tuple[str, str, dict[str, Content], str]] = [
    ("a folder that exists", "convert ok/lm x --to triune", {"x": folder}, "exists already"),
    ("a pipe", "convert ok/lm x --to triune --overwrite", {"x": pipe}, "pipe|folder"),
    ("a file", "convert ok/lm x --to triune --overwrite", {"x": b"mine"}, "folder|file"),
    ("a folder that is no model", "convert ok/lm x --to triune --overwrite", {"x/mine.txt": b"a"}, "no checkpoint"),
    ("a file that exists", "vision export ok/vit --torch-export x.pt2", {"x.pt2": b"mine"}, "exists"),
    ("a pipe as export", "vision export ok/vit --torch-export x.pt2", {"x.pt2": pipe}, "pipe"),
    ("a folder as export", "vision export ok/vit --torch-export x.pt2", {"x.pt2": folder}, "folder"),
    ("a picture that exists", "vision classify ok/a.png --run ok/vit --attention x.png", {"x.png": b"a"}, "exists"),
    ("a pipe as picture", "vision classify ok/a.png --run ok/vit --attention x.png", {"x.png": pipe}, "pipe"),
    ("a report that exists", "vision probe --model ok/vit --data.root ok/img --out x", {"x": b"mine"}, "exists"),
    ("a pipe as report", "vision probe --model ok/vit --data.root ok/img --out x", {"x": pipe}, "pipe"),
    ("scores that exist", "protein dca ok/ok.a3m --force --out out", {"out/ok.dca.npz": b"mine"}, "is there already"),
    ("a pipe as scores", "protein dca ok/ok.a3m --force --out out", {"out/ok.dca.npz": pipe}, "pipe|is there already"),
    ("a file as folder", "protein dca ok/ok.a3m --force --out out", {"out": b"mine"}, "File exists|no folder"),
    (
        "maps that exist",
        "protein contacts ok/ok.a3m --run ok/pair --out out",
        {"out/ok.rr": b"mine"},
        "is there already",
    ),
    (
        "a pipe as map",
        "protein contacts ok/ok.a3m --run ok/pair --out out",
        {"out/ok.png": pipe},
        "pipe|is there already",
    ),
    ("a folder that is no set", "protein prepare x --structures ok/pdb", {"x/mine.txt": b"mine"}, "exists"),
    ("a set that exists", "protein prepare x --structures ok/pdb", {"x/meta.json": b"{}"}, "exists"),
    ("a pipe as set", "protein prepare x --structures ok/pdb --overwrite", {"x": pipe}, "exists|pipe"),
    ("a run that exists", "text fit --run x --data.files ok/ok.txt", {"x/config.yaml": b"a: 1"}, "already holds a run"),
    ("a file as run", "text fit --run x --data.files ok/ok.txt", {"x": b"mine"}, "is a file"),
    ("a pipe as run", "text fit --run x --data.files ok/ok.txt", {"x": pipe}, "is a"),
]


def cases() -> Iterator[Case]:
    """All of this room."""
    for suffix in (".safetensors", ".pt", ".npz", ".gguf", ".onnx", ".bin"):
        contents: list[tuple[str, Content, str]] = [
            (f"an empty {suffix}", b"", "x"),
            (f"a text as {suffix}", b"hello world", "x"),
            (f"a pipe as {suffix}", pipe, "x"),
        ]
        yield from table("checkpoints", INFO, single(suffix, contents))
    yield from table("checkpoints", INFO, FILES)
    weights: dict[str, Content] = {"x/model.safetensors": WEIGHTS}
    rows = [(about, "x", weights | {"x/config.json": config}, words) for about, config, words in CONFIGS]
    yield from table("checkpoints", INFO, rows)
    for about, command, given, words in OUTPUTS:
        yield Case("outputs", about, command, given, words)
