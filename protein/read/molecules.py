"""Tells molecules apart that carry one name in a file: by numbers that come again, and by TER records."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from .atoms import PEPTIDE_BOND, UNNAMED, Atom


class Site(NamedTuple):
    """A residue among the atoms of one name.

    Args:
        atoms: where its atoms lie, rising.
        number, insertion: of it.
        standard: it stands in ATOM records, and none of its atoms has an alternative.
        ended: a TER record stands before it.
    """

    atoms: list[int]
    number: int
    insertion: str
    standard: bool
    ended: bool


def parted(atoms: Sequence[Atom], ends: Collection[int], given: Collection[str]) -> tuple[list[Atom], dict[str, str]]:
    """Returns the atoms, those of a second molecule of the name A called A-2, and the common name of each such one.

    A molecule begins

    - where numbers start anew: where they have fallen over a broken bond before the first one that was there already;
    - behind a TER record from which numbers go on, where no bond crosses it: of atoms without a chain's name in any
      case, of named ones where no number is left out and no SEQRES says otherwise. A TER record where numbers of a
      named chain jump stands at a gap of one chain.

    Args:
        atoms: of all models, in the order of the file.
        ends: numbers of the atoms before which a TER record stands.
        given: names of chains whose whole sequence the file gives.
    """
    found, names = list(atoms), {}
    by_name: dict[tuple[int, str], list[int]] = {}
    for at, atom in enumerate(atoms):
        by_name.setdefault((atom.model, atom.chain), []).append(at)
    for (_, name), members in by_name.items():
        sites = _sites(atoms, members, ends)
        starts = _starts(atoms, sites, name == UNNAMED, name in given)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(sites)]), 1):
            called = name if number == 1 else f"{name}-{number}"
            if len(starts) > 1:
                names[called] = name
            for at in (at for site in sites[start:end] for at in site.atoms):
                found[at] = found[at]._replace(chain=called)
    return found, names


def _sites(atoms: Sequence[Atom], members: list[int], ends: Collection[int]) -> list[Site]:
    """The residues in the order of the file; one whose alternatives stand apart is there more than once."""
    stops = np.array(sorted(ends), dtype=np.int64)
    sites: list[Site] = []
    last = -1
    for at in members:
        atom = atoms[at]
        plain = atom.standard and not atom.alternative
        ended = last >= 0 and bool(np.searchsorted(stops, at, "right") > np.searchsorted(stops, last, "right"))
        known = sites[-1] if sites else None
        if known and not ended and (known.number, known.insertion) == (atom.number, atom.insertion):
            known.atoms.append(at)
            sites[-1] = known._replace(standard=known.standard and plain)
        else:
            sites.append(Site([at], atom.number, atom.insertion, plain, ended))
        last = at
    return sites


def _starts(atoms: Sequence[Atom], sites: list[Site], unnamed: bool, given: bool) -> list[int]:
    """The sites at which molecules begin; the first is 0."""
    starts, seen = [0], set()
    stop: int | None = None  # the first site behind the last TER record
    for at, site in enumerate(sites):
        key = site.number, site.insertion
        stop = at if site.ended else stop
        before = sites[stop - 1] if stop else None
        if key in seen and site.standard:
            starts.append(_anew(atoms, sites, starts[-1], at))
            seen = {(one.number, one.insertion) for one in sites[starts[-1] : at]}
        elif before and stop is not None and stop > starts[-1] and site.standard:
            first = sites[stop]
            jump = first.number - before.number
            if not _bound(atoms, before, first) and (jump <= 0 or (not given and (unnamed or jump == 1))):
                starts.append(stop)
                seen = {(one.number, one.insertion) for one in sites[stop:at]}
            stop = None
        seen.add(key)
    return starts


def _anew(atoms: Sequence[Atom], sites: list[Site], start: int, at: int) -> int:
    """Where the molecule begins whose first number that was there already stands at site `at`."""
    for here in range(at, start, -1):
        fell = sites[here].number < sites[here - 1].number
        if (fell or sites[here].ended) and not _bound(atoms, sites[here - 1], sites[here]):
            return here
    return at


def _bound(atoms: Sequence[Atom], one: Site, other: Site) -> bool:
    """Whether a peptide bond joins two residues."""
    carbon = next((atoms[at].xyz for at in one.atoms if atoms[at].name == "C"), None)
    nitrogen = next((atoms[at].xyz for at in other.atoms if atoms[at].name == "N"), None)
    if carbon is None or nitrogen is None:
        return False
    return float(np.linalg.norm(np.subtract(carbon, nitrogen))) <= PEPTIDE_BOND
