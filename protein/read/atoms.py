"""PDB and mmCIF files to the residues of their protein chains: models, alternate locations, modified residues."""

from __future__ import annotations

import io
from collections import defaultdict
from typing import NamedTuple

import numpy as np

BACKBONE = ("N", "CA", "C")
ATOMS = (*BACKBONE, "CB")

PEPTIDE_BOND = 2.0
"""Ångström between C and N up to which a HETATM residue belongs to the chain."""

# Not in Biopython's table of modified residues.
OTHER_RESIDUES = {"SEC": "C", "PYL": "K", "UNK": "X", "ASX": "X", "GLX": "X"}
WATER = ("HOH", "WAT", "DOD")
NOTHING = (".", "?", "")


class Atom(NamedTuple):
    """A row of either format; only N, CA, C and CB are kept."""

    model: int
    chain: str
    position: int | None  # 1-based in the entity's sequence, where the file says it
    number: int
    insertion: str
    residue: str
    standard: bool  # an ATOM, not a HETATM record
    name: str
    alternative: str
    occupancy: float
    xyz: tuple[float, float, float]


class Residue(NamedTuple):
    """A residue that was seen; xyz [4 atoms, 3] in ångström, NaN where absent."""

    letter: str
    name: str
    standard: bool
    number: int
    position: int | None
    xyz: np.ndarray
    alternatives: bool


class Atoms(NamedTuple):
    """What a file holds; `sequences` names all residues of a chain, seen or not, where the file gives them."""

    atoms: list[Atom]
    sequences: dict[str, list[str]]


# -- files ------------------------------------------------------------------------------------------------------------


def read_pdb(text: str) -> Atoms:
    """Parse the PDB format."""
    from Bio.PDB.PDBParser import PDBParser

    structure = PDBParser(PERMISSIVE=True, QUIET=True).get_structure("", io.StringIO(text))
    assert structure is not None
    atoms = [
        Atom(
            model.serial_num,
            chain.id,
            None,
            residue.id[1],
            residue.id[2].strip(),
            residue.resname.strip(),
            residue.id[0] == " ",
            atom.id,
            atom.altloc.strip(),
            1.0 if atom.occupancy is None else atom.occupancy,
            tuple(atom.coord.tolist()),
        )
        for model in structure
        for chain in model
        for residue in chain.get_unpacked_list()
        if residue.id[0] != "W"
        for atom in residue.get_unpacked_list()
        if atom.id in ATOMS
    ]
    sequences: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("SEQRES"):
            sequences.setdefault(line[11:12], []).extend(line[19:70].split())
    return Atoms(atoms, sequences)


def read_mmcif(text: str) -> Atoms:
    """Parse mmCIF; chains have the names their authors gave, as in the PDB format."""
    from Bio.PDB.MMCIF2Dict import MMCIF2Dict

    table = MMCIF2Dict(io.StringIO(text))
    polymers = _polymers(table)
    rows = len(table["_atom_site.label_atom_id"])

    def column(name: str, default: str = ".", other: str = "") -> list[str]:
        found = table.get(f"_atom_site.{name}") or table.get(f"_atom_site.{other}")
        return found or [default] * rows

    columns = zip(
        column("pdbx_PDB_model_num", "1"),
        column("auth_asym_id", "A", "label_asym_id"),
        column("label_seq_id"),
        column("auth_seq_id", ".", "label_seq_id"),
        column("pdbx_PDB_ins_code"),
        column("label_comp_id"),
        column("group_PDB", "ATOM"),
        column("label_atom_id"),
        column("label_alt_id"),
        column("occupancy", "1"),
        zip(column("Cartn_x"), column("Cartn_y"), column("Cartn_z")),
        column("label_entity_id"),
    )
    atoms: list[Atom] = []
    sequences: dict[str, list[str]] = {}
    for model, chain, label, number, insertion, residue, group, name, alternative, occupancy, xyz, entity in columns:
        if name not in ATOMS or residue in WATER or (polymers and (entity not in polymers or label in NOTHING)):
            continue
        if polymers:
            sequences.setdefault(chain, polymers[entity])
        x, y, z = map(float, xyz)
        atoms.append(
            Atom(
                model=int(model),
                chain=chain,
                position=int(label) if polymers else None,
                number=int(label if number in NOTHING else number),
                insertion="" if insertion in NOTHING else insertion,
                residue=residue,
                standard=group == "ATOM",
                name=name,
                alternative="" if alternative in NOTHING else alternative,
                occupancy=1.0 if occupancy in NOTHING else float(occupancy),
                xyz=(x, y, z),
            )
        )
    return Atoms(atoms, sequences)


def _polymers(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the residue names of each entity that is a polymer."""
    polymers: dict[str, list[str]] = {}
    keys = (f"_entity_poly_seq.{name}" for name in ("entity_id", "num", "mon_id"))
    for entity, number, residue in zip(*(table.get(key, []) for key in keys)):
        residues = polymers.setdefault(entity, [])
        # Where several residues share a position (microheterogeneity), the first stands for it.
        if int(number) > len(residues):
            residues.append(residue)
    return polymers


# -- residues ---------------------------------------------------------------------------------------------------------


def letter_of(residue: str) -> str | None:
    """Return the letter of an amino acid, a modified one being that of its parent; None for anything else."""
    from Bio.Data.PDBData import protein_letters_3to1_extended as letters

    letter = letters.get(residue) or OTHER_RESIDUES.get(residue)
    return letter if letter is None or len(letter) == 1 else "X"


def is_modified(residue: str) -> bool:
    """Whether a residue name is none of the 20 amino acids."""
    from Bio.Data.PDBData import protein_letters_3to1

    return residue not in protein_letters_3to1


def residues_of(atoms: list[Atom]) -> list[Residue]:
    """Return the residues of one chain of one model, in order, without ligands."""
    sites: dict[tuple[object, ...], list[Atom]] = {}
    for atom in atoms:
        key = (atom.number, atom.insertion) if atom.position is None else (atom.position,)
        sites.setdefault(key, []).append(atom)
    found = [residue for residue in map(_residue, sites.values()) if residue is not None]
    return [residue for at, residue in enumerate(found) if _in_chain(found, at)]


def _residue(atoms: list[Atom]) -> Residue | None:
    """Choose one of the alternatives of a residue, the same for all its atoms; None if it is no amino acid."""
    weight: dict[tuple[str, str], float] = defaultdict(float)
    for atom in atoms:
        weight[atom.residue, atom.alternative] += atom.occupancy * (1 if atom.name in BACKBONE else 1e-3)
    alternatives = [key for key in weight if key[1]]
    # Of equal occupancies the first in the alphabet.
    name, chosen = min(alternatives or weight, key=lambda key: (-weight[key], key[1]))
    letter = letter_of(name)
    xyz = np.full((len(ATOMS), 3), np.nan, dtype=np.float32)
    for atom in atoms:
        if atom.residue == name and atom.alternative in ("", chosen):
            xyz[ATOMS.index(atom.name)] = atom.xyz
    if letter is None and np.isnan(xyz[: len(BACKBONE)]).any():
        return None
    first = atoms[0]
    return Residue(letter or "X", name, first.standard, first.number, first.position, xyz, bool(alternatives))


def _in_chain(residues: list[Residue], at: int) -> bool:
    """Whether a residue belongs to the chain and is no free amino acid beside it."""
    if residues[at].standard or residues[at].position is not None:
        return True
    ends = [(i, j) for i, j in ((at - 1, at), (at, at + 1)) if i >= 0 and j < len(residues)]
    return any(np.linalg.norm(residues[i].xyz[2] - residues[j].xyz[0]) <= PEPTIDE_BOND for i, j in ends)
