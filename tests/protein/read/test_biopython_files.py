"""Biopython's own test files: no traceback, and residues and positions as Biopython's parsers give them.

They are in its source distribution only: unpack it, and set TRIUNE_BIOPYTHON_TESTS to the folder `Tests` of it.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.read.alphabet import VOCABULARY
from triune.protein.read.inputs import read_input
from triune.protein.read.structure import SUFFIXES, read_chains

FOLDER = Path(os.environ.get("TRIUNE_BIOPYTHON_TESTS", "nowhere"))
MOST_BYTES = 20_000_000

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="TRIUNE_BIOPYTHON_TESTS names no folder")


def files() -> list[Path]:
    return [file for file in sorted(FOLDER.rglob("*")) if file.is_file() and file.stat().st_size < MOST_BYTES]


def is_structure(file: Path) -> bool:
    return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def test_every_file_is_read_or_refused() -> None:
    read = 0
    for file in files():
        for reader in (read_input, *([read_chains] if is_structure(file) else [])):
            try:
                found: Any = reader(file)
            except UserError as error:
                assert str(file) in str(error)  # noqa: PT017 (either outcome is right, and each has its check)
                continue
            read += 1
            if reader is read_input:
                assert all(one.tokens.max() < VOCABULARY for one in found.alignments)
    assert read > 100


def independent(file: Path) -> dict[str, dict[int | tuple[int, str], np.ndarray]]:
    """Cβ of the first model by chain and residue number as Biopython's parsers give them, `[locations, 3]`."""
    from Bio.PDB.MMCIFParser import MMCIFParser
    from Bio.PDB.PDBParser import PDBParser

    parser = MMCIFParser(QUIET=True) if file.name.endswith("cif") else PDBParser(PERMISSIVE=True, QUIET=True)
    found: dict[str, dict[int | tuple[int, str], np.ndarray]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = parser.get_structure("", file)
    assert structure is not None
    for chain in next(iter(structure)):
        for residue in chain:
            # Of two residues at one place, Biopython shows the last; the fuller one may be the other.
            several: Any = getattr(residue, "disordered_get_list", lambda one=residue: [one])()
            points = [atom.coord for one in several for atom in one.get_unpacked_list() if atom.id == "CB"]
            if residue.id[0] == " " and points:
                found.setdefault(chain.id.strip() or "_", {})[residue.id[1:]] = np.stack(points)
    return found


def test_positions_are_those_of_biopython() -> None:
    compared = 0
    for file in filter(is_structure, files()):
        try:
            chains = read_chains(file)
        except UserError:
            continue
        theirs = independent(file)
        for chain in chains:
            known = theirs.get(chain.name.removeprefix(f"{file.name.split('.')[0]}_"), {})
            if not known:
                continue
            ours = chain.cbeta[chain.resolved]
            # Each residue is one of ours, in the same order, at one of its alternate locations.
            apart = [np.linalg.norm(ours[:, None] - points, axis=2).min(1) for points in known.values()]
            assert max(one.min() for one in apart) < 2e-3, (file.name, chain.name)
            order = [int(one.argmin()) for one in apart]
            assert order == sorted(order), (file.name, chain.name)
            compared += len(known)
    assert compared > 3000
