"""What every kind of head offers: a linear layer on vectors, its loss, its answers, and its judgement.

A further kind is one file with a subclass of `Head` and one call of `registry.register`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_keys, check_types
from ..errors import UserError
from ..evaluate.bootstrap import RESAMPLES, Resamples
from ..evaluate.calibration import halves
from ..evaluate.judgement import Judgement
from .losses import Sums

Monitor = tuple[str, Literal["min", "max"]]
Arrays = np.ndarray | Tensor
"""Values in either library."""
Parts = list[tuple[Tensor, dict[str, Any]]]
"""Numbers of examples, and the calibration that is applied to them."""


class Judged(NamedTuple):
    """What a judgement is of.

    Args:
        outputs, targets: of the examples that have a target.
        calibration: as given to `judge`.
    """

    outputs: Tensor
    targets: Tensor
    calibration: dict[str, Any] | None


class Labelled(Protocol):
    """What a head learns from the training rows: names of classes, labels or targets, and the values."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def values(self) -> Any: ...


@dataclass(frozen=True)
class HeadSpec:
    """All that makes a head, but its weights and its width of input; part of a model's `config.json`.

    Args:
        kind: the name that the head is registered by.
        names: of the classes, labels or targets, in the order of the outputs.
        options: settings, as the head's `Options`.
        training: what was counted on the training rows, such as the examples of each class.
        calibration: what was fitted on validation rows; empty before.
    """

    kind: str
    names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "head.")
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names or not all(isinstance(name, str) for name in self.names):
            raise UserError(f"head.names is {list(self.names)!r}, but must be a list of names.")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise UserError(f"head.names has {twice!r} twice, but each name must stand once.")

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON keeps exactly."""
        return asdict(self) | {"names": list(self.names)}

    @classmethod
    def from_dict(cls, values: Any) -> HeadSpec:
        """The inverse of `to_dict`. Raises UserError for other keys."""
        return cls(**check_keys(cls, values, "head"))

    @property
    def parts(self) -> dict[str, HeadSpec]:
        """The heads of several columns by their names; empty for one head."""
        held = self.training.get("heads") or {}
        return {name: HeadSpec.from_dict(values) for name, values in held.items()}

    @property
    def words(self) -> list[str]:
        """Names of all classes, labels and targets, those of the parts included."""
        return [word for part in self.parts.values() for word in part.words] or list(self.names)

    def calibrated(self, calibration: dict[str, Any]) -> HeadSpec:
        """The same with this calibration."""
        return replace(self, calibration=calibration)


class Head(nn.Module, ABC):
    """A linear layer on vectors `[..., dim]`, and all that follows from the kind of target.

    A new head answers what was commonest (or the mean) in training, whatever it reads: its weight is zero and its bias
    the `prior`.

    Args:
        dim: width of the vectors.
        spec: as `prepare` makes it.
    """

    kind: ClassVar[str]
    reads: ClassVar[str] = ""
    """Of a kind from elsewhere: the kind of the package (classify, multilabel, regress, ordinal) whose cells of a table
    and coded targets it has, so that `--data.kind` may name it."""
    per_token: bool = False
    Options: ClassVar[type]
    spec: HeadSpec
    options: Any

    def __init__(self, dim: int, spec: HeadSpec) -> None:
        super().__init__()
        self.dim, self.spec = dim, spec
        self.options = self.Options(**check_keys(self.Options, spec.options, "head.options"))
        self.build()

    def build(self) -> None:
        """Makes the layers."""
        self.linear = nn.Linear(self.dim, self.width)
        self.restart()

    def restart(self) -> None:
        """Sets the weights to those of a new head."""
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(torch.tensor(self.prior()))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[..., dim]` -> outputs `[..., width]`."""
        return self.linear(vectors)

    # --- what a kind says ---------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def prepare(cls, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
        """The spec of a head for these values of the training rows, and of these rows only."""

    @classmethod
    def reads_tokens(cls, spec: HeadSpec) -> bool:
        """Whether a head of this spec reads every token, instead of one vector of an example."""
        return cls.per_token

    @property
    @abstractmethod
    def width(self) -> int:
        """Outputs for a vector."""

    @abstractmethod
    def prior(self) -> list[float]:
        """The outputs of the best constant answer to the training rows, `[width]`."""

    @property
    @abstractmethod
    def monitor(self) -> Monitor:
        """The figure of `judge` that the best weights are chosen by, and its better side."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        """The sum over all real targets, and their number; both 0 where all are missing."""

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor | None:
        """Outputs `[examples, width]` that say the weighted mean of the targets of some neighbours, `[examples,
        neighbours, …]` with weights `[examples, neighbours]`; None for a kind whose targets have no mean.
        """
        return None

    @abstractmethod
    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Columns of a table of results, each `[...]` for outputs `[..., width]`. `calibration` None means that of the
        spec.
        """

    @abstractmethod
    def calibrate(self, outputs: Tensor, targets: Arrays) -> dict[str, Any]:
        """What makes probabilities, decisions or intervals honest, fitted on validation rows; values for JSON."""

    def kept(
        self, outputs: Tensor, targets: Arrays, groups: Sequence[Any] | np.ndarray | None = None
    ) -> tuple[Tensor, Tensor, np.ndarray | None]:
        """What `judge` looks at: outputs in float64, targets and groups of the examples that have a target; see `kept`
        below.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement kept(), or judge() as a whole.")

    def said_of(self, outputs: Tensor, targets: Tensor, parts: Parts) -> Any:
        """The answers to examples with targets, as trained and, by `parts`, calibrated: what the figures are made
        of.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement said_of(), or judge() as a whole.")

    def figures_of(self, said: Any) -> dict[str, float]:
        """The figures of a whole set."""
        raise NotImplementedError(f"{type(self).__name__} must implement figures_of(), or judge() as a whole.")

    def judged(self, said: Any, metrics: dict[str, float], drawn: Resamples, about: Judged) -> Judgement:
        """All that is known of a whole set: intervals, the constant answer, rows, notes, what pictures need."""
        raise NotImplementedError(f"{type(self).__name__} must implement judged(), or judge() as a whole.")

    def judge(
        self,
        outputs: Tensor,
        targets: Arrays,
        calibration: dict[str, Any] | None = None,
        groups: Sequence[Any] | np.ndarray | None = None,
        resamples: int = RESAMPLES,
    ) -> Judgement:
        """The figures of a whole set.

        Args:
            outputs: `[examples, width]`.
            targets: as for the loss, of the examples.
            calibration: what the calibrated figures are computed with, as for test rows. None fits it on one half of
                the examples and judges the other, both ways, so that no example is judged by a number that it helped
                to choose; an empty one leaves these figures out.
            groups: what each example belongs to; halves and resamples keep them whole.
            resamples: of the intervals; 0 computes the figures as trained alone, as each epoch of a training needs
                them, without intervals, baseline, rows or (unless it is given) calibration.

        Raises:
            UserError: shapes disagree, an output is not finite, or all targets are missing.
        """
        outputs, targets, group = self.kept(outputs, targets, groups)
        said = self.said_of(outputs, targets, self.parts(outputs, targets, calibration, group, resamples))
        metrics = self.figures_of(said)
        drawn = resampled(len(targets), group, resamples)
        if drawn is None:
            return Judgement(self.kind, len(targets), metrics)
        return self.judged(said, metrics, drawn, Judged(outputs, targets, calibration))

    # --- what kinds share ---------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """What it is, in a few words: the kind, how many names it has, and settings that are not the usual ones."""
        spec = self.spec
        names = {"regress": "target", "multilabel": "label"}.get(self.reads or spec.kind, "class")
        names += ("es" if names == "class" else "s") * (len(spec.names) > 1)
        usual = asdict(self.Options())
        chosen = [f"{name} {value}" for name, value in spec.options.items() if value != usual.get(name)]
        options = f" ({', '.join(chosen)})" if chosen else ""
        return f"{spec.kind} of {len(spec.names):,} {names}{options}"

    def over_views(self, outputs: Tensor) -> Tensor:
        """One answer of several to the same examples, `[answers, ..., width]` -> `[..., width]`: the mean of the
        outputs, so of numbers, or of log odds. Kinds with probabilities take the mean of these.
        """
        return outputs.mean(0)

    def parts(
        self,
        outputs: Tensor,
        targets: Tensor,
        calibration: dict[str, Any] | None,
        groups: np.ndarray | None,
        resamples: int,
    ) -> Parts:
        """Which calibration judges which examples: the given one all, or each half's the other half; none at all for
        the figures alone.
        """
        if calibration is not None:
            return [(torch.arange(len(outputs)), calibration)] if calibration else []
        if not resamples:
            return []
        a, b = halves(len(outputs), groups)
        if not len(b):
            return [(a, {})]
        return [(judged, self.calibrate(outputs[fitted], targets[fitted])) for fitted, judged in ((a, b), (b, a))]


def kept(
    outputs: Tensor, targets: Arrays, real: Any, groups: Sequence[Any] | np.ndarray | None = None
) -> tuple[Tensor, Tensor, np.ndarray | None]:
    """Outputs in float64, targets and groups of the examples that have a target, on the CPU.

    Args:
        outputs: `[examples, width]`.
        targets: `[examples]` or `[examples, targets]`.
        real: gives, from the targets, bool `[examples]`.
        groups: `[examples]`.

    Raises:
        UserError: shapes disagree, nothing is left, or an output is not finite.
    """
    targets = as_tensor(targets)
    if outputs.dim() != 2 or targets.shape[:1] != outputs.shape[:1]:
        raise UserError(
            f"Outputs are {tuple(outputs.shape)} and targets {tuple(targets.shape)}, but must be [examples, width] and "
            "as many targets."
        )
    if groups is not None and len(groups) != len(targets):
        raise UserError(f"There are {len(groups)} groups, but must be as many as examples, {len(targets)}.")
    keep = real(targets)
    if not keep.any():
        raise UserError("There is nothing to judge: every target is missing or the set is empty.")
    outputs = outputs.detach().cpu()[keep].double()
    if not torch.isfinite(outputs).all():
        rows = int((~torch.isfinite(outputs)).any(dim=1).sum())
        raise UserError(
            f"The outputs of {rows} of {len(outputs)} examples are not finite; the model's weights have diverged."
        )
    return outputs, targets[keep], None if groups is None else np.asarray(groups)[keep.numpy()]


def as_tensor(values: Any) -> Tensor:
    """Values of either library as a tensor on the CPU."""
    return torch.as_tensor(values).detach().cpu()


def resampled(count: int, groups: np.ndarray | None, resamples: int) -> Resamples | None:
    """The resamples of the intervals; None without."""
    return Resamples(count, groups, resamples) if resamples else None
