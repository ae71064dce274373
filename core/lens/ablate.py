"""Ablation: what a model loses without some of its heads, beside what it loses without as many others.

The output of a head (`z`, before the output projection) is replaced by zeros, by its mean over batch and positions
(Crosbie and Shutova 2024), or by that of another example. Heads are often redundant one by one and not as a set, so a
set is ablated whole, and beside it random sets of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from .edit import Edit, lens
from .points import check_heads, points, transformer_of

How = Literal["zero", "mean", "resample"]
Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True)
class Ablation:
    """What `ablation` found.

    Args:
        whole: the measure of the whole model.
        without: the measure without the heads.
        controls: the measure without each random set of as many other heads.
    """

    heads: list[Head]
    whole: float
    without: float
    controls: list[float]

    @property
    def effect(self) -> float:
        """How much the measure falls without the heads."""
        return self.whole - self.without

    @property
    def control(self) -> float:
        """The mean fall without as many random heads; NaN without controls."""
        return self.whole - sum(self.controls) / len(self.controls) if self.controls else float("nan")


@torch.no_grad()
def ablation(
    model: nn.Module, measure: Callable[[], float | Tensor], heads: Sequence[Head], how: How = "mean",
    controls: int = 10, seed: int = 0,
) -> Ablation:  # fmt: skip
    """Measures a model without some heads, and without random sets of as many others.

    Args:
        model: in evaluation mode.
        measure: runs the model on inputs of its own choice and returns one number.
        heads: pairs of layer and head, ablated together.
        how: `zero`, `mean` (over the batches and positions of `measure`) or `resample` (of the next example).
        controls: random sets to measure beside it.
        seed: of the random sets.

    Raises:
        UserError: a head that the model does not have, or more heads than are left for a control.
    """
    heads = [(int(layer), int(head)) for layer, head in heads]
    _check(model, heads, controls)
    means = mean_outputs(model, measure) if how == "mean" else {}
    whole = float(measure())

    def without(chosen: Sequence[Head]) -> float:
        with lens(model, edit=head_edits(chosen, how, means)):
            return float(measure())

    others = [head for head in all_heads(model) if head not in heads]
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(len(others), generator=generator)[: len(heads)].tolist() for _ in range(controls)]
    return Ablation(heads, whole, without(heads), [without([others[i] for i in chosen]) for chosen in drawn])


def all_heads(model: nn.Module) -> list[Head]:
    """Every head of every layer with attention, as (layer, head)."""
    layers = [int(name.split(".")[0]) for name in points(model) if name.endswith(".z")]
    return [(layer, head) for layer in layers for head in range(transformer_of(model).config.heads)]


def head_edits(heads: Sequence[Head], how: How, means: Mapping[str, Tensor] | None = None) -> dict[str, Edit]:
    """Edits for `lens` that ablate heads.

    Args:
        heads: pairs of layer and head.
        how: see `ablation`.
        means: for `mean`, what `mean_outputs` returns.
    """
    if how not in ("zero", "mean", "resample"):
        raise UserError(f"how is '{how}', but must be zero, mean or resample.")
    layers: dict[int, list[int]] = {}
    for layer, head in heads:
        layers.setdefault(layer, []).append(head)

    def replaced(chosen: list[int], mean: Tensor | None, z: Tensor) -> Tensor:
        z = z.clone()
        if how == "resample":
            if len(z) < 2:
                raise UserError("how is resample, but the batch holds one example; give at least two in a batch.")
            z[:, :, chosen] = z.roll(1, 0)[:, :, chosen]
        else:
            z[:, :, chosen] = 0.0 if mean is None else mean[chosen].to(z)
        return z

    found = means or {}
    return {f"{layer}.z": partial(replaced, chosen, found.get(f"{layer}.z")) for layer, chosen in layers.items()}


@torch.no_grad()
def mean_outputs(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """The mean of each head's output over all batches and positions of `run`, padding included: `[heads, head_dim]` by
    point.
    """
    sums: dict[str, list[Any]] = {}

    def add(name: str, z: Tensor) -> Tensor:
        total = z.double().sum((0, 1))
        held = sums.setdefault(name, [torch.zeros_like(total), 0])
        held[0], held[1] = held[0] + total, held[1] + z.shape[0] * z.shape[1]
        return total

    names = [name for name in points(model) if name.endswith(".z")]
    with lens(model, keep={name: partial(add, name) for name in names}):
        run()
    return {name: total / count for name, (total, count) in sums.items()}


def _check(model: nn.Module, heads: Sequence[Head], controls: int) -> None:
    if not heads:
        raise UserError("heads is empty, but must name the heads to ablate, as pairs of layer and head.")
    for layer, head in heads:
        check_heads(model, layer, [head])
    known = all_heads(model)
    if strange := [head for head in heads if head not in known]:
        raise UserError(f"Layer {strange[0][0]} has no attention, so it has no heads to ablate.")
    if controls and len(known) < 2 * len(set(heads)):
        raise UserError(
            f"{len(heads)} heads of {len(known)} are ablated, so that not as many others are left for a control; "
            "ablate fewer, or pass controls=0."
        )
