"""Positions against the formulas of their papers, written out in plain Python."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.positions import (
    LearnedPositions,
    Rotary,
    SinusoidalPositions,
    rotary_frequencies,
    rotate,
    sinusoidal_table,
)
from triune.core.rotary import RotaryConfig
from triune.core.transformer import Transformer

F64 = torch.float64


def turned(x: Tensor, config: RotaryConfig, positions: Tensor) -> Tensor:
    return rotate(x, Rotary(config, x.shape[-1])(positions, x.dtype), config.interleaved)


def test_sinusoidal_equals_the_formula() -> None:
    dim = 10
    table = sinusoidal_table(torch.arange(50), dim)
    for p in (0, 1, 7, 49):
        for i in range(dim // 2):
            angle = p / 10_000 ** (2 * i / dim)
            assert abs(table[p, 2 * i].item() - math.sin(angle)) < 1e-5
            assert abs(table[p, 2 * i + 1].item() - math.cos(angle)) < 1e-5
    assert torch.equal(SinusoidalPositions(dim)(torch.tensor([[3, 4]]))[0], table[3:5])


def test_learned_table_reports_a_longer_input() -> None:
    table = LearnedPositions(5, 8)
    assert torch.equal(table(torch.arange(5)), table.weight)
    with pytest.raises(UserError, match="has 6 tokens, but the learned position table has context = 5 rows"):
        table(torch.arange(6))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_multiplication_by_a_unit_complex_number(interleaved: bool) -> None:
    torch.manual_seed(0)
    x, dim = torch.randn(1, 1, 5, 8, dtype=F64), 8
    out = turned(x, RotaryConfig(interleaved=interleaved), torch.tensor([0, 1, 2, 30, 777]))
    for t, p in enumerate((0, 1, 2, 30, 777)):
        for i in range(dim // 2):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2)
            z = complex(x[0, 0, t, a], x[0, 0, t, b]) * cmath.exp(1j * p / 10_000 ** (2 * i / dim))
            assert abs(out[0, 0, t, a].item() - z.real) < 1e-12
            assert abs(out[0, 0, t, b].item() - z.imag) < 1e-12


SHIFTED = [
    RotaryConfig(),
    RotaryConfig(interleaved=True),
    RotaryConfig(fraction=0.5),
    RotaryConfig(scaling="linear", factor=3.0),
    RotaryConfig(scaling="ntk", factor=3.0),
    RotaryConfig(scaling="llama3", factor=8.0, original_context=64),
    RotaryConfig(scaling="yarn", factor=8.0, original_context=64),
    RotaryConfig(scaling="dynamic", factor=8.0, original_context=64),
    RotaryConfig(scaling="longrope", factor=8.0, original_context=64, short_factors=[1.5] * 8, long_factors=[3.0] * 8),
]


@pytest.mark.parametrize("config", SHIFTED, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-10)])
def test_scores_depend_on_the_distance_only(config: RotaryConfig, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 9, 16, dtype=dtype) / 4, torch.randn(1, 2, 9, 16, dtype=dtype)
    positions = torch.tensor([0, 1, 2, 3, 5, 8, 13, 21, 34])

    def scores(shift: int) -> Tensor:
        return turned(q, config, positions + shift) @ turned(k, config, positions + shift).mT

    assert (scores(0) - q @ k.mT).abs().max() > 0.1
    for shift in (1, 17, 64):
        assert (scores(shift) - scores(0)).abs().max() < tolerance


def test_partial_rotation_leaves_the_rest_untouched() -> None:
    x = torch.randn(2, 3, 4, 16, dtype=F64)
    out = turned(x, RotaryConfig(fraction=0.25), torch.arange(4))
    assert torch.equal(out[..., 4:], x[..., 4:])
    assert torch.equal(out[..., :4], turned(x[..., :4], RotaryConfig(), torch.arange(4)))
    assert not torch.equal(out[..., :4], x[..., :4])


@pytest.mark.parametrize("interleaved", [False, True])
def test_two_axes_rotate_rows_and_columns_apart(interleaved: bool) -> None:
    torch.manual_seed(0)
    x, config = torch.randn(1, 2, 4, 16, dtype=F64), RotaryConfig(axes=2, base=100.0, interleaved=interleaved)

    def pairs(x: Tensor) -> Tensor:
        """`[..., 16]` -> `[..., 8 pairs]`, complex."""
        a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        return torch.complex(a, b)

    grid = torch.tensor([[0, 0], [3, 0], [0, 5], [3, 5]])
    start, end = pairs(x), pairs(turned(x, config, grid))
    torch.testing.assert_close(end[:, :, 0], start[:, :, 0], atol=0, rtol=0)  # the origin, such as a class token
    torch.testing.assert_close(end[:, :, 1, 4:], start[:, :, 1, 4:], atol=0, rtol=0)  # a row does not turn columns
    torch.testing.assert_close(end[:, :, 2, :4], start[:, :, 2, :4], atol=0, rtol=0)
    # Each axis is the one-dimensional rotation of a head half as wide.
    rate = torch.tensor([100.0 ** -(i / 4) for i in range(4)], dtype=F64)
    torch.testing.assert_close(end[:, :, 3, :4], start[:, :, 3, :4] * torch.exp(3j * rate), atol=1e-12, rtol=0)
    torch.testing.assert_close(end[:, :, 3, 4:], start[:, :, 3, 4:] * torch.exp(5j * rate), atol=1e-12, rtol=0)


def test_two_axes_ask_for_coordinates() -> None:
    model = Transformer(TransformerConfig(dim=8, depth=1, heads=2, rotary=RotaryConfig(axes=2)))
    with pytest.raises(UserError, match=r"two axes need positions=\[tokens, 2\]"):
        model(torch.randn(1, 3, 8))
    assert model(torch.randn(1, 3, 8), positions=torch.zeros(3, 2)).isfinite().all()


# --- scalings, written from the papers --------------------------------------------------------------------------------


def plain(base: float, dim: int) -> list[float]:
    return [base ** (-2 * i / dim) for i in range(dim // 2)]


def llama3(base: float, dim: int, factor: float, low: float, high: float, context: int) -> list[float]:
    """Llama 3.1: by wavelength keep, stretch, or blend in between."""
    rates = []
    for rate in plain(base, dim):
        wavelength = 2 * math.pi / rate
        if wavelength < context / high:
            rates.append(rate)
        elif wavelength > context / low:
            rates.append(rate / factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            rates.append((1 - smooth) * rate / factor + smooth * rate)
    return rates


def yarn(base: float, dim: int, factor: float, fast: float, slow: float, context: int) -> list[float]:
    """Peng et al. 2023: a linear ramp between the pairs that turn `fast` and `slow` times over the context.

    As released, the ends of the ramp are rounded outwards to whole pairs.
    """

    def pair(turns: float) -> float:
        # base^(-2i/dim) · context = 2π · turns, solved for i
        return dim / 2 * math.log(context / (2 * math.pi * turns), base)

    low, high = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), dim - 1)
    rates = []
    for i, rate in enumerate(plain(base, dim)):
        stretched = min(max((i - low) / (high - low), 0.0), 1.0)
        rates.append((1 - stretched) * rate + stretched * rate / factor)
    return rates


LLAMA3 = {"base": 500_000.0, "factor": 8.0, "original_context": 8192}
YARN = {"base": 10_000.0, "factor": 16.0, "original_context": 4096}
SCALED = [
    (RotaryConfig(), plain(10_000.0, 64)),
    (RotaryConfig(fraction=0.5), plain(10_000.0, 32)),
    (RotaryConfig(scaling="linear", factor=4.0), [rate / 4 for rate in plain(10_000.0, 64)]),
    (RotaryConfig(scaling="ntk", factor=4.0), plain(10_000.0 * 4 ** (64 / 62), 64)),
    (RotaryConfig(scaling="llama3", **LLAMA3), llama3(500_000.0, 64, 8.0, 1.0, 4.0, 8192)),
    (
        RotaryConfig(scaling="llama3", low_frequency_factor=2.0, high_frequency_factor=9.0, **LLAMA3),
        llama3(500_000.0, 64, 8.0, 2.0, 9.0, 8192),
    ),
    (RotaryConfig(scaling="yarn", **YARN), yarn(10_000.0, 64, 16.0, 32.0, 1.0, 4096)),
    (RotaryConfig(scaling="yarn", beta_fast=20.0, beta_slow=2.0, **YARN), yarn(10_000.0, 64, 16.0, 20.0, 2.0, 4096)),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), SCALED, ids=lambda value: str(value)[:90])
def test_frequencies_follow_the_papers(config: RotaryConfig, expected: list[float]) -> None:
    rates, _ = rotary_frequencies(config, 64)
    assert rates.dtype == F64
    torch.testing.assert_close(rates, torch.tensor(expected, dtype=F64), atol=0, rtol=1e-12)


def test_longrope_divides_each_frequency_by_its_own_factor() -> None:
    short, long = [1.0 + i / 8 for i in range(32)], [2.0 + i for i in range(32)]
    config = RotaryConfig(
        scaling="longrope", factor=4.0, original_context=64, short_factors=short, long_factors=long
    )  # fmt: skip
    rotary, positions, base = Rotary(config, 64), torch.arange(5), plain(10_000.0, 64)
    factor = math.sqrt(1 + math.log(4) / math.log(64))  # Ding et al. 2024, section 3.2
    for length, divisors in ((64, short), (65, long)):
        rates = torch.tensor([rate / divisor for rate, divisor in zip(base, divisors)], dtype=F64)
        cos, _ = rotary(positions, F64, length)
        torch.testing.assert_close(cos[0, 0], factor * (positions[:, None] * rates).cos())
    both = rotary(torch.arange(2), F64, torch.tensor([[64, 65]]))[0]
    one, two = (rotary(torch.arange(2), F64, length)[0] for length in (64, 65))
    assert torch.equal(both[0, 0, 0], one[0, 0, 0]) and torch.equal(both[0, 0, 1], two[0, 0, 1])


def test_dynamic_scaling_grows_with_the_text() -> None:
    config = RotaryConfig(scaling="dynamic", factor=4.0, original_context=64)
    rotary, positions = Rotary(config, 64), torch.arange(5)
    for length in (10, 64, 65, 200):
        stretch = max(1.0, 4 * length / 64 - 3)
        rates = torch.tensor(plain(10_000.0 * stretch ** (64 / 62), 64), dtype=F64)
        for given in (length, torch.full((1, 5), length)):
            cos, _ = rotary(positions, F64, given)
            torch.testing.assert_close(cos[0, 0], (positions[:, None] * rates).cos(), atol=1e-12, rtol=0)


def test_ntk_stretches_the_slowest_pair_by_exactly_the_factor() -> None:
    slow, fast = (rotary_frequencies(RotaryConfig(scaling=s, factor=4.0), 64)[0] for s in ("ntk", "none"))
    assert slow[0] == fast[0] == 1
    assert abs(fast[-1] / slow[-1] - 4) < 1e-12


def test_yarn_scales_cosine_and_sine() -> None:
    assert abs(rotary_frequencies(RotaryConfig(scaling="yarn", **YARN), 64)[1] - (0.1 * math.log(16) + 1)) < 1e-12
    given = RotaryConfig(scaling="yarn", attention_factor=0.5, **YARN)
    cos, sin = Rotary(given, 64)(torch.arange(3), torch.float32)
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, 0.25))


SHORT = [1.0 + i / 8 for i in range(32)]


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (
            RotaryConfig(scaling="llama3", **LLAMA3),
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192},
        ),
        (
            RotaryConfig(scaling="yarn", **YARN),
            {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
        ),
        (RotaryConfig(scaling="linear", factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            RotaryConfig(scaling="longrope", factor=4, original_context=4096, short_factors=SHORT, long_factors=SHORT),
            {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 4096, "short_factor": SHORT,
             "long_factor": SHORT},
        ),
    ],
    ids=["llama3", "yarn", "linear", "longrope"],
)  # fmt: skip
def test_frequencies_equal_transformers(config: RotaryConfig, values: dict) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not a dependency of the tests")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, rope_parameters=values | {"rope_theta": config.base}
    )
    rates, factor = ROPE_INIT_FUNCTIONS[config.scaling](theirs, torch.device("cpu"))
    mine, mine_factor = rotary_frequencies(config, 64)
    torch.testing.assert_close(mine.float(), rates, atol=0, rtol=1e-6)
    assert abs(mine_factor - factor) < 1e-6


def test_half_precision_rounds_the_frequencies() -> None:
    exact, _ = rotary_frequencies(RotaryConfig(), 64)
    rounded, _ = rotary_frequencies(RotaryConfig(half_precision=True), 64)
    assert torch.equal(rounded, exact.half().double())
    assert not torch.equal(rounded, exact)


def test_casting_the_model_does_not_round_the_frequencies() -> None:
    model = Transformer(TransformerConfig(dim=32, depth=1, heads=2))
    assert not [name for name in model.state_dict() if "rotary" in name]
    rotary = model.blocks[0].attn.rotary
    before = rotary(torch.arange(1000), torch.bfloat16)
    model.to(torch.bfloat16)
    after = rotary(torch.arange(1000), torch.bfloat16)
    assert before[0].dtype == torch.float32
    assert torch.equal(before[0], after[0])
    assert abs(after[0][0, 0, 999, 1].item() - math.cos(999 / 10_000 ** (1 / 8))) < 1e-3
    out = model(torch.randn(1, 5, 32, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
