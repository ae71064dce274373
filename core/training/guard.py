"""Steps whose loss or gradient is not finite: left out, named, and an end to the training when several follow.

What is left out is the update: weights, state of the optimizer and averages stay as they were. The step counts all the
same, so that schedule, order of the data and resume do not depend on it. On a CPU the decision is read at once; on
another device it stays there (`MuonAdamW.left_out`), and the host reads a row of steps together, on log steps.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..errors import UserError
from ..files import few
from .data import DataModule
from .lightning_fixes import rank
from .optimizers import MuonAdamW

ADVICE = (
    "try a lower learning rate, a longer warm-up (schedule.warmup), --trainer.gradient_clip_val 1.0 or "
    "--trainer.precision 32-true"
)
RECENT, LEAST = 64, 32
"""Losses that a new one is compared with, and how few of them are enough."""
SPREADS, SHARE = 10.0, 0.01
"""A spike is this many spreads above the median; a spread is at least this share of the median."""
UNREAD = ("cuda",)
"""Devices that run ahead of the host, which would wait for them if it read a number at each step."""
MOST_PENDING = 100
"""Steps after which the host reads what the device holds, however rarely something is logged."""
MOST_NAMES, MOST_SAID = 6, 20
"""Names of samples in a message; messages of a kind before only every hundredth is said."""


class Part(NamedTuple):
    """A micro-batch: its position in the order of training, and the sum of its losses."""

    position: int
    total: Tensor


class Step(NamedTuple):
    """An optimizer step, counted from 1: whether it was left out, its loss, its units; scalars on the device."""

    number: int
    left_out: Tensor
    loss: Tensor
    units: Tensor
    parts: list[Part]


def at_hand(tensor: Tensor) -> bool:
    """Whether the host may read a tensor now, rather than together with others on a log step."""
    return tensor.device.type not in UNREAD


def settled(left_out: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """The decision where it is needed: told to `optimizer` on the GPU, where that can use it there, else read now."""
    whole = not any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    if not at_hand(left_out) and isinstance(optimizer, MuonAdamW) and whole:
        optimizer.left_out = left_out
        return left_out
    return left_out.cpu()


def weights_are_finite(module: Any) -> bool:
    """Whether no weight of a Lightning module, of all processes, is infinite or NaN; waits for the device."""
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in module.state_dict().values()]
    some = [t for t in tensors if t.is_floating_point() and t.numel()]
    norms = torch._foreach_norm(some or [torch.zeros(1)], math.inf)  # pyright: ignore[reportPrivateImportUsage]
    good = torch.stack([norm.float() for norm in norms]).isfinite().all()
    if module.trainer.world_size > 1:
        every = good.float().to(module.device)
        dist.all_reduce(every, op=dist.ReduceOp.MIN)
        good = every
    return bool(good)


class Guard:
    """Follows the steps of a training: names those that were left out, and says when the loss leaps.

    Args:
        limit: steps in a row that may be left out; the training stops at the last of these.

    Attributes:
        counts: steps left out (`skipped_steps`), leaps of the loss (`loss_spikes`) and steps without any target
            (`steps_without_targets`).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts = {"skipped_steps": 0, "loss_spikes": 0, "steps_without_targets": 0}
        self._in_a_row = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._quiet_until = 0
        self._parts: list[Part] = []
        self._pending: list[Step] = []

    def saw(self, trainer: Any, total: Tensor) -> None:
        """Notes the summed loss of a micro-batch, before its gradient is computed."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        counter = progress.current if trainer.overfit_batches else progress.total
        self._parts.append(Part(counter.processed, total.detach()))

    def took(self, module: Any, left_out: Tensor, loss: Tensor, units: Tensor) -> None:
        """Notes an optimizer step that was just made; reads what is known of the last ones when that costs no waiting.

        Raises:
            UserError: as `review`.
        """
        trainer, parts = module.trainer, self._parts
        number = trainer.global_step + 1  # the trainer counts it a little later
        self._parts = []
        self._pending.append(Step(number, left_out, loss, units, parts))
        due = number % trainer.log_every_n_steps == 0 or len(self._pending) >= MOST_PENDING
        if at_hand(left_out) or due:
            self.review(module)

    def forget_window(self) -> None:
        """Drops the micro-batches of a window that was not finished."""
        self._parts = []

    def review(self, module: Any) -> None:
        """Reads the steps that were not read yet, and says what is odd about them; waits for the device.

        All processes find the same, because loss, gradient and units are those of all of them.

        Raises:
            UserError: `limit` steps in a row were left out, or weights are not finite.
        """
        steps, self._pending = self._pending, []
        if not steps:
            return
        values = [value.float().to(s.loss.device) for s in steps for value in (s.left_out, s.loss, s.units)]
        for step, (left_out, loss, units) in zip(steps, torch.stack(values).view(-1, 3).tolist(), strict=True):
            if left_out:
                self._skip(module, step, loss)
                continue
            self._in_a_row = 0
            if units == 0:
                text = "step {} has no target to learn from, so that its gradient is zero"
                self._count("steps_without_targets", module, step, text)
            else:
                self._compare(module, step, loss)

    def _skip(self, module: Any, step: Step, loss: float) -> None:
        scaler = getattr(module.trainer.precision_plugin, "scaler", None)
        if math.isfinite(loss) and scaler is not None and scaler.get_scale() > 1:
            return  # 16-bit gradients overflowed: the scaler now takes a smaller factor
        self._in_a_row += 1
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient is not finite (its loss is {loss:.4g})"
        text = "step {} was left out: its " + what
        samples = self._count(
            "skipped_steps", module, step, text, "; weights, optimizer and averages stay as they were"
        )
        if not weights_are_finite(module):
            raise UserError(
                f"Weights are not finite after step {step.number}, which nothing mends; the last checkpoint is from "
                f"before: {ADVICE}."
            )
        if self._in_a_row >= self.limit:
            raise UserError(
                f"The loss or the gradient was not finite in {self._in_a_row} steps in a row, the last of them step "
                f"{step.number}, whose {what}{samples}; the last checkpoint is from before: {ADVICE}."
            )

    def _compare(self, module: Any, step: Step, loss: float) -> None:
        """Says when a loss is far above the last ones; the median and the spread are blind to single leaps."""
        recent = self._recent
        if len(recent) >= LEAST and step.number >= self._quiet_until and loss > max(recent):
            median = statistics.median(recent)
            spread = 1.4826 * statistics.median(abs(value - median) for value in recent)
            if loss > median + SPREADS * max(spread, SHARE * abs(median)):
                self._quiet_until = step.number + RECENT
                last = f"{median:.4g}, the median of the last {len(recent)} steps"
                text = f"the loss of step {{}} leaps to {loss:.4g}, from {last}"
                self._count("loss_spikes", module, step, text)
        recent.append(loss)

    def _count(self, kind: str, module: Any, step: Step, text: str, more: str = "") -> str:
        """Counts and says something about a step; returns the names of its samples, after a comma."""
        self.counts[kind] = count = self.counts[kind] + 1
        if count > MOST_SAID and count % 100 and self._in_a_row < self.limit:
            return ""
        names = _names(module.trainer, step)
        samples = f", of {few(names, MOST_NAMES)}" if names else ""
        if rank() == 0:
            print(f"{text.format(step.number)}{samples}{more}", flush=True)
        return samples

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with; call `review` before."""
        return {
            "counts": dict(self.counts), "in_a_row": self._in_a_row, "recent": list(self._recent),
            "quiet_until": self._quiet_until,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.counts |= state["counts"]
        self._in_a_row, self._quiet_until = state["in_a_row"], state["quiet_until"]
        self._recent = deque(state["recent"], maxlen=RECENT)


def _names(trainer: Any, step: Step) -> list[str]:
    """What the micro-batches of a step hold, on all ranks: those whose loss is not finite, or all where none is."""
    data = getattr(trainer, "datamodule", None)
    found: list[tuple[bool, list[str]]] = []
    for part in step.parts:
        names = data.samples(part.position) if isinstance(data, DataModule) else []
        found.append((bool(part.total.isfinite()), names or [f"batch {part.position + 1}"]))
    if trainer.world_size > 1:
        parts: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(parts, found)
        found = [entry for part in parts for entry in part]
    certain = [names for good, names in found if not good]
    return list(dict.fromkeys(name for names in certain or [names for _, names in found] for name in names))
