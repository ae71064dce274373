"""Muon and AdamW as one optimizer, and its settings; `groups.py` decides which parameter gets which."""

# torch's foreach functions are documented but not exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from ..checks import check_types
from ..errors import UserError
from .orthogonal import orthogonalise, update_scale
from .sharded import part, put_into_place

PRETRAINED_LR, LORA_LR = 5e-5, 1.5e-3
"""Peak learning rates of weights from a checkpoint and of LoRA's factors, where none is given. Schulman et al. 2025
("LoRA without regret") find the best rate of the factors at about ten times that of full fine-tuning, whatever the
rank."""
AT_ONCE = 8_000_000
"""Numbers of Muon's matrices that a process updates at once; it holds some eight copies of them meanwhile."""
LOADED = "pretrained "
"""Begins the names of groups whose weights come from a checkpoint."""


@dataclass
class OptimizerConfig:
    """Which optimizer, and its settings. Learning rates are peaks: the schedule multiplies them by a factor in 0..1.

    Args:
        name: `muon` (Muon for the matrices inside the blocks, AdamW for all else) or `adamw` (AdamW for everything).
            Left
            out: muon for weights that start at random, adamw for those of a checkpoint.
        lr: peak learning rate of Muon's matrices, or of everything under `adamw`; default 0.01 for muon, 0.001 for
            adamw. Not of weights from a checkpoint.
        adamw_lr: with `muon`: peak learning rate of what AdamW trains (embeddings, heads, vectors).
        pretrained_lr: for fine-tuning: peak learning rate of weights from a checkpoint; default 5e-5.
        lora_lr: for fine-tuning: peak learning rate of LoRA's factors; default 1.5e-3.
        embedding_lr: peak learning rate of embeddings and positions; default: as the parameters around them.
        head_lr: peak learning rate of matrices after the blocks and of their biases; default: as parameters around.
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
            it. Block i of n (counted from 0) gets decay ** (n - i), embeddings decay ** (n + 1), the head 1. Parts that
            are new beside a checkpoint's are left out.
        skip_limit: steps in a row whose loss or gradient is not finite, and which therefore change nothing, after
            which the training stops.

    Raises:
        UserError: a value outside its range.
    """

    name: Literal["muon", "adamw"] | None = None
    lr: float | None = None
    adamw_lr: float = 0.01
    pretrained_lr: float | None = None
    lora_lr: float | None = None
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
    skip_limit: int = 5

    def __post_init__(self) -> None:
        check_types(self, "optimizer.")
        _one_of("name", self.name, ("muon", "adamw", None))
        _one_of("scale", self.scale, ("match_rms_adamw", "original"))
        for field in ("lr", "adamw_lr", "pretrained_lr", "lora_lr", "embedding_lr", "head_lr", "eps"):
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
        _check("skip_limit", self.skip_limit, self.skip_limit >= 1, "at least 1")
        if self.layer_decay is not None:
            _check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and at most 1")

    @property
    def main_lr(self) -> float:
        """`lr`, or its default for the optimizer called `name`."""
        return self.lr if self.lr is not None else (1e-3 if self.name == "adamw" else 0.01)


def _check(field: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"optimizer.{field} is {value}, but must be {allowed}.")


def _one_of(field: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    _check(field, value, value in allowed, f"one of {', '.join(filter(None, allowed))}")


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer


def _portions(matrices: list[Tensor]) -> list[list[Tensor]]:
    """The same in the same order, so many at once that each process has `AT_ONCE` numbers or one matrix to do."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    found, held = [], math.inf
    for matrix in matrices:
        if held + matrix.numel() > AT_ONCE * world:
            found.append([])
            held = 0
        found[-1].append(matrix)
        held += matrix.numel()
    return found


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer whose groups are trained by Muon (`algorithm: "muon"`, matrices only) or AdamW (`"adamw"`).

    Muon as `torch.optim.Muon` (Jordan et al. 2024) and AdamW as `torch.optim.AdamW` (Loshchilov & Hutter 2019) compute
    them, both with decoupled weight decay. No step waits for the device.

    Args:
        params: groups from `parameter_groups`, each with `algorithm` and `lr`; other settings have defaults.

    Attributes:
        left_out: bool scalar on the device of the parameters: whether the step changes nothing, weights or state. None
            for no. It is not read: what is computed is thrown away on the device.
    """

    left_out: Tensor | None = None

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        defaults = OptimizerConfig()
        keys = ("weight_decay", "betas", "eps", "momentum", "nesterov", "ns_steps", "scale")
        # `fused` also tells `Optimizer.load_state_dict` to keep AdamW's step counters on the parameter's device.
        super().__init__(list(params), {key: getattr(defaults, key) for key in keys} | {"lr": 1e-3, "fused": True})
        for group in self.param_groups:
            assert group["algorithm"] in ("muon", "adamw"), f"unknown algorithm {group['algorithm']!r}"
            wrong = [tuple(p.shape) for p in group["params"] if p.ndim not in (2, 3) and group["algorithm"] == "muon"]
            assert not wrong, f"Muon trains matrices only, or stacks of them, got shapes {wrong}"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["algorithm"] == "muon":
                for some in _portions(params):
                    self._muon(group, some)
            elif params:
                self._adamw(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [part(p.grad) for p in params if p.grad is not None]
        buffers, own = [part(self.state[p]["momentum_buffer"]) for p in params], [part(p) for p in params]
        momentum, lr = group["momentum"], group["lr"]
        if self.left_out is not None:
            grads = [torch.where(self.left_out, buffer, grad) for buffer, grad in zip(buffers, grads, strict=True)]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        updates = [put_into_place(update, p) for update, p in zip(updates, params, strict=True)]
        updates = [part(update) for update in orthogonalise(updates, group["ns_steps"])]
        torch._foreach_mul_(updates, [-lr * update_scale(p.shape, group["scale"]) for p in params])
        if self.left_out is None:
            torch._foreach_mul_(own, 1 - lr * group["weight_decay"])
            torch._foreach_add_(own, updates)
            return
        new = torch._foreach_mul(own, 1 - lr * group["weight_decay"])
        torch._foreach_add_(new, updates)
        torch._foreach_copy_(own, [torch.where(self.left_out, p, n) for p, n in zip(own, new, strict=True)])

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        column = {key: [part(self.state[p][key]) for p in params] for key in ("exp_avg", "exp_avg_sq", "step")}
        adamw(
            [part(p) for p in params],  # each number by itself, so of each process what it holds
            [part(p.grad) for p in params if p.grad is not None],
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
            found_inf=None if self.left_out is None else self.left_out.float(),
        )
