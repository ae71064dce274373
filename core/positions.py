"""Where a token stands: sinusoidal and learned tables added to the input, rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .errors import UserError
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
    """A trained vector for each of `context` positions. Positions `[..., tokens]` -> `[..., tokens, dim]`."""

    def __init__(self, context: int, dim: int) -> None:
        super().__init__(context, dim)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.check(positions.shape[-1])
        return super().forward(positions)

    def check(self, tokens: int) -> None:
        """Raise UserError for a longer input than the table. Looking at the largest position would make the GPU
        wait.
        """
        if tokens > self.num_embeddings:
            raise UserError(
                f"The input has {tokens} tokens, but the learned position table has context = "
                f"{self.num_embeddings} rows; give a shorter input or train with a larger context."
            )


class SinusoidalPositions(nn.Module):
    """The fixed table of 2017. Positions `[..., tokens]` -> `[..., tokens, dim]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, positions: Tensor) -> Tensor:
        return sinusoidal_table(positions, self.dim)


def rotary_frequencies(config: RotaryConfig, head_dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, float]:
    """Angle per position of each rotated pair, `[pairs / axes]`, and the factor on cosine and sine.

    The scalings follow the papers named in `RotaryConfig`; `llama3` is Meta's released code for Llama 3.1.

    Args:
        config: settings.
        head_dim: width of a head.
        dtype: what to calculate in. Published models were trained with frequencies calculated in float32; rounding
            better ones instead makes another angle, which after thousands of positions shows in the outputs.
    """
    dim = config.rotated_dim(head_dim) // config.axes
    # On the CPU whatever the default device is: a model made on the meta device has real frequencies.
    exponent = torch.arange(0, dim, 2, dtype=dtype, device="cpu") / dim
    base, factor, attention_factor = config.base, config.factor, 1.0
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
        attention_factor = config.attention_factor or 0.1 * math.log(factor) + 1.0
    if config.half_precision:
        rate = rate.half().to(dtype)
    return rate, attention_factor


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
    """

    def __init__(self, config: RotaryConfig, head_dim: int) -> None:
        super().__init__()
        self.config = config
        cpu, exact = torch.device("cpu"), torch.float64
        rate, self.attention_factor = rotary_frequencies(config, head_dim)
        # Not a buffer: casting the model to bfloat16 must not round the frequencies.
        self._rate = {(cpu, exact): rate, (cpu, torch.float32): rotary_frequencies(config, head_dim, torch.float32)[0]}

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rate = self._rate_on(positions.device, torch.promote_types(dtype, torch.float32))
        if self.config.axes == 2:
            angle = (positions[..., None].to(rate.dtype) * rate).flatten(-2)
        else:
            angle = positions[..., None].to(rate.dtype) * rate
        if angle.dim() == 2:
            angle = angle[None]
        return angle.cos()[:, None] * self.attention_factor, angle.sin()[:, None] * self.attention_factor

    def _rate_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():  # a traced tensor must not stay in the cache
            return self._rate[torch.device("cpu"), dtype].to(device)
        if (device, dtype) not in self._rate:
            self._rate[device, dtype] = self._rate[torch.device("cpu"), dtype].to(device)
        return self._rate[device, dtype]


Rotation = tuple[Tensor, Tensor]


def rotate(x: Tensor, rotation: Rotation, interleaved: bool) -> Tensor:
    """Turn each pair of channels of `x` `[batch, heads, tokens, head_dim]` by its angle; channels beyond the pairs
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
