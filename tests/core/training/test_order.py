"""Orders of training: nothing twice, nothing left out, and the same batches on any number of processes and workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.training import permutation as orders
from triune.core.training.by_length import PooledByLength
from triune.core.training.data import Batches, ResumableData, Shuffled
from triune.core.training.permutation import Feistel, permutation
from triune.text.data.windows import ShuffledWindows
from triune.vision.data.loader import Shuffled as ShuffledImages


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_feistel_visits_each_place_once(count: int, seed: int) -> None:
    order = Feistel(count, np.random.default_rng(seed))[np.arange(count)]
    assert np.array_equal(np.sort(order), np.arange(count))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2**40, 2**62 - 1), seed=st.integers(0, 100), start=st.integers(0, 2**39))
def test_feistel_of_any_size_stays_within_and_never_repeats(count: int, seed: int, start: int) -> None:
    found = Feistel(count, np.random.default_rng(seed))[np.arange(start, start + 500)]
    assert found.min() >= 0 and found.max() < count and len(set(found.tolist())) == 500


def test_feistel_looks_random() -> None:
    """100,000 of a million places: evenly spread (chi-squared), neighbours and other keys unrelated."""
    order = Feistel(10**6, np.random.default_rng(1))[np.arange(100_000)]
    counts = np.bincount(order // 10_000, minlength=100)
    assert 50 < ((counts - 1000) ** 2 / 1000).sum() < 160  # 99 degrees of freedom: mean 99, deviation 14
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    other = Feistel(10**6, np.random.default_rng(2))[np.arange(100_000)]
    assert abs(np.corrcoef(order, other)[0, 1]) < 0.02


def test_short_orders_are_those_of_numpy() -> None:
    """Runs of earlier versions go on with their batches."""
    assert np.array_equal(permutation(50, np.random.default_rng(3)), np.random.default_rng(3).permutation(50))
    assert isinstance(permutation(orders.IN_MEMORY + 1, np.random.default_rng(3)), Feistel)


MAKERS: dict[str, Any] = {
    "images": lambda count, batch, rank, world, **more: ShuffledImages(count, batch, rank, world, 5, **more),
    "repeated": lambda count, batch, rank, world, **more: ShuffledImages(count, batch, rank, world, 5, 3, **more),
    "windows": lambda count, batch, rank, world, **more: ShuffledWindows(
        count * 4 + 4, 4, batch, rank, world, 5, **more
    ),
    "lengths": lambda count, batch, rank, world, **more: PooledByLength(
        np.arange(count) % 17, batch, rank, world, 5, *more.values()
    ),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_global_batches_do_not_depend_on_the_processes(name: str, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from((1, 2, 3, 4, 6)))
    whole = world * data.draw(st.integers(1, 4))
    count = data.draw(st.integers(whole, 150))
    one = MAKERS[name](count, whole, 0, 1)
    several = [MAKERS[name](count, whole // world, rank, world) for rank in range(world)]
    assert {len(order) for order in several} == {len(one)}
    for position in range(2 * len(one)):
        parts = [order.take(position) for order in several]
        assert np.array_equal(np.concatenate(parts), one.take(position))
    if name != "repeated":
        epoch = np.concatenate([one.take(position) for position in range(len(one))])
        assert len(np.unique(epoch)) == len(one) * whole  # none twice; what is left out does not fill a batch


@pytest.mark.parametrize("limit", [1, 10**6])
def test_large_orders_of_windows_and_repeats(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """What is computed place by place is what stands in an array."""
    monkeypatch.setattr(orders, "IN_MEMORY", limit)
    windows = ShuffledWindows(403, 4, 5, 0, 1, 7)
    starts = np.concatenate([windows.take(position) for position in range(len(windows))])
    assert len(np.unique(starts)) == len(starts) == 95 and len(np.unique(starts % 4)) == 1
    repeated = ShuffledImages(40, 6, 0, 1, 7, 3)
    seen = np.stack([repeated.take(position) for position in range(len(repeated))])
    assert all(np.unique(row, return_counts=True)[1].tolist() == [3, 3] for row in seen)
    assert len(np.unique(seen)) == 12


class Squares:
    def __getitem__(self, draw: Any) -> dict[str, Any]:
        return {"indices": draw.indices, "position": draw.position}


def test_workers_and_a_start_within_an_epoch_change_nothing() -> None:
    def read(workers: int, start: int, rank: int, world: int) -> list[list[int]]:
        order = Shuffled(23, 6 // world, rank, world, 1, lambda: start)
        batches = iter(Batches(Squares(), order, workers))
        return [np.asarray(next(batches)["indices"]).tolist() for _ in range(5)]

    whole = read(0, 0, 0, 1) + read(0, 5, 0, 1)
    assert read(2, 2, 0, 1) == whole[2:7]
    halves = zip(read(2, 4, 0, 2), read(0, 4, 1, 2), strict=True)
    assert [first + second for first, second in halves] == whole[4:9]


class Toy(ResumableData):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def order_settings(self) -> dict[str, Any]:
        return {"rows": 10, "batch_size": self.batch_size, "devices": 1}


SAVED = {"rows": 10, "batch_size": 6, "devices": 2}


@pytest.mark.parametrize(("world", "batch_size"), [(1, 12), (3, 4), (4, 3), (12, 1)])
def test_the_batch_of_all_processes_stays(world: int, batch_size: int) -> None:
    data = Toy(7)
    assert "so that the batches stay the same" in data.continue_with(SAVED, world)
    assert data.batch_size == batch_size


def test_processes_that_do_not_divide_the_batch() -> None:
    with pytest.raises(
        UserError, match="is 12, which 5 processes do not divide; continue this run on 1, 2, 3, 4, 6, 12"
    ):
        Toy(7).continue_with(SAVED, 5)


def test_a_batch_size_that_is_given_must_be_that_of_the_run() -> None:
    data = Toy(5)
    data.given = frozenset({"batch_size"})
    with pytest.raises(UserError, match=r"is 5 on 3 processes, 15 in all, but .* trained with 12 in all; give 4"):
        data.continue_with(SAVED, 3)
    data.batch_size = 4
    assert data.continue_with(SAVED, 3) and data.batch_size == 4


def test_other_shares_of_the_same_batch_are_the_same_data() -> None:
    data = Toy(12)
    data.load_state_dict({"settings": SAVED})
    data.check_resumed()
    data.batch_size = 6
    data.load_state_dict({"settings": SAVED})
    with pytest.raises(UserError, match="devices was 2, now 1"):
        data.check_resumed()


class Loads:
    """As much of a trainer as says which order its loader has."""

    def __init__(self, count: int) -> None:
        self.train_dataloader = Batches(Squares(), Shuffled(count, 6, 0, 1, 1))


@pytest.mark.parametrize(
    ("count", "saved", "words"),
    [
        (orders.IN_MEMORY, {}, ""),
        (orders.IN_MEMORY + 1, {}, "an earlier version of triune, which drew the order of its 4,194,305 examples"),
        (orders.IN_MEMORY + 1, {"order": orders.VERSION}, ""),
        (10, {"order": orders.VERSION + 1}, "a newer version of triune, which drew the order of its 10 examples"),
    ],
)
def test_an_order_of_another_version_is_not_taken_for_that_of_the_run(
    count: int, saved: dict[str, int], words: str
) -> None:
    data: Any = Toy(6)
    assert data.state_dict()["order"] == orders.VERSION
    data.trainer = Loads(count)
    data.load_state_dict({"settings": data.order_settings()} | saved)
    if not words:
        data.check_resumed()
        return
    with pytest.raises(UserError, match=f"^This run began with {words} in another way"):
        data.check_resumed()
