"""Settings of rotary position embeddings; what is computed from them is in `positions.py`. No torch at import."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import check, check_types, hashed

SCALING_USES: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": (),
    "ntk": (),
    "llama3": ("original_context", "low_frequency_factor", "high_frequency_factor"),
    "yarn": ("original_context", "beta_fast", "beta_slow", "attention_factor"),
    "dynamic": ("original_context",),
    "longrope": ("original_context", "short_factors", "long_factors", "attention_factor"),
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
            al. 2023), `ntk` (NTK-aware base), `llama3` (Llama 3.1), `yarn` (Peng et al. 2023). Two depend on how many
            tokens a text has: `dynamic` (an NTK-aware base that grows with what exceeds original_context) and
            `longrope` (Ding et al. 2024: one divisor a frequency, others above original_context).
        factor: by how much the context grows.
        original_context: tokens the model was first trained on (llama3, yarn, dynamic, longrope).
        low_frequency_factor: llama3, wavelengths above original_context / this are stretched fully.
        high_frequency_factor: llama3, wavelengths below original_context / this are kept.
        beta_fast: yarn, turns over the original context above which a frequency is kept.
        beta_slow: yarn, turns below which a frequency is stretched fully.
        short_factors: longrope, divisors of the frequencies of texts up to original_context.
        long_factors: longrope, divisors of the frequencies of longer texts.
        attention_factor: factor on cosine and sine; None means 0.1·ln(factor) + 1 for yarn, and
            sqrt(1 + ln(factor) / ln(original_context)) for longrope.
        half_precision: round the frequencies to float16, as the released ESM-2 checkpoints do.
        learned: the frequencies are parameters: each pair of each head of each layer turns with both the row and the
            column (RoPE-Mixed, Heo et al. 2024, section 3.2); base is where they start.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    axes: int = 1
    interleaved: bool = False
    scaling: Literal["none", "linear", "ntk", "llama3", "yarn", "dynamic", "longrope"] = "none"
    factor: float = 1.0
    original_context: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    short_factors: list[float] = field(default_factory=list)
    long_factors: list[float] = field(default_factory=list)
    attention_factor: float | None = None
    half_precision: bool = False
    learned: bool = False

    def __post_init__(self) -> None:
        check_types(self, "rotary.")
        check(self.base > 0, "rotary.base", self.base, "positive")
        check(0 < self.fraction <= 1, "rotary.fraction", self.fraction, "in (0, 1]")
        check(self.axes in (1, 2), "rotary.axes", self.axes, "1 or 2")
        check(not self.learned or self.axes == 2, "rotary.axes", self.axes, "2 with rotary.learned")
        plain = self.scaling == "none" or not self.learned
        check(plain, "rotary.scaling", self.scaling, "none with rotary.learned")
        check(not (self.learned and self.half_precision), "rotary.half_precision", True, "false with rotary.learned")
        check(self.axes == 1 or not self.grows, "rotary.axes", self.axes, f"1 with rotary.scaling {self.scaling}")
        check(self.factor >= 1, "rotary.factor", self.factor, "at least 1")
        if "original_context" in SCALING_USES[self.scaling]:
            check(
                bool(self.original_context), "rotary.original_context", self.original_context,
                f"the trained context in tokens when rotary.scaling is {self.scaling}",
            )  # fmt: skip
        for scaling, low, high in (
            ("llama3", "low_frequency_factor", "high_frequency_factor"), ("yarn", "beta_slow", "beta_fast"),
        ):  # fmt: skip
            above = self.scaling != scaling or getattr(self, low) < getattr(self, high)
            check(above, f"rotary.{high}", getattr(self, high), f"above rotary.{low} ({getattr(self, low)})")

        if self.scaling == "longrope":
            short, long = self.short_factors, self.long_factors
            for name, factors in (("short_factors", short), ("long_factors", long)):
                positive = bool(factors) and all(factor > 0 for factor in factors)
                check(positive, f"rotary.{name}", factors, "positive divisors for rotary.scaling longrope")
            check(
                len(short) == len(long), "rotary.long_factors", long, f"as many as rotary.short_factors ({len(short)})"
            )

    def __hash__(self) -> int:
        return hashed(self)

    @property
    def grows(self) -> bool:
        """Whether the angles depend on the length of a text."""
        return self.scaling in ("dynamic", "longrope")

    def rerotates(self, before: int, after: int) -> bool:
        """Whether a text that grows from `before` to `after` tokens needs other angles for those it had."""
        if self.scaling == "longrope":
            return before <= (self.original_context or 0) < after
        return self.scaling == "dynamic" and self.factor > 1 and before < after and after > (self.original_context or 0)

    @property
    def own_attention_factor(self) -> float:
        """The factor on cosine and sine."""
        if self.attention_factor is not None or self.factor <= 1:
            return 1.0 if self.attention_factor is None else self.attention_factor
        if self.scaling == "longrope":
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context or 0))
        return 0.1 * math.log(self.factor) + 1 if self.scaling == "yarn" else 1.0

    def canonical(self, head_dim: int) -> RotaryConfig:
        """The same rotation of heads of `head_dim` channels in one spelling, as `TransformerConfig.canonical` says."""
        none = self.scaling == "none" or (self.factor == 1 and self.scaling in ("linear", "ntk", "dynamic"))
        scaling = "none" if none else self.scaling
        unused = {name for names in SCALING_USES.values() for name in names} - {*SCALING_USES[scaling]}
        plain: dict[str, Any] = {name: getattr(RotaryConfig(), name) for name in unused}
        if "attention_factor" in SCALING_USES[scaling]:
            plain["attention_factor"] = self.own_attention_factor
        if self.learned:
            plain["base"] = RotaryConfig().base
        factor, fraction = 1.0 if none else self.factor, self.rotated_dim(head_dim) / head_dim
        return dataclasses.replace(self, scaling=scaling, factor=factor, fraction=fraction, **plain)

    def check_heads(self, head_dim: int, heads: int, kv_heads: int | None) -> None:
        """Raises UserError for heads that these settings cannot rotate."""
        check(
            not self.learned or kv_heads in (None, heads), "kv_heads", kv_heads,
            f"heads ({heads}) or null with rotary.learned, which turns each head by angles of its own",
        )  # fmt: skip
        rotated, step = self.rotated_dim(head_dim), 2 * self.axes
        check(
            rotated > 0 and rotated % step == 0, "head_dim", head_dim,
            f"such that its rotated part ({rotated}) is a multiple of {step} for rotary positions",
        )  # fmt: skip
        check(
            self.scaling not in ("ntk", "dynamic") or rotated > step, "head_dim", head_dim,
            f"such that its rotated part ({rotated}) exceeds {step} for rotary.scaling {self.scaling}",
        )  # fmt: skip
        divisors = len(self.short_factors)
        check(
            self.scaling != "longrope" or 2 * divisors == rotated, "rotary.short_factors", divisors,
            f"{rotated // 2} divisors, one for each pair of the rotated part of a head ({rotated})",
        )  # fmt: skip

    def rotated_dim(self, head_dim: int) -> int:
        """Channels of a head that are rotated; the rest carries no position."""
        return int(head_dim * self.fraction)
