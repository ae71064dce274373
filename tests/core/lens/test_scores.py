"""Scores of heads from the log of the softmax's sum equal those of the whole weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.lens.record import record_attention
from triune.core.lens.scores import duplicate, first, head_scores, induction, itself, previous
from triune.core.transformer import Transformer

IDS = torch.tensor([[1, 2, 3, 1, 2, 3, 1], [5, 5, 2, 4, 2, 5, 1]])


def weight_on(weights: Tensor, keys: Tensor) -> Tensor:
    """The definition: from weights `[batch, heads, tokens, tokens]` to the mean of `[heads]`."""
    values = []
    for row in range(len(weights)):
        own = keys[row if len(keys) > 1 else 0]
        for query, wanted in enumerate(own.tolist()):
            if kept := [key for key in wanted if key >= 0]:
                values.append(weights[row, :, query, kept].sum(-1))
    return torch.stack(values).mean(0)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True}, {"causal": False}, {"causal": True, "kv_heads": 2, "window": 3},
        {"causal": True, "valid": True}, {"causal": True, "attention_softcap": 5.0},
        {"causal": False, "bias": True}, {"causal": True, "documents": True},
    ],
    ids=str,
)  # fmt: skip
def test_scores_are_those_of_the_whole_weights(options: dict) -> None:
    torch.manual_seed(0)
    extras = {name: options[name] for name in ("valid", "bias", "documents") if name in options}
    config = {name: value for name, value in options.items() if name not in extras}
    model = Transformer(TransformerConfig(dim=32, depth=2, heads=4, **config)).eval()
    x = 3 * torch.randn(2, 7, 32)
    call = {}
    if "valid" in extras:
        call["valid"] = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    if "documents" in extras:
        call["documents"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    if "bias" in extras:
        call["bias"] = torch.randn(2, 4, 7, 7)
    patterns = {
        "previous": previous, "first": first, "itself": itself, "duplicate": duplicate(IDS), "induction": induction(IDS)
    }  # fmt: skip
    with record_attention(model, lambda _, weights: weights) as seen:
        expected = model(x, **call)
    found = head_scores(model, lambda: torch.testing.assert_close(model(x, **call), expected), patterns)
    for name, pattern in patterns.items():
        keys = pattern(7, torch.device("cpu"))
        for layer in range(2):
            whole = weight_on(seen[f"blocks.{layer}.attn"], keys)
            torch.testing.assert_close(found[name][layer], whole, atol=1e-6, rtol=1e-5, msg=f"{name} of layer {layer}")


def test_patterns_name_the_keys_that_they_mean() -> None:
    keys = induction(IDS)(7, torch.device("cpu"))
    assert [sorted(k for k in row if k >= 0) for row in keys[0].tolist()] == [[], [], [], [1], [2], [3], [1, 4]]
    copies = duplicate(IDS)(7, torch.device("cpu"))
    assert [sorted(k for k in row if k >= 0) for row in copies[1].tolist()] == [[], [0], [], [], [2], [0, 1], []]


def test_a_pattern_without_keys_is_refused() -> None:
    model = Transformer(TransformerConfig(dim=16, depth=1, heads=2, causal=True)).eval()
    with pytest.raises(UserError, match="The pattern 'induction' has no key for any query"):
        head_scores(model, lambda: model(torch.randn(1, 4, 16)), {"induction": induction(torch.tensor([[1, 2, 3, 4]]))})
