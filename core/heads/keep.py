"""The head of a checkpoint as the start of a new one: weights meet targets by their names."""

from __future__ import annotations

from typing import Any

import torch

from .base import Head
from .classify import Classify
from .multilabel import Multilabel
from .regress import Regress
from .several import Several
from .tag import Tag


def keep(new: Head, old: Head) -> list[str]:
    """Gives `new` the weights of `old` for the names that both have; returns these names.

    Classes, labels and numbers (of one distribution, a point) keep what they answer: weights of classes that one of the
    trainings has and the other not are taken into account, and so is another unit of numbers. Names that only the new
    head has stay at their start. Of other kinds nothing is kept, and neither where several columns could be meant.
    """
    if isinstance(new, Several):
        parts: dict[str, Head] = dict(old.columns) if isinstance(old, Several) else {}
        if not parts:
            alike = [(name, head) for name, head in new.columns if head.kind == old.kind]
            shared = [name for name, head in alike if set(head.spec.names) & set(old.spec.names)]
            known = shared or [name for name, _ in alike]
            parts = {known[0]: old} if len(known) == 1 else {}
        return [word for name, head in new.columns if name in parts for word in keep(head, parts[name])]
    a, b = (head.each if isinstance(head, Tag) else head for head in (new, old))
    if type(a) is not type(b) or isinstance(new, Tag) != isinstance(old, Tag) or a.dim != b.dim:
        return []
    if not isinstance(a, Classify | Multilabel | Regress):
        return []
    if isinstance(a, Regress) and {a.options.distribution, b.options.distribution} != {"point"}:
        return []
    places = {name: i for i, name in enumerate(b.spec.names)}
    both = [name for name in a.spec.names if name in places]
    if isinstance(a, Regress) and not both and a.targets == b.targets == 1:
        both, places = list(a.spec.names), {a.spec.names[0]: 0}  # one number, whatever its column is called
    given: Any = a.linear
    with torch.no_grad():
        weight, bias = _plain(b)
        scale, shift = _scale(a)
        for i, name in enumerate(a.spec.names):
            if name in both:
                given.weight[i] = weight[places[name]] / scale[i]
                given.bias[i] = (bias[places[name]] - shift[i]) / scale[i]
    return both


def _scale(head: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What one output is multiplied by, and what is then added, for an answer in its own unit."""
    if isinstance(head, Regress):
        std, mean = (torch.tensor(head.trained(name), dtype=torch.float32) for name in ("std", "mean"))
        return std, mean
    weights = torch.tensor(head.weights or [1.0] * head.width, dtype=torch.float32)
    return torch.ones(head.width), -weights.log()


def _plain(head: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `[width, dim]` and bias `[width]` of answers in their own unit: log odds of data as they are, numbers."""
    scale, shift = _scale(head)
    return head.linear.weight * scale[:, None], head.linear.bias * scale + shift
