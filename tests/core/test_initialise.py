"""Every parameter starts as the table in `core/initialise.py` says."""

from __future__ import annotations

import math

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.core.transformer import Transformer

DEPTH = 3


def start(**changes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    values = {
        "dim": 128, "depth": DEPTH, "heads": 4, "ffn": "swiglu", "ffn_dim": 256, "qk_norm": "head", "layer_scale": 0.3,
        "cross_attention": True, "position": "learned", "context": 64,
    }  # fmt: skip
    return dict(Transformer(TransformerConfig(**values | changes)).named_parameters())


@pytest.mark.parametrize("init_std", [0.02, 0.05, None])
def test_linear_weights(init_std: float | None) -> None:
    seen = set()
    for name, value in start(init_std=init_std).items():
        kind = name.split(".")[-2]
        if kind not in ("q", "k", "v", "out", "gate", "up", "down") or not name.endswith("weight"):
            continue
        seen.add(kind)
        std = init_std or 1 / math.sqrt(value.shape[1])
        if kind in ("out", "down"):
            std /= math.sqrt(2 * DEPTH)
        assert abs(value.std() / std - 1) < 0.03, name
        assert abs(value.mean()) < 0.05 * std, name
    assert seen == {"q", "k", "v", "out", "gate", "up", "down"}


def test_residual_outputs_may_start_at_zero() -> None:
    for name, value in start(init_residual="zero").items():
        if name.endswith(("out.weight", "down.weight")):
            assert value.abs().max() == 0, name
        elif name.endswith(("q.weight", "up.weight")):
            assert value.std() > 0.01, name


def test_biases_norms_gains_and_positions() -> None:
    for name, value in start().items():
        if name.endswith("bias"):
            assert value.abs().max() == 0, name
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith("scale"):
            assert torch.equal(value, torch.full_like(value, 0.3)), name
        elif name == "positions.weight":
            assert abs(value.std() / 0.02 - 1) < 0.03


def test_offset_norms_start_at_zero() -> None:
    for name, value in start(norm_weight="offset", norm="rmsnorm").items():
        if "norm" in name:
            assert value.abs().max() == 0, name


def test_a_block_with_zero_residual_outputs_is_the_identity() -> None:
    config = TransformerConfig(dim=16, depth=2, heads=2, init_residual="zero", final_norm=False)
    x = torch.randn(2, 5, 16)
    assert torch.equal(Transformer(config)(x), x)
