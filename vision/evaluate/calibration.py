"""Temperature scaling: one number that makes probabilities honest without changing any prediction (Guo et al. 2017,
4.2).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...core.checkpoints.checksums import CONFIG, write_config
from ...core.errors import UserError
from ...core.evaluate.calibration import cross_fitted, fit_temperature
from ..model import VisionTransformer
from .metrics import Judgement, checked, judge


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it brings.

    Args:
        temperature: fitted on all examples; logits divided by it give calibrated probabilities.
        before: figures of the logits as they are.
        after: figures of the scaled logits, *cross-fitted*: each half is scaled by the temperature of the other, so
            that no example is judged by a number it helped to choose.
    """

    temperature: float
    before: Judgement
    after: Judgement

    def to_summary(self) -> dict[str, float]:
        """The figures of `summary.json`: those of `before`, and the calibrated ones beside them."""
        return self.before.to_summary() | {
            "temperature": self.temperature, "ece_calibrated": self.after.ece, "nll_calibrated": self.after.nll,
            "brier_calibrated": self.after.brier, "adaptive_ece_calibrated": self.after.adaptive_ece,
        }  # fmt: skip


def calibrate(logits: Tensor, labels: Tensor, class_names: Sequence[str], seed: int = 0) -> Calibration:
    """Fits a temperature on validation data and judges what it does.

    Args:
        logits: `[examples, classes]`.
        labels: int `[examples]`, -100 is ignored.
        class_names: one name a class.
        seed: of the split into halves.

    Raises:
        UserError: as `metrics.judge`.
    """
    logits, labels = checked(logits, labels, len(class_names))
    return Calibration(
        temperature=fit_temperature(logits, labels),
        before=judge(logits, labels, class_names),
        after=judge(cross_fitted(logits, labels, seed), labels, class_names),
    )


def store_temperature(folder: str | os.PathLike[str], temperature: float) -> None:
    """Adds the key `temperature` to the `config.json` of a saved model; saving the model anew drops it."""
    path = Path(folder)
    config = VisionTransformer.read_settings(path) | {"temperature": temperature}
    write_config(path, config)


def read_temperature(folder: str | os.PathLike[str]) -> float:
    """The temperature stored with a model; 1 where there is none. Raises UserError for one that is no positive
    number.
    """
    temperature = VisionTransformer.read_settings(folder).get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise UserError(f"'{Path(folder) / CONFIG}': temperature is {temperature!r}, but must be positive.")
    return float(temperature)
