"""Made-up structures for the tests of this room."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from Bio.Data.PDBData import protein_letters_1to3


class Made(NamedTuple):
    """A chain of atoms, and how it is written."""

    chain: str
    sequence: str
    atoms: dict[int, dict[str, np.ndarray]]  # by 0-based position


def helix(sequence: str, chain: str = "A", seed: int = 0) -> Made:
    """N, CA, C and CB (not of glycine) of an ideal helix that bends a little."""
    rng = np.random.default_rng(seed)
    atoms: dict[int, dict[str, np.ndarray]] = {}
    for at, letter in enumerate(sequence):
        turn = np.radians(100 * at + np.array([-28.0, 0.0, 26.0]))
        radius, rise = np.array([1.55, 2.3, 1.65]), 1.5 * at + np.array([-0.9, 0.0, 1.1])
        points = np.stack([radius * np.cos(turn), radius * np.sin(turn), rise], 1) + rng.normal(0, 0.02, (3, 3))
        points += [0.002 * at**2, 0, 0]
        placed = dict(zip(("N", "CA", "C"), points))
        if letter != "G":
            out = points[1] * [1, 1, 0]
            placed["CB"] = points[1] + 1.53 * out / max(np.linalg.norm(out), 1e-6)
        atoms[at] = placed
    return Made(chain, sequence, atoms)


def name_of(letter: str) -> str:
    return protein_letters_1to3.get(letter, "UNK").upper()


def pdb_lines(
    made: Made, offset: int = 1, names: dict[int, str] | None = None, hetero: tuple[str, ...] = ("MSE",)
) -> list[str]:
    """ATOM and HETATM records."""
    lines = []
    for at, placed in made.atoms.items():
        residue = (names or {}).get(at) or name_of(made.sequence[at])
        record = "HETATM" if residue in hetero else "ATOM  "
        for atom, (x, y, z) in placed.items():
            lines.append(pdb_line(record, atom, " ", residue, made.chain, at + offset, " ", x, y, z, 1.0))
    return lines


def pdb_line(
    record: str, atom: str, alternative: str, residue: str, chain: str, number: int, insertion: str,
    x: float, y: float, z: float, occupancy: float,
) -> str:  # fmt: skip
    return (
        f"{record:6}{1:5}  {atom:<3}{alternative}{residue:>3} {chain}{number:4}{insertion}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{10.0:6.2f}          {atom[0]:>2}"
    )


def seqres(made: Made, names: dict[int, str] | None = None) -> list[str]:
    residues = [(names or {}).get(at) or name_of(letter) for at, letter in enumerate(made.sequence)]
    return [
        f"SEQRES {row + 1:3} {made.chain} {len(residues):4}  " + " ".join(residues[start : start + 13])
        for row, start in enumerate(range(0, len(residues), 13))
    ]


def mmcif(made: Made, names: dict[int, str] | None = None, offset: int = 1) -> str:
    """The same as mmCIF, with the sequence of the entity; label ids count from 1, author ids from `offset`."""
    residues = [(names or {}).get(at) or name_of(letter) for at, letter in enumerate(made.sequence)]
    lines = ["data_X", "loop_", "_entity_poly_seq.entity_id", "_entity_poly_seq.num", "_entity_poly_seq.mon_id"]
    lines += [f"1 {at + 1} {residue}" for at, residue in enumerate(residues)]
    columns = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
        "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
    )
    lines += ["#", "loop_", *(f"_atom_site.{column}" for column in columns.split())]
    for at, placed in made.atoms.items():
        group = "HETATM" if residues[at] == "MSE" else "ATOM"
        for atom, (x, y, z) in placed.items():
            lines.append(
                f"{group} 1 {atom[0]} {atom} . {residues[at]} Z 1 {at + 1} ? {x:.3f} {y:.3f} {z:.3f} 1.0 10.0 "
                f"{at + offset} {made.chain} 1"
            )
    lines.append(f"HETATM 1 O O . HOH Y 2 . ? 0.0 0.0 0.0 1.0 10.0 900 {made.chain} 1")
    return "\n".join([*lines, "#", ""])


class Maker(NamedTuple):
    """What tests make structures with."""

    helix: Callable[..., Made] = helix
    lines: Callable[..., list[str]] = pdb_lines
    line: Callable[..., str] = pdb_line
    seqres: Callable[..., list[str]] = seqres
    mmcif: Callable[..., str] = mmcif

    def write(self, path, *made: Made) -> None:
        """Write whole chains as a PDB file with SEQRES."""
        lines = [line for one in made for line in self.seqres(one)]
        path.write_text("\n".join([*lines, *(line for one in made for line in self.lines(one)), "END", ""]))


@pytest.fixture(scope="session")
def maker() -> Maker:
    return Maker()
