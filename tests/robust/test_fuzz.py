"""Whatever bytes a parser gets, it returns or raises UserError, in bounded time.

Few examples run here, always the same ones in CI. By hand: `pytest tests/robust/test_fuzz.py --hypothesis-profile=long`
(about ten minutes).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.checkpoints.source import read_pickle
from triune.core.embeddings.store import read_vectors, write_vectors
from triune.core.errors import UserError
from triune.core.files import parse_json, read_arrays, read_json, read_safetensors, read_table
from triune.core.labels.table import read_table as read_labels
from triune.core.labels.targets import infer
from triune.core.training.run.arguments import check_yaml
from triune.core.training.run.plot import read_metrics
from triune.core.training.run.recipes import list_recipes
from triune.core.yaml_files import read_yaml
from triune.protein.data.prepare.promod3 import read_promod3
from triune.protein.data.prepare.sources import read_split
from triune.protein.read.alignment import read_alignment
from triune.protein.read.inputs import read_input
from triune.protein.read.structure import read_chains
from triune.text.checkpoints.gguf import read_header
from triune.text.data.corpus import find
from triune.text.data.messages import read_conversations
from triune.text.tokenizer import Tokenizer
from triune.vision.data.arrays import read_idx
from triune.vision.data.images import read_image

SECONDS = 20.0
EXAMPLES = 15 if settings().max_examples <= 100 else settings().max_examples


def _npz() -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, name=["a"], x=np.arange(6, dtype=np.float32).reshape(2, 3))
    return content.getvalue()


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": ["a", "b"], "y": [0.5, 1.5]}), content)
    return content.getvalue()


def _vectors(ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder, f"x{ending}"), ["a", "b"], np.eye(2, 3, dtype=np.float32), about={"model": "m"})
        return Path(folder, f"x{ending}").read_bytes()


def labels(path: Path, kind: str | None = None) -> Any:
    return infer(read_labels(path, ["x", "y"]), ["y"], kind)


def _pickle() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.ones(2)}, content)
    return content.getvalue()


def _tokenizer() -> bytes:
    return Tokenizer.characters(["ab"]).backend.to_str().encode()


PDB = b"".join(
    f"ATOM  {n:5}  {atom:<3} ALA A{1 + n // 4:4}    {n:8.3f}{n / 2:8.3f}{0.0:8.3f}{1.0:6.2f}{0.0:6.2f}\n".encode()
    for n, atom in enumerate(["N", "CA", "C", "CB"] * 3)
)
CIF = b"data_x\nloop_\n" + b"".join(
    b"_atom_site." + name + b"\n"
    for name in (b"group_PDB", b"label_atom_id", b"label_comp_id", b"auth_asym_id", b"auth_seq_id", b"Cartn_x")
) + b"_atom_site.Cartn_y\n_atom_site.Cartn_z\nATOM CA ALA A 1 1.0 2.0 3.0\nATOM CB ALA A 1 1.0 2.0 4.0\n"  # fmt: skip
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 7)
GGUF += struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, 0) + bytes(64)
STOCKHOLM = b"# STOCKHOLM 1.0\na MKVLAA\nb MK-LAA\n//\n"
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
ROW = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
PROMOD = struct.pack("<II", 1234, 2) + bytes(69) + struct.pack("<Q", 1) + bytes(99)

GIF = b"GIF89a\x02\0\x02\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x02\0\x02\0\0\x02\x02\x84Q\0;"

# Name of the file, a file that is as it should be, and what reads it.
PARSERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "A3M": ("x.a3m", b">q\nMKVLAAGI\n>r\nMKvV-AAGI\n", read_alignment),
    "FASTA": ("x.fasta", b">q\nMKVLAAGI\n>r\nMKVLAAGL\n", lambda path: read_input(path)),
    "Stockholm": ("x.sto", STOCKHOLM, read_alignment),
    "Clustal": ("x.clw", b"CLUSTAL W\n\na MKVLAA\nb MK-LAA\n  ** **\n", read_alignment),
    "PSICOV": ("x.aln", b"MKVLAA\nMK-LAA\n", read_alignment),
    "packed A3M": ("x.a3m.gz", gzip.compress(b">q\nMKVLAAGI\n>r\nMKVLAAGL\n", mtime=0), read_alignment),
    "PDB": ("x.pdb", PDB, read_chains),
    "mmCIF": ("x.cif", CIF, read_chains),
    "safetensors": ("x.safetensors", struct.pack("<Q", len(HEADER)) + HEADER + bytes(8), read_safetensors),
    "config.json": ("config.json", b'{"model_type": "llama", "hidden_size": 8}', read_json),
    "GGUF": ("x.gguf", GGUF, read_header),
    "pickle": ("x.pt", _pickle(), read_pickle),
    "JSON": ("x.json", b'[1, {"a": "\\ud83d\\ude00"}]', lambda path: parse_json(path.read_bytes(), "x")),
    "rows": ("x.jsonl", b'{"text": "a b"}\n{"text": "c"}\n', lambda path: list(find(str(path)))),
    "text": ("x.txt", "Ä word\n".encode(), lambda path: list(find(str(path)))),
    "conversations": ("x.jsonl", ROW * 2, lambda path: list(read_conversations([str(path)]))),
    "tokenizer": ("tokenizer.json", _tokenizer(), Tokenizer.load),
    "IDX": ("x-ubyte", bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + b"abcd", lambda path: read_idx(path, 1)),
    "packed IDX": ("x.gz", gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]), mtime=0), lambda path: read_idx(path, 1)),
    "NumPy archive": ("x.npz", _npz(), read_arrays),
    "YAML": ("x.yaml", b"model:\n  dim: 8 # wide\n  names: [a, &b c, *b]\n", lambda path: read_yaml(path, "x")),
    "configuration": ("x.yaml", b"trainer:\n  max_steps: 3\n", check_yaml),
    "recipe": ("x.yaml", b"# About.\n# time: 2 min\ntrainer:\n  max: 3\n", lambda path: list_recipes(path.parent)),
    "split.tsv": ("x.tsv", b"chain\tcluster\tsplit\na\tb\ttrain\n", read_split),
    "table": ("x.tsv", b"name\tvalue\na\t1\n", lambda path: read_table(path, ["name"])),
    "labels": ("x.csv", b'x,y\n"a, b",1.5\nc,2\n', lambda path: labels(path)),
    "labels between tabs": ("x.tsv", b'x\ty\n"a"\tp|q\nc\tp\n', lambda path: labels(path)),
    "labels in UTF-16": ("x.csv", "x;y\na;HHE\nc;HE\n".encode("utf-16"), lambda path: labels(path, "tag")),
    "packed labels": ("x.csv.gz", gzip.compress(b"x,y\na,1\nb,0\nc,1\n", mtime=0), lambda path: labels(path)),
    "labels in rows": ("x.jsonl", b'{"x": 1, "y": ["a"]}\n{"x": 2, "y": []}\n', lambda path: labels(path)),
    "labels in Parquet": ("x.parquet", _parquet(), lambda path: labels(path)),
    "vectors": ("x.npz", _vectors(".npz"), read_vectors),
    "vectors in Parquet": ("x.parquet", _vectors(".parquet"), read_vectors),
    "vectors of NumPy": ("x.npy", _vectors(".npy"), read_vectors),
    "ProMod3": ("x.dat", PROMOD, lambda path: list(read_promod3(path))),
    "PPM image": ("x.ppm", b"P6 2 2 255\n" + bytes(12), read_image),
    "GIF image": ("x.gif", GIF, read_image),
    "metrics.csv": ("metrics.csv", b"step,loss,val_loss\n1,0.5,\n2,,0.75\n", read_metrics),
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The file with parts cut out, bytes changed, repeated or put in, or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["cut", "change", "repeat", "end"]))
        if kind == "cut":
            del content[at:end]
        elif kind == "change":
            content[at:end] = draw(st.binary(max_size=8))
        elif kind == "repeat":
            content[at:at] = content[at:end] * draw(st.integers(1, 50))
        else:
            del content[at:]
    return bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", PARSERS)
def test_the_whole_file_is_read(name: str, tmp_path: Path) -> None:
    file, whole, read = PARSERS[name]
    (tmp_path / file).write_bytes(whole)
    if name == "ProMod3":  # its vectors would take pages; what is read of it first is enough to be damaged
        pytest.skip("only the beginning of a file stands here")
    assert read(tmp_path / file) is not None


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_damage_is_one_sentence(name: str, place: Path, data: st.DataObject) -> None:
    file, whole, read = PARSERS[name]
    folder = place / name.replace(" ", "_")
    folder.mkdir(exist_ok=True)
    path = folder / file
    if path.exists():
        os.remove(path)  # a map of the last one may still be open
    path.write_bytes(data.draw(damaged(whole)))
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UserError):
            read(path)
    assert time.monotonic() - start < SECONDS
