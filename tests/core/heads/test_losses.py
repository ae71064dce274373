"""Losses and weights equal those of PyTorch, torchvision and scikit-learn; what is missing changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss

from triune.core.heads import losses
from triune.core.losses import IGNORED

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 5, (40,), generator=GENERATOR)
YES = torch.randint(0, 2, (40, 5), generator=GENERATOR).double()


def test_balanced_weights_are_those_of_scikit_learn():
    counts = [3, 50, 7, 0, 12]
    labels = np.repeat(np.arange(5), counts)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2, 4]), y=labels)
    found = losses.balanced_weights(counts)
    assert [found[c] for c in (0, 1, 2, 4)] == pytest.approx(expected, rel=1e-12)
    assert found[3] == 1.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_pytorch(smoothing, weighted):
    weights = torch.rand(5, dtype=torch.float64, generator=GENERATOR) + 0.5 if weighted else None
    total, count = losses.cross_entropy(LOGITS, LABELS, weights, smoothing=smoothing)
    expected = F.cross_entropy(LOGITS, LABELS, weights, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    assert int(count) == 40


def test_mixed_examples_are_the_mean_of_their_parts():
    shares = 0.3 * F.one_hot(LABELS, 5).double() + 0.7 * F.one_hot(LABELS.flip(0), 5).double()
    for loss in (losses.cross_entropy, losses.one_vs_rest):
        total, count = loss(LOGITS, shares, smoothing=0.1)
        expected = 0.3 * loss(LOGITS, LABELS, smoothing=0.1)[0] + 0.7 * loss(LOGITS, LABELS.flip(0), smoothing=0.1)[0]
        torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
        assert int(count) == 40


def test_one_question_for_each_class_is_binary_cross_entropy():
    labels = LABELS.clone()
    labels[:7] = IGNORED
    total, count = losses.one_vs_rest(LOGITS, labels, smoothing=0.2)
    aims = F.one_hot(LABELS[7:], 5).double() * 0.8 + 0.2 / 5
    expected = F.binary_cross_entropy_with_logits(LOGITS[7:], aims, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    assert int(count) == 33


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_that_of_lin_et_al(gamma):
    p = LOGITS.softmax(1).gather(1, LABELS[:, None])[:, 0]
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    expected = -(weights[LABELS] * (1 - p) ** gamma * p.log()).sum()
    torch.testing.assert_close(losses.cross_entropy(LOGITS, LABELS, weights, gamma)[0], expected, rtol=1e-10, atol=0)
    # The two-class form of torchvision, without its weight alpha.
    expected = sigmoid_focal_loss(LOGITS, YES, alpha=-1, gamma=gamma, reduction="sum")
    torch.testing.assert_close(losses.binary(LOGITS, YES, gamma=gamma)[0], expected, rtol=1e-10, atol=0)


def test_binary_is_that_of_pytorch():
    positive = torch.tensor([1.0, 2, 3, 4, 0.5], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(LOGITS, YES, pos_weight=positive, reduction="sum")
    torch.testing.assert_close(losses.binary(LOGITS, YES, positive)[0], expected, rtol=1e-12, atol=0)
    assert losses.positive_weights([10, 0, 4], [30, 5, 0]) == [3.0, 1.0, 1.0]


def test_numbers_are_those_of_pytorch_and_scikit_learn():
    mean, log_variance, targets = LOGITS[:, 0], LOGITS[:, 1], LOGITS[:, 2]
    expected = F.gaussian_nll_loss(mean, targets, log_variance.exp(), full=True, reduction="sum", eps=1e-12)
    torch.testing.assert_close(losses.gaussian(mean, log_variance, targets)[0], expected, rtol=1e-9, atol=0)
    quantiles, levels = LOGITS[:, 3:], (0.05, 0.95)
    expected = sum(mean_pinball_loss(targets, quantiles[:, i], alpha=level) for i, level in enumerate(levels)) * 40
    assert float(losses.pinball(quantiles, targets, levels)[0]) == pytest.approx(expected, rel=1e-12)


def test_ordered_probabilities_are_differences_of_sigmoids():
    cumulative = torch.tensor([[4.0, 1.0, -2.0], [0.5, 0.4, 0.3]], dtype=torch.float64)
    above = torch.cat([torch.ones(2, 1), cumulative.sigmoid(), torch.zeros(2, 1)], dim=1)
    torch.testing.assert_close(losses.ordered_log_p(cumulative).exp(), above[:, :-1] - above[:, 1:], rtol=1e-9, atol=0)
    far = losses.ordered_log_p(torch.tensor([[900.0, 899.0, 898.0]]))
    assert torch.isfinite(far).all() and float(far[0, 3]) == 0


CASES = {
    "cross_entropy": lambda o, t: losses.cross_entropy(o, t, torch.arange(1.0, 6.0)),
    "focal": lambda o, t: losses.cross_entropy(o, t, gamma=0.5),
    "ordered": lambda o, t: losses.ordered(-o.abs().cumsum(-1), t),
    "binary": lambda o, t: losses.binary(o, t),
    "binary focal": lambda o, t: losses.binary(o, t, gamma=0.5),
    "squared": losses.squared,
    "absolute": losses.absolute,
    "gaussian": lambda o, t: losses.gaussian(o, o, t),
    "pinball": lambda o, t: losses.pinball(o, t[..., 0], (0.05, 0.2, 0.5, 0.8, 0.95)),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(missing=st.lists(st.booleans(), min_size=6, max_size=6), seed=st.integers(0, 99))
def test_what_is_missing_changes_nothing(name, missing, seed):
    """The same sum and gradients as without the examples that miss their targets; (0, 0) where all do."""
    generator, gone = torch.Generator().manual_seed(seed), torch.tensor(missing)
    outputs = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    classes = name in ("cross_entropy", "focal", "ordered")
    targets = torch.randint(0, 5 if classes else 2, (6,) if classes else (6, 5), generator=generator)
    targets = targets if classes else targets.double()
    holed = targets.clone()
    holed[gone] = IGNORED if classes else float("nan")
    total, count = CASES[name](outputs, holed)
    expected, number = CASES[name](outputs[~gone], targets[~gone])
    torch.testing.assert_close(total, expected)
    assert int(count) == int(number)
    found, wanted = (torch.autograd.grad(loss, outputs)[0] for loss in (total, expected))
    torch.testing.assert_close(found, wanted)
    if all(missing):
        assert total.item() == 0 and int(count) == 0
