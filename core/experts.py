"""The feed-forward of a block: none, one for all tokens, or a mixture of experts.

A mixture sorts the tokens by expert, so that each expert multiplies its own in one matrix product and none is dropped
however uneven they are. What it returns and what it learns from equals `reference_experts`, a loop over all experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .again import computing_again
from .config import TransformerConfig
from .expert_options import ExpertsConfig
from .layers import FeedForward


def make_ffn(config: TransformerConfig, layer: int) -> nn.Module:
    """The feed-forward of one layer of `config`, which is resolved and has one there."""
    options = config.experts_at(layer)
    return FeedForward(config, layer) if options is None else Experts(config, layer, options)


class Router(nn.Module):
    """Chooses the experts of each token, in float32 at least, and counts who was chosen.

    Attributes:
        weight: `[experts, dim]`, without a bias: the logits are a linear function of the token.
        balance: float32 `[experts]`, added to the scores where experts are chosen and nowhere else; a buffer that
            `balance_experts` moves. None without `bias_rate`.
        load: float32 `[experts]`, how often each was chosen in training since the last optimizer step; padding is not
            counted.
        share: float32 `[experts]`, each expert's share of the choices of the last optimizer step.
        loss: of the last call in training, where `loss_weight` asks for one.
    """

    def __init__(self, dim: int, options: ExpertsConfig) -> None:
        super().__init__()
        self.options = options
        self.in_features = dim
        self.weight = nn.Parameter(torch.empty(options.count, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)
        self.balance: Tensor | None
        self.register_buffer("balance", torch.zeros(options.count) if options.bias_rate else None)
        self.load: Tensor
        self.register_buffer("load", torch.zeros(options.count), persistent=False)
        self.share: Tensor
        self.register_buffer("share", torch.zeros(options.count), persistent=False)
        self.loss: Tensor | None = None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Chooses.

        Args:
            x: `[tokens, dim]`.
            valid: bool `[tokens]`, True for real tokens.

        Returns:
            The weights and the numbers of the chosen experts, `[tokens, active]` each.
        """
        options = self.options
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            logits = F.linear(x.to(wide), self.weight.to(wide))
        scores = logits.softmax(-1) if options.score == "softmax" else logits.sigmoid()
        chosen = (scores if self.balance is None else scores + self.balance).topk(options.active, dim=-1).indices
        weights = scores.gather(1, chosen)
        if options.renormalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
        if options.scale != 1:
            weights = weights * options.scale
        if self.training:
            self._count(scores, chosen, valid)
        elif self.loss is not None:
            self.loss = None
        return weights, chosen

    def _count(self, scores: Tensor, chosen: Tensor, valid: Tensor | None) -> None:
        picked = torch.zeros_like(scores).scatter(1, chosen, 1.0)  # [tokens, experts]
        if valid is not None:
            picked = picked * valid[:, None]
        load = picked.detach().sum(0)
        if not (again := computing_again()):
            self.load += load
        if not self.options.loss_weight:
            return
        if self.options.score == "sigmoid":
            scores = scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        if valid is not None:
            scores = scores * valid[:, None]
        tokens = scores.shape[0] if valid is None else valid.sum().clamp(min=1)
        share, mean = load / load.sum().clamp(min=1), scores.sum(0) / tokens
        loss = self.options.loss_weight * self.options.count * (share * mean).sum()
        self.loss = self.loss if again else loss

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"loss": None}  # what belongs to a graph cannot be copied

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.options}"


class Experts(nn.Module):
    """Σ_e weight_e · ffn_e(x) over the chosen experts, and the shared expert. `[batch, tokens, dim]` -> the same.

    Args:
        config: of the whole model, resolved.
        layer: which layer this is, from 0.
        options: of its experts.
    """

    def __init__(self, config: TransformerConfig, layer: int, options: ExpertsConfig) -> None:
        super().__init__()
        self.router = Router(config.dim, options)
        self.experts = FeedForward(config, layer, options.dim, options.count)
        self.shared = FeedForward(config, layer, options.shared) if options.shared else None
        self.shared_gate = nn.Linear(config.dim, 1, bias=False) if options.shared_gate else None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` is bool `[batch, tokens]`, True for real tokens: others do not count where experts are balanced."""
        run = reference_experts if torch.compiler.is_exporting() else sorted_experts
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(rows, None if valid is None else valid.reshape(-1))
        y = run(self.experts, rows, weights.to(x.dtype), chosen).view(x.shape)
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if self.shared_gate is None else shared * self.shared_gate(x).sigmoid())


def sorted_experts(experts: FeedForward, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Each token through its experts, all tokens of an expert together.

    Args:
        experts: feed-forward of stacked layers.
        x: `[tokens, dim]`.
        weights: `[tokens, active]`.
        chosen: int `[tokens, active]`, numbers of experts.

    Returns:
        `[tokens, dim]`.
    """
    tokens, active = chosen.shape
    order = chosen.flatten().argsort(stable=True)  # slot = token · active + rank
    counts = torch.zeros(experts.count, dtype=torch.int32, device=x.device)
    ends = counts.scatter_add(0, chosen.flatten(), torch.ones_like(order, dtype=torch.int32)).cumsum(0)
    # A permutation of all slots, there and back: adding up would not be repeatable on a GPU.
    slots = x[:, None].expand(-1, active, -1).reshape(tokens * active, -1)
    y = experts(slots.index_select(0, order), ends.to(torch.int32))
    back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
    y = y.index_select(0, back).view(tokens, active, -1)
    return (y * weights[..., None]).sum(1).to(x.dtype)


def reference_experts(experts: FeedForward, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """The readable form of `sorted_experts`: a loop in which every expert sees all tokens."""
    y = torch.zeros_like(x)
    for expert in range(experts.count):
        weight = torch.where(chosen == expert, weights, 0.0).sum(1, keepdim=True)  # 0 for tokens of other experts
        y = y + weight * experts.one(expert, x)
    return y


def routers(model: nn.Module) -> list[Router]:
    """The routers of all layers with experts."""
    return [module for module in model.modules() if isinstance(module, Router)]


def balance_loss(model: nn.Module) -> Tensor | None:
    """The loss that balances experts, of the last call of `model` in training: its mean over the layers with experts;
    None without one.
    """
    losses = [router.loss for router in routers(model) if router.loss is not None]
    return torch.stack(losses).mean() if losses else None


@torch.no_grad()
def balance_experts(
    model: nn.Module, left_out: Tensor | None = None, reduce: Callable[[Tensor], Any] | None = None
) -> None:
    """Moves the biases by what was chosen since the last call; called after each optimizer step.

    Args:
        model: its routers are changed in place.
        left_out: bool scalar: whether the step changes nothing; then the biases stay as they are, too.
        reduce: sums a tensor over all processes, in place.
    """
    found = routers(model)
    if not found:
        return
    loads = [router.load for router in found]
    whole = torch.cat(loads)  # layers may have different numbers of experts
    if reduce is not None:
        reduce(whole)
    for router, load in zip(found, whole.split([len(load) for load in loads]), strict=True):
        router.share.copy_(load / load.sum().clamp(min=1))
        if router.balance is not None:
            move = router.options.bias_rate * torch.sign(load.mean() - load)
            if left_out is not None:
                move = move.masked_fill(left_out.to(move.device), 0.0)
            router.balance += move
        router.load.zero_()


def utilisation(model: nn.Module) -> dict[str, float]:
    """How even the experts were used in the last optimizer step; empty for a model without experts.

    `expert_peak` is the largest share of the choices of a layer times its number of experts (1 is even), `expert_idle`
    the share of experts that no token chose; both of the layer where they are largest.
    """
    found = routers(model)
    if not found:
        return {}
    peaks = torch.stack([router.share.max() * router.options.count for router in found])
    idle = torch.stack([(router.share == 0).float().mean() for router in found])
    peak, none = torch.stack([peaks.max(), idle.max()]).tolist()
    return {"expert_peak": peak, "expert_idle": none}
