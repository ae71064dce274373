"""L-BFGS for the small convex problems of a probe.

That of torch.optim would load the machinery of torch.compile first, which takes longer than most of these problems.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Value = Callable[[Tensor], tuple[float, Tensor]]
"""From a vector to the value of a function there, and its gradient."""
ARMIJO, CURVATURE = 1e-4, 0.9
"""Constants of the line search (Nocedal and Wright 2006, section 3.1)."""
TRIALS = 25


def lbfgs(value: Value, start: Tensor, steps: int, history: int = 10, tolerance: float = 1e-6) -> Tensor:
    """Where a smooth function is smallest, as far as so many steps go (Nocedal and Wright 2006, algorithm 7.5).

    Args:
        value: of a vector `[n]`.
        start: `[n]`.
        steps: at most.
        history: pairs of steps and gradients that the inverse of the curvature is made of.
        tolerance: of the largest component of the gradient.
    """
    x, pairs = start.clone(), list[tuple[Tensor, Tensor, float]]()
    here, gradient = value(x)
    idle, least = 0, torch.finfo(x.dtype).eps
    for _ in range(steps):
        if idle == 2 or not float(gradient.abs().max()) > tolerance:
            break
        direction = _direction(gradient, pairs, history)
        slope = float(gradient @ direction)
        first = 1.0 if pairs else min(1.0, 1.0 / float(gradient.abs().sum()))
        found = _searched(value, x, here, direction, slope, first)
        if found is None:
            break
        there, below, other = found
        idle = 0 if here - below > least * abs(here) else idle + 1  # twice: only rounding is left
        step, change = there - x, other - gradient
        if (curvature := float(step @ change)) > 1e-10 * float(change @ change):
            pairs = [*pairs[-history + 1 :], (step, change, 1 / curvature)]
        x, here, gradient = there, below, other
    return x


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]], history: int) -> Tensor:
    """−H·gradient, with H from the last steps (algorithm 7.4)."""
    found, weights = -gradient, []
    for step, change, weight in reversed(pairs):
        weights.append(weight * float(step @ found))
        found = found - weights[-1] * change
    if pairs:
        step, change, weight = pairs[-1]
        found = found / (weight * float(change @ change))
    for (step, change, weight), known in zip(pairs, reversed(weights)):
        found = found + (known - weight * float(change @ found)) * step
    return found


def _searched(
    value: Value, x: Tensor, here: float, direction: Tensor, slope: float, first: float
) -> tuple[Tensor, float, Tensor] | None:
    """A point along the direction that is low enough and where the slope is less steep, found by doubling and halving;
    with its value and gradient. None where there is none.
    """
    least, most, length = 0.0, float("inf"), first
    best: tuple[Tensor, float, Tensor] | None = None
    for _ in range(TRIALS):
        there = x + length * direction
        below, gradient = value(there)
        if not below <= here + ARMIJO * length * slope:
            most = length
        else:
            best = there, below, gradient
            if float(gradient @ direction) >= CURVATURE * slope:
                return best
            least = length
        length = 2 * least if most == float("inf") else (least + most) / 2
    return best
