"""Where `triune protein prepare` finds chains and their alignments, and how it joins them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....core.errors import UserError
from ....core.files import MAX_GROWTH, check_regular, most_unpacked, parsing, read_arrays, read_table
from ...read.alignment import Alignment, parse_alignment
from ...read.alphabet import GAP, TABLE, UNKNOWN, decode, encode
from ...read.complexes import parts
from ...read.formats import SUFFIXES as ALIGNMENT_SUFFIXES
from ...read.matching import Placement, place
from ...read.profile import chosen_rows, effective_sequences, profile
from ...read.structure import Chain, imputed_cbeta, read_chains
from ...read.text import read_content
from ..store import Entry

BadFile = Callable[[str, UserError], None]


class Found(NamedTuple):
    """A chain, and where it was found.

    Args:
        entry: the chain.
        file: it came from.
        aliases: names under which its alignment may be found, best first.
        first: the number that the file gives to the residue at position 0, None where there is none.
        complete: its sequence is that of the protein, not only of the residues that were seen.
        notes: what was decided in reading.
    """

    entry: Entry
    file: str
    aliases: tuple[str, ...]
    first: int | None = None
    complete: bool = True
    notes: tuple[str, ...] = ()


# -- chains -----------------------------------------------------------------------------------------------------------


def from_structures(files: list[Path], bad: BadFile) -> Iterator[list[Found]]:
    """Yields the chains of each file; of chains with the same sequence the one of which most was seen."""
    for file in files:
        try:
            chains = read_chains(file)
        except UserError as error:
            bad(str(file), error)
            yield []
            continue
        best: dict[str, Chain] = {}
        for chain in chains:
            known = best.setdefault(chain.sequence, chain)
            if chain.resolved.sum() > known.resolved.sum():
                best[chain.sequence] = chain
        stem = Path(file.name.removesuffix(".gz")).stem
        alone = (stem,) if len(best) == 1 else ()
        yield [
            Found(_entry(chain), str(file), (chain.name, *alone), chain.first, chain.complete, tuple(chain.notes))
            for chain in best.values()
        ]


def _entry(chain: Chain) -> Entry:
    return Entry(chain.name, encode(chain.sequence, chain.name), chain.residue_index, chain.cbeta)


def from_arrays(file: str | Path) -> list[Found]:
    """Returns the chains of an `.npz` with name, length, sequence, backbone and profile (see the README of the data).

    Raises:
        UserError: the file cannot be read or lacks an array.
    """
    data = read_arrays(file)
    names = ("name", "length", "sequence", "backbone", "profile")
    if missing := [name for name in names if name not in data]:
        raise UserError(f"'{file}' holds no array '{missing[0]}', but must hold {', '.join(names)}.")
    with parsing(file, "arrays of chains"):
        return _chains_of(data)


def _chains_of(data: dict[str, np.ndarray]) -> list[Found]:
    """The chains in the arrays of an archive, laid one behind the other."""
    residues, lengths = len(data["sequence"]), data["length"].astype(np.int64)
    if (lengths < 1).any() or lengths.sum() != residues or len(data["name"]) != len(lengths):
        raise ValueError(f"the lengths do not add up to its {residues:,} residues")
    ends = np.cumsum(lengths)
    found = []
    for name, start, end in zip(map(str, data["name"].tolist()), (ends - lengths).tolist(), ends.tolist()):
        here = slice(start, end)
        entry = Entry(
            name=name,
            tokens=np.minimum(TABLE[data["sequence"][here]], UNKNOWN),
            positions=np.arange(end - start),
            cb=imputed_cbeta(data["backbone"][here].astype(np.float32) / 100),
            profile=data["profile"][here].astype(np.float32) / 255,
        )
        found.append(Found(entry, name[:4], (name,)))
    return found


def read_split(file: str | Path) -> dict[str, tuple[str, str]]:
    """Returns (split, cluster) by chain from a table with the columns chain, cluster and split.

    Raises:
        UserError: the file cannot be read, lacks a column or names another split than train, val or test.
    """
    rows = read_table(Path(file), ("chain", "cluster", "split"))
    table = {row["chain"]: (row["split"], row["cluster"]) for row in rows}
    if len(table) < len(rows):
        raise UserError(f"'{file}' names a chain twice; keep one row of each.")
    if odd := {split for split, _ in table.values()} - {"train", "val", "test"}:
        raise UserError(f"'{file}' has the split '{sorted(odd)[0]}', but must have train, val or test.")
    return table


# -- alignments -------------------------------------------------------------------------------------------------------


class Alignments:
    """Alignments by name, from folders and tar archives; read when asked for.

    Args:
        places: folders (searched at any depth) and `.tar`, `.tar.gz` or `.tgz` files.

    Raises:
        UserError: a place does not exist or holds no alignment.
    """

    def __init__(self, places: list[str]) -> None:
        self._found: dict[str, Path | bytes] = {}
        for source in map(Path, places):
            before = len(self._found)
            if source.is_dir():
                for file in sorted(source.rglob("*")):
                    self._take(file.name, file)
            elif source.is_file():
                self._unpack(source)
            else:
                raise UserError(f"there is no '{source}'; --alignments takes folders and tar files.")
            if len(self._found) == before:
                raise UserError(f"'{source}' holds no alignment: no file ends in {', '.join(ALIGNMENT_SUFFIXES)}.")

    def __len__(self) -> int:
        return len(self._found)

    def _take(self, name: str, content: Path | bytes) -> None:
        name = name.removesuffix(".gz")
        if Path(name).suffix.lower() in ALIGNMENT_SUFFIXES and not name.startswith("."):
            self._found.setdefault(name, content)

    def _unpack(self, place: Path) -> None:
        left = most_unpacked(check_regular(place))
        with parsing(place, "a tar file"), tarfile.open(place) as archive:
            for member in archive:
                if (left := left - member.size) < 0:
                    raise UserError(
                        f"'{place}' unpacks to more than {MAX_GROWTH} times its size; unpack it by hand and give the "
                        "folder."
                    )
                if member.isfile() and (stream := archive.extractfile(member)):
                    self._take(Path(member.name).name, stream.read())

    def named(self, aliases: tuple[str, ...]) -> tuple[str, Path | bytes] | None:
        """Returns the file name and the place or content of the first alignment that has one of the names."""
        for alias in aliases:
            for suffix in ALIGNMENT_SUFFIXES:
                if (content := self._found.get(alias + suffix)) is not None:
                    return alias + suffix, content
        return None


def with_alignment(found: Found, name: str, content: Path | bytes, rows: int, seed: int) -> Found:
    """Returns the chain with an alignment laid on it, its Neff and, if it has none, the profile.

    Args:
        found: the chain.
        name: of the alignment's file.
        content: its content, or where it lies.
        rows: most rows to keep, the query among them; others are drawn at random, the rarer the likelier.
        seed: of that choice.

    Raises:
        UserError: the alignment cannot be read or its query is another protein.
    """
    raw = content if isinstance(content, bytes) else read_content(content)
    alignment, notes = _laid_on(parse_alignment(name, raw), found, name)
    tokens, entry = alignment.tokens, found.entry
    neff = effective_sequences(tokens)
    columns = entry.profile if entry.profile is not None else profile(tokens)
    kept = alignment.rows(chosen_rows(tokens, rows, seed))
    entry = entry._replace(msa=kept.tokens, deletions=kept.deletions, neff=neff, profile=columns)
    return found._replace(entry=entry, notes=(*found.notes, *(f"{name}: {note}" for note in notes)))


def _laid_on(alignment: Alignment, found: Found, name: str) -> tuple[Alignment, list[str]]:
    """The alignment with the columns of a chain, of a complex that of the chain that fits, and what to say of it."""
    sequence = decode(found.entry.tokens)
    problems: list[UserError] = []
    fitting: list[tuple[Alignment, Placement]] = []
    for part in parts(alignment):
        try:
            placement = place(sequence, part.query, found.entry.positions, found.first, found.complete)
            fitting.append((part, placement))
        except UserError as error:
            problems.append(error)
    if not fitting:
        raise UserError(f"'{name}': the query does not match the chain: {problems[0]}") from None
    # Of two chains that are relatives the one that differs least.
    part, placement = min(fitting, key=lambda fit: (len(fit[1].substituted), (fit[1].where < 0).sum()))
    here, where = placement.where >= 0, placement.where
    tokens = np.full((len(part.names), len(sequence)), GAP, dtype=np.uint8)
    deletions = np.zeros_like(tokens)
    tokens[:, here], deletions[:, here] = part.tokens[:, where[here]], part.deletions[:, where[here]]
    tokens[0] = found.entry.tokens
    return replace(part, tokens=tokens, deletions=deletions), [*alignment.notes, *placement.notes]
