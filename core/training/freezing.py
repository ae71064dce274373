"""Which parameters of a pretrained model train, and from which step on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..checks import check_types
from ..errors import UserError
from .groups import places
from .run.progress import short


@dataclass
class FreezeConfig:
    """Which part of a pretrained model stays as it is: the embeddings and the blocks above them.

    Args:
        blocks: how many blocks from the bottom are frozen, with the embeddings; `all` leaves only the head to train.
        steps: unfreeze one more block, from the top, every so many optimizer steps, and the embeddings last (Howard and
            Ruder 2018, section 3.3). Left out: frozen to the end.

    Raises:
        UserError: a value outside its range.
    """

    blocks: int | Literal["all"] = "all"
    steps: int | None = None

    def __post_init__(self) -> None:
        check_types(self, "freeze.")
        if self.blocks != "all" and (not isinstance(self.blocks, int) or self.blocks < 0):
            raise UserError(f"freeze.blocks is {self.blocks}, but must be a number of blocks from 0 on, or all.")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"freeze.steps is {self.steps}, but must be at least 1, or left out.")


class Freezing:
    """Freezes parameters of `model`, and thaws them as training goes on.

    A frozen parameter has `requires_grad` False: no gradient is computed for it, and the optimizer, which sees only
    gradients, neither moves nor decays it and keeps no state for it. What is frozen is a function of the step alone, so
    a resumed run goes on exactly.

    Args:
        model: a norm after the last block belongs to that block; what comes behind is the head, and always trains.
        config: what to freeze.
        keep: parameters by name that always train.

    Raises:
        UserError: more blocks are to be frozen than there are.
    """

    def __init__(self, model: nn.Module, config: FreezeConfig, keep: Callable[[str], bool]) -> None:
        self.every = config.steps
        self.thawed = 0
        parameters = dict(model.named_parameters())
        inner = [name for name in parameters if not keep(name)]
        found = {name: place for name, place in places(model, inner).items() if not keep(name)}
        self.depth = max((place.blocks for place in found.values()), default=0)
        blocks = self.depth if config.blocks == "all" else config.blocks
        if blocks > self.depth:
            raise UserError(f"freeze.blocks is {blocks}, but the model has {self.depth} blocks.")
        self.blocks = blocks
        around = {_before_blocks(name) for name in found} - {""}
        stages: list[list[nn.Parameter]] = [[] for _ in range(blocks + 1)]  # from the embeddings to the top
        for name, place in found.items():
            block = place.block
            if block == self.depth and name.startswith(tuple(around)):  # the transformer's final norm
                block -= 1
            if block < blocks:
                stages[block + 1].append(parameters[name])
        self._stages = stages[::-1]
        self._freeze(0)

    def at(self, step: float) -> None:
        """Freezes what is frozen after `step` optimizer steps; costs nothing when that is as before."""
        thawed = 0 if self.every is None else int(min(step / self.every, len(self._stages)))
        if thawed != self.thawed:
            self._freeze(thawed)

    def _freeze(self, thawed: int) -> None:
        self.thawed = thawed
        for index, stage in enumerate(self._stages):
            for p in stage:
                p.requires_grad_(index < thawed)

    def describe(self) -> str:
        """What is frozen, in words."""
        which = "all blocks" if self.blocks == self.depth else f"the first {self.blocks} of {self.depth} blocks"
        what = f"embeddings and {which}" if self.blocks else "embeddings"
        after = "" if self.every is None else f", one block more trains every {self.every:,} steps"
        return f"{what} frozen{after}"


def _before_blocks(name: str) -> str:
    """ "transformer." of "transformer.blocks.0.norm1.weight"; empty for what is in no block."""
    path = name.split(".")
    return "".join(f"{part}." for part in path[: path.index("blocks")]) if "blocks" in path else ""


def trained(model: nn.Module) -> str:
    """ "270k of 135M parameters (0.2 %)"."""
    total = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{short(count)} of {short(total)} parameters ({100 * count / total:.3g} %)"
