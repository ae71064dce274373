"""The description of who may attend to whom, against explicit loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triune.core.masks import AttentionMask, positions_in_segments


def by_hand(mask: AttentionMask, row: int, queries: int, keys: int) -> list[list[bool]]:
    """The docstring of `AttentionMask` as two loops over absolute positions."""
    documents = [0] * keys if mask.documents is None else mask.documents[row].tolist()
    real = [True] * keys if mask.valid is None else mask.valid[row].tolist()
    table = []
    for i in range(keys - queries, keys):
        line = []
        for j in range(keys):
            sees = real[i] == real[j] and (documents[i] == documents[j] or not real[i])
            if mask.causal:
                sees = sees and j <= i
            if mask.window is not None:
                sees = sees and abs(i - j) < mask.window
            line.append(sees)
        table.append(line)
    return table


@given(st.data())
def test_allowed_equals_two_loops(data: st.DataObject) -> None:
    keys = data.draw(st.integers(1, 9), "keys")
    queries = data.draw(st.integers(1, keys), "queries")
    flags = st.lists(st.booleans(), min_size=2 * keys, max_size=2 * keys)
    ids = st.lists(st.integers(0, 2), min_size=2 * keys, max_size=2 * keys)
    padding, documents = data.draw(st.none() | flags, "padding"), data.draw(st.none() | ids, "documents")
    mask = AttentionMask(
        causal=data.draw(st.booleans(), "causal"),
        window=data.draw(st.none() | st.integers(1, 12), "window"),
        documents=None if documents is None else torch.tensor(documents).view(2, keys),
        valid=None if padding is None else torch.tensor(padding).view(2, keys),
    )
    allowed = mask.allowed(queries, keys)
    if allowed is None:
        assert not mask.causal
        assert mask.window is None
        return
    assert allowed.dtype == torch.bool
    for row in range(2):
        assert allowed.expand(2, 1, queries, keys)[row, 0].tolist() == by_hand(mask, row, queries, keys)
    # No row of a softmax may be empty: each token sees itself.
    assert allowed.any(-1).all()


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_window_counts_the_token_itself(window: int) -> None:
    """A causal window of W holds W keys, the token itself included.

    Hugging Face's `sliding_window=W` means the same; flash_attn's `window_size=(W - 1, 0)` is this window, because its
    numbers count the neighbours on each side without the token.
    """
    tokens = 12
    seen = AttentionMask(causal=True, window=window).allowed(tokens, tokens)
    assert seen is not None
    flash_left = window - 1
    for i in range(tokens):
        visible = seen[0, 0, i].nonzero()[:, 0].tolist()
        assert visible == list(range(max(0, i - flash_left), i + 1))
        assert len(visible) == min(window, i + 1)
    both = AttentionMask(window=window).allowed(tokens, tokens)
    assert both is not None
    assert both[0, 0].sum(-1).tolist() == [
        min(i, window - 1) + 1 + min(tokens - 1 - i, window - 1) for i in range(tokens)
    ]


def test_fewer_queries_are_the_last_ones() -> None:
    mask = AttentionMask(causal=True, window=3)
    whole, last = mask.allowed(7, 7), mask.allowed(2, 7)
    assert whole is not None
    assert last is not None
    assert torch.equal(last, whole[:, :, 5:])


def test_cross_mask_hides_padding_only() -> None:
    assert AttentionMask(cross=True, causal=True, window=2).allowed(3, 5) is None
    padding = torch.tensor([[True, True, False], [True, False, False]])
    allowed = AttentionMask(cross=True, valid=padding).allowed(4, 3)
    assert allowed is not None
    assert allowed.shape == (2, 1, 4, 3)
    assert torch.equal(allowed[1, 0], torch.tensor([[True, False, False]] * 4))


def test_padding_is_the_document_minus_one() -> None:
    documents, padding = torch.tensor([[3, 3, 5, 5]]), torch.tensor([[False, True, True, False]])
    segments = AttentionMask(documents=documents, valid=padding).segments()
    assert segments is not None
    assert segments.tolist() == [[-1, 3, 5, -1]]
    assert AttentionMask(causal=True).segments() is None


def test_positions_restart_in_each_segment() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, 2], [-1, -1, 0, 0, 0, 0]])
    assert positions_in_segments(segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]
