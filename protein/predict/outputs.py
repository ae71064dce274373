"""What `triune protein contacts` writes and prints: CASP RR files, arrays, and tables."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.files import write_atomic
from ..read.complexes import BETWEEN, place_in_chain, separations, spans
from ..read.structure import Chain
from .metrics import COMPLEX_RANGES, RANGES, SCORES, distances, pairs_apart
from .predictors import Prediction

LONG = RANGES["long"][0]
TITLES = ("P@L", "P@L/2", "P@L/5", "AUC")
"""Of `metrics.SCORES`."""

MOST_NOTES = 10
"""Notes that are printed about a batch."""

ABOUT = {"short": "6-11", "medium": "12-23", "long": "24+", "between": "two chains"}


@dataclass
class Result:
    """What is known about one input after its prediction.

    Args:
        name: of the sequence; files carry it.
        source: file it came from.
        sequence: letters.
        rows, neff: of the alignment; 1 and None for a lone sequence. Of a complex, the least Neff of its chains.
        pairs: the most probable long-range pairs within chains, as `confident_pairs` gives them.
        confidence: mean probability of the L/5 most probable long-range pairs: the precision the model expects of
            itself; None for a chain without such pairs.
        chains: lengths of the chains of a complex, which `sequence` joins; empty for one chain.
        between: the most probable pairs of residues of two chains.
        chain: name of the chain it was scored with, None without a structure.
        scores: as from `metrics.precisions`, one number each.
        notes: sentences about the input.
        files: what was written, by kind.
        title: the name that its file gives it; `name` is made of it, fit for files and unlike all others.
    """

    name: str
    source: str
    sequence: str
    rows: int
    neff: float | None
    pairs: list[dict[str, Any]]
    confidence: float | None
    chains: list[int] = field(default_factory=list)
    between: list[dict[str, Any]] = field(default_factory=list)
    chain: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    title: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: what is not a number becomes null."""
        scores = {name: None if math.isnan(value) else value for name, value in self.scores.items()}
        return {**vars(self), "scores": scores or None}

    def depth(self) -> str:
        """What is known beside the sequence, in words."""
        return "no alignment" if self.neff is None else f"alignment of {self.rows:,} rows, Neff {self.neff:,.1f}"


def top_pairs(
    scores: Tensor, count: int, first: int = LONG, last: int = RANGES["long"][1], separation: Tensor | None = None
) -> list[tuple[int, int]]:
    """The pairs i < j of a range of separations that score highest, best first, 0-based; NaN is no score.

    Args:
        scores: `[residues, residues]`.
        count: pairs at most.
        first, last, separation: as for `metrics.pairs_apart`.
    """
    i, j = pairs_apart(len(scores), first, last, separation)
    known = ~scores[i, j].isnan()
    i, j = i[known], j[known]
    best = scores[i, j].topk(min(count, len(i))).indices
    return list(zip(i[best].tolist(), j[best].tolist()))


def confident_pairs(
    prediction: Prediction, sequence: str, chain: Chain | None, count: int, chains: Sequence[int] = (),
    between: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """The `count` most probable pairs at least 24 residues apart in one chain, or `between` chains, best first.

    i and j count from 1; in a complex each in its own chain, whose letters are `chain_i` and `chain_j`.
    """
    known = None if chain is None else distances(torch.from_numpy(chain.cbeta))
    apart = separations(chains, len(sequence)) if chains else None
    first, last = (BETWEEN, BETWEEN) if between else RANGES["long"]
    places = place_in_chain(chains, len(sequence))
    found = []
    for i, j in top_pairs(prediction.contacts, count, first, last, apart):
        (chain_i, at_i), (chain_j, at_j) = places[i], places[j]
        ends = [f"{chain_i}:{sequence[i]}{at_i}", f"{chain_j}:{sequence[j]}{at_j}"]
        pair: dict[str, Any] = {
            "i": at_i, "j": at_j, "residues": "-".join(ends if chains else [end[2:] for end in ends]),
            "probability": round(float(prediction.contacts[i, j]), 4),
        }  # fmt: skip
        if chains:
            pair |= {"chain_i": chain_i, "chain_j": chain_j}
        if prediction.distances is not None:
            distance = float(prediction.distances[i, j])
            pair["expected_distance"] = None if math.isnan(distance) else round(distance, 2)
        if known is not None:
            distance = float(known[i, j])
            pair["true_distance"] = None if math.isnan(distance) else round(distance, 2)
        found.append(pair)
    return found


def confidence(contacts: Tensor, chains: Sequence[int] = ()) -> float | None:
    """Mean probability of the L/5 most probable pairs at least 24 apart in one chain; None without such a pair."""
    apart = separations(chains, len(contacts)) if chains else None
    best = top_pairs(contacts, max(1, len(contacts) // 5), separation=apart)
    return float(np.mean([float(contacts[i, j]) for i, j in best])) if best else None


def mean_scores(results: list[Result]) -> dict[str, float]:
    """The means of the scores over the results that have them; a chain without a pair in a range has none there."""
    scored = [result.scores for result in results if result.scores]
    keys = dict.fromkeys(key for scores in scored for key in scores)
    known = {key: [s[key] for s in scored if key in s and not math.isnan(s[key])] for key in keys}
    return {key: float(np.mean(values)) for key, values in known.items() if values}


# -- files ------------------------------------------------------------------------------------------------------------


def write_rr(
    target: Path, name: str, sequence: str, contacts: Tensor, method: str, chains: Sequence[int] = (), remark: str = ""
) -> None:
    """Writes the contacts in CASP's RR format: `i j 0 8 p`, most probable first; of a complex `A1 B5 0 8 p`.

    Of each range (6-11, 12-23, 24 and more apart, between chains) the 5 L most probable pairs, so that every precision
    up to L of each can be computed from the file. NaN is left out.
    """
    apart = separations(chains, len(sequence)) if chains else None
    ranges = (COMPLEX_RANGES if chains else RANGES).values()
    pairs = [pair for first, last in ranges for pair in top_pairs(contacts, 5 * len(sequence), first, last, apart)]
    values = contacts.numpy()
    pairs.sort(key=lambda pair: -float(values[pair]))
    places = [f"{letter if chains else ''}{at}" for letter, at in place_in_chain(chains, len(sequence))]
    head = ["PFRMAT RR", f"TARGET {_ascii(name)}", "AUTHOR triune", f"METHOD {_ascii(method)}"]
    head += [f"REMARK {_ascii(remark)}"] if remark else []
    letters = [line for span in spans(chains, len(sequence)) for line in textwrap.wrap(sequence[span], 50)]
    rows = [f"{places[i]} {places[j]} 0 8 {values[i, j]:.6f}" for i, j in pairs]
    write_atomic(target, "\n".join([*head, "MODEL 1", *letters, *rows, "END", ""]).encode("ascii"))


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")


def write_arrays(target: Path, **arrays: Any) -> None:
    """Writes arrays as compressed `.npz`, those that are None left out."""
    content = io.BytesIO()
    np.savez_compressed(content, **{name: array for name, array in arrays.items() if array is not None})
    write_atomic(target, content.getvalue())


# -- what is printed --------------------------------------------------------------------------------------------------


def show(results: list[Result], mean: dict[str, float]) -> None:
    """Prints one result in full, or several as one line each with the mean of their scores."""
    if len(results) == 1:
        only = results[0]
        print(f"{only.name}: {len(only.sequence):,} residues, {only.depth()}, confidence {_number(only.confidence)}")
        for note in only.notes:
            print(f"  {note}")
        _print(pair_table(only.pairs) if only.pairs else "no pair is 24 or more residues apart")
        if only.between:
            _print(pair_table(only.between, "pair between chains"))
        if only.scores:
            print(f"scored with {only.chain}")
            _print(score_table(only.scores))
        print("  ".join(only.files.values()))
    elif results:
        _print(batch_table(results))
        if mean:
            print(f"mean of {sum(bool(result.scores) for result in results):,} chains with a structure")
            _print(score_table(mean))
        notes = _counted(results)
        print("\n".join(notes[:MOST_NOTES] + [f"... and {len(notes) - MOST_NOTES} more"] * (len(notes) > MOST_NOTES)))
        print(f"written to {Path(next(iter(results[0].files.values()))).parent}")


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _counted(results: Iterable[Result]) -> list[str]:
    """Notes, each once."""
    carriers: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            carriers.setdefault(note, []).append(result.name)
    return [f"{names[0] if len(names) == 1 else f'{len(names)} inputs'}: {note}" for note, names in carriers.items()]


def _table(*columns: str, left: int = 1) -> Any:
    """A table with the first `left` columns aligned left; lines are drawn on a terminal only."""
    import sys

    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", overflow="fold")
    return made


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    # In a pipe nothing is cut to the width of a terminal.
    (console if console.is_terminal else Console(width=10_000, highlight=False, markup=False)).print(table)


def pair_table(pairs: list[dict[str, Any]], title: str = "long-range pair") -> Any:
    """The most probable pairs of a range."""
    expected, known = ("expected_distance" in pairs[0]), ("true_distance" in pairs[0])
    table = _table(title, "apart", "p", *["expected Å"] * expected, *["true Å"] * known)
    for pair in pairs:
        apart = "-" if pair.get("chain_i") != pair.get("chain_j") else str(pair["j"] - pair["i"])
        cells = [pair["residues"], apart, f"{pair['probability']:.3f}"]
        cells += [_number(pair["expected_distance"], 1)] if expected else []
        if known:
            distance = pair["true_distance"]
            cells.append("unresolved" if distance is None else f"{distance:.1f}")
        table.add_row(*cells)
    return table


def score_table(scores: dict[str, float]) -> Any:
    """Precision by range, with what chance and a perfect predictor reach below it."""
    table = _table("precision", "apart", *TITLES, left=2)
    for name, about in ABOUT.items():
        if name == "between" and "between_p_at_l" not in scores:
            continue
        for kind, label in (("", name), ("_chance", "  chance"), ("_ceiling", "  ceiling")):
            values = [scores.get(f"{name}_{score}{kind}", math.nan) for score in SCORES]
            cells = [_number(value) for value in values]
            table.add_row(label, about if not kind else "", *cells, style="dim" if kind else None)
    return table


def batch_table(results: list[Result]) -> Any:
    """One line for each input."""
    scored = any(result.scores for result in results)
    table = _table("name", "residues", "Neff", "confidence", *["long P@L", "chance"] * scored, "best long-range pair")
    for result in results:
        cells = [result.name, f"{len(result.sequence):,}", "-" if result.neff is None else f"{result.neff:,.1f}"]
        cells.append(_number(result.confidence))
        if scored:
            values = [result.scores.get(f"long_p_at_l{kind}", math.nan) for kind in ("", "_chance")]
            cells += map(_number, values)
        best = result.pairs[0] if result.pairs else None
        table.add_row(*cells, f"{best['residues']} {best['probability']:.2f}" if best else "-")
    return table
