"""Clusters of related sequences, so that what is held out is no relative of what is trained on.

MMseqs2 does it where it is installed; otherwise the filter here: pairs of sequences that share rare words of three
residues are aligned, and relatives, direct or through others, form a cluster.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ....core.errors import UserError
from ...read.alphabet import encode

IDENTITY = 0.3
"""Share of equal residues in the aligned part from which two proteins count as related."""

COVERAGE = 0.5
"""Share of the shorter sequence that must be aligned."""

EVALUE = 1e-5
"""Expected number of random alignments as good, for one pair (Karlin-Altschul with BLOSUM62, gaps 11 + 1)."""

LAMBDA, K = 0.267, 0.041
WORD = 3
BLOCK = 512
Advance = Callable[[int], None]


def mmseqs_clusters(sequences: list[str], identity: float = IDENTITY, threads: int = 1) -> np.ndarray:
    """Returns the number of each sequence's cluster, int64 [sequences], as `mmseqs easy-cluster` finds them.

    Relatives are linked singly; at least half of the shorter sequence must be aligned.

    Raises:
        UserError: MMseqs2 fails; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="triune-") as folder:
        place = Path(folder)
        fasta = "".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
        (place / "sequences.fasta").write_text(fasta)
        command = ["mmseqs", "easy-cluster", "sequences.fasta", "out", "temporary", "--min-seq-id", f"{identity}"]
        command += ["-c", f"{COVERAGE}", "--cov-mode", "1", "--cluster-mode", "1", "--threads", f"{threads}", "-v", "1"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-300:]
            raise UserError(f"MMseqs2 failed to cluster the sequences ({said}); --no-mmseqs uses the built-in filter.")
        clusters = np.arange(len(sequences))
        for line in (place / "out_cluster.tsv").read_text().splitlines():
            representative, member = line.split("\t")
            clusters[int(member)] = int(representative)
    return clusters


def has_mmseqs() -> bool:
    """Whether MMseqs2 is installed."""
    return shutil.which("mmseqs") is not None


def filtered_clusters(
    sequences: list[str], identity: float = IDENTITY, advance: Advance = lambda _: None
) -> np.ndarray:
    """Returns the number of each sequence's cluster, int64 [sequences], by single linkage of related pairs.

    Args:
        sequences: letters.
        identity: see `relation`.
        advance: called with the number of pairs done.
    """
    parent = np.arange(len(sequences))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    for a, b in candidates(sequences):
        # What is in one cluster already need not be aligned.
        if root(a) != root(b) and relation(sequences[a], sequences[b]) >= identity:
            parent[max(root(a), root(b))] = min(root(a), root(b))
        advance(1)
    return np.array([root(number) for number in range(len(sequences))], dtype=np.int64)


def pairs_to_align(sequences: int) -> int:
    """Number of pairs that `candidates` returns at most: all of some two hundred sequences, twenty each of many."""
    return min(sequences * (sequences - 1) // 2, max(20_000, 20 * sequences))


def candidates(sequences: list[str]) -> list[tuple[int, int]]:
    """Returns the pairs a < b that are most alike in their words, best first."""
    words = _words(sequences)
    wanted = pairs_to_align(len(sequences))
    scores, numbers = torch.empty(0), torch.empty(0, dtype=torch.long)
    count = len(sequences)
    for start in range(0, count, BLOCK):
        block = words[start : start + BLOCK] @ words.T
        above = torch.arange(count) > torch.arange(start, start + len(block))[:, None]
        new = block[above]
        at = torch.nonzero(above)
        scores = torch.cat([scores, new])
        numbers = torch.cat([numbers, (at[:, 0] + start) * count + at[:, 1]])
        if len(scores) > wanted:
            scores, best = scores.topk(wanted)
            numbers = numbers[best]
    order = scores.argsort(descending=True)
    return [divmod(number, count) for number in numbers[order].tolist()]


def _words(sequences: list[str]) -> torch.Tensor:
    """Which words of three residues occur, the rarer the heavier, scaled to length one: `[sequences, 9261]`."""
    states = 21
    found = torch.zeros(len(sequences), states**WORD)
    for number, sequence in enumerate(sequences):
        tokens = np.minimum(encode(sequence), states - 1).astype(np.int64)
        if len(tokens) >= WORD:
            code = tokens[:-2] * states**2 + tokens[1:-1] * states + tokens[2:]
            found[number, torch.from_numpy(np.unique(code))] = 1
    share = found.mean(0).clamp_min(1 / max(len(sequences), 1))
    found *= (-share.log() + 1e-3).sqrt()
    return torch.nn.functional.normalize(found, dim=1)


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    matrix = substitution_matrices.load("BLOSUM62")
    return PairwiseAligner(mode="local", substitution_matrix=matrix, open_gap_score=-12, extend_gap_score=-1)


def relation(one: str, other: str) -> float:
    """Returns the identity of two sequences, 0 if they show no relation.

    It is the share of equal residues in the best local alignment, where that covers at least half of the shorter
    sequence and is better than chance.
    """
    least = math.log(K * len(one) * len(other) / EVALUE) / LAMBDA
    if _aligner().score(one, other) < least:
        return 0.0
    same = aligned = 0
    for (start, end), (first, last) in zip(*_aligner().align(one, other)[0].aligned):
        aligned += end - start
        same += sum(a == b for a, b in zip(one[start:end], other[first:last]))
    return same / aligned if aligned >= COVERAGE * min(len(one), len(other)) else 0.0


# -- split and audit --------------------------------------------------------------------------------------------------


def split_by_cluster(clusters: np.ndarray, shares: dict[str, float], seed: int = 0) -> np.ndarray:
    """Returns the side of each sequence, str [sequences]: whole clusters, at random, the rest for `train`.

    A cluster that alone exceeds a share is left to training.

    Args:
        clusters: int64 [sequences].
        shares: of each held-out side, such as {"val": 0.05, "test": 0.05}.
        seed: of the choice.
    """
    side = np.full(len(clusters), "train", dtype="<U5")
    order = np.random.default_rng(seed).permutation(np.unique(clusters)).tolist()
    sizes = dict(zip(*(values.tolist() for values in np.unique(clusters, return_counts=True))))
    for name, share in shares.items():
        wanted = math.ceil(share * len(clusters)) if share else 0
        for cluster in list(order):
            if wanted and sizes[cluster] <= wanted:
                side[clusters == cluster] = name
                wanted -= sizes[cluster]
                order.remove(cluster)
    return side


def separate(
    sequences: list[str], side: np.ndarray, identity: float = IDENTITY, advance: Advance = lambda _: None
) -> np.ndarray:
    """Returns the sides after every held-out sequence that has a relative in training went there, too.

    Clusters do not see to that alone: members are compared with a representative only, and fast searches miss some.

    Args:
        sequences: letters.
        side: str [sequences].
        identity: see `relation`.
        advance: called with the number of held-out sequences done, over the rounds.
    """
    side = side.copy()
    new = np.flatnonzero(side == "train")
    while len(new):
        held = np.flatnonzero(side != "train")
        found, _ = closest_relatives(sequences, held, new, advance=advance)
        new = held[found >= identity]
        side[new] = "train"
    return side


def closest_relatives(
    sequences: list[str], held: np.ndarray, train: np.ndarray, nearest: int = 20, advance: Advance = lambda _: None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the identity of the closest relative of each held-out sequence among others, and its number.

    Args:
        sequences: letters.
        held, train: numbers of sequences.
        nearest: others, most alike in their words, that each held-out one is aligned with.
        advance: called with the number of held-out sequences done.
    """
    identity, closest = np.zeros(len(held)), np.zeros(len(held), dtype=np.int64)
    partners = _most_alike(sequences, held, train, nearest)
    for at, number in enumerate(held.tolist()):
        for other in partners[at].tolist():
            if (found := relation(sequences[number], sequences[other])) > identity[at]:
                identity[at], closest[at] = found, other
        advance(1)
    return identity, closest


def _most_alike(sequences: list[str], held: np.ndarray, train: np.ndarray, nearest: int) -> np.ndarray:
    """Numbers of the training sequences most alike in their words, [held out, at most `nearest`]."""
    words = _words(sequences)
    trained = words[torch.from_numpy(train)]
    parts = [words[torch.from_numpy(held[start : start + BLOCK])] @ trained.T for start in range(0, len(held), BLOCK)]
    if not parts:
        return np.empty((0, 0), dtype=np.int64)
    return train[torch.cat(parts).topk(min(nearest, len(train)), dim=1).indices.numpy()]


class Audit(NamedTuple):
    """How much of the held-out sequences is known from training.

    Args:
        held: int64 [held out], their numbers.
        identity: float [held out], that of the closest training sequence (see `relation`), 0 without one.
        closest: int64 [held out], the number of that sequence.
        identical: held-out sequences that are training sequences.
        same_file: held-out sequences from a file that training sequences come from.
    """

    held: np.ndarray
    identity: np.ndarray
    closest: np.ndarray
    identical: int
    same_file: int


def audit(sequences: list[str], side: np.ndarray, files: list[str], advance: Advance = lambda _: None) -> Audit:
    """Looks for relatives of the held-out sequences in training.

    Args:
        sequences: letters.
        side: str [sequences].
        files: what each came from.
        advance: called with the number of held-out sequences done.
    """
    train, held = np.flatnonzero(side == "train"), np.flatnonzero(side != "train")
    identity, closest = closest_relatives(sequences, held, train, advance=advance)
    known, known_files = {sequences[number] for number in train}, {files[number] for number in train}
    identical = sum(sequences[number] in known for number in held)
    return Audit(held, identity, closest, identical, sum(files[number] in known_files for number in held))
