"""What `triune protein contacts` writes and prints: CASP RR files, arrays, and tables."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.files import write_atomic
from ..read.structure import Chain
from .dca import top_pairs
from .metrics import RANGES, SCORES, distances
from .predictors import Prediction

NEAREST = 6
"""Pairs closer than this in sequence are not written."""

LONG = RANGES["long"][0]
TITLES = ("P@L", "P@L/2", "P@L/5", "AUC")
"""Of `metrics.SCORES`."""

MOST_NOTES = 10
"""Notes that are printed about a batch."""

ABOUT = {"short": "6-11", "medium": "12-23", "long": "24+"}


@dataclass
class Result:
    """What is known about one input after its prediction.

    Args:
        name: of the sequence; files carry it.
        source: file it came from.
        sequence: letters.
        rows, neff: of the alignment; 1 and None for a lone sequence.
        pairs: the most probable long-range pairs, as `confident_pairs` gives them.
        confidence: mean probability of the L/5 most probable long-range pairs: the precision the model expects of
            itself; None for a chain without such pairs.
        chain: name of the chain it was scored with, None without a structure.
        scores: as from `metrics.precisions`, one number each.
        notes: sentences about the input.
        files: what was written, by kind.
    """

    name: str
    source: str
    sequence: str
    rows: int
    neff: float | None
    pairs: list[dict[str, Any]]
    confidence: float | None
    chain: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: what is not a number becomes null."""
        scores = {name: None if math.isnan(value) else value for name, value in self.scores.items()}
        return {**vars(self), "scores": scores or None}

    def depth(self) -> str:
        """What is known beside the sequence, in words."""
        return "no alignment" if self.neff is None else f"alignment of {self.rows:,} rows, Neff {self.neff:,.1f}"


def confident_pairs(prediction: Prediction, sequence: str, chain: Chain | None, count: int) -> list[dict[str, Any]]:
    """The `count` most probable pairs at least 24 residues apart, best first; i and j count from 1."""
    known = None if chain is None else distances(torch.from_numpy(chain.cbeta))
    found = []
    for i, j in top_pairs(prediction.contacts, count, LONG):
        pair: dict[str, Any] = {
            "i": i + 1, "j": j + 1, "residues": f"{sequence[i]}{i + 1}-{sequence[j]}{j + 1}",
            "probability": round(float(prediction.contacts[i, j]), 4),
        }  # fmt: skip
        if prediction.distances is not None:
            pair["expected_distance"] = round(float(prediction.distances[i, j]), 2)
        if known is not None:
            distance = float(known[i, j])
            pair["true_distance"] = None if math.isnan(distance) else round(distance, 2)
        found.append(pair)
    return found


def confidence(contacts: Tensor) -> float | None:
    """Mean probability of the L/5 most probable pairs at least 24 apart."""
    best = top_pairs(contacts, max(1, len(contacts) // 5), LONG)
    return float(np.mean([float(contacts[i, j]) for i, j in best])) if best else None


# -- files ------------------------------------------------------------------------------------------------------------


def write_rr(target: Path, name: str, sequence: str, contacts: Tensor, method: str) -> None:
    """Write the contacts in CASP's RR format: `i j 0 8 p`, most probable first.

    Of each range (6-11, 12-23, 24 and more apart) the 5 L most probable pairs, so that every precision up to L of each
    can be computed from the file.
    """
    length = len(sequence)
    i, j = torch.triu_indices(length, length, min(NEAREST, length))
    p = contacts[i, j]
    kept = [
        inside[p[inside].topk(min(5 * length, len(inside))).indices]
        for first, last in RANGES.values()
        if len(inside := ((j - i >= first) & (j - i <= last)).nonzero().flatten())
    ]
    order = torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64)
    order = order[p[order].argsort(descending=True, stable=True)]
    rows = zip((i[order] + 1).tolist(), (j[order] + 1).tolist(), p[order].tolist())
    head = ["PFRMAT RR", f"TARGET {_ascii(name)}", "AUTHOR triune", f"METHOD {_ascii(method)}", "MODEL 1"]
    lines = [*head, *textwrap.wrap(sequence, 50), *(f"{a} {b} 0 8 {q:.6f}" for a, b, q in rows), "END", ""]
    write_atomic(target, "\n".join(lines).encode("ascii"))


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")


def write_arrays(target: Path, name: str, sequence: str, prediction: Prediction) -> None:
    """Write `contacts` and, if there are any, `distances` in ångström, float32 [residues, residues], and the
    sequence.
    """
    arrays: dict[str, Any] = {"name": name, "sequence": sequence, "contacts": prediction.contacts.numpy()}
    if prediction.distances is not None:
        arrays["distances"] = prediction.distances.numpy()
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomic(target, content.getvalue())


# -- what is printed --------------------------------------------------------------------------------------------------


def show(results: list[Result], mean: dict[str, float]) -> None:
    """Print one result in full, or several as one line each with the mean of their scores."""
    if len(results) == 1:
        only = results[0]
        print(f"{only.name}: {len(only.sequence):,} residues, {only.depth()}, confidence {_number(only.confidence)}")
        for note in only.notes:
            print(f"  {note}")
        _print(pair_table(only.pairs) if only.pairs else "no pair is 24 or more residues apart")
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


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


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


def pair_table(pairs: list[dict[str, Any]]) -> Any:
    """The most probable long-range pairs."""
    expected, known = ("expected_distance" in pairs[0]), ("true_distance" in pairs[0])
    table = _table("long-range pair", "apart", "p", *["expected Å"] * expected, *["true Å"] * known)
    for pair in pairs:
        cells = [pair["residues"], str(pair["j"] - pair["i"]), f"{pair['probability']:.3f}"]
        cells += [f"{pair['expected_distance']:.1f}"] if expected else []
        if known:
            distance = pair["true_distance"]
            cells.append("unresolved" if distance is None else f"{distance:.1f}")
        table.add_row(*cells)
    return table


def score_table(scores: dict[str, float]) -> Any:
    """Precision by range, with what chance and a perfect predictor reach below it."""
    table = _table("precision", "apart", *TITLES, left=2)
    for name, about in ABOUT.items():
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
