"""Devices that a training may be planned for: memory, rates, links; of GPUs by data sheet, of this machine measured."""

from __future__ import annotations

import bisect
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import UserError, nearest
from . import machine

REACHED = 0.7
"""Part of a data sheet's rate, of products and of memory, that large operators reach."""
LAUNCH = 5e-6
"""Seconds between two operators on a GPU, at least."""
NETWORK = 50e9
"""Bytes per second that a GPU sends to other machines, where --link does not say (400 Gbit/s)."""
ONE_MACHINE = 8
"""GPUs of a machine, at most, where `--devices` does not say."""


class Sheet(NamedTuple):
    """What a data sheet says of a GPU: its full name, bytes of memory, bytes per second of memory and of the link to
    the other GPUs of its machine, in one direction.
    """

    name: str
    memory: float
    bandwidth: float
    link: float


SHEETS = {
    "B200": Sheet("B200", 180e9, 8.0e12, 900e9),
    "H200": Sheet("H200", 141e9, 4.8e12, 450e9),
    "H100": Sheet("H100 80GB HBM3", 80e9, 3.35e12, 450e9),
    "H100-PCIe": Sheet("H100 PCIe", 80e9, 2.0e12, 64e9),
    "A100": Sheet("A100-SXM4-80GB", 80e9, 2.039e12, 300e9),
    "A100-40GB": Sheet("A100-SXM4-40GB", 40e9, 1.555e12, 300e9),
    "L40S": Sheet("L40S", 48e9, 0.864e12, 32e9),
    "L4": Sheet("L4", 24e9, 0.3e12, 32e9),
    "A10G": Sheet("A10G", 24e9, 0.6e12, 32e9),
    "RTX-5090": Sheet("RTX 5090", 32e9, 1.79e12, 64e9),
    "RTX-4090": Sheet("RTX 4090", 24e9, 1.008e12, 32e9),
    "RTX-3090": Sheet("RTX 3090", 24e9, 0.936e12, 32e9),
    "V100": Sheet("V100-SXM2-32GB", 32e9, 0.9e12, 150e9),
    "T4": Sheet("T4", 16e9, 0.32e12, 16e9),
}
"""Names for `--devices`. Rates of products are in `machine.PEAKS`."""


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    Args:
        products: (FLOPs of one product, seconds), with rising FLOPs; between them powers are assumed.
        kinds: bytes per second of operators that are no products, by a part of their names; "" for all others.
        overhead: seconds of every operator.
    """

    products: list[tuple[float, float]]
    kinds: dict[str, float]
    overhead: float

    def product(self, flops: float) -> float:
        """Seconds of one matrix product."""
        if len(self.products) == 1 or flops >= self.products[-1][0]:
            most, seconds = self.products[-1]
            return flops * seconds / most
        if flops <= self.products[0][0]:
            return self.products[0][1] * flops / self.products[0][0]
        right = bisect.bisect_right([size for size, _ in self.products], flops)
        (low, fast), (high, slow) = self.products[right - 1 : right + 1]
        part = math.log(flops / low) / math.log(high / low)
        return fast * (slow / fast) ** part

    def bytes_per_second(self, operator: str) -> float:
        """Of an operator that is no product, what it reads and what it writes together."""
        found = next((rate for part, rate in self.kinds.items() if part and part in operator), None)
        return self.kinds[""] if found is None else found


@dataclass(frozen=True)
class Devices:
    """Some equal devices.

    Args:
        name: "H100", or "cpu" for this machine.
        nodes, per_node: machines, and devices of each.
        memory: bytes that one may use.
        link: bytes per second that one sends, in one direction, to the slowest of the others.
        rates: by precision.
        precision: what `auto` trains in.
    """

    name: str
    nodes: int
    per_node: int
    memory: float
    link: float
    precision: str
    rates: Callable[[str], Rates] = field(compare=False)

    @property
    def world(self) -> int:
        """All devices."""
        return self.nodes * self.per_node

    def __str__(self) -> str:
        machines = f"{self.nodes} machines with " if self.nodes > 1 else ""
        return f"{machines}{self.per_node} x {self.name}"


def parse(text: str, link: float | None = None) -> Devices:
    """The devices that `8xH100`, `4x8xH100` (machines, devices of each), `H100`, `2xcpu` or `cpu` mean.

    Args:
        link: gigabytes per second that a device sends, in the place of the data sheet's.

    Raises:
        UserError: no such devices.
    """
    names = {name.lower(): name for name in SHEETS} | {"cpu": "cpu"}
    match = re.fullmatch(r"(?:(\d{1,6})x)?(?:(\d{1,6})x)?([A-Za-z][\w-]*)", text.strip())
    if match is None or match[3].lower() not in names:
        word = match[3] if match else text
        raise UserError(
            f"--devices is {text}, but must be a number and a device such as 8xH100, or 4x8xH100 for four machines;"
            f" known are cpu (this machine) and {', '.join(SHEETS)}{nearest(word, [*SHEETS, 'cpu'])}."
        )
    name, first, second = names[match[3].lower()], match[1], match[2]
    nodes, each = (int(first), int(second)) if second else (1, int(first or 1))
    if nodes < 1 or each < 1:
        raise UserError(f"--devices is {text}, but must be at least one device.")
    if name == "cpu":
        if nodes > 1:
            raise UserError(f"--devices is {text}, but cpu is this machine only; give a number of processes, as 2xcpu.")
        return _this_machine(each, link)
    if second is None and each > ONE_MACHINE:
        if each % ONE_MACHINE:
            raise UserError(
                f"--devices is {text}, more than the {ONE_MACHINE} of one machine; say how many machines have how many,"
                f" for example 2x{each // 2}x{name}."
            )
        nodes, each = each // ONE_MACHINE, ONE_MACHINE
    sheet = SHEETS[name]
    sends = NETWORK if nodes > 1 else sheet.link
    half = machine.peak_flops(sheet.name, "bf16-mixed")
    return Devices(
        name, nodes, each, sheet.memory, sends if link is None else link * 1e9, "bf16-mixed" if half else "32-true",
        lambda precision: _by_sheet(sheet, precision),
    )  # fmt: skip


def _by_sheet(sheet: Sheet, precision: str) -> Rates:
    peak = machine.peak_flops(sheet.name, precision)
    if peak is None:
        raise UserError(
            f"--trainer.precision is {precision}, for which no rate of {sheet.name} is known here; take bf16-mixed or"
            " 32-true."
        )
    return Rates([(1e12, 1e12 / (REACHED * peak))], {"": REACHED * sheet.bandwidth}, LAUNCH)


# --- this machine -----------------------------------------------------------------------------------------------------

SIZES = (16, 32, 64, 128, 256, 512)
"""Of square products that are timed."""
CLOCK: Callable[[], float] = time.perf_counter
CALLS = 32
NUMBERS = 2**19
"""Of tensors on which other operators are timed: as large as what a small model keeps."""


def _this_machine(processes: int, link: float | None) -> Devices:
    from .probe import free_memory

    free = free_memory(torch.device("cpu"))
    if free is None:
        raise UserError("--devices is cpu, but this system does not say how much memory is free; name a GPU.")
    # Processes of one machine exchange through its memory.
    sends = 2e9 if link is None else link * 1e9
    return Devices("cpu", 1, processes, free * 1e9 / processes, sends, "32-true", lambda precision: measured(precision))


def measured(precision: str) -> Rates:
    """Rates of this machine with the threads of this process; takes about a second."""
    dtype = {"64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0])
    dtype = dtype or torch.float32
    products = []
    for size in SIZES:
        left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        products.append((2.0 * size**3, seconds_of(lambda left=left, right=right: left @ right)))
    wide = dtype if precision.endswith("true") else torch.float32
    x, columns = torch.randn(NUMBERS, dtype=wide), 64
    rows, gain = x.view(-1, columns), torch.ones(columns, dtype=wide)
    y, mean, rstd = torch.native_layer_norm(rows, [columns], gain, gain, 1e-5)
    back: Callable[[], object] = lambda: torch.ops.aten.native_layer_norm_backward(  # noqa: E731
        y, rows, [columns], mean, rstd, gain, gain, [True, True, True]
    )
    kinds: dict[str, tuple[Callable[[], object], int]] = {
        "gelu_backward": (lambda: torch.ops.aten.gelu_backward(x, x), 3),
        "gelu": (lambda: F.gelu(x), 2),
        "native_layer_norm_backward": (back, 3),
        "layer_norm": (lambda: F.layer_norm(rows, [columns], gain, gain), 2),
        "_softmax_backward": (lambda: torch.ops.aten._softmax_backward_data(y, rows, -1, wide), 3),
        "_softmax": (lambda: rows.softmax(-1), 2),
        "log_softmax": (lambda: rows.log_softmax(-1), 2),
        "sigmoid": (lambda: x.sigmoid(), 2),
        "sum": (lambda: rows.sum(0), 1),
        "": (lambda: x * 1.5, 2),
    }
    size = x.element_size()
    rates = {name: times * NUMBERS * size / seconds_of(call) for name, (call, times) in kinds.items()}
    return Rates(products, rates, seconds_of(_calls) / (3 * CALLS))


def _calls() -> None:
    """Three times `CALLS` operators on next to nothing, in a forward and a backward pass."""
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(CALLS):
        y = y * x
    y.backward()


def seconds_of(call: Callable[[], Tensor | object], least: float = 0.02) -> float:
    """Seconds of a call: the fastest of several rounds."""
    call()
    number, spent = 1, 0.0
    while True:
        begin = CLOCK()
        for _ in range(number):
            call()
        spent = CLOCK() - begin
        if spent > least / 4:
            break
        number *= 4
    best = spent / number
    for _ in range(3):
        begin = CLOCK()
        for _ in range(number):
            call()
        best = min(best, (CLOCK() - begin) / number)
    return best
