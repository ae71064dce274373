"""Backward passes written by hand that have no derivative of their own, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import UserError


def first_order(what: str, instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes the backward pass of an `autograd.Function` refuse a second derivative.

    `torch.autograd.function.once_differentiable` does so only where the incoming gradient itself has a derivative; for
    one that is constant, as of a sum, it gives a second derivative of zero and no error.

    Args:
        what: is differentiated, for the message.
        instead: function that can be differentiated twice.

    Raises:
        UserError: later, by the backward pass of what was returned.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
            with torch.no_grad():
                found = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return found
            several = isinstance(found, tuple)
            parts = _Once.apply(torch.ones((), requires_grad=True), (what, instead), *(found if several else (found,)))
            return parts if several else parts[0]  # pyright: ignore[reportOptionalSubscript]

        return wrapped

    return decorate


class _Once(torch.autograd.Function):
    """Hands gradients on, and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, names: tuple[str, str], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.names = names
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        what, instead = ctx.names
        raise UserError(f"A second derivative of {what} is asked for, which has only a first one; use {instead}.")
