"""Pools read what they say and nothing of the padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.heads.pool import POOLS, Pool


def reference(kind: str, tokens: torch.Tensor, prefix: int, query: torch.Tensor) -> torch.Tensor:
    """One example, its real tokens `[tokens, dim]` alone."""
    read = tokens[prefix:]
    if kind == "class":
        return tokens[0] if len(tokens) else tokens.new_zeros(tokens.shape[1])
    if not len(read):
        return tokens.new_zeros(tokens.shape[1])
    if kind == "last":
        return read[-1]
    if kind == "mean":
        return read.mean(0)
    return (read @ query * tokens.shape[1] ** -0.5).softmax(0) @ read


@pytest.mark.parametrize("kind", POOLS)
@settings(max_examples=25)
@given(rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), prefix=st.integers(0, 2))
def test_each_example_is_pooled_as_alone(kind, rows, prefix):
    pool = Pool(kind, 4, prefix).double()
    valid = torch.tensor(rows)
    tokens = torch.randn(*valid.shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query = torch.zeros(4, dtype=torch.float64)
    if kind == "attention":
        query = torch.nn.init.normal_(pool.query.data, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([reference(kind, t[v], prefix, query) for t, v in zip(tokens, valid)])
    tokens[~valid] = float("nan")
    tokens.requires_grad_()
    found = pool(tokens, valid)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert tokens.grad is not None and torch.isfinite(tokens.grad).all() and not tokens.grad[~valid].any()


def test_attention_starts_at_the_mean_and_learns():
    pool, tokens = Pool("attention", 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(pool(tokens), Pool("mean", 4)(tokens))
    pool(tokens).square().sum().backward()
    assert pool.query.grad is not None and pool.query.grad.abs().sum() > 0
    assert pool(tokens.bfloat16()).dtype == torch.bfloat16


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="pool is 'means' \\(did you mean 'mean'\\?\\), but must be one of class, mean"):
        Pool("means", 4)  # type: ignore[arg-type]
