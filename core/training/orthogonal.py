"""Muon's orthogonalisation: the singular values of an update become nearly equal, by a few matrix products."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import reduce

import torch
import torch.distributed as dist
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
    """Orthogonalises matrices of any shapes, and stacks of them `[experts, rows, columns]` each by itself.

    Several processes, which all have the same updates, share the work: each does the matrices that `owners` gives it,
    and then all get all results. A matrix that is cut over processes (FSDP2) is put together for that, and cut again.
    """
    whole = [u.full_tensor() if isinstance(u, DTensor) else u for u in updates]
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        results = _orthogonalised(whole, steps)
    else:
        owner = owners([_work(u) for u in whole], world)
        own = [u for u, rank in zip(whole, owner, strict=True) if rank == dist.get_rank()]
        results = _gathered(_orthogonalised(own, steps), whole, owner)
    return [_cut_like(result, like) for result, like in zip(results, updates, strict=True)]


def _work(matrix: Tensor) -> int:
    """What orthogonalising costs, in multiplications up to a factor."""
    rows, columns = matrix.shape[-2:]
    return matrix.numel() * min(rows, columns)


def owners(work: list[int], world: int) -> list[int]:
    """The process that does each matrix: the largest first, each to the one that has least to do so far."""
    load, found = [0] * world, [0] * len(work)
    for index in sorted(range(len(work)), key=lambda index: (-work[index], index)):
        rank = load.index(min(load))
        found[index] = rank
        load[rank] += work[index]
    return found


def _gathered(own: list[Tensor], like: list[Tensor], owner: list[int]) -> list[Tensor]:
    """The results of all processes, in the order of `like`, after one exchange."""
    world, rank = dist.get_world_size(), dist.get_rank()
    sizes = [sum(u.numel() for u, who in zip(like, owner, strict=True) if who == number) for number in range(world)]
    dtype = reduce(torch.promote_types, (u.dtype for u in like))
    sent = torch.zeros(max(sizes), dtype=dtype, device=like[0].device)
    if own:
        sent[: sizes[rank]] = torch.cat([u.reshape(-1).to(dtype) for u in own])
    received = [torch.empty_like(sent) for _ in range(world)]
    dist.all_gather(received, sent)
    begins = [0] * world
    results = []
    for u, who in zip(like, owner, strict=True):
        part = received[who][begins[who] : begins[who] + u.numel()]
        results.append(part.view(u.shape).to(u.dtype))
        begins[who] += u.numel()
    return results


def _cut_like(result: Tensor, like: Tensor) -> Tensor:
    """A whole matrix, cut over processes as `like` is."""
    if not isinstance(like, DTensor):
        return result
    replicated = [Replicate()] * like.device_mesh.ndim
    whole = DTensor.from_local(result, like.device_mesh, replicated, run_check=False)
    return whole.redistribute(placements=like.placements)


def _orthogonalised(updates: list[Tensor], steps: int) -> list[Tensor]:
    """Of one process: matrices of one shape, or its transpose, go through one batched product."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        rows, columns = update.shape[-2:]
        buckets[min(rows, columns), max(rows, columns)].append(index)
    results: list[Tensor] = list(updates)
    for indices in buckets.values():
        stacks = [(u if u.ndim == 3 else u[None]) for u in (updates[i] for i in indices)]
        batch = torch.cat([u.mT if u.shape[1] > u.shape[2] else u for u in stacks])
        # Tensor cores make bfloat16 several times faster; CPUs without AMX make it slower.
        fast = torch.bfloat16 if batch.is_cuda else torch.float32
        batch = newton_schulz(batch if batch.dtype == torch.float64 else batch.to(fast), steps)
        parts = batch.to(updates[indices[0]].dtype).split([len(u) for u in stacks])
        for index, wide in zip(indices, parts, strict=True):
            like = updates[index]
            result = wide.mT if like.shape[-2] > like.shape[-1] else wide
            results[index] = result if like.ndim == 3 else result[0]
    return results


def update_scale(shape: Iterable[int], rule: str) -> float:
    """Factor on the orthogonal update of a `[rows, columns]` matrix, or a stack; see `OptimizerConfig.scale`."""
    *_, rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if rule == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))
