"""Mean-field direct coupling analysis: the classical contact prediction from an alignment alone.

`triune protein dca` runs it on alignment files.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.lock import claimed
from ...core.options import Parser
from ..read.alignment import Alignment
from ..read.alphabet import GAP, UNKNOWN
from ..read.complexes import BETWEEN, name_of, place_in_chain, separations, spans
from ..read.inputs import KINDS
from ..read.profile import chain_rows, informative_rows, one_hot, paired_rows, sequence_weights, written_twice
from .metrics import TENTHS
from .outputs import top_pairs, write_arrays, write_rr
from .queries import Queries, Query
from .truth import Truth, matching, read_structures, scores

STATES = 21
"""Amino acids and the gap, which is the last and the reference state."""

PSEUDOCOUNT = 0.5

LEAST_NEFF = 10.0
"""Effective rows (Neff) below which nothing is ranked: on 52 chains of Neff 10 to 50 the long-range P@L was 0.047 where
chance was 0.024, and with fewer rows there is less to see."""

SHALLOW = 50.0
"""Effective rows below which a ranking is said to be hardly better than chance."""

ROWS = 2048
"""Rows whose frequencies are counted at once."""


def couplings(tokens: np.ndarray | Tensor, weights: Tensor, pseudocount: float = PSEUDOCOUNT) -> Tensor:
    """Couplings of the mean-field Potts model, `[columns, 20, columns, 20]`; those with the gap are zero.

    Frequencies are (1 - λ)·f + λ·uniform; the couplings are minus the inverse of the covariance of all states but the
    last (Morcos et al. 2011, equations 5-10).

    Args:
        tokens: uint8 `[rows, columns]`; unknown residues count as gaps.
        weights: `[rows]`, as from `sequence_weights`.
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
    """The score of each pair of columns `[columns, columns]`: APC-corrected Frobenius norm of its couplings.

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
    """Returns scores `[L, L]` less the product of row and column mean over the total mean, the diagonal left out.

    Dunn, Wahl and Gloor 2008.
    """
    scores = scores.clone().fill_diagonal_(0)
    columns = max(len(scores) - 1, 1)
    mean = scores.sum(0) / columns
    total = scores.sum() / (columns * len(scores))
    return (scores - torch.outer(mean, mean) / total.clamp_min(torch.finfo(scores.dtype).tiny)).fill_diagonal_(0)


def mean_field_dca(tokens: np.ndarray | Tensor, pseudocount: float = PSEUDOCOUNT) -> tuple[Tensor, float]:
    """Returns the contact scores float32 `[columns, columns]` of the informative rows of an alignment, and their
    Neff.
    """
    tokens = informative_rows(torch.as_tensor(tokens))
    weights = sequence_weights(tokens)
    return _scores(tokens, weights, pseudocount), float(weights.sum())


def _scores(tokens: Tensor, weights: Tensor, pseudocount: float = PSEUDOCOUNT) -> Tensor:
    return scores_of(couplings(torch.where(tokens == UNKNOWN, GAP, tokens), weights, pseudocount))


class Ranking(NamedTuple):
    """Scores of the pairs of a chain or a complex.

    scores: float32 `[columns, columns]`; NaN in the blocks whose alignment is too shallow.
    depths: Neff of each chain.
    between: Neff of the paired rows of two chains, by their numbers.
    notes: what is not ranked, and what is shallow.
    """

    scores: Tensor
    depths: list[float]
    between: dict[tuple[int, int], float]
    notes: list[str]


def rank(tokens: np.ndarray, chains: Sequence[int] = (), least: float = LEAST_NEFF) -> Ranking:
    """Scores the pairs within each chain, from all rows that have residues there, and the pairs of two chains, from
    the rows that have both.

    Args:
        tokens: uint8 `[rows, columns]`, the query first.
        chains: lengths of the chains of a complex; none for one chain.
        least: Neff below which pairs are not ranked.

    Raises:
        UserError: no chain is deep enough.
    """
    parts = spans(chains, tokens.shape[1])
    found = torch.full((tokens.shape[1],) * 2, torch.nan)
    depths, between, notes = [], {}, []
    for number, (span, rows) in enumerate(zip(parts, chain_rows(tokens, chains))):
        informative = informative_rows(torch.from_numpy(rows))
        weights = sequence_weights(informative)
        depths.append(depth := float(weights.sum()))
        what = f"chain {name_of(number)}" if chains else "the alignment"
        if depth >= least:
            found[span, span] = _scores(informative, weights)
        notes += _depth_note(what, len(rows), depth, least)
    for one, other in combinations(range(len(parts)), 2):
        paired, width = paired_rows(tokens, parts[one], parts[other]), parts[one].stop - parts[one].start
        pair = f"chains {name_of(one)} and {name_of(other)}"
        if (twice := written_twice(paired, width)).any():
            paired = paired[~twice]
            notes.append(
                f"{pair} are copies: {twice.sum():,} row(s) hold one protein twice and tell nothing between them"
            )
        rows = torch.from_numpy(paired)
        weights = sequence_weights(rows) if len(rows) else torch.zeros(0)
        depth = between[one, other] = float(weights.sum())
        if depth >= least and len(rows):
            block = _scores(rows, weights)[:width, width:]
            found[parts[one], parts[other]], found[parts[other], parts[one]] = block, block.T
        if len(rows) or not twice.any():
            notes += _depth_note(f"the pairing of {pair}", len(rows), depth, least)
    if found.isnan().all():
        raise UserError(
            f"There is nothing to rank: {notes[0]}; search for more homologous sequences, or rank noise with --force."
        )
    return Ranking(found, depths, between, notes)


def _depth_note(what: str, rows: int, depth: float, least: float) -> list[str]:
    if depth < least:
        return [f"{what} has {rows:,} row(s) that count as {depth:.1f} (Neff), and is not ranked below {least:g}"]
    if depth < SHALLOW:
        return [f"{what} has Neff {depth:.1f}: below {SHALLOW:g} the ranking is hardly better than chance"]
    return []


def memory_needed(columns: int) -> int:
    """Bytes that the covariance, its factor and its inverse take."""
    return 3 * 4 * (columns * (STATES - 1)) ** 2


# -- triune protein dca -----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Returns the options of `triune protein dca`."""
    p = Parser(
        prog="triune protein dca",
        description="Predict contacts from alignments by mean-field direct coupling analysis (pseudocount 0.5, rows "
        "weighted at 80 % identity, average product correction): the classical baseline. It needs no model. In a "
        "complex, pairs within a chain are ranked from all rows, pairs between chains from the rows that have both; "
        "between copies of one protein nothing is ranked.",
    )
    p.add_argument(
        "input", metavar="INPUT", nargs="+", type=Path,
        help="alignments (A3M, A2M, aligned FASTA, Stockholm, Clustal, .aln), or folders, searched to the bottom",
    )  # fmt: skip
    p.add_argument(
        "--structure", metavar="FILE", type=Path, action="append", default=[],
        help="PDB or mmCIF file to score the prediction with, or a folder of them; may be repeated",
    )  # fmt: skip
    p.add_argument("--chain", help="its chain; left out, the one that matches the query")
    p.add_argument(
        "--out", metavar="DIR", type=Path,
        help="write DIR/NAME.dca.npz (scores of all pairs), NAME.dca.rr (CASP's format) and NAME.dca.png",
    )  # fmt: skip
    p.add_argument("--top", type=int, default=10, help="long-range pairs to print (default 10)")
    p.add_argument("--as", dest="kind", choices=[k for k in KINDS if k != "sequences"], default="auto",
                   help="read FASTA as an alignment; auto (default) decides by gaps, lengths and likeness")  # fmt: skip
    p.add_argument(
        "--force", action="store_true",
        help=f"rank also below Neff {LEAST_NEFF:g}, and what looks like DNA, RNA or unknown residues",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace files of the same names in DIR")
    p.add_argument("--no-png", action="store_true", help="draw nothing")
    return p


def main(args: list[str]) -> int:
    """Runs `triune protein dca` and returns its exit code: 2 if some of several inputs could not be done.

    Raises:
        UserError: a mistake in the options, or in the only input.
    """
    options = parser().parse_args(args)
    if options.top < 1:
        raise UserError(f"--top is {options.top}, but must be at least 1.")
    if options.chain and not options.structure:
        raise UserError("--chain names a chain of --structure FILE, which was not given.")
    queries = Queries(options.input, options.kind, options.force, only_alignments=True)
    problems = queries.problems
    chains = read_structures(options.structure, options.chain, problems)
    done = 0
    for file in queries.files:
        for query in queries.of(file):
            try:
                with claimed(_files(query, options)["npz"]) if options.out else contextlib.nullcontext():
                    _one(query, matching(query, chains, problems), options)
                done += 1
            except UserError as error:
                problems.append(f"'{query.source}': {error}" if str(query.source) not in str(error) else str(error))
    if len(problems) == 1 and not done:
        raise UserError(problems[0])
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _one(query: Query, truth: Truth | None, options: argparse.Namespace) -> None:
    alignment = query.alignment
    sequence, chains = alignment.query, alignment.chains
    _check_new(query, options)
    _check_size(query.source, alignment)
    found = rank(alignment.tokens, chains, 0.0 if options.force else LEAST_NEFF)
    depths = ", ".join(f"{depth:.1f}" for depth in found.depths)
    print(f"{query.source}: {len(sequence)} residues, {len(alignment.names):,} rows, Neff {depths}")
    for note in (*query.notes, *found.notes):
        print(f"  {note}")
    if truth:
        # What is not ranked has no score.
        ranked = truth._replace(contacts=truth.contacts.masked_fill(found.scores.isnan(), -1))
        _print_precisions(scores(found.scores, ranked, chains), truth)
    apart = separations(chains, len(sequence)) if chains else None
    _print_pairs(top_pairs(found.scores, options.top, separation=apart), found.scores, sequence, chains, truth)
    if chains and found.between:
        best = top_pairs(found.scores, options.top, BETWEEN, BETWEEN, apart)
        print("  between chains" if best else "  between chains: no pair is ranked")
        _print_pairs(best, found.scores, sequence, chains, truth)
    if options.out:
        _write(query, found, truth, options)


def _print_pairs(
    pairs: list[tuple[int, int]], values: Tensor, sequence: str, chains: Sequence[int], truth: Truth | None
) -> None:
    names = [
        f"{chain + ':' if chains else ''}{letter}{at}"
        for letter, (chain, at) in zip(sequence, place_in_chain(chains, len(sequence)))
    ]
    for i, j in pairs:
        print(f"  {names[i]:<6} {names[j]:<6} {values[i, j]:7.4f}{_distance(truth, i, j)}")


def _distance(truth: Truth | None, i: int, j: int) -> str:
    if truth is None:
        return ""
    distance = float(np.linalg.norm(truth.chain.cbeta[i] - truth.chain.cbeta[j]))
    return "  unresolved" if np.isnan(distance) else f"  {distance:5.1f} Å"


def _check_size(file: Path, alignment: Alignment) -> None:
    columns = alignment.tokens.shape[1]
    needed = memory_needed(columns)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise UserError(
            f"'{file}': {columns:,} columns need {needed / 1e9:.0f} GB and this machine has {there / 1e9:.0f} GB; cut "
            "the alignment into domains."
        )


def _print_precisions(found: dict[str, float], truth: Truth) -> None:
    for note in truth.chain.notes:
        print(f"  {truth.chain.name}: {note}")
    print(f"  {'':8}{'P@L':>8}{'P@L/2':>8}{'P@L/5':>8}   chance  ceiling of P@L")
    for name in ("short", "medium", "long", "between"):
        if not math.isnan(found.get(f"{name}_p_at_l", math.nan)):
            cells = "".join(f"{found[f'{name}_{score}']:8.3f}" for score in TENTHS)
            chance, ceiling = (found[f"{name}_p_at_l_{kind}"] for kind in ("chance", "ceiling"))
            print(f"  {name:8}{cells} {chance:8.3f} {ceiling:8.3f}")


def _files(query: Query, options: argparse.Namespace) -> dict[str, Path]:
    kinds = ["npz", "rr", *([] if options.no_png else ["png"])]
    return {kind: options.out / f"{query.name}.dca.{kind}" for kind in kinds}


def _check_new(query: Query, options: argparse.Namespace) -> None:
    """Raises UserError where a file of this name is there and --overwrite is not given."""
    there = [file for file in _files(query, options).values() if file.exists()] if options.out else []
    if there and not options.overwrite:
        raise UserError(f"'{there[0]}' is there already; --overwrite replaces it, or give another --out.")


def _write(query: Query, found: Ranking, truth: Truth | None, options: argparse.Namespace) -> None:
    from .plots import contact_map

    files = _files(query, options)
    sequence, chains, values = query.alignment.query, query.alignment.chains, found.scores
    write_arrays(
        files["npz"], name=query.name, scores=values.numpy(), sequence=sequence, neff=np.array(min(found.depths)),
        chains=np.array(chains) if chains else None,
    )  # fmt: skip
    largest = float(values.nan_to_num(0).max())
    shares = (values / (largest or 1.0)).clamp(min=0)
    remark = "the last column is the score as a share of the largest: an order, no probability"
    write_rr(files["rr"], query.name, sequence, shares, "mean-field DCA", chains, remark)
    if not options.no_png:
        caption = f"{len(sequence):,} residues, {len(query.alignment.names):,} rows, Neff {min(found.depths):,.1f}"
        known = None if truth is None else truth.contacts.numpy()
        contact_map(
            files["png"], values.numpy(), query.name, caption, known, chains, "coupling score (Frobenius norm, APC)"
        )
    print("  written to " + "  ".join(map(str, files.values())))
