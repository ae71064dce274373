"""Exponential moving average of the weights."""

# torch's foreach functions are documented but not exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.native import whole
from ..errors import UserError
from .guard import at_hand
from .sharded import cut_like, let_go, part


class EMA:
    """Averages of a model's parameters over the course of training (Polyak & Juditsky 1992).

    After step t (counted from 0) `average = d * average + (1 - d) * weight`, `d = min(decay, (1 + t) / (10 + t))`: the
    early averages forget the initial weights quickly. Averages are float32 whatever the precision of the model, since
    bfloat16 would round the small increments away. Buffers are not averaged.

    Which weights are where: the model holds the raw training weights, except between `swap()` and the next `swap()`,
    when it holds the averages and this object the raw weights; `averaged()` finds the averages at any time. In a
    checkpoint `state_dict` holds the raw weights and `ema` the averages; the exported model holds the averages.

    Args:
        decay: d above, at least 0 and below 1; 0.999 averages over about the last 1,000 steps.

    Raises:
        UserError: `decay` outside its range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"ema is {decay}, but must be at least 0 and below 1 (0.999 averages about 1,000 steps).")
        self.decay = decay
        self.steps = 0
        self.swapped = False
        self._names: list[str] = []
        self._params: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._model: nn.Module | None = None

    def attach(self, model: nn.Module) -> None:
        """Follows the parameters of `model`, starting from their values or from what `load_state_dict` brought."""
        known = dict(zip(self._names, self._averages))
        named = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
        self._names = [name for name, _ in named]
        # The parameters themselves, not views of their memory: moving a model to another device keeps them.
        self._params = [p for _, p in named]
        # `copy=True`: an average must never share memory with its parameter. Lightning may evaluate in inference mode,
        # whose tensors could not be changed later.
        with torch.inference_mode(False):
            self._averages = [
                cut_like(known.get(n, p).detach(), p).to(device=p.device, dtype=torch.float32, copy=True)
                for n, p in named
            ]
        self._model = model

    @property
    def attached(self) -> bool:
        return bool(self._params)

    @torch.no_grad()
    def update(self, left_out: Tensor | None = None) -> None:
        """Takes the present weights into the averages; call it after each optimizer step.

        Args:
            left_out: bool scalar: whether the step changed no weights; then the averages stay as they are, too.
        """
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        if left_out is not None and at_hand(left_out):
            if left_out:
                return
            left_out = None
        weights, averages = [part(p).float() for p in self._params], [part(a) for a in self._averages]
        if left_out is not None:  # not read: chosen on the device
            weights = [torch.where(left_out, a, w) for a, w in zip(averages, weights, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages, in place."""
        if self._model is not None:
            let_go(self._model)
        params, averages = [part(p) for p in self._params], [part(a) for a in self._averages]
        kept = [p.clone() for p in params]
        torch._foreach_copy_(params, averages)
        # Weights of a lower precision survive the way through float32 and back unchanged.
        torch._foreach_copy_(averages, kept)
        self.swapped = not self.swapped

    def averaged(self) -> dict[str, Tensor]:
        """The averages by parameter name (not copies)."""
        return dict(zip(self._names, self._params if self.swapped else self._averages))

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and averages, for a checkpoint; where they are cut over processes, all must call this."""
        return {"steps": self.steps, "averages": {name: whole(a) for name, a in self.averaged().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`; the averages reach a model with `attach`."""
        self.steps = state["steps"]
        self._names, self._averages = list(state["averages"]), list(state["averages"].values())
        self._params, self.swapped = [], False
