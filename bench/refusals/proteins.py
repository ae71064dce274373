"""Sequences, alignments, structures and sets of chains that cannot be used."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from .made import A3M, Case, Content, arrays, claimed, folder, packed, pipe, single, table, tarred

PLACES = ("/dev/zero", "ok")
"""Names that are there already."""
DCA = "protein dca {}"
CONTACTS = "protein contacts {} --run ok/pair"
STRUCTURE = "protein dca ok/ok.a3m --force --structure {}"
ARRAYS = "protein prepare set --arrays {}"
SPLIT = "protein prepare set --structures ok/pdb --split {}"
ALIGNMENTS = "protein prepare set --structures ok/pdb --alignments {}"
PROMOD = "protein prepare set --promod3 {}"
SET = "protein fit --run run --data.folder {}"
PRETRAIN = "protein pretrain --run run --data.files {}"

ROWS: list[tuple[str, str, Content, str]] = [
    ("a pipe", "x.a3m", pipe, "pipe"),
    ("an empty file", "x.a3m", b"", "empty"),
    ("NUL bytes", "x.fasta", b">a\nM\0K\n", "binary|NUL"),
    ("unequal rows", "x.a3m", b">a\nMKV\n>b\nMK\n", "columns|residues|fewer"),
    ("unknown letters", "x.a3m", b">a\nMK1\n", "1"),
    ("damaged gzip", "x.a3m.gz", gzip.compress(A3M)[:-4], "cannot be read"),
]
COMPLEXES: list[tuple[str, str, Content, str]] = [
    ("a complex with one length", "x.a3m", b"#19,\t1,1\n" + A3M, "chains of 19"),
    ("lengths that do not add up", "x.a3m", b"#4,5\t1,1\n" + A3M, "residues|length|add up"),
    ("lengths of zero", "x.a3m", b"#0,19\t1,1\n" + A3M, "#|length|residues"),
    ("a negative length", "x.a3m", b"#-1,20\t1,1\n" + A3M, "#|length|residues"),
    ("copies that are not as many", "x.a3m", b"#9,10\t1\n" + A3M, "#|copies|length|residues"),
]
MORE: list[tuple[str, str, Content, str]] = [
    ("no format", "x.dat", b"1234", "no format"),
    ("unequal rows of FASTA", "x.fasta", b">a\nMKV\n>b\nMK\n", "columns|holds 2 sequences"),
    ("an empty query", "x.a3m", b">a\n\n>b\nMK\n", "empty"),
    ("a query of gaps", "x.fasta", b">a\n---\n>b\nMKV\n", "empty"),
    ("damaged Stockholm", "x.sto", b"# STOCKHOLM 1.0\na MKV\nb MK\n//\n", "Stockholm"),
    ("empty Stockholm", "x.sto", b"# STOCKHOLM 1.0\n//\n", "no row|Stockholm"),
    ("empty Clustal", "x.aln", b"CLUSTAL W\n\n", "no row"),
    ("one residue", "x.a3m", b">a\nM\n", "residue"),
]
ATOM = b"ATOM      1  CA  ALA A   1      xx.000   1.0     1.0  1.00\n"
CIF = b"data_x\nloop_\n" + b"".join(
    b"_atom_site." + name + b"\n"
    for name in (b"group_PDB", b"label_atom_id", b"label_comp_id", b"auth_asym_id", b"auth_seq_id", b"Cartn_x")
) + b"_atom_site.Cartn_y\n_atom_site.Cartn_z\n"  # fmt: skip
OTHER = b"".join(
    f"ATOM  {n:5}  {atom:<3} TRP A{1 + n // 4:4}    {n:8.3f}{n / 2:8.3f}{0.0:8.3f}{1.0:6.2f}{0.0:6.2f}\n".encode()
    for n, atom in enumerate(["N", "CA", "C", "CB"] * 30)
)
STRUCTURES: list[tuple[str, str, Content, str]] = [
    ("a pipe", "x.pdb", pipe, "pipe"),
    ("an empty file", "x.pdb", b"", "empty"),
    ("no atoms", "x.pdb", b"HEADER\nEND\n", "no protein"),
    ("no mmCIF", "x.cif", b"hello", "mmCIF"),
    ("mmCIF without atoms", "x.cif", b"data_X\n", "mmCIF"),
    ("a binary file", "x.pdb", bytes(range(256)), "no protein|PDB|binary"),
    ("a coordinate that is no number", "x.pdb", ATOM, "PDB"),
    (
        "a residue number that is none",
        "x.pdb",
        ATOM.replace(b"xx.000", b" 1.000").replace(b"A   1 ", b"A  x! "),
        "number",
    ),
    (
        "a hybrid-36 number cut short",
        "x.pdb",
        ATOM.replace(b"xx.000", b" 1.000").replace(b"A   1 ", b"AA0   "),
        "number",
    ),
    ("coordinates that are not finite", "x.pdb", ATOM.replace(b"xx.000", b"   nan"), "no protein|position"),
    ("a CA alone", "x.pdb", ATOM.replace(b"xx.000", b" 1.000"), "CA only|position"),
    ("water only", "x.pdb", ATOM.replace(b"xx.000", b" 1.000").replace(b"CA  ALA", b"O   HOH"), "no protein"),
    ("mmCIF of a ligand", "x.cif", b"data_ATP\n_chem_comp.id ATP\n", "no atoms"),
    ("mmCIF with a cut row", "x.cif", CIF + b"ATOM CA ALA A 1 1.0\n", "mmCIF"),
    ("mmCIF with a text as coordinate", "x.cif", CIF + b"ATOM CA ALA A 1 x 2.0 3.0\n", "mmCIF"),
    (
        "mmCIF with coordinates that are not finite",
        "x.cif",
        CIF + b"ATOM CB ALA A 1 nan 2.0 3.0\n",
        "no protein|position|finite",
    ),
    ("mmCIF with a text as residue number", "x.cif", CIF + b"ATOM CA ALA A x 1.0 2.0 3.0\n", "number"),
    ("mmCIF with a key twice", "x.cif", b"data_x\n_a 1\n_a 2\n", "mmCIF"),
    (
        "mmCIF with an open text",
        "x.cif",
        b"data_x\nloop_\n_atom_site.label_atom_id\n;never closed\n",
        "mmCIF|no protein",
    ),
    ("a device", "/dev/zero", b"", "device"),
    ("a folder without a structure", "ok", b"", "no protein"),
    ("another protein", "x.pdb", OTHER, "W{9}"),
    ("damaged gzip", "x.pdb.gz", b"\x1f\x8b\x08hello", "cannot be read"),
]
CHAINS: dict[str, Any] = {
    "name": ["a"],
    "length": [3],
    "sequence": np.full(3, 65, np.uint8),
    "profile": np.zeros((3, 20), np.uint8),
    "backbone": np.zeros((3, 3, 3), np.int16),
}
ODD: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe"),
    ("an empty file", b"", "NumPy archive"),
    ("a text", b"hello", "NumPy archive"),
    ("no arrays", packed(), "holds no array"),
    ("a member that is no array", packed(name=b"x"), "NumPy archive"),
    ("objects", arrays(name=np.array([{}], dtype=object)), "NumPy archive"),
    ("an array is missing", arrays(name=["a"]), "holds no array 'length'"),
    ("a length too many", arrays(**CHAINS | {"length": [4]}), "add up"),
    ("a negative length", arrays(**CHAINS | {"length": [-3]}), "add up"),
    ("texts for numbers", arrays(**CHAINS | {"length": ["x"]}), "arrays of chains"),
    ("another shape", arrays(**CHAINS | {"backbone": np.zeros(3)}), "arrays of chains"),
    ("a bomb", arrays(**CHAINS | {"profile": np.zeros(100 << 20, np.uint8)}), "times its size"),
]
SPLITS: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe"),
    ("an empty file", b"", "no column"),
    ("commas", b"chain,cluster,split\n", "no column"),
    ("another split", b"chain\tcluster\tsplit\na\tb\tc\n", "must have train"),
    ("a short row", b"chain\tcluster\tsplit\na\n", "not as many cells"),
    ("a chain twice", b"chain\tcluster\tsplit\na\tb\tval\na\tb\ttrain\n", "twice"),
    ("no UTF-8", b"chain\tcluster\tsplit\n\xe9\tb\tval\n", "table"),
    ("none of the chains", b"chain\tcluster\tsplit\nz\tb\tval\n", "no chain is left"),
]
TARS: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe|there is no"),
    ("a text", b"hello", "as a tar file"),
    ("no alignment", tarred(("a", b"", b"0"), mode="w:gz"), "no alignment"),
    ("a bomb", gzip.compress(claimed(1 << 40)), "times its size"),
    ("a cut archive", tarred(("a.a3m", os.urandom(4000), b"0"), mode="w:gz")[:-900], "as a tar file"),
]
HEADER = struct.pack("<II", 1234, 2) + bytes(69)
DATABASES: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe"),
    ("an empty file", b"", "ProMod3"),
    ("a text", b"hello" * 99, "ProMod3"),
    ("a count of 2^63", HEADER + struct.pack("<Q", 2**63), "ProMod3"),
    ("a cut file", HEADER, "ProMod3"),
]
TABLE = b"name\tsplit\tcluster\tlength\trows\tneff\tprofile\trelative\na\ttrain\ta\t3\t0\tnan\t0\t0\n"
NO_SIZES = b'{"format": 1, "sizes": {}}'
META = json.dumps({"format": 1, "sizes": {"tokens": 3, "positions": 12, "cb": 36, "profile": 60, "cells": 0}}).encode()
RESIDUES = {"tokens": bytes(3), "positions": bytes(12), "cb": bytes(36), "profile": bytes(60), "cells": b""}
SETS: list[tuple[str, dict[str, Content], str]] = [
    ("damaged meta.json", {"meta.json": b"{", "chains.tsv": b""}, "no prepared set"),
    ("a pipe for meta.json", {"meta.json": pipe}, "pipe"),
    ("another format", {"meta.json": b'{"format": 99}', "chains.tsv": TABLE}, "format 99"),
    ("no arrays", {"meta.json": NO_SIZES, "chains.tsv": TABLE}, "should hold|meta.json|set of chains"),
    ("a negative length", {"meta.json": META, "chains.tsv": TABLE.replace(b"\t3\t", b"\t-3\t")}, "cannot be"),
    ("a split of no kind", {"meta.json": META, "chains.tsv": TABLE.replace(b"train", b"extra")}, "cannot be"),
    ("a text for a number", {"meta.json": META, "chains.tsv": TABLE.replace(b"\t3\t", b"\tx\t")}, "set of chains"),
    ("no residues", {"meta.json": META, "chains.tsv": TABLE, **RESIDUES | {"tokens": b"\xff\0\0"}}, "no residue"),
    ("a short array", {"meta.json": META, "chains.tsv": TABLE, **RESIDUES | {"cb": b""}}, "should hold"),
]


def cases() -> Iterator[Case]:
    """All of this room."""

    def rows(several: list[tuple[str, str, Content, str]]) -> list[tuple[str, str, dict[str, Content], str]]:
        laid = lambda name, content: {} if name in PLACES else {name: content}  # noqa: E731
        return [(about, name, laid(name, content), words) for about, name, content, words in several]

    places = [("no such file", "none.a3m", {}, "No such file"), ("an empty folder", "f", {"f": folder}, "no sequence")]
    yield from table("alignments", DCA, [*rows(ROWS), *rows(MORE), *places])
    yield from table("contacts", CONTACTS, rows([row for row in ROWS if row[0] != "unequal rows"]))
    yield from table("sequences", PRETRAIN, rows([row for row in ROWS if row[0] != "unequal rows"]))
    yield from table("complexes", CONTACTS, rows(COMPLEXES))
    yield from table("structures", STRUCTURE, rows(STRUCTURES))
    yield from table("arrays of chains", ARRAYS, single(".npz", ODD))
    yield from table("splits", SPLIT, single(".tsv", SPLITS))
    yield from table("tar files of alignments", ALIGNMENTS, single(".tar.gz", TARS))
    yield from table("ProMod3", PROMOD, single(".dat", DATABASES))
    sets = [(about, "x", {f"x/{k}": v for k, v in given.items()}, words) for about, given, words in SETS]
    absent = [("no such folder", "none", {}, "no prepared set"), ("an empty folder", "x", {"x": folder}, "no prepared")]
    yield from table("sets of chains", SET, [*sets, *absent])
