"""The lens: what it costs, and the birth of induction heads in a model of two layers.

python bench/lens.py cost                     recording and head scores beside the plain forward pass
python bench/lens.py induction [--seeds 2]    about half a minute a seed on two cores, with its control
"""

from __future__ import annotations

import argparse
import time
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
    """Seconds of a forward pass, with recording of the residual stream, and with head scores; B2 H12 T1024.

    The median of nine rounds, and of the ratios within a round.
    """
    from triune.core.config import TransformerConfig
    from triune.core.lens.edit import lens
    from triune.core.lens.record import record_attention
    from triune.core.lens.scores import first, head_scores, previous
    from triune.core.transformer import Transformer

    model = Transformer(TransformerConfig(dim=768, depth=2, heads=12, causal=True)).eval()
    x = torch.randn(2, 1024, 768)

    def plain() -> None:
        model(x)

    def kept() -> None:
        with lens(model, keep=["*.resid_post"]):
            model(x)

    def scores() -> None:
        head_scores(model, plain, {"previous": previous, "first": first})

    def weights() -> None:
        with record_attention(model, lambda _, w: w.diagonal(-1, 2, 3).mean((0, 2))):
            model(x)

    ways = {"plain": plain, "residual kept": kept, "two head scores": scores, "whole weights": weights}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(9):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    ratios = {name: sorted(t / p for t, p in zip(own, times["plain"]))[4] for name, own in times.items()}
    rows: list[dict[str, Any]] = [
        {"way": name, "seconds": sorted(own)[4], "times plain": ratios[name]} for name, own in times.items()
    ]
    print(table(rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "induction"))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    record(f"lens_{options.what}", cost() if options.what == "cost" else induction(options.seeds))


if __name__ == "__main__":
    main()
