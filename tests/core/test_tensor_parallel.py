"""The plan of tensor parallelism: what each process keeps of a block, and which blocks cannot be cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.expert_options import ExpertsConfig
from triune.core.tensor_parallel import PLAN, obstacle, partial, split
from triune.core.transformer import Block, Transformer


def config(**settings: Any) -> TransformerConfig:
    options: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "qk_norm": "head", "ffn": "swiglu"}
    return TransformerConfig(**(options | settings)).resolved()


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Two processes, of which this one is the second; the first does not exist, and nothing can be sent."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("tensor_parallel",))
    dist.destroy_process_group()


def test_what_a_process_keeps(mesh: Any) -> None:
    torch.manual_seed(0)
    block = Block(config(kv_heads=2, attention_gate=True, bias=True), 0)
    whole = {name: p.detach().clone() for name, p in block.named_parameters()}
    split(block, mesh)
    for name, p in block.named_parameters():
        layer, kind = name.rsplit(".", 1)
        own = p.to_local() if isinstance(p, DTensor) else p
        expected = whole[name]
        if PLAN.get(layer) == "rows":
            expected = expected.chunk(2, dim=0)[1]
        elif PLAN.get(layer) == "columns" and kind == "weight":
            expected = expected.chunk(2, dim=1)[1]
        assert torch.equal(own, expected), name
    assert {name.rsplit(".", 1)[0] for name, p in block.named_parameters() if isinstance(p, DTensor)} == set(PLAN)


def test_norms_of_queries_and_keys_see_some_heads() -> None:
    model = Transformer(config(norm="rmsnorm"))
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in partial(model)]
    assert found == [f"blocks.{layer}.attn.{name}_norm.weight" for layer in (0, 1) for name in ("q", "k")]
    assert not partial(Transformer(config(qk_norm="none")))


@pytest.mark.parametrize(
    ("settings", "count", "says"),
    [
        ({}, 3, "the 4 heads of a layer are not divided by it"),
        ({"kv_heads": 1}, 2, "the 1 kv_heads of a layer"),
        ({"ffn_dim": 9}, 2, "the 9 hidden channels"),
        ({"mixer": "gru", "position": "none", "causal": True, "qk_norm": "none"}, 2, "mix by "),
        ({"experts": ExpertsConfig(count=4, active=2)}, 2, "feed-forward of the kind Experts"),
        ({"qk_norm": "full"}, 2, "qk_norm full is over all heads"),
        ({"short_convolution": 3}, 2, "short_convolution works on all heads"),
        ({"inner_norm": ("ffn",)}, 2, "inner_norm ffn is over all hidden channels"),
        ({"inner_norm": ("attention",)}, 2, "inner_norm attention works on all heads"),
        ({"cross_attention": True}, 2, "mix by cross-attention"),
        ({"dropout": 0.1}, 2, "random numbers of dropout"),
        ({"attention_dropout": 0.1}, 2, "random numbers of attention_dropout"),
        ({"stochastic_depth": 0.1}, 2, "random numbers of stochastic_depth"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_cannot_be_cut(settings: dict[str, Any], count: int, says: str) -> None:
    assert says in obstacle(Block(config(**settings), 1), count)


def test_what_can_be_cut() -> None:
    for settings in ({}, {"kv_heads": 2}, {"parallel": True}, {"placement": "post"}, {"window": 4}, {"ffn": "none"}):
        assert obstacle(Block(config(**settings), 1), 2) == ""


def test_the_sentence() -> None:
    class Mesh:
        def size(self) -> int:
            return 3

    with pytest.raises(UserError, match=r"tensor_parallel_size is 3, but the 4 heads .* choose another number, or"):
        split(Block(config(), 0), Mesh())
