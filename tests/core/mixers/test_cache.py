"""Generation with a cache computes what a whole forward pass computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache, LayerCache
from triune.core.rotary import RotaryConfig
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
    assert cache.with_past(None, 2, 3, torch.device("cpu")) is None
    cache.commit(3, 2, None, None, None)
    late = torch.tensor([[True, False], [True, True]])
    found = cache.with_past(late, 2, 2, torch.device("cpu"))
    assert torch.equal(found, torch.cat([torch.ones(2, 3).bool(), late], 1))


@torch.no_grad()
def test_a_window_bounds_the_memory_of_its_layer() -> None:
    window, cache = 5, LayerCache(5)
    seen = torch.empty(1, 1, 0, 2)
    for step in range(1000):
        new = torch.full((1, 1, 1, 2), float(step))
        seen = torch.cat([seen, new], 2)
        keys, values = cache.append(new, -new)
        cache.commit()
        assert torch.equal(keys, seen[:, :, -window:])
        assert torch.equal(values, -keys)
    assert cache.keys is not None
    assert cache.keys.shape[2] <= 64


@torch.no_grad()
def test_an_unbounded_layer_keeps_everything_and_copies_rarely() -> None:
    cache, buffers = LayerCache(), set()
    for step in range(1000):
        new = torch.full((1, 1, 1, 2), float(step))
        keys, _ = cache.append(new, new)
        cache.commit()
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


# --- what a cache refuses, and what it survives -----------------------------------------------------------------------

F64 = torch.float64


@pytest.mark.parametrize(
    "case", [{}, {"window": [3, None]}, {"cross_attention": True}], ids=["full", "window", "cross"]
)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("past", [0, 4])
def test_a_call_that_fails_leaves_the_cache_as_it_was(case: dict[str, Any], layer: int, past: int) -> None:
    model, x = build(**case), torch.randn(2, 9, DIM, dtype=F64)
    more = {"memory": torch.randn(2, 3, DIM, dtype=F64)} if case.get("cross_attention") else {}
    padding, cache = left_padding([9, 6], 9), KeyValueCache(model.config)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        expected = model(x, valid=padding, **more)
        if past:
            model(x[:, :past], valid=padding[:, :past], cache=cache, **more)
        handle = model.blocks[layer].ffn.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(2, 5, DIM, dtype=F64), cache=cache, **more)
        handle.remove()
        assert cache.length == past
        found = model(x[:, past:], valid=padding[:, past:], cache=cache, **more)
    keep = padding[:, past:, None]
    torch.testing.assert_close(found * keep, expected[:, past:] * keep, atol=1e-10, rtol=1e-10)


def test_the_memory_is_projected_once_and_follows_select() -> None:
    model, memory = build(cross_attention=True), torch.randn(3, 6, DIM, dtype=F64)
    x, cache, rows = torch.randn(3, 6, DIM, dtype=F64), KeyValueCache(model.config), torch.tensor([2, 0])
    valid, calls = left_padding([6, 2, 4], 6), []
    with torch.no_grad():
        expected = model(x, memory=memory, memory_valid=valid)
        model.blocks[0].cross.k.register_forward_hook(lambda *_: calls.append(1))
        outs = [model(x[:, :2], memory=memory, memory_valid=valid, cache=cache)]
        outs += [model(x[:, 2:4], cache=cache)]
        torch.testing.assert_close(torch.cat(outs, 1), expected[:, :4], atol=1e-10, rtol=1e-10)
        cache.select(rows)
        found = model(x[rows, 4:], memory=memory[rows], memory_valid=valid[rows], cache=cache)
    torch.testing.assert_close(found, expected[rows, 4:], atol=1e-10, rtol=1e-10)
    assert len(calls) == 1


@pytest.mark.parametrize("case", [{}, {"window": 3}, {"cross_attention": True}], ids=["full", "window", "cross"])
def test_gradients_flow_through_a_cache(case: dict[str, Any]) -> None:
    model, x = build(**case), torch.randn(2, 8, DIM, dtype=F64, requires_grad=True)
    more = {"memory": torch.randn(2, 3, DIM, dtype=F64, requires_grad=True)} if case.get("cross_attention") else {}
    inputs, cache = [x, *more.values(), *model.parameters()], KeyValueCache(model.config)
    expected = torch.autograd.grad(model(x, **more).square().sum(), inputs)
    outs = [model(part, cache=cache, **more) for part in x.split([3, 1, 4], dim=1)]
    found = torch.autograd.grad(torch.cat(outs, 1).square().sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


MODES = [torch.inference_mode, torch.no_grad, torch.enable_grad]


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_a_cache_crosses_modes(first: Any, second: Any) -> None:
    model, x = build(cross_attention=True, window=[3, None]), torch.randn(2, 8, DIM, dtype=F64)
    memory, cache = torch.randn(2, 3, DIM, dtype=F64), KeyValueCache(model.config)
    with torch.no_grad():
        expected = model(x, memory=memory)
    with first():
        outs = [model(x[:, :4], memory=memory, cache=cache)]
    with second():
        outs.append(model(x[:, 4:6], cache=cache))
        if second is torch.enable_grad:
            outs[-1].square().sum().backward()
    with first():
        outs.append(model(x[:, 6:], cache=cache))
    torch.testing.assert_close(torch.cat([out.detach() for out in outs], 1), expected, atol=1e-10, rtol=1e-10)


def test_a_cache_of_something_else_is_refused() -> None:
    model, x = build(cross_attention=True), torch.randn(2, 3, DIM, dtype=F64)
    memory, cache = torch.randn(2, 3, DIM, dtype=F64), KeyValueCache(model.config)
    model(x, memory=memory, cache=cache)
    with pytest.raises(UserError, match="x has 1 rows, but the cache holds 2"):
        model(x[:1], cache=cache)
    with pytest.raises(UserError, match="memory is another than in the first call with this cache"):
        model(x, memory=memory + 1, cache=cache)
    with pytest.raises(UserError, match="memory_valid is another than in the first call"):
        model(x, memory=memory, memory_valid=torch.ones(2, 3, dtype=torch.bool), cache=cache)
    with pytest.raises(UserError, match="holds the tokens of another model"):
        build(cross_attention=True)(x, memory=memory, cache=cache)
    with pytest.raises(UserError, match="made for another config"):
        build(depth=3, cross_attention=True)(x, memory=memory, cache=cache)
    assert cache.length == 3


LONG = RotaryConfig(
    scaling="longrope", factor=2.0, original_context=6, short_factors=[1.0, 2.0], long_factors=[3.0, 9.0]
)


@pytest.mark.parametrize("rotary", [LONG, RotaryConfig(scaling="dynamic", factor=4.0, original_context=6)])
def test_a_text_that_outgrows_its_rotation_gets_a_sentence_and_not_a_stale_cache(rotary: RotaryConfig) -> None:
    model, x = build(rotary=rotary), torch.randn(2, 8, DIM, dtype=torch.float64)
    within = step_by_step(model, x[:, :6], [4, 1, 1])
    torch.testing.assert_close(within, model(x[:, :6]), atol=1e-10, rtol=0)
    with pytest.raises(UserError, match=f"grows from 6 to 7 tokens, where rotary.scaling {rotary.scaling}"):
        step_by_step(model, x, [4, 2, 1])
    # Of a padded batch only the real tokens count: this one has two rows of 5 and 3 after 7 columns.
    padding = left_padding([5, 3], 7)
    part = step_by_step(model, x[:, :7], [5, 1, 1], padding)
    torch.testing.assert_close(part[padding], model(x[:, :7], valid=padding)[padding], atol=1e-10, rtol=0)


def test_longrope_goes_on_beyond_the_point_where_it_turns() -> None:
    model, x = build(rotary=LONG), torch.randn(2, 12, DIM, dtype=torch.float64)
    torch.testing.assert_close(step_by_step(model, x, [8, 1, 3]), model(x), atol=1e-10, rtol=0)
