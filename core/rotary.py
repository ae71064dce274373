"""Settings of rotary position embeddings; what is computed from them is in `positions.py`. No torch at import."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from .checks import check, check_choice, check_types

SCALING_USES: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": (),
    "ntk": (),
    "llama3": ("original_context", "low_frequency_factor", "high_frequency_factor"),
    "yarn": ("original_context", "beta_fast", "beta_slow", "attention_factor"),
}
"""Settings of `RotaryConfig` that each kind of scaling reads besides `factor`."""


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embedding (Su et al. 2021, section 3.2), in one or two dimensions.

    Args:
        base: wavelengths run geometrically from 2π to 2π·base tokens.
        fraction: part of each head that is rotated (GPT-NeoX: 0.25).
        axes: 1 for sequences; 2 for grids, where the first half of the pairs turns with the row and the second with
            the column.
        interleaved: pair neighbouring channels (GPT-J, EVA) instead of the two halves of the head (Llama, ESM-2).
        scaling: how the wavelengths are stretched beyond the trained context: `linear` (position interpolation, Chen et
            al. 2023), `ntk` (NTK-aware base), `llama3` (Llama 3.1), `yarn` (Peng et al. 2023).
        factor: by how much the context grows.
        original_context: tokens the model was first trained on (llama3, yarn).
        low_frequency_factor: llama3, wavelengths above original_context / this are stretched fully.
        high_frequency_factor: llama3, wavelengths below original_context / this are kept.
        beta_fast: yarn, turns over the original context above which a frequency is kept.
        beta_slow: yarn, turns below which a frequency is stretched fully.
        attention_factor: yarn, factor on cosine and sine; None means 0.1·ln(factor) + 1.
        half_precision: round the frequencies to float16, as the released ESM-2 checkpoints do.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    axes: int = 1
    interleaved: bool = False
    scaling: Literal["none", "linear", "ntk", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    half_precision: bool = False

    def __post_init__(self) -> None:
        check_types(self, "rotary.")
        check(self.base > 0, "rotary.base", self.base, "positive")
        check(0 < self.fraction <= 1, "rotary.fraction", self.fraction, "in (0, 1]")
        check(self.axes in (1, 2), "rotary.axes", self.axes, "1 or 2")
        check_choice("rotary.scaling", self.scaling, Literal["none", "linear", "ntk", "llama3", "yarn"])
        check(self.factor >= 1, "rotary.factor", self.factor, "at least 1")
        if self.scaling in ("llama3", "yarn"):
            check(
                bool(self.original_context), "rotary.original_context", self.original_context,
                f"the trained context in tokens when rotary.scaling is {self.scaling}",
            )  # fmt: skip
        for scaling, low, high in (
            ("llama3", "low_frequency_factor", "high_frequency_factor"), ("yarn", "beta_slow", "beta_fast"),
        ):  # fmt: skip
            above = self.scaling != scaling or getattr(self, low) < getattr(self, high)
            check(above, f"rotary.{high}", getattr(self, high), f"above rotary.{low} ({getattr(self, low)})")

    def canonical(self, head_dim: int) -> RotaryConfig:
        """The same rotation of heads of `head_dim` channels in one spelling, as `TransformerConfig.canonical` says."""
        none = self.scaling == "none" or (self.factor == 1 and self.scaling in ("linear", "ntk"))
        scaling = "none" if none else self.scaling
        unused = {name for names in SCALING_USES.values() for name in names} - {*SCALING_USES[scaling]}
        plain: dict[str, Any] = {name: getattr(RotaryConfig(), name) for name in unused}
        if scaling == "yarn" and self.attention_factor is None:
            plain["attention_factor"] = 0.1 * math.log(self.factor) + 1
        factor, fraction = 1.0 if none else self.factor, self.rotated_dim(head_dim) / head_dim
        return dataclasses.replace(self, scaling=scaling, factor=factor, fraction=fraction, **plain)

    def rotated_dim(self, head_dim: int) -> int:
        """Channels of a head that are rotated; the rest carries no position."""
        return int(head_dim * self.fraction)
