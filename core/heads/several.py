"""Several targets of different kinds for one example: a head for each column, all on the same vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check, check_types
from ..errors import UserError, nearest
from ..evaluate.bootstrap import RESAMPLES
from ..evaluate.judgement import Judgement, joined
from ..files import few
from ..losses import IGNORED
from .base import Arrays, Head, HeadSpec, Monitor, as_tensor
from .known import head_class, make_head, prepare
from .losses import Sums, at_least_float32

SKILL = "skill"
"""The mean over the columns of (figure - that of the constant answer) / (faultless - that of the constant answer)."""


@dataclass(frozen=True)
class SeveralOptions:
    """How several columns are learned together.

    Args:
        weights: what the loss of a column counts, by its name; 1 for columns that are left out.
        heads: settings of the head of a column, by its name.
    """

    weights: dict[str, float] = field(default_factory=dict)
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "head.options.")
        for name, weight in self.weights.items():
            check(0 < weight < float("inf"), f"head.options.weights.{name}", weight, "a number above 0")


class Part(NamedTuple):
    """One column.

    Args:
        name: of the column.
        head: its own.
        outputs: those of its head, `[..., width]`.
        targets: as its head needs them.
        real: whether it has a target, bool `[...]`.
    """

    name: str
    head: Head
    outputs: Tensor
    targets: Tensor
    real: Tensor


class Several(Head):
    """A head for each column. Outputs are those of the columns side by side, and so are the targets: float, NaN where
    missing, classes by their numbers.

    The loss is the sum over the columns of weight x mean loss, where the mean is over the column's targets: the sum
    over the targets in the batch is divided by how many an example had on average in training, so that a column with
    few targets counts as much as one with many, and the rule is the same on any number of devices.

    Targets are `[examples, cells]`, or for columns with a label for each token `[batch, tokens, cells]`.
    """

    kind = "several"
    Options: ClassVar[type] = SeveralOptions

    @classmethod
    def prepare(cls, target: Any, options: dict[str, Any] | None = None) -> HeadSpec:
        """`target.parts` are the targets of the columns, `target.values` their cells side by side."""
        chosen = cls.Options(**options or {})
        names = list(target.names)
        for option in (chosen.weights, chosen.heads):
            for name in option:
                if name not in names:
                    raise UserError(
                        f"model.head names the column '{name}'{nearest(name, names)}, but the targets are {few(names)}."
                    )
        if odd := next((name for name in names if set(name) & set(',"\r\n')), None):
            raise UserError(f"The target {odd!r} has a comma, quote or line break in its name; rename the column.")
        values = target.values
        cells = (
            np.concatenate([v for v in values if len(v)] or [np.zeros((0, 0))]) if isinstance(values, list) else values
        )
        examples = max(1, int((~np.isnan(cells).all(-1)).sum()))
        heads, layout, first = {}, {}, 0
        for name, part in zip(names, target.parts, strict=True):
            given = dict(chosen.heads.get(name, {}))
            if part.kind == "tag" and part.numbers:
                given.setdefault("numbers", True)
            heads[name] = prepare(part.kind, part, given).to_dict()
            layout[name] = part.layout()
            own = cells[:, first : first + layout[name]["cells"]]
            layout[name]["units"] = float((~np.isnan(own)).sum()) / examples
            first += layout[name]["cells"]
        return HeadSpec(cls.kind, tuple(names), asdict(chosen), {"heads": heads, "layout": layout})

    @classmethod
    def reads_tokens(cls, spec: HeadSpec) -> bool:
        """Raises UserError where some columns have a label for each token and others one for the whole input."""
        each = {name: head_class(part.kind).reads_tokens(part) for name, part in spec.parts.items()}
        if len(set(each.values())) > 1:
            yes, no = ([name for name, reads in each.items() if reads is kind] for kind in (True, False))
            raise UserError(
                f"{few(yes)} has a label for each token and {few(no)} one for the whole input, which one model does not"
                " learn together; train two."
            )
        return any(each.values())

    # --- the columns --------------------------------------------------------------------------------------------------

    def build(self) -> None:
        parts = self.spec.parts
        self.per_token = self.reads_tokens(self.spec)
        self.heads = nn.ModuleList([make_head(parts[name], self.dim) for name in self.spec.names])

    def restart(self) -> None:
        for _, head in self.columns:
            head.restart()

    @property
    def columns(self) -> list[tuple[str, Head]]:
        """The name of each column, and its head."""
        heads: Any = self.heads
        return list(zip(self.spec.names, heads, strict=True))

    @property
    def width(self) -> int:
        return sum(head.width for _, head in self.columns)

    @property
    def monitor(self) -> Monitor:
        return (SKILL, "max")

    def prior(self) -> list[float]:
        return [value for _, head in self.columns for value in head.prior()]

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.cat([at_least_float32(head(vectors)) for _, head in self.columns], dim=-1)

    def outputs_of(self, outputs: Tensor) -> Iterator[tuple[str, Head, Tensor]]:
        """Each column with its part of the outputs `[..., width]`."""
        widths = [head.width for _, head in self.columns]
        for (name, head), own in zip(self.columns, outputs.split(widths, dim=-1), strict=True):
            yield name, head, own

    def parts_of(self, outputs: Tensor, targets: Tensor) -> Iterator[Part]:
        """Each column with its outputs and its targets."""
        layout, first = self.spec.training["layout"], 0
        for name, head, own in self.outputs_of(outputs):
            cells = targets[..., first : first + layout[name]["cells"]]
            first += layout[name]["cells"]
            real = ~cells.isnan().all(-1)
            if layout[name]["flat"]:
                cells = cells[..., 0]
            if layout[name]["codes"]:
                cells = torch.where(cells.isnan(), IGNORED, cells.nan_to_num()).round().long()
            yield Part(name, head, own, cells, real)

    # --- training -----------------------------------------------------------------------------------------------------

    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        total, weights = outputs.new_zeros((), dtype=torch.float32), self.options.weights
        for name, head, own, cells, _ in self.parts_of(outputs, targets):
            units = self.spec.training["layout"][name]["units"]
            total = total + head.loss(own, cells)[0] * (weights.get(name, 1.0) / units)
        return total, (~targets.isnan().all(-1)).sum()

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor | None:
        found = []
        for name, head, _, cells, real in self.parts_of(weights.new_zeros(*targets.shape[:-1], self.width), targets):
            held = weights * real
            held = torch.where(held.sum(1, keepdim=True) > 0, held, weights * 0 + 1e-9)
            if self.spec.training["layout"][name]["codes"]:
                cells = cells.clamp_min(0)
            if (one := head.averaged(cells, held)) is None:
                return None
            found.append(one)
        return torch.cat(found, dim=-1)

    def over_views(self, outputs: Tensor) -> Tensor:
        return torch.cat([head.over_views(own) for _, head, own in self.outputs_of(outputs)], dim=-1)

    def describe(self) -> str:
        weights = self.options.weights
        said = (
            f"{name} {head.describe()}" + (f", weight {weights[name]:g}" if name in weights else "")
            for name, head in self.columns
        )
        return f"several: {'; '.join(said)}"

    # --- answers ------------------------------------------------------------------------------------------------------

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The answers of each column's head, called COLUMN.NAME, such as `grade.label` and `size.value`."""
        calibration = self.spec.calibration if calibration is None else calibration
        return {
            f"{name}.{key}": values
            for name, head, own in self.outputs_of(outputs)
            for key, values in head.predict(own, calibration.get(name, {})).items()
        }

    def calibrate(self, outputs: Tensor, targets: Arrays) -> dict[str, Any]:
        """What each column's head fits, by its name; nothing for a column without a target."""
        return {
            part.name: part.head.calibrate(part.outputs, part.targets)
            for part in self.parts_of(outputs, as_tensor(targets))
            if part.real.any()
        }

    def judge(
        self,
        outputs: Tensor,
        targets: Arrays,
        calibration: dict[str, Any] | None = None,
        groups: Sequence[Any] | np.ndarray | None = None,
        resamples: int = RESAMPLES,
    ) -> Judgement:
        """The figures of each column's head, called COLUMN.FIGURE, after `SKILL`, which chooses the best weights."""
        targets = as_tensor(targets)
        judged, skills, lacking = {}, [], []
        for part in self.parts_of(outputs, targets):
            if not part.real.any():
                lacking.append(part.name)
                continue
            own = None if calibration is None else calibration.get(part.name, {})
            judged[part.name] = part.head.judge(part.outputs, part.targets, own, groups, resamples)
            skills += self._skill(part, judged[part.name])
        if not judged:
            raise UserError("There is nothing to judge: every target is missing or the set is empty.")
        notes = [f"No example has a target of {few(lacking)}."] if lacking else []
        count = int((~targets.isnan().all(-1)).sum())
        first = {SKILL: float(np.mean(skills))} if skills else {}
        return joined(self.kind, count, judged, first, notes)

    def _skill(self, part: Part, judged: Judgement) -> list[float]:
        """How far the head's figure is from that of the constant answer to faultless; empty where that is not known."""
        name, better = part.head.monitor
        fresh = make_head(part.head.spec, 1)
        constant = fresh(torch.zeros(1, 1)).detach().expand(part.outputs.shape)
        figure = fresh.judge(constant, part.targets, {}, resamples=0).metrics.get(name)
        best = 1.0 if better == "max" else 0.0
        if figure is None or name not in judged.metrics or figure == best:
            return []
        return [(judged.metrics[name] - figure) / (best - figure)]
