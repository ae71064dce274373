"""Each scan in chunks against its recurrence: value and gradient, whatever the chunk, with documents and a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from triune.core.mixers.channel_scan import channel_scan, reference_channel_scan
from triune.core.mixers.decayed_scan import decayed_scan, reference_decayed_scan
from triune.core.mixers.delta_scan import delta_scan, reference_delta_scan, unit_lower_inverse

BATCH, TOKENS, HEADS, STATE, WIDTH = 2, 37, 4, 3, 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def decayed(groups: int = 2) -> tuple[list[Tensor], Tensor]:
    q, k, v = (
        random(BATCH, TOKENS, groups, STATE),
        random(BATCH, TOKENS, groups, STATE),
        random(2, TOKENS, HEADS, WIDTH),
    )
    return [q, k, v, -random(BATCH, TOKENS, HEADS).abs()], random(BATCH, HEADS, STATE, WIDTH)


def delta() -> tuple[list[Tensor], Tensor]:
    q, k, v = (random(BATCH, TOKENS, HEADS, size) for size in (STATE, STATE, WIDTH))
    beta, log_decay = random(BATCH, TOKENS, HEADS).sigmoid(), -random(BATCH, TOKENS, HEADS).abs()
    return [q, torch.nn.functional.normalize(k, dim=-1), v, beta, log_decay], random(BATCH, HEADS, STATE, WIDTH)


def channels() -> tuple[list[Tensor], Tensor]:
    return [random(BATCH, TOKENS, 3, 2).sigmoid(), random(BATCH, TOKENS, 3, 2)], random(BATCH, 3, 2)


SCANS = {
    "decayed": (decayed_scan, reference_decayed_scan, decayed),
    "delta": (delta_scan, reference_delta_scan, delta),
    "channel": (channel_scan, reference_channel_scan, channels),
}
Scan = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(params=SCANS)
def scan(request: pytest.FixtureRequest) -> tuple[Scan, Scan, list[Tensor], Tensor]:
    torch.manual_seed(0)
    chunked, reference, make = SCANS[request.param]
    inputs, state = make()
    return chunked, reference, [x.requires_grad_() for x in inputs], state.requires_grad_()


def begins(*places: tuple[int, int]) -> Tensor:
    marks = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    for row, token in places:
        marks[row, token] = True
    return marks


DOCUMENTS = begins((0, 0), (0, 5), (0, 6), (0, 16), (1, 8), (1, 36))


def run(scan: Scan, inputs: list[Tensor], state: Tensor | None, **options: Any) -> list[Tensor]:
    """Output, last state and all gradients of a random sum of both."""
    y, last = scan(*inputs, state=state, **options)
    wanted = inputs if state is None else [*inputs, state]
    torch.manual_seed(1)
    loss = (y * torch.randn(y.shape)).sum() + (last * torch.randn(last.shape)).sum()
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [y, last, *gradients]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("marks", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("chunk", [1, 2, 8, 16, 36, 37, 64, 1000])
def test_chunks_equal_the_recurrence(scan: Any, chunk: int, marks: Tensor | None, with_state: bool) -> None:
    chunked, reference, inputs, state = scan
    state = state if with_state else None
    expected = run(reference, inputs, state, begins=marks)
    for ours, theirs in zip(run(chunked, inputs, state, begins=marks, chunk=chunk), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_document_is_as_alone(scan: Any) -> None:
    chunked, _, inputs, state = scan
    packed, _ = chunked(*inputs, begins=begins((0, 11), (1, 11)), state=state, chunk=8)
    alone, _ = chunked(*(x[:, 11:] for x in inputs), chunk=8)
    assert_close(packed[:, 11:], alone)


@pytest.mark.parametrize("parts", [[1] * TOKENS, [10, 27], [36, 1], [5, 1, 1, 30]], ids=str)
def test_the_state_carries_on_from_call_to_call(scan: Any, parts: list[int]) -> None:
    chunked, _, inputs, state = scan
    whole, last = chunked(*inputs, begins=DOCUMENTS, state=state, chunk=8)
    pieces, at = [], 0
    for part in parts:
        here = slice(at, at + part)
        y, state = chunked(*(x[:, here] for x in inputs), begins=DOCUMENTS[:, here], state=state, chunk=8)
        pieces.append(y)
        at += part
    assert_close(torch.cat(pieces, dim=1), whole)
    assert_close(state, last)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("marked", [None, False, True])
def test_one_token_equals_the_recurrence(scan: Any, marked: bool | None, with_state: bool) -> None:
    """Generation has a path of its own."""
    chunked, reference, inputs, state = scan
    inputs, state = [x[:, :1] for x in inputs], state if with_state else None
    marks = None if marked is None else torch.tensor([[marked], [False]])
    expected = run(reference, inputs, state, begins=marks)
    for ours, theirs in zip(run(chunked, inputs, state, begins=marks), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_strong_decay_neither_overflows_nor_spoils_the_gradient() -> None:
    """Quotients of products of decays would be 0 / 0 here."""
    torch.manual_seed(0)
    inputs, _ = decayed()
    inputs = [x.float().requires_grad_() for x in (*inputs[:3], inputs[3] * 200)]
    results = run(decayed_scan, inputs, None, chunk=16)
    expected = run(reference_decayed_scan, inputs, None)
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.isfinite().all()
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", ["decayed", "delta"])
def test_large_sums_of_decays_cost_no_precision(scan: str) -> None:
    """Of neighbours in a chunk over which the decays add up to -600, float32 keeps a hundred-thousandth."""
    torch.manual_seed(0)
    chunked, reference, make = SCANS[scan]
    *inputs, decay = make()[0]
    decay = decay * 30
    decay[:, ::3] *= 1e-3  # what two neighbours keep of each other is told by the small decays between the large ones
    truth = reference(*inputs, decay)[0]
    found = chunked(*(x.float() for x in (*inputs, decay)))[0]
    assert (found.double() - truth).abs().max() < 3e-6 * truth.abs().max()


def test_a_long_sequence_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triune.core.mixers.decayed_scan.PART", 16)
    torch.manual_seed(0)
    inputs, state = decayed()
    y, last = decayed_scan(*inputs, begins=DOCUMENTS, state=state, chunk=8)
    expected, expected_last = reference_decayed_scan(*inputs, begins=DOCUMENTS, state=state)
    assert_close(y, expected)
    assert_close(last, expected_last)


def test_float32_keeps_the_delta_rule_to_a_millionth() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 256, 2, 16) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    q = torch.nn.functional.normalize(q, dim=-1)
    inputs = [q, k, v, torch.rand(1, 256, 2), -0.1 * torch.rand(1, 256, 2)]
    y, _ = delta_scan(*inputs)
    exact, _ = reference_delta_scan(*(x.double() for x in inputs))
    assert (y - exact).abs().max() <= 1e-6


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 31, 64])
def test_the_inverse_of_a_triangular_matrix(size: int) -> None:
    torch.manual_seed(0)
    x = (0.2 * random(2, 3, size, size)).requires_grad_()  # larger ones have no inverse that float64 could hold
    expected = torch.linalg.inv(torch.eye(size, dtype=x.dtype) + x.tril(-1))
    assert_close(unit_lower_inverse(x), expected)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (unit_lower_inverse(x), expected))
    assert_close(ours, theirs)


def test_equal_keys_without_decay_lose_no_precision() -> None:
    """All entries of L are one here: its powers reach C(31, 15), yet the inverse has entries 1 and -1 only."""
    ones = torch.ones(64, 64)
    expected = torch.eye(64) - torch.eye(64).roll(1, 0).tril(-1)
    assert_close(unit_lower_inverse(ones), expected, rtol=0, atol=1e-5)
    torch.manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(1, 1, 1, 16), dim=-1).expand(1, 128, 2, 16)
    inputs = [key, key, torch.randn(1, 128, 2, 16), torch.ones(1, 128, 2), torch.zeros(1, 128, 2)]
    exact, _ = reference_delta_scan(*(x.double() for x in inputs))
    assert (delta_scan(*inputs)[0] - exact).abs().max() <= 1e-6 * exact.abs().max()
