"""PDB and mmCIF files to the residues of their protein chains: models, alternate locations, modified residues."""

from __future__ import annotations

import io
import math
import re
import string
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from ...core.errors import UserError

BACKBONE = ("N", "CA", "C")
ATOMS = (*BACKBONE, "CB")

PEPTIDE_BOND = 2.0
"""Ångström between C and N up to which a HETATM residue belongs to the chain."""

# Mirror images, as the Protein Data Bank names them, and with four letters as CHARMM does.
_MIRRORED = (
    "A:DAL,DALA R:DAR,DARG N:DSG,DASN D:DAS,DASP,IAS C:DCY,DCYS E:DGL,DGLU,FGA Q:DGN,DGLN "
    "H:DHI,DHIS,DHSD,DHSE,DHSP I:DIL,DILE L:DLE,DLEU K:DLY,DLYS M:MED,DMET F:DPN,DPHE P:DPR,DPRO S:DSN,DSER "
    "T:DTH,DTHR W:DTR,DTRP Y:DTY,DTYR V:DVA,DVAL"
)
# Not in Biopython's table of modified residues.
OTHER_RESIDUES = {"SEC": "C", "PYL": "K", "UNK": "X", "ASX": "X", "GLX": "X"} | {
    name: group[0] for group in _MIRRORED.split() for name in group[2:].split(",")
}

# Protonation states and bridges as AMBER, CHARMM, GROMACS, OPLS, Maestro (CYT, TYO) and FoldX (H1S) name them.
_STATES = {
    "H": "HID HIE HIP HIN HIX HSD HSE HSP HSC HISA HISB HISD HISE HISH HISP HIS1 HIS2 H1D H2D H1E H2E H1S H2S",
    "C": "CYX CYM CYN CYS1 CYS2 CYSH CYSM CYSX CYZ CYD CYH CY1 CY2 CYT",
    "D": "ASH ASPH ASPP ASP1 ASPM AS4 ASZ",
    "E": "GLH GLUH GLUP GLU1 GLUM GL4 GLZ",
    "K": "LYN LYH LYP LSN LYS1 LYSH LYSN LYZ",
    "R": "ARN AR0 ARGN",
    "Y": "TYM TYN TYO TYH TYRM TYRU TYRH Y1P TP1 TP2",
    "S": "SERD SRO S1P SP1 SP2",
    "T": "THO T1P THP1 THP2 THPB",
    "Q": "QLN GLN1 PGLU",
    "N": "ASN1",
    "F": "PHEH PHEU",
    "W": "TRPH TRPU",
}
# What AMBER puts N or C before, at the ends of a chain.
_ENDED = (
    "ALA:A ARG:R ASN:N ASP:D CYS:C GLN:Q GLU:E GLY:G HIS:H ILE:I LEU:L LYS:K MET:M PHE:F PRO:P SER:S THR:T TRP:W TYR:Y "
    "VAL:V HID:H HIE:H HIP:H CYX:C CYM:C ASH:D GLH:E LYN:K HYP:P LYP:K CYN:C"
)
MD_RESIDUES: dict[str, str] = {name: letter for letter, names in _STATES.items() for name in names.split()} | {
    end + name[:-2]: name[-1] for name in _ENDED.split() for end in "NC"
}
"""Letters of residue names that are no chemical components, or are others than those of the Protein Data Bank: of an
ATOM record they are these, of a HETATM record those of the bank (HSE: homoserine), unless a `TELLING` atom is there."""

TELLING = {"HSE": "CE1", "HIX": "CE1", "GLH": "OE2", "GLZ": "OE2"}
"""An atom of what molecular dynamics means by a name, which the bank's component does not have. Programs such as OpenMM
write HETATM for each name that is not one of the twenty, so the record alone does not tell the two apart."""

UNNAMED = "_"
"""The name of a chain that has none in a PDB file."""

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
    """A residue that was seen; xyz `[4 atoms, 3]` in ångström, NaN where absent."""

    letter: str
    name: str
    standard: bool
    number: int
    position: int | None
    xyz: np.ndarray
    alternatives: bool


class Atoms(NamedTuple):
    """What a file holds.

    atoms: in the order of the file.
    sequences: names of all residues of a chain, seen or not, where the file gives them.
    ends: numbers of the atoms before which a TER record stands.
    """

    atoms: list[Atom]
    sequences: dict[str, list[str]]
    ends: frozenset[int] = frozenset()


# -- files ------------------------------------------------------------------------------------------------------------


def read_pdb(text: str) -> Atoms:
    """Parses the PDB format; residue numbers may be hybrid-36.

    A chain without a name has that of its segment, as molecular dynamics writes it, or `UNNAMED`.

    Raises:
        UserError: a line of an atom does not hold numbers where the format has them.
    """
    atoms: list[Atom] = []
    sequences: dict[str, list[str]] = {}
    model, ends = 1, set()
    sites: list[object] = []
    told: set[object] = set()
    for number, line in enumerate(text.splitlines(), 1):
        record = line[:6].rstrip()
        if record in ("ATOM", "HETATM"):
            name, site = line[12:16].strip(), (model, line[17:27], line[72:76])
            if name in ATOMS and (atom := _pdb_atom(line, number, model)) is not None:
                atoms.append(atom)
                sites.append(site)
            elif name == TELLING.get(line[17:20].strip()):
                told.add(site)
        elif record == "MODEL":
            model = int(line[6:].strip()) if line[6:].strip().isdigit() else model + bool(atoms)
        elif record == "TER":
            ends.add(len(atoms))
        elif record == "SEQRES":
            sequences.setdefault(line[11:12].strip() or UNNAMED, []).extend(line[19:70].split())
    return Atoms(_as_told(atoms, sites, told), sequences, frozenset(ends))


def _as_told(atoms: list[Atom], sites: list[object], told: set[object]) -> list[Atom]:
    """Returns the atoms, those of the residues in `told` as of ATOM records; `sites` says of which residue each is."""
    return [atom._replace(standard=True) if site in told else atom for atom, site in zip(atoms, sites)]


def _pdb_atom(line: str, number: int, model: int) -> Atom | None:
    """The atom of a line, None without coordinates."""
    try:
        xyz = float(line[30:38]), float(line[38:46]), float(line[46:54])
        occupancy = float(line[54:60]) if line[54:60].strip() else 1.0
    except ValueError:
        raise UserError(
            f"line {number} of the PDB file has {line[30:60]!r} in columns 31 to 60, but must have three coordinates "
            "and an occupancy there; the file is damaged or of another format."
        ) from None
    residue, insertion = residue_number(line[22:27], f"line {number} of the PDB file")
    if not all(map(math.isfinite, xyz)):
        return None
    # Programs for molecular dynamics write names of four letters, the last in a column that is otherwise empty.
    name = line[17:21].strip()
    standard = line.startswith("ATOM")
    return Atom(
        model=model,
        chain=line[21:22].strip() or line[72:76].strip() or UNNAMED,
        position=None,
        number=residue,
        insertion=insertion,
        residue=name if name in MD_RESIDUES or name in OTHER_RESIDUES else line[17:20].strip(),
        standard=standard,
        name=line[12:16].strip(),
        alternative=line[16:17].strip(),
        occupancy=occupancy,
        xyz=xyz,
    )


HYBRID = {"upper": string.digits + string.ascii_uppercase, "lower": string.digits + string.ascii_lowercase}


def residue_number(text: str, where: str) -> tuple[int, str]:
    """Returns a residue's number and insertion code from the five columns of the PDB format, or a field of mmCIF.

    Beyond 9999, hybrid-36 (Grosse-Kunstleve et al.) goes on with A000, and after ZZZZ with a000.

    Raises:
        UserError: it is no number.
    """
    if match := re.fullmatch(r"([-+]?\d+)\s*([A-Z]?)", text.strip()):
        return int(match[1]), match[2]
    if match := re.fullmatch(r"([A-Z][0-9A-Z]{3}|[a-z][0-9a-z]{3})(.?)", text.strip()):
        digits = HYBRID["upper" if match[1][0].isupper() else "lower"]
        value = 0
        for digit in match[1]:
            value = value * 36 + digits.index(digit)
        return value - 10 * 36**3 + 10_000 + (26 * 36**3 if match[1][0].islower() else 0), match[2].strip()
    raise UserError(f"{where} has {text.strip()!r} as the number of a residue, but must have a whole number there.")


def read_mmcif(text: str) -> Atoms:
    """Parses mmCIF; chains have the names their authors gave, as in the PDB format.

    Raises:
        UserError: there are no atoms, or a residue number is no number.
    """
    from Bio.PDB.MMCIF2Dict import MMCIF2Dict

    table = MMCIF2Dict(io.StringIO(text))
    if "_atom_site.label_atom_id" not in table:
        raise UserError(
            "it holds no atoms (no _atom_site), like the definition of a ligand or measured data; give a file "
            "with a model."
        )
    polymers = _polymers(table)
    # Some programs name the entities and leave the places within them out.
    counted = any(label not in NOTHING for label in table.get("_atom_site.label_seq_id", []))
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
        column("label_asym_id"),
    )
    copies = Copies()
    atoms: list[Atom] = []
    sequences: dict[str, list[str]] = {}
    sites: list[object] = []
    told: set[object] = set()
    for row in columns:
        model, chain, label, number, insertion, residue, group, name, alternative, occupancy, xyz, entity, asym = row
        site = (model, chain, label, number, insertion)
        if name == TELLING.get(residue):
            told.add(site)
        if (
            name not in ATOMS
            or residue in WATER
            or (polymers and (entity not in polymers or (counted and label in NOTHING)))
        ):
            continue
        chain = copies.name(chain, asym, group == "ATOM" and (label not in NOTHING or not counted))
        if polymers:
            sequences.setdefault(chain, polymers[entity])
        x, y, z = map(float, xyz)
        count, code = residue_number(label if number in NOTHING else number, "a row of _atom_site")
        atoms.append(
            Atom(
                model=int(model),
                chain=chain,
                position=int(label) if polymers and counted else None,
                number=count,
                insertion=code if insertion in NOTHING else insertion,
                residue=residue,
                standard=group == "ATOM",
                name=name,
                alternative="" if alternative in NOTHING else alternative,
                occupancy=1.0 if occupancy in NOTHING else float(occupancy),
                xyz=(x, y, z),
            )
        )
        sites.append(site)
    return Atoms(_as_told(atoms, sites, told), sequences)


class Copies:
    """Tells the polymers of an mmCIF file apart to which the authors gave one name: the second of A is called A-2."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._count: dict[str, int] = {}

    def name(self, chain: str, asym: str, polymer: bool) -> str:
        """The name of the molecule `asym` of a chain; one that is no polymer has the chain's name."""
        if polymer and (chain, asym) not in self._names:
            count = self._count[chain] = self._count.get(chain, 0) + 1
            self._names[chain, asym] = chain if count == 1 else f"{chain}-{count}"
        return self._names.get((chain, asym), chain)


def _polymers(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the residue names of each entity that is a polymer."""
    polymers: dict[str, list[str]] = {}
    keys = (f"_entity_poly_seq.{name}" for name in ("entity_id", "num", "mon_id"))
    for entity, number, residue in zip(*(table.get(key, []) for key in keys)):
        residues = polymers.setdefault(entity, [])
        # Where several residues share a position (microheterogeneity), the first stands for it.
        if int(number) > len(residues):
            residues.append(residue)
    return polymers


# -- residues ---------------------------------------------------------------------------------------------------------


def letter_of(residue: str, standard: bool = False) -> str | None:
    """Returns the letter of an amino acid, a modified one being that of its parent; None for anything else.

    Args:
        residue: its name.
        standard: it stands in ATOM records, where names are also those of molecular dynamics.
    """
    from Bio.Data.PDBData import protein_letters_3to1, protein_letters_3to1_extended

    letters = protein_letters_3to1 | (MD_RESIDUES if standard else {})
    if residue in letters:
        return letters[residue]
    letters = {**MD_RESIDUES, **protein_letters_3to1_extended}
    letter = letters.get(residue) or OTHER_RESIDUES.get(residue)
    return letter if letter is None or len(letter) == 1 else "X"


def is_modified(residue: str) -> bool:
    """Whether a residue name is none of the 20 amino acids."""
    from Bio.Data.PDBData import protein_letters_3to1

    return residue not in protein_letters_3to1


def residues_of(atoms: list[Atom]) -> list[Residue]:
    """Returns the residues of one chain of one model, in order, without ligands."""
    sites: dict[tuple[object, ...], list[Atom]] = {}
    for atom in atoms:
        key = (atom.number, atom.insertion) if atom.position is None else (atom.position,)
        sites.setdefault(key, []).append(atom)
    found = [residue for residue in map(_residue, sites.values()) if residue is not None]
    return [residue for at, residue in enumerate(found) if _in_chain(found, at)]


def _residue(atoms: list[Atom]) -> Residue | None:
    """Chooses one of the alternatives of a residue, the same for all its atoms; None if it is no amino acid."""
    weight: dict[tuple[str, str], float] = defaultdict(float)
    for atom in atoms:
        weight[atom.residue, atom.alternative] += atom.occupancy * (1 if atom.name in BACKBONE else 1e-3)
    alternatives = [key for key in weight if key[1]]
    # Of equal occupancies the first in the alphabet.
    name, chosen = min(alternatives or weight, key=lambda key: (-weight[key], key[1]))
    letter = letter_of(name, atoms[0].standard)
    xyz = np.full((len(ATOMS), 3), np.nan, dtype=np.float32)
    for atom in atoms:
        # Of an atom that stands there twice, the first counts.
        if atom.residue == name and atom.alternative in ("", chosen) and np.isnan(xyz[at := ATOMS.index(atom.name), 0]):
            xyz[at] = atom.xyz
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
