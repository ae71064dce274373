"""Memory that was freed and is given back, where a training is to take little of it on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triune.core.training import heap
from triune.core.training.heap import GivesBack
from triune.core.training.lightning_fixes import FSDP2


def calls(strategy: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the C library is told in a training of one step and one validation."""
    found: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: found.append)
    trainer: Any = SimpleNamespace(strategy=strategy)
    back = GivesBack()
    back.on_fit_start(trainer, module)
    back.on_before_optimizer_step(trainer, module, None)
    back.on_train_batch_end(trainer, module, None, None, 0)
    back.on_validation_end(trainer, module)
    back.on_fit_end(trainer, module)
    return found


def test_where_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SimpleNamespace(root_device=torch.device("cpu"))
    cut = FSDP2()
    cut.parallel_devices = [torch.device("cpu")]
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cpu"))
    kept, again = SimpleNamespace(checkpointing=False), SimpleNamespace(checkpointing=True)
    assert calls(plain, kept, monkeypatch) == []
    assert calls(plain, again, monkeypatch) == [0] * 4
    assert calls(cut, kept, monkeypatch) == [0] * 4
    assert calls(SimpleNamespace(root_device=torch.device("cuda")), again, monkeypatch) == []


def test_a_library_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given back, and nothing raised."""
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: SimpleNamespace())
    heap._malloc_trim.cache_clear()
    assert heap._malloc_trim() is None
    back = GivesBack()
    back._wanted = True
    back._give_back()
    heap._malloc_trim.cache_clear()
