"""The short convolution of attention: its definition, caches, padding, documents, both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.convolution import ShortConvolution
from triune.core.mixers.recurrent import Row
from triune.core.transformer import Transformer

F64 = torch.float64
CONFIG = TransformerConfig(dim=16, depth=2, heads=2, kv_heads=1, causal=True, ffn_dim=16, short_convolution=3)


def model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(replace(CONFIG, **changes)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("centred", [False, True])
def test_the_definition(kernel: int, centred: bool) -> None:
    torch.manual_seed(0)
    conv = ShortConvolution(4, kernel, centred=centred).double()
    x, own = torch.randn(1, 9, 4, dtype=F64, requires_grad=True), kernel // 2 if centred else kernel - 1
    begins = torch.zeros(1, 9, dtype=torch.bool)
    begins[:, 5] = True
    for given, document in ((None, [0] * 9), (begins, [0] * 5 + [1] * 4)):
        expected = []
        for t in range(9):
            inside = [t + i - own for i in range(kernel)]
            near = [
                x[:, s] * conv.weight[:, 0, i]
                for i, s in enumerate(inside)
                if 0 <= s < 9 and document[s] == document[t]
            ]
            expected.append(torch.stack(near).sum(0))
        wanted = torch.stack(expected, 1)
        found, _ = conv(x, Row(begins=given))
        torch.testing.assert_close(found, wanted)
        grads = [torch.autograd.grad(y.square().sum(), [x, conv.weight], retain_graph=True) for y in (found, wanted)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("centred", [False, True])
def test_one_token_is_a_sum_of_products(centred: bool) -> None:
    """Generation does without PyTorch's convolution; beside the form for documents, in value and gradient."""
    torch.manual_seed(0)
    conv = ShortConvolution(4, 3, centred=centred).double()
    x = torch.randn(2, 1, 4, dtype=F64, requires_grad=True)
    past = None if centred else torch.randn(2, 2, 4, dtype=F64, requires_grad=True)
    leaves = [x, conv.weight, conv.bias, *([] if past is None else [past])]
    found = []
    for row in (Row(), Row(begins=torch.zeros(2, 1, dtype=torch.bool))):
        y, inputs = conv(x, row, past)
        loss = y.sin().sum() + inputs.cos().sum()
        found.append([y, inputs, *torch.autograd.grad(loss, leaves, retain_graph=True)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_behind_a_cache_with_padding_and_select(window: int | None) -> None:
    net, x = model(window=window), torch.randn(3, 12, 16, dtype=F64)
    valid = torch.arange(12) >= torch.tensor([[0], [3], [1]])
    whole = net(x, valid=valid)
    torch.testing.assert_close(whole[1, 3:], net(x[1:2, 3:])[0])
    cache = KeyValueCache(net.config)
    parts = [net(x[:, a:b], valid=valid[:, a:b], cache=cache) for a, b in ((0, 2), (2, 6), (6, 7))]
    torch.testing.assert_close(torch.cat(parts, 1)[valid[:, :7]], whole[:, :7][valid[:, :7]])
    rows = torch.tensor([2, 1])
    cache.select(rows)
    torch.testing.assert_close(net(x[rows, 7:], cache=cache), whole[rows, 7:])
    assert not torch.allclose(whole, model(window=window, short_convolution=0)(x, valid=valid))


@torch.no_grad()
def test_a_call_that_fails_changes_nothing() -> None:
    net, x = model(), torch.randn(1, 6, 16, dtype=F64)
    cache = KeyValueCache(net.config)
    net(x[:, :3], cache=cache)
    handle = net.blocks[1].register_forward_pre_hook(lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(x[:, 3:] + 1, cache=cache)
    handle.remove()
    torch.testing.assert_close(net(x[:, 3:], cache=cache), net(x)[:, 3:])


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_documents_and_padding_are_as_alone(causal: bool) -> None:
    net, x = model(causal=causal), torch.randn(2, 11, 16, dtype=F64)
    packed = net(x, documents=torch.tensor([[0] * 4 + [1] * 7] * 2))
    torch.testing.assert_close(packed[:, :4], net(x[:, :4]))
    torch.testing.assert_close(packed[:, 4:], net(x[:, 4:]))
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[1, :2] = valid[1, 9:] = False
    poisoned = x.masked_fill(~valid[..., None], 1e3)
    torch.testing.assert_close(net(poisoned, valid=valid)[1, 2:9], net(x[1:, 2:9])[0])


@torch.no_grad()
def test_it_sees_both_sides_unless_causal() -> None:
    x = torch.randn(1, 8, 16, dtype=F64)
    for causal in (True, False):
        conv = model(causal=causal).blocks[0].attn.conv
        assert isinstance(conv, ShortConvolution)
        probe = torch.zeros(1, 8, conv.weight.shape[0], dtype=F64)
        probe[:, 4] = 1.0
        reached = conv(probe, Row())[0].abs().sum(-1)[0] > 0
        assert reached.nonzero().flatten().tolist() == ([4, 5, 6] if causal else [3, 4, 5])
    bias: Tensor = torch.randn(1, 1, 8, 8, dtype=F64)
    assert not torch.allclose(model()(x, bias=bias), model()(x))  # a bias goes with it


def test_it_starts_as_the_identity() -> None:
    for causal in (True, False):
        torch.manual_seed(0)
        with_it = Transformer(replace(CONFIG, causal=causal))
        torch.manual_seed(0)
        without = Transformer(replace(CONFIG, causal=causal, short_convolution=0))
        without.load_state_dict({n: p for n, p in with_it.state_dict().items() if "conv" not in n})
        x = torch.randn(2, 7, 16)
        torch.testing.assert_close(with_it(x), without(x))
        assert [n for n, p in with_it.named_parameters() if n.endswith("conv.weight")] == [
            f"blocks.{layer}.attn.conv.weight" for layer in (0, 1)
        ]


def test_mistakes() -> None:
    for size in (1, -2):
        with pytest.raises(UserError, match=rf"^short_convolution is {size}, but must be 0, or at least 2 tokens\.$"):
            replace(CONFIG, short_convolution=size)
    with pytest.raises(
        UserError, match=r"^short_convolution is 3, but must be 0, because no layer has the mixer atten"
    ):
        replace(CONFIG, mixer="lstm", kv_heads=None)
