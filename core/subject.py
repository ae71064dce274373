"""What a task lends to `triune lens`: a model with inputs, its question, and names for its tokens.

Every task has one class derived from `Subject`; the questions of `triune.lens` are asked of it and know no task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import UserError, nearest
from .lens.ablate import Part, all_heads
from .lens.decode import Direct
from .lens.effects import Scope, hidden_tokens, layer_weights
from .lens.points import check_heads, transformer_of
from .lens.scores import Pattern, head_scores
from .lens.stream import stream_attention


@dataclass
class Table:
    """Rows to print: cells are text or numbers, None for nothing."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Depths:
    """What the model's own head says after each block; depth 0 is the input of the first.

    Args:
        table: a row a depth.
        curves: by name, one value a depth.
        unit: of the curves.
    """

    table: Table
    curves: dict[str, list[float]]
    unit: str


@dataclass
class Square:
    """Two maps of pairs of positions in one picture, `[positions, positions]`, symmetric, each ranked by itself.

    Args:
        title, caption: what is above and what below the diagonal.
        upper, lower: the maps.
        marks: pairs known to be right.
    """

    title: str
    caption: str
    upper: Tensor
    lower: Tensor
    marks: list[list[int]]


@dataclass
class Contrast:
    """Two inputs of one shape for patching.

    Args:
        clean, corrupted: what the model is called with, a single value each.
        measure: from what the model returns to one number, differentiable.
        about: what it measures, a sentence.
        labels: of the positions, those that differ marked.
    """

    clean: Any
    corrupted: Any
    measure: Callable[[Any], Tensor]
    about: str
    labels: list[str]
    model: Any = None
    """What is called with them, where it is not the subject's own model."""


@dataclass
class Subject(ABC):
    """One model with inputs.

    Args:
        model: in evaluation mode; it holds one Transformer or pair stack.
        about: what the model and the inputs are, a sentence each.
        labels: of the tokens of the first input.
        picked: the measure to report, one of `measures`.
        grid: rows and columns of an image's patches, which are the last tokens; None for sequences.
    """

    model: Any
    about: list[str]
    labels: list[str]
    picked: str = ""
    grid: tuple[int, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What was drawn or computed on the way."""
    unit: str = "nats"
    """Of `effects`."""

    measures: tuple[str, ...] = ("log-probability",)
    """What can be measured; larger is better; the first is the default."""

    def __post_init__(self) -> None:
        self.picked = self.picked or self.measures[0]
        if self.picked not in self.measures:
            raise UserError(
                f"--measure is '{self.picked}'{nearest(self.picked, self.measures)}, but must be "
                f"{' or '.join(self.measures)} for this model and input."
            )

    @abstractmethod
    def run(self) -> Any:
        """Runs the model once on all inputs."""

    @abstractmethod
    def score(self) -> dict[str, Tensor]:
        """The measures by name, each one number, from one pass."""

    def measure(self) -> float:
        """The picked measure."""
        with torch.no_grad():
            return float(self.score()[self.picked])

    @abstractmethod
    def patterns(self) -> dict[str, Pattern]:
        """What a head may look at, the most telling first."""

    @abstractmethod
    def answers(self, copies: int) -> Tensor:
        """Log-probabilities `[copies, places, classes]` of the first input."""

    def reader(self) -> Tensor | None:
        """What each place of the answer reads, `[places, tokens]`, rows sum to 1; None where they are the tokens."""
        return None

    def visible(self) -> Tensor | None:
        """Edges that a random control may cut, bool `[inputs or 1, tokens, tokens]`; None where all tokens are real."""
        return None

    def once(self) -> Any:
        """Runs the model on the first input."""
        return self.answers(1)

    def weights(self, scope: Scope) -> tuple[Tensor, str]:
        """What each token of the first input reads, float64 `[tokens, tokens]` on the CPU, and of which part."""
        found = layer_weights(self.model, self.once, scope)[0].double().cpu()
        over = "mean" if transformer_of(self.model).config.causal else "rollout"
        if scope is None:
            return found, f"all layers ({over})"
        return found, f"layer {scope[0]}" + ("" if scope[1] is None else f", head {scope[1]}")

    def single_weights(self) -> dict[str, Tensor]:
        """The same by head, float32 `[tokens, tokens]`, as LAYER.HEAD."""
        found: dict[str, Tensor] = {}

        def keep(layer: int, maps: Tensor) -> None:
            found.update({f"{layer}.{head}": weights.cpu() for head, weights in enumerate(maps[0])})

        transformer, layers = transformer_of(self.model), {layer for layer, _ in self.heads()}
        count = transformer.config.heads
        wanted = [torch.arange(count if n in layers else 0) for n in range(transformer.config.depth)]
        stream_attention(transformer, self.once, keep, wanted)
        return found

    def check_head(self, layer: int, head: int | None) -> None:
        """Raises UserError for a layer or a head (a column of `heads`) that the model does not have."""
        check_heads(self.model, layer, [] if head is None else [head])

    def direct(self, against: str | None, answer: str | None) -> tuple[Direct, str] | None:
        """What each part adds to the answer to the first input directly, and what that answer is, a sentence; None
        where there is no answer.
        """
        if against or answer:
            raise UserError("--answer and --against name tokens or classes, which this model does not have.")
        return None

    @staticmethod
    def told_apart(right: int, wrong: int | None, name: Callable[[int], str]) -> None:
        """Raises UserError where an answer is held against itself, which measures nothing."""
        if right == wrong:
            raise UserError(
                f"The answer and the one it is held against are both {name(right)}, so that nothing tells them apart; "
                "name two different ones with --answer and --against (left out, they are the model's own answers)."
            )

    def effects(self, scope: Scope, group: int) -> tuple[Tensor, str]:
        """What moves each place, float64 `[places, tokens]`, and how it was found, in a sentence."""
        found = hidden_tokens(self.model, self.answers, len(self.labels), scope=scope, group=group)
        where = "in any layer" if scope is None else "in this layer" if scope[1] is None else "by this head"
        return found.mT, f"Effect: nats by which the answer moves when no other token sees this one {where}."

    def passes(self, scope: Scope) -> int:
        """Passes of one input that `effects` takes."""
        return len(self.labels) - 1

    @abstractmethod
    def depths(self) -> Depths:
        """What each depth says."""

    def contrast(self, against: str | None, answer: str | None) -> Contrast:
        """The first two inputs as clean and corrupted. Raises UserError where they do not fit."""
        raise UserError("This kind of model cannot be patched; ask for heads, ablate, depth or attention.")

    def maps(self) -> tuple[list[Table], list[Square]]:
        """Tables and maps of pairs to show beside weights and effects, once these are known."""
        return [], []

    @property
    def causal(self) -> bool:
        """Whether tokens read earlier ones alone."""
        return bool(transformer_of(self.model).config.causal)

    def heads(self) -> dict[tuple[int, int], Part]:
        """The heads by row and column of a picture."""
        return {(layer, head): (f"{layer}.z", head) for layer, head in all_heads(self.model)}

    def columns(self) -> list[str]:
        """Names of the columns of that picture."""
        return [str(head) for head in range(1 + max(column for _, column in self.heads()))]

    def scores(self) -> dict[str, Tensor]:
        """Scores of all heads, float `[layers, columns]`, by pattern and what else the task has; computed once."""
        if "scores" not in self.extra:
            found = head_scores(self.model, self.run, self.patterns())
            self.extra["scores"] = found | self.more_scores()
        return self.extra["scores"]

    def more_scores(self) -> dict[str, Tensor]:
        """Further scores of heads, float `[layers, heads]`, such as a precision against a known structure."""
        return {}


def only_real(pattern: Pattern, valid: Tensor | None) -> Pattern:
    """A pattern without padding: neither as query nor as key. valid bool `[batch, tokens]`, None when all are real."""
    if valid is None:
        return pattern

    def keys(tokens: int, device: torch.device) -> Tensor:
        found = pattern(tokens, device).expand(len(valid), -1, -1)
        here = valid.to(device)
        seen = here.gather(1, found.clamp(min=0).flatten(1)).view_as(found)
        return found.masked_fill(~(seen & here[:, :, None]), -1)

    return keys


def unlike(first: Sequence[Any], second: Sequence[Any]) -> list[int]:
    """Where two sequences of one length differ."""
    return [at for at, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
