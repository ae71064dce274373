"""Prefixes, blocks and global tokens in whole models: caches, padding, packing, mistakes; and Longformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.masks import AttentionMask
from triune.core.mixers.attention import Attention
from triune.core.mixers.base import Call
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.kernels import force_kernel
from triune.core.sparse import SparseConfig
from triune.core.transformer import Transformer

F64 = torch.float64
CONFIG = TransformerConfig(dim=16, depth=3, heads=2, kv_heads=1, causal=True, ffn_dim=16, init_std=0.4)
SPARSE = SparseConfig(3, 1, 1, 0, 2)


def model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(CONFIG, **changes)).double().eval()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_a_prefix_behind_a_cache_and_with_padding(window: int | None, position: Any) -> None:
    net = model(window=window, position=position)
    x = torch.randn(2, 12, 16, dtype=F64)
    valid = torch.arange(12) >= torch.tensor([[0], [3]])
    prefix = (torch.arange(12) < torch.tensor([[4], [6]])) & valid
    whole = net(x, valid=valid, prefix=prefix)
    alone = net(x[1:, 3:], prefix=prefix[1:, 3:])
    torch.testing.assert_close(whole[1, 3:], alone[0])
    cache = KeyValueCache(net.config)
    parts = [net(x[:, :7], valid=valid[:, :7], prefix=prefix[:, :7], cache=cache)]
    parts += [net(x[:, a:b], valid=valid[:, a:b], cache=cache) for a, b in ((7, 8), (8, 12))]
    torch.testing.assert_close(torch.cat(parts, 1)[valid], whole[valid])
    with pytest.raises(UserError, match=r"^prefix was given behind a cache of 12 tokens, which have not seen it; give"):
        net(x, prefix=prefix, cache=cache)
    causal = net(x, valid=valid)
    assert not torch.allclose(whole[0, 0], causal[0, 0])  # its first token sees the next ones
    assert torch.equal(net(x, valid=valid, prefix=torch.zeros_like(prefix))[valid], causal[valid])


def test_a_prefix_of_each_document() -> None:
    net, x = model(), torch.randn(1, 9, 16, dtype=F64)
    documents = torch.tensor([[0] * 4 + [1] * 5])
    prefix = torch.tensor([[True, True, False, False, True, True, True, False, False]])
    whole = net(x, documents=documents, prefix=prefix)
    torch.testing.assert_close(whole[:, :4], net(x[:, :4], prefix=prefix[:, :4]))
    torch.testing.assert_close(whole[:, 4:], net(x[:, 4:], prefix=prefix[:, 4:]))


def test_blocks_behind_a_cache_with_padding_and_packing() -> None:
    net = model(sparse=SPARSE)
    x = torch.randn(2, 23, 16, dtype=F64)
    valid = torch.arange(23) >= torch.tensor([[0], [5]])
    whole = net(x, valid=valid)
    torch.testing.assert_close(whole[1, 5:], net(x[1:, 5:])[0])
    cache = KeyValueCache(net.config)
    parts = [net(x[:, a:b], valid=valid[:, a:b], cache=cache) for a, b in ((0, 11), (11, 12), (12, 20), (20, 23))]
    torch.testing.assert_close(torch.cat(parts, 1)[valid], whole[valid])
    packed = net(x[:1], documents=torch.tensor([[0] * 9 + [1] * 14]))
    torch.testing.assert_close(packed[:, 9:], net(x[:1, 9:]))
    assert not torch.allclose(whole, model()(x, valid=valid))


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_are_the_same_in_every_form(causal: bool) -> None:
    net = model(sparse=replace(SPARSE, last=0 if causal else 1), causal=causal)
    x = torch.randn(2, 40, 16, dtype=F64, requires_grad=True)
    valid = torch.arange(40) < torch.tensor([[40], [29]])
    found = {}
    for kernel in ("blocked", "masked", "reference"):
        with force_kernel(kernel):
            y = net(x, valid=valid)[valid]
        found[kernel] = (y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()]))
    torch.testing.assert_close(found["blocked"], found["reference"], atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(found["masked"], found["reference"], atol=1e-11, rtol=1e-9)


def test_every_layer_has_random_blocks_of_its_own() -> None:
    keys = [block.attn.key for block in model(sparse=SPARSE).blocks]
    assert len(set(keys)) == 3
    assert len({block.attn.key for block in model(sparse=replace(SPARSE, random=0)).blocks}) == 1


@pytest.mark.parametrize("own", [False, True])
def test_longformer(own: bool) -> None:
    """Value and gradient of a window with global tokens, which have the same projections or their own."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "attention_window": [8], "pad_token_id": 1}
    theirs = LongformerSelfAttention(LongformerConfig(**size, attention_probs_dropout_prob=0.0), 0).eval()
    config = replace(CONFIG, causal=False, kv_heads=2, position="none", window=5, global_projections=own)
    ours = Attention(config, 0)
    for name, layer in (("q", "query"), ("k", "key"), ("v", "value")):
        state, globally = (getattr(theirs, layer + more) for more in ("", "_global"))
        getattr(ours, name).load_state_dict(state.state_dict())
        if ours.globally is None:
            globally.load_state_dict(state.state_dict())
        else:
            ours.globally[name].load_state_dict(globally.state_dict())
    with torch.no_grad():
        ours.out.weight.copy_(torch.eye(16))
        ours.out.bias.zero_()
    x = torch.randn(2, 32, 16, requires_grad=True)
    valid, hubs = torch.arange(32) < torch.tensor([[32], [21]]), torch.zeros(2, 32, dtype=torch.bool)
    hubs[0, [0, 17]] = hubs[1, 3] = True
    mask = torch.where(hubs, 10_000.0, 0.0).masked_fill(~valid, -10_000.0)
    expected = theirs(x, mask, is_index_masked=~valid, is_index_global_attn=hubs, is_global_attn=True)[0]
    call = Call(AttentionMask(valid=valid, global_tokens=hubs), torch.arange(32), 32, 32, x.dtype, x.device)
    for kernel in ("blocked", "masked"):
        with force_kernel(kernel):
            prepared = ours.prepare(call)
        assert prepared[0].kernel == kernel
        found = ours(x, *prepared)
        torch.testing.assert_close(found[valid], expected[valid], atol=1e-6, rtol=1e-5)
        grads = [torch.autograd.grad(y[valid].square().sum(), x, retain_graph=True)[0] for y in (found, expected)]
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_a_bias_beside_global_projections_is_refused() -> None:
    net, x = model(causal=False, window=3, global_projections=True), torch.randn(1, 5, 16, dtype=F64)
    with pytest.raises(UserError, match=r"^A bias was given beside global_tokens, which global_projections cannot"):
        net(x, bias=torch.zeros(1, 1, 5, 5, dtype=F64), global_tokens=torch.eye(5, dtype=torch.bool)[:1])


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"causal": False}, {"prefix": True}, r"^prefix was given, but this model is not causal"),
        (
            {"mixer": "MAM", "mixer_options": {"mamba2": {"width": 16}}}, {"prefix": True},
            r"^mixer of layer 0 is 'mamba2', but must be attention for a prefix",
        ),
        ({}, {"global_tokens": True}, r"^global_tokens was given, but no layer has a window or sparse blocks"),
        ({"window": 3}, {"global_tokens": True, "cache": True}, r"^global_tokens and a cache cannot be used together"),
    ],
)  # fmt: skip
def test_what_no_layer_can_use_is_refused(changes: dict[str, Any], given: dict[str, Any], message: str) -> None:
    net, x = model(**changes), torch.randn(1, 5, 16, dtype=F64)
    flags: dict[str, Any] = {name: torch.ones(1, 5, dtype=torch.bool) for name in given}
    if "cache" in given:
        flags["cache"] = KeyValueCache(net.config)
    with pytest.raises(UserError, match=message):
        net(x, **flags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparse": SparseConfig(last=1)}, r"^sparse\.last is 1, but must be 0 with causal\.$"),
        ({"sparse": SPARSE, "window": 3}, r"^window is 3, but must be null with sparse"),
        ({"sparse": SparseConfig(whole=9)}, r"^sparse\.whole is 9, but must be 0 with causal\.$"),
        ({"global_projections": True}, r"^window is None, but must be given for each layer with global_projections"),
        (
            {"global_projections": True, "window": 3, "attention_softcap": 1.0},
            r"^attention_softcap is 1\.0, but must be null with global_projections\.$",
        ),
        ({"sparse": SPARSE, "mixer": "lstm"}, r"^sparse is SparseConfig\(.*\), but must be None, because no layer"),
    ],
)  # fmt: skip
def test_mistakes_of_a_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **changes)


def test_a_config_is_read_again_and_its_canonical_form() -> None:
    config = replace(CONFIG, sparse=SPARSE)
    assert TransformerConfig.from_dict(config.to_dict()) == config
    plain = replace(SPARSE, random=0, seed=7)
    assert replace(CONFIG, sparse=plain).canonical() == replace(CONFIG, sparse=replace(plain, seed=0)).canonical()
    assert config.canonical() != replace(CONFIG, sparse=replace(SPARSE, seed=7)).canonical()
    with pytest.raises(UserError, match=r"Unknown key 'transformer\.sparse\.blok'"):
        TransformerConfig.from_dict({"sparse": {"blok": 3}})
