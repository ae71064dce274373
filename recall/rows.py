"""The rows of each task, drawn anew for every batch, and what has to be said at which of their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tasks import LAGS, STATES, VOCAB

IGNORED = -100
"""A target that nothing is asked at."""


@dataclass(frozen=True)
class Rows:
    """Rows of a task.

    Args:
        tokens: int `[rows, length]`.
        targets: int `[rows, length]`, what is to be said at each token; `IGNORED` where nothing is asked.
        slices: int `[rows, length]` by name of a slice: the number of the slice that a target belongs to.
        truth: for `lag`, float `[rows, states]`, the distribution of the token after the last one.
        oracles: for `lag`, mean KL divergence from the truth in nats of what can be said without learning.
    """

    tokens: Tensor
    targets: Tensor
    slices: Tensor | None = None
    truth: Tensor | None = None
    oracles: dict[str, float] = field(default_factory=dict)


def _integers(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


def _distinct(rows: int, most: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `most` in each row, in random order, int `[rows, count]`."""
    return torch.rand(rows, most, generator=generator).argsort(1)[:, :count]


def mqar(rows: int, length: int, pairs: int, generator: torch.Generator) -> Rows:
    """Multi-query associative recall by the protocol of Zoology (Arora et al. 2023, arXiv:2312.04927, appendix E).

    Keys are 1 to VOCAB/2 - 1, values from VOCAB/2 on. `pairs` pairs stand first; each key is asked once, at an even
    place after them whose number g is drawn without repetition by p(g) ∝ g^(0.01 - 1). All other tokens are random.
    Slice q of 0 to 3: the quarter of the row's length that lies between a pair and its question.
    """
    half = VOCAB // 2
    keys, values = 1 + _distinct(rows, half - 1, pairs, generator), half + _distinct(rows, half, pairs, generator)
    tokens = _integers(0, VOCAB, (rows, length), generator)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    space = (length - 2 * pairs) // 2
    likely = torch.arange(1, space + 1, dtype=torch.float64) ** (0.01 - 1)
    gaps = torch.multinomial(likely.expand(rows, -1), pairs, generator=generator)
    places = 2 * pairs + 2 * gaps
    tokens.scatter_(1, places, keys)
    targets = torch.full_like(tokens, IGNORED).scatter_(1, places, values)
    apart = (places - 2 * torch.arange(pairs)) * 4 // length
    return Rows(tokens, targets, torch.zeros_like(tokens).scatter_(1, places, apart))


def induction(rows: int, length: int, pairs: int, generator: torch.Generator) -> Rows:
    """A start token, then a random segment of 8 to length/2 tokens, repeated until the row is full.

    Asked is each token of the repetitions but the first of them, before which nothing says that one begins. Two tokens
    may be followed by different ones within a segment, so that 1 is not quite reached by looking at one token.
    """
    period = _integers(8, length // 2 + 1, (rows, 1), generator)
    segment = _integers(1, 65, (rows, length // 2), generator)
    place = torch.arange(length).expand(rows, -1)
    row = segment.gather(1, place % period)
    tokens = torch.cat([torch.zeros_like(row[:, :1]), row[:, :-1]], dim=1)
    targets = row.masked_fill(place <= period, IGNORED)
    return Rows(tokens, targets, torch.zeros_like(tokens))


def copy(rows: int, length: int, pairs: int, generator: torch.Generator) -> Rows:
    """Selective copying (Gu and Dao 2023, section 3.1): `pairs` tokens of 14 kinds, scattered among blanks (token 0);
    then `pairs` markers (token 1), at which the tokens are to be said in their order.
    """
    room = length - pairs
    places = _distinct(rows, room, pairs, generator).sort(1).values
    wanted = _integers(2, 16, (rows, pairs), generator)
    tokens = torch.zeros(rows, length, dtype=torch.long).scatter_(1, places, wanted)
    tokens[:, room:] = 1
    targets = torch.full_like(tokens, IGNORED)
    targets[:, room:] = wanted
    return Rows(tokens, targets, torch.zeros_like(tokens))


def needle(rows: int, length: int, pairs: int, generator: torch.Generator) -> Rows:
    """`pairs` pairs at random even places of the first half; the last `pairs` tokens are their keys in random order.

    What lies between are tokens that are neither keys (1 to VOCAB/4 - 1) nor values (VOCAB/4 to VOCAB/2 - 1).
    """
    quarter, half = VOCAB // 4, VOCAB // 2
    keys, values = (
        1 + _distinct(rows, quarter - 1, pairs, generator),
        quarter + _distinct(rows, quarter, pairs, generator),
    )
    tokens = _integers(half, VOCAB, (rows, length), generator)
    places = 2 * _distinct(rows, length // 4, pairs, generator)
    tokens.scatter_(1, places, keys).scatter_(1, places + 1, values)
    order = _distinct(rows, pairs, pairs, generator)
    tokens[:, length - pairs :] = keys.gather(1, order)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, length - pairs :] = values.gather(1, order)
    return Rows(tokens, targets, torch.zeros_like(tokens))


def transitions() -> Tensor:
    """The one Markov matrix of the task `lag`, float64 `[STATES, STATES]`: each row from Dirichlet(0.5)."""
    gammas = torch.distributions.Gamma(torch.full((STATES, STATES), 0.5, dtype=torch.float64), 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = gammas.sample()
    return drawn / drawn.sum(1, keepdim=True)


def lag(rows: int, length: int, pairs: int, generator: torch.Generator) -> Rows:
    """Selective induction (D'Angelo, Croce and Flammarion 2025): P(x_t | x_(t-k)), k of `LAGS` unknown in each row.

    Every next token is a target. `oracles` are computed from the matrix at the last token: `bayes` weighs the lags by
    their posterior, `maximum_likelihood` takes the likeliest, `mixture` weighs all alike.
    """
    matrix, most = transitions(), max(LAGS)
    lags = torch.tensor(LAGS)[_integers(0, len(LAGS), (rows,), generator)]
    row = torch.zeros(rows, length + 1, dtype=torch.long)
    row[:, :most] = _integers(0, STATES, (rows, most), generator)
    for t in range(most, length + 1):
        before = row.gather(1, t - lags[:, None])[:, 0]
        row[:, t] = torch.multinomial(matrix[before], 1, generator=generator)[:, 0]
    tokens = row[:, :-1]
    truth = matrix[tokens.gather(1, length - lags[:, None])[:, 0]]
    said = torch.stack([matrix[tokens[:, length - k]] for k in LAGS], dim=1)  # [rows, lags, states]
    seen = [matrix[tokens[:, most - k : length - k], tokens[:, most:]].log().sum(1) for k in LAGS]
    posterior = torch.stack(seen, dim=1).softmax(1)
    best = torch.nn.functional.one_hot(posterior.argmax(1), len(LAGS)).double()
    weights = {"bayes": posterior, "maximum_likelihood": best, "mixture": torch.full_like(best, 1 / len(LAGS))}
    oracles = {name: divergence(truth, (w[..., None] * said).sum(1)) for name, w in weights.items()}
    return Rows(tokens, row[:, 1:], truth=truth, oracles=oracles)


def divergence(truth: Tensor, said: Tensor) -> float:
    """Mean KL divergence of the distributions `said` from `truth`, each `[rows, states]`, in nats."""
    truth, said = (x.double().clamp(min=1e-300) for x in (truth, said))
    inside = truth * (truth.log() - said.log())
    return max(0.0, float(inside.sum(1).mean()))  # rounding alone can make it negative


DRAW: dict[str, Callable[[int, int, int, torch.Generator], Rows]] = {
    "mqar": mqar, "induction": induction, "copy": copy, "lag": lag, "needle": needle,
}  # fmt: skip
"""`draw(rows, length, pairs, generator)` by the name of the task."""
