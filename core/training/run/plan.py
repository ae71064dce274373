"""`triune plan`: what a training takes on other devices, by formulas, without training and without its weights."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..optimizers import AT_ONCE
from .check import short_flops
from .devices import Devices, Rates
from .progress import duration, short
from .step import Step
from .trace import Pass

ROOM = 0.95
"""Part of the memory that a batch may fill."""
HEAP = 1.6
"""Memory of a process on a CPU for each byte of its tensors that come and go: the C library's heap keeps gaps
(`bench/plan_accuracy.py`)."""
GIVEN_BACK = 1.25
"""The same where the gaps are given back at each step (`heap.GivesBack`), so that they are those of one pass."""
MUON_COPIES = 8
"""Copies that `orthogonalise` and the step around it hold of the matrices of a portion, shared by all processes."""
TRAINER, PER_TENSOR = 400, 6
"""What the trainer and the data do at a step, and what an update does for each tensor, in calls of an operator."""


@dataclass
class Plan:
    """The figures, in bytes, seconds and FLOPs; `formulas` says how each was found."""

    memory: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    total_again: float | None = None
    largest: int | None = None
    largest_again: int | None = None
    sent: float = 0.0
    flops: float = 0.0
    compute: float = 0.0
    update: float = 0.0
    communication: float = 0.0
    formulas: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of an optimizer step whose communication runs beside its passes."""
        return max(self.compute, self.communication) + self.update


def plan(step: Step, devices: Devices, strategy: str, rates: Rates) -> Plan:
    """What a step takes on each of some devices.

    Args:
        strategy: "ddp" (each holds all) or "fsdp2" (cut over all).
    """
    found, world, cut = Plan(), devices.world, strategy == "fsdp2" and devices.world > 1
    _add_memory(found, step, world, cut)
    free = ROOM * devices.memory
    found.largest = _largest(step, found.total, free, step.one, step.two, _heap(step, cut))
    if step.again and step.again_two:
        other = Plan()
        _add_memory(other, replace(step, checkpointing=True), world, cut)
        found.total_again = other.total
        found.largest_again = _largest(step, other.total, free, step.again, step.again_two, _heap(step, True))
    if step.checkpointing and step.again:
        other = Plan()
        _add_memory(other, replace(step, checkpointing=False), world, cut)
        found.largest = _largest(step, other.total, free, step.one, step.two, _heap(step, cut))
    _add_communication(found, step, devices, cut)
    _add_time(found, step, devices, rates)
    return found


def _add_memory(found: Plan, step: Step, world: int, cut: bool) -> None:
    pieces = world if cut else 1
    over = f" / {world} devices" if cut else ""
    passes = step.again if step.checkpointing and step.again else step.one
    memory, formulas = found.memory, found.formulas
    heap = _heap(step, cut)
    gaps = f", x {heap} in the gaps of a CPU's heap" if step.base else ""
    memory["weights"] = step.weights / pieces
    formulas["weights"] = f"{short(step.parameters)} parameters x {step.size} bytes{over}"
    memory["optimizer"] = step.state / pieces
    formulas["optimizer"] = f"{step.size} bytes a number of Muon's matrices, twice that of AdamW's{over}"
    if step.averages:
        memory["averages"] = step.averages / pieces
        formulas["averages"] = f"a copy of what trains, 4 bytes a number{over}"
    memory["activations"] = heap * passes.most
    formulas["activations"] = f"{_line(step)}{gaps}"
    if cut:
        memory["gradients"] = step.trained / pieces
        formulas["gradients"] = f"as the weights that train{over}"
        if step.base:
            memory["gathered"] = 2.0 * step.weights * (1 + 1 / world)
            formulas["gathered"] = "all weights and gradients, sent and received: gloo gives them back after a pass"
        else:
            memory["gathered"] = 3.0 * step.block
            formulas["gathered"] = "the largest block whole, twice, and its gradient"
    else:
        formulas["activations"] = f"with the gradients, at the fullest moment: {_line(step)}{gaps}"
        if world > 1:
            memory["exchange"] = step.trained
            formulas["exchange"] = "DDP's copy of the gradients"
        if step.accumulate > 1:
            memory["sums"] = step.trained
            formulas["sums"] = "gradients of the micro-batches before"
    _add_update(found, step, world, cut)
    if step.base:
        memory["process"] = step.base
        formulas["process"] = "libraries and data, measured now"
    found.total = sum(memory.values())
    formulas["total"] = "their sum"


def _add_update(found: Plan, step: Step, world: int, cut: bool) -> None:
    """What Muon's step and a checkpoint take, where it is more than the passes before, which were given back."""
    memory, formulas = found.memory, found.formulas
    free = memory["activations"] + memory["gathered"] if cut and step.base else 0.0
    if numbers := sum(rows * columns * number for (rows, columns), number in step.matrices.items()):
        copies = MUON_COPIES / world + 2 * (world > 1)
        if (own := step.size * min(numbers, AT_ONCE * world) * copies) > free:
            memory["Muon"], free = own - free, max(own, free)
            formulas["Muon"] = f"{copies:g} copies of at most {short(AT_ONCE * world)} numbers of its matrices"
    if cut and step.base and step.weights + max(step.state, step.weights) > free:
        memory["checkpoint"] = step.weights + max(step.state, step.weights) - free
        formulas["checkpoint"] = "whole weights and states on the first process, beyond what the passes take"


def _heap(step: Step, given_back: bool) -> float:
    """Bytes of a process for each byte of its tensors that come and go; 1 on a GPU, whose allocator is PyTorch's."""
    if not step.base:
        return 1.0
    return GIVEN_BACK if given_back or step.checkpointing else HEAP


def _line(step: Step) -> str:
    one, two = (step.again, step.again_two) if step.checkpointing and step.again and step.again_two else (
        step.one, step.two,
    )  # fmt: skip
    each = (two.most - one.most) / step.rows
    return f"{step.rows} x {_bytes(each)} and {_bytes(max(0.0, one.most - each * step.rows))}"


def _largest(step: Step, total: float, free: float, one: Pass, two: Pass, heap: float) -> int:
    each = heap * (two.most - one.most) / step.rows
    return max(0, step.rows + math.floor((free - total) / each)) if each > 0 else step.rows


def _add_communication(found: Plan, step: Step, devices: Devices, cut: bool) -> None:
    world = devices.world
    if world == 1:
        found.formulas["communication"] = "one device"
        return
    part = (world - 1) / world
    muon = sum(rows * columns * number for (rows, columns), number in step.matrices.items()) * step.size
    if cut:
        each = 2 * step.weights + step.trained
        found.sent = part * (step.accumulate * each + 2 * muon)
        text = (
            f"{world - 1}/{world} of 2 x weights and gradients, {step.accumulate} time(s); and of 2 x Muon's matrices"
        )
    else:
        found.sent = part * (2 * step.trained + muon)
        text = f"{world - 1}/{world} of 2 x gradients, and of Muon's matrices"
    found.communication = found.sent / devices.link
    found.formulas["communication"] = f"{text}; at {_bytes(devices.link)}/s"


def _add_time(found: Plan, step: Step, devices: Devices, rates: Rates) -> None:
    passes = step.again if step.checkpointing and step.again else step.one
    found.flops = step.one.flops * step.accumulate * devices.world
    found.compute = step.accumulate * seconds(passes.operators, rates)
    products = 0.0
    for (rows, columns), number in step.matrices.items():
        small, large = sorted((rows, columns))
        # Newton-Schulz, five rounds: x xᵀ, its square, and their product with x.
        products += number * 5 * (2 * rates.product(2.0 * small * small * large) + rates.product(2.0 * small**3))
    moved = 3 * step.state + 4 * step.trained
    calls = TRAINER + PER_TENSOR * step.tensors + 5 * 4 * len(step.matrices)
    found.update = products / devices.world + moved / rates.bytes_per_second("") + calls * rates.overhead
    found.formulas["passes"] = "each operator: FLOPs / rate or bytes / rate of memory, and a call"
    found.formulas["update"] = "3 x state and 4 x gradients / rate of memory, Muon's products / devices, calls"


def seconds(operators: Iterable[tuple[str, float, int, int]], rates: Rates) -> float:
    """Of operators, one after the other."""
    whole = 0.0
    for name, flops, times, moved in operators:
        if flops:
            whole += max(times * rates.product(flops), moved / rates.bytes_per_second("")) + rates.overhead
        else:
            whole += max(moved / rates.bytes_per_second(name), rates.overhead)
    return whole


# --- what is printed --------------------------------------------------------------------------------------------------


def lines(found: Plan, step: Step, devices: Devices, strategy: str, precision: str) -> list[str]:
    """The plan, in entries as those of the opening block."""
    world = devices.world
    kept = f", {strategy}" if world > 1 else ""
    entries = [("devices", f"{devices}{kept}, {precision}, {_bytes(devices.memory)} each")]
    again = " with checkpointing" if step.checkpointing else ""
    entries.append(("memory", f"{_bytes(found.total)} a device, {step.rows} examples each{again}:"))
    entries += [(f"  {name}", f"{_bytes(value)} = {found.formulas[name]}") for name, value in found.memory.items()]
    if found.total_again is not None and not step.checkpointing:
        entries.append(("", f"{_bytes(found.total_again)} with --model.checkpointing true"))
    most = f"at most about {found.largest:,} examples a device"
    if found.largest_again is not None:
        most += f", {found.largest_again:,} with checkpointing"
    room = round((1 - ROOM) * 100)
    entries.append(("batch", f"{most} = (memory less {room} % - what does not grow) / bytes of an example"))
    if world > 1:
        entries.append(
            ("sent", f"{_bytes(found.sent)} a step and device, {_seconds(found.communication)} ="
             f" {found.formulas['communication']}")
        )  # fmt: skip
    entries.append(("work", f"{short_flops(found.flops)} in forward and backward pass of a step"))
    entries.append(("passes", f"{_seconds(found.compute)} a step = {found.formulas['passes']}"))
    entries.append(("update", f"{_seconds(found.update)} a step = {found.formulas['update']}"))
    beside = "the longer of passes and exchange, and the update" if world > 1 else "passes and update"
    entries.append(("step", f"{_seconds(found.seconds)} = {beside}"))
    if step.steps is not None:
        steps = max(1, step.steps // world) if step.epochs else step.steps
        entries.append(("time", f"about {duration(steps * found.seconds)}: {steps:,} steps, without validations"))
    if found.total > devices.memory:
        entries.append(("too much", _advice(found, step, strategy, world)))
    width = max(40, shutil.get_terminal_size().columns - 1)
    return [
        textwrap.fill(about, width, initial_indent=f"  {name:13} ", subsequent_indent=" " * 16)
        for name, about in entries
    ]


def _advice(found: Plan, step: Step, strategy: str, world: int) -> str:
    ways = []
    if step.rows > 1:
        ways.append("a smaller --data.batch_size with --trainer.accumulate_grad_batches")
    if found.total_again is not None and not step.checkpointing:
        ways.append("--model.checkpointing true")
    if world > 1 and strategy == "ddp":
        ways.append("--trainer.strategy fsdp2")
    return f"this does not fit the memory; try {', '.join(ways) or 'more or larger devices'}."


def _bytes(number: float) -> str:
    """947 MB, 31.2 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number / size < 999.5 else f"{number / size:.0f} {unit}"
    return f"{number:.0f} B"


def _seconds(number: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number * 1e6:.3g} µs"
