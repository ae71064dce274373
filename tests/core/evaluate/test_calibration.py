"""Calibration: what is fitted on one half is honest on the other, and conformal intervals cover."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from triune.core.evaluate.calibration import best_threshold, conformal, halves, platt
from triune.core.heads.registry import make_head, prepare


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_no_threshold_is_better(pairs):
    p, truth = np.array([score / 4 for score, _ in pairs]), np.array([yes for _, yes in pairs])
    best = best_threshold(p, truth)
    if truth.all() or not truth.any():
        assert best == 0.5
        return
    found = f1_score(truth, p >= best)
    assert all(found >= f1_score(truth, p >= other) - 1e-12 for other in np.linspace(-0.01, 0.99, 10))


def test_scale_and_shift_are_those_of_a_logistic_regression():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=4000) * 3 + 10
    truth = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * odds - 6)))
    scale, shift = platt(odds, truth)
    smoothed = np.concatenate([odds, odds])[:, None], np.repeat([1, 0], 4000)
    aims = np.where(truth, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((~truth).sum() + 2))
    fitted = LogisticRegression(C=1e12, tol=1e-10).fit(*smoothed, sample_weight=np.concatenate([aims, 1 - aims]))
    assert (scale, shift) == pytest.approx((fitted.coef_[0, 0], fitted.intercept_[0]), rel=1e-4)
    assert platt(odds[:20], truth[:20] & False) == (1.0, 0.0)
    assert platt(odds, odds < 10)[0] > 0  # the order of the examples stays, even when it is wrong


def test_labels_with_offsets_of_their_own_are_calibrated():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(4000, 3)) * 2 - [0, 1, 2]
    truth = (rng.random((4000, 3)) < 1 / (1 + np.exp(-odds))).astype(float)
    head = make_head(prepare("multilabel", SimpleNamespace(names=["a", "b", "c"], values=truth)), 2)
    judged = head.judge(torch.from_numpy(2 * odds + [1, -1, 3]), truth, resamples=20)
    assert judged.metrics["ece"] > 0.05
    assert judged.metrics["ece_calibrated"] < 0.015
    assert judged.metrics["macro_f1_calibrated"] > judged.metrics["macro_f1"] + 0.01


@pytest.mark.parametrize("kind", ["classify", "ordinal"])
def test_a_known_temperature_is_found_and_labels_stay(kind):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 3000)
    head = make_head(prepare(kind, SimpleNamespace(names=list("abcd"), values=labels)), 1)
    if kind == "classify":
        logits = torch.from_numpy(2 * rng.normal(size=(3000, 4)))
        p = logits.softmax(1)
    else:
        logits = head(torch.zeros(3000, 1)).detach().double() + torch.from_numpy(2 * rng.normal(size=(3000, 1)))
        p = torch.from_numpy(np.stack([head.predict(logits)[f"p_{name}"] for name in "abcd"], axis=1))
    labels = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    calibration = head.calibrate(5 * logits, labels)
    assert calibration["temperature"] == pytest.approx(5, rel=0.1)
    np.testing.assert_array_equal(head.predict(5 * logits, calibration)["label"], head.predict(logits)["label"])
    judged = head.judge(5 * logits, labels, resamples=5).metrics
    assert judged["ece_calibrated"] < 0.04 < judged["ece"]
    # Test rows are judged with the stored calibration as it is.
    given = head.judge(5 * logits, labels, calibration, resamples=0).metrics
    assert given["nll_calibrated"] == pytest.approx(head.judge(logits, labels, resamples=0).metrics["nll"], rel=1e-2)


def test_conformal_scores_are_ranks():
    scores = np.arange(1.0, 20.0)
    assert conformal(scores) == 18  # ceil(20 · 0.9)
    assert conformal(scores[:9]) == 9
    assert conformal(scores[:8]) is None
    assert conformal(np.array([])) is None


@pytest.mark.parametrize("distribution", ["point", "gaussian", "quantile"])
def test_intervals_cover_what_they_say_whatever_the_model(distribution):
    rng = np.random.default_rng(0)
    true = 50 + 10 * rng.standard_t(4, size=2000)
    options = {"distribution": distribution}
    head = make_head(prepare("regress", SimpleNamespace(names=["x"], values=true), options), 2)
    with torch.no_grad():
        head.linear.weight.normal_(std=0.5)  # type: ignore[union-attr]
    outputs = head(torch.from_numpy(rng.normal(size=(2000, 2))).float()).detach()
    judged = head.judge(outputs, true, resamples=5).metrics
    assert judged["coverage_calibrated"] == pytest.approx(0.9, abs=0.02)
    columns = head.predict(outputs, head.calibrate(outputs[:1000], true[:1000]))
    inside = (columns["low"] <= true) & (true <= columns["high"])
    assert inside[1000:].mean() == pytest.approx(0.9, abs=0.03)
    assert (columns["low"] <= columns["value"]).all() and (columns["value"] <= columns["high"]).all()
    few = head.calibrate(outputs[:5], true[:5])
    assert few == {"margin": [None]}
    # Of too few rows there is what the model gives, and no calibrated figure.
    found, raw = head.predict(outputs[:5], few), head.predict(outputs[:5])
    assert found.keys() == raw.keys()
    assert all((found[name] == raw[name]).all() for name in raw)
    assert ("low" in found) == (distribution != "point")
    assert "coverage_calibrated" not in head.judge(outputs[:5], true[:5], resamples=5).metrics


def test_halves_keep_groups_whole():
    groups = np.array(list("aabbccddee"))
    a, b = halves(10, groups)
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(10))
    assert not {groups[i] for i in a} & {groups[i] for i in b}
    assert len(halves(3, ["x"] * 3)[1]) == 0
    a, b = halves(11)
    assert (len(a), len(b)) == (6, 5)
