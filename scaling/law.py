"""The law loss = E + A / parameters^α + B / tokens^β, fitted to runs, and what it says about more compute.

Form and objective are those of Hoffmann et al., "Training Compute-Optimal Large Language Models" (2022), section 3.3:
the Huber loss of the difference of logarithms. The search differs: for a pair of exponents the best E, A and B are a
non-negative least-squares problem, so a grid over the exponents alone gives the starts, and each is then followed to
its end; the original's fit had stopped early (Besiroglu et al., "Chinchilla Scaling: A replication attempt", 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError

HUBER = 1e-3  # Hoffmann et al.
FLOPS_PER = 6  # floating-point operations a parameter and token in training: two forward, four backward
EXPONENTS = np.linspace(0.05, 1.5, 30)
LARGEST = 3.0  # of an exponent; beyond it the runs do not tell it
FEWEST = {True: 6, False: 4}
"""Runs that are needed, by whether parameters and tokens both vary: one more than the law has numbers."""


@dataclass(frozen=True)
class Law:
    """loss(N, D) = E + A / N^α + B / D^β; A or B is 0 where the runs share their parameters or tokens."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """The loss of models of `parameters` after `tokens`, which may be arrays that broadcast."""
        parameters, tokens = np.asarray(parameters, float), np.asarray(tokens, float)
        with np.errstate(over="ignore"):
            return self.e + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    @property
    def shares(self) -> tuple[float, float]:
        """The exponents of compute with which the best parameters and the best tokens grow; their sum is 1."""
        both = self.alpha + self.beta
        return self.beta / both, self.alpha / both

    def best(self, compute: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss that `compute` = 6 · parameters · tokens FLOPs reach."""
        n, d = self.shares
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return ratio * (compute / FLOPS_PER) ** n, (compute / FLOPS_PER) ** d / ratio


def fit(parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, near: Law | None = None) -> Law:
    """Fits the law to runs.

    Args:
        parameters: `[runs]`.
        tokens: `[runs]`, seen in training.
        loss: `[runs]`, after them.
        near: a law to start from instead of searching all exponents, for samples of the same runs.

    Raises:
        UserError: the runs are too few or too alike to tell the numbers of the law.
    """
    check(parameters, tokens)
    varies = (np.ptp(parameters) > 0, np.ptp(tokens) > 0)
    # In units of the geometric means all numbers of the law are of the size of the loss.
    scales = [float(np.exp(np.log(values).mean())) for values in (parameters, tokens)]
    x = np.log(np.stack([parameters / scales[0], tokens / scales[1]]))
    if near is None:
        starts = _starts(x, loss, varies)
    else:
        scaled = [near.a * scales[0] ** -near.alpha, near.b * scales[1] ** -near.beta]
        starts = [np.array([near.e, *scaled, near.alpha, near.beta])]
    found = min((_descend(start, x, loss, varies) for start in starts), key=lambda result: result[0])[1]
    e, a, b, alpha, beta = found
    return Law(e, a * scales[0] ** alpha, alpha, b * scales[1] ** beta, beta)


def check(parameters: np.ndarray, tokens: np.ndarray) -> None:
    """Raises UserError for runs that cannot tell the numbers of the law."""
    varies = [np.ptp(values) > 0 for values in (parameters, tokens)]
    if not any(varies):
        raise UserError("All runs have the same parameters and tokens; give runs that differ in one or in both.")
    both = all(varies)
    different = len(np.unique(np.stack([parameters, tokens]), axis=1)[0])
    if different < FEWEST[both]:
        what = "parameters and tokens" if both else "parameters" if varies[0] else "tokens"
        raise UserError(
            f"The law needs at least {FEWEST[both]} runs of different {what}, but there are {different}; train more."
        )
    if both and (together := abs(np.corrcoef(np.log(parameters), np.log(tokens))[0, 1])) > 0.999:
        raise UserError(
            f"Parameters and tokens grow together in these runs (correlation {together:.4f} of their logarithms), so "
            "that their effects cannot be told apart; add runs of one size that see more or fewer tokens."
        )


def _starts(x: np.ndarray, loss: np.ndarray, varies: Sequence[Any]) -> list[np.ndarray]:
    """The three best pairs of exponents of the grid with their E, A and B, `[5]` each."""
    from scipy.optimize import nnls

    found = []
    for alpha in EXPONENTS if varies[0] else [1.0]:
        for beta in EXPONENTS if varies[1] else [1.0]:
            columns = [np.ones_like(loss), np.exp(-alpha * x[0]) * varies[0], np.exp(-beta * x[1]) * varies[1]]
            numbers, error = nnls(np.stack(columns, 1) / loss[:, None], np.ones_like(loss))
            found.append((error, np.array([*numbers, alpha, beta])))
    return [start for _, start in sorted(found, key=lambda pair: pair[0])[:3]]


def _descend(start: np.ndarray, x: np.ndarray, loss: np.ndarray, varies: Sequence[Any]) -> tuple[float, np.ndarray]:
    """The Huber loss at the minimum near `start`, and (E, A, B, α, β) there."""
    from scipy.optimize import minimize

    logs = np.log(loss)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = values
        first, second = np.exp(-alpha * x[0]), np.exp(-beta * x[1])
        predicted = e + a * first + b * second
        rest = np.log(predicted) - logs
        inside = np.abs(rest) <= HUBER
        slope = np.where(inside, rest, HUBER * np.sign(rest)) / HUBER
        value = np.where(inside, rest**2 / 2, HUBER * (np.abs(rest) - HUBER / 2)) / HUBER
        inner = slope / predicted
        gradient = [
            inner.sum(),
            inner @ first,
            inner @ second,
            -a * inner @ (first * x[0]),
            -b * inner @ (second * x[1]),
        ]
        return float(value.sum()), np.array(gradient)

    tiny = 1e-12 * loss.min()  # the logarithm needs something positive
    positive = (tiny, None)
    bounds = [
        (0, float(loss.max())),
        positive if varies[0] else (0, 0),
        positive if varies[1] else (0, 0),
        (1e-3, LARGEST) if varies[0] else (1, 1),
        (1e-3, LARGEST) if varies[1] else (1, 1),
    ]
    lower = np.array([pair[0] for pair in bounds], float)
    result = minimize(
        objective, np.maximum(start, lower), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    return float(result.fun), result.x


def bootstrap(
    parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, law: Law, rounds: int, seed: int
) -> list[Law]:
    """The laws of `rounds` samples of the runs, drawn with replacement; samples that cannot tell a law are redrawn.
    None at all where hardly any sample can, because the runs are too few.
    """
    generator = np.random.default_rng(seed)
    laws: list[Law] = []
    for _ in range(20 * rounds):
        if len(laws) == rounds:
            break
        rows = generator.integers(len(loss), size=len(loss))
        try:
            laws.append(fit(parameters[rows], tokens[rows], loss[rows], near=law))
        except UserError:
            continue
    return laws if len(laws) == rounds else []


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the values of the bootstrap."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
