"""What frozen vectors say about targets: a linear layer and the nearest neighbours, the same for every kind of head."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads.base import Head, HeadSpec
from ..heads.registry import make_head
from .solver import lbfgs

PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
"""L2 of the linear layer on the mean loss; the best on a fifth of the training rows is taken."""
MOST_CHOOSING = 6000
"""Vectors that the penalty is chosen on."""
STEPS = 40
"""Of L-BFGS for each penalty, from the strongest on, each starting from the last."""
MOST_KNOWN = 10_000
"""Training examples that neighbours are looked for among; of more, as many are drawn."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of the nearest-neighbour vote, as DINO sets them (Caron et al. 2021, section 4.1)."""


class Vectors(NamedTuple):
    """Frozen vectors of a side.

    Args:
        vectors: float32 `[examples, dim]`.
        targets: `[examples, …]`, as the head needs them, without missing rows.
        rows: the row of the table that each example is of, `[examples]`.
    """

    vectors: Tensor
    targets: Tensor
    rows: np.ndarray


def fit_linear(head: Head, x: Tensor, targets: Tensor, penalty: float, steps: int = STEPS) -> None:
    """Trains the head on vectors `[examples, dim]`: mean loss + penalty / 2 · |weights|², biases left free."""
    parameters = [p for p in head.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() > 1]

    def put(vector: Tensor) -> None:
        with torch.no_grad():
            for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters])):
                parameter.copy_(part.view_as(parameter))

    def value(vector: Tensor) -> tuple[float, Tensor]:
        put(vector)
        total, count = head.loss(head(x), targets)
        found = total / count.clamp(min=1) + penalty / 2 * torch.stack([m.square().sum() for m in matrices]).sum()
        gradients = torch.autograd.grad(found, parameters)
        return float(found.detach()), torch.cat([gradient.flatten() for gradient in gradients])

    with torch.enable_grad():
        start = torch.cat([p.detach().flatten() for p in parameters])
        put(lbfgs(value, start, steps))


def linear_outputs(spec: HeadSpec, train: Vectors, judged: Vectors) -> tuple[Tensor, float]:
    """Outputs `[examples, width]` of a linear layer on standardised vectors, and the penalty that was chosen."""
    mean, std = train.vectors.mean(0), train.vectors.std(0).clamp(min=1e-6)
    x, y = (train.vectors - mean) / std, train.targets
    known = np.random.default_rng(0).permutation(np.unique(train.rows))
    held = torch.from_numpy(np.isin(train.rows, known[: max(1, len(known) // 5)]))
    fitted, asked = (part.nonzero().flatten()[:MOST_CHOOSING] for part in (~held, held))
    head, losses = make_head(spec, x.shape[1]), {}
    for penalty in PENALTIES:
        fit_linear(head, x[fitted], y[fitted], penalty)
        with torch.no_grad():
            total, count = head.loss(head(x[asked]), y[asked])
            losses[penalty] = float(total / count.clamp(min=1))
    best = min(losses, key=lambda penalty: losses[penalty] if np.isfinite(losses[penalty]) else np.inf)
    head = make_head(spec, x.shape[1])
    fit_linear(head, x, y, best, 2 * STEPS)
    with torch.no_grad():
        return head((judged.vectors - mean) / std), best


def neighbour_outputs(spec: HeadSpec, train: Vectors, judged: Vectors, most: int | None = MOST_KNOWN) -> Tensor | None:
    """Outputs `[examples, width]` of the `NEIGHBOURS` nearest training examples by cosine, each weighing
    exp(cosine / 0.07).

    Args:
        spec: of a head.
        train, judged: the two sides.
        most: training examples that are looked among; of more, as many are drawn. None for all.
    """
    if most is not None and len(train.vectors) > most:
        drawn = torch.from_numpy(np.random.default_rng(0).permutation(len(train.vectors))[:most])
        train = Vectors(train.vectors[drawn], train.targets[drawn], train.rows[drawn.numpy()])
    head, k = make_head(spec, train.vectors.shape[1]), min(NEIGHBOURS, len(train.vectors))
    known, found = F.normalize(train.vectors, dim=1), []
    for vectors in judged.vectors.split(1024):
        cosine, index = (F.normalize(vectors, dim=1) @ known.T).topk(k, dim=1)
        weights = ((cosine - 1) / TEMPERATURE).exp()
        outputs = head.averaged(train.targets[index], weights)
        if outputs is None:
            return None
        found.append(outputs)
    return torch.cat(found)
