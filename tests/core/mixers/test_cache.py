"""Generation with a cache computes what a whole forward pass computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triune.core.config import RotaryConfig, TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache, LayerCache
from triune.core.transformer import Transformer

DIM = 16
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def build(dtype: torch.dtype = torch.float64, **values: Any) -> Transformer:
    torch.manual_seed(0)
    config = {"dim": DIM, "heads": 4, "depth": 2, "ffn_dim": 16, "causal": True, "init_std": 0.3, "context": 64}
    return Transformer(TransformerConfig(**config | values)).to(dtype).eval()


def step_by_step(model: Transformer, x: Tensor, chunks: list[int], padding: Tensor | None = None) -> Tensor:
    cache, outs, done = KeyValueCache(model.config), [], 0
    for size in chunks:
        part = slice(done, done + size)
        outs.append(model(x[:, part], valid=None if padding is None else padding[:, part], cache=cache))
        done += size
    assert cache.length == done
    return torch.cat(outs, dim=1)


def left_padding(real: list[int], tokens: int) -> Tensor:
    return torch.arange(tokens) >= tokens - torch.tensor(real)[:, None]


@settings(max_examples=60)
@given(st.data())
def test_cached_equals_uncached(data: st.DataObject) -> None:
    draw = data.draw
    windows = st.none() | st.integers(1, 14)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    model = build(
        dtype,
        position=draw(st.sampled_from(["none", "learned", "sinusoidal", "rotary"]), "position"),
        window=draw(windows | st.lists(windows, min_size=2, max_size=2), "window"),
        kv_heads=draw(st.sampled_from([1, 2, 4]), "kv_heads"),
        attention_softcap=draw(st.sampled_from([None, None, 2.0]), "softcap"),
        qk_norm=draw(st.sampled_from(["none", "head"]), "qk_norm"),
    )
    batch = draw(st.integers(1, 3), "batch")
    chunks = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6), "chunks")
    tokens = sum(chunks)
    x, padding = torch.randn(batch, tokens, DIM, dtype=dtype), None
    if draw(st.booleans(), "padded"):
        # Only the prompt, the first chunk, is padded.
        real = draw(st.lists(st.integers(tokens - chunks[0] + 1, tokens), min_size=batch, max_size=batch), "real")
        padding = left_padding(real, tokens)
    with torch.no_grad():
        expected, found = model(x, valid=padding), step_by_step(model, x, chunks, padding)
    assert found.isfinite().all()
    keep = torch.ones(batch, tokens, 1, dtype=torch.bool) if padding is None else padding[..., None]
    torch.testing.assert_close(found * keep, expected * keep, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


CASES = [
    {"window": [3, None]},
    {"rotary": [RotaryConfig(base=100.0), None]},
    {"rotary": RotaryConfig(scaling="llama3", factor=8.0, original_context=16, interleaved=True, fraction=0.5)},
    {"position": "learned", "window": 5},
    {"attention_softcap": 3.0, "window": 4},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(case))
@pytest.mark.parametrize(
    "chunks", [[20] + [1] * 20, [1] * 40, [7, 13, 20], [40]], ids=["prompt", "one", "chunks", "all"]
)
def test_prompt_chunks(case: dict[str, Any], chunks: list[int]) -> None:
    model, x = build(**case), torch.randn(2, 40, DIM, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(step_by_step(model, x, chunks), model(x), atol=1e-10, rtol=1e-10)


def test_padding_may_be_given_with_the_prompt_only() -> None:
    model, x = build(position="learned"), torch.randn(2, 10, DIM, dtype=torch.float64)
    padding, cache = left_padding([7, 10], 10), KeyValueCache(model.config)
    outs = [model(x[:, :6], valid=padding[:, :6], cache=cache)]
    outs += [model(x[:, i : i + 1], cache=cache) for i in range(6, 10)]
    expected = model(x, valid=padding) * padding[..., None]
    torch.testing.assert_close(torch.cat(outs, 1) * padding[..., None], expected, atol=1e-10, rtol=1e-10)


def test_padding_may_start_after_unpadded_tokens() -> None:
    cache = KeyValueCache(TransformerConfig(causal=True))
    assert cache.extend(2, 3, None, torch.device("cpu")) is None
    late = torch.tensor([[True, False], [True, True]])
    assert torch.equal(cache.extend(2, 2, late, torch.device("cpu")), torch.cat([torch.ones(2, 3).bool(), late], 1))


def test_a_window_bounds_the_memory_of_its_layer() -> None:
    window, cache = 5, LayerCache(5)
    seen = torch.empty(1, 1, 0, 2)
    for step in range(1000):
        new = torch.full((1, 1, 1, 2), float(step))
        seen = torch.cat([seen, new], 2)
        keys, values = cache.append(new, -new)
        assert torch.equal(keys, seen[:, :, -window:])
        assert torch.equal(values, -keys)
    assert cache.keys is not None
    assert cache.keys.shape[2] <= 64


def test_an_unbounded_layer_keeps_everything_and_copies_rarely() -> None:
    cache, buffers = LayerCache(), set()
    for step in range(1000):
        new = torch.full((1, 1, 1, 2), float(step))
        keys, _ = cache.append(new, new)
        assert cache.keys is not None
        buffers.add(cache.keys.data_ptr())
    assert torch.equal(keys[0, 0, :, 0], torch.arange(1000.0))
    assert cache.keys is not None
    assert cache.keys.shape[2] <= 2048
    assert len(buffers) < 10


def test_select_keeps_the_rows_asked_for() -> None:
    model, x = build(window=[4, None]), torch.randn(3, 12, DIM, dtype=torch.float64)
    padding = left_padding([12, 9, 11], 12)
    expected, cache, rows = model(x, valid=padding), KeyValueCache(model.config), torch.tensor([2, 1])
    model(x[:, :8], valid=padding[:, :8], cache=cache)
    cache.select(rows)
    assert cache.valid is not None
    assert cache.valid.shape == (2, 8)
    found = model(x[rows, 8:], cache=cache)
    torch.testing.assert_close(found, expected[rows, 8:], atol=1e-10, rtol=1e-10)
    KeyValueCache(model.config).select(rows)  # an empty one has nothing to select


def test_decoder_with_cross_attention() -> None:
    model, memory = build(cross_attention=True), torch.randn(2, 6, DIM, dtype=torch.float64)
    x, cache = torch.randn(2, 5, DIM, dtype=torch.float64), KeyValueCache(model.config)
    outs = [model(x[:, i : i + 1], memory=memory, cache=cache) for i in range(5)]
    torch.testing.assert_close(torch.cat(outs, 1), model(x, memory=memory), atol=1e-10, rtol=1e-10)


def test_running_past_a_learned_table_gets_a_sentence() -> None:
    model = build(position="learned", context=4)
    cache, x = KeyValueCache(model.config), torch.randn(1, 3, DIM, dtype=torch.float64)
    model(x, cache=cache)
    model(x[:, :1], cache=cache)
    with pytest.raises(UserError, match="has 5 tokens, but the learned position table has context = 4 rows"):
        model(x[:, :1], cache=cache)


def test_a_model_that_looks_ahead_has_no_cache() -> None:
    model = build(causal=False)
    with pytest.raises(UserError, match="A cache needs a causal model"):
        model(torch.randn(1, 3, DIM, dtype=torch.float64), cache=KeyValueCache(model.config))
