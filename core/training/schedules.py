"""Learning-rate schedules: a factor in 0..1 on the peak learning rate, as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..checks import check_types
from ..errors import UserError


@dataclass
class ScheduleConfig:
    """How the learning rate moves over a run.

    Args:
        kind: after warm-up: `cosine` or `linear` fall to `final` by the end of the run; `wsd` (warm-up, stable, decay)
            stays at the peak and falls at the end; `constant` stays at the peak.
        warmup: linear warm-up; below 1 a fraction of the run, otherwise a number of optimizer steps.
        final: learning rate at the end of the run, as a fraction of the peak (not for `constant`).
        decay: with `wsd`: the falling part; at most 1 a fraction of the run, otherwise a number of optimizer steps.
        shape: with `wsd`: how it falls; `linear`, or `1-sqrt` (Hägele et al. 2024, arXiv:2405.18392).

    Raises:
        UserError: a value outside its range.
    """

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup: float = 0.02
    final: float = 0.0
    decay: float = 0.2
    shape: Literal["linear", "1-sqrt"] = "linear"

    def __post_init__(self) -> None:
        check_types(self, "schedule.")
        checks = {
            "kind": (self.kind in ("cosine", "linear", "wsd", "constant"), "cosine, linear, wsd or constant"),
            "warmup": (0 <= self.warmup < math.inf, "a fraction of the run below 1 or a number of steps from 1 on"),
            "final": (0 <= self.final <= 1, "a fraction of the peak, from 0 to 1"),
            "decay": (0 < self.decay < math.inf, "a fraction of the run up to 1 or a number of steps above 1"),
            "shape": (self.shape in ("linear", "1-sqrt"), "linear or 1-sqrt"),
        }
        for field, (ok, allowed) in checks.items():
            if not ok:
                raise UserError(f"schedule.{field} is {getattr(self, field)}, but must be {allowed}.")

    @property
    def needs_length(self) -> bool:
        """Whether the factor depends on the length of the run."""
        return self.kind != "constant" or 0 < self.warmup < 1


def factor(config: ScheduleConfig, step: int, total: float) -> float:
    """Factor on the peak learning rate for optimizer step `step` (counted from 0) of `total`.

    Warm-up starts above zero, so that the first step is not lost; `final` would be reached at step `total`, one past
    the last. `total` may be infinite where the config does not need it (`needs_length`).
    """
    warmup = config.warmup * total if 0 < config.warmup < 1 else config.warmup
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.kind == "constant":
        return 1.0
    start = warmup
    if config.kind == "wsd":
        decay = config.decay * total if config.decay <= 1 else config.decay
        start = max(warmup, total - decay)
    # Past the end (a resumed run that was made longer by a step) the factor stays at `final`.
    progress = min(1.0, max(0.0, (step - start) / max(1.0, total - start)))
    if config.kind == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.kind == "wsd" and config.shape == "1-sqrt":
        height = 1 - math.sqrt(progress)
    else:
        height = 1 - progress
    return config.final + (1 - config.final) * height
