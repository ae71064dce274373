"""Muon's orthogonalisation shared among processes: the same updates, and to each its part of the work."""

from __future__ import annotations

import multiprocessing
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


def share(rank: int, world: int, store: str, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    done: list[int] = []
    single = orthogonal._orthogonalised
    orthogonal._orthogonalised = lambda own, steps: done.append(sum(map(orthogonal._work, own))) or single(own, steps)
    results = orthogonalise(updates())
    answers.put((rank, [result.tolist() for result in results], done))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_shared_updates_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    expected = orthogonalise(updates())
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    several = [context.Process(target=share, args=(rank, world, tmp_path / "store", answers)) for rank in range(world)]
    for process in several:
        process.start()
    found = sorted((answers.get(timeout=30) for _ in several), key=lambda entry: entry[0])
    for process in several:
        process.join(60)
        assert process.exitcode == 0
    for _, results, _ in found:
        assert results == found[0][1]  # to the bit, so that the weights of the processes stay alike
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(torch.tensor(result), wanted, rtol=0, atol=1e-6)
    work = [done[0] for _, _, done in found]
    total = sum(map(orthogonal._work, updates()))
    assert sum(work) == total and max(work) <= total / world + max(map(orthogonal._work, updates()))


@given(work=st.lists(st.integers(1, 1000), min_size=1, max_size=60), world=st.integers(1, 9))
def test_no_process_has_much_more_than_its_part(work: list[int], world: int) -> None:
    owner = owners(work, world)
    load = [sum(w for w, who in zip(work, owner, strict=True) if who == rank) for rank in range(world)]
    assert sum(load) == sum(work) and max(load) <= sum(work) / world + max(work)
