"""Names meet classes by key: the option `labels`, mirrored classes, and models that meet other folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triune.core.errors import UserError
from triune.core.heads.base import HeadSpec
from triune.vision.data.collection import Collection, Images, Paths
from triune.vision.data.find import Where, find
from triune.vision.data.mirrors import has_sides, mirrors, mirrors_all
from triune.vision.data.names import given, join, natural
from triune.vision.data.trained import Trained
from triune.vision.preprocessing import Preprocessing

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = sorted(str(i) for i in range(11))  # as folders come: 0, 1, 10, 2, …


def test_a_list_belongs_to_numbers_by_value() -> None:
    names = dict(zip(NUMBERS, given(WORDS, NUMBERS, False), strict=True))
    assert names["2"] == "two"
    assert names["10"] == "ten"
    padded = [f"{i:02d}" for i in range(11)]
    assert given(WORDS, padded, False) == WORDS


def test_a_mapping_names_classes_by_key() -> None:
    assert given({"b": "bird", "a": "ant"}, ["a", "b", "c"], False) == ["ant", "bird", "c"]
    assert given({2: "two", 10: "ten"}, ["10", "2"], False) == ["ten", "two"], "YAML's keys are numbers"
    assert given({2: "two"}, ["02", "10"], False) == ["two", "10"]
    with pytest.raises(UserError, match=r"names 'd'.*classes of the data are a, b, c"):
        given({"d": "x"}, ["a", "b", "c"], False)


def test_the_names_themselves_in_any_order_change_nothing() -> None:
    assert given(["dog", "cat"], ["cat", "dog"], False) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (["a"], ["x", "y"], "names 1 classes, but the data have 2"),
        (["a", "a"], ["x", "y"], "two classes the name 'a'"),
        (["one", "ten", "two"], ["class1", "class10", "class2"], "give a mapping"),
        (["b", "z", "y"], ["a", "b", "c"], "the name of another class"),
        ({"a": "same", "b": "same"}, ["a", "b"], "two classes the name 'same'"),
    ],
)
def test_what_can_be_meant_in_two_ways_is_refused(labels: Any, classes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        given(labels, classes, False)


def test_numbered_data_keep_their_order() -> None:
    assert given(["Hund", "Katze"], ["dog", "cat"], True) == ["Hund", "Katze"]


def test_the_option_reaches_the_images(tmp_path: Path, pictures: Any) -> None:
    root = pictures.fill(tmp_path, {str(i): 1 for i in range(11)})
    found = find(Where(str(root), labels=WORDS), tmp_path)
    for name, label in zip(found.sides["train"].names, found.sides["train"].labels, strict=True):
        assert found.classes[label] == WORDS[int(Path(name).parent.name)]


def test_natural_order() -> None:
    assert sorted(["b", "a10", "a2", "10", "9"], key=natural) == ["9", "10", "a2", "a10", "b"]


def test_join_by_unicode_text() -> None:
    assert join(["e\u0301", "b"], ["b", "\u00e9"], "x").tolist() == [1, 0]
    with pytest.raises(UserError, match="equal as Unicode"):
        join([], ["e\u0301", "\u00e9"], "x")
    with pytest.raises(UserError, match=r"has 'Cat' that training lacks, did you mean 'cat'|has 'Cat'"):
        join(["Cat"], ["cat", "dog"], "x")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (list("0123456789"), False), (WORDS, False), (["a", "b", "d"], False), (["one", "eleven", "twenty two"], False),
        (["eins", "zwei"], False), (["digit_0", "digit_1"], False),
        (["turn left", "turn right", "stop"], False), (["\u732b", "\u72ac"], False), (["cat", "dog"], True),
        (["0_cat", "1_dog"], True), (["bright", "dark"], True), ([*"0123456789", "background"], False),
        (["TurnLeft", "TurnRight", "stop"], False), (["turnleft", "turnright"], False), (["eye_l", "eye_r"], False),
        (["upper_A", "upper_B", "lower_a"], False), (["character_1_ka", "digit_0"], False),
        (["a_small", "A_caps"], False),
        (["alpha", "beta", "gamma"], False), (["o", "ki", "su", "tsu", "na", "ha"], False), (["wing", "port"], True),
        ([*"ABC", "space", "nothing", "del"], False), (["facing east", "facing west"], False),
        (["sinistral", "dextral"], False), (["less_than", "greater_than", "plus"], False), (["links", "rechts"], False),
        (["letter opener", "mailbox"], True), (["cleft lip", "upright piano"], True), (["healthy", "ill"], True),
        (["rock", "lock", "lamp"], True), (["ccw", "cw"], False), (["\u5de6\u8f49", "\u53f3\u8f49"], False),
    ],
)  # fmt: skip
def test_which_classes_may_be_mirrored(names: list[str], expected: bool) -> None:
    assert mirrors(names) is expected


def test_targets_of_tables_and_masks_that_a_mirror_changes() -> None:
    def head(kind: str, *names: str) -> HeadSpec:
        return HeadSpec(kind, names)

    assert mirrors_all([head("regress", "age", "weight"), head("classify", "cat", "dog")])
    assert not mirrors_all([head("regress", "age"), head("regress", "steering_angle")])
    assert not mirrors_all([head("multilabel", "left lung", "right lung")])
    assert mirrors_all([head("classify", "angle grinder", "bbox")])  # names of classes, not of quantities
    assert has_sides(["background", "left_kidney", "right_kidney"])
    assert not has_sides(["0", "1", "2"])


def trained(classes: list[str] | None, labels: list[str]) -> Trained:
    return Trained(classes, False, labels, (8, 8), 3, Preprocessing())


def folder_of(names: list[str]) -> Collection:
    classes = sorted(set(names))
    return Collection(classes, {"test": Images(names, join(names, classes, ""), Paths(names))})


def test_a_training_folder_that_is_not_read_is_said(tmp_path: Path, pictures: Any) -> None:
    """Of a run with a test folder of its own, `--data.root NEW` alone does not change what is scored."""
    for name in ("old", "new", "test"):
        pictures.fill(tmp_path / name, {"a": 1, "b": 1})
    of = replace(trained(["a", "b"], ["a", "b"]), root=str(tmp_path / "old"))
    for root, said in (("old", 0), ("new", 1)):
        where = Where(str(tmp_path / root), test_root=str(tmp_path / "test"))
        notes = [note for note in of.find(where, "test", True, tmp_path).notes if "is not read" in note]
        assert len(notes) == said


def test_a_model_meets_folders_by_what_they_were_called_or_are_named() -> None:
    for names in (["10", "2", "2"], ["ten", "two", "two"]):
        found = folder_of(names)
        trained(NUMBERS, given(WORDS, NUMBERS, False)).join(found, "x")
        assert [found.classes[i] for i in found.sides["test"].labels] == ["ten", "two", "two"]
        assert len(found.classes) == 11
    with pytest.raises(UserError, match="'eleven' that training lacks"):
        trained(NUMBERS, NUMBERS).join(folder_of(["eleven"]), "x")
    with pytest.raises(UserError, match="also names that it gave to others"):
        trained(["a", "b"], ["b", "a"]).join(folder_of(["a"]), "x")


def test_what_a_checkpoint_holds_comes_back() -> None:
    known = trained(["0"], ["zero"])
    assert Trained.from_dict(known.to_dict()) == known
