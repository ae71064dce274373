"""What forward and backward pass of a batch take, without running them: bytes alive at once, and every operator."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from .flops import formulas, on_fake_tensors
from .live import Live

NOTHING = ("empty", "detach", "zeros_like", "_local_scalar_dense", "new_empty", "alias")
"""Parts of the names of operators that take no time, or hardly any."""


@dataclass
class Pass:
    """A forward and backward pass.

    Args:
        most: bytes alive at the fullest moment, beside the weights; with the gradients of the weights, where these are
            not given up.
        operators: (name, FLOPs of each of its products, products, bytes read and written) of each operator.
    """

    most: int
    operators: list[tuple[str, float, int, int]]

    @property
    def flops(self) -> float:
        """Of all products."""
        return sum(flops * times for _, flops, times, _ in self.operators)


class _Operators(Live):
    """Notes each operator beside the bytes that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, float, int, int]] = []
        self._formulas = FlopCounterMode(display=False, custom_mapping=formulas()).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._overloadpacket.__name__
        if func.namespace == "prim" or func.is_view or any(part in name for part in NOTHING):
            return made
        tensors = [leaf for leaf in (*tree_leaves((args, kwargs)), *tree_leaves(made)) if isinstance(leaf, Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        flops, times = 0.0, 1
        if func._overloadpacket in self._formulas:
            flops = float(self._formulas[func._overloadpacket](*args, **(kwargs or {}), out_val=made))
            times = _products(name, made)
        self.found.append((name, flops / times, times, moved))
        return made


def _products(name: str, made: Any) -> int:
    """How many matrix products an operator makes, all alike."""
    if "attention" in name:
        first = next(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return 2 * first.shape[0] * first.shape[1] if first.dim() == 4 else 2
    return made.shape[0] if name in ("bmm", "baddbmm") else 1


def trace(
    module: nn.Module, batch: Any, rows: int, more: int, autocast: torch.dtype | None = None, forget: bool = False
) -> Pass:
    """The pass over a batch of `more` rows, made of one of `rows`.

    Runs on fake tensors, and raises what PyTorch raises where a computation depends on values.

    Args:
        autocast: computes in this type, weights stay what they are.
        forget: gives up the gradient of each weight as soon as it is there.
    """

    def grown(value: Tensor) -> Tensor:
        shape = (more, *value.shape[1:]) if value.dim() and value.shape[0] == rows else value.shape
        return torch.empty(shape, dtype=value.dtype, device="meta")

    batch = tree_map_only(Tensor, grown, batch)
    context = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    operators = _Operators()
    with context:
        on_fake_tensors(module, batch, operators, forget)
    return Pass(operators.most, operators.found)
