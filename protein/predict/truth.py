"""The known structure beside a prediction: read, laid on the query, and the score it gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.errors import UserError
from ..read.complexes import separations, spans
from ..read.select import select_chain, select_complex
from ..read.structure import Chain, read_chains, structure_files
from .metrics import COMPLEX_RANGES, RANGES, contact_targets, precisions
from .queries import Query, named


class Truth(NamedTuple):
    """A structure on a query.

    Args:
        chain: with the residues of the query.
        contacts: int8 `[residues, residues]`, as `metrics.contact_targets` makes them.
    """

    chain: Chain
    contacts: Tensor


def read_structures(places: Sequence[Path], chain: str | None, problems: list[str]) -> list[Chain]:
    """Reads the chains of structure files and of folders of them; what is wrong with a file of a folder is added to
    `problems`.

    Raises:
        UserError: a file that was named cannot be read or lacks the chain.
    """
    found: list[Chain] = []
    for source in places:
        if not source.is_dir():
            found += read_chains(source, chain)
            continue
        for file in structure_files(source):
            try:
                found += read_chains(file, chain)
            except UserError as error:
                problems.append(str(error))
    return found


def matching(query: Query, chains: list[Chain], problems: list[str]) -> Truth | None:
    """Returns the structure of a query; where none matches, that is a problem, but no reason not to predict."""
    if not chains:
        return None
    sequence, joined = query.alignment.query, query.alignment.chains
    try:
        if joined:
            chain = select_complex(chains, [sequence[span] for span in spans(joined, len(sequence))])
        else:
            chain = select_chain(chains, sequence)
    except UserError as error:
        problems.append(named(query, f"predicted, but not scored: {error}"))
        return None
    return Truth(chain, contact_targets(torch.from_numpy(chain.cbeta), torch.from_numpy(chain.resolved)))


def scores(prediction: Tensor, truth: Truth, chains: Sequence[int]) -> dict[str, float]:
    """Returns `metrics.precisions` of one prediction `[residues, residues]`; of a complex, those within its chains and
    those `between` them.
    """
    length = torch.tensor([int(truth.chain.resolved.sum())])
    ranges = COMPLEX_RANGES if chains else RANGES
    apart = separations(chains, len(prediction)) if chains else None
    found = precisions(prediction[None], truth.contacts[None], length, ranges, apart)
    return {name: float(value) for name, value in found.items()}
