"""Counting the floating point operations of one training step, without running it.

Convention ("model FLOPs", as in PaLM, appendix B, nanoGPT and torchtitan): two per multiply-add of every matrix product
and convolution of the forward and backward pass. Attention counts its whole square, whether or not a causal mask lets
the kernel skip half of it (a short window counts its band), and its backward pass twice its forward pass, although
fused kernels compute the scores again. Norms, activations, the optimizer and data movement count nothing. The count
depends neither on the device nor on the kernel, so that published shares of peak compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ... import grouped  # noqa: F401 (registers the operators that are counted here)
from ...again import computed_once
from .live import Live

# The counter of some versions of PyTorch lacks the CPU's operator, and all count the recomputation in the backward.
FUSED = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


def _solve(matrix: Any, right: Any, *rest: Any, **named: Any) -> int:
    """A triangular system takes half of the multiply-adds of a product with its matrix."""
    return matrix[-1] * math.prod(right)


def _lstm(x: Any, input_weight: Any, state_weight: Any, *rest: Any, **named: Any) -> int:
    """Each token is multiplied by both matrices."""
    return 2 * math.prod(x[:-1]) * (math.prod(input_weight) + math.prod(state_weight))


def _lstm_backward(*given: Any, **named: Any) -> int:
    return 2 * _lstm(*given, **named)


def _grouped(x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Each row is multiplied by one of the matrices."""
    return 2 * math.prod(x) * weight[1]


def _grouped_outer(left: Any, right: Any, *rest: Any, **named: Any) -> int:
    return 2 * math.prod(left) * right[1]


def formulas() -> dict[Any, Callable[..., int]]:
    """Formulas over shapes for the operators that PyTorch does not count, or counts otherwise, for
    `FlopCounterMode(custom_mapping=...)`: fused attention, triangular systems, the CPU's LSTM, experts (those that
    tokens read, not all).
    """
    found: dict[Any, Callable[..., int]] = {torch.ops.aten.linalg_solve_triangular: _solve}
    found[torch.ops.aten.mkldnn_rnn_layer] = _lstm
    found[torch.ops.aten.mkldnn_rnn_layer_backward] = _lstm_backward
    found |= {torch.ops.triune.grouped_linear: _grouped, torch.ops.triune.grouped_outer: _grouped_outer}
    for name in FUSED:
        for suffix, formula in (("", _attention), ("_backward", _attention_backward)):
            if operator := getattr(torch.ops.aten, name + suffix, None):
                found[operator] = formula
    return found


class _LossOf(nn.Module):
    """Makes `module.loss` a forward, so that `functional_call` can put other parameters under it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        loss = self.module.loss(batch)  # type: ignore[operator]
        total = loss[0] if isinstance(loss, tuple) else loss
        total.backward()  # here, since blocks that are computed again need the parameters in their place
        return total


def _stand_in(value: Tensor) -> Tensor:
    """An empty CPU tensor like `value` (fake inside a `FakeTensorMode`): every device then takes the same kernels."""
    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _forget(weight: Tensor) -> None:
    weight.grad = None


def count_step(module: nn.Module, batch: Any) -> int:
    """FLOPs of forward and backward of `module.loss(batch)`, by the convention above.

    Runs on fake tensors: neither memory nor random numbers nor gradients are touched, and compiled blocks run their
    eager code. Raises whatever PyTorch raises where the computation depends on values, or on tensors outside of the
    module and the batch: then the count is unknown.
    """
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with computed_once(module):
        on_fake_tensors(module, batch, counter)
    return counter.get_total_flops()


def on_fake_tensors(module: nn.Module, batch: Any, mode: Any, forget: bool = False) -> None:
    """Forward and backward pass of `module.loss(batch)` under `mode`, on fake tensors; see `count_step`.

    Args:
        forget: give up the gradient of each weight as soon as it is there.
    """
    named = {f"module.{name}": value for name, value in module.named_parameters()}
    named |= {f"module.{name}": value for name, value in module.named_buffers()}
    with torch.compiler.set_stance("force_eager"), torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {name: _stand_in(value) for name, value in named.items()}
        inputs = tree_map_only(Tensor, _stand_in, batch)
        for value in tensors.values():
            if forget and value.requires_grad:
                value.register_post_accumulate_grad_hook(_forget)
        if isinstance(mode, Live):
            mode.ignore(tensors.values())
        with mode:
            torch.func.functional_call(_LossOf(module), tensors, (inputs,))
