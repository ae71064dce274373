"""Muon's orthogonalisation shared among processes: the same updates, and to each its part of the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from triune.core.training import orthogonal
from triune.core.training.orthogonal import orthogonalise, owners

SHAPES = [(16, 16), (16, 48), (48, 16), (16, 16), (3, 16, 32), (8, 64), (16, 48), (4, 4)]


def updates() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def share(folder: str) -> None:
    """What each process does (see `_call` of bench/kills/server.py): writes its results to a file of its rank."""
    dist.init_process_group("gloo")
    done: list[int] = []
    single = orthogonal._orthogonalised
    orthogonal._orthogonalised = lambda own, steps: done.append(sum(map(orthogonal._work, own))) or single(own, steps)
    results = orthogonalise(updates())
    torch.save((results, done[0]), Path(folder, f"{dist.get_rank()}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_shared_updates_are_those_of_one_process(world: int, server: Any, tmp_path: Path) -> None:
    done = server.run(tmp_path, ["call", __file__, "share", str(tmp_path)], ranks=world)
    assert done.code == 0, done.printed
    expected = orthogonalise(updates())
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for results, _ in found:
        for result, first, wanted in zip(results, found[0][0], expected, strict=True):
            assert torch.equal(result, first)  # to the bit, so that the weights of the processes stay alike
            torch.testing.assert_close(result, wanted, rtol=0, atol=1e-6)
    work = [own for _, own in found]
    total = sum(map(orthogonal._work, updates()))
    assert sum(work) == total and max(work) <= total / world + max(map(orthogonal._work, updates()))


@given(work=st.lists(st.integers(1, 1000), min_size=1, max_size=60), world=st.integers(1, 9))
def test_no_process_has_much_more_than_its_part(work: list[int], world: int) -> None:
    owner = owners(work, world)
    load = [sum(w for w, who in zip(work, owner, strict=True) if who == rank) for rank in range(world)]
    assert sum(load) == sum(work) and max(load) <= sum(work) / world + max(work)
