"""Ablation: what a model loses without some of its parts, beside what it loses without as many others.

The output of a head (`z`, before the output projection), a neuron (`hidden`) or a whole branch (`attn_out`, `ffn_out`)
is replaced by zeros, by its mean over batch and positions (Crosbie and Shutova 2024), or by that of another example.
Parts are often redundant one by one and not as a set, so a set is ablated whole, and beside it random sets of the same
size, of parts of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..transformer import Block, Transformer
from .edit import Edit, lens, sloped
from .points import Part, blocks_of, check_parts, has_heads, points, transformer_of

How = Literal["zero", "mean", "resample"]
Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True)
class Ablation:
    """What `ablation` found.

    Args:
        heads: what was ablated, as it was given.
        whole: the measure of the whole model.
        without: the measure without these parts.
        controls: the measure without each random set of as many other parts.
    """

    heads: list[Any]
    whole: float
    without: float
    controls: list[float]

    @property
    def effect(self) -> float:
        """How much the measure falls without the parts."""
        return self.whole - self.without

    @property
    def control(self) -> float:
        """The mean fall without as many random parts; NaN without controls."""
        return self.whole - sum(self.controls) / len(self.controls) if self.controls else float("nan")


@torch.no_grad()
def ablation(
    model: nn.Module, measure: Callable[[], float | Tensor], heads: Sequence[Head | Part], how: How = "mean",
    controls: int = 10, seed: int = 0, means: Mapping[str, Tensor] | None = None, whole: float | None = None,
) -> Ablation:  # fmt: skip
    """Measures a model without some parts, and without random sets of as many others.

    Args:
        model: in evaluation mode.
        measure: runs the model on inputs of its own choice and returns one number.
        heads: pairs of layer and head, or other parts, ablated together.
        how: `zero`, `mean` (over the real tokens of the batches of `measure`) or `resample` (of the next example).
        controls: random sets to measure beside it.
        seed: of the random sets.
        means, whole: what `mean_outputs` and `measure` returned, where that is known already.

    Raises:
        UserError: a part that the model does not have, or more parts than are left for a control.
    """
    chosen = [as_part(head) for head in heads]
    check_parts(model, chosen)
    others = [part for part in alike(model, chosen) if part not in chosen]
    if controls and len(others) < len(set(chosen)):
        raise UserError(
            f"{len(set(chosen))} heads or other parts of {len(others) + len(set(chosen))} are ablated, so that not as "
            "many others are left for a control; ablate fewer, or pass controls=0."
        )
    if how == "mean" and means is None:
        means = mean_outputs(model, measure, sorted({name for name, _ in [*chosen, *others]}))
    whole = float(measure()) if whole is None else whole

    def without(parts: Sequence[Part]) -> float:
        with lens(model, edit=part_edits(parts, how, means)):
            return float(measure())

    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(len(others), generator=generator)[: len(chosen)].tolist() for _ in range(controls)]
    return Ablation(list(heads), whole, without(chosen), [without([others[i] for i in some]) for some in drawn])


@torch.no_grad()
def without_edges(
    model: nn.Module, measure: Callable[[], float | Tensor], edges: Tensor, heads: Sequence[Part] = (),
    controls: int = 10, seed: int = 0, others: Tensor | None = None, whole: float | None = None,
) -> Ablation:  # fmt: skip
    """Measures a model of which some tokens do not see some others, and beside it without as many random edges.

    Args:
        model: in evaluation mode.
        measure: runs the model on inputs of its own choice and returns one number.
        edges: bool `[batch or 1, queries, keys]`, True where the query shall not see the key.
        heads: where, such as ("3.z", 2) or ("3.z", None) for the layer; everywhere by default.
        controls: random sets to measure beside it: of each query as many edges as are cut, of `others`.
        seed: of the random sets.
        others: bool like `edges`, what random sets are drawn from; all that each query sees by default.
        whole: what `measure` returned, where that is known already.
    """
    known = points(model)
    parts = list(heads) or [(name, None) for name in known if name.rpartition(".")[2].endswith("z")]
    check_parts(model, parts)
    causal = isinstance(blocks_of(model)[0], Block) and transformer_of(model).config.causal
    others = torch.ones_like(edges) if others is None else others
    others = (others.tril() if causal else others) & ~edges
    whole = float(measure()) if whole is None else whole

    def without(gone: Tensor) -> float:
        cut: dict[int | str, Tensor] = {}
        for name, number in parts:
            every = cut.setdefault(name, gone.new_zeros(len(gone), known[name].size, *gone.shape[1:]))
            every[:, slice(None) if number is None else number] |= gone if number is not None else gone[:, None]
        with lens(model, cut=cut):
            return float(measure())

    generator, drawn = torch.Generator().manual_seed(seed), []
    for _ in range(controls):
        chance = torch.rand(others.shape, generator=generator).to(others.device).masked_fill(~others, -1.0)
        place = chance.argsort(-1, descending=True).argsort(-1)
        drawn.append((place < edges.sum(-1, keepdim=True)) & others)
    return Ablation(parts, whole, without(edges), [without(some) for some in drawn])


def as_part(head: Head | Part) -> Part:
    """A head as a part: (3, 1) is ("3.z", 1)."""
    place, number = head
    return (place, number) if isinstance(place, str) else (f"{int(place)}.z", None if number is None else int(number))


def all_heads(model: nn.Module) -> list[Head]:
    """Every head of every layer with attention, as (layer, head)."""
    layers = [int(name.split(".")[0]) for name in points(model) if name.endswith(".z")]
    return [(layer, head) for layer in layers for head in range(transformer_of(model).config.heads)]


def alike(model: nn.Module, chosen: Sequence[Part]) -> list[Part]:
    """All parts of the kinds of `chosen`: all heads of all layers, all neurons, all branches."""
    known, found = points(model), []
    for kind in dict.fromkeys(name.split(".", 1)[1] for name, _ in chosen):
        whole = any(number is None for name, number in chosen if name.split(".", 1)[1] == kind)
        for name in (name for name in known if name.split(".", 1)[1] == kind):
            found += [(name, None)] if whole else [(name, number) for number in range(known[name].size)]
    return found


def head_edits(heads: Sequence[Head | Part], how: How, means: Mapping[str, Tensor] | None = None) -> dict[str, Edit]:
    """Edits for `lens` that ablate heads or other parts; see `part_edits`."""
    return part_edits([as_part(head) for head in heads], how, means)


def part_edits(parts: Sequence[Part], how: How, means: Mapping[str, Tensor] | None = None) -> dict[str, Edit]:
    """Edits for `lens` that ablate parts.

    Args:
        parts: what to ablate; a number counts along the first axis behind the tokens.
        how: see `ablation`.
        means: for `mean`, what `mean_outputs` returns.
    """
    if how not in ("zero", "mean", "resample"):
        raise UserError(f"how is '{how}', but must be zero, mean or resample.")
    places: dict[str, list[int | None]] = {}
    for name, number in parts:
        places.setdefault(name, []).append(number)

    def replaced(name: str, numbers: list[int | None], mean: Tensor | None, x: Tensor) -> Tensor:
        chosen: Any = slice(None) if None in numbers else numbers
        at = (..., chosen, slice(None)) if has_heads(name) else (..., chosen)
        x = x.clone()
        if how == "resample":
            if len(x) < 2:
                raise UserError("how is resample, but the batch holds one example; give at least two in a batch.")
            x[at] = x.roll(1, 0)[at]
        else:
            x[at] = 0.0 if mean is None else mean[chosen].to(x)
        return x

    found = means or {}
    return {name: partial(replaced, name, numbers, found.get(name)) for name, numbers in places.items()}


@torch.no_grad()
def mean_outputs(
    model: nn.Module, run: Callable[[], Any], names: Sequence[str] | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """The mean of points over the real tokens of all batches of `run`, float64 such as `[heads, head_dim]`, by point.

    Padding does not count. All outputs of heads (`z`) by default.
    """
    sums: dict[str, list[Any]] = {}
    valid: Tensor | None = None

    def note(module: nn.Module, args: Any, call: dict[str, Any]) -> None:
        nonlocal valid
        valid = call.get("valid") if call.get("cache") is None else None

    def add(name: str, x: Tensor) -> Tensor:
        here = x.double().flatten(0, -3 if has_heads(name) else -2)
        if valid is not None:
            here = here[valid.expand(len(here) // valid.shape[1], -1).flatten()]
        held = sums.setdefault(name, [torch.zeros_like(here[:1].sum(0)), 0])
        held[0], held[1] = held[0] + here.sum(0), held[1] + len(here)
        return here[:0]

    names = [name for name in points(model) if name.endswith(".z")] if names is None else list(names)
    blocks = blocks_of(model)
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Transformer) and module.blocks is blocks:
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(lens(model, keep={name: partial(add, name) for name in names}))
        run()
    return {name: total / max(count, 1) for name, (total, count) in sums.items()}


def estimated_effects(
    model: nn.Module, score: Callable[[], Tensor], means: Mapping[str, Tensor]
) -> dict[str, Tensor]:  # fmt: skip
    """The linear estimate of each head's effect under mean ablation, from one backward pass: gradient × (z - mean).

    Args:
        model: in evaluation mode.
        score: runs it and returns one differentiable number.
        means: what `mean_outputs` returned.

    Returns:
        By point, float64 `[heads]`: how much the score would fall.
    """
    values, slopes = sloped(model, score, list(means))
    found = {name: torch.zeros(len(mean), dtype=torch.float64) for name, mean in means.items()}
    for name, mean in means.items():
        for x, slope in zip(values[name], slopes[name]):
            product = slope.double() * (x.double() - mean)
            found[name] += product.movedim(-2, 0).flatten(1).sum(1).cpu()
    return found
