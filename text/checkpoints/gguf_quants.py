"""Weights as llama.cpp keeps them: blocks of a row, each with its own scale.

Layouts: ggml's definition of its blocks, which the `gguf` package reads back with `gguf.quants.dequantize`. The package
quantises the simple kinds; those of super-blocks of 256 values ("k-quants") are calculated here:

| kind | values of a block | a value is                              | bits per weight |
|------|-------------------|-----------------------------------------|-----------------|
| Q8_0 | 32                | d·q, q of 8 bits                        | 8.5             |
| Q5_0 | 32                | d·(q − 16), q of 5 bits                 | 5.5             |
| Q4_K | 8 times 32        | d·s·q − m·t, q of 4 bits, s and t of 6  | 4.5             |
| Q6_K | 16 times 16       | d·s·(q − 32), q of 6 bits, s of 8       | 6.5625          |
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError

SUPER, SMALL = 256, 32
"""Values of a super-block and of a plain block."""
ROUNDS = 5
"""Times that the scale and the whole numbers of a block are fitted to each other."""
AT_ONCE = 1 << 12
"""Super-blocks that are fitted at once, which bounds the memory."""
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
"""What `--type` takes."""
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
"""llama.cpp's numbers of them, as `general.file_type`."""
PLAIN = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}


def _nearest(x: Tensor, scale: Tensor, least: int, most: int) -> Tensor:
    """Whole numbers with which `scale` times them is nearest to `x`; 0 where the scale is 0."""
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.where(scale == 0, torch.zeros_like(x), (x / safe).round()).clamp(least, most)


def fit_scaled(x: Tensor, least: int, most: int) -> tuple[Tensor, Tensor]:
    """A scale for each row and whole numbers q, so that scale·q is close to `x`: `[rows, values]` -> `[rows, 1]` and
    the shape of x. The scale and the numbers are fitted to each other by least squares in turn, weighted by the square
    of the values, and the best of the rounds counts.
    """
    weight = x.square()
    at = x.abs().argmax(dim=1, keepdim=True)
    scale = x.gather(1, at) / least  # the largest value becomes the end of the range that reaches further
    best, fewest = scale, torch.full_like(scale, torch.inf)
    for _ in range(ROUNDS):
        q = _nearest(x, scale, least, most)
        error = (weight * (x - scale * q).square()).sum(1, keepdim=True)
        best, fewest = torch.where(error < fewest, scale, best), torch.minimum(error, fewest)
        norm = (weight * q * q).sum(1, keepdim=True)
        fitted = (weight * x * q).sum(1, keepdim=True) / norm.clamp(min=1e-30)
        scale = torch.where(norm > 0, fitted, scale)
    return best, _nearest(x, best, least, most)


def fit_shifted(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """A scale and a shift of at least 0 for each row, so that scale·q − shift with whole q from 0 to `most` is close to
    `x`: `[rows, values]` -> twice `[rows, 1]`. Fitted as in `fit_scaled`, but without weights.
    """
    shift = (-x.amin(1, keepdim=True)).clamp(min=0)
    scale = (x.amax(1, keepdim=True) + shift).clamp(min=0) / most
    best, fewest, count = (scale, shift), torch.full_like(scale, torch.inf), x.shape[1]
    for _ in range(ROUNDS):
        q = _nearest(x + shift, scale, 0, most)
        error = (x - scale * q + shift).square().sum(1, keepdim=True)
        better = error < fewest
        best = torch.where(better, scale, best[0]), torch.where(better, shift, best[1])
        fewest = torch.minimum(error, fewest)
        # The line through (q, x) of least squares.
        q_mean, x_mean = q.mean(1, keepdim=True), x.mean(1, keepdim=True)
        spread = (q * q).sum(1, keepdim=True) - count * q_mean * q_mean
        slope = ((q * x).sum(1, keepdim=True) - count * q_mean * x_mean) / spread.clamp(min=1e-30)
        scale = torch.where(spread > 0, slope.clamp(min=0), scale)
        shift = (scale * q_mean - x_mean).clamp(min=0)
    return best


def _half(x: Tensor) -> Tensor:
    """As 16-bit numbers keep it."""
    return x.half().float()


def _bytes(*parts: Tensor) -> np.ndarray:
    """Parts of a block one behind the other, uint8 `[blocks, bytes]`."""
    return np.concatenate([part.contiguous().numpy().view(np.uint8).reshape(len(part), -1) for part in parts], axis=1)


def pack_6(scales: Tensor, shifts: Tensor) -> Tensor:
    """Eight scales and eight shifts of 6 bits in 12 bytes: uint8 `[blocks, 8]` twice -> `[blocks, 12]`.

    The first four of each are the low bits of the bytes 0 to 3 and 4 to 7. Of the last four, the low four bits share
    the bytes 8 to 11, and the high two bits lie above those of the first four.
    """
    low = (scales[:, 4:] & 15) | ((shifts[:, 4:] & 15) << 4)
    first, second = (part[:, :4] | ((part[:, 4:] >> 4) << 6) for part in (scales, shifts))
    return torch.cat([first, second, low], dim=1)


def quantize_q4_k(x: Tensor) -> np.ndarray:
    """Q4_K blocks of rows of 256 values: float32 `[blocks, 256]` -> uint8 `[blocks, 144]`."""
    parts = x.view(-1, SMALL)
    scale, shift = (part.view(-1, 8) for part in fit_shifted(parts, 15))
    d, m = (_half(part.amax(1, keepdim=True) / 63) for part in (scale, shift))
    scales, shifts = _nearest(scale, d, 0, 63), _nearest(shift, m, 0, 63)
    own, lifted = (d * scales).view(-1, 1), (m * shifts).view(-1, 1)
    q = _nearest(parts + lifted, own, 0, 15).byte().view(-1, 4, 2, SMALL)
    packed = (q[:, :, 0] | (q[:, :, 1] << 4)).view(-1, SUPER // 2)  # two rows of 32 share the bytes of one
    return _bytes(d.half(), m.half(), pack_6(scales.byte(), shifts.byte()), packed)


def quantize_q6_k(x: Tensor) -> np.ndarray:
    """Q6_K blocks of rows of 256 values: float32 `[blocks, 256]` -> uint8 `[blocks, 210]`."""
    parts = x.view(-1, 16)
    scale, _ = fit_scaled(parts, -32, 31)
    scale = scale.view(-1, 16)
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    d = _half(largest / -128)
    scales = _nearest(scale, d, -128, 127)
    q = (_nearest(parts, (d * scales).view(-1, 1), -32, 31) + 32).byte().view(-1, 2, 4, 32)
    low = torch.stack([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], dim=2)
    high = q[:, :, 0] >> 4 | (q[:, :, 1] >> 4) << 2 | (q[:, :, 2] >> 4) << 4 | (q[:, :, 3] >> 4) << 6
    return _bytes(low.view(-1, 128), high.view(-1, 64), scales.to(torch.int8), d.half())


OWN: dict[str, Callable[[Tensor], np.ndarray]] = {"Q4_K": quantize_q4_k, "Q6_K": quantize_q6_k}


def quantize(tensor: Tensor, kind: str) -> np.ndarray:
    """The bytes of a tensor whose rows are multiples of a block of `kind`, uint8 `[blocks, bytes of a block]`, or its
    numbers as F32, F16 or BF16.
    """
    rows = tensor.detach().float().contiguous()
    if kind in ("F32", "F16"):
        return rows.numpy() if kind == "F32" else rows.half().numpy()
    if kind == "BF16":
        return rows.bfloat16().view(torch.int16).numpy()
    if kind in OWN:
        blocks = rows.view(-1, SUPER)
        return np.concatenate([OWN[kind](part) for part in blocks.split(AT_ONCE)])
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize as theirs

    return theirs(rows.view(-1, SMALL).numpy(), GGMLQuantizationType[kind])


def kind_of(name: str, shape: tuple[int, ...], type_: str, layer: tuple[int, int] | None = None) -> str:
    """The format of a tensor in a file of `--type`. Only matrices are quantised, and of these not the router of a
    mixture, the table of positions and convolutions, as in llama.cpp.

    `q4_k_m` is Q4_K, and Q6_K where an error costs most: the head, and in half of the layers what mixes into the
    residual stream (llama.cpp's rule: the first and the last eighth of the layers, and each third between).

    Args:
        name: in the file.
        shape: slowest axis first.
        type_: one of `TYPES`.
        layer: its number and their count, None outside of layers.

    Raises:
        UserError: rows are no multiple of a block.
    """
    exempt = any(part in name for part in ("ffn_gate_inp.", "position_embd", "ssm_conv1d", "ssm_a", "rope_f"))
    if len(shape) < 2 or exempt:
        return "F32"
    if type_ in ("f32", "f16", "bf16"):
        return PLAIN[type_]
    row = shape[-1]
    if row % SMALL:
        raise UserError(
            f"--type is {type_}, which needs rows of a multiple of {SMALL} values, but those of {name} have {row:,}; "
            "take f32, f16 or bf16."
        )
    if type_ in PLAIN:
        return PLAIN[type_]
    better = name in ("token_embd.weight", "output.weight") or "attn_qkv" in name
    if layer is not None and any(part in name for part in ("attn_v.", "ffn_down")):
        number, count = layer
        eighth = count // 8
        better = number < eighth or number >= 7 * count // 8 or (number - eighth) % 3 == 2
    if row % SUPER:  # as llama.cpp does: the next kind of small blocks
        return "Q8_0" if better else "Q5_0"
    return "Q6_K" if better else "Q4_K"
