"""Temperature scaling finds a known temperature, keeps every prediction and does not judge itself."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triune.core.checkpoints.native import CONFIG
from triune.core.errors import UserError
from triune.core.evaluate.calibration import fit_temperature
from triune.vision.evaluate.calibration import read_temperature, store_temperature
from triune.vision.evaluate.metrics import class_head, summary


def honest(classes: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is the distribution that the labels are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


@given(scale=st.floats(0.01, 100), classes=st.integers(2, 10))
def test_a_known_temperature_is_found(scale, classes):
    logits, labels = honest(classes, 3000)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.15)


@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 500))
def test_no_other_temperature_is_better(classes, count, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[0] = logits[0].argmin()  # a mistake, so that a best temperature exists

    def loss(temperature: float) -> float:
        log_p = (logits.double() / temperature).log_softmax(1)
        rate = 1 / (count + 2)
        return float(-((1 - rate) * log_p.gather(1, labels[:, None])[:, 0] + rate * log_p.mean(1)).mean())

    best = fit_temperature(logits, labels)
    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01), loss(1.0)) + 1e-5


def test_extremes_stay_finite():
    labels = torch.arange(10)
    sure = fit_temperature(torch.eye(10), labels)  # never wrong: sharpened, but not to certainty
    assert 0.05 < sure < 1
    assert fit_temperature(torch.zeros(10, 10), labels) == 1.0
    assert fit_temperature(-torch.eye(10), labels) > 100  # always wrong: nearly uniform


def test_overconfidence_is_cured_without_changing_predictions():
    logits, labels = honest(5, 2000)
    head = class_head(list("abcde"))
    assert head.calibrate(logits * 3, labels)["temperature"] == pytest.approx(3, rel=0.1)
    found = summary(head.judge(logits * 3, labels, resamples=100), "val")
    assert found["ece"] > 0.1
    assert found["ece_calibrated"] < 0.04
    assert found["nll_calibrated"] < found["nll"]
    hot = head.predict(logits * 3, {"temperature": 3.0})
    assert (hot["label"] == head.predict(logits * 3, {})["label"]).all()


def test_halves_are_scaled_by_each_other():
    logits, labels = honest(3, 101)
    head = class_head(list("abc"))
    said = head.said_of(logits, labels, head.parts(logits, labels, None, None, 100))
    # Differences of log probabilities are those of the logits, divided by the temperature.
    used = (logits[:, 0] - logits[:, 1]) / torch.from_numpy(said.calibrated[:, 0] - said.calibrated[:, 1])
    halves = [(used - t).abs() < 1e-6 for t in (used.min(), used.max())]
    assert sorted(int(half.sum()) for half in halves) == [50, 51]
    for half, other in (halves, halves[::-1]):
        assert fit_temperature(logits[other], labels[other]) == pytest.approx(float(used[half][0]))


def test_the_temperature_travels_with_the_model(tmp_path):
    header = {"library": "triune", "format": 1, "architecture": "VisionTransformer", "model": {"classes": 2}}
    (tmp_path / CONFIG).write_text(json.dumps(header))
    assert read_temperature(tmp_path) == 1.0
    store_temperature(tmp_path, 1.75)
    assert read_temperature(tmp_path) == 1.75
    assert json.loads((tmp_path / CONFIG).read_text())["model"] == {"classes": 2}
    store_temperature(tmp_path, -1.0)
    with pytest.raises(UserError, match="must be positive"):
        read_temperature(tmp_path)
