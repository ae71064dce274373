"""Tables and pictures of judgements: whole files, for few and many classes, and what they say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from triune.core.evaluate.confusion import _colours, confusion_matrix
from triune.core.evaluate.judgement import Confusion, Judgement, aligned, shown
from triune.core.evaluate.pictures import draw
from triune.core.heads.registry import make_head, prepare

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 24, 300)
CASES = {
    "classify": (["$x_1", "七", *(f"name {i}" for i in range(22))], CLASSES, {}, "confusion reliability classes"),
    "multilabel": (["a", "b"], (RNG.random((90, 2)) < 0.5) * 1.0, {}, "reliability classes"),
    "ordinal": (["low", "middle", "high"], CLASSES % 3, {}, "confusion reliability"),
    "regress": (["x", "$y"], RNG.normal(size=(90, 2)), {"distribution": "quantile"}, "predicted"),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_judgement_is_drawn(kind, tmp_path):
    names, values, options, expected = CASES[kind]
    head = make_head(prepare(kind, SimpleNamespace(names=names, values=values), options), 3)
    outputs = head(torch.zeros(len(values), 3)).detach() + torch.from_numpy(RNG.normal(size=(len(values), 1))).float()
    judged = head.judge(outputs, values, resamples=20)
    pictures = draw(judged, tmp_path, "val_", "rows")
    assert [path.stem for path in pictures] == [f"val_{name}" for name in expected.split()]
    for path in pictures:
        array = np.asarray(Image.open(path).convert("RGB"))
        assert min(array.shape[:2]) > 200 and array.std() > 1
    assert sorted(tmp_path.iterdir()) == sorted(pictures)
    assert head.judge(outputs, values, resamples=0).table()
    table = judged.class_table(20).splitlines()
    assert len(table) == min(len(names), 20) + 1 + (len(names) > 20)


def test_a_single_example_is_judged_and_drawn(tmp_path):
    for kind, (names, values, options, _) in CASES.items():
        head = make_head(prepare(kind, SimpleNamespace(names=names, values=values), options), 3)
        judged = head.judge(head(torch.randn(1, 3)).detach(), values[:1], resamples=20)
        assert judged.count == 1
        assert all(np.isfinite(value) for value in judged.metrics.values())
        assert all(np.isfinite(value) for value in judged.baseline.values())
    assert draw(judged, tmp_path)


def test_right_is_blue_and_wrong_is_red():
    colours = _colours(np.array([[8, 2], [0, 5]]))
    blue, red = colours[0, 0], colours[0, 1]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert colours[1, 0].tolist() == [1, 1, 1]


def test_confusions_come_by_number(tmp_path):
    judged = Confusion(("a", "b", "c"), np.array([[5, 1, 0], [3, 9, 0], [0, 0, 0]]))
    assert judged.mistakes() == [("b", "a", 3), ("a", "b", 1)]
    assert judged.recalls == [5 / 6, 9 / 12, None]
    assert judged.accuracy == 14 / 18
    confusion_matrix(judged, tmp_path / "confusion.png")


def test_tables_are_aligned_and_figures_readable():
    lines = aligned([("", "value"), ("七つ", "1.0000"), ("abc", "2")])
    assert lines == ["       value", "七つ  1.0000", "abc        2"]
    assert [shown(v) for v in (None, 1e-17, 0.5, 12345, 1234.5, 2e-5)] == [
        "—",
        "0.0000",
        "0.5000",
        "12,345",
        "1234",
        "2e-05",
    ]
    judged = Judgement("toy", 3, {"nll": 0.5, "r2": 0.1}, {"nll": (0.4, 0.6)}, {"nll": 0.7}, notes=["A note."])
    assert (
        judged.table().splitlines()
        == [
            "      value      95 % interval  constant answer",
            "nll  0.5000  0.4000 to 0.6000           0.7000",
            "r2   0.1000",
            "A note.",
        ]
        or judged.table()
    )
