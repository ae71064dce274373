"""A memory that learns while it reads (Behrouz, Zhong and Mirrokni 2024, "Titans", section 3).

The memory of one head is a small network M without biases. For each token it takes a gradient step on how badly it
recalls the token's value by its key, l(M) = ½ |M(k_t) - v_t|², with momentum and forgetting:

    S_t = η_t S_{t-1} - θ_t ∇l(M'; k_t, v_t)        M_t = (1 - α_t) M_{t-1} + S_t        y_t = M_t(q_t)

M' is the memory before the chunk of t (section 3.2), with chunks of one token M_{t-1}. A linear M without momentum and
forgetting then is the delta rule with β = θ.

The paper does not bound θ, and so its steps can overshoot: by the gradients of a chunk, which all ask for the same
correction, by momentum, which repeats them, and by the size of M's own weights. `Gates.bounded` divides θ_t by

    max(1, chunk · κ_t / (1 - η_t))        κ_t = Σ_l |h_l|² |∂M/∂z_l|²

with h_l the input of layer l, z_l its output, at M' and k_t: κ_t bounds the largest eigenvalue of J Jᵀ, where J is the
derivative of M(k_t) by all weights, so that to first order the steps of a chunk together do not overshoot. For a linear
M κ = |k|², and with chunks of one token, without momentum and with |k| <= 1, nothing is divided.

Two forms with one signature: `reference_memory_scan` follows the equations token by token; `memory_scan` computes a
chunk by matrix products, because the gradient of each layer is an outer product of its input and its error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .decayed_scan import chunk_decays


@dataclass(frozen=True)
class Memory:
    """What is kept between calls, for each layer of M.

    Args:
        before: weights before the chunk, each `[batch, heads, in, out]`.
        now: weights after the last token.
        surprise: S after the last token.
        inside: int `[batch]`, tokens of the chunk that were read.
        common: the same for all rows, where it is known without a look at them.
    """

    before: tuple[Tensor, ...]
    now: tuple[Tensor, ...]
    surprise: tuple[Tensor, ...]
    inside: Tensor
    common: int | None = None

    @classmethod
    def start(cls, weights: tuple[Tensor, ...], batch: int) -> Memory:
        """The memory before the first token; `weights` are `[heads, in, out]`."""
        first = tuple(w.expand(batch, *w.shape) for w in weights)
        inside = torch.zeros(batch, dtype=torch.long, device=weights[0].device)
        return cls(first, first, tuple(torch.zeros_like(w) for w in first), inside, 0)


@dataclass(frozen=True)
class Gates:
    """What decides about each token, each `[batch, tokens, heads]`.

    Args:
        step: θ, from 0 on.
        log_momentum: ln η, at most 0; None for no momentum.
        log_keep: ln(1 - α), at most 0; None for no forgetting.
        bounded: θ is divided by what would let the steps of a chunk overshoot (see above).
    """

    step: Tensor
    log_momentum: Tensor | None = None
    log_keep: Tensor | None = None
    bounded: bool = False

    def part(self, where: slice) -> Gates:
        """Those of some tokens."""
        momentum, keep = (None if x is None else x[:, where] for x in (self.log_momentum, self.log_keep))
        return Gates(self.step[:, where], momentum, keep, self.bounded)

    def steps(self, curvature: Tensor | None, chunk: int) -> Tensor:
        """θ, divided by what the bound asks for; `curvature` is κ, `[batch, tokens, heads]`."""
        if curvature is None:
            return self.step
        still = 1.0 if self.log_momentum is None else -torch.expm1(self.log_momentum)
        return self.step * still / torch.maximum(chunk * curvature, curvature.new_tensor(1.0) * still)


def recall(weights: tuple[Tensor, ...], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Runs the network: the inputs of its layers, their outputs before SiLU, and the last output."""
    inputs, outputs = [x], []
    for w in weights:
        outputs.append(inputs[-1] @ w)
        inputs.append(F.silu(outputs[-1]))
    return inputs[:-1], outputs, outputs[-1]


def errors(
    weights: tuple[Tensor, ...], k: Tensor, v: Tensor, bounded: bool = False
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """The inputs h and errors e of the layers, such that -∇l of a layer is the sum of h eᵀ over the tokens.

    `k` `[batch, heads, tokens, in]`, `v` `[batch, heads, tokens, out]`; if `bounded` also κ `[batch, tokens, heads]`.
    """
    inputs, outputs, said = recall(weights, k)
    found = [v - said]
    squares = [h.square().sum(-1, keepdim=True) for h in inputs] if bounded else []
    reach = torch.ones_like(squares[-1]) if bounded else None  # |∂M/∂z_l|², from the last layer to the first
    curvature = squares[-1] if bounded else None
    for layer in range(len(weights) - 2, -1, -1):
        w, z = weights[layer + 1], outputs[layer]
        gate = z.sigmoid()
        slope = gate * (1 + z * (1 - gate))
        found.append((found[-1] @ w.mT) * slope)
        if reach is not None and curvature is not None:
            reach = reach * (slope.square() @ w.square().sum(-1, keepdim=True))
            curvature = curvature + squares[layer] * reach
    return inputs, found[::-1], None if curvature is None else curvature.squeeze(-1).mT


def reference_memory_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, memory: Memory, count: Tensor | None = None, chunk: int = 16
) -> tuple[Tensor, Memory]:
    """Follows the equations token by token; arguments and results as `memory_scan`."""
    before, now, surprise, inside = memory.before, memory.now, memory.surprise, memory.inside
    tokens, said = q.shape[1], []
    for t in range(tokens):
        real = torch.ones_like(inside, dtype=torch.bool) if count is None else count > t
        fresh = real & (inside == 0)
        before = tuple(_where(fresh, n, b) for n, b in zip(now, before, strict=True))
        inputs, found, curvature = errors(before, k[:, t, :, None], v[:, t, :, None], gates.bounded)
        step = gates.part(slice(t, t + 1)).steps(curvature, chunk)[:, 0, :, None, None]
        momentum, keep = (None if x is None else x[:, t, :, None, None] for x in (gates.log_momentum, gates.log_keep))
        added = tuple(step * (h.mT @ e) for h, e in zip(inputs, found, strict=True))
        if momentum is not None:
            added = tuple(momentum.exp() * s + a for s, a in zip(surprise, added, strict=True))
        kept = now if keep is None else tuple(keep.exp() * n for n in now)
        surprise = tuple(_where(real, a, s) for a, s in zip(added, surprise, strict=True))
        now = tuple(_where(real, n + a, o) for n, a, o in zip(kept, added, now, strict=True))
        inside = torch.where(real, (inside + 1) % chunk, inside)
        said.append(recall(now, q[:, t, :, None])[2][:, :, 0])
    return torch.stack(said, dim=1), Memory(before, now, surprise, inside)


def memory_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, memory: Memory, count: Tensor | None = None, chunk: int = 16
) -> tuple[Tensor, Memory]:
    """Reads tokens and learns from them, in chunks.

    Args:
        q: `[batch, tokens, heads, in]`.
        k: `[batch, tokens, heads, in]`, of length at most one, or the steps may grow without bound.
        v: `[batch, tokens, heads, out]`.
        gates: of the tokens.
        memory: before the first token.
        count: int `[batch]`, how many tokens of each row are real; they come first. None means all.
        chunk: tokens whose gradients are taken at the same memory. The result depends on it.

    Returns:
        y `[batch, tokens, heads, out]` and the memory after the last real token.
    """
    tokens, said = q.shape[1], []
    inside: list[int] = [] if memory.common is None else [memory.common]
    if not inside:
        inside = (memory.inside if count is None else memory.inside[count > 0]).tolist()
    if tokens == 1 or len(set(inside)) != 1:
        return reference_memory_scan(q, k, v, gates, memory, count, chunk)
    start, end = 0, min(tokens, chunk - inside[0])
    while start < tokens:
        part = slice(start, end)
        left = None if count is None else (count - start).clamp(0, end - start)
        fresh = start > 0 or inside[0] == 0
        y, memory = _chunk(q[:, part], k[:, part], v[:, part], gates.part(part), memory, left, chunk, fresh)
        said.append(y)
        start, end = end, min(tokens, end + chunk)
    return torch.cat(said, dim=1), memory


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, memory: Memory, count: Tensor | None, chunk: int, fresh: bool
) -> tuple[Tensor, Memory]:
    """Tokens of one chunk, of which the first ones were read before unless it is `fresh`."""
    tokens = q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [batch, heads, tokens, ·]
    real = None if count is None else torch.arange(tokens, device=q.device) < count[:, None]  # [batch, tokens]
    before = memory.now if fresh else memory.before
    inputs, found, curvature = errors(before, k, v, gates.bounded)
    step = gates.steps(curvature, chunk)
    step = step if real is None else step * real[..., None]
    # S_t = carried_t S + Σ_j passed_tj h_j e_jᵀ and M_t = kept_t M + given_t S + Σ_j weight_tj h_j e_jᵀ.
    one = torch.ones_like(step).mT
    passed, carried = _decays(gates.log_momentum, real, one)
    lasting, kept = _decays(gates.log_keep, real, one, forgets=False)
    learns = lasting if real is None else lasting * real[:, None, None]
    if gates.log_momentum is None:
        weight, given = learns, None
    else:
        weight, given = learns @ passed, (learns @ carried[..., None]).squeeze(-1)
    found = [e * step.mT[..., None] for e in found]
    x = q
    for layer, (h, e, m, s) in enumerate(zip(inputs, found, memory.now, memory.surprise, strict=True)):
        x = F.silu(x) if layer else x
        own = kept[..., None] * (x @ m) + (weight * (x @ h.mT)) @ e
        x = own if given is None else own + given[..., None] * (x @ s)
    now, surprise = [], []
    for h, e, m, s in zip(inputs, found, memory.now, memory.surprise, strict=True):
        new = kept[..., -1, None, None] * m + h.mT @ (weight[..., -1, :, None] * e)
        now.append(new if given is None else new + given[..., -1, None, None] * s)
        surprise.append(carried[..., -1, None, None] * s + h.mT @ (passed[..., -1, :, None] * e))
    common = None
    if count is None:
        inside = (memory.inside + tokens) % chunk
        common = None if memory.common is None else (memory.common + tokens) % chunk
    else:
        inside = (memory.inside + count) % chunk
        idle = count == 0
        before = tuple(_where(idle, old, new) for old, new in zip(memory.before, before, strict=True))
        surprise = [_where(idle, old, new) for old, new in zip(memory.surprise, surprise, strict=True)]
    return x.transpose(1, 2), Memory(tuple(before), tuple(now), tuple(surprise), inside, common)


def _decays(log: Tensor | None, real: Tensor | None, one: Tensor, forgets: bool = True) -> tuple[Tensor, Tensor]:
    """What is left of token j at token i, `[batch, heads, tokens, tokens]`, and of the state before the first.

    Args:
        log: logarithms of the factors, `[batch, tokens, heads]`; None for a factor of 0 (`forgets`) or 1.
        real: bool `[batch, tokens]`; other tokens keep everything.
        one: of ones, `[batch, heads, tokens]`.
        forgets: without factors only a token itself is left.
    """
    tokens = one.shape[-1]
    if log is None and forgets:
        return torch.eye(tokens, dtype=one.dtype, device=one.device).expand(*one.shape, -1), torch.zeros_like(one)
    log = torch.zeros_like(one).mT if log is None else log
    if real is not None:
        log = log.masked_fill(~real[..., None], 0.0)
    between, head, _, _ = chunk_decays(log.mT[:, :, None, :, None], None, tokens)
    return between[:, :, 0], head[:, :, 0]


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """By rows of the batch; `rows` bool `[batch]`."""
    return torch.where(rows[:, None, None, None], yes, no)
