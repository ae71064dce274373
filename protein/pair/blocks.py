"""The pair stack of AlphaFold2: a representation `[batch, residues, residues, dim]` of all residue pairs, refined.

| algorithm (Jumper et al. 2021, supplement)         | here                                             |
|----------------------------------------------------|--------------------------------------------------|
| 6   Evoformer stack                                | pair.py: EvoformerBlock (model.py runs the stack) |
| 7   MSA row attention with pair bias               | pair.py: MSARowAttention                         |
| 8   MSA column attention                           | pair.py: MSAColumnAttention                      |
| 9   MSA transition                                 | pair.py: Transition                              |
| 10  Outer product mean                             | pair.py: OuterProductMean                        |
| 11  Triangle multiplication, outgoing edges        | pair.py: TriangleMultiplication("outgoing")      |
| 12  Triangle multiplication, incoming edges        | pair.py: TriangleMultiplication("incoming")      |
| 13  Triangle attention around the starting node    | pair.py: TriangleAttention(starting=True)        |
| 14  Triangle attention around the ending node      | pair.py: TriangleAttention(starting=False)       |
| 15  Pair transition                                | pair.py: Transition                              |
| 3-5 Input and relative position embedding          | model.py: PairInput                              |
| 32  Recycling embedder                             | model.py: Recycling                              |

Each class returns the update; blocks add it to the residual stream. Attention is the core's (`axial.py`). The residue
mask is one vector m: the pair mask is m ⊗ m, so masking the *summed* index of each update is enough, and every real
pair gets the value it would have without padding; pairs with padding hold finite values that nothing reads.

`chunk` bounds memory: that many rows of the result are computed at a time, equal to all at once. In training a chunk
also forgets what it computed and does it again in the backward pass. What is slow or large when written plainly has a
backward pass of its own (`gradients.py`, and the attention of `axial.py`); the tests hold each class against loops
over the algorithm's indices.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import TransformerConfig
from ...core.layers import Norm
from ...core.lens.points import Point
from .axial import GatedAttention, in_chunks, key_bias
from .config import PairConfig
from .gradients import by_rows, folded, normalise, sum_over_k, triangle_sums

_LAYER_NORM = TransformerConfig(norm="layernorm", norm_eps=1e-5)
_OUTER_NUMBERS = 1 << 24
"""Numbers of outer products held at once in training: 64 MiB in float32."""


def layer_norm(dim: int) -> Norm:
    """LayerNorm with gain and bias over the last axis; its statistics are float32 whatever the input."""
    return Norm(dim, _LAYER_NORM)


class SharedDropout(nn.Module):
    """Dropout with one mask for a whole axis of `[batch, rows, columns, dim]` (supplement, 1.11.6).

    Row-wise (`axis=1`) the mask is `[batch, 1, columns, dim]`, column-wise (`axis=2`) `[batch, rows, 1, dim]`; it
    differs from channel to channel.
    """

    def __init__(self, rate: float, axis: Literal[1, 2]) -> None:
        super().__init__()
        self.rate, self.axis = rate, axis

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training and self.rate else x

    def add(self, z: Tensor, update: Tensor) -> Tensor:
        """z plus what is left of the update."""
        return torch.addcmul(z, update, self.mask(update)) if self.training and self.rate else z + update

    def mask(self, x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[self.axis] = 1
        return F.dropout(x.new_ones(shape), self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate}, axis={self.axis}"


class MSARowAttention(nn.Module):
    """Algorithm 7. Each row of the alignment attends along the sequence, biased by the pair representation.

    m `[batch, rows, residues, msa_dim]`, z `[batch, residues, residues, dim]` -> like m.
    """

    def __init__(self, msa_dim: int, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = layer_norm(msa_dim)
        self.pair_norm = layer_norm(dim)
        self.bias = nn.Linear(dim, heads, bias=False)
        self.attention = GatedAttention(msa_dim, heads, head_dim)

    def forward(self, m: Tensor, z: Tensor, mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        bias = in_chunks(lambda rows: self.bias(self.pair_norm(rows)), chunk, z)
        bias = key_bias(bias.permute(0, 3, 1, 2), mask)  # [batch, heads, residues, residues], shared by all rows
        return in_chunks(lambda rows: self.attention(self.norm(rows), bias), chunk, m)


class MSAColumnAttention(nn.Module):
    """Algorithm 8. Each column of the alignment attends over the sequences; `row_mask` bool `[batch, rows]`."""

    def __init__(self, msa_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = layer_norm(msa_dim)
        self.attention = GatedAttention(msa_dim, heads, head_dim)

    def forward(self, m: Tensor, row_mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        bias = None if row_mask is None else key_bias(m.new_zeros(()), row_mask)
        m = m.transpose(1, 2)
        return in_chunks(lambda columns: self.attention(self.norm(columns), bias), chunk, m).transpose(1, 2)


class Transition(nn.Module):
    """Algorithms 9 and 15: LayerNorm, widen, ReLU, narrow. `[batch, rows, columns, dim]` -> the same.

    As DeepMind's code does, the mask is not applied.
    """

    def __init__(self, dim: int, factor: int = 4) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.up = nn.Linear(dim, factor * dim)
        self.down = nn.Linear(factor * dim, dim)

    def forward(self, x: Tensor, chunk: int | None = None) -> Tensor:
        if torch.is_grad_enabled():
            return self._of_normalised(normalise(x, self.norm.eps), chunk)
        return in_chunks(lambda rows: self._of_normalised(normalise(rows, self.norm.eps)), chunk, x)

    def _of_normalised(self, x: Tensor, chunk: int | None = None) -> Tensor:
        up = folded(self.norm, self.up.weight, self.up.bias)
        return by_rows(_relu_linear, chunk, (x,), up, (self.down.weight, self.down.bias))


def _relu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias).relu_()


class OuterProductMean(nn.Module):
    """Algorithm 10. What two columns of the alignment have to do with each other: m -> an update of z.

    z_ij = Linear(flatten(mean_s a_si ⊗ b_sj)). As in DeepMind's code, the sum over sequences is divided by their number
    plus 1e-3 after the linear layer, bias included.

    In training the outer products `[rows, residues, outer_dim²]` are computed again in the backward pass when they are
    large, since they are outer_dim²/dim times the size of z.
    """

    def __init__(self, msa_dim: int, dim: int, outer_dim: int = 32) -> None:
        super().__init__()
        self.norm = layer_norm(msa_dim)
        self.left = nn.Linear(msa_dim, outer_dim)
        self.right = nn.Linear(msa_dim, outer_dim)
        self.out = nn.Linear(outer_dim * outer_dim, dim)

    def forward(self, m: Tensor, row_mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """m `[batch, rows, residues, msa_dim]`, row_mask bool `[batch, rows]` -> `[batch, residues, residues, dim]`."""
        batch, rows, residues, _ = m.shape
        x = self.norm(m)
        left, right = self.left(x), self.right(x)  # [batch, rows, residues, outer]
        if row_mask is None:
            count: Tensor | float = float(rows)
        else:
            left = left * row_mask[:, :, None, None].to(left.dtype)
            count = row_mask.sum(1).to(left.dtype)[:, None, None, None]
        outer = left.shape[-1]
        right = right.reshape(batch, rows, residues * outer)
        if torch.is_grad_enabled() and m.requires_grad:
            most = max(1, _OUTER_NUMBERS // (batch * residues * outer * outer))
            chunk = most if chunk is None and most < residues else chunk if chunk is None else min(chunk, most)
        z = in_chunks(lambda some: self._rows(some, right), chunk, left.transpose(1, 2))
        return z / (count + 1e-3)

    def _rows(self, left: Tensor, right: Tensor) -> Tensor:
        """left `[batch, some residues, rows, outer]`, right `[batch, rows, residues·outer]` -> `[batch, some,
        residues, dim]`.
        """
        batch, some, _, outer = left.shape
        products = left.mT.flatten(1, 2) @ right  # [batch, some·outer, residues·outer]
        products = products.view(batch, some, outer, -1, outer).transpose(2, 3).flatten(3)
        return self.out(products)


class TriangleMultiplication(nn.Module):
    """Algorithms 11 and 12: an edge (i, j) is updated from the two other edges of each triangle (i, j, k).

        outgoing   z_ij <- gate_ij · Linear(LN(sum_k a_ik · b_jk))
        incoming   z_ij <- gate_ij · Linear(LN(sum_k a_ki · b_kj))
        both       the two sums side by side in one LN and Linear, from one fused projection (as MiniFold, TMLR 2025)

    a and b are gated linear maps of LN(z) to `hidden` channels; `both` is a deviation from AlphaFold2 for the fast
    preset. DeepMind's code names the operands of the incoming form the other way round, which only permutes weights.

    All four projections are one matrix product that writes channels first, the layout in which the sum over k is a
    batched matrix product.
    """

    def __init__(self, dim: int, hidden: int, direction: Literal["outgoing", "incoming", "both"]) -> None:
        super().__init__()
        self.outgoing = {"outgoing": (True,), "incoming": (False,), "both": (True, False)}[direction]
        total = hidden * len(self.outgoing)
        self.norm = layer_norm(dim)
        self.project = nn.Linear(dim, 4 * total)  # rows: a, b, gate of a, gate of b
        self.product_norm = layer_norm(total)
        self.out = nn.Linear(total, dim)
        self.gate = nn.Linear(dim, dim)

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """z `[batch, residues, residues, dim]`, mask bool `[batch, residues]` -> like z."""
        if torch.is_grad_enabled():
            x = normalise(z, self.norm.eps)
            weight, bias = folded(self.norm, self.project.weight, self.project.bias)
            assert bias is not None  # the norm has one
            sums = triangle_sums(x, weight, bias, mask, self.outgoing)
            return self._close(x, normalise(sums, self.product_norm.eps))
        masks = () if mask is None else (mask,)
        operands = in_chunks(lambda *rows: self._operands(mask, *rows), chunk, z, *masks, dim=2)
        sums = sum_over_k(operands, self.outgoing).permute(0, 2, 3, 1)

        def close(z: Tensor, sums: Tensor) -> Tensor:
            return self._close(normalise(z, self.norm.eps), normalise(sums, self.product_norm.eps))

        return in_chunks(close, chunk, z, sums)

    def _operands(self, mask: Tensor | None, z: Tensor, row_mask: Tensor | None = None) -> Tensor:
        """a and b for some rows of z, channels first: `[batch, 2·channels, rows, residues]`."""
        x = self.norm(z).flatten(1, 2)
        maps = torch.baddbmm(self.project.bias[:, None], self.project.weight.expand(len(x), -1, -1), x.mT)
        operands = F.glu(maps, dim=1).unflatten(2, z.shape[1:3])
        if mask is None or row_mask is None:
            return operands
        return operands.mul_((row_mask[:, None, :, None] & mask[:, None, None, :]).to(operands.dtype))

    def _close(self, x: Tensor, sums: Tensor) -> Tensor:
        """gate · Linear(LN(sums)) of z and sums normalised already."""
        gate = F.linear(x, *folded(self.norm, self.gate.weight, self.gate.bias))
        return torch.sigmoid(gate) * F.linear(sums, *folded(self.product_norm, self.out.weight, self.out.bias))


class TriangleAttention(nn.Module):
    """Algorithms 13 (`starting`) and 14: edge (i, j) attends to the edges (i, k), biased by the third edge (j, k).

    Around the ending node it is the same on the transposed representation.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, starting: bool) -> None:
        super().__init__()
        self.starting = starting
        self.norm = layer_norm(dim)
        self.bias = nn.Linear(dim, heads, bias=False)
        self.attention = GatedAttention(dim, heads, head_dim)

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """z `[batch, residues, residues, dim]`, mask bool `[batch, residues]` -> like z."""
        if not self.starting:
            z = z.transpose(1, 2)
        if torch.is_grad_enabled():
            x, norm = normalise(z, self.norm.eps), self.norm
            bias = self._masked(F.linear(x, *folded(norm, self.bias.weight)), mask)
            update = self.attention.close(x, self.attention.mix(x, bias, norm), norm, chunk)
        else:
            bias = self._masked(in_chunks(lambda rows: self.bias(self.norm(rows)), chunk, z), mask)
            update = in_chunks(lambda rows: self.attention(self.norm(rows), bias), chunk, z)
        return update if self.starting else update.transpose(1, 2)

    @staticmethod
    def _masked(bias: Tensor, mask: Tensor | None) -> Tensor:
        return key_bias(bias.permute(0, 3, 1, 2), mask)


class PairBlock(nn.Module):
    """The pair half of Algorithm 6: triangle updates and a transition. z -> z.

    Every update but the last is dropped by rows, the attention around the ending node by columns.
    """

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.triangle_heads
        self.multiplications = nn.ModuleList(
            TriangleMultiplication(dim, config.triangle_dim, direction)
            for direction in (("both",) if config.triangle_fused else ("outgoing", "incoming"))
        )
        self.attentions = nn.ModuleList(
            TriangleAttention(dim, heads, config.head_dim, starting) for starting in (True, False) if heads
        )
        self.transition = Transition(dim, config.transition)
        self.drop_rows = SharedDropout(config.dropout_pair, axis=1)
        self.drop_columns = SharedDropout(config.dropout_pair, axis=2)
        initialise_pair(self)

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """z `[batch, residues, residues, dim]`, mask bool `[batch, residues]`."""
        for multiplication in self.multiplications:
            z = self.drop_rows.add(z, multiplication(z, mask, chunk))
        for attention in self.attentions:
            drop = self.drop_rows if attention.starting else self.drop_columns
            z = drop.add(z, attention(z, mask, chunk))
        return z + self.transition(z, chunk)

    def lens_points(self) -> dict[str, Point]:
        """What `core.lens` sees of this block."""
        found = {"resid_pre": Point(self, "input")}
        part: Any
        for part in self.multiplications:
            name = "both" if len(part.outgoing) > 1 else "outgoing" if part.outgoing[0] else "incoming"
            found[name] = Point(part, "output", size=part.out.out_features)
        for part in self.attentions:
            found |= head_points("start" if part.starting else "end", part)
        size = self.transition.down.out_features
        found["transition"] = Point(self.transition, "output", size=size)
        return found | {"resid_post": Point(self, "output")}


def head_points(name: str, part: nn.Module) -> dict[str, Point]:
    """The heads of a gated attention, and what it adds."""
    attention = part.attention
    assert isinstance(attention, GatedAttention)
    heads = attention.q.out_features // attention.head_dim
    added = Point(part, "output", size=attention.out.out_features)
    return {f"{name}_z": Point(attention, "mix", size=heads), f"{name}_out": added}


class EvoformerBlock(nn.Module):
    """Algorithm 6, one block: the MSA and the pair representation inform each other. m, z -> m, z."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.row = MSARowAttention(config.msa_dim, config.dim, config.msa_heads, config.head_dim)
        self.column = MSAColumnAttention(config.msa_dim, config.msa_heads, config.head_dim)
        self.transition = Transition(config.msa_dim, config.transition)
        self.outer = OuterProductMean(config.msa_dim, config.dim, config.outer_dim)
        self.drop_msa = SharedDropout(config.dropout_msa, axis=1)
        initialise_pair(self)
        self.pair = PairBlock(config)

    def forward(
        self, m: Tensor, z: Tensor, mask: Tensor | None = None, row_mask: Tensor | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """m `[batch, rows, residues, msa_dim]`, z `[batch, residues, residues, dim]`, row_mask bool `[batch, rows]`."""
        m = m + self.drop_msa(self.row(m, z, mask, chunk))
        m = m + self.column(m, row_mask, chunk)
        m = m + self.transition(m, chunk)
        z = z + self.outer(m, row_mask, chunk)
        return m, self.pair(z, mask, chunk)

    def lens_points(self) -> dict[str, Point]:
        """What `core.lens` sees of this block; `resid_pre` and `resid_post` are those of its pair half."""
        found = head_points("row", self.row) | head_points("column", self.column)
        found["msa_transition"] = Point(self.transition, "output", size=self.transition.down.out_features)
        found["outer"] = Point(self.outer, "output", size=self.outer.out.out_features)
        return found | self.pair.lens_points()


def initialise_pair(module: nn.Module) -> None:
    """Set every parameter below `module` as the supplement, 1.11.4, says.

    | parameter                                                        | start                                   |
    |------------------------------------------------------------------|-----------------------------------------|
    | `gate`, and the gate rows of `TriangleMultiplication.project`    | weight 0, bias 1 (gates start open)     |
    | `out` and `down`: the last linear layer of an update             | weight 0, bias 0 (updates start at 0)   |
    | `up`, which a ReLU follows                                       | normal, std sqrt(2 / fan in), bias 0    |
    | other linear layers                                              | normal, std sqrt(1 / fan in), bias 0    |
    | norms                                                            | gain 1, bias 0                          |
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        role = name.rsplit(".", 1)[-1]
        gain = {"gate": 0.0, "out": 0.0, "down": 0.0, "up": 2.0}.get(role, 1.0)
        nn.init.normal_(part.weight, std=(gain / part.in_features) ** 0.5)
        if part.bias is not None:
            nn.init.constant_(part.bias, 1.0 if role == "gate" else 0.0)
        if role == "project":
            half = part.out_features // 2
            nn.init.zeros_(part.weight[half:])
            nn.init.ones_(part.bias[half:])
