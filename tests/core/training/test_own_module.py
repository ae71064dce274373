"""A module of one's own under Lightning's own trainer: its callbacks find `train_loss`, and a loss of another form is
refused in a sentence that says which form it must have.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from test_module import CONSTANT, trainer

from triune.core.errors import UserError
from triune.core.training.module import Loss, TrainingModule
from triune.core.training.optimizers import OptimizerConfig


class Line(TrainingModule):
    """Fits a line; the loss of a batch has the form that `form` gives it."""

    def __init__(self, form: Any = None, lr: float = 0.05) -> None:
        super().__init__(OptimizerConfig(name="adamw", lr=lr), CONSTANT)
        self.form = form or (lambda error: Loss(error.sum(), error.numel()))
        self.seen: list[float] = []

    def build_model(self, data: object) -> nn.Module:
        return nn.Linear(1, 1)

    def loss(self, batch: Tensor) -> Any:
        return self.form((self(batch) - 2 * batch - 1).square())

    def on_train_epoch_end(self) -> None:
        self.seen.append(float(self.trainer.callback_metrics["train_loss"]))


def loader() -> DataLoader:
    return DataLoader(torch.linspace(-1, 1, 32)[:, None], 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("lr", "stops"), [(0.0, True), (0.05, False)])
def test_early_stopping_follows_the_training_loss(accumulate: int, lr: float, stops: bool) -> None:
    module = Line(lr=lr or 1e-12)
    stop = EarlyStopping("train_loss", min_delta=1e-6, patience=2, check_on_train_epoch_end=True, strict=True)
    fit = trainer(max_steps=-1, max_epochs=9, accumulate_grad_batches=accumulate, callbacks=[stop])
    fit.fit(module, loader())
    assert len(module.seen) == (3 if stops else 9)  # the first is the best, two more are the patience
    assert stop.best_score.item() == pytest.approx(min(module.seen))
    # Per unit over the whole window of an optimizer step, as the last batches of an epoch give it with fixed weights.
    if stops:
        data = torch.linspace(-1, 1, 32)[:, None][32 - 8 * accumulate :]
        expected = (module.model(data) - 2 * data - 1).square().mean()
        assert module.seen[-1] == pytest.approx(expected.item(), rel=1e-5)


WRONG: dict[str, tuple[Any, str]] = {
    "a mean": (lambda error: error.mean(), r"a tensor \[\]"),
    "losses of all units": (lambda error: error, r"a tensor \[8, 1\]"),
    "nothing": (lambda error: None, "a NoneType"),
    "a number": (lambda error: 0.5, "a float"),
    "Lightning's dictionary": (lambda error: {"loss": error.mean()}, "a dict"),
    "a sum that is none": (lambda error: Loss(error, error.numel()), "a Loss"),
    "no tensor": (lambda error: (1.0, 8), "a tuple"),
    "three things": (lambda error: (error.sum(), 8, 1), "a tuple"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_of_another_form_is_refused(name: str) -> None:
    form, found = WRONG[name]
    words = rf"`Line.loss` returns {found}, but must return Loss\(total, count\), two scalars"
    with pytest.raises(UserError, match=words):
        trainer().fit(Line(form), loader())


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (lambda error: torch.ones(8), r"a tensor \[8\]"),
        (lambda error: "8", "a str"),
        (lambda error: None, "a NoneType"),
    ],
)
def test_a_count_of_another_form_is_refused(count: Any, found: str) -> None:
    with pytest.raises(UserError, match=f"count that `Line.loss` returns is {found}, but must be a number"):
        trainer().fit(Line(lambda error: Loss(error.sum(), count(error))), loader())


@pytest.mark.parametrize("count", [-3, float("nan"), -0.5])
def test_a_count_that_is_no_number_of_units_is_refused(count: float) -> None:
    with pytest.raises(UserError, match="must be a number of units"):
        trainer().fit(Line(lambda error: Loss(error.sum(), count)), loader())
