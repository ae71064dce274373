"""What each depth says already, and what each layer and head adds to the answer directly.

The lens of each depth (nostalgebraist 2020, the logit lens): the final norm and the head of the trained model, applied
to the values between its blocks. Nothing is trained; early depths may well mean something in another basis (Belrose et
al. 2023). Direct contributions (Elhage et al. 2021; TransformerLens calls them direct logit attribution): the final
residual stream is a sum, and what reads it is linear once the statistics of the final norm are held fixed, so the
answer is a sum over embedding, layers and heads too. What a part does through later layers is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .edit import lens
from .points import blocks_of, points, transformer_of


@torch.no_grad()
def depth_lens(model: nn.Module, run: Callable[[], Any], decode: Callable[[Tensor], Any]) -> list[Any]:
    """What `decode` makes of each depth: of the input of the first block, then of the output of each block.

    Args:
        model: in evaluation mode, holding one Transformer.
        run: runs it once.
        decode: from `[batch, tokens, dim]` after the final norm to an answer: `LanguageModel.logits` for text, the
            pooling and the head for images.
    """
    transformer = transformer_of(model)
    last = transformer.config.depth - 1
    with lens(model, keep=["0.resid_pre", "*.resid_post"]) as seen:
        run()
    names = ["0.resid_pre", *(f"{layer}.resid_post" for layer in range(last + 1))]
    return [decode(transformer.final_norm(seen[name])) for name in names]


class NotASum(UserError):
    """The residual stream is no sum of what the parts add."""


@dataclass
class Direct:
    """What `direct` found, in the unit of the score.

    Args:
        score: of the model.
        parts: what the input of the first block (`0.resid_pre`) and each branch (`3.attn_out`, `3.ffn_out`) add.
        heads: what each head adds of that, `[heads]` by point (`3.z`, `2.start_z`); the rest of its branch is a bias.
        rest: what no part adds: biases behind the last block, and how far the head is from linear.
    """

    score: float
    parts: dict[str, float]
    heads: dict[str, Tensor]
    rest: float


def direct(model: nn.Module, score: Callable[[], Tensor], norm: nn.Module | None = None) -> Direct:
    """The direct contribution of each part to a score; `parts` and `rest` sum to it.

    Args:
        model: in evaluation mode.
        score: runs it once and returns one differentiable number, such as a logit.
        norm: behind the last block; that of the Transformer by default.

    Raises:
        NotASum: the residual stream is no sum, because blocks normalise it (post-norm) or read a memory.
    """
    known, blocks = points(model), blocks_of(model)
    config = None if norm is not None else transformer_of(model).config
    if config is not None and (config.placement == "post" or config.cross_attention):
        raise NotASum(
            "The residual stream of this model is no sum (it has norms between the blocks, or cross-attention), so no "
            "part adds to the answer directly; ask for `ablate` or `patch`."
        )
    norm = norm or transformer_of(model).final_norm
    branches = ["0.resid_pre", *(name for name in known if name.split(".")[1] in BRANCHES)]
    heads = [name for name in known if name.endswith(".z")]
    gated = [name for name in known if name.endswith("_z") and _branch(name) in branches]
    read: list[tuple[Tensor, Tensor]] = []
    held: dict[str, Tensor] = {}

    def hold(name: str, x: Tensor) -> Tensor:
        held[name] = x.detach().requires_grad_() if name in gated else x
        return held[name]

    edit = {name: partial(hold, name) for name in [*gated, *map(_branch, gated)]}

    def track(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read[:] = [(args[0].detach(), output.detach().requires_grad_())]
        return read[0][1]

    handle = norm.register_forward_hook(track)
    try:
        with torch.enable_grad(), lens(model, edit=edit, keep=[*branches, *heads]) as seen:
            value = score()
    finally:
        handle.remove()
    with torch.no_grad():
        slope, final = torch.autograd.grad(value, read[0][1])[0].double(), _frozen(norm, read[0][0])
        parts = {name: float((slope * final(seen[name].double())).sum()) for name in branches}
        by_head = {}
        for name in heads:
            block: Any = blocks[int(name.split(".")[0])]
            z, out, branch = seen[name], block.attn.out, block.branch1
            linear = _frozen(branch.norm, out(z.flatten(-2)))
            gain = branch.factor * (1.0 if branch.scale is None else branch.scale.double())
            without = out(torch.zeros_like(z.flatten(-2))).double()
            single = ((z * one[:, None]).flatten(-2) for one in torch.eye(z.shape[-2]).to(z))
            added = [(slope * final(linear(out(head).double() - without) * gain)).sum() for head in single]
            by_head[name] = torch.stack(added).cpu()
    for name in gated:  # linear in what the heads read, once the gate is held fixed
        z, adds = held[name], (slope * final(held[_branch(name)].double())).sum()
        each = (torch.autograd.grad(adds, z, retain_graph=True)[0].double() * z).detach()
        by_head[name] = each.transpose(0, -2).flatten(1).sum(1).cpu()
    score_of = float(value.detach())
    return Direct(score_of, parts, by_head, score_of - sum(parts.values()))


def _branch(heads: str) -> str:
    """The point of what the heads of a gated attention add: `0.start_out` of `0.start_z`."""
    return f"{heads.removesuffix('_z')}_out"


BRANCHES = (
    "attn_out", "ffn_out", "outgoing", "incoming", "both", "start_out", "end_out", "outer", "transition",
)  # fmt: skip
"""Points whose values are added to the residual stream."""


def _frozen(norm: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm as a linear map: without its bias, and with the statistics that `x` has."""
    if norm is None or isinstance(norm, nn.Identity):
        return lambda part: part
    mean = (lambda part: part.mean(-1, keepdim=True)) if norm.kind == "layernorm" else (lambda part: 0.0)
    x, weight = x.double(), 1.0 if norm.weight is None else norm.weight.double() + float(norm.offset)
    scale = ((x - mean(x)).square().mean(-1, keepdim=True) + norm.eps).rsqrt() * weight
    return lambda part: (part - mean(part)) * scale
