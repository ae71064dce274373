"""Muon and AdamW as one optimizer, and the rule that decides which parameter gets which.

`build_optimizer(model, OptimizerConfig())` is all that most callers need; `describe_groups` prints what it decided.
"""

# torch's foreach functions are documented but not exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

from ..errors import UserError

# Keller Jordan's quintic (https://kellerjordan.github.io/posts/muon/): steep at zero rather than convergent, so that
# five rounds bring every singular value into about 0.7..1.2.
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_EPS = 1e-7


@dataclass
class OptimizerConfig:
    """Which optimizer, and its settings. Learning rates are peaks: the schedule multiplies them by a factor in 0..1.

    Args:
        name: `muon` (Muon for the matrices inside the blocks, AdamW for all else) or `adamw` (AdamW for everything).
        lr: peak learning rate of Muon's matrices, or of everything under `adamw`; default 0.02 for muon, 0.001 for
            adamw.
        adamw_lr: with `muon`: peak learning rate of what AdamW trains (embeddings, heads, vectors).
        embedding_lr: peak learning rate of embeddings and positions; default: as the other AdamW parameters.
        head_lr: peak learning rate of the matrices after the blocks; default: as the other AdamW parameters.
        weight_decay: decoupled decay of matrices (ndim >= 2): each step takes lr * weight_decay of the weight away.
            Norms, biases, gains and other vectors are never decayed.
        embedding_decay: the same for embeddings, positions and special tokens.
        betas: AdamW's averaging factors of gradient and squared gradient.
        eps: AdamW's addition to the denominator.
        momentum: Muon's averaging factor of the gradient.
        nesterov: Muon looks one step ahead along its momentum.
        ns_steps: rounds of Muon's Newton-Schulz orthogonalisation.
        scale: size of a Muon update; `match_rms_adamw` is 0.2 * sqrt(max(rows, columns)), about AdamW's root mean
            square (Liu et al. 2025, arXiv:2502.16982); `original` is sqrt(max(1, rows / columns)).
        layer_decay: for fine-tuning: factor in (0, 1] by which the learning rate falls from a block to the one below
            it. Block i of n (counted from 0) gets decay ** (n - i), embeddings decay ** (n + 1), the head 1.

    Raises:
        UserError: a value outside its range.
    """

    name: Literal["muon", "adamw"] = "muon"
    lr: float | None = None
    adamw_lr: float = 0.01
    embedding_lr: float | None = None
    head_lr: float | None = None
    weight_decay: float = 0.1
    embedding_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        _one_of("name", self.name, ("muon", "adamw"))
        _one_of("scale", self.scale, ("match_rms_adamw", "original"))
        for field in ("lr", "adamw_lr", "embedding_lr", "head_lr", "eps"):
            value = getattr(self, field)
            if value is not None:
                _check(field, value, 0 < value < math.inf, "a number above 0")
        for field in ("weight_decay", "embedding_decay"):
            value = getattr(self, field)
            _check(field, value, 0 <= value < math.inf, "0 or more")
        self.betas = (self.betas[0], self.betas[1])
        _check("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers of at least 0 and below 1")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        _check("ns_steps", self.ns_steps, 1 <= self.ns_steps <= 20, "1 to 20")
        if self.layer_decay is not None:
            _check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and at most 1")

    @property
    def main_lr(self) -> float:
        """`lr`, or its default for the optimizer called `name`."""
        return self.lr if self.lr is not None else (0.01 if self.name == "muon" else 1e-3)


def _check(field: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"optimizer.{field} is {value}, but must be {allowed}.")


def _one_of(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    _check(field, value, value in allowed, f"one of {', '.join(allowed)}")


# ---------------------------------------------------------------------------------------------------------------------
# Orthogonalisation


def newton_schulz_reference(matrix: Tensor, steps: int = 5) -> Tensor:
    """Replace the singular values of one `[rows, columns]` matrix by values near 1. The readable form."""
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
    """Orthogonalise matrices of any shapes; those of one shape, or its transpose, go through one batched product."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        rows, columns = update.shape
        buckets[min(rows, columns), max(rows, columns)].append(index)
    results: list[Tensor] = list(updates)
    for indices in buckets.values():
        # A sharded matrix (FSDP) is gathered: orthogonalisation needs it whole. Every rank then does the same work.
        whole = [u.full_tensor() if isinstance(u := updates[i], DTensor) else u for i in indices]
        batch = torch.stack([u.T if u.shape[0] > u.shape[1] else u for u in whole])
        # Tensor cores make bfloat16 several times faster; CPUs without AMX make it slower.
        batch = newton_schulz(batch.to(torch.bfloat16 if batch.is_cuda else torch.float32), steps)
        for index, wide in zip(indices, batch.to(updates[indices[0]].dtype).unbind()):
            like = updates[index]
            result = wide.T if like.shape[0] > like.shape[1] else wide
            if isinstance(like, DTensor):
                replicated = [Replicate()] * like.device_mesh.ndim
                result = DTensor.from_local(result, like.device_mesh, replicated, run_check=False)
                result = result.redistribute(placements=like.placements)
            results[index] = result
    return results


def update_scale(shape: Iterable[int], rule: str) -> float:
    """Factor on the orthogonal update of a `[rows, columns]` matrix; see `OptimizerConfig.scale`."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if rule == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer whose groups are trained by Muon (`algorithm: "muon"`, matrices only) or AdamW (`"adamw"`).

    Muon as `torch.optim.Muon` (Jordan et al. 2024) and AdamW as `torch.optim.AdamW` (Loshchilov & Hutter 2019) compute
    them, both with decoupled weight decay. No step waits for the device.

    Args:
        params: groups from `parameter_groups`, each with `algorithm` and `lr`; other settings have defaults.
    """

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        defaults = OptimizerConfig()
        keys = ("weight_decay", "betas", "eps", "momentum", "nesterov", "ns_steps", "scale")
        # `fused` also tells `Optimizer.load_state_dict` to keep AdamW's step counters on the parameter's device.
        super().__init__(list(params), {key: getattr(defaults, key) for key in keys} | {"lr": 1e-3, "fused": True})
        for group in self.param_groups:
            assert group["algorithm"] in ("muon", "adamw"), f"unknown algorithm {group['algorithm']!r}"
            wrong = [tuple(p.shape) for p in group["params"] if p.ndim != 2 and group["algorithm"] == "muon"]
            assert not wrong, f"Muon trains matrices only, got shapes {wrong}"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["algorithm"] == "muon" else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        momentum, lr = group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        updates = orthogonalise(list(updates), group["ns_steps"])
        torch._foreach_mul_(updates, [-lr * update_scale(p.shape, group["scale"]) for p in params])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, updates)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        column = {key: [self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step")}
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            column["exp_avg"],
            column["exp_avg_sq"],
            [],
            column["step"],
            # Measured on a CPU core, 0.8 M parameters in 30 tensors: fused 0.9 ms, foreach 3.2 ms.
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Who is trained by what


class _Place(NamedTuple):
    role: Literal["matrices", "inputs", "embeddings", "heads", "vectors"]
    block: int  # -1 before the blocks, i inside block i, `blocks` after them
    blocks: int


def _places(model: nn.Module) -> dict[str, _Place]:
    """Role and depth of every trainable parameter, by name. A tied parameter has the first of its names only."""
    inside: dict[int, tuple[int, int]] = {}
    embeddings: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embeddings.update(id(p) for p in module.parameters(recurse=False))
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "blocks":
            for index, block in enumerate(module):
                for p in block.parameters():
                    inside.setdefault(id(p), (index, len(module)))
    depth = max((n for _, n in inside.values()), default=0)
    places: dict[str, _Place] = {}
    seen_blocks = False
    for name, p in model.named_parameters():
        seen_blocks = seen_blocks or id(p) in inside
        block, blocks = inside.get(id(p), (depth if seen_blocks else -1, depth))
        if not p.requires_grad:
            continue
        if id(p) in embeddings:
            role, block = "embeddings", (block if id(p) in inside else -1)
        elif p.ndim < 2:
            role = "vectors"
        elif id(p) in inside:
            role = "matrices"
        elif name.split(".")[-1] != "weight":  # a bare nn.Parameter: positions, class and mask tokens
            role = "embeddings"
        else:
            role = "heads" if seen_blocks else "inputs"
        places[name] = _Place(role, block, blocks)
    return places


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters of `model` into the groups of `MuonAdamW`.

    Blocks are the children of any `nn.ModuleList` named `blocks`. The roles:

    - matrices: ndim >= 2 inside the blocks. Muon, `weight_decay`. (Those with ndim > 2 go to AdamW.)
    - embeddings: of `nn.Embedding`, and bare parameters outside the blocks such as positions and class tokens. AdamW,
      `embedding_decay`.
    - inputs: other weights registered before the blocks (patch and input projections). AdamW, `weight_decay`.
    - heads: other weights registered after the blocks. AdamW, `weight_decay`.
    - vectors: ndim < 2 (norms, gains, biases). AdamW, never decayed.

    A head tied to an embedding is one parameter, and an embedding.

    Raises:
        AssertionError: a trainable parameter is in no group, or in two.
    """
    groups: dict[tuple[str, str, float], dict[str, Any]] = {}
    parameters = dict(model.named_parameters())
    for name, place in _places(model).items():
        p = parameters[name]
        use_muon = config.name == "muon" and place.role == "matrices" and p.ndim == 2
        factor = 1.0 if config.layer_decay is None else config.layer_decay ** (place.blocks - place.block)
        key = (place.role, "muon" if use_muon else "adamw", factor)
        if key not in groups:
            groups[key] = _group(config, place, *key[1:])
        groups[key]["params"].append(p)
    _assert_partition(model, groups.values())
    return list(groups.values())


def _group(config: OptimizerConfig, place: _Place, algorithm: str, factor: float) -> dict[str, Any]:
    base = config.main_lr if algorithm == "muon" or config.name == "adamw" else config.adamw_lr
    own = {"embeddings": config.embedding_lr, "heads": config.head_lr}.get(place.role)
    decay = {"embeddings": config.embedding_decay, "vectors": 0.0}.get(place.role, config.weight_decay)
    name = place.role if algorithm == "muon" or place.role != "matrices" else f"{place.role} (adamw)"
    if config.layer_decay is not None:
        name = f"{name}, depth {place.block + 1}"
    common = {"params": [], "name": name, "algorithm": algorithm, "lr": factor * (own or base), "weight_decay": decay}
    if algorithm == "muon":
        keys = ("momentum", "nesterov", "ns_steps", "scale")
    else:
        keys = ("betas", "eps")
    return common | {key: getattr(config, key) for key in keys}


def _assert_partition(model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    count: dict[int, int] = defaultdict(int)
    for group in groups:
        for p in group["params"]:
            count[id(p)] += 1
    for name, p in model.named_parameters():
        expected = int(p.requires_grad)
        assert count[id(p)] == expected, f"parameter {name} is in {count[id(p)]} optimizer groups, not {expected}"


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> MuonAdamW:
    """The optimizer of `config` over all trainable parameters of `model`.

    Raises:
        UserError: nothing is trainable.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise UserError("The model has no trainable parameter; unfreeze some before training.")
    return MuonAdamW(groups)


class GroupRow(NamedTuple):
    """One line of `describe_groups`; `lr` is the peak learning rate."""

    group: str
    tensors: int
    parameters: int
    algorithm: str
    lr: float
    weight_decay: float


def describe_groups(groups: Iterable[dict[str, Any]]) -> list[GroupRow]:
    """Rows of a table of optimizer groups, for printing."""
    return [
        GroupRow(
            group["name"],
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
            group["algorithm"],
            group.get("initial_lr", group["lr"]),
            group["weight_decay"],
        )
        for group in groups
    ]
