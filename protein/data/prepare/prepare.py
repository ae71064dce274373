"""`triune protein prepare`: structures and alignments to a set for training, split so that no side knows the other."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ....core.errors import UserError
from ....core.files import replaced_folder
from ....core.lock import claimed
from ....core.options import SEED, Parser, whole
from ....core.training.run.machine import usable_cores
from ....core.work import progress
from ...read.alphabet import decode
from ...read.structure import structure_files
from ..store import Writer
from .clusters import (
    IDENTITY,
    Audit,
    audit,
    filtered_clusters,
    has_mmseqs,
    mmseqs_clusters,
    pairs_to_align,
    separate,
    split_by_cluster,
)
from .promod3 import read_promod3
from .sources import Alignments, Found, from_arrays, from_structures, read_split, with_alignment

SHOWN = 10
"""Bad files that are named on the screen; all are in `skipped.txt`."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune protein prepare`."""
    p = Parser(
        prog="triune protein prepare",
        description="Turn structures, and alignments if there are any, into a set of chains for training: "
        "`triune protein fit --data.folder OUT`. Relatives are kept on one side of the split.",
    )
    p.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--structures", metavar="DIR", help="folder of PDB and mmCIF files, searched at any depth")
    source.add_argument("--promod3", metavar="FILE", help="structure_db.dat of Debian's promod3-data: 21,119 chains")
    source.add_argument("--arrays", metavar="FILE", help="an .npz of chains: name, length, sequence, backbone, profile")
    p.add_argument(
        "--alignments", metavar="DIR", action="append", default=[],
        help="folder or tar file of alignments named like the structure, or structure_chain (1abc.a3m, 1abc_A.sto); "
        "repeat it for more",
    )  # fmt: skip
    p.add_argument("--rows", type=int, default=128, help="most rows of an alignment to keep (default 128)")
    p.add_argument(
        "--split", metavar="FILE", help="table of chain, cluster, split; chains that are not in it are left out"
    )
    p.add_argument("--val", type=float, default=0.1, help="share of the chains for validation (default 0.1)")
    p.add_argument("--test", type=float, default=0.0, help="share of the chains for a test (default 0)")
    p.add_argument("--identity", type=float, default=IDENTITY, help="identity that makes relatives (default 0.3)")
    p.add_argument("--min-length", type=whole(1), default=30, help="shortest chain (default 30 residues)")
    p.add_argument("--max-length", type=whole(1), help="longest chain")
    p.add_argument("--seed", type=SEED, default=0, help="of the split and of the rows that are kept")
    p.add_argument("--strict", action="store_true", help="stop at the first bad file instead of leaving it out")
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it is a set already")
    p.add_argument("--no-mmseqs", action="store_true", help="use the built-in filter even where MMseqs2 is installed")
    return p


@dataclass
class Tally:
    """What was read and what was left out."""

    strict: bool
    skipped: list[str] = field(default_factory=list)
    short: int = 0
    long: int = 0
    twins: int = 0
    notes: list[str] = field(default_factory=list)

    def bad(self, file: str, error: UserError) -> None:
        """Notes a bad file, or stops at it."""
        if self.strict:
            raise UserError(f"{error} (--strict stops at the first bad file.)")
        self.skipped.append(str(error) if file in str(error) else f"{file}: {error}")


def main(args: list[str]) -> int:
    """Runs `triune protein prepare` and returns its exit code.

    Raises:
        UserError: a mistake in the options, or no chain is left.
    """
    options = parser().parse_args(args)
    _check(options)
    tally = Tally(options.strict)
    table = read_split(options.split) if options.split else None
    alignments = Alignments(options.alignments)
    with _new_folder(options.out, options.overwrite) as folder:
        writer = Writer(folder)
        try:
            sequences, files = _write(writer, options, alignments, table, tally)
            _assign(writer.rows, sequences, table, options)
            found = _audited(writer.rows, sequences, files)
            for name, lines in (("skipped.txt", tally.skipped), ("notes.txt", tally.notes)):
                (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            writer.finish({"source": _source(options), "seed": options.seed, "identity": options.identity})
        finally:
            writer.close()
    print(summary(writer.rows, len(alignments), tally))
    print(audit_text(found, writer.rows))
    print(f"{options.out}: train with `triune protein fit --data.folder {options.out}`")
    return 0


def _check(options: argparse.Namespace) -> None:
    if not (0 <= options.val < 1 and 0 <= options.test < 1 and options.val + options.test < 1):
        raise UserError(
            f"--val {options.val} and --test {options.test} must be shares that leave something for training."
        )
    if not 0 < options.identity <= 1:
        raise UserError(f"--identity is {options.identity}, but must lie between 0 and 1, such as 0.3.")
    if options.rows < 1:
        raise UserError(f"--rows is {options.rows}, but must be at least 1, the chain itself.")


def _source(options: argparse.Namespace) -> str:
    return str(options.structures or options.promod3 or options.arrays)


# -- steps ------------------------------------------------------------------------------------------------------------


def _write(
    writer: Writer, options: argparse.Namespace, alignments: Alignments, table: dict[str, Any] | None, tally: Tally
) -> tuple[list[str], list[str]]:
    """Writes every chain that is wanted; returns the sequence of each and where it came from."""
    sequences: list[str] = []
    files: list[str] = []
    names: set[str] = set()
    count, parts = _parts(options, tally)
    with progress("reading chains", count) as advance:
        for part in parts:
            for found in part:
                if (table is None or found.entry.name in table) and _wanted(found, options, names, tally):
                    joined = _with_alignment(found, options, alignments, tally)
                    tally.notes += [f"{joined.entry.name}: {note}" for note in joined.notes]
                    writer.add(joined.entry)
                    sequences.append(decode(found.entry.tokens))
                    files.append(found.file)
            advance(1)
    if not files:
        reasons = f"; the first file that was left out: {tally.skipped[0]}" if tally.skipped else ""
        raise UserError(f"no chain is left from '{_source(options)}' ({_left_out(tally)}){reasons.rstrip('.')}.")
    return sequences, files


def _parts(options: argparse.Namespace, tally: Tally) -> tuple[int, Iterable[list[Found]]]:
    """Returns how many parts there are, and them: the chains of a file, or single chains."""
    if options.structures:
        files = structure_files(options.structures)
        return len(files), from_structures(files, tally.bad)
    if options.arrays:
        found = from_arrays(options.arrays)
        return len(found), ([one] for one in found)
    entries = list(read_promod3(options.promod3))
    return len(entries), ([Found(entry, entry.name[:4], (entry.name,))] for entry in entries)


def _wanted(found: Found, options: argparse.Namespace, names: set[str], tally: Tally) -> bool:
    length = len(found.entry.tokens)
    if length < options.min_length:
        tally.short += 1
    elif options.max_length and length > options.max_length:
        tally.long += 1
    elif found.entry.name in names:
        tally.twins += 1
        tally.bad(found.file, UserError(f"'{found.file}': another file has a chain {found.entry.name}."))
    else:
        names.add(found.entry.name)
        return True
    return False


def _with_alignment(found: Found, options: argparse.Namespace, alignments: Alignments, tally: Tally) -> Found:
    if (named := alignments.named(found.aliases)) is None:
        return found
    try:
        return with_alignment(found, *named, options.rows, options.seed)
    except UserError as error:
        tally.bad(named[0], error)
        return found


def _assign(
    rows: list[dict[str, Any]], sequences: list[str], table: dict[str, Any] | None, options: argparse.Namespace
) -> None:
    """Puts cluster and split into the rows."""
    if table is not None:
        for row in rows:
            row["split"], row["cluster"] = table[row["name"]]
        return
    if has_mmseqs() and not options.no_mmseqs:
        print(f"clustering {len(rows):,} chains with MMseqs2", file=sys.stderr)
        clusters = mmseqs_clusters(sequences, options.identity, usable_cores())
    else:
        with progress("clustering", pairs_to_align(len(rows))) as advance:
            clusters = filtered_clusters(sequences, options.identity, advance)
    side = split_by_cluster(clusters, {"test": options.test, "val": options.val}, options.seed)
    with progress("separating relatives", int((side != "train").sum())) as advance:
        side = separate(sequences, side, options.identity, advance)
    for row, cluster, name in zip(rows, clusters.tolist(), side.tolist()):
        row["cluster"], row["split"] = rows[cluster]["name"], name


def _audited(rows: list[dict[str, Any]], sequences: list[str], files: list[str]) -> Audit:
    """Looks for relatives of held-out chains in training and puts their identity into the rows."""
    side = np.array([row["split"] for row in rows])
    with progress("checking the split", int((side != "train").sum())) as advance:
        found = audit(sequences, side, files, advance=advance)
    for number, identity in zip(found.held.tolist(), found.identity.tolist()):
        rows[number]["relative"] = f"{identity:.3f}"
    return found


# -- what is printed --------------------------------------------------------------------------------------------------


def _left_out(tally: Tally) -> str:
    counts = [(tally.short, "too short"), (tally.long, "too long"), (len(tally.skipped), "bad files, see skipped.txt")]
    return ", ".join(f"{count:,} {what}" for count, what in counts if count) or "none left out"


def summary(rows: list[dict[str, Any]], alignments: int, tally: Tally) -> str:
    """Returns what the set holds and what was left out."""
    residues = sum(row["length"] for row in rows)
    clusters = len({row["cluster"] for row in rows})
    aligned = [row for row in rows if row["rows"]]
    lines = [
        f"{len(rows):,} chains, {residues:,} residues, {clusters:,} clusters ({_left_out(tally)})",
        "  ".join(f"{side} {sum(row['split'] == side for row in rows):,}" for side in ("train", "val", "test")),
    ]
    if alignments:
        neff = np.median([float(row["neff"]) for row in aligned]) if aligned else 0
        lines.append(f"{len(aligned):,} chains have an alignment (of {alignments:,} given), median Neff {neff:.0f}")
    if tally.notes:
        carriers = len({line.split(": ")[0] for line in tally.notes})
        lines.append(
            f"{carriers:,} chains with remarks on how they were read, see notes.txt; the first: {tally.notes[0]}"
        )
    lines += [f"left out: {line.splitlines()[0]}" for line in tally.skipped[:SHOWN]]
    if len(tally.skipped) > SHOWN:
        lines.append(f"left out: {len(tally.skipped) - SHOWN} more")
    if not any(row["split"] == "val" for row in rows):
        lines.append("no cluster is small enough for validation: raise --val, or give more kinds of proteins")
    return "\n".join(lines)


def audit_text(found: Audit, rows: list[dict[str, Any]]) -> str:
    """Returns the audit in words."""
    if not len(found.held):
        return "leakage audit: nothing is held out"
    worst = int(found.identity.argmax())
    closest = ""
    if found.identity[worst]:
        held, other = rows[found.held[worst]]["name"], rows[found.closest[worst]]["name"]
        closest = f" (the closest pair, {held} and {other}, {found.identity[worst]:.0%})"
    return (
        f"leakage audit: of {len(found.held):,} held-out chains {found.identical:,} have the sequence of a training "
        f"chain, {(found.identity >= IDENTITY).sum():,} a relative of {IDENTITY:.0%} identity or more over at least "
        f"half of the shorter one{closest}, {found.same_file:,} come from a file that training chains come from"
    )


# -- files and bars ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Makes a folder beside `out` that takes its name when the block succeeds, and vanishes when it does not."""
    with claimed(out):
        if out.exists():
            if not (out / "meta.json").is_file() and (not out.is_dir() or any(out.iterdir())):
                raise UserError(f"'{out}' exists and is no set of chains; name another folder.")
            if (out / "meta.json").is_file() and not overwrite:
                raise UserError(f"'{out}' exists; name another folder, or replace it with --overwrite.")
        try:
            with replaced_folder(out) as folder:
                yield folder
        except OSError as error:
            raise UserError(f"'{out}' cannot be made ({error.strerror}); name another folder.") from error
