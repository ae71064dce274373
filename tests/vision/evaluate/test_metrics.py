"""The core's head as the judge of image classes, against torchmetrics and hand-made examples; the baselines."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from triune.core.errors import UserError
from triune.core.evaluate.judgement import Judgement
from triune.vision.evaluate.baselines import affordable, logistic_regression, majority
from triune.vision.evaluate.metrics import by_class, class_head, interval, of_epoch, summary


def made(classes: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels, [f"c{i}" for i in range(classes)]


def judge(logits: torch.Tensor, labels: torch.Tensor, names: list[str]) -> Judgement:
    return class_head(names).judge(logits, labels, resamples=100)


@given(classes=st.integers(2, 12), count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_figures_equal_other_implementations(classes, count, seed):
    logits, labels, names = made(classes, count, seed)
    judged, p = judge(logits, labels, names), logits.double().softmax(dim=1)
    found = summary(judged, "val")
    assert found["val_top1"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    expected = multiclass_accuracy(p, labels, classes, top_k=min(5, classes), average="micro")
    assert found["val_top5"] == pytest.approx(float(expected), abs=1e-6)
    assert found["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double(), labels)))
    brier = ((p - torch.eye(classes, dtype=torch.float64)[labels]) ** 2).sum(1).mean()
    assert found["brier"] == pytest.approx(float(brier))
    expected = multiclass_calibration_error(p, labels, classes, n_bins=15)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert judged.confusion is not None
    assert int(judged.confusion.counts.sum()) == found["val_images"] == count
    epoch = of_epoch(class_head(names), logits, labels)
    assert epoch == {"top1": found["val_top1"], "top5": found["val_top5"], "ece": found["ece"]}


def test_a_constant_answer_is_not_right_for_all_that_it_ties():
    labels = torch.arange(20)
    assert of_epoch(class_head([f"c{i}" for i in range(20)]), torch.zeros(20, 20), labels)["top5"] == 0.25


def test_certainty_shares_the_last_bin():
    # Confidences of 1.0 (wrong) and 0.99 (right) fall into one bin; torchmetrics gives 1.0 a bin of its own.
    logits = torch.tensor([[1000.0, 0.0], [4.6, 0.0]])
    found = judge(logits, torch.tensor([1, 0]), ["a", "b"])
    assert found.panels[0].bins.counts.tolist() == [0] * 14 + [2]
    confidence = (1 + 1 / (1 + math.exp(-4.6))) / 2
    assert found.metrics["ece"] == pytest.approx(confidence - 0.5, abs=1e-6)


def test_adaptive_error_sees_what_equal_widths_average_away():
    # All confidences in one bin of equal width: the sure half is wrong, the less sure one right.
    p = torch.cat([torch.linspace(0.94, 0.96, 60), torch.linspace(0.97, 0.99, 60)]).double()
    logits = torch.stack([p.log(), (1 - p).log()], dim=1)
    labels = torch.cat([torch.zeros(60), torch.ones(60)]).long()
    found = summary(judge(logits, labels, ["a", "b"]), "val")
    assert found["ece"] == pytest.approx(0.465, abs=1e-3)
    assert 0.51 < found["adaptive_ece"] < 0.515  # 0.05 and 0.98, but for the bin in the middle


def test_ignored_labels_count_for_nothing():
    logits, labels, names = made(4, 50, 0)
    mixed = torch.cat([logits, torch.full((5, 4), torch.nan)]), torch.cat([labels, torch.full((5,), -100)])
    assert summary(judge(*mixed, names), "val") == summary(judge(logits, labels, names), "val")


def test_per_class_and_most_frequent_mistakes():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1, 1, 0])]
    found = judge(logits, torch.tensor([0, 0, 0, 1, 0, 1]), ["cat", "dog", "emu"])
    assert by_class(found)["per_class"] == {"cat": 0.5, "dog": 0.5, "emu": None}
    assert summary(found, "test")["test_balanced"] == 0.5
    assert found.confusion is not None
    assert found.confusion.mistakes() == [("cat", "dog", 2), ("dog", "cat", 1)]


def test_what_a_run_keeps_has_intervals_under_its_own_names():
    logits, labels, names = made(7, 300, 3)
    judged = judge(logits, labels, names)
    kept = by_class(judged)["judged"]
    low, high = kept["intervals"]["top1"]
    assert low < kept["metrics"]["top1"] == summary(judged, "val")["val_top1"] < high
    assert {"top5", "balanced", "nll", "brier"} <= set(kept["intervals"]) and "accuracy" not in kept["metrics"]
    assert "nll" in kept["baseline"] and not {"top1", "accuracy"} & set(kept["baseline"])
    assert interval(judged) == [f"The accuracy lies between {low:.1%} and {high:.1%} (95 % of resamples)."]


def test_classes_of_one_name_are_told_apart():
    found = judge(torch.eye(3), torch.arange(3), ["crane", "emu", "crane"])
    assert by_class(found)["per_class"] == {"crane (0)": 1.0, "emu": 1.0, "crane (2)": 1.0}


@pytest.mark.parametrize(
    ("logits", "labels", "names", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(2), "ab", "(3, 2)"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), "ab", "label is 2"),
        (torch.zeros(3, 2), torch.full((3,), -100), "ab", "nothing to judge"),
        (torch.full((3, 2), torch.nan), torch.zeros(3), "ab", "3 of 3 examples are not finite"),
    ],
)
def test_mistakes_are_named(logits, labels, names, words):
    with pytest.raises(UserError) as caught:
        judge(logits, labels, list(names))
    assert words in str(caught.value)


def test_baselines_on_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(digits.images)[order][:, None], torch.tensor(digits.target)[order]
    found = logistic_regression(images[:1348], labels[:1348], images[1348:], labels[1348:], 10)
    assert found.top1 is not None
    assert 0.93 < found.top1 < 0.99
    assert "8 x 8" in found.note
    common = majority(torch.tensor([1, 1, 0, -100, -100, -100]), torch.tensor([1, 0, 0, 0, -100]), ["a", "b"])
    assert common.top1 == 0.25
    assert "'b'" in str(common)


def test_costly_baselines_shrink_then_give_up():
    assert affordable(torch.empty(4000, 3, 224, 112), 10) == (24, 12)
    skipped = logistic_regression(
        torch.zeros(4000, 3, 8, 8), torch.arange(4000), torch.zeros(1, 3, 8, 8), torch.zeros(1), 1000
    )
    assert skipped.top1 is None
    assert "1000 classes" in str(skipped)


def test_a_head_that_is_made_within_a_training_draws_no_numbers() -> None:
    """A resumed training makes it at another step, and its dropout would be another from there on."""
    before = torch.get_rng_state()
    class_head(["a", "b", "c"], [3, 4, 5], label_smoothing=0.1)
    assert torch.equal(torch.get_rng_state(), before)
