"""Values of options that Lightning would take and could not use."""

from __future__ import annotations

import pytest
from jsonargparse import Namespace

from triune.core.errors import UserError
from triune.core.training.run import bounds


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_steps", 0, "--trainer.max_steps is 0, which trains nothing; it must be at least 1, or -1 for no bound."),
        (
            "max_epochs",
            0,
            "--trainer.max_epochs is 0, which trains nothing; it must be at least 1, or -1 for no bound.",
        ),
        ("limit_train_batches", 0.0, "--trainer.limit_train_batches is 0, which trains nothing"),
        ("gradient_clip_val", -1.0, "--trainer.gradient_clip_val is -1.0, but must be at least 0"),
        ("gradient_clip_val", float("nan"), "--trainer.gradient_clip_val is nan, but must be a finite number"),
        ("val_check_interval", 1e30, "a finite number of at most 1,000,000,000 in size."),
        (
            "limit_val_batches",
            10**18,
            "is 1000000000000000000, but must be a whole number of at most 1,000,000,000 in s",
        ),
        ("default_root_dir", "x", "--trainer.default_root_dir is given, but is not used here; --run names the folder."),
        ("enable_progress_bar", True, "--trainer.enable_progress_bar is given, but is not used here"),
    ],
)
def test_values_without_a_use_are_refused(name: str, value: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        bounds.check(Namespace(trainer=Namespace(**{name: value})))
    assert sentence in str(error.value)


def test_values_with_a_use_are_taken() -> None:
    bounds.check(
        Namespace(
            trainer=Namespace(
                max_steps=10**18, max_epochs=-1, limit_train_batches=0.5, fast_dev_run=False, default_root_dir=None
            )
        )
    )


@pytest.mark.parametrize(("verb", "side"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_scoring_needs_batches(verb: str, side: str) -> None:
    nothing = Namespace(trainer=Namespace(**{f"limit_{side}_batches": 0}))
    with pytest.raises(UserError, match=rf"--trainer.limit_{side}_batches is 0, which leaves nothing to {verb}; it"):
        bounds.check(nothing, verb)
    bounds.check(nothing, "fit")  # a training may go without
