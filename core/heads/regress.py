"""One or several numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_types
from ..errors import UserError
from ..evaluate import regression as figures
from ..evaluate.bootstrap import Resamples, percentiles
from ..evaluate.calibration import LEVEL, conformal
from ..evaluate.judgement import Judgement
from .base import Arrays, Head, HeadSpec, Judged, Labelled, Monitor, Parts, as_tensor, kept
from .losses import Sums, absolute, at_least_float32, gaussian, pinball, squared

LEVELS = ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)
"""The quantiles that are learned: 5, 50 and 95 %."""
HALF = 1.6448536269514722
"""Standard deviations from the mean of a normal distribution to its 95 % quantile."""
NARROWEST = 1e-3
"""Standard deviations of the training targets between two quantiles, at the start and at least."""


@dataclass(frozen=True)
class RegressOptions:
    """How numbers are learned.

    Args:
        distribution: a `point`, a `gaussian` (mean and variance of each example; Nix and Weigend 1994), or three
            `quantile`s (5, 50 and 95 %).
        error: what a point minimises: the `squared` error, whose best answer is the mean, or the `absolute` one, whose
            best answer is the median and which bears outliers.
    """

    distribution: Literal["point", "gaussian", "quantile"] = "point"
    error: Literal["squared", "absolute"] = "squared"

    def __post_init__(self) -> None:
        check_types(self, "head.options.")


class Regress(Head):
    """Numbers, learned in standard deviations from the mean of the training targets and answered in their own unit.

    Outputs are, for each target in turn: the value; mean and log variance; or the three quantiles, which cannot cross
    since the outer ones are the median less or plus a positive distance.

    Intervals are to cover 90 %. `calibrate` fits a conformal margin on validation rows, by the absolute error of a
    point (Lei et al. 2018), by that over the standard deviation, or by the distance to the nearer quantile (Romano et
    al. 2019); a point has no interval before.
    """

    kind = "regress"
    Options: ClassVar[type] = RegressOptions

    @classmethod
    def prepare(cls, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
        """Mean and standard deviation of each target, and its quantiles in standard deviations from the mean."""
        values = np.asarray(target.values, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        training: dict[str, list[Any]] = {"mean": [], "std": [], "quantiles": []}
        for name, column in zip(target.names, values.T, strict=True):
            column = column[~np.isnan(column)]
            if not len(column):
                raise UserError(f"All targets {name!r} of the training rows are missing; there is nothing to learn.")
            if not np.isfinite(column).all():
                raise UserError(f"A target {name!r} is infinite, but must be a number.")
            mean, std = float(column.mean()), float(column.std())
            if np.ptp(column) == 0 or std == 0:
                raise UserError(
                    f"The target {name!r} is {column[0]:g} in every training row; there is nothing to learn."
                )
            training["mean"].append(mean)
            training["std"].append(std)
            training["quantiles"].append(np.quantile((column - mean) / std, LEVELS).tolist())
        return HeadSpec(cls.kind, tuple(target.names), asdict(cls.Options(**options or {})), training)

    @property
    def targets(self) -> int:
        """How many numbers an example has."""
        return len(self.spec.names)

    @property
    def each(self) -> int:
        """Outputs for one target."""
        return {"point": 1, "gaussian": 2, "quantile": 3}[self.options.distribution]

    @property
    def width(self) -> int:
        return self.targets * self.each

    @property
    def monitor(self) -> Monitor:
        return ("scaled_mae", "min")

    def trained(self, name: str) -> list[Any]:
        """What was counted in training, one entry a target; of a spec that does not say, the standard normal."""
        usual = {"mean": 0.0, "std": 1.0, "quantiles": [-HALF, 0.0, HALF]}[name]
        return list(self.spec.training.get(name) or [usual] * self.targets)

    def prior(self) -> list[float]:
        found: list[float] = []
        for low, middle, high in self.trained("quantiles"):
            if self.options.distribution == "gaussian":
                found += [0.0, 0.0]
            elif self.options.distribution == "point":
                found.append(0.0 if self.options.error == "squared" else middle)
            else:
                gaps = [max(gap, NARROWEST * 1.001) - NARROWEST for gap in (middle - low, high - middle)]
                found += [_softplus_inverse(gaps[0]), middle, _softplus_inverse(gaps[1])]
        return found

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[..., dim]` -> outputs `[..., width]` in standard deviations from the mean."""
        outputs = self.linear(vectors)
        if self.options.distribution != "quantile":
            return outputs
        below, middle, above = self.split(at_least_float32(outputs)).unbind(-1)
        low, high = middle - F.softplus(below) - NARROWEST, middle + F.softplus(above) + NARROWEST
        return torch.stack([low, middle, high], dim=-1).flatten(-2)

    def split(self, outputs: Tensor) -> Tensor:
        """Outputs `[..., width]` -> `[..., targets, each]`."""
        return outputs.unflatten(-1, (self.targets, self.each))

    def standard(self, targets: Tensor) -> Tensor:
        """Targets `[..., targets]` in standard deviations from the mean."""
        mean, std = (torch.tensor(self.trained(name), dtype=torch.float64) for name in ("mean", "std"))
        targets = at_least_float32(targets)
        return (targets - mean.to(targets)) / std.to(targets)

    def shaped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Targets `[..., targets]`, where one target may have been given as `[...]`."""
        return targets[..., None] if self.targets == 1 and targets.dim() == outputs.dim() - 1 else targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Of targets `[..., targets]` in their own unit, NaN where missing; best in float64."""
        aims, split = self.standard(self.shaped(outputs, targets)), self.split(outputs)
        if self.options.distribution == "gaussian":
            return gaussian(split[..., 0], split[..., 1], aims)
        if self.options.distribution == "quantile":
            return pinball(split, aims, LEVELS)
        return (squared if self.options.error == "squared" else absolute)(split[..., 0], aims)

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor | None:
        if self.options.distribution != "point":
            return None
        values = self.standard(targets if targets.dim() == 3 else targets[..., None])
        held = weights[..., None] * ~values.isnan()
        return (held * values.nan_to_num()).sum(1) / held.sum(1).clamp(min=1e-12)

    # --- answers ------------------------------------------------------------------------------------------------------

    def answers(self, outputs: Tensor, calibration: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Values and ends of intervals in standard deviations, float64 `[..., targets]`; no ends of a point without
        calibration. A target with too few validation rows for a margin has the interval that the model gives, or NaN.
        """
        split, margins = self.split(outputs.double()), calibration.get("margin") or [None] * self.targets
        unfitted = {"point": math.nan, "gaussian": HALF, "quantile": 0.0}[self.options.distribution]
        given = [unfitted if margin is None else margin for margin in margins]
        margin = torch.tensor(given, dtype=torch.float64, device=outputs.device)
        if self.options.distribution == "quantile":
            low, value, high = split.unbind(-1)
            # A negative margin may not turn the interval over.
            return value, torch.minimum(low - margin, value), torch.maximum(high + margin, value)
        value = split[..., 0]
        if self.options.distribution == "gaussian":
            half = torch.exp(bounded(split[..., 1]) / 2) * margin
        else:
            if margin.isnan().all():
                return value, None, None
            half = margin
        return value, value - half, value + half

    def unit(self, values: Tensor) -> np.ndarray:
        """Standard deviations `[..., targets]` in the targets' own unit."""
        mean, std = (np.asarray(self.trained(name)) for name in ("mean", "std"))
        return values.detach().cpu().numpy() * std + mean

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """value, low and high (90 %); of several targets `value_NAME` and so on."""
        found = self.answers(outputs.detach(), self.spec.calibration if calibration is None else calibration)
        columns = {}
        for number, target in enumerate(self.spec.names):
            for name, values in zip(("value", "low", "high"), found):
                if values is not None:
                    columns[name if self.targets == 1 else f"{name}_{target}"] = self.unit(values)[..., number]
        return columns

    def calibrate(self, outputs: Tensor, targets: Arrays) -> dict[str, Any]:
        """margin: one for each target, None for one with too few validation rows."""
        outputs, values, _ = self.kept(outputs, targets)
        split, aims = self.split(outputs), self.standard(values)
        if self.options.distribution == "quantile":
            scores = torch.maximum(split[..., 0] - aims, aims - split[..., 2])
        else:
            scores = (aims - split[..., 0]).abs()
            if self.options.distribution == "gaussian":
                scores = scores * torch.exp(-bounded(split[..., 1]) / 2)
        return {"margin": [conformal(column[~column.isnan()].numpy()) for column in scores.T]}

    # --- judging ------------------------------------------------------------------------------------------------------

    def said_of(self, outputs: Tensor, targets: Tensor, parts: Parts) -> list[figures.Numbers]:
        values, *raw = self.answers(outputs, {})
        low, high = (torch.full_like(values, math.nan) for _ in range(2))
        for rows, fitted in parts:
            _, a, b = self.answers(outputs[rows], fitted)
            if a is None or b is None:
                continue
            known = torch.tensor([margin is not None for margin in fitted.get("margin") or [None] * self.targets])
            low[rows], high[rows] = torch.where(known, a, math.nan), torch.where(known, b, math.nan)
        ends = {"": (raw[0], raw[1]), "_calibrated": (low, high)}
        each = [self._numbers(t, outputs, targets, values, ends) for t in range(self.targets)]
        return [numbers for numbers in each if len(numbers.true)]

    def figures_of(self, said: list[figures.Numbers]) -> dict[str, float]:
        return figures.averaged([figures.regress_metrics(numbers) for numbers in said])

    def judged(
        self, said: list[figures.Numbers], metrics: dict[str, float], drawn: Resamples, about: Judged
    ) -> Judgement:
        count, real = len(about.targets), ~about.targets.isnan().numpy()
        found = [
            figures.regress_resamples(n, np.flatnonzero(real[:, self.spec.names.index(n.name)]), count, drawn)
            for n in said
        ]
        intervals = percentiles(figures.averaged_resamples(found))
        baseline = figures.averaged(self._constant(about.targets))
        rows = [figures.regress_metrics(numbers) for numbers in said]
        keys = dict.fromkeys(key for row in rows for key in row)
        per_class = [
            {"name": n.name, "count": len(n.true), **{key: row.get(key) for key in keys}} for n, row in zip(said, rows)
        ]
        return Judgement(
            self.kind, count, metrics, intervals, baseline, per_class, [drawn.said(), *self._said(said)],
            scatters=[numbers.scatter() for numbers in said],
        )  # fmt: skip

    def _numbers(
        self, t: int, outputs: Tensor, targets: Tensor, values: Tensor, ends: dict[str, Any]
    ) -> figures.Numbers:
        real = ~targets[:, t].isnan()
        std = self.trained("std")[t]
        aims, split = self.standard(targets)[:, t], self.split(outputs)[:, t]
        losses = {}
        if self.options.distribution == "gaussian":
            # Of the number in its own unit.
            spread = bounded(split[:, 1])
            nats = 0.5 * (math.log(2 * math.pi) + spread + (aims - split[:, 0]).square() * (-spread).exp())
            losses["nll"] = (nats + math.log(std))[real].numpy()
        if self.options.distribution == "quantile":
            gap, level = aims[:, None] - split, split.new_tensor(LEVELS)
            losses["pinball"] = torch.maximum(level * gap, (level - 1) * gap).mean(dim=1)[real].numpy()
        held = {}
        for name, (low, high) in ends.items():
            if low is not None and not low[real, t].isnan().any():
                held[name] = (self.unit(low)[real.numpy(), t], self.unit(high)[real.numpy(), t])
        return figures.Numbers(
            self.spec.names[t], targets[real, t].numpy(), self.unit(values)[real.numpy(), t], std, held, losses
        )

    def _constant(self, targets: Tensor) -> list[dict[str, float]]:
        """The figures of one answer to everything: mean, normal distribution or quantiles of the training targets.

        The absolute error is that of their median, which no constant is better than there.
        """
        quantiles = torch.tensor(self.trained("quantiles"), dtype=torch.float64)
        middle = quantiles[:, 1].expand(len(targets), -1)
        if self.options.distribution == "quantile":
            outputs = quantiles.flatten().expand(len(targets), -1)
        else:
            outputs = torch.zeros(len(targets), self.width, dtype=torch.float64)
        value, *ends = self.answers(outputs, {})
        found = []
        for t in range(self.targets):
            if targets[:, t].isnan().all():
                continue
            figure = figures.regress_metrics(self._numbers(t, outputs, targets, value, {"": tuple(ends)}))
            best = figures.regress_metrics(self._numbers(t, outputs, targets, middle, {}))
            found.append(figure | {name: best[name] for name in ("mae", "scaled_mae")})
        return found

    def _said(self, each: list[figures.Numbers]) -> list[str]:
        missing = [name for name in self.spec.names if name not in {numbers.name for numbers in each}]
        return [f"No example has the target {name!r}." for name in missing]

    def kept(self, outputs: Tensor, targets: Arrays, groups: Any = None) -> tuple[Tensor, Tensor, np.ndarray | None]:
        targets = self.shaped(outputs, as_tensor(targets)).double()
        if targets.dim() == 2 and targets.shape[1] != self.targets:
            raise UserError(f"There are {targets.shape[1]} columns of targets, but the head has {self.targets}.")
        return kept(outputs, targets, lambda t: ~t.isnan().all(dim=1), groups)


def bounded(log_variance: Tensor) -> Tensor:
    """Log variances between -30 and 30: from 3e-7 to 3e6 standard deviations of the training targets, so that answers
    are finite whatever a model says.
    """
    return log_variance.clamp(-30, 30)


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))
