"""Several targets of different kinds on the same vectors, against a head for each and against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, mean_absolute_error

from triune.core.errors import UserError
from triune.core.heads.base import HeadSpec
from triune.core.heads.registry import make_head, prepare
from triune.core.heads.several import Several
from triune.core.labels.columns import Table
from triune.core.labels.targets import Target, infer

RNG = np.random.default_rng(3)
ROWS = 80
CLASSES = RNG.integers(0, 3, ROWS)
SIZES = 50 + 9 * RNG.normal(size=(ROWS, 1))
STEPS = RNG.integers(0, 4, ROWS)
TAGS = (RNG.random((ROWS, 4)) < 0.4).astype(np.float32)


def made(columns: dict[str, list[str | None]]) -> Table:
    """A table in memory; empty cells are missing, as a reader leaves them."""
    rows = len(next(iter(columns.values())))
    cells = {name: [cell or None for cell in column] for name, column in columns.items()}
    return Table(Path("t.csv"), cells, range(1, rows + 1), list(columns))


def target(gone: float = 0.0) -> Target:
    """Four columns of different kinds, with this part of the cells missing, in each column others."""
    lost = np.random.default_rng(1).random((4, ROWS)) < gone
    parts = (
        Target("classify", ["grade"], ["a", "b", "c"], np.where(lost[0], -100, CLASSES)),
        Target("regress", ["size"], ["size"], np.where(lost[1][:, None], np.nan, SIZES)),
        Target("ordinal", ["step"], ["0", "1", "2", "3"], np.where(lost[2], -100, STEPS)),
        Target("multilabel", ["tags"], list("wxyz"), np.where(lost[3][:, None], np.nan, TAGS).astype(np.float32)),
    )
    cells = [np.where(np.asarray(p.values) == -100, np.nan, p.values).reshape(ROWS, -1) for p in parts]
    names = [part.columns[0] for part in parts]
    return Target("several", names, names, np.concatenate(cells, axis=1), parts=parts)


def stirred(given: Target, **options) -> tuple[Several, torch.Tensor, torch.Tensor]:
    """A head with weights at random, outputs of random vectors, and their targets."""
    head = make_head(prepare("several", given, options), 5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in head.parameters():
            weight += torch.randn(weight.shape, generator=generator) / 4
    assert isinstance(head, Several)
    return head, head(torch.randn(ROWS, 5, generator=generator)), torch.from_numpy(np.asarray(given.values))


@pytest.mark.parametrize("gone", [0.0, 0.4])
def test_the_loss_is_the_weighted_sum_of_the_mean_losses(gone):
    """On the rows of training the rule is exact, whatever is missing, and its gradient is that of the same sum."""
    given = target(gone)
    head, outputs, cells = stirred(given, weights={"size": 0.25, "tags": 3.0})
    total, count = head.loss(outputs, cells)
    found, first = total / count, 0
    wanted = torch.zeros(())
    for (name, own), part in zip(head.columns, given.parts):
        part_total, part_count = own.loss(outputs[:, first : first + own.width], torch.as_tensor(part.values))
        first += own.width
        wanted = wanted + {"size": 0.25, "tags": 3.0}.get(name, 1.0) * part_total / part_count
    torch.testing.assert_close(found, wanted)
    weights = list(head.parameters())
    for a, b in zip(torch.autograd.grad(found, weights, retain_graph=True), torch.autograd.grad(wanted, weights)):
        torch.testing.assert_close(a, b)


def test_figures_are_those_of_each_column_alone():
    given = target(0.3)
    head, outputs, cells = stirred(given)
    outputs = outputs.detach()
    judged = head.judge(outputs, cells, resamples=50)
    first = 0
    for (name, own), part in zip(head.columns, given.parts):
        alone = own.judge(outputs[:, first : first + own.width], torch.as_tensor(part.values), resamples=50)
        first += own.width
        assert {key: judged.metrics[f"{name}.{key}"] for key in alone.metrics} == alone.metrics
        assert {key: judged.intervals[f"{name}.{key}"] for key in alone.intervals} == alone.intervals
        assert {key: judged.baseline[f"{name}.{key}"] for key in alone.baseline} == alone.baseline
        assert [row for row in judged.per_class if row["target"] == name] == [
            {"target": name, **row} for row in alone.per_class
        ]
    answers = head.predict(outputs, {})
    real = ~np.isnan(np.asarray(given.values)[:, 0])
    names = np.array(["a", "b", "c"], object)
    assert judged.metrics["grade.accuracy"] == accuracy_score(
        names[CLASSES[real]].tolist(), answers["grade.label"][real].tolist()
    )
    real = ~np.isnan(np.asarray(given.values)[:, 1])
    assert judged.metrics["size.mae"] == pytest.approx(mean_absolute_error(SIZES[real, 0], answers["size.value"][real]))
    assert "size.r2" in judged.table() and "grade" in judged.class_table()


def test_skill_is_nothing_for_the_constant_answer_and_one_for_a_faultless_one():
    given = target()
    head = make_head(prepare("several", given), 5)
    cells = torch.from_numpy(np.asarray(given.values))
    constant = head(torch.randn(ROWS, 5)).detach()
    assert head.judge(constant, cells, {}, resamples=0).metrics["skill"] == pytest.approx(0, abs=1e-9)
    mean, std = (head.spec.parts["size"].training[name][0] for name in ("mean", "std"))
    right = torch.cat([
        20.0 * torch.nn.functional.one_hot(torch.from_numpy(CLASSES), 3),
        torch.from_numpy((SIZES - mean) / std).float(),
        20.0 * (torch.from_numpy(STEPS)[:, None] > torch.arange(3)) - 10 - torch.arange(3) * 0.1,
        40.0 * torch.from_numpy(TAGS) - 20,
    ], dim=1)  # fmt: skip
    assert head.judge(right, cells, {}, resamples=0).metrics["skill"] == pytest.approx(1, abs=1e-6)


def test_a_column_without_targets_is_named_and_keeps_no_calibration():
    given = target()
    head, outputs, cells = stirred(given)
    cells = cells.clone()
    cells[:, 1] = torch.nan
    judged = head.judge(outputs, cells, resamples=20)
    assert "No example has a target of size." in judged.notes and not any("size." in name for name in judged.metrics)
    fitted = head.calibrate(outputs, cells)
    assert list(fitted) == ["grade", "step", "tags"]
    twin = make_head(HeadSpec.from_dict(head.spec.calibrated(fitted).to_dict()), 5)
    twin.load_state_dict(head.state_dict())
    temperature = fitted["grade"]["temperature"]
    wanted = torch.softmax(outputs[:, :3].double() / temperature, dim=1).detach().numpy()
    np.testing.assert_allclose(twin.predict(outputs)["grade.p_b"], wanted[:, 1])


def test_neighbours_answer_every_column_with_what_they_have():
    given = target(0.3)
    head, _, cells = stirred(given)
    near, weights = cells[torch.arange(ROWS)[:, None].expand(ROWS, 4)], torch.ones(ROWS, 4)
    found = head.averaged(near, weights)
    assert found is not None and torch.isfinite(found).all()
    real = ~cells[:, 0].isnan()
    assert torch.equal(found[real, :3].argmax(1), torch.from_numpy(CLASSES)[real])
    mean, std = (head.spec.parts["size"].training[name][0] for name in ("mean", "std"))
    real = ~cells[:, 1].isnan()
    torch.testing.assert_close(found[real, 3].double() * std + mean, cells[real, 1], rtol=1e-5, atol=1e-4)


def test_columns_are_read_as_if_each_stood_alone():
    table = made({
        "grade": ["good", "bad", "good", None], "size": ["0.5", "2", "", "1.5"], "tags": ["a|b", "b", "a", ""],
        "on": ["1", "0", "1", "0"],
    })  # fmt: skip
    found = infer(table, ["grade", "size", "tags", "on"])
    assert found.kind == "several" and [part.kind for part in found.parts] == [
        "classify", "regress", "multilabel", "classify"
    ]  # fmt: skip
    nan = np.nan
    np.testing.assert_array_equal(
        found.values, [[1, 0.5, 1, 1, 1], [0, 2, 0, 1, 0], [1, nan, 1, 0, 1], [nan, 1.5, nan, nan, 0]]
    )
    assert "--data.kind size=regress" not in found.said and "regress" in found.said
    # Numbers alone are one head, unless a kind is given for a column.
    assert infer(table, ["size", "on"]).kind == "regress"
    split = infer(table, ["size", "on"], {"on": "classify"})
    assert split.kind == "several" and [part.kind for part in split.parts] == ["regress", "classify"]
    taken = found.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.values, found.values[[2, 0]])
    assert list(taken.parts[0].values) == [1, 1]


def test_a_trained_model_meets_columns_by_name():
    table = made({"size": ["7", "8"], "grade": ["good", "good"]})
    layouts = {"grade": {"cells": 1, "codes": True, "flat": True}, "tags": {"cells": 2, "codes": False, "flat": False},
               "size": {"cells": 1, "codes": False, "flat": False}}  # fmt: skip
    kinds = {"grade": "classify", "tags": "multilabel", "size": "regress"}
    names = {"grade": ["bad", "good"], "tags": ["a", "b"], "size": None}
    found = infer(table, ["size", "grade"], kinds, names, layouts=layouts)
    np.testing.assert_array_equal(found.values, [[1, np.nan, np.nan, 7], [1, np.nan, np.nan, 8]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"sise": 1.0}}, r"names the column 'sise' \(did you mean 'size'\?\), but the targets are"),
        ({"weights": {"size": 0.0}}, r"head.options.weights.size is 0.0, but must be a number above 0"),
        ({"heads": {"grade": {"focal": -1.0}}}, "head.options.focal is -1.0"),
        ({"heads": {"size": {"focal": 1.0}}}, "Unknown key 'model.head.focal'"),
        ({"weight": {"size": 1.0}}, r"Unknown key 'model.head.weight' \(did you mean 'weights'\?\)"),
    ],
)
def test_wrong_options_are_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        prepare("several", target(), options)


def test_labels_of_tokens_in_several_columns():
    parts = (
        Target("tag", ["turn"], ["E", "H"], [np.array([0, 1, 1]), np.array([1, -100])]),
        Target("tag", ["depth"], ["depth"], [np.array([0.5, np.nan, 2.0]), np.array([1.0, 1.5])], numbers=True),
    )
    values = [np.array([[0, 0.5], [1, np.nan], [1, 2.0]]), np.array([[1, 1.0], [np.nan, 1.5]])]
    head = make_head(prepare("several", SimpleNamespace(names=["turn", "depth"], values=values, parts=parts)), 4)
    assert head.per_token and head.width == 3
    outputs, cells = head(torch.randn(5, 4)).detach(), torch.from_numpy(np.concatenate(values))
    judged = head.judge(outputs, cells, groups=np.array([0, 0, 0, 1, 1]), resamples=10)
    assert judged.metrics["turn.accuracy"] == 0.75 and judged.count == 5
    assert set(head.predict(outputs[None])) >= {"turn.label", "depth.value"}
    mixed = SimpleNamespace(names=["turn", "grade"], values=values, parts=(
        parts[0], Target("classify", ["grade"], ["a", "b"], np.array([0, 1]))
    ))  # fmt: skip
    spec = prepare("several", mixed)
    with pytest.raises(UserError, match="turn has a label for each token and grade one for the whole input"):
        make_head(spec, 4)
