"""Where a token stands: sinusoidal and learned tables added to the input, rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import TransformerConfig
from .errors import UserError
from .masks import positions_in_segments
from .rotary import RotaryConfig


def sinusoidal_table(positions: Tensor, dim: int) -> Tensor:
    """Sines and cosines of Vaswani et al. 2017, section 3.5. `positions` `[..., tokens]` -> float64 `[..., tokens,
    dim]`.

    Channel 2i holds sin(p / 10000^(2i/dim)), channel 2i+1 the cosine.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # float32 angles drift at large positions
    rate = torch.exp(torch.arange(0, dim, 2, device=positions.device, dtype=wide) * (-math.log(10_000.0) / dim))
    angle = positions[..., None].to(wide) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class LearnedPositions(nn.Embedding):
    """A trained vector for each of `context` positions. Positions `[..., tokens]` -> `[..., tokens, dim]`.

    The first `offset` rows of the table belong to no position of a real token (OPT, RoBERTa).
    """

    def __init__(self, context: int, dim: int, offset: int = 0) -> None:
        super().__init__(offset + context, dim)
        self.context, self.offset = context, offset
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.check(positions.shape[-1])
        return super().forward(positions + self.offset if self.offset else positions)

    def check(self, tokens: int) -> None:
        """Raises UserError for a longer input than the table. Looking at the largest position would make the GPU
        wait.
        """
        if tokens > self.context:
            raise UserError(
                f"The input has {tokens} tokens, but the learned position table has context = "
                f"{self.context} rows; give a shorter input or train with a larger context."
            )


class SinusoidalPositions(nn.Module):
    """The fixed table of 2017. Positions `[..., tokens]` -> `[..., tokens, dim]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, positions: Tensor) -> Tensor:
        return sinusoidal_table(positions, self.dim)


def make_positions(config: TransformerConfig) -> LearnedPositions | SinusoidalPositions | None:
    """What is added to the input of a model; None where positions are rotary or none."""
    if config.position == "learned":
        return LearnedPositions(config.context, config.dim, config.position_offset)
    return SinusoidalPositions(config.dim) if config.position == "sinusoidal" else None


def default_positions(
    config: TransformerConfig, table: nn.Module | None, segments: Tensor | None, past: int, tokens: int,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """Positions of `tokens` new tokens after `past` ones, where none are given.

    Args:
        config: of the model.
        table: what `make_positions` returned.
        segments: as `AttentionMask.segments` returns them, of all tokens.
        past: how many tokens there were before.
        tokens: how many are new.
        device: of the result.

    Raises:
        UserError: the table has too few rows, or positions have two axes.
    """
    if isinstance(table, LearnedPositions):
        table.check(past + tokens)
    if table is not None and segments is not None:
        return positions_in_segments(segments)[:, past:]
    if any(r is not None and r.axes == 2 for r in map(config.rotary_at, range(config.depth))):
        raise UserError("Rotary positions with two axes need positions=[tokens, 2], the row and column of each token.")
    return torch.arange(past, past + tokens, device=device)


def rotary_frequencies(
    config: RotaryConfig, head_dim: int, dtype: torch.dtype = torch.float64, long: bool = False
) -> tuple[Tensor, float]:
    """Angle per position of each rotated pair, `[pairs / axes]`, and the factor on cosine and sine.

    The scalings follow the papers named in `RotaryConfig`; `llama3` is Meta's released code for Llama 3.1.

    Args:
        config: settings.
        head_dim: width of a head.
        dtype: what to calculate in. Published models were trained with frequencies calculated in float32; rounding
            better ones instead makes another angle, which after thousands of positions shows in the outputs.
        long: for longrope, of a text with more than the original context.
    """
    dim = config.rotated_dim(head_dim) // config.axes
    # On the CPU whatever the default device is: a model made on the meta device has real frequencies.
    exponent = torch.arange(0, dim, 2, dtype=dtype, device="cpu") / dim
    base, factor = config.base, config.factor
    if config.scaling == "ntk":
        base = base * factor ** (dim / (dim - 2))
    rate = 1.0 / base**exponent
    if config.scaling == "linear":
        rate = rate / factor
    elif config.scaling == "llama3":
        wavelength, original = 2 * math.pi / rate, config.original_context or 0
        low, high = config.low_frequency_factor, config.high_frequency_factor
        keep = ((original / wavelength - low) / (high - low)).clamp(0, 1)  # 1 keeps a frequency, 0 stretches it fully
        rate = rate * keep + rate / factor * (1 - keep)
    elif config.scaling == "yarn":
        rate = _yarn(rate, config, dim)
    elif config.scaling == "longrope":
        rate = rate / torch.tensor(config.long_factors if long else config.short_factors, dtype=dtype, device="cpu")
    if config.half_precision:
        rate = rate.half().to(dtype)
    return rate, config.own_attention_factor


def _yarn(rate: Tensor, config: RotaryConfig, dim: int) -> Tensor:
    """Peng et al. 2023, section 3.2: a ramp over the pairs between kept and stretched frequencies."""

    def pair_with(turns: float) -> float:
        return dim * math.log((config.original_context or 0) / (turns * 2 * math.pi)) / (2 * math.log(config.base))

    low, high = math.floor(pair_with(config.beta_fast)), math.ceil(pair_with(config.beta_slow))
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=rate.dtype, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    return rate * (1 - ramp) + rate / config.factor * ramp


class Rotary(nn.Module):
    """Cosines and sines for one rotary setting. It has no parameters and nothing in the state dict.

    `positions` is `[tokens]` or `[batch, tokens]`, or with `axes` 2 coordinates `[..., tokens, 2]` (row, column); a
    token at the origin, such as a class token, is not rotated. Returns two tensors `[batch or 1, 1, tokens, pairs]`.

    `lengths`, which the scalings dynamic and longrope need, says how many tokens the text of each position has: one
    number, or int `[batch or 1, tokens]`.
    """

    def __init__(self, config: RotaryConfig, head_dim: int) -> None:
        super().__init__()
        self.config = config
        cpu, exact = torch.device("cpu"), torch.float64
        self.attention_factor = config.own_attention_factor
        # Not a buffer: casting the model to bfloat16 must not round the frequencies.
        self._rate = {
            (cpu, dtype, long): rotary_frequencies(config, head_dim, dtype, long)[0]
            for dtype in (exact, torch.float32)
            for long in ((False, True) if config.scaling == "longrope" else (False,))
        }

    def forward(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        rate = self._rates(positions.device, torch.promote_types(dtype, torch.float32), lengths)
        if self.config.axes == 2:
            angle = (positions[..., None].to(rate.dtype) * rate).flatten(-2)
        else:
            angle = positions[..., None].to(rate.dtype) * rate
        if angle.dim() == 2:
            angle = angle[None]
        return angle.cos()[:, None] * self.attention_factor, angle.sin()[:, None] * self.attention_factor

    def _rates(self, device: torch.device, dtype: torch.dtype, lengths: Tensor | int) -> Tensor:
        """Angles per position, `[pairs / axes]` or, for texts of several lengths, `[batch or 1, tokens, pairs]`."""
        scaling, original = self.config.scaling, self.config.original_context or 0
        rate = self._rate_on(device, dtype)
        if scaling == "longrope":
            long = self._rate_on(device, dtype, long=True)
            if isinstance(lengths, int):
                return long if lengths > original else rate
            return torch.where((lengths > original)[..., None], long, rate)
        if scaling != "dynamic" or (isinstance(lengths, int) and lengths <= original):
            return rate
        # The base grows by `stretch`^(dim / (dim - 2)), so that the last frequency is divided by `stretch`.
        stretch = self.config.factor * torch.as_tensor(lengths, dtype=dtype, device=device) / original
        stretch = (stretch - (self.config.factor - 1)).clamp(min=1)[..., None]
        pairs = len(rate)
        return rate / stretch ** (torch.arange(pairs, dtype=dtype, device=device) / (pairs - 1))

    def _rate_on(self, device: torch.device, dtype: torch.dtype, long: bool = False) -> Tensor:
        cpu = torch.device("cpu")
        if torch.compiler.is_compiling():  # a traced tensor must not stay in the cache
            return self._rate[cpu, dtype, long].to(device)
        if (device, dtype, long) not in self._rate:
            self._rate[device, dtype, long] = self._rate[cpu, dtype, long].to(device)
        return self._rate[device, dtype, long]


class LearnedRotary(nn.Module):
    """Cosines and sines of trained frequencies (RoPE-Mixed, Heo et al. 2024, section 3.2).

    `rate` `[2, heads, pairs]` holds the angle per row and per column of each pair of each head; it starts with the axes
    turned by a random angle for each head. Takes coordinates `[tokens, 2]` or `[batch, tokens, 2]` as `Rotary` does,
    and returns two tensors `[batch or 1, heads, tokens, pairs]`.
    """

    def __init__(self, config: RotaryConfig, heads: int, head_dim: int) -> None:
        super().__init__()
        self.config = config
        size = rotary_frequencies(config, head_dim, torch.float32)[0]  # half of the pairs
        turn = torch.rand(heads, 1) * (2 * math.pi)
        along, across = size.to(turn.device) * turn.cos(), size.to(turn.device) * turn.sin()
        self.rate = nn.Parameter(torch.stack([torch.cat([along, -across], -1), torch.cat([across, along], -1)]))

    def forward(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        rate = self.rate.to(wide)[:, :, None]  # [2, heads, 1, pairs]
        row, column = positions.to(wide)[..., None, :, None, :].unbind(-1)  # [..., 1, tokens, 1]
        angle = row * rate[0] + column * rate[1]
        angle = angle[None] if angle.dim() == 3 else angle
        return angle.cos(), angle.sin()


def make_rotary(config: RotaryConfig, heads: int, head_dim: int) -> Rotary | LearnedRotary:
    """The rotation of one layer."""
    return LearnedRotary(config, heads, head_dim) if config.learned else Rotary(config, head_dim)


Rotation = tuple[Tensor, Tensor]


def rotate(x: Tensor, rotation: Rotation, interleaved: bool) -> Tensor:
    """Turns each pair of channels of `x` `[batch, heads, tokens, head_dim]` by its angle; channels beyond the pairs
    stay.

    half split:   pairs (x[i], x[i + R/2]) of the first R channels      interleaved: pairs (x[2i], x[2i + 1])
    """
    cos, sin = rotation
    rotated = 2 * cos.shape[-1]
    turning, still = (x, None) if rotated == x.shape[-1] else (x[..., :rotated], x[..., rotated:])
    if interleaved:
        a, b = turning[..., ::2], turning[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    turned = turned.to(x.dtype)
    return turned if still is None else torch.cat([turned, still], dim=-1)
