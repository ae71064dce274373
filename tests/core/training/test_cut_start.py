"""Models that are cut while they are made start with the bits of whole ones, and no process holds all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from triune.core.config import TransformerConfig
from triune.core.expert_options import ExpertsConfig
from triune.core.initialise import cutting, uninitialised
from triune.core.mixers.options import KINDS
from triune.core.training.sharded import CutBlocks, cut, part
from triune.text.model import LanguageModel, LanguageModelConfig

SETTINGS: dict[str, dict[str, Any]] = {
    "biases": {"bias": True, "norm": "layernorm", "layer_scale": 0.1, "init_std": None},
    "experts": {"experts": ExpertsConfig(count=4, active=2)},
    "zero": {"init_residual": "zero", "qk_norm": "head", "norm_weight": "offset"},
    **{kind: {"mixer": kind} for kind in KINDS if kind != "attention"},
}


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Two processes, of which this one is the second; the first does not exist, and nothing can be sent."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())  # PyTorch keeps the rank of equal meshes
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def model(settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(7)
    options: dict[str, Any] = {"dim": 32, "depth": 3, "heads": 2, "context": 16}
    transformer = TransformerConfig(**(options | settings))
    return LanguageModel(LanguageModelConfig(50, transformer))


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_bits(mesh: Any, name: str) -> None:
    settings = SETTINGS[name]
    whole = model(settings)
    after = torch.rand(3)
    with cutting(CutBlocks(mesh)):
        ours = model(settings)
    assert torch.equal(torch.rand(3), after), "what is drawn next is the same"
    cut(ours, mesh)
    theirs = dict(whole.named_parameters()) | dict(whole.named_buffers())
    several = [*ours.named_parameters(), *ours.named_buffers()]
    assert {name for name, _ in several} == theirs.keys()
    for name, tensor in several:
        expected = theirs[name].detach()
        if isinstance(tensor, DTensor):
            pieces = [*expected.chunk(2), expected[:0]]
            expected = pieces[dist.get_rank()]
        assert torch.equal(part(tensor), expected), name
    assert all(isinstance(parameter, DTensor) for parameter in ours.parameters())


def test_never_whole(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is made, at most one block is whole."""
    found, fill = list[int](), CutBlocks.fill

    def counted(self: CutBlocks, block: nn.Module, values: dict[str, torch.Tensor]) -> None:
        found.append(sum(value.numel() for value in values.values()))
        assert all(isinstance(p, DTensor) for p in block.parameters())
        fill(self, block, values)

    monkeypatch.setattr(CutBlocks, "fill", counted)
    with cutting(CutBlocks(mesh)):
        ours = model({"depth": 5})
    blocks: Any = ours.get_submodule("transformer.blocks")
    assert len(found) == 5 and 0 < max(found) <= sum(p.numel() for p in blocks[0].parameters())
    with uninitialised():
        assert not any(isinstance(p, DTensor) for p in model({}).parameters()), "afterwards models are whole"
