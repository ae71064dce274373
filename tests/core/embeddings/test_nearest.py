"""Search is exact, copies are found, and wrong labels rank first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier

from triune.core.embeddings import nearest
from triune.core.embeddings.nearest import alike, clusters, doubtful, reference_search, search, unit
from triune.core.errors import UserError

RNG = np.random.default_rng(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_search_is_the_reference(rows: int, queries: int, k: int, itself: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Numbers of which many cosines are equal, and others.
    index = rng.integers(-1, 2, (rows, 3)).astype(np.float32) if seed % 2 else rng.standard_normal((rows, 5))
    asked = index[rng.integers(0, rows, queries)]
    skip = rng.integers(0, rows, queries) if itself else None
    found, wanted = search(asked, index, k, skip), reference_search(asked, index, k, skip)
    np.testing.assert_allclose(found.cosines, wanted.cosines, atol=1e-6)
    if not seed % 2:
        np.testing.assert_array_equal(found.rows, wanted.rows)
    for near in found.rows:
        there = near[near >= 0]
        assert len(set(there)) == len(there) == min(k, rows - itself)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = RNG.standard_normal((3000, 16)), RNG.standard_normal((70, 16))
    index[1500] = index[3]
    whole = search(queries, index, 7)
    pairs = alike(index, 0.7)
    monkeypatch.setattr(nearest, "ROWS", 512)
    monkeypatch.setattr(nearest, "QUERIES", 32)
    parts = search(queries, index, 7)
    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_array_equal(search(queries, index, 7).rows, reference_search(queries, index, 7).rows)
    assert [pair[:2] for pair in alike(index, 0.7)] == [pair[:2] for pair in pairs]
    one = search(index[3:4], index, 2)
    assert one.rows.tolist() == [[3, 1500]]


def test_cosines_are_those_of_scipy() -> None:
    index = RNG.standard_normal((50, 8))
    found = search(index[:4], index, 50)
    np.testing.assert_allclose(
        np.take_along_axis(1 - cdist(index[:4], index, "cosine"), found.rows, 1), found.cosines, atol=1e-6
    )


def test_lengths_do_not_matter() -> None:
    index = RNG.standard_normal((20, 4)).astype(np.float32)
    scaled = index * np.logspace(-30, 30, 20, dtype=np.float32)[:, None]
    np.testing.assert_allclose(unit(scaled), unit(index), atol=1e-6)
    assert unit(np.zeros((1, 4))).tolist() == [[0, 0, 0, 0]]


def test_copies_and_what_they_join() -> None:
    index = RNG.standard_normal((30, 16))
    index[7], index[20], index[21] = index[2] * 3, index[2], index[11] + 1e-4
    pairs = alike(index, 0.999)
    assert {pair[:2] for pair in pairs} == {(2, 7), (2, 20), (7, 20), (11, 21)}
    assert all(a.cosine >= b.cosine for a, b in pairwise(pairs))
    assert clusters(pairs) == [[2, 7, 20], [11, 21]]
    assert [pair[:2] for pair in alike(index[[2, 7]], 1.0)] == [(0, 1)]
    with pytest.raises(UserError, match="More than 10 pairs"):
        alike(np.ones((8, 2)), 0.5, 10)


def test_wrong_labels_come_first() -> None:
    centres = np.eye(3, 12) * 4
    truth = np.repeat([0, 1, 2], 60)
    index = centres[truth] + RNG.standard_normal((180, 12)) * 0.5
    labels = truth.copy()
    wrong = RNG.choice(180, 12, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    labels[RNG.choice(np.setdiff1d(np.arange(180), wrong), 5, replace=False)] = -100
    found = doubtful(index, labels)
    assert {doubt.row for doubt in found.doubts} == set(wrong)
    assert all(doubt.other == truth[doubt.row] and doubt.label == labels[doubt.row] for doubt in found.doubts)
    assert all(a.votes >= b.votes for a, b in pairwise(found.doubts))
    assert found.rows == 175 and found.majority < 0.5 < 0.9 < found.agreement


def test_agreement_is_leave_one_out() -> None:
    index, labels = RNG.standard_normal((80, 4)), RNG.integers(0, 2, 80)
    right = []
    for i in range(80):
        rest = np.arange(80) != i
        model = KNeighborsClassifier(5, metric="cosine").fit(index[rest], labels[rest])
        right.append(model.predict(index[i : i + 1])[0] == labels[i])
    assert doubtful(index, labels, 5).agreement == pytest.approx(np.mean(right))


def test_labels_that_are_too_few() -> None:
    with pytest.raises(UserError, match="1 of 3 vectors have a label"):
        doubtful(np.eye(3), np.array([0, -100, -100]))
