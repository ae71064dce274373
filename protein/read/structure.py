"""Read protein chains from PDB and mmCIF files and place Cβ atoms; what had to be decided on the way is noted.

A chain is what was in the crystal: the sequence of the entity where the file gives it (SEQRES, `_entity_poly_seq`),
with positions for the residues that were seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...core.errors import UserError
from .atoms import (
    BACKBONE,
    PEPTIDE_BOND,
    UNNAMED,
    Atom,
    Residue,
    is_modified,
    letter_of,
    read_mmcif,
    read_pdb,
    residues_of,
)
from .matching import Placement, place
from .molecules import parted
from .text import read_content, text_of

BROKEN = 3.0
"""Ångström between C and the next N from which residues are missing between them."""

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")


@dataclass(frozen=True)
class Chain:
    """One protein chain.

    Args:
        name: of the file and the chain, such as 1abc_A.
        sequence: letters of all residues, seen or not.
        backbone: float32 `[residues, 3, 3]`, N, CA, C in ångström; NaN where not seen.
        cbeta: float32 `[residues, 3]`, NaN where unresolved; imputed from the backbone where absent.
        residue_index: int64 `[residues]`, positions along the protein; they jump where residues are missing.
        first: the number that the file gives to the residue at position 0; None where its numbers do not count along.
        complete: the file gives the sequence; else only residues that were seen are known.
        counted: its numbers count missing residues; they do not where the chain is broken and they go on.
        broken: residues behind which no bond follows, where only those that were seen are known.
        notes: what was decided in reading.
        file: it was read from; chains of one file can be put together.
        shared: of a molecule that shares its name with others, all of them as one chain.
    """

    name: str
    sequence: str
    backbone: np.ndarray
    cbeta: np.ndarray
    residue_index: np.ndarray
    first: int | None = None
    complete: bool = False
    counted: bool = True
    broken: tuple[int, ...] = ()
    file: str = ""
    notes: list[str] = field(default_factory=list)
    shared: Chain | None = field(default=None, repr=False)

    @property
    def resolved(self) -> np.ndarray:
        """Whether a residue has a Cβ position, bool `[residues]`."""
        return ~np.isnan(self.cbeta[:, 0])

    def on(self, sequence: str) -> Chain:
        """Returns this chain with the residues of `sequence`, unresolved where it has none.

        Raises:
            UserError: it is another protein, and the alignment of the two is shown; or its place is not certain.
        """
        if sequence == self.sequence:
            return self
        return self.laid(self.place_on(sequence), sequence)

    def place_on(self, sequence: str) -> Placement:
        """Returns where the residues of this chain lie in `sequence`. Raises UserError as `on` does."""
        return place(self.sequence, sequence, self.residue_index, self.first, self.complete, self.counted, self.broken)

    def laid(self, placement: Placement, sequence: str) -> Chain:
        """Returns this chain as `placement` puts it on `sequence`."""
        where = placement.where
        placed = _placed(self.backbone, self.cbeta, where, len(sequence))
        absent = len(sequence) - len(np.unique(where[where >= 0]))
        notes = [*self.notes, *placement.notes]
        notes += [f"{absent} residues of the sequence are not in the chain"] if absent else []
        return replace(self, sequence=sequence, residue_index=np.arange(len(sequence)), first=1, notes=notes, **placed)


def imputed_cbeta(backbone: np.ndarray) -> np.ndarray:
    """Returns where Cβ lies for N, CA, C positions `[..., 3, 3]`: ideal geometry, NaN where one of them is.

    With b = CA - N, c = C - CA: CA - 0.58273431 b×c + 0.56802827 b - 0.54067466 c (trRosetta).
    """
    n, ca, c = backbone[..., 0, :], backbone[..., 1, :], backbone[..., 2, :]
    b, c = ca - n, c - ca
    return ca - 0.58273431 * np.cross(b, c) + 0.56802827 * b - 0.54067466 * c


# -- reading ----------------------------------------------------------------------------------------------------------


def structure_files(folder: str | Path) -> list[Path]:
    """Returns the structure files of a folder, at any depth.

    Raises:
        UserError: there is no such folder, or no structure in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'; --structures takes a folder of PDB or mmCIF files.")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.name.lower().removesuffix(".gz").endswith(SUFFIXES) and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise UserError(f"'{folder}' holds no structure: no file ends in {', '.join(SUFFIXES)} (or those with .gz).")
    return files


def read_chains(file: str | Path, chain: str | None = None, model: int | None = None) -> list[Chain]:
    """Reads the protein chains of a PDB or mmCIF file, possibly gzipped, in the order of the file.

    Cβ is the atom of the file; it is imputed from N, CA and C where it is absent. Of several locations of a residue
    the one of highest occupancy is taken for all its atoms, of several models the first.

    Args:
        file: .pdb, .ent, .cif or .mmcif, each also with .gz.
        chain: the name of one chain; left out, all.
        model: the number of the model.

    Raises:
        UserError: the file cannot be parsed, or has no such model or chain, no protein, or no chain with positions.
    """
    text = text_of(file, read_content(file))
    name = Path(file).name.removesuffix(".gz")
    is_mmcif = name.lower().endswith((".cif", ".mmcif")) or re.match(r"(#.*\s+)*data_", text) is not None
    format = "mmCIF" if is_mmcif else "PDB"
    try:
        found, sequences, ends = read_mmcif(text) if is_mmcif else read_pdb(text)
    except UserError as error:
        raise UserError(f"'{file}' cannot be read as {format}: {error}") from error
    except Exception as error:  # Biopython raises what it meets: KeyError, ValueError, its own
        raise UserError(
            f"'{file}' cannot be read as {format}: {type(error).__name__}: {str(error).rstrip('.')}."
        ) from error
    if not found:
        raise UserError(f"'{file}' holds no protein: no N, CA, C or CB atom was found in it (read as {format}).")
    notes: list[str] = []
    atoms, shared = (found, {}) if found[0].position is not None else parted(found, ends, sequences)
    residues = _by_chain(_one_model(file, atoms, model, notes))
    if chain is not None and chain not in residues:
        raise UserError(f"there is no protein chain '{chain}' in '{file}'; its chains are {_list(residues)}.")
    stem = Path(name).stem
    chains = [
        replace(_chain(f"{stem}_{key}", rows, sequences.get(key, []), notes), file=str(file))
        for key, rows in residues.items()
        if chain in (None, key)
    ]
    if shared and chain is None:
        joined = _by_chain(_one_model(file, found, model, []))
        whole = {
            key: replace(_chain(f"{stem}_{key}", joined[key], [], []), file=str(file))
            for key in {*shared.values()} & {*joined}
        }
        chains = [_told_apart(one, key, shared, whole, residues) for one, key in zip(chains, residues)]
    seen = [one for one in chains if one.resolved.any()]
    if not seen:
        raise UserError(
            f"'{file}' has no position for any Cβ, nor the N, CA and C to place one; it seems to hold CA only."
        )
    return seen


def _by_chain(atoms: Iterable[Atom]) -> dict[str, list[Residue]]:
    """The residues of each chain that has some, by its name."""
    rows: dict[str, list[Atom]] = {}
    for atom in atoms:
        rows.setdefault(atom.chain, []).append(atom)
    return {key: found for key, atoms in rows.items() if (found := residues_of(atoms))}


def _told_apart(
    one: Chain, key: str, shared: dict[str, str], whole: dict[str, Chain], residues: Collection[str]
) -> Chain:
    """A chain with a word about the others of its name, where there are any."""
    twins = [name for name in residues if shared.get(name) == shared.get(key)]
    if key not in shared or len(twins) < 2:
        return one
    named = "atoms without a chain's name" if shared[key] == UNNAMED else f"the atoms of chain {shared[key]}"
    return replace(
        one,
        shared=whole[shared[key]],
        notes=[*one.notes, f"{named} are read as {len(twins)} molecules: by TER records, or numbers that start anew"],
    )


def _list(residues: dict[str, list[Residue]]) -> str:
    return ", ".join(f"{key} ({len(found)} residues)" for key, found in residues.items()) or "none"


def _one_model(file: str | Path, atoms: list[Atom], model: int | None, notes: list[str]) -> list[Atom]:
    models = list(dict.fromkeys(atom.model for atom in atoms))
    if model is not None and model not in models:
        raise UserError(f"'{file}' has no model {model}; its models are {', '.join(map(str, models))}.")
    if model is None and len(models) > 1:
        notes.append(f"model {models[0]} of {len(models)} is used")
    chosen = models[0] if model is None else model
    return [atom for atom in atoms if atom.model == chosen]


def _chain(name: str, residues: list[Residue], sequence: list[str], notes: list[str]) -> Chain:
    xyz = np.stack([residue.xyz for residue in residues])
    backbone, cbeta = xyz[:, : len(BACKBONE)], xyz[:, len(BACKBONE)]
    absent = np.isnan(cbeta[:, 0])
    cbeta = np.where(absent[:, None], imputed_cbeta(backbone), cbeta)
    letters = "".join(residue.letter for residue in residues)
    notes = notes + _notes(residues, absent & ~np.isnan(cbeta[:, 0]))
    whole, where, index, complete = _on_entity(letters, residues, sequence, notes)
    first = _first(residues, where, index)
    placed = _placed(backbone, cbeta, where, len(whole))
    unseen = int(np.isnan(placed["cbeta"][:, 0]).sum())
    if unseen:
        notes.append(f"{unseen} of {len(whole)} residues have no position")
    counted, broken = _broken(residues)
    if complete:
        counted, broken = True, ()
    return Chain(name, whole, placed["backbone"], placed["cbeta"], index, first, complete, counted, broken, notes=notes)


def _placed(backbone: np.ndarray, cbeta: np.ndarray, where: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Puts the residues `[residues, ...]` at the positions `where` of a sequence; -1 is nowhere."""
    here = where >= 0
    out = {}
    for name, values in (("backbone", backbone), ("cbeta", cbeta)):
        out[name] = np.full((length, *values.shape[1:]), np.nan, dtype=np.float32)
        out[name][where[here]] = values[here]
    return out


def _on_entity(
    letters: str, residues: list[Residue], names: list[str], notes: list[str]
) -> tuple[str, np.ndarray, np.ndarray, bool]:
    """Returns the whole sequence, where the residues lie in it, the position of each residue of the sequence, and
    whether the sequence is that of the entity.
    """
    # A name means in the sequence what it means in the residues that were seen.
    seen = {residue.name: residue.letter for residue in residues}
    whole = "".join(seen.get(name) or letter_of(name) or "X" for name in names)
    given = [residue.position for residue in residues]
    if whole and all(position is not None and position <= len(whole) for position in given):
        return whole, np.array(given, dtype=np.int64) - 1, np.arange(len(whole)), True
    numbers = np.array([residue.number for residue in residues])
    # Insertion codes repeat a number and some files start anew: at least one further each time.
    index = np.cumsum(np.maximum(np.diff(numbers, prepend=numbers[:1] - 1), 1)) - 1
    if whole:
        try:
            found = place(letters, whole, index, int(numbers[0]), False, *_broken(residues))
            notes += found.notes
            return whole, found.where, np.arange(len(whole)), True
        except UserError as error:
            notes.append(f"SEQRES was not used: {str(error).splitlines()[0].rstrip('.')}")
    return letters, np.arange(len(letters)), index, False


def _broken(residues: list[Residue]) -> tuple[bool, tuple[int, ...]]:
    """Whether the numbers count what is missing, and the residues behind which the chain is broken.

    They do not where the numbers of neighbours follow each other over a broken bond. A file in which most neighbours
    are not bound, such as a made-up one, says nothing.
    """
    numbers = np.array([residue.number for residue in residues])
    atoms = np.stack([residue.xyz for residue in residues])
    bonds = np.linalg.norm(atoms[:-1, BACKBONE.index("C")] - atoms[1:, BACKBONE.index("N")], axis=1)
    follow = (np.diff(numbers) <= 1) & ~np.isnan(bonds)  # numbers that fall or repeat are counted as following, too
    if not follow.any() or (bonds[follow] < PEPTIDE_BOND).mean() <= 0.8:
        return True, ()
    return not (bonds[follow] > BROKEN).any(), tuple(np.flatnonzero(bonds > BROKEN).tolist())


def _first(residues: list[Residue], where: np.ndarray, index: np.ndarray) -> int | None:
    """The number at position 0 of the chain, where all numbers (or all but a few) count along from it."""
    numbers = np.array([residue.number for residue in residues])[where >= 0]
    starts, counts = np.unique(numbers - index[where[where >= 0]], return_counts=True)
    return int(starts[counts.argmax()]) if counts.max() > len(numbers) / 2 else None


def _notes(residues: Iterable[Residue], imputed: np.ndarray) -> list[str]:
    notes = []
    residues = list(residues)
    if alternatives := sum(residue.alternatives for residue in residues):
        notes.append(f"{alternatives} residue(s) with alternate locations: those of highest occupancy are used")
    modified = Counter(f"{one.name} as {one.letter}" for one in residues if is_modified(one.name))
    if modified:
        notes.append("modified residues: " + ", ".join(f"{count} {what}" for what, count in sorted(modified.items())))
    if placed := sum(bool(new) and one.letter != "G" for one, new in zip(residues, imputed)):
        notes.append(f"{placed} absent Cβ atom(s) imputed from the backbone")
    return notes
