"""Mean-field direct coupling analysis: the classical contact prediction from an alignment alone.

`triune protein dca` runs it on alignment files.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.files import OVERWRITE, check_new, write_atomic
from ..read.alignment import Alignment, read_alignment
from ..read.alphabet import GAP, UNKNOWN
from ..read.profile import informative_rows, one_hot, sequence_weights
from ..read.structure import Chain, read_chains, select_chain
from .metrics import TENTHS, contact_targets, precisions

STATES = 21
"""Amino acids and the gap, which is the last and the reference state."""

PSEUDOCOUNT = 0.5

ROWS = 2048
"""Rows whose frequencies are counted at once."""


def couplings(tokens: np.ndarray | Tensor, weights: Tensor, pseudocount: float = PSEUDOCOUNT) -> Tensor:
    """Couplings of the mean-field Potts model, `[columns, 20, columns, 20]`; those with the gap are zero.

    Frequencies are (1 - λ)·f + λ·uniform; the couplings are minus the inverse of the covariance of all states but the
    last (Morcos et al. 2011, equations 5-10).

    Args:
        tokens: uint8 [rows, columns]; unknown residues count as gaps.
        weights: [rows], as from `sequence_weights`.
        pseudocount: λ.
    """
    tokens = torch.as_tensor(tokens)
    columns, states = tokens.shape[1], STATES - 1
    weights = weights.float() / weights.sum()
    single = torch.zeros(columns * states, device=tokens.device)
    covariance = torch.zeros(columns * states, columns * states, device=tokens.device)
    for part, weight in zip(tokens.split(ROWS), weights.split(ROWS)):
        cells = one_hot(part, states).flatten(1)  # [rows, columns·20]; a gap is all zeros
        single += weight @ cells
        covariance.addmm_((cells * weight[:, None]).T, cells)
    single.mul_(1 - pseudocount).add_(pseudocount / STATES)
    covariance.mul_(1 - pseudocount).add_(pseudocount / STATES**2)
    # Within a column, two different states never occur together: there the uniform part is diagonal.
    for column in range(columns):
        own = slice(column * states, (column + 1) * states)
        covariance[own, own] = torch.diag(single[own])
    covariance.addr_(single, single, alpha=-1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    return inverse.neg_().view(columns, states, columns, states)


def scores_of(couplings: Tensor, with_gap: bool = False) -> Tensor:
    """Score of each pair of columns `[columns, columns]`: APC-corrected Frobenius norm of its couplings.

    The norm is that of the zero-sum gauge K(a, b) = J(a, b) - R(a)/q - C(b)/q + T/q², where R, C and T are the sums of
    a row, of a column and of all of J. It is written with these sums, so that K itself is never stored.

    Args:
        couplings: `[columns, 20, columns, 20]`; those with the gap are zero.
        with_gap: sum over all 21 states, as `freecontact` does; else over the 20 amino acids (Ekeberg et al. 2013),
            which does not score where gaps stand together.
    """
    q = STATES
    rows, columns = couplings.sum(3).square().sum(1), couplings.sum(1).square().sum(2)
    total = couplings.sum((1, 3)).square() / q**2
    norm = torch.stack([block.square().sum((0, 2)) for block in couplings])  # all at once would double the memory
    norm += total - (rows + columns) / q
    if not with_gap:
        # The row and the column of the gap, where J is zero but K is not.
        norm -= (rows + columns - (2 * q + 1) * total) / q**2
    # The sums round differently by row and by column.
    norm = (norm + norm.T).div_(2).clamp_min_(0).sqrt_()
    return average_product_correction(norm)


def average_product_correction(scores: Tensor) -> Tensor:
    """Return scores `[L, L]` less the product of row and column mean over the total mean, the diagonal left out.

    Dunn, Wahl and Gloor 2008.
    """
    scores = scores.clone().fill_diagonal_(0)
    columns = max(len(scores) - 1, 1)
    mean = scores.sum(0) / columns
    total = scores.sum() / (columns * len(scores))
    return (scores - torch.outer(mean, mean) / total.clamp_min(torch.finfo(scores.dtype).tiny)).fill_diagonal_(0)


def mean_field_dca(tokens: np.ndarray | Tensor, pseudocount: float = PSEUDOCOUNT) -> tuple[Tensor, float]:
    """Return the contact scores float32 `[columns, columns]` of the informative rows of an alignment, and their
    Neff.
    """
    tokens = informative_rows(torch.as_tensor(tokens))
    weights = sequence_weights(tokens)
    folded = torch.where(tokens == UNKNOWN, GAP, tokens)
    return scores_of(couplings(folded, weights, pseudocount)), float(weights.sum())


def memory_needed(columns: int) -> int:
    """Bytes that the covariance, its factor and its inverse take."""
    return 3 * 4 * (columns * (STATES - 1)) ** 2


# -- triune protein dca -----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options of `triune protein dca`."""
    p = argparse.ArgumentParser(
        prog="triune protein dca",
        description="Predict contacts from alignments by mean-field direct coupling analysis (pseudocount 0.5, rows "
        "weighted at 80 %% identity, average product correction): the classical baseline. It needs no model.",
    )
    p.add_argument("input", metavar="INPUT", nargs="+", type=Path, help="alignments: A3M, A2M, FASTA, Stockholm, .aln")
    p.add_argument("--structure", metavar="FILE", type=Path, help="PDB or mmCIF file to score the prediction with")
    p.add_argument("--chain", help="its chain; left out, the one that matches the query")
    p.add_argument("--out", metavar="DIR", type=Path, help="write the scores of all pairs to DIR/NAME.dca.npz")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--top", type=int, default=10, help="long-range pairs to print (default 10)")
    return p


def main(args: list[str]) -> int:
    """Run `triune protein dca` and return its exit code: 2 if some of several inputs could not be done.

    Raises:
        UserError: a mistake in the options, or in the only input.
    """
    options = parser().parse_args(args)
    if options.out:
        check_new([_target(options.out, file) for file in options.input], options.overwrite)
    chains = read_chains(options.structure, options.chain) if options.structure else []
    failed = 0
    for file in options.input:
        try:
            _one(file, chains, options)
        except UserError as error:
            if len(options.input) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    if failed:
        print(f"{failed} of {len(options.input)} inputs could not be done", file=sys.stderr)
    return 2 if failed else 0


def _one(file: Path, chains: list[Chain], options: argparse.Namespace) -> None:
    alignment = read_alignment(file)
    query = alignment.query
    chain = select_chain(chains, query) if chains else None
    _check_size(file, alignment)
    scores, neff = mean_field_dca(alignment.tokens)
    print(f"{file}: {len(query)} residues, {len(alignment.names):,} rows, Neff {neff:.1f}")
    if chain:
        _print_precisions(scores, chain)
    known = chain.cbeta if chain else None
    for i, j in top_pairs(scores, options.top):
        print(f"  {query[i]}{i + 1:<5} {query[j]}{j + 1:<5} {scores[i, j]:7.4f}{_distance(known, i, j)}")
    if options.out:
        content = io.BytesIO()
        np.savez_compressed(content, scores=scores.numpy(), sequence=query, neff=neff)
        write_atomic(_target(options.out, file), content.getvalue())


def _target(out: Path, file: Path) -> Path:
    return out / f"{Path(file.name.removesuffix('.gz')).stem}.dca.npz"


def _distance(known: np.ndarray | None, i: int, j: int) -> str:
    if known is None:
        return ""
    distance = float(np.linalg.norm(known[i] - known[j]))
    return "  unresolved" if np.isnan(distance) else f"  {distance:5.1f} Å"


def _check_size(file: Path, alignment: Alignment) -> None:
    needed, columns = memory_needed(alignment.tokens.shape[1]), alignment.tokens.shape[1]
    if columns < 2:
        raise UserError(f"'{file}': the query has {columns} residue; there are no pairs")
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise UserError(
            f"'{file}': {columns:,} columns need {needed / 1e9:.0f} GB and this machine has {there / 1e9:.0f} GB: cut "
            "the alignment into domains"
        )


def top_pairs(scores: Tensor, count: int, separation: int = 24) -> list[tuple[int, int]]:
    """Return the pairs i < j at least `separation` apart that score highest, best first, 0-based."""
    i, j = torch.triu_indices(len(scores), len(scores), min(separation, len(scores)))
    best = scores[i, j].topk(min(count, len(i))).indices
    return list(zip(i[best].tolist(), j[best].tolist()))


def _print_precisions(scores: Tensor, chain: Chain) -> None:
    targets = contact_targets(torch.from_numpy(chain.cbeta), torch.from_numpy(chain.resolved))
    found = precisions(scores[None], targets[None], torch.tensor([int(chain.resolved.sum())]))
    for note in chain.notes:
        print(f"  {chain.name}: {note}")
    print(f"  {'':8}{'P@L':>8}{'P@L/2':>8}{'P@L/5':>8}   chance  ceiling of P@L")
    for name in ("short", "medium", "long"):
        cells = "".join(f"{float(found[f'{name}_{score}']):8.3f}" for score in TENTHS)
        chance, ceiling = (float(found[f"{name}_p_at_l_{kind}"]) for kind in ("chance", "ceiling"))
        print(f"  {name:8}{cells} {chance:8.3f} {ceiling:8.3f}")
