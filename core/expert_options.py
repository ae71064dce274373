"""Settings of mixtures of experts; what is computed with them is in `experts.py`. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .checks import check, check_choice, check_types, counts

PREFIX = "experts."


@dataclass(frozen=True)
class ExpertsConfig:
    """A feed-forward of several experts, of which each token reads a few (Shazeer et al. 2017).

    What the published models choose: Mixtral and Qwen3-MoE `score` softmax and `renormalise`; Jamba softmax without
    it; Qwen2-MoE and Qwen3-Next also `shared` with `shared_gate`; DeepSeek-V3 sigmoid with a balancing bias.

    Args:
        count: experts of a layer.
        active: experts that a token reads.
        dim: hidden width of one expert; None means ffn_dim.
        layers: numbers of the layers that have experts, from 0; None means all that have a feed-forward.
        score: of a token for each expert: `softmax` over all experts, or a `sigmoid` of each.
        renormalise: the scores of the chosen experts are divided by their sum.
        scale: factor on what the chosen experts say together (DeepSeek-V3).
        shared: hidden width of an expert that all tokens read; 0 for none.
        shared_gate: the output of the shared expert is multiplied by the sigmoid of a linear function of the token.
        bias_rate: balances the experts without a loss (Wang et al. 2024): after each optimizer step a bias that only
            the choice of experts sees grows by this for each expert with fewer tokens than the mean, and falls for
            those with more; 0 for no bias.
        loss_weight: balances them with a loss (Fedus et al. 2021, equations 4 to 6): the factor on the number of
            experts times the sum over experts of their share of choices times their mean score; its mean over the
            layers is added to the loss in training. 0 for none.
    """

    count: int = 8
    active: int = 2
    dim: int | None = None
    layers: list[int] | None = None
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    shared: int = 0
    shared_gate: bool = False
    bias_rate: float = 0.001
    loss_weight: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, PREFIX)
        check_choice(f"{PREFIX}score", self.score, Literal["softmax", "sigmoid"])
        check(counts(self.count), f"{PREFIX}count", self.count, "a positive integer")
        allowed = f"from 1 to experts.count ({self.count})"
        check(1 <= self.active <= self.count, f"{PREFIX}active", self.active, allowed)
        check(self.dim is None or counts(self.dim), f"{PREFIX}dim", self.dim, "a positive integer or null")
        check(self.shared >= 0, f"{PREFIX}shared", self.shared, "at least 0")
        needs = "false without a shared expert (experts.shared)"
        check(self.shared > 0 or not self.shared_gate, f"{PREFIX}shared_gate", self.shared_gate, needs)
        check(0 <= self.bias_rate < 1, f"{PREFIX}bias_rate", self.bias_rate, "at least 0 and below 1")
        check(0 < self.scale < math.inf, f"{PREFIX}scale", self.scale, "positive and finite")
        allowed = "at least 0 and finite"
        check(0 <= self.loss_weight < math.inf, f"{PREFIX}loss_weight", self.loss_weight, allowed)

    def check_layers(self, ffn: Sequence[str]) -> None:
        """Raises UserError where `layers` names no layer, one twice, or one without a feed-forward; `ffn` has the kind
        of each layer.
        """
        name, chosen = f"{PREFIX}layers", self.layers
        for layer in chosen or []:
            check(0 <= layer < len(ffn), name, chosen, f"numbers of layers from 0 to {len(ffn) - 1}")
            check(ffn[layer] != "none", name, chosen, f"without layer {layer}, whose ffn is none")
        check(len(set(chosen or [])) == len(chosen or []), name, chosen, "without a number twice")
        some = chosen is None and any(kind != "none" for kind in ffn)
        check(some or bool(chosen), name, chosen, "such that a layer has experts; without any, leave experts out")

    def of(self, layer: int, ffn: Sequence[str]) -> bool:
        """Whether a layer has experts."""
        return ffn[layer] != "none" and (self.layers is None or layer in self.layers)

    def resolved(self, ffn_dim: int, ffn: Sequence[str]) -> ExpertsConfig:
        """The same with widths and layers written out; all layers that have a feed-forward are None."""
        found = [layer for layer in range(len(ffn)) if self.of(layer, ffn)]
        everywhere = len(found) == sum(kind != "none" for kind in ffn)
        return replace(self, dim=self.dim or ffn_dim, layers=None if everywhere else found)

    def canonical(self) -> ExpertsConfig:
        """The same function in one spelling; what only matters in training gets its default."""
        plain = ExpertsConfig()
        rate = plain.bias_rate if self.bias_rate else 0.0  # whether there is a bias, not how fast it moves
        one = self.active == 1 and self.renormalise  # the only score is then 1
        return replace(self, bias_rate=rate, loss_weight=plain.loss_weight, score="softmax" if one else self.score)

    def __str__(self) -> str:
        shared = f" and a shared one of {self.shared}" if self.shared else ""
        by = [f"a bias (rate {self.bias_rate:g})"] * bool(self.bias_rate)
        by += [f"a loss (weight {self.loss_weight:g}, added to the training loss)"] * bool(self.loss_weight)
        balance = f", balanced by {' and '.join(by)}" if by else ", not balanced"
        return f"{self.count} experts of {self.dim or 'ffn_dim'}, {self.active} active{shared}{balance}"


def in_words(ffn: Sequence[str], experts: ExpertsConfig | None) -> str:
    """The feed-forwards of all layers, as a person says it: "swiglu, 8 experts of 64, 2 active in 2 of 4 layers"."""
    kinds = ", ".join(f"{kind} in {ffn.count(kind)}" if len(set(ffn)) > 1 else kind for kind in dict.fromkeys(ffn))
    if experts is None:
        return kinds
    layers = sum(experts.of(layer, ffn) for layer in range(len(ffn)))
    return f"{kinds}, {experts}" + (f" in {layers} of {len(ffn)} layers" if layers < len(ffn) else "")
