"""Time and error of the scans of the recurrent mixers beside their token loops and PyTorch's attention.

python bench/mixers.py [--tokens 1024] [--threads 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import interleaved, record, spread, table
from torch import Tensor

from triune.core.mixers.decayed_scan import decayed_scan, reference_decayed_scan
from triune.core.mixers.delta_scan import delta_scan, reference_delta_scan


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return (F.scaled_dot_product_attention(q, k, v, is_causal=True),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = (2, options.tokens, 8)
    q, k, v = (torch.randn(*shape, 64, requires_grad=True) for _ in range(3))
    unit = F.normalize(k.detach(), dim=-1).requires_grad_()
    decay = (-0.1 * torch.rand(shape)).requires_grad_()
    beta = torch.rand(shape).requires_grad_()
    scans: dict[str, tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
        "attention (SDPA)": (attention, (q, k, v)),
        "SSD, chunks": (decayed_scan, (q, k, v, decay)),
        "SSD, token loop": (reference_decayed_scan, (q, k, v, decay)),
        "gated delta rule, chunks": (delta_scan, (q * 0.125, unit, v, beta, decay)),
        "gated delta rule, token loop": (reference_delta_scan, (q * 0.125, unit, v, beta, decay)),
    }

    def forward(name: str) -> Callable[[], object]:
        scan, inputs = scans[name]
        detached = [x.detach() for x in inputs]
        return lambda: scan(*detached)

    def both(name: str) -> Callable[[], object]:
        scan, inputs = scans[name]
        leaves = [x.detach().requires_grad_() for x in inputs]
        return lambda: torch.autograd.grad(scan(*leaves)[0].sum(), leaves)

    def error(name: str) -> float:
        """Largest difference from the token loop in float64, relative to the largest output."""
        scan, inputs = scans[name]
        reference = scans[name.replace("chunks", "token loop")][0]
        exact = reference(*(x.detach().double() for x in inputs))[0]
        return float((scan(*(x.detach() for x in inputs))[0] - exact).abs().max() / exact.abs().max())

    rows = []
    for passes, action in (("forward", forward), ("forward and backward", both)):
        for name, seconds in interleaved({name: action(name) for name in scans}, options.rounds, 1).items():
            figures = {key: s * 1e3 for key, s in spread(seconds).items()}
            rows.append({"scan": name, "passes": passes, **figures, "unit": "ms"})
    print(table(rows))
    errors = {name: error(name) for name in scans if "chunks" in name}
    print(errors)
    record("mixers", rows, relative_error_in_float32=errors, shape="B2 H8 P64 N64", threads=options.threads)


if __name__ == "__main__":
    main()
