"""Sides of a split: nothing leaks, parts are kept, rows stay where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.labels.split import Split, hashes, mixed, split, strata


def side_of(sides: Split, count: int) -> list[str]:
    found = [""] * count
    for name, rows in sides.items():
        for row in rows:
            assert found[row] == ""
            found[row] = name
    assert "" not in found
    return found


def _joined(groups: list[object], inputs: list[str]) -> int:
    """How many parts there are when rows with one group or one input are joined, counted slowly."""
    parts = [{i} for i in range(len(groups))]
    for i in range(len(groups)):
        for j in range(i):
            alike = inputs[i] == inputs[j] or (groups[i] is not None and str(groups[i]) == str(groups[j]))
            if alike and parts[i] is not parts[j]:
                parts[i] |= parts[j]
                for k in parts[i]:
                    parts[k] = parts[i]
    return len({id(part) for part in parts})


cells = st.one_of(st.none(), st.sampled_from("abcdefgh"), st.integers(0, 5))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(cells, st.sampled_from("stuvwxyz"), st.integers(0, 3)), min_size=4, max_size=60),
    seed=st.integers(0, 3),
    test=st.sampled_from([0.0, 0.2]),
)
def test_groups_and_copies_never_leak(rows: list[tuple[object, str, int]], seed: int, test: float) -> None:
    groups, inputs = [row[0] for row in rows], [row[1] for row in rows]
    labels = np.array([row[2] for row in rows])
    try:
        sides = split(
            len(rows), groups=groups, inputs=inputs, labels=labels, val_fraction=0.3, test_fraction=test, seed=seed
        )
    except UserError:
        assert _joined(groups, inputs) < (3 if test else 2)
        return
    side = side_of(sides, len(rows))
    assert all(len(sides[name]) for name in (("train", "val", "test") if test else ("train", "val")))
    for keys in (groups, inputs):
        seen: dict[str, str] = {}
        for key, name in zip(keys, side, strict=True):
            if key is not None:
                assert seen.setdefault(str(key), name) == name


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(40)), st.integers(0, 5))
def test_the_order_of_rows_changes_nothing(order: list[int], seed: int) -> None:
    inputs = [f"input {i // 2}" for i in range(40)]
    labels = np.arange(40) // 2 % 3
    whole = side_of(split(40, inputs=inputs, labels=labels, val_fraction=0.2, seed=seed), 40)
    again = split(40, inputs=[inputs[i] for i in order], labels=labels[order], val_fraction=0.2, seed=seed)
    moved = side_of(again, 40)
    assert [whole[i] for i in order] == moved


@pytest.mark.parametrize("seed", range(5))
def test_rows_stay_on_their_side_when_others_come(seed: int) -> None:
    inputs = [f"sequence {i}" for i in range(6000)]
    before = side_of(split(5000, inputs=inputs[:5000], val_fraction=0.2, test_fraction=0.2, seed=seed), 5000)
    after = side_of(split(6000, inputs=inputs, val_fraction=0.2, test_fraction=0.2, seed=seed), 6000)
    assert before == after[:5000]


def test_few_rows_move_where_there_are_few() -> None:
    for count in range(10, 60):
        inputs = [f"sequence {i}" for i in range(count + 1)]
        before = side_of(split(count, inputs=inputs[:-1], val_fraction=0.2), count)
        after = side_of(split(count + 1, inputs=inputs, val_fraction=0.2), count + 1)
        assert sum(a != b for a, b in zip(before, after)) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 400), min_size=1, max_size=6), st.integers(0, 9))
def test_classes_keep_their_parts(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if len(labels) < 10:
        return
    sides = split(len(labels), labels=labels, val_fraction=0.2, test_fraction=0.1, seed=seed)
    for name, part in (("val", 0.2), ("test", 0.1)):
        counts = np.bincount(labels[sides[name]], minlength=len(sizes))
        # A tenth of the part, the whole row that cannot be cut, and one more for the sum over the classes.
        assert (np.abs(counts - part * np.array(sizes)) <= 0.1 * part * np.array(sizes) + 2).all()
        assert abs(len(sides[name]) - part * len(labels)) <= 0.1 * part * len(labels) + 1
    assert (np.bincount(labels[sides["train"]], minlength=len(sizes)) > 0).all()


def test_many_small_classes_still_fill_the_sides() -> None:
    labels = np.arange(3000) // 3
    sides = split(3000, labels=labels, val_fraction=0.1)
    assert 270 <= len(sides["val"]) <= 330
    assert set(labels[sides["train"]]) == set(labels)


def test_groups_of_unequal_size_come_near_the_part_asked_for() -> None:
    groups = ["big"] * 500 + [f"g{i}" for i in range(50) for _ in range(10)]
    for seed in range(10):
        sides = split(1000, groups=groups, val_fraction=0.1, seed=seed)
        assert 90 <= len(sides["val"]) <= 110


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (split(1000, seed=seed)["val"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 40


def test_a_hash_is_of_the_content() -> None:
    assert np.array_equal(hashes(["1", "a"]), hashes([1, "a"]))
    assert hashes(["a"])[0] != hashes(["b"])[0]
    values = mixed(np.arange(10_000, dtype=np.uint64), 0) / 2.0**64
    assert abs(values.mean() - 0.5) < 0.01 and abs((values < 0.1).mean() - 0.1) < 0.01


def test_a_column_says_the_sides() -> None:
    sides = split(6, column=["Train", "train ", "VALID", "test", "training", "dev"])
    assert [sides[name].tolist() for name in ("train", "val", "test")] == [[0, 1, 4], [2, 5], [3]]


def test_a_column_without_validation_gives_up_a_part_of_training() -> None:
    column = ["train"] * 90 + ["test"] * 10
    groups = [str(i // 9) for i in range(100)]
    sides = split(100, column=column, groups=groups, val_fraction=0.2)
    assert sides["test"].tolist() == list(range(90, 100))
    assert {groups[i] for i in sides["val"]}.isdisjoint(groups[i] for i in sides["train"])
    assert any("held out" in note for note in sides.notes)


def test_a_column_that_leaks_is_said() -> None:
    sides = split(4, column=["train", "val", "train", "val"], inputs=["a", "a", "b", "c"])
    assert any("1 inputs are on two sides" in note for note in sides.notes)


def test_groups_meet_by_their_text_and_those_that_look_alike_are_said() -> None:
    sides = split(40, groups=["P1", " P1", "e\u0301", "\u00e9"] * 5 + [f"q{i}" for i in range(20)], val_fraction=0.4)
    side = {row: name for name, rows in sides.items() for row in rows.tolist()}
    assert len({side[row] for row in range(20) if row % 4 < 2}) == 1
    assert len({side[row] for row in range(20) if row % 4 > 1}) == 1
    assert not any("several ways" in note for note in sides.notes)
    notes = split(6, groups=["P1", "p1", "p 1", "p2", "p3", "p4"], val_fraction=0.4).notes
    assert any("1 group is written in several ways ('P1', 'p 1', 'p1')" in note for note in notes)


def test_rows_without_a_group_are_counted() -> None:
    sides = split(6, groups=["a", None, "b", " ", "b", "c"], val_fraction=0.4)
    assert any("2 rows have no group" in note for note in sides.notes)
    assert not any("no group" in note for note in split(4, groups=list("abcd"), val_fraction=0.4).notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 3, "column": ["train", "tset", "val"]}, "'tset' in row 2.*did you mean 'test'"),
        ({"count": 3, "column": ["train", None, "val"]}, "nothing in row 2"),
        ({"count": 2, "column": ["train", "train"]}, "says train in all rows"),
        ({"count": 2, "column": ["val", "test"]}, "no row for training"),
        ({"count": 1}, "1 row that can be apart"),
        ({"count": 3, "groups": ["a", "a", "a"]}, "1 group or input that can be apart"),
        ({"count": 3, "inputs": ["a", "a", "a"]}, "1 group or input that can be apart"),
        ({"count": 0}, "No row"),
        ({"count": 9, "val_fraction": 0.6, "test_fraction": 0.5}, "less than 1 together"),
        ({"count": 9, "val_fraction": -0.1}, "at least 0"),
    ],
)
def test_what_cannot_be_split_is_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        split(**options)


def test_strata_of_kinds() -> None:
    labels = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], np.float32)
    assert strata("multilabel", labels).tolist() == [1, 0, 0, -1]  # type: ignore[union-attr]
    assert strata("classify", np.array([2, -100])).tolist() == [2, -100]  # type: ignore[union-attr]
    assert strata("regress", labels) is None
