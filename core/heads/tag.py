"""A class or a number for each token: a residue, a word, a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..evaluate.bootstrap import RESAMPLES
from ..evaluate.judgement import Judgement
from .base import Arrays, Head, HeadSpec, Labelled, Monitor, as_tensor
from .classify import Classify, ClassifyOptions
from .losses import Sums
from .regress import Regress, RegressOptions


@dataclass(frozen=True)
class TagOptions(RegressOptions, ClassifyOptions):
    """How tokens are learned.

    Args:
        numbers: tokens have numbers, not classes.
        class_weights, focal, label_smoothing: of classes; see `ClassifyOptions`.
        distribution, error: of numbers; see `RegressOptions`.
    """

    numbers: bool = False

    def __post_init__(self) -> None:
        ClassifyOptions.__post_init__(self)
        usual, kind = ClassifyOptions() if self.numbers else RegressOptions(), "numbers" if self.numbers else "classes"
        for name, value in asdict(usual).items():
            if (given := getattr(self, name)) != value:
                raise UserError(f"head.options.{name} is {given!r}, but must be {value!r} for tokens with {kind}.")


class Tag(Head):
    """A `Classify` or `Regress` head on every token, judged over all real tokens, with intervals over examples.

    Targets are int `[batch, tokens]` with `IGNORED`, or numbers with NaN, for padding and what is missing.
    """

    kind = "tag"
    per_token = True
    Options: ClassVar[type] = TagOptions
    each: Head
    """The head of one token."""

    @classmethod
    def prepare(cls, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
        """`target.values` are arrays `[tokens]`, one a row; an empty one is missing. `target.numbers` says which kind
        they are, else their type does.
        """
        rows = [np.asarray(row).ravel() for row in target.values]
        rows = [row for row in rows if len(row)]
        if not rows:
            raise UserError("All targets of the training rows are missing; there is nothing to learn.")
        numbers = getattr(target, "numbers", rows[0].dtype.kind == "f")
        chosen = cls.Options(**{"numbers": numbers, **(options or {})})
        inner = cls._kind(chosen).prepare(_Values(target.names, np.concatenate(rows)))
        return replace(inner, kind=cls.kind, options=asdict(chosen))

    @staticmethod
    def _kind(options: TagOptions) -> type[Head]:
        return Regress if options.numbers else Classify

    def build(self) -> None:
        kind = self._kind(self.options)
        options = {field.name: getattr(self.options, field.name) for field in fields(kind.Options)}
        self.each = kind(self.dim, replace(self.spec, kind=kind.kind, options=options))

    def restart(self) -> None:
        self.each.restart()

    @property
    def width(self) -> int:
        return self.each.width

    @property
    def monitor(self) -> Monitor:
        return self.each.monitor

    def prior(self) -> list[float]:
        return self.each.prior()

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[batch, tokens, dim]` -> outputs `[batch, tokens, width]`."""
        return self.each(vectors)

    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        return self.each.loss(outputs, targets)

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor | None:
        return self.each.averaged(targets, weights)

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The columns of the head of one token, each `[..., tokens]`."""
        return self.each.predict(outputs, self.spec.calibration if calibration is None else calibration)

    def calibrate(self, outputs: Tensor | Sequence[Tensor], targets: Arrays | Sequence[Arrays]) -> dict[str, Any]:
        outputs, targets, _ = flat(outputs, targets)
        return self.each.calibrate(outputs, targets)

    def judge(
        self,
        outputs: Tensor | Sequence[Tensor],
        targets: Arrays | Sequence[Arrays],
        calibration: dict[str, Any] | None = None,
        groups: Sequence[Any] | np.ndarray | None = None,
        resamples: int = RESAMPLES,
    ) -> Judgement:
        """The figures over all real tokens.

        Args:
            outputs: `[batch, tokens, width]`, a list of `[tokens, width]`, or `[all tokens, width]`.
            targets: `[batch, tokens]`, a list of `[tokens]`, or `[all tokens]`.
            calibration, resamples: see `Head.judge`.
            groups: what each example belongs to, or, of all tokens in one, each token. None means that each example is
                a group of its own, since its tokens are not independent of each other.
        """
        outputs, targets, examples = flat(outputs, targets)
        if examples is not None:
            groups = examples if groups is None else np.asarray(groups)[examples]
        return replace(self.each.judge(outputs, targets, calibration, groups, resamples), kind=self.kind)


@dataclass(frozen=True)
class _Values:
    names: Sequence[str]
    values: np.ndarray


def flat(
    outputs: Tensor | Sequence[Tensor], targets: Arrays | Sequence[Arrays]
) -> tuple[Tensor, Tensor, np.ndarray | None]:
    """Outputs `[all tokens, width]`, targets `[all tokens]`, and the example of each token; None for tokens given
    in one.
    """
    if isinstance(outputs, Tensor) and outputs.dim() == 2:
        return outputs, as_tensor(targets), None
    listed = [as_tensor(row) for row in targets]
    lengths = [len(row) for row in listed]
    if len(listed) != len(outputs) or any(len(row) != length for row, length in zip(outputs, lengths)):
        raise UserError(
            f"There are {len(outputs)} examples and {len(listed)} targets, but each example must have a target, and as "
            "many tokens as it."
        )
    if not listed:
        raise UserError("There is nothing to judge: the set is empty.")
    return torch.cat(list(outputs)), torch.cat(listed), np.repeat(np.arange(len(listed)), lengths)
