"""A sixth kind of head is one file: counts with a Poisson distribution, in a few lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import poisson

from triune.core.errors import UserError
from triune.core.evaluate.judgement import Judgement
from triune.core.evaluate.pictures import draw
from triune.core.heads import known
from triune.core.heads.base import Head, HeadSpec, kept
from triune.core.heads.registry import make_head, prepare, register


@dataclass(frozen=True)
class CountsOptions:
    """Nothing to choose."""


class Counts(Head):
    """One count; the output is the logarithm of its rate."""

    kind, width, monitor, Options = "counts", 1, ("nll", "min"), CountsOptions

    @classmethod
    def prepare(cls, target, options=None):
        mean = float(np.nanmean(target.values))
        return HeadSpec(cls.kind, target.names, asdict(cls.Options(**options or {})), {"mean": mean})

    def prior(self):
        return [float(np.log(self.spec.training["mean"]))]

    def loss(self, outputs, targets):
        real = ~targets.isnan()
        nats = F.poisson_nll_loss(outputs[..., 0].float(), targets.nan_to_num(), full=True, reduction="none")
        return torch.where(real, nats, 0.0).sum(), real.sum()

    def predict(self, outputs, calibration=None):
        rate = outputs[..., 0].double().exp().numpy()
        return {"value": rate, "low": poisson.ppf(0.05, rate), "high": poisson.ppf(0.95, rate)}

    def calibrate(self, outputs, targets):
        return {}

    def judge(self, outputs, targets, calibration=None, groups=None, resamples=1000):
        outputs, targets, _ = kept(outputs, targets, lambda t: ~t.isnan(), groups)
        total, count = self.loss(outputs, targets)
        return Judgement(self.kind, len(targets), {"nll": float(total / count)})


def test_a_kind_of_ones_own_is_registered_in_a_few_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "HEADS", dict(known.HEADS))
    register(Counts)
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(500, 3))).float()
    values = torch.from_numpy(rng.poisson(np.exp(1 + 0.5 * vectors[:, 0].numpy()))).float()
    values[:20] = float("nan")
    spec = prepare("counts", SimpleNamespace(names=["petals"], values=values.numpy()))
    head = make_head(HeadSpec.from_dict(spec.to_dict()), 3)
    before = head.judge(head(vectors).detach(), values)
    optimizer = torch.optim.LBFGS(head.parameters())

    def closure():
        optimizer.zero_grad()
        total, count = head.loss(head(vectors), values)
        (total / count).backward()
        return total / count

    for _ in range(5):
        optimizer.step(closure)
    after = head.judge(head(vectors).detach(), values)
    assert after.metrics["nll"] < before.metrics["nll"] - 0.05
    assert head.linear.weight[0, 0].item() == pytest.approx(0.5, abs=0.06)
    assert "nll" in after.table() and draw(after, tmp_path) == []


def test_names_are_told_apart():
    with pytest.raises(
        UserError, match=r"kind of head is 'classifi' \(did you mean 'classify'\?\), but must be one of"
    ):
        make_head(HeadSpec("classifi", ("a", "b")), 3)

    class Other(Counts):
        kind = "classify"

    with pytest.raises(UserError, match="'classify' exists already"):
        register(Other)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classify", {"focal": -1.0}, r"head.options.focal is -1.0, but must be 0 to 10."),
        ("classify", {"focal": 1.0, "label_smoothing": 0.1}, "0 with a focal loss"),
        ("classify", {"class_weights": "balance"}, r"did you mean 'balanced'\?"),
        ("regress", {"distribution": "normal"}, "must be one of point, gaussian, quantile"),
        ("tag", {"numbers": True, "focal": 2.0}, "must be 0.0 for tokens with numbers"),
    ],
)
def test_wrong_options_are_a_sentence(kind, options, message):
    values = [np.array([0, 1, 1])] if kind == "tag" else np.array([0, 1, 1])
    target = SimpleNamespace(names=["a", "b"] if kind == "classify" else ["a"], values=values)
    with pytest.raises(UserError, match=message):
        prepare(kind, target, options)


@pytest.mark.parametrize(
    ("kind", "names", "values", "message"),
    [
        ("classify", ["a"], [0, 0], "There is one class"),
        ("classify", ["a", "b"], [0, 2], r"A label is 2, but must be in 0..1"),
        ("classify", ["a", "b"], [-100, -100], "All targets of the training rows are missing"),
        ("regress", ["x"], [3.0, 3.0], "The target 'x' is 3 in every training row"),
        ("regress", ["x"], [np.nan], "All targets 'x' of the training rows are missing"),
        ("regress", ["x"], [np.inf, 1.0], "A target 'x' is infinite"),
        ("multilabel", ["a"], [[0.0], [2.0]], "A label is 2, but must be 0 or 1"),
        ("multilabel", ["a"], [[0.0], [0.0]], "No training row has any of the labels"),
        ("tag", ["a", "b"], [], "All targets of the training rows are missing"),
    ],
)
def test_targets_that_teach_nothing_are_a_sentence(kind, names, values, message):
    with pytest.raises(UserError, match=message):
        prepare(kind, SimpleNamespace(names=names, values=np.array(values)))
