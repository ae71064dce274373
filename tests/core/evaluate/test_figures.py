"""Figures of the heads equal those of scikit-learn, SciPy and torchmetrics."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from triune.core.heads.registry import make_head, prepare
from triune.core.losses import IGNORED

RNG = np.random.default_rng(0)
NAMES = [f"c{i}" for i in range(7)]


def classes(count=400, ties=False):
    """Logits and labels of seven classes, of which the last is never true; rounded ones tie."""
    labels = RNG.choice(6, count, p=[0.4, 0.3, 0.15, 0.08, 0.05, 0.02])
    logits = RNG.normal(size=(count, 7)) + 1.5 * np.eye(7)[labels]
    return torch.from_numpy(np.round(logits) if ties else logits), labels


@pytest.mark.parametrize("ties", [False, True])
def test_classify(ties):
    logits, labels = classes(ties=ties)
    head = make_head(prepare("classify", SimpleNamespace(names=NAMES, values=labels)), 2)
    judged = head.judge(logits, labels, resamples=5)
    p, predicted, present = logits.softmax(1).numpy(), logits.argmax(1).numpy(), range(6)
    written = (logits / head.calibrate(logits, labels)["temperature"]).softmax(1).numpy()  # what ranks examples
    odds = np.round(np.log(written / (1 - written)), 9)  # the same logits in another order tie
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "top5": sk.top_k_accuracy_score(labels, logits, k=5, labels=range(7)),
        "balanced_accuracy": np.mean([(predicted == c)[labels == c].mean() for c in present]),
        "macro_f1": sk.f1_score(labels, predicted, labels=present, average="macro", zero_division=0),
        "auroc": np.mean([sk.roc_auc_score(labels == c, odds[:, c]) for c in present]),
        "average_precision": np.mean([sk.average_precision_score(labels == c, odds[:, c]) for c in present]),
        "nll": sk.log_loss(labels, p, labels=range(7)),
        "brier": np.square(p - np.eye(7)[labels]).sum(1).mean(),
        "ece": float(multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(labels), 7, n_bins=15)),
    }
    if ties:
        del expected["top5"]  # scikit-learn takes one of the tied classes by its place
    assert judged.metrics["ece"] == pytest.approx(expected.pop("ece"), abs=1e-7)  # torchmetrics computes in 32 bits
    assert {name: judged.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    precision, recall, f1, count = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(7), zero_division=0
    )
    for c, row in enumerate(judged.per_class[:6]):
        assert (row["precision"] or 0, row["recall"], row["f1"]) == pytest.approx((precision[c], recall[c], f1[c]))
        assert row["count"] == count[c]
    last = judged.per_class[6]
    assert (last["recall"], last["f1"], last["auroc"], last["average_precision"]) == (None, None, None, None)
    assert judged.confusion is not None
    np.testing.assert_array_equal(judged.confusion.counts, sk.confusion_matrix(labels, predicted, labels=range(7)))
    assert "1 of 7 classes do not occur here (c6); means over classes leave them out." in judged.notes
    majority = np.zeros_like(labels)
    assert judged.baseline["accuracy"] == sk.accuracy_score(labels, majority)
    assert judged.baseline["macro_f1"] == pytest.approx(sk.f1_score(labels, majority, average="macro", zero_division=0))
    assert judged.baseline["auroc"] == 0.5


def test_probabilities_of_balanced_training_are_those_of_the_data():
    """A model that is right about reweighted data is right about the data, once the weights are taken out."""
    labels = np.repeat([0, 1], [900, 100])
    head = make_head(
        prepare("classify", SimpleNamespace(names=["a", "b"], values=labels), {"class_weights": "balanced"}), 2
    )
    outputs = head(torch.zeros(1000, 2)).detach()
    assert outputs.diff().abs().max() < 1e-6  # both classes weigh the same
    np.testing.assert_allclose(head.predict(outputs)["p_b"], 0.1, rtol=1e-6)
    assert head.judge(outputs, labels, resamples=0).metrics["ece"] < 1e-6
    assert head.monitor == ("balanced_accuracy", "max")
    yes = (labels[:, None] == [0, 1]).astype(float)
    head = make_head(
        prepare("multilabel", SimpleNamespace(names=["a", "b"], values=yes), {"positive_weights": "balanced"}), 2
    )
    np.testing.assert_allclose(head.predict(head(torch.zeros(3, 2)))["p_b"], 0.1, rtol=1e-6)


def test_one_class_alone_has_no_auroc():
    labels = np.array([0, 1, 0, 1])
    head = make_head(prepare("classify", SimpleNamespace(names=["a", "b"], values=labels)), 2)
    judged = head.judge(torch.randn(5, 2), np.array([1, 1, 1, 1, IGNORED]), resamples=20)
    assert not {"auroc", "average_precision"} & judged.metrics.keys()
    assert judged.count == 4
    assert all(np.isfinite(value) for value in judged.metrics.values())


def test_multilabel():
    truth = (RNG.random((300, 4)) < [0.5, 0.2, 0.05, 0.0]).astype(float)
    truth[:60, 1] = np.nan
    truth[5] = np.nan
    logits = torch.from_numpy(np.round(RNG.normal(size=(300, 4)) + 2 * np.nan_to_num(truth), 1))
    teaching = np.concatenate([truth, np.ones((1, 4))])
    head = make_head(prepare("multilabel", SimpleNamespace(names=list("abcd"), values=teaching)), 2)
    judged = head.judge(logits, truth, resamples=5)
    p, real = logits.sigmoid().numpy(), ~np.isnan(truth)
    column = [(truth[real[:, c], c], p[real[:, c], c]) for c in range(4)]
    yes = [(t, q >= 0.5) for t, q in column]
    t_all, p_all = truth[real], p[real]
    expected = {
        "auroc": np.mean([sk.roc_auc_score(t, q) for t, q in column[:3]]),
        "average_precision": np.mean([sk.average_precision_score(t, q) for t, q in column[:3]]),
        "macro_f1": np.mean([sk.f1_score(t, g) for t, g in yes[:3]]),
        "micro_f1": sk.f1_score(t_all, p_all >= 0.5),
        "nll": sk.log_loss(t_all, p_all),
        "brier": sk.brier_score_loss(t_all, p_all),
        "ece": float(binary_calibration_error(torch.from_numpy(p_all), torch.from_numpy(t_all).int(), n_bins=15)),
    }
    assert judged.metrics["ece"] == pytest.approx(expected.pop("ece"), abs=1e-7)
    assert {name: judged.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    given = head.predict(logits)["labels"]
    assert given[7].split("|") == [name for name, q in zip("abcd", p[7]) if q >= 0.5]
    whole = real.all(axis=1)
    found = head.judge(logits[whole], truth[whole], resamples=0).metrics["exact"]
    assert found == pytest.approx(sk.accuracy_score(truth[whole], p[whole] >= 0.5))
    assert [row["f1"] is None for row in judged.per_class] == [False, False, False, True]
    for row, (t, q) in zip(judged.per_class[:3], column):
        assert row["average_precision"] == pytest.approx(sk.average_precision_score(t, q), abs=1e-9)
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(t, q), abs=1e-9)
    # Thresholds are stored with the head: no other gives these examples a better F1, and answers are given by them.
    stored = make_head(head.spec.calibrated(head.calibrate(logits, truth)), 2)
    thresholds, odds = stored.spec.calibration["thresholds"], stored.log_odds(logits, stored.spec.calibration)
    for c, (t, _) in enumerate(column[:3]):
        chosen = odds.sigmoid().numpy()[real[:, c], c]
        best = max(sk.f1_score(t, chosen >= limit) for limit in np.unique(chosen))
        assert sk.f1_score(t, chosen >= thresholds[c]) == pytest.approx(best)
    labels = stored.predict(logits)["labels"]
    assert labels[9].split("|") == [name for name, q, th in zip("abcd", odds.sigmoid()[9], thresholds) if q >= th]
    assert judged.notes[-1] == "No example here has 1 of 4 labels (d); means leave them out."


def test_ordinal():
    labels = RNG.choice(5, 300, p=[0.1, 0.2, 0.4, 0.2, 0.1])
    head = make_head(prepare("ordinal", SimpleNamespace(names=list("abcde"), values=labels)), 1)
    with torch.no_grad():
        head.linear.weight.fill_(1.5)  # type: ignore[union-attr]
    outputs = head(torch.from_numpy(labels - 2 + RNG.normal(size=300)).float()[:, None]).detach()
    judged, columns = head.judge(outputs, labels, resamples=5), head.predict(outputs)
    named = np.array(["abcde".index(name) for name in columns["label"]])
    p = np.stack([columns[f"p_{name}"] for name in "abcde"], axis=1)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(named, (p.cumsum(1) < 0.5).sum(1))  # the median
    expected = {
        "accuracy": sk.accuracy_score(labels, named),
        "rank_mae": sk.mean_absolute_error(labels, named),
        "quadratic_kappa": sk.cohen_kappa_score(labels, named, weights="quadratic"),
        "spearman": spearmanr(labels, columns["rank"])[0],
        "nll": sk.log_loss(labels, p),
    }
    assert {name: judged.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert (head(torch.randn(50, 1)).diff(dim=1) < 0).all()  # rank-consistent


@pytest.mark.parametrize("distribution", ["point", "gaussian", "quantile"])
def test_regress(distribution):
    true = 100 + 5 * RNG.normal(size=250)
    options = {"distribution": distribution}
    head = make_head(prepare("regress", SimpleNamespace(names=["x"], values=true), options), 3)
    with torch.no_grad():
        head.linear.weight.normal_(std=0.3)  # type: ignore[union-attr]
    outputs = head(torch.from_numpy(RNG.normal(size=(250, 3))).float()).detach()
    metrics, columns = head.judge(outputs, true, resamples=5).metrics, head.predict(outputs)
    value = columns["value"]
    expected = {
        "mae": sk.mean_absolute_error(true, value),
        "rmse": sk.root_mean_squared_error(true, value),
        "r2": sk.r2_score(true, value),
        "spearman": spearmanr(true, value)[0],
        "scaled_mae": sk.mean_absolute_error(true, value) / true.std(),
    }
    if distribution == "gaussian":
        sigma = (columns["high"] - columns["low"]) / 2 / 1.6448536269514722
        normal = torch.distributions.Normal(torch.from_numpy(value), torch.from_numpy(sigma))
        expected["nll"] = float(-normal.log_prob(torch.from_numpy(true)).mean())
    if distribution == "quantile":
        levels = zip((0.05, 0.5, 0.95), (columns["low"], value, columns["high"]))
        losses = [sk.mean_pinball_loss(true, q, alpha=level) for level, q in levels]
        expected["pinball"] = np.mean(losses) / true.std()
        assert (columns["low"] < value).all() and (value < columns["high"]).all()
    if distribution != "point":
        expected["coverage"] = np.mean((columns["low"] <= true) & (true <= columns["high"]))
        expected["width"] = np.mean(columns["high"] - columns["low"])
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_the_constant_answer_is_the_best_one():
    """The median for absolute errors: of skewed numbers the mean would be a baseline that is beaten by nothing."""
    true = np.exp(2 * RNG.normal(size=300))
    for distribution in ("point", "gaussian", "quantile"):
        target = SimpleNamespace(names=["x"], values=true)
        head = make_head(prepare("regress", target, {"distribution": distribution}), 2)
        baseline = head.judge(head(torch.zeros(300, 2)).detach(), true, resamples=5).baseline
        assert baseline["mae"] == pytest.approx(np.abs(true - np.median(true)).mean())
        if distribution != "quantile":
            assert baseline["r2"] == pytest.approx(0, abs=1e-12)
        else:
            assert baseline["coverage"] == pytest.approx(0.9, abs=0.01)
            losses = [
                sk.mean_pinball_loss(true, np.full(300, np.quantile(true, q)), alpha=q) for q in (0.05, 0.5, 0.95)
            ]
            assert baseline["pinball"] == pytest.approx(np.mean(losses) / true.std())


def test_several_targets_miss_rows_of_their_own():
    true = RNG.normal(size=(80, 2)) * [1, 100]
    true[:30, 0] = np.nan
    true[50:, 1] = np.nan
    both = make_head(prepare("regress", SimpleNamespace(names=["a", "b"], values=true)), 2)
    outputs = torch.from_numpy(RNG.normal(size=(80, 2)))
    judged = both.judge(outputs, true, resamples=5)
    for t, (name, rows) in enumerate([("a", slice(30, 80)), ("b", slice(0, 50))]):
        alone = make_head(prepare("regress", SimpleNamespace(names=[name], values=true[rows, t])), 2)
        single = alone.judge(outputs[rows, t : t + 1], true[rows, t], resamples=0).metrics
        row = judged.per_class[t]
        assert row["count"] == 50
        for figure in ("mae", "rmse", "r2", "spearman", "scaled_mae"):
            assert row[figure] == pytest.approx(single[figure], rel=1e-12)
    assert judged.metrics["r2"] == pytest.approx(np.mean([row["r2"] for row in judged.per_class]))
    assert "mae" not in judged.metrics  # of two units
    nothing = both.judge(outputs, np.where([[True, False]], true, np.nan), resamples=5)
    assert nothing.notes[-1] == "No example has the target 'b'."


def test_tokens_are_judged_in_three_forms_alike():
    lengths = [3, 5, 1, 4]
    targets = [torch.from_numpy(RNG.integers(0, 3, n)) for n in lengths]
    outputs = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    targets[1][2] = IGNORED
    head = make_head(prepare("tag", SimpleNamespace(names=["H", "E", "C"], values=[t.numpy() for t in targets])), 2)
    padded = torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True)
    aims = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
    listed = head.judge(outputs, targets, resamples=50)
    assert listed.count == 12 and listed.kind == "tag"
    assert "4 groups of examples" in listed.notes[0]
    assert head.judge(padded, aims, resamples=50).to_dict() == listed.to_dict()
    groups = np.repeat(range(4), lengths)
    assert head.judge(torch.cat(outputs), torch.cat(targets), None, groups, 50).to_dict() == listed.to_dict()
    assert head.predict(padded)["label"].shape == (4, 5)
    total, count = head.loss(padded, aims)
    assert int(count) == 12 and float(total) == pytest.approx(listed.metrics["nll"] * 12)
