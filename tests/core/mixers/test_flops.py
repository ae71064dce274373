"""The floating point operations of a training step of each mixer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from triune.core.config import TransformerConfig
from triune.core.mixers.options import KINDS
from triune.core.training.run.flops import count_step
from triune.core.transformer import Transformer

CONFIG = TransformerConfig(dim=64, depth=1, heads=4, causal=True, ffn_dim=64)
TOKENS = 2 * 128


class Step(nn.Module):
    """What `count_step` asks for: a loss of a batch."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.transformer = Transformer(replace(CONFIG, mixer=name))

    def loss(self, x: Tensor) -> Tensor:
        return self.transformer(x).square().sum()


def counted(name: str) -> tuple[int, int]:
    """The count, and that of the products with the matrices alone: 2 forward, 4 backward, a weight and token. The
    input needs no gradient, so that the layers that read it first have one product less.
    """
    step = Step(name)
    weights = sum(p.numel() for p in step.transformer.parameters() if p.ndim == 2 and p.numel() > 1024)
    return count_step(step, torch.randn(2, TOKENS // 2, 64)), 6 * weights * TOKENS


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrent_network_is_its_matrices(name: str) -> None:
    count, matrices = counted(name)
    assert count == pytest.approx(matrices, rel=0.01)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("lstm", "gru")])
def test_the_recurrence_comes_on_top(name: str) -> None:
    count, matrices = counted(name)
    assert 0.95 * matrices < count < 6 * matrices


def test_a_triangular_system_is_half_a_product() -> None:
    class Solve(nn.Module):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return torch.linalg.solve_triangular(*batch, upper=False).sum() + 0 * self.weight.sum()

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    assert count_step(Solve(), (torch.eye(8).expand(3, 8, 8), torch.ones(3, 8, 5))) == 3 * 8 * 8 * 5
