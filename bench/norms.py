"""Forward and backward of RMSNorm on a CPU: PyTorch's composition, ours, and the fused LayerNorm as a yardstick.

python bench/norms.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import interleaved, record, spread, table

from triune.core.layers import rms_norm


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for shape in ((12, 64, 128), (12, 4, 64, 32), (8, 256, 768)):
        x, grad, dim = torch.randn(shape, requires_grad=True), torch.randn(shape), shape[-1:]
        actions = {
            "F.rms_norm": lambda x=x, g=grad, d=dim: F.rms_norm(x, d, None, 1e-5).backward(g),
            "triune": lambda x=x, g=grad: rms_norm(x, None, 1e-5).backward(g),
            "F.layer_norm": lambda x=x, g=grad, d=dim: F.layer_norm(x, d).backward(g),
        }
        seconds = interleaved(actions, 7, 50)
        rows += [
            {"shape": str(shape), "norm": n, **{k: s * 1e6 for k, s in spread(v).items()}, "unit": "µs"}
            for n, v in seconds.items()
        ]
    print(table(rows))
    record("norms", rows)


if __name__ == "__main__":
    main()
