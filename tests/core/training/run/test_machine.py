"""Defaults for this machine, and the table of peak rates."""

from __future__ import annotations

import pytest
import torch

from triune.core.training.data import ResumableData
from triune.core.training.run import machine


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.4),
        ("NVIDIA H100 PCIe", "bf16-true", 756),
        ("NVIDIA H200", "16-mixed", 989.4),
        ("NVIDIA A100-SXM4-40GB", "bf16-mixed", 312),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", 165.2),
        ("Tesla V100-SXM2-16GB", "16-mixed", 125),
        ("Tesla T4", "32-true", 8.1),
    ],
)
def test_peak_of_known_cards(name: str, precision: str, teraflops: float) -> None:
    assert machine.peak_flops(name, precision) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed"),
        ("NVIDIA GeForce RTX 4090 D", "bf16-mixed"),
        ("NVIDIA H100", "bf16-mixed"),
        ("NVIDIA L40G", "bf16-mixed"),
        ("Tesla V100-SXM2-16GB", "bf16-mixed"),
        ("NVIDIA H200", "64-true"),
        ("NVIDIA H200", "transformer-engine"),
        ("Intel(R) Xeon(R) Processor", "32-true"),
    ],
)
def test_peak_is_unknown_rather_than_guessed(name: str, precision: str) -> None:
    assert machine.peak_flops(name, precision) is None


def test_peak_of_float32_follows_the_matmul_precision() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert machine.peak_flops("NVIDIA H200", "32-true") == pytest.approx(494.7e12)
        torch.set_float32_matmul_precision("highest")
        assert machine.peak_flops("NVIDIA H200", "32-true") == pytest.approx(66.9e12)
    finally:
        torch.set_float32_matmul_precision(before)


def test_threads_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = {"physical": 16, "usable": 32}
    monkeypatch.setattr(machine, "physical_cores", lambda: cores["physical"])
    monkeypatch.setattr(machine, "usable_cores", lambda: cores["usable"])
    assert (machine.default_threads(), machine.default_threads(processes=4)) == (16, 4)
    assert (machine.default_workers(), machine.default_workers(processes=16)) == (8, 0)
    cores.update(physical=1, usable=2)  # two hyper-threads
    assert (machine.default_threads(), machine.default_workers()) == (2, 0)
    cores.update(physical=1, usable=1)
    assert (machine.default_threads(), machine.default_workers()) == (1, 0)
    cores.update(physical=4, usable=4)
    assert machine.default_workers() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.default_threads() == 5


def test_this_machine() -> None:
    assert machine.default_precision("cpu") == "32-true"
    assert 1 <= machine.physical_cores() <= machine.usable_cores()
    assert machine.use_fast_matmul("cpu") is False
    memory = machine.peak_memory("cpu")
    assert memory is not None
    assert 0.05 < memory < 1000
    about = machine.describe("cpu")
    assert about["device"]
    assert set(about["versions"]) == {"python", "torch", "lightning", "triune"}
    assert about["threads"] == torch.get_num_threads()


def test_one_rule_for_workers_of_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Data(ResumableData):
        pin = False

    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    data = Data()
    assert (data.loader_workers(2), data.loader_workers(8, without_gpu=True)) == (0, 8)
    data.pin = True  # beside a GPU
    assert data.loader_workers(2) == 2
    data.workers = 5
    assert data.loader_workers(2) == 5
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    data.workers = None
    assert data.loader_workers(2) == 0
