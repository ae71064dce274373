"""Figures of resamples are those of scikit-learn on the rows drawn; intervals cover, and keep groups whole."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from triune.core.evaluate.bootstrap import Resamples, percentiles, ranking, spearman
from triune.core.heads.registry import make_head, prepare


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6))
def test_ranks_under_weights_are_those_of_repeated_rows(seed, count, values):
    rng = np.random.default_rng(seed)
    scores, other = rng.integers(0, values, (2, count)).astype(float)  # with ties
    positive = rng.random(count) < 0.5
    weights = next(Resamples(count, seed=seed).chunks(3, count))
    averages, areas = ranking(scores, positive, weights)
    correlations = spearman(scores, other, weights)
    for w, average, area, correlation in zip(weights, averages, areas, correlations):
        rows = np.repeat(np.arange(count), w.astype(int))
        if positive[rows].any() and not positive[rows].all():
            assert area == pytest.approx(roc_auc_score(positive[rows], scores[rows]), abs=1e-12)
            assert average == pytest.approx(average_precision_score(positive[rows], scores[rows]), abs=1e-12)
        else:
            assert np.isnan(area) and np.isnan(average)
        if np.ptp(scores[rows]) and np.ptp(other[rows]):
            assert correlation == pytest.approx(spearmanr(scores[rows], other[rows])[0], abs=1e-10)


def rows_of(resamples: Resamples, count: int) -> list[np.ndarray]:
    """The rows of each resample."""
    unit = np.arange(count) if resamples.unit is None else resamples.unit
    weights = np.concatenate(list(resamples.chunks(resamples.number, count)))
    return [np.repeat(np.arange(count), w[unit].astype(int)) for w in weights]


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_the_rows_drawn(grouped):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 60)
    groups = rng.integers(0, 12, 60) if grouped else None
    logits = torch.from_numpy(rng.normal(size=(60, 3)) + np.eye(3)[labels])
    head = make_head(prepare("classify", SimpleNamespace(names=["a", "b", "c"], values=labels)), 2)
    judged = head.judge(logits, labels, groups=groups, resamples=30)
    predicted, p = logits.argmax(1).numpy(), logits.softmax(1).numpy()
    written = (logits / head.calibrate(logits, labels)["temperature"]).softmax(1).numpy()  # what ranks examples
    drawn = rows_of(Resamples(60, groups, 30), 60)
    figures = {
        "accuracy": [(labels == predicted)[r].mean() for r in drawn],
        "macro_f1": [f1_score(labels[r], predicted[r], labels=np.unique(labels[r]), average="macro") for r in drawn],
        "auroc": [np.mean([roc_auc_score(labels[r] == c, written[r, c]) for c in range(3)]) for r in drawn],
        "nll": [-np.log(p[r, labels[r]]).mean() for r in drawn],
    }
    for name, values in figures.items():
        assert judged.intervals[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9), name
    assert "ece" not in judged.intervals


def test_the_intervals_of_several_labels_ranks_and_numbers_are_those_of_the_rows_drawn():
    rng = np.random.default_rng(2)
    drawn = rows_of(Resamples(50, None, 30), 50)

    def check(head, outputs, targets, names):
        intervals = head.judge(outputs, targets, resamples=30).intervals
        each = [head.judge(outputs[rows], targets[rows], {}, resamples=0).metrics for rows in drawn]
        for name in names:
            assert intervals[name] == pytest.approx(np.percentile([m[name] for m in each], [2.5, 97.5]), abs=1e-9), name

    truth = (rng.random((50, 3)) < 0.4).astype(float)
    truth[:20, 1] = np.nan
    outputs = torch.from_numpy(rng.normal(size=(50, 3)) + np.nan_to_num(truth))
    head = make_head(prepare("multilabel", SimpleNamespace(names=["a", "b", "c"], values=truth)), 2)
    check(head, outputs, truth, ["macro_f1", "micro_f1", "exact", "auroc", "average_precision", "nll", "brier"])
    ranks = rng.integers(0, 4, 50)
    head = make_head(prepare("ordinal", SimpleNamespace(names=["a", "b", "c", "d"], values=ranks)), 1)
    outputs = head(torch.zeros(50, 1)).detach() + torch.from_numpy(rng.normal(size=(50, 1)) + ranks[:, None])
    check(head, outputs, ranks, ["accuracy", "rank_mae", "quadratic_kappa", "spearman", "nll"])
    true = rng.normal(size=50)
    head = make_head(prepare("regress", SimpleNamespace(names=["x"], values=true), {"distribution": "gaussian"}), 2)
    outputs = torch.from_numpy(rng.normal(size=(50, 2)) + true[:, None])
    check(head, outputs, true, ["mae", "rmse", "scaled_mae", "r2", "spearman", "nll", "coverage", "width"])


def test_a_mean_is_covered_as_often_as_said():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        values = rng.normal(size=60)
        sums = Resamples(60, most=300, seed=seed).of_sums(values[:, None], lambda s: {"mean": s[:, 0] / 60})
        low, high = percentiles(sums)["mean"]
        inside += low <= 0 <= high
    assert 0.89 <= inside / 300 <= 0.98


def test_work_is_bounded():
    assert Resamples(10_000).number == 1000
    assert Resamples(1_000_000).number == 100
    assert Resamples(10_000_000).of_ranks(lambda weights: {}, 100) == {}
    assert percentiles({"never": np.array([np.nan, np.nan, 1.0])}) == {}


def test_resamples_that_are_all_the_same_are_no_interval():
    """Without a mistake among 24 examples there is none in any resample, which does not say that there is none."""
    assert percentiles({"accuracy": np.ones(1000), "loss": np.array([0.1, 0.2] * 500)}) == {"loss": (0.1, 0.2)}
