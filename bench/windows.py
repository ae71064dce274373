"""Time of a training step's attention: full causal, a window as a dense mask, a window as a band.

python bench/windows.py [--tokens 2048] [--window 128]
"""

from __future__ import annotations

import argparse

import torch
from common import interleaved, record, spread, table

from triune.core import AttentionMask, force_kernel
from triune.core.mixers.kernels import attend, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    q, k, v = (torch.randn(1, options.heads, options.tokens, 64, device=device, requires_grad=True) for _ in range(3))

    def action(kernel: str, window: int | None):
        with force_kernel(kernel):
            chosen = plan(AttentionMask(causal=True, window=window), options.tokens, options.tokens, device)
        return lambda: attend(q, k, v, chosen, 0.125).sum().backward()

    actions = {
        "full causal": action("sdpa", None),
        "window, dense mask": action("masked", options.window),
        "window, band": action("banded", options.window),
    }
    seconds = interleaved(actions, options.rounds, 5, sync=device.type == "cuda")
    rows = [
        {"attention": name, **{k: s * 1e3 for k, s in spread(values).items()}, "unit": "ms"}
        for name, values in seconds.items()
    ]
    print(table(rows))
    record("windows", rows)


if __name__ == "__main__":
    main()
