"""Losses of heads: each gives the sum over the real targets and how many they are; a missing target counts for nothing.

A missing class is `IGNORED` (-100), a missing number NaN. Where all are missing the sum is 0 and has zero gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import IGNORED

Sums = tuple[Tensor, Tensor]
"""The sum of a loss and the number of targets in it, both of shape `[]`."""


def at_least_float32(outputs: Tensor) -> Tensor:
    """16-bit outputs in float32; others as they are."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


# --- weights ----------------------------------------------------------------------------------------------------------


def balanced_weights(counts: Sequence[float]) -> list[float]:
    """The weight of each class: examples / (classes that occur x examples of the class), as scikit-learn's "balanced";
    1 for a class without examples.
    """
    total, occur = sum(counts), sum(count > 0 for count in counts)
    return [total / (occur * count) if count else 1.0 for count in counts]


def positive_weights(positive: Sequence[float], negative: Sequence[float]) -> list[float]:
    """The weight of the positive examples of each label: negatives / positives, so that both kinds weigh the same; 1
    for a label with one kind only. The meaning of `pos_weight` in `torch.nn.BCEWithLogitsLoss`.
    """
    return [n / p if p and n else 1.0 for p, n in zip(positive, negative)]


# --- classes ----------------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0
) -> Sums:
    """Nats of the true classes.

    Args:
        logits: `[..., classes]`.
        targets: int `[...]`; `IGNORED` is missing. Or shares of mixed examples `[..., classes]`, not for a focal loss.
        weights: of each class, `[classes]`; the number of targets stays their number.
        gamma: focal loss, -weight·(1 - p)^gamma·log p of the true class (Lin et al. 2017, equation 5).
        smoothing: part of each target that is spread over all classes, as `torch.nn.functional.cross_entropy` does it;
            0 with a focal loss.
    """
    logits = at_least_float32(logits).flatten(0, -2)
    if targets.is_floating_point():
        targets, count = targets.flatten(0, -2).to(logits), targets.new_tensor(len(logits), dtype=torch.long)
    else:
        targets = targets.flatten().long()
        count = (targets != IGNORED).sum()
    if weights is not None:
        weights = weights.to(logits)
    if not gamma:
        total = F.cross_entropy(
            logits, targets, weights, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )
        return total, count
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    each = -torch.expm1(-nats)  # 1 - p of the true class; 0 for a missing one
    # The derivative of x^gamma at 0 is infinite for gamma below 1: certainty and missing targets stay away from it.
    each = each.clamp_min(torch.finfo(each.dtype).tiny) ** gamma * nats
    return (each if weights is None else each * weights[targets.clamp_min(0)]).sum(), count


def one_vs_rest(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Sums:
    """Nats of one yes-or-no question for each class, summed over the classes (Touvron et al. 2022, section 3).

    Args:
        logits, targets: as for `cross_entropy`.
        smoothing: targets become (1 - smoothing)·target + smoothing / classes.
    """
    logits, classes = at_least_float32(logits).flatten(0, -2), logits.shape[-1]
    if targets.is_floating_point():
        shares, real = (
            targets.flatten(0, -2).to(logits),
            torch.ones(len(logits), dtype=torch.bool, device=logits.device),
        )
    else:
        targets = targets.flatten().long()
        real = targets != IGNORED
        shares = F.one_hot(targets.clamp_min(0), classes).to(logits)
    aims = shares * (1 - smoothing) + smoothing / classes
    nats = F.binary_cross_entropy_with_logits(logits, aims, reduction="none")
    return torch.where(real[:, None], nats, 0.0).sum(), real.sum()


def binary(
    logits: Tensor, targets: Tensor, positive: Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0
) -> Sums:
    """Nats of yes-or-no labels.

    Args:
        logits: `[..., labels]`.
        targets: 0 to 1, `[..., labels]`; NaN is missing.
        positive: weight of the positive part of each label, `[labels]`.
        gamma: focal loss, as in `cross_entropy`.
        smoothing: targets become (1 - smoothing)·target + smoothing / 2.
    """
    logits = at_least_float32(logits)
    real = ~targets.isnan()
    aims = targets.nan_to_num(0.0).to(logits) * (1 - smoothing) + smoothing / 2
    positive = None if positive is None else positive.to(logits)
    if not gamma:
        nats = F.binary_cross_entropy_with_logits(logits, aims, pos_weight=positive, reduction="none")
    else:
        tiny = torch.finfo(logits.dtype).tiny
        yes = torch.sigmoid(-logits).clamp_min(tiny) ** gamma * F.softplus(-logits)
        no = torch.sigmoid(logits).clamp_min(tiny) ** gamma * F.softplus(logits)
        nats = aims * (yes if positive is None else yes * positive) + (1 - aims) * no
    return torch.where(real, nats, 0.0).sum(), real.sum()


def ordered(cumulative: Tensor, targets: Tensor) -> Sums:
    """Nats of ordered classes under a cumulative link (McCullagh 1980): P(class > k) = sigmoid(cumulative k).

    Args:
        cumulative: `[..., classes - 1]`, falling from class to class.
        targets: int `[...]`; `IGNORED` is missing.
    """
    log_p = ordered_log_p(at_least_float32(cumulative)).flatten(0, -2)
    targets = targets.flatten().long()
    return F.nll_loss(log_p, targets, ignore_index=IGNORED, reduction="sum"), (targets != IGNORED).sum()


def ordered_log_p(cumulative: Tensor) -> Tensor:
    """Log probabilities `[..., classes]` of cumulative log odds `[..., classes - 1]`.

    For a > b: sigmoid(a) - sigmoid(b) = sigmoid(a)·sigmoid(-b)·(1 - exp(b - a)), whose logarithm does not cancel.
    """
    above, below = F.logsigmoid(cumulative), F.logsigmoid(-cumulative)
    # Outputs rounded to 16 bits may be equal where they should fall.
    gaps = (cumulative[..., :-1] - cumulative[..., 1:]).clamp_min(1e-7)
    inner = above[..., :-1] + below[..., 1:] + torch.log(-torch.expm1(-gaps))
    return torch.cat([below[..., :1], inner, above[..., -1:]], dim=-1)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _kept(each: Tensor, real: Tensor) -> Sums:
    return torch.where(real, each, 0.0).sum(), real.sum()


def _aims(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of the outputs' type with 0 in the place of what is missing, and where they are real."""
    return targets.nan_to_num(0.0).to(outputs), ~targets.isnan()


def squared(values: Tensor, targets: Tensor) -> Sums:
    """Squared errors of values `[...]`; NaN in the targets is missing."""
    values = at_least_float32(values)
    aims, real = _aims(values, targets)
    return _kept(F.mse_loss(values, aims, reduction="none"), real)


def absolute(values: Tensor, targets: Tensor) -> Sums:
    """Absolute errors of values `[...]`; NaN in the targets is missing."""
    values = at_least_float32(values)
    aims, real = _aims(values, targets)
    return _kept(F.l1_loss(values, aims, reduction="none"), real)


def gaussian(mean: Tensor, log_variance: Tensor, targets: Tensor) -> Sums:
    """Nats of numbers under normal distributions, with the constant: ½·(log 2π + log variance + (y - mean)²/variance).

    Equal to `torch.nn.functional.gaussian_nll_loss(full=True)`, without its lower bound on the variance.
    """
    mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
    aims, real = _aims(mean, targets)
    each = 0.5 * (math.log(2 * math.pi) + log_variance + (aims - mean).square() * torch.exp(-log_variance))
    return _kept(each, real)


def pinball(quantiles: Tensor, targets: Tensor, levels: Sequence[float]) -> Sums:
    """Pinball losses summed over the levels: max(level·(y - q), (level - 1)·(y - q)) (Koenker and Bassett 1978).

    Args:
        quantiles: `[..., levels]`.
        targets: `[...]`; NaN is missing.
        levels: in 0..1.
    """
    quantiles = at_least_float32(quantiles)
    aims, real = _aims(quantiles, targets)
    level = quantiles.new_tensor(levels)
    gap = aims[..., None] - quantiles
    return _kept(torch.maximum(level * gap, (level - 1) * gap).sum(dim=-1), real)
