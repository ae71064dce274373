"""The plan by which the layers of a `Block` are cut over processes: tensor parallelism.

Shoeybi et al. 2019, section 3. Each process computes some of the heads and some of the hidden channels, so that two
sums over the processes, behind `out` and behind `down`, are all that a block sends in a forward pass, and two more in
its backward pass:

| layers                 | cut by  | reads               | gives                                  |
|------------------------|---------|---------------------|----------------------------------------|
| attn.q, attn.k, attn.v | rows    | the same tokens     | heads of its own                       |
| attn.gate              | rows    | the same tokens     | the gate of these heads                |
| attn.out               | columns | heads of its own    | a part of the sum, which all then have |
| ffn.gate, ffn.up       | rows    | the same tokens     | hidden channels of its own             |
| ffn.down               | columns | its hidden channels | a part of the sum, which all then have |

(rows and columns of the weight `[out, in]`; PyTorch calls these ColwiseParallel and RowwiseParallel, by the transposed
matrix.) Norms, gains, embeddings, positions and heads of the model are whole in each process, which does the same with
them. Only the norms of queries and keys see heads of one process alone: their gradients are parts of a sum (`PARTIAL`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .compiled import blocks_of
from .errors import UserError
from .layers import FeedForward
from .mixers.attention import Attention
from .positions import LearnedRotary
from .transformer import Block

PLAN = {
    "attn.q": "rows", "attn.k": "rows", "attn.v": "rows", "attn.gate": "rows", "attn.out": "columns",
    "ffn.gate": "rows", "ffn.up": "rows", "ffn.down": "columns",
}  # fmt: skip
PARTIAL = ("attn.q_norm.weight", "attn.k_norm.weight", "attn.q_norm.bias", "attn.k_norm.bias")
"""Parameters of a block whose gradient, in each process, is a part of a sum over them."""


def split(block: nn.Module, mesh: Any) -> None:
    """Keeps of the linear layers of a block what belongs to this process.

    Args:
        block: whole, with the same values in all processes.
        mesh: a device mesh of one dimension, over which it is cut.

    Raises:
        UserError: it cannot be cut over so many.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if why := obstacle(block, mesh.size()):
        raise UserError(
            f"--trainer.strategy.tensor_parallel_size is {mesh.size()}, but {why}; choose another number, or"
            " --trainer.strategy fsdp2, which cuts every model."
        )
    there = dict(block.named_modules())
    styles = {name: ColwiseParallel() if cut == "rows" else RowwiseParallel() for name, cut in PLAN.items()}
    chosen: Any = {name: style for name, style in styles.items() if name in there}
    parallelize_module(block, mesh, chosen, src_data_rank=None)


def partial(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model's blocks whose gradients are to be summed over the processes that share its layers."""
    return [p for block in blocks_of(model) for name, p in block.named_parameters() if name in PARTIAL]


def obstacle(block: nn.Module, count: int) -> str:
    """Why a block cannot be cut over `count` processes, in words; empty where it can."""
    if type(block) is not Block:
        return f"blocks of the kind {type(block).__name__} have no plan for it"
    attention, feeds = block.attn, block.ffn
    if type(attention) is not Attention or block.cross is not None:
        kind = "cross-attention" if block.cross is not None else type(attention).__name__
        return f"layers that mix by {kind} have no plan for it, only attention has"
    if feeds is not None and type(feeds) is not FeedForward:
        return f"a feed-forward of the kind {type(feeds).__name__} has no plan for it"
    for name in PLAN:
        layer = block
        for part in name.split("."):
            layer = getattr(layer, part, None)
        if layer is not None and type(layer) is not nn.Linear:
            return f"layers of the kind {type(layer).__name__} (LoRA) have no plan for it"
    return _of_attention(attention, count) or _of_feed_forward(feeds, count) or _of_randomness(block)


def _of_attention(attention: Attention, count: int) -> str:
    for what, layer in (("heads", attention.q), ("kv_heads", attention.k)):
        heads = layer.out_features // attention.head_dim
        if heads % count:
            return f"the {heads} {what} of a layer are not divided by it"
    if attention.qk_norm not in ("none", "head"):
        return f"qk_norm {attention.qk_norm} is over all heads"
    if isinstance(attention.rotary, LearnedRotary):
        return "learned rotary angles belong to heads"
    own = {"short_convolution": attention.conv, "global_projections": attention.globally}
    own["inner_norm attention"] = attention.inner_norm
    found = next((name for name, module in own.items() if module is not None), "")
    return f"{found} works on all heads together" if found else ""


def _of_feed_forward(feeds: FeedForward | None, count: int) -> str:
    if feeds is None:
        return ""
    if feeds.inner_norm is not None:
        return "inner_norm ffn is over all hidden channels"
    hidden = feeds.up.out_features
    return f"the {hidden} hidden channels of a feed-forward are not divided by it" if hidden % count else ""


def _of_randomness(block: Block) -> str:
    chances = {"dropout": block.branch1.dropout, "attention_dropout": getattr(block.attn, "dropout", 0.0)}
    found = next((name for name, chance in chances.items() if chance), "stochastic_depth" if block.branch1.skip else "")
    return f"the random numbers of {found} would differ from one process to another" if found else ""
