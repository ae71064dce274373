"""What holds for every kind of head: JSON, the start at the prior, gradients, 16 bits, missing targets."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.heads.base import Head, HeadSpec
from triune.core.heads.registry import HEADS, make_head, prepare
from triune.core.labels.targets import Target
from triune.core.losses import IGNORED

RNG = np.random.default_rng(0)
ROWS = 60
CLASSES = np.array([0, 0, 0, 1, 1, 2] * 10)
NUMBERS = 1000 + 7 * RNG.normal(size=(ROWS, 2))
LABELS = np.stack([CLASSES == 0, CLASSES != 1, RNG.random(ROWS) < 0.2], axis=1).astype(np.float32)
CASES = {
    "classify": ("classify", ["a", "b", "c"], CLASSES, {}),
    "classify balanced": ("classify", ["a", "b", "c"], CLASSES, {"class_weights": "balanced"}),
    "classify focal": ("classify", ["a", "b", "c"], CLASSES, {"focal": 2.0}),
    "classify questions": ("classify", ["a", "b", "c"], CLASSES, {"one_vs_rest": True}),
    "multilabel": ("multilabel", ["a", "b", "c"], LABELS, {}),
    "multilabel balanced": ("multilabel", ["a", "b", "c"], LABELS, {"positive_weights": "balanced"}),
    "ordinal": ("ordinal", ["low", "middle", "high"], CLASSES, {}),
    "tag": ("tag", ["a", "b", "c"], CLASSES, {}),
    "tag numbers": ("tag", ["x"], NUMBERS[:, 0], {"distribution": "gaussian"}),
    "regress": ("regress", ["x", "y"], NUMBERS, {}),
    "regress absolute": ("regress", ["x", "y"], NUMBERS, {"error": "absolute"}),
    "regress gaussian": ("regress", ["x", "y"], NUMBERS, {"distribution": "gaussian"}),
    "regress quantile": ("regress", ["x", "y"], NUMBERS, {"distribution": "quantile"}),
    "several": (
        "several",
        ["grade", "size", "tags"],
        np.column_stack([CLASSES, NUMBERS[:, 0], LABELS]),
        {"weights": {"size": 0.5}},
    ),
}
PARTS = (
    Target("classify", ["grade"], ["a", "b", "c"], CLASSES),
    Target("regress", ["size"], ["size"], NUMBERS[:, :1]),
    Target("multilabel", ["tags"], ["u", "v", "w"], LABELS),
)
every = pytest.mark.parametrize("case", CASES)


def head_of(case: str, dim: int = 6) -> tuple[Head, torch.Tensor]:
    """A head and the targets it was prepared for."""
    kind, names, values, options = CASES[case]
    given = [values] if kind == "tag" else values
    parts = PARTS if kind == "several" else ()
    target = SimpleNamespace(names=names, values=given, numbers=values.dtype.kind == "f", parts=parts)
    spec = prepare(kind, target, options)
    return make_head(spec, dim), torch.from_numpy(values)


def missing(targets: torch.Tensor) -> torch.Tensor:
    return torch.full_like(targets, float("nan") if targets.is_floating_point() else IGNORED)


def stirred(head: Head) -> Head:
    """With other weights than those it starts with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in head.parameters():
            weight += torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / 4
    return head


def test_all_kinds_are_tried():
    assert {kind for kind, *_ in CASES.values()} == set(HEADS)


@every
def test_a_spec_is_the_same_after_json(case):
    head, targets = head_of(case)
    stirred(head)
    outputs = head(torch.randn(ROWS, 6))
    spec = head.spec.calibrated(head.calibrate(outputs, targets))
    again = HeadSpec.from_dict(json.loads(json.dumps(spec.to_dict(), allow_nan=False)))
    assert again == spec
    twin = make_head(again, 6)
    twin.load_state_dict(head.state_dict())
    for name, column in make_head(spec, 6).predict(outputs).items():
        np.testing.assert_array_equal(twin.predict(outputs)[name], column)


@pytest.mark.parametrize("case", [case for case in CASES if "focal" not in case])  # whose best answer is another
def test_the_start_is_the_best_constant_answer(case):
    """At the start the gradient of the loss to the bias is zero."""
    head, targets = head_of(case)
    head.double()
    outputs = head(torch.randn(ROWS, 6, dtype=torch.float64))
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    total, count = head.loss(outputs, targets)
    total.backward()
    for name, weight in head.named_parameters():
        if weight.grad is not None and "weight" not in name:
            # Quantiles and medians lie between two examples: one is too many on either side.
            slack = 2 / ROWS if "quantile" in case or "absolute" in case else 1e-5
            assert weight.grad.abs().max() / count <= slack, name


@every
def test_gradients_are_those_of_differences(case):
    head, targets = head_of(case)
    stirred(head.double())
    vectors = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weights = dict(head.named_parameters())

    def loss(vectors, *values):
        outputs = torch.func.functional_call(head, dict(zip(weights, values)), (vectors,))
        return head.loss(outputs, targets[:4])[0]

    assert torch.autograd.gradcheck(loss, (vectors, *weights.values()))


@every
def test_16_bit_outputs_are_accepted(case):
    head, targets = head_of(case)
    stirred(head)
    vectors = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(3))
    outputs = head(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(vectors)
    total, _ = head.loss(half, targets)
    assert total.dtype == torch.float32 and torch.isfinite(total)
    torch.testing.assert_close(total, head.loss(outputs, targets)[0], rtol=0.05, atol=0.5)
    assert head.judge(half.bfloat16(), targets, resamples=0).count == ROWS
    head.predict(half.bfloat16())


@every
def test_missing_targets_count_for_nothing(case):
    head, targets = head_of(case)
    stirred(head)
    outputs = head(torch.randn(ROWS, 6))
    total, count = head.loss(outputs, missing(targets))
    assert (total.item(), count.item()) == (0, 0)
    with pytest.raises(UserError, match="nothing to judge: every target is missing"):
        head.judge(outputs, missing(targets))
    holed = torch.cat([targets, missing(targets)])
    doubled = torch.cat([outputs, torch.randn_like(outputs)])
    found, wanted = head.judge(doubled, holed, resamples=20), head.judge(outputs, targets, resamples=20)
    assert found.to_dict() == wanted.to_dict()


@every
@settings(max_examples=6)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.sampled_from([0.0, 1.0, 1e4]), st.integers(0, 999))
def test_every_small_set_is_judged(case, gone, scale, seed):
    """Figures are numbers or left out, whatever is missing, constant or certain; intervals belong to figures."""
    head, targets = head_of(case)
    rows, lost = torch.arange(len(gone)) * 5 % ROWS, torch.tensor(gone)
    targets = torch.where(lost.view(-1, *[1] * (targets.dim() - 1)), missing(targets[rows]), targets[rows])
    noise = torch.randn(len(gone), head.width, generator=torch.Generator().manual_seed(seed))
    outputs = head(torch.zeros(len(gone), 6)).detach() + noise * scale
    outputs = outputs.sort(dim=-1, descending=case == "ordinal")[0]
    if all(gone):
        return
    for calibration in (None, {}, head.calibrate(outputs, targets)):
        judged = head.judge(outputs, targets, calibration, groups=seed % 3 * torch.arange(len(gone)) // 2, resamples=9)
        json.dumps(judged.to_dict(), allow_nan=False)
        assert judged.intervals.keys() | judged.baseline.keys() <= judged.metrics.keys()
        assert head.monitor[0] in judged.metrics or case.startswith("multilabel")
        calibrated = [name for name in judged.metrics if name.endswith("_calibrated")]
        assert not calibrated or calibration != {}
        assert judged.table() and judged.class_table()


@every
def test_outputs_that_are_not_finite_are_refused(case):
    head, targets = head_of(case)
    outputs = head(torch.randn(ROWS, 6)).detach()
    outputs[3, 0] = float("nan")
    with pytest.raises(UserError, match="The outputs of 1 of 60 examples are not finite"):
        head.judge(outputs, targets)


@every
def test_a_head_is_built_on_the_device_that_is_asked_for(case):
    spec = head_of(case)[0].spec
    with torch.device("meta"):
        head = make_head(spec, 6)
    assert {weight.device.type for weight in head.parameters()} == {"meta"}
