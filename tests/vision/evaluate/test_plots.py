"""Pictures are written whole, for two classes as for a hundred, and show what they claim."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from triune.core.evaluate.pictures import draw
from triune.vision.evaluate import plots as pictures
from triune.vision.evaluate.metrics import class_head


def pixels(path) -> np.ndarray:
    """RGB of a picture that has an area and is not blank."""
    array = np.asarray(Image.open(path).convert("RGB"))
    assert min(array.shape[:2]) > 200
    assert array.std() > 1
    return array


@pytest.fixture(params=[2, 100])
def judged(request):
    classes = request.param
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (400,), generator=generator)
    logits = 2 * torch.randn(400, classes, generator=generator)
    logits[torch.arange(400), labels] += 5
    # Names may hold what matplotlib takes for a formula, be long, or lack glyphs.
    names = ["$x_1", "a name that is much longer than any column", *(f"七{i}" for i in range(classes - 2))]
    return logits, labels, names


@pytest.mark.filterwarnings("error")
def test_judgement_pictures(judged, tmp_path):
    logits, labels, names = judged
    drawn = draw(class_head(names).judge(logits, labels, resamples=100), tmp_path, unit="images")
    assert [path.name for path in drawn] == ["confusion.png", "reliability.png", "classes.png"]
    worst = pictures.confident_mistakes(logits, labels, 5)
    images = [np.full((8, 8), 0.5), np.zeros((60, 900, 3), np.uint8), Image.new("L", (3, 3)), *[np.zeros((4, 4))] * 2]
    pictures.mistakes(images[: len(worst)], logits[worst], labels[worst], names, tmp_path / "mistakes.png")
    for name in ("confusion.png", "reliability.png", "classes.png", "mistakes.png"):
        pixels(tmp_path / name)
    assert not list(tmp_path.rglob("*.part*"))


def test_no_mistake_is_drawn_too(tmp_path):
    none = torch.zeros(0, 2)
    pictures.mistakes([], none, torch.zeros(0, dtype=torch.long), ["a", "b"], tmp_path / "none.png")
    assert pixels(tmp_path / "none.png").shape[1] > 500


def test_mistakes_come_by_confidence():
    logits = torch.tensor([[9.0, 0], [1, 0], [5, 0], [0, 3], [7, 0]])
    labels = torch.tensor([0, 1, 1, 0, -100])
    assert pictures.confident_mistakes(logits, labels) == [2, 3, 1]
    assert pictures.confident_mistakes(logits, labels, 1) == [2]


def test_learning_curves(tmp_path):
    metrics = tmp_path / "metrics.csv"
    columns = ["step", "loss", "val_loss", "val_top1", "val_top5"]

    def write(rows: list[dict]) -> None:
        with metrics.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write([{"step": 1, "loss": 2.0}])
    assert not pictures.learning_curves(metrics, tmp_path / "curves.png")
    write([{"step": s, "loss": 2 / s} for s in range(1, 20)])
    assert pictures.learning_curves(metrics, tmp_path / "curves.png")
    narrow = pixels(tmp_path / "curves.png").shape[1]
    write([{"step": s, "loss": 2 / s, "val_loss": 2.1 / s, "val_top1": 1 - 1 / s, "val_top5": 1} for s in range(2, 20)])
    assert pictures.learning_curves(metrics, tmp_path / "curves.png", "run", {"majority class": 0.1})
    assert pixels(tmp_path / "curves.png").shape[1] > narrow
    assert pictures.read_column(metrics, "val_top1")[0] == (2, 0.5)
    assert pictures.read_column(metrics, "no_such") == []


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "100.0%"), (0.9999, ">99.9%"), (0.0001, "<0.1%"), (0.5, "50%"), (0.0312, "3.1%"), (0.0, "0.0%")],
)
def test_probabilities_never_pretend_certainty(p, text):
    assert pictures.percent(p) == text


def test_one_validation_can_be_seen(tmp_path):
    assert pictures._dot([(10, 0.4)]) > pictures._dot([(10, 0.4), (20, 0.5)])


def test_a_probability_behind_a_full_line_has_a_line_of_its_own():
    assert pictures._with_share("cat", 0.5) == "cat (50%)"
    assert pictures._with_share("a long line of a name\nand its end", 0.5) == "a long line of a name\nand its end (50%)"
    assert pictures._with_share("short\nthe end of a long name", 0.25) == "short\nthe end of a long name\n(25%)"
