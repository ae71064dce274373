"""Titans (Behrouz, Zhong and Mirrokni 2024): a memory that learns while it reads, beside attention over near tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..layers import rms_norm
from ..masks import AttentionMask
from ..positions import Rotary, rotate
from ..rotary import RotaryConfig
from .convolution import ShortConvolution
from .kernels import attend, plan
from .recurrent import RecurrentMixer, Row, State, exact, wide
from .recurrent_options import TitansOptions
from .titans_memory import Gates, Memory, memory_scan, recall

Kept = dict[str, Any]
"""What is kept between calls, by name: tensors, and the memory."""
LAYERED = ("before", "now", "surprise")
"""Parts of a memory with a tensor for each of its layers."""


class Titans(RecurrentMixer):
    """The memory alone, or one of three forms with attention:

        memory   m(x)
        layer    m(x) + a(x + m(x)): attention reads what the memory returned (section 4.3)
        gate     SiLU(norm(a(x))) · norm(m(x)): both read the input (section 4.2)
        context  per segment, a reads the segment and before it what the memory knows of it; the memory learns what a
                 returned: y = a([m'(x), x]), SiLU(norm(y)) · norm(m(y)) (section 4.1)

    Attention also sees `persistent` learned tokens. Deviation from the paper: with `layer` memory
    and attention are two residual branches, one after the other.
    """

    def __init__(self, config: TransformerConfig, options: TitansOptions) -> None:
        super().__init__()
        self.form, self.chunk = options.form, options.chunk
        self.memory = NeuralMemory(config, options)
        self.near = None
        if options.form != "memory":
            reach = options.chunk if options.form == "context" else options.window
            self.near = NearAttention(config, options, reach, sliding=options.form != "context")
        if options.form in ("gate", "context"):
            self.near_weight, self.memory_weight = (nn.Parameter(torch.ones(config.dim)) for _ in range(2))
        self.eps = config.norm_eps
        no_matrices = ("near_weight", "memory_weight", "near.persistent", "memory.start")
        self.vectors = tuple(name for name, _ in self.named_parameters() if name.startswith(no_matrices))

    def initialise(self, config: TransformerConfig) -> None:
        """See `NeuralMemory.reset_memory`."""
        self.memory.reset_memory()

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        if row.begins is not None:
            return self._documents(x, row)
        kept = self.memory.unpacked(state.tensors, x)
        size, inside = x.shape[1], 0
        if self.form == "context":
            places = [0] if state.get("seen") is None else (kept["seen"] % self.chunk).unique().tolist()
            # A segment ends where the rows' tokens since the first fill it; in rows that differ each token is one.
            size, inside = (self.chunk, places[0]) if len(places) == 1 else (1, 0)
        outputs, start = [], 0
        while start < x.shape[1]:
            end, inside = min(x.shape[1], start + size - inside), 0
            count = None if row.count is None else (row.count - start).clamp(0, end - start)
            outputs.append(self._segment(x[:, start:end], Row(count=count), kept))
            kept["seen"] = kept["seen"] + (end - start if count is None else count)
            start = end
        for name, tensor in self.memory.packed(kept).items():
            state.put(name, tensor)
        return torch.cat(outputs, dim=1)

    def _segment(self, x: Tensor, row: Row, kept: Kept) -> Tensor:
        if self.near is None:
            return self.memory(x, row, kept)
        if self.form == "layer":
            known = self.memory(x, row, kept)
            return known + self.near(x + known, row, kept)
        if self.form == "gate":
            return self._gated(self.near(x, row, kept), self.memory(x, row, kept))
        y = self.near(x, row, kept, context=self.memory.look(x, kept))
        return self._gated(y, self.memory(y, row, kept))

    def _gated(self, near: Tensor, memory: Tensor) -> Tensor:
        near, memory = (
            rms_norm(x, w.to(x.dtype), self.eps) for x, w in ((near, self.near_weight), (memory, self.memory_weight))
        )
        return F.silu(near) * memory

    def _documents(self, x: Tensor, row: Row) -> Tensor:
        """Each document as a row of its own, so that all of them start at the first token of a segment."""
        batch, tokens = x.shape[:2]
        assert row.begins is not None
        place = torch.arange(tokens, device=x.device)
        first = row.begins.expand(batch, -1).clone()
        first[:, 0] = True
        real = first if row.count is None else first & (place < row.count[:, None])
        rows, starts = real.nonzero(as_tuple=True)
        ends = torch.full_like(starts, tokens) if row.count is None else row.count[rows]
        same = rows[1:] == rows[:-1]
        ends[:-1] = torch.where(same, starts[1:], ends[:-1])
        lengths = ends - starts
        longest = int(lengths.max()) if len(lengths) else 0
        inside = torch.arange(longest, device=x.device)
        index = (starts[:, None] + inside).clamp(max=tokens - 1)
        apart = x[rows[:, None], index]
        y = self.mix(apart, Row(count=lengths), State())
        valid = inside < lengths[:, None]
        whole = y.new_zeros(batch, tokens, y.shape[2])
        return whole.index_put((rows[:, None].expand_as(index)[valid], index[valid]), y[valid])


class NeuralMemory(nn.Module):
    """out(norm(y) · SiLU(gate(x))), y from the memory. `[batch, tokens, dim]` -> `[batch, tokens, dim]`.

    Queries and keys have length one. Step sizes, momentum and forgetting are sigmoids of linear functions of the token,
    one a head.
    """

    def __init__(self, config: TransformerConfig, options: TitansOptions) -> None:
        super().__init__()
        self.heads, self.eps, self.chunk, self.bound = config.heads, config.norm_eps, options.chunk, options.bound
        state, width = options.state or 0, options.width or 0
        self.sizes = [self.heads * state, self.heads * state, self.heads * width]
        self.q, self.k, self.v = (
            nn.Linear(config.dim, size, bias=options.biased(config.bias, name))
            for size, name in zip(self.sizes, "qkv", strict=True)
        )
        self.gate = nn.Linear(config.dim, self.sizes[2], bias=options.biased(config.bias, "gate"))
        self.conv = ShortConvolution(sum(self.sizes), options.conv, options.conv_bias) if options.conv else None
        self.step = nn.Linear(config.dim, self.heads)
        self.momentum = nn.Linear(config.dim, self.heads) if options.momentum else None
        self.forget = nn.Linear(config.dim, self.heads) if options.forget else None
        widths = [state, *[options.hidden or 0] * (options.layers - 1), width]
        self.start = nn.ParameterList(nn.Parameter(torch.zeros(self.heads, a, b)) for a, b in pairwise(widths))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(self.sizes[2], config.dim, bias=options.biased(config.bias, "out"))

    @torch.no_grad()
    def reset_memory(self) -> None:
        """Layers but the last start within their inputs' deviation, the last at zero; steps near 1/2, little momentum
        (0.12) and hardly any forgetting (0.25 % a token).

        With a convolution a key starts as that of the token before, and queries read like keys: what a token finds is
        what followed it earlier. (From random convolutions a model of two layers has not begun to recall after
        hundreds of steps; Trockman et al. 2024, arXiv:2410.11135, start Mamba likewise.)
        """
        if self.conv is not None:
            keys = self.conv.weight[self.sizes[0] : self.sizes[0] + self.sizes[1]]
            nn.init.zeros_(self.conv.weight)
            self.conv.weight[:, 0, -1] = 1.0
            keys[:, 0, -2:] = keys.new_tensor([1.0, 0.0])
            self.q.weight.copy_(self.k.weight)
        for w in list(self.start)[:-1]:
            nn.init.normal_(w, std=w.shape[1] ** -0.5)
        for layer, bias in ((self.momentum, -2.0), (self.forget, -6.0)):
            if layer is not None:
                nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor, row: Row, kept: Kept) -> Tensor:
        """Reads `x`, learns from it, and moves `kept` on."""
        q, k, v = self._read(x, row, kept, learn=True)
        with exact(x):
            z = [None if layer is None else wide(layer(x))[0] for layer in (self.step, self.momentum, self.forget)]
            assert z[0] is not None
            momentum, keep = (None if y is None else F.logsigmoid(y) for y in (z[1], None if z[2] is None else -z[2]))
            gates = Gates(z[0].sigmoid(), momentum, keep, self.bound)
            y, kept["memory"] = memory_scan(q, k, v, gates, self._memory(q, kept), row.count, self.chunk)
        return self._said(y, x)

    def look(self, x: Tensor, kept: Kept) -> Tensor:
        """What the memory knows of `x`, without learning from it and without its convolution."""
        q, _, _ = self._read(x, Row(), kept, learn=False)
        with exact(x):
            memory, z = self._memory(q, kept), q.transpose(1, 2)
            fresh = (memory.inside == 0)[:, None, None, None]
            z = recall(tuple(torch.where(fresh, n, b) for n, b in zip(memory.now, memory.before, strict=True)), z)[2]
        return self._said(z.transpose(1, 2), x)

    def _read(self, x: Tensor, row: Row, kept: Kept, learn: bool) -> list[Tensor]:
        y = torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        if self.conv is not None and learn:
            y, kept["inputs"] = self.conv(y, row, kept.get("inputs"))
        q, k, v = wide(*F.silu(y).split(self.sizes, dim=-1))
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in (q, k, v))
        q, k = (z * (z.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for z in (q, k))
        return [q, k, v]

    def _memory(self, like: Tensor, kept: Kept) -> Memory:
        if "memory" not in kept:
            kept["memory"] = Memory.start(tuple(w.to(like.dtype) for w in self.start), like.shape[0])
        return kept["memory"]

    def unpacked(self, tensors: dict[str, Tensor], x: Tensor) -> Kept:
        """What was kept in `tensors`; before the first call no token was `seen`."""
        if "seen" not in tensors:
            return {"seen": x.new_zeros(x.shape[0], dtype=torch.long)}
        parts = (tuple(tensors[f"{name}{i}"] for i in range(len(self.start))) for name in LAYERED)
        return dict(tensors) | {"memory": Memory(*parts, inside=tensors["inside"])}

    def packed(self, kept: Kept) -> dict[str, Tensor]:
        """The inverse of `unpacked`."""
        memory, rest = kept["memory"], {name: value for name, value in kept.items() if name != "memory"}
        layered = {f"{name}{i}": w for name in LAYERED for i, w in enumerate(getattr(memory, name))}
        return rest | layered | {"inside": memory.inside}

    def _said(self, y: Tensor, x: Tensor) -> Tensor:
        y = rms_norm(y, self.norm_weight.to(y.dtype), self.eps).flatten(2)
        return self.out((y * F.silu(self.gate(x))).to(x.dtype))


class NearAttention(nn.Module):
    """Attention over the last `reach` tokens, or over the segment so far, and over learned tokens.

    Args:
        config: of the whole model.
        options: of the mixer.
        reach: tokens that a token sees, itself included.
        sliding: all tokens at a distance below `reach`; otherwise those of the same segment of `reach` tokens.
    """

    def __init__(self, config: TransformerConfig, options: TitansOptions, reach: int, sliding: bool) -> None:
        super().__init__()
        self.reach, self.sliding, self.heads, head_dim = reach, sliding, config.heads, config.head_dim or 0
        self.q, self.k, self.v = (
            nn.Linear(config.dim, self.heads * head_dim, bias=options.biased(config.bias, name)) for name in "qkv"
        )
        self.out = nn.Linear(self.heads * head_dim, config.dim, bias=options.biased(config.bias, "out"))
        self.persistent = nn.Parameter(torch.empty(options.persistent, config.dim))
        nn.init.normal_(self.persistent, std=0.02)
        self.rotary, self.scale = Rotary(RotaryConfig(), head_dim), head_dim**-0.5

    def forward(self, x: Tensor, row: Row, kept: Kept, context: Tensor | None = None) -> Tensor:
        """`[batch, tokens, dim]` -> the same; `context` `[batch, tokens, dim]` is seen like the tokens themselves."""
        if not self.sliding:
            return self._block(x, row.count, kept, kept["seen"], context)
        outputs, seen = [], kept["seen"]
        for start in range(0, x.shape[1], self.reach):
            part = x[:, start : start + self.reach]
            count = None if row.count is None else (row.count - start).clamp(0, part.shape[1])
            outputs.append(self._block(part, count, kept, seen, None))
            seen = seen + (part.shape[1] if count is None else count)
        return torch.cat(outputs, dim=1)

    def _block(self, x: Tensor, count: Tensor | None, kept: Kept, seen: Tensor, context: Tensor | None) -> Tensor:
        batch, tokens = x.shape[:2]
        place = torch.arange(tokens, device=x.device)
        turn = self.rotary(seen[:, None] + place, x.dtype)
        q = rotate(self._heads(self.q(x)), turn, False)
        fixed = self.persistent.to(x.dtype).expand(batch, -1, -1)
        length = self.reach - 1
        # Tokens that are real: those of this call come first, so the last ones of the past end right before them.
        past = seen if self.sliding else seen % self.reach
        old = torch.arange(-length, 0, device=x.device)
        near = torch.cat([old >= -past[:, None], torch.ones(batch, tokens, dtype=torch.bool, device=x.device)], dim=1)
        distance = place[:, None] - torch.cat([old, place])
        allowed = near[:, None] & ((distance >= 0) & (distance < self.reach))
        keys, values, masks = [self._heads(self.k(fixed))], [self._heads(self.v(fixed))], [
            allowed.new_ones(batch, tokens, fixed.shape[1])
        ]  # fmt: skip
        for name, new in (("tokens", x), ("context", context)):
            if new is None:
                continue
            k, v = rotate(self._heads(self.k(new)), turn, False), self._heads(self.v(new))
            both = torch.cat([k, v], dim=-1)
            before = kept.get(name)
            before = both.new_zeros(*both.shape[:2], length, both.shape[3]) if before is None else before
            whole = torch.cat([before, both], dim=2)
            keys.append(whole[..., : k.shape[-1]])
            values.append(whole[..., k.shape[-1] :])
            masks.append(allowed)
            kept[name] = _last(whole, count, length)
        mask = torch.cat(masks, dim=2)[:, None]
        bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -torch.inf)
        k, v = torch.cat(keys, dim=2), torch.cat(values, dim=2)
        chosen = plan(AttentionMask(bias=bias, cross=True), tokens, k.shape[2], x.device)
        return self.out(attend(q, k, v, chosen, self.scale).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _last(whole: Tensor, count: Tensor | None, length: int) -> Tensor:
    """The `length` entries of `[batch, heads, length + tokens, ·]` that end with the last real token."""
    if count is None:
        return whole[:, :, whole.shape[2] - length :]
    places = (count[:, None] + torch.arange(length, device=whole.device))[:, None, :, None]
    return whole.gather(2, places.expand(-1, whole.shape[1], -1, whole.shape[3]))
