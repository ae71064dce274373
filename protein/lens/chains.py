"""The chains that `triune lens` looks at, where wanted with a structure, which says what is a contact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.files import few
from ...core.subject import unlike
from ..data.store import builtin_set
from ..predict.metrics import contact_targets, precisions
from ..predict.queries import Queries
from ..read.alphabet import decode
from ..read.select import select_chain
from ..read.structure import read_chains

BUILTIN, SHORTEST, LONGEST = 8, 60, 128
"""Chains of the built-in validation set that stand in for none, and the residues they have."""
SCORE = "long_p_at_l5"


@dataclass
class Known:
    """One chain.

    Args:
        name, letters: of it.
        contacts: int8 `[residues, residues]`, where the structure is known.
        profile: frequencies of the 20 amino acids `[residues, 20]`, where it comes with one.
        rows: its alignment, uint8 `[rows, residues]`, where it comes with one.
    """

    name: str
    letters: str
    contacts: Tensor | None = None
    profile: np.ndarray | None = None
    rows: np.ndarray | None = None


def precision(chains: Sequence[Known], maps: Sequence[Tensor], kind: str = "") -> float:
    """The mean long-range P@L/5 of maps of the chains with structure; NaN where no chain has such pairs."""
    found = []
    for chain, scores in zip([chain for chain in chains if chain.contacts is not None], maps):
        assert chain.contacts is not None
        found.append(float(precisions(scores[None], chain.contacts[None])[SCORE + kind]))
    known = [value for value in found if value == value]
    return sum(known) / len(known) if known else float("nan")


def exchanged(chains: Sequence[Known]) -> list[int]:
    """The residues in which a clean and a corrupted chain differ. Raises UserError where they cannot be compared."""
    if len(chains) != 2:
        raise UserError(f"{len(chains)} chains were given, but patching takes two: a clean and a corrupted one.")
    one, other = (chain.letters for chain in chains)
    if len(one) != len(other):
        raise UserError(
            f"The clean chain has {len(one)} residues and the corrupted one {len(other)}, but they must have equally "
            "many, because values are put in at the same positions; exchange residues, and delete none."
        )
    if not (changed := unlike(one, other)):
        raise UserError("The clean and the corrupted chain are equal, so there is nothing to bring back.")
    return changed


def chains_of(inputs: Sequence[str], options: Any) -> tuple[list[Known], list[str]]:
    """The chains of files with their structures, and sentences about them."""
    if options.chain and not options.structure:
        raise UserError("--chain names a chain of --structure FILE, which was not given.")
    if not inputs:
        if options.structure:
            raise UserError("--structure is given without a sequence that it belongs to; name a FASTA file.")
        return builtin()
    # Two chains to patch are equally long and alike, which would otherwise be taken for an alignment.
    queries = Queries([Path(word) for word in inputs], "sequences" if options.question == "patch" else "auto")
    found, about = [], []
    for file in queries.files:
        for query in queries.of(file):
            letters = query.letters or query.alignment.query
            if query.alignment.chains:
                raise UserError(f"'{file}': {query.name} is a complex, but the lens looks at single chains; give one.")
            rows = query.alignment.tokens
            found.append(Known(query.name, letters, rows=rows if len(rows) > 1 else None))
    if queries.problems:
        raise UserError(queries.problems[0])
    if options.structure:
        structures = read_chains(options.structure, options.chain)
        for number, chain in enumerate(found):
            try:
                laid = select_chain(structures, chain.letters)
            except UserError as error:
                raise UserError(f"--structure '{options.structure}' does not match {chain.name}: {error}") from error
            contacts = contact_targets(torch.from_numpy(laid.cbeta), torch.from_numpy(laid.resolved))
            found[number] = replace(chain, contacts=contacts)
    about.append(f"{len(found)} chain{'s' if len(found) > 1 else ''}: {few([c.name for c in found])}")
    return found, about


def builtin() -> tuple[list[Known], list[str]]:
    """Validation chains of the set that comes with the package, with their structures."""
    chains = builtin_set()
    numbers = chains.of("val")
    numbers = numbers[(chains.lengths[numbers] >= SHORTEST) & (chains.lengths[numbers] <= LONGEST)][:BUILTIN]
    found = []
    for number in numbers.tolist():
        here = slice(chains.start[number], chains.start[number + 1])
        cbeta = torch.from_numpy(np.array(chains.arrays["cb"][here]))
        letters = decode(chains.arrays["tokens"][here])
        contacts = contact_targets(cbeta, ~cbeta[:, 0].isnan())
        profile = chains.arrays["profile"][here].astype(np.float32) / 255
        found.append(Known(str(chains.names[number]), letters, contacts, profile))
    return found, [f"{len(found)} built-in validation chains with structures: {few([c.name for c in found], 8)}"]
