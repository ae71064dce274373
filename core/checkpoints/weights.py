"""Reversible weight maps: one table for each family of checkpoints, read one way for import and the other for export.

A line of a table pairs our name with theirs, `{}` standing for the number of a layer:

    Rule("transformer.blocks.{}.norm1", "h.{}.ln_1")                                a module: its weight and its bias
    Rule("class_token", "cls_token")                                                one parameter
    Rule(("….q", "….k", "….v"), "h.{}.attn.c_attn", TRANSPOSED)                     three of ours, stacked in one
    Rule("….q_norm.weight", ("norms.0.weight", "norms.1.weight"))                   one of ours, two of theirs stacked

Which parameters exist follows from our model; a table may name more (a bias that this model does not have).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import few
from ..layers import Norm
from .native import finite, refuse_not_finite


@dataclass(frozen=True)
class Layout:
    """How tensors of ours lie in one of theirs.

    Args:
        join: ours, in the order of the rule -> theirs.
        split: theirs and the shapes of ours -> ours.
        transposed: matrices are stored `[in, out]`; together with `stacked` this is what LoRA adapters need to know.
        stacked: output rows of theirs are those of ours; LoRA adapters need to know this and what follows.
        groups: rows lie in so many groups, each with an equal share of the rows of each of ours.
    """

    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor, list[torch.Size]], list[Tensor]]
    transposed: bool = False
    stacked: bool = True
    groups: int = 1


def _rows(whole: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    rows = [shape[0] if shape else 1 for shape in shapes]
    if len(shapes) == 1:
        return [whole]
    if sum(rows) != whole.shape[0]:
        raise ValueError(f"{whole.shape[0]} rows hold no {' + '.join(map(str, rows))}")
    return list(whole.split(rows))


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _turn(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.dim() == 2 else tensor


STACKED = Layout(_stack, _rows)
"""One tensor as it is, or several below each other (q, k, v)."""

TRANSPOSED = Layout(
    lambda parts: _turn(_stack(parts)).contiguous(),
    lambda whole, shapes: _rows(_turn(whole), shapes),
    transposed=True,
)
"""The same with matrices stored `[in, out]`: GPT-2's Conv1D, JAX."""


def reshaped(*shape: int) -> Layout:
    """Theirs has `shape` (-1 once), ours the shape it has: `[1, tokens, dim]` for a table `[tokens, dim]`."""
    return Layout(
        lambda parts: parts[0].reshape(shape), lambda whole, shapes: [whole.reshape(shapes[0])], stacked=False
    )


def reordered(sizes: Sequence[int], order: Sequence[int]) -> Layout:
    """The rows of ours are blocks of `sizes`; theirs has the same blocks in another order, the numbers of ours."""
    back = [order.index(block) for block in range(len(order))]
    theirs = [sizes[block] for block in order]
    return Layout(
        lambda parts: torch.cat([parts[0].split(list(sizes))[block] for block in order]),
        lambda whole, shapes: [torch.cat([whole.split(theirs)[block] for block in back])],
        stacked=False,
    )


def heads_interleaved(heads: int) -> Layout:
    """q, k and v of one head follow each other, then the next head (GPT-NeoX), or those of the queries that share a key
    and value (Falcon).

    Args:
        heads: of keys and values; each part has a multiple of their number of rows.
    """

    def join(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 1)

    def split(whole: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
        rows = [shape[0] // heads for shape in shapes]
        return [part.flatten(0, 1) for part in whole.unflatten(0, (heads, -1)).split(rows, dim=1)]

    return Layout(join, split, groups=heads)


def pairs_interleaved(heads: int) -> Layout:
    """Rotary pairs are neighbouring rows of each head there and lie half a head apart here (Meta's Llama, GGUF)."""

    def join(parts: list[Tensor]) -> Tensor:
        return parts[0].unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def split(whole: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
        return [whole.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)]

    return Layout(join, split, stacked=False)


class Rule(NamedTuple):
    """One line of a table.

    ours: a module or parameter of ours, or several that are one tensor of theirs.
    theirs: its name there, or the names of several of equal shape.
    layout: how the numbers lie.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    layout: Layout = STACKED


class Entry(NamedTuple):
    """One tensor of theirs, or several stacked, and the tensors of ours it holds."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout


class Target(NamedTuple):
    """Where a linear layer of ours lies in their model.

    module: its path there.
    transposed: its weight is stored `[in, out]`.
    part: (index, count, ) of ours among the layers that are stacked in theirs, None when it is alone.
    groups: as in `Layout`.
    """

    module: str
    transposed: bool = False
    part: tuple[int, int] | None = None
    groups: int = 1


@dataclass(frozen=True)
class WeightMap:
    """The table of a family.

    Args:
        rules: in any order; the first that fits a name counts.
        ignored: regular expressions for whole names of theirs that carry nothing of ours: buffers, tied copies, parts
            of the original that the model does not use.
        constants: tensors that their library insists on and ours does not have, as they are written on export; on
            import they are ignored.
        gains: norms have gains there, of one where a norm of ours has none.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    gains: bool = True

    def entries(self, names: list[str]) -> list[Entry]:
        """What each tensor of theirs holds, given the names of our parameters.

        Raises:
            KeyError: no rule fits a name; the table is incomplete.
        """
        found: dict[tuple[str, ...], dict[int, str]] = {}
        rule_of: dict[tuple[str, ...], Rule] = {}
        for name in names:
            rule, part, their = self._find(name)
            found.setdefault(their, {})[part] = name
            rule_of[their] = rule
        return [
            Entry(their, tuple(parts[part] for part in sorted(parts)), rule_of[their].layout)
            for their, parts in found.items()
        ]

    def _find(self, name: str) -> tuple[Rule, int, tuple[str, ...]]:
        for rule in self.rules:
            ours = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
            for part, pattern in enumerate(ours):
                match = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)") + r"(\.weight|\.bias)?", name)
                if match:
                    *layers, suffix = match.groups()
                    theirs = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
                    return rule, part, tuple(their.format(*layers) + (suffix or "") for their in theirs)
        raise KeyError(f"no rule for {name}")

    def to_ours(self, theirs: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
        """Their state dict under our names, complete for `model`.

        Raises:
            UserError: names or shapes do not fit, with what is missing and what is unexpected.
        """
        return dict(self._translate(theirs, unique_state(model), source))

    def load(self, model: nn.Module, theirs: Mapping[str, Tensor], source: str) -> None:
        """Copies their weights into `model`, one at a time: a mapping that reads each when asked needs no second copy.

        Raises UserError as `to_ours` does, for a shape that is not the model's, and for values that are not finite.
        """
        own, odd = unique_state(model), []
        with torch.no_grad():
            for name, tensor in self._translate(theirs, own, source):
                if tensor.shape != own[name].shape:
                    raise UserError(
                        f"The weights of '{source}' do not fit this model: {name} is {tuple(tensor.shape)} there and "
                        f"{tuple(own[name].shape)} here; give the settings that it was made with."
                    )
                own[name].copy_(tensor)
                odd += [] if finite(tensor) else [name]
        refuse_not_finite(odd, source)

    def _translate(
        self, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
    ) -> Iterator[tuple[str, Tensor]]:
        entries = self.entries(list(own))
        wanted = {name for entry in entries for name in entry.theirs}
        missing = sorted(wanted - theirs.keys())
        unexpected = [name for name in theirs if name not in wanted and not self._ignores(name)]
        problems = [("missing", missing), ("unexpected", unexpected)]
        text = "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in problems if names)
        if text:
            raise UserError(
                f"The weights of '{source}' are not those its config describes ({text}), but of "
                "another architecture or another version of its library; use the config that came with them."
            )
        for entry in entries:
            shapes = [own[name].shape for name in entry.ours]
            whole = theirs[entry.theirs[0]]
            try:
                whole = whole if len(entry.theirs) == 1 else torch.cat([theirs[name] for name in entry.theirs])
                parts = entry.layout.split(whole, shapes)
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"'{entry.theirs[0]}' of '{source}' is {tuple(whole.shape)}, which does not fit what its config "
                    f"describes ({error})."
                ) from None
            yield from zip(entry.ours, parts, strict=True)

    def to_theirs(self, model: nn.Module) -> dict[str, Tensor]:
        """Our weights under their names."""
        own = unique_state(model)
        if self.gains:
            bare = {name: m for name, m in model.named_modules() if isinstance(m, Norm) and m.weight is None}
            own |= {f"{name}.weight": torch.ones(norm.dim) for name, norm in bare.items()}
        theirs = {
            name: part
            for entry in self.entries(list(own))
            for name, part in zip(entry.theirs, _pieces(entry, own), strict=True)
        }
        return theirs | dict(self.constants)

    def targets(self, model: nn.Module) -> dict[str, Target]:
        """For each linear layer of ours that their model has as such: where; see `peft.py`."""
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        own = unique_state(model)
        found = {}
        for entry in self.entries([f"{name}.weight" for name in linears if f"{name}.weight" in own]):
            for part, name in enumerate(entry.ours):
                if entry.layout.stacked:
                    where = None if len(entry.ours) == 1 else (part, len(entry.ours))
                    found[name.removesuffix(".weight")] = Target(
                        entry.theirs[0].removesuffix(".weight"), entry.layout.transposed, where, entry.layout.groups
                    )
        return found

    def _ignores(self, name: str) -> bool:
        return name in self.constants or any(re.fullmatch(pattern, name) for pattern in self.ignored)


def _pieces(entry: Entry, own: Mapping[str, Tensor]) -> Sequence[Tensor]:
    whole = entry.layout.join([own[name] for name in entry.ours])
    return [whole] if len(entry.theirs) == 1 else whole.tensor_split(len(entry.theirs))


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tensors that share memory (tied weights) under their first name only."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor
    return state
