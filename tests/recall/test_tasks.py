"""The rows of each task hold what their task says, and the oracles are what their definition gives."""

from __future__ import annotations

import pytest
import torch

from triune.core.errors import UserError
from triune.recall.rows import DRAW, IGNORED, Rows, divergence, transitions
from triune.recall.tasks import TASKS


def drawn(name: str, rows: int = 64, length: int | None = None, pairs: int | None = None) -> Rows:
    task = TASKS[name]
    length, count = task.check(length or task.length, pairs)
    return DRAW[name](rows, length, count, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TASKS)
def test_rows_have_their_shape_and_come_again(name: str) -> None:
    first, again = drawn(name), drawn(name)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.targets, again.targets)
    assert first.tokens.shape == first.targets.shape == (64, TASKS[name].length)
    assert int(first.tokens.min()) >= 0 and int(first.tokens.max()) < TASKS[name].vocab
    asked = first.targets[first.targets != IGNORED]
    assert len(asked) and int(asked.min()) >= 0 and int(asked.max()) < TASKS[name].vocab


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (64, 16), (33, 8), (128, 8)])
def test_mqar_asks_each_key_once_after_all_pairs(length: int, pairs: int) -> None:
    rows = drawn("mqar", length=length, pairs=pairs)
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist()):
        held = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]))
        asked = [place for place, target in enumerate(targets) if target != IGNORED]
        assert len(held) == len(set(held.values())) == len(asked) == pairs
        assert min(asked) >= 2 * pairs and all(place % 2 == 0 for place in asked)
        assert {tokens[place]: targets[place] for place in asked} == held
        assert all(1 <= key < 128 for key in held) and all(value >= 128 for value in held.values())


def test_questions_of_mqar_come_soon_after_the_pairs_more_often() -> None:
    places = (drawn("mqar", rows=2000, pairs=1).targets != IGNORED).double().mean(0)[2::2]
    likely = torch.arange(1, 32, dtype=torch.float64) ** -0.99
    assert torch.allclose(places, likely / likely.sum(), atol=0.03)


def test_slices_of_mqar_measure_the_distance_to_the_pair() -> None:
    rows = drawn("mqar")
    assert rows.slices is not None
    for tokens, targets, slices in zip(rows.tokens.tolist(), rows.targets.tolist(), rows.slices.tolist()):
        for place, target in enumerate(targets):
            if target != IGNORED:
                assert slices[place] == (place - tokens[:16:2].index(tokens[place]) * 2) * 4 // 64


def test_induction_repeats_a_segment() -> None:
    rows = drawn("induction")
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist()):
        period = targets.index(next(t for t in targets if t != IGNORED)) - 1
        assert tokens[0] == 0 and 8 <= period <= 32
        for place in range(period + 1, 64):
            assert targets[place] == tokens[place + 1 - period]
            assert place == 63 or targets[place] == tokens[place + 1]


def test_copy_asks_for_the_scattered_tokens_in_their_order() -> None:
    rows = drawn("copy", pairs=5)
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist()):
        assert [t for t in tokens[:59] if t] == targets[59:] and tokens[59:] == [1] * 5
        assert set(targets[:59]) == {IGNORED}


def test_needle_asks_at_the_end_for_pairs_of_the_first_half() -> None:
    rows = drawn("needle")
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist()):
        for place in range(508, 512):
            where = tokens.index(tokens[place])
            assert where < 256 and tokens[where + 1] == targets[place]
            assert tokens[:508].count(tokens[place]) == 1


def test_the_rows_of_needle_grow_in_training() -> None:
    task = TASKS["needle"]
    sizes = [task.batch_at(512, 4, step, 800) for step in (0, 399, 400, 500, 600, 700, 799)]
    assert sizes == [(64, 32), (64, 32), (64, 64), (64, 128), (32, 256), (16, 512), (16, 512)]
    assert task.batch_at(600, 40, 0, 800)[1] == 160 and task.batch_at(600, 40, 799, 800) == (16, 600)
    assert TASKS["mqar"].batch_at(64, 8, 0, 100) == (64, 64)


def test_the_oracles_of_lag_are_bayes_rule() -> None:
    rows, matrix = drawn("lag", rows=200), transitions()
    assert rows.truth is not None and torch.allclose(matrix.sum(1), torch.ones(5, dtype=torch.float64))
    short = DRAW["lag"](4000, 8, 0, torch.Generator().manual_seed(3))
    # Over many rows nothing is nearer to the truth than the posterior, and knowing more is nearer than knowing less.
    assert 0 < short.oracles["bayes"] < short.oracles["maximum_likelihood"] < short.oracles["mixture"]
    assert rows.oracles["bayes"] < 1e-3 and 0.3 < rows.oracles["mixture"] < 0.4
    assert divergence(rows.truth, rows.truth) == pytest.approx(0, abs=1e-12)


def test_divergence_is_that_of_the_definition() -> None:
    truth, said = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    first = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert divergence(truth, said) == pytest.approx(float(first + torch.tensor(2.0).log()) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "length", "pairs", "message"),
    [
        ("mqar", 31, 8, "length is 31, but must be at least 32 for 8 pairs"),
        ("mqar", 64, 0, "pairs is 0, but must be from 1 to 127"),
        ("needle", 512, 64, "pairs is 64, but must be from 1 to 63"),
        ("lag", 64, 4, "pairs is 4, but the task lag has none"),
        ("induction", 8, None, "length is 8, but must be at least 16 in the task induction"),
    ],
)
def test_sizes_that_do_not_go_together(name: str, length: int, pairs: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TASKS[name].check(length, pairs)
