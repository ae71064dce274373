"""The lens: what it costs, and the birth of induction heads in a model of two layers.

python bench/lens.py cost                     recording and head scores beside the plain forward pass
python bench/lens.py induction [--seeds 2]    about half a minute a seed on two cores, with its control
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import record, table


def induction(seeds: int) -> list[dict[str, Any]]:
    """What `triune lens birth` finds for each seed."""
    from triune.lens.birth import birth
    from triune.lens.report import plain, show

    report, rows = birth(seeds)
    show(report)
    return plain(rows)


def cost() -> list[dict[str, Any]]:
    """CPU seconds of one thread and peak memory, B2 H12 T1024, two layers: a forward pass, one of a model looked
    at before, one with recording of the residual stream, one with head scores, one with whole weights.

    The least of seven rounds, in which the ways take turns. Processor time, because other programs on the machine
    change it less than that of the clock.
    """
    from triune.core.config import TransformerConfig
    from triune.core.lens.edit import lens
    from triune.core.lens.record import record_attention
    from triune.core.lens.scores import first, head_scores, previous
    from triune.core.transformer import Transformer

    torch.set_num_threads(1)
    model = Transformer(TransformerConfig(dim=768, depth=2, heads=12, causal=True)).eval()
    looked, x = deepcopy(model), torch.randn(2, 1024, 768)

    def plain() -> None:
        model(x)

    def off() -> None:
        looked(x)

    def kept() -> None:
        with lens(model, keep=["*.resid_post"]):
            model(x)

    def scores() -> None:
        head_scores(model, plain, {"previous": previous, "first": first})

    def weights() -> None:
        with record_attention(model, lambda _, w: w.diagonal(-1, 2, 3).mean((0, 2))):
            model(x)

    ways = {
        "plain": plain, "looked at before": off, "residual kept": kept, "two head scores": scores,
        "whole weights": weights,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        with lens(looked, edit={"*.z": torch.zeros_like}, cut={0: lambda query, key: query > key}):
            looked(x[:, :8])  # also loads what PyTorch needs to run uncompiled, which is no memory of a pass
        memory = {name: peak(run) for name, run in ways.items()}
        for _ in range(7):
            for name, run in ways.items():
                started = time.process_time()
                run()
                times[name].append(time.process_time() - started)
    best = {name: min(own) for name, own in times.items()}
    rows: list[dict[str, Any]] = [
        {
            "way": name, "CPU seconds": best[name], "times plain": best[name] / best["plain"],
            "highest of a round": max(t / p for t, p in zip(own, times["plain"])), "peak MiB": memory[name],
            "peak times plain": memory[name] / memory["plain"],
        }
        for name, own in times.items()
    ]  # fmt: skip
    print(table(rows))
    return rows


def peak(run: Callable[[], None]) -> float:
    """MiB by which the memory of this process grows at most while `run` runs for the first time, in a copy of it."""
    read, write = os.pipe()
    if not (child := os.fork()):
        status = lambda key: int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])  # noqa: E731
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        run()
        os.write(write, str((status("VmHWM") - before) / 1024).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = float(pipe.read())
    os.waitpid(child, 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "induction"))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    record(f"lens_{options.what}", cost() if options.what == "cost" else induction(options.seeds))


if __name__ == "__main__":
    main()
