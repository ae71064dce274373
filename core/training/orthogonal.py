"""Muon's orthogonalisation: the singular values of an update become nearly equal, by a few matrix products."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

# Keller Jordan's quintic (https://kellerjordan.github.io/posts/muon/): steep at zero rather than convergent, so that
# five rounds bring every singular value into about 0.7..1.2.
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_EPS = 1e-7


def newton_schulz_reference(matrix: Tensor, steps: int = 5) -> Tensor:
    """Replaces the singular values of one `[rows, columns]` matrix by values near 1. The readable form."""
    a, b, c = _NS_COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=_NS_EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """`newton_schulz_reference` for a batch of wide matrices `[batch, rows, columns]`, rows <= columns.

    In float32 and for columns >= 2 * rows the rounds run on the `[rows, rows]` Gram matrix alone: each round is a
    polynomial P of it, so `x` is multiplied once, at the end (4 instead of 9 units of work at columns = 4 * rows). The
    squared condition number makes that unfit for bfloat16.
    """
    a, b, c = _NS_COEFFICIENTS
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_NS_EPS)
    if x.dtype == torch.bfloat16 or x.shape[-1] < 2 * x.shape[-2]:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    gram, product = x @ x.mT, None
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return x if product is None else product @ x


def orthogonalise(updates: list[Tensor], steps: int = 5) -> list[Tensor]:
    """Orthogonalises matrices of any shapes, and stacks of them `[experts, rows, columns]` each by itself; those of one
    shape, or its transpose, go through one batched product.
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        rows, columns = update.shape[-2:]
        buckets[min(rows, columns), max(rows, columns)].append(index)
    results: list[Tensor] = list(updates)
    for indices in buckets.values():
        # A sharded matrix (FSDP) is gathered: orthogonalisation needs it whole. Every rank then does the same work.
        whole = [u.full_tensor() if isinstance(u := updates[i], DTensor) else u for i in indices]
        stacks = [(u if u.ndim == 3 else u[None]) for u in whole]
        batch = torch.cat([u.mT if u.shape[1] > u.shape[2] else u for u in stacks])
        # Tensor cores make bfloat16 several times faster; CPUs without AMX make it slower.
        batch = newton_schulz(batch.to(torch.bfloat16 if batch.is_cuda else torch.float32), steps)
        parts = batch.to(updates[indices[0]].dtype).split([len(u) for u in stacks])
        for index, wide in zip(indices, parts, strict=True):
            like = updates[index]
            result = wide.mT if like.shape[-2] > like.shape[-1] else wide
            result = result if like.ndim == 3 else result[0]
            if isinstance(like, DTensor):
                replicated = [Replicate()] * like.device_mesh.ndim
                result = DTensor.from_local(result, like.device_mesh, replicated, run_check=False)
                result = result.redistribute(placements=like.placements)
            results[index] = result
    return results


def update_scale(shape: Iterable[int], rule: str) -> float:
    """Factor on the orthogonal update of a `[rows, columns]` matrix, or a stack; see `OptimizerConfig.scale`."""
    *_, rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if rule == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))
