"""The description of who may attend to whom, against explicit loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.masks import AttentionMask, positions_in_segments
from triune.core.sparse import SparseConfig


def by_hand(mask: AttentionMask, row: int, queries: int, keys: int) -> list[list[bool]]:
    """The docstring of `AttentionMask` as two loops over absolute positions."""
    documents = [0] * keys if mask.documents is None else mask.documents[row].tolist()
    real = [True] * keys if mask.valid is None else mask.valid[row].tolist()
    # Runs of one document: the blocks of each are counted from 0.
    starts = [j for j in range(keys) if j == 0 or (real[j], documents[j] if real[j] else 0) != (
        real[j - 1], documents[j - 1] if real[j - 1] else 0)]  # fmt: skip
    ends = [*starts[1:], keys]
    shared = {j for j in range(keys) if mask.global_tokens is not None and mask.global_tokens[row, j] and real[j]}
    numbers = [0] * keys
    for start, end in zip(starts, ends, strict=True) if mask.sparse is not None else ():
        size = mask.sparse.block
        blocks = -(-(end - start) // size)
        for j in range(start, end):
            numbers[j] = (j - start) // size
            if real[j] and (numbers[j] < mask.sparse.first or numbers[j] >= blocks - mask.sparse.last):
                shared.add(j)
    table = []
    for i in range(keys - queries, keys):
        line = []
        for j in range(keys):
            sees = real[i] == real[j] and (documents[i] == documents[j] or not real[i])
            if mask.causal:
                both = mask.prefix is not None and bool(mask.prefix[row, i] and mask.prefix[row, j])
                sees = sees and (j <= i or both)
            near = mask.window is None or abs(i - j) < mask.window
            if mask.sparse is not None:
                near = abs(numbers[i] - numbers[j]) <= mask.sparse.around
            sees = sees and (near or i in shared or j in shared)
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


@given(st.data())
def test_prefix_blocks_and_global_tokens_equal_two_loops(data: st.DataObject) -> None:
    keys = data.draw(st.integers(1, 12), "keys")
    queries = data.draw(st.integers(1, keys), "queries")
    flags = st.none() | st.lists(st.booleans(), min_size=2 * keys, max_size=2 * keys)
    ids = st.none() | st.lists(st.integers(0, 1), min_size=2 * keys, max_size=2 * keys)
    small = st.integers(0, 2)
    causal = data.draw(st.booleans(), "causal")
    sparse = data.draw(st.none() | st.builds(SparseConfig, st.integers(1, 4), small, small, small), "sparse")
    window = None if sparse else data.draw(st.none() | st.integers(1, 5), "window")
    given = {name: data.draw(flags, name) for name in ("valid", "prefix", "global_tokens")}
    given["documents"] = data.draw(ids, "documents")
    tensors = {name: torch.tensor(value).view(2, keys) for name, value in given.items() if value is not None}
    mask = AttentionMask(causal=causal, window=window, sparse=sparse, **tensors)
    allowed = mask.allowed(queries, keys)
    for row in range(2):
        expected = torch.tensor(by_hand(mask, row, queries, keys))
        if allowed is None:
            assert expected.all()
        else:
            assert torch.equal(allowed[row if len(allowed) > 1 else 0, 0], expected)


def rows(sparse: SparseConfig, causal: bool, **given: torch.Tensor) -> torch.Tensor:
    tokens = next(iter(given.values())).shape[1]
    allowed = AttentionMask(causal=causal, sparse=sparse, **given).allowed(tokens, tokens)
    assert allowed is not None
    return allowed[:, 0]


@pytest.mark.parametrize("causal", [False, True])
def test_random_blocks_do_not_depend_on_what_is_beside(causal: bool) -> None:
    sparse = SparseConfig(2, 0, 1, 0 if causal else 1, 2, seed=3)
    alone = rows(sparse, causal, documents=torch.zeros(1, 23, dtype=torch.long))[0]
    plain = AttentionMask(causal=causal, sparse=sparse).allowed(23, 23)
    assert plain is not None
    assert torch.equal(plain[0, 0], alone)
    seen = alone[12:14].any(0)[: 12 if causal else 23].unflatten(0, (-1, 1)).flatten()  # block 6 sees
    blocks = {int(j) // 2 for j in seen.nonzero()} - {0, 6, 11}
    assert len(blocks) == 2  # beside the first, its own and the last
    left = torch.arange(30)[None] >= 7
    assert torch.equal(rows(sparse, causal, valid=left)[0, 7:, 7:], alone)
    packed = torch.tensor([[0] * 5 + [1] * 23 + [2] * 4])
    assert torch.equal(rows(sparse, causal, documents=packed)[0, 5:28, 5:28], alone)
    if causal:
        longer = AttentionMask(causal=True, sparse=sparse).allowed(40, 40)
        last = AttentionMask(causal=True, sparse=sparse).allowed(3, 40)
        assert longer is not None
        assert last is not None
        assert torch.equal(longer[0, 0, :23, :23], alone)
        assert torch.equal(last, longer[:, :, -3:])
    other = rows(sparse.at(1), causal, documents=torch.zeros(1, 23, dtype=torch.long))[0]
    assert not torch.equal(other, alone)


def test_random_blocks_are_spread_evenly() -> None:
    sparse = SparseConfig(1, 0, 0, 0, 3)
    allowed = AttentionMask(sparse=sparse).allowed(400, 400)
    assert allowed is not None
    assert (allowed[0, 0].sum(1) == 4).all()
    seen = allowed[0, 0].sum(0)
    assert seen.float().std() < 2.5  # a Poisson distribution has sqrt(3)
    assert seen.max() < 13


def test_mistakes_of_patterns() -> None:
    with pytest.raises(UserError, match=r"^prefix is torch\.int64 \(1, 2\), but must be bool \[batch, tokens\]\.$"):
        AttentionMask(prefix=torch.tensor([[1, 2]]))
    with pytest.raises(UserError, match=r"^window is 3, but must be null where sparse"):
        AttentionMask(window=3, sparse=SparseConfig())
    for name, value in (("block", 0), ("around", -1), ("random", 2**31), ("seed", -1)):
        with pytest.raises(UserError, match=rf"^sparse\.{name} is {value}, but must be"):
            SparseConfig(**{name: value})
