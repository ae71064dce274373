"""`triune plan`: its formulas by hand, its trace beside the real pass, and its command line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from triune.cli import main
from triune.core.errors import UserError
from triune.core.training.run.devices import SHEETS, Devices, Rates, measured, parse
from triune.core.training.run.flops import count_step
from triune.core.training.run.live import Live
from triune.core.training.run.plan import plan, seconds
from triune.core.training.run.step import Step
from triune.core.training.run.trace import Pass, trace

RATES = Rates([(1e6, 1e-3)], {"": 1e9, "gelu": 1e8}, 1e-5)


class Squares(nn.Module):
    """Two linear layers; the loss is the sum of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 64), nn.Linear(64, 16)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        x = batch["x"]
        return self.two(self.one(x).relu()).square().sum(), len(x)


def test_trace_counts_what_the_pass_does() -> None:
    module, batch = Squares(), {"x": torch.randn(8, 32)}
    kept, bare = trace(module, batch, 8, 8), trace(module, batch, 8, 8, forget=True)
    assert kept.flops == count_step(module, batch) == 2 * 8 * (2 * 32 * 64 + 3 * 64 * 16)
    weights = 4 * sum(p.numel() for p in module.parameters())
    live = Live()
    live.ignore(module.parameters())
    with live:
        module.loss({"x": torch.randn(8, 32)})[0].backward()
    assert abs(kept.most - live.most) <= 4 * 8 * 32  # the input itself is made within
    assert 0 < kept.most - bare.most <= weights
    # The gradients, and at most five tensors of 8 rows; views of the weights are no copies of them.
    assert weights < kept.most < weights + 4 * 8 * (3 * 64 + 3 * 16)
    assert 1.9 < trace(module, batch, 8, 800).most / trace(module, batch, 8, 400).most < 2.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_autocast_halves_what_is_kept() -> None:
    module, batch = Squares(), {"x": torch.randn(4096, 32)}
    single = trace(module, batch, 4096, 4096, forget=True)
    half = trace(module, batch, 4096, 4096, torch.bfloat16, forget=True)
    assert 0.4 < half.most / single.most < 0.8
    assert half.flops == single.flops


def step(**more: Any) -> Step:
    one, two = Pass(1_000, [("mm", 1e6, 1, 0)]), Pass(1_800, [])
    given: dict[str, Any] = {
        "rows": 4, "one": one, "two": two, "again": None, "again_two": None, "parameters": 250, "weights": 1_000,
        "trained": 1_000, "state": 1_500, "averages": 0, "matrices": Counter({(10, 5): 2}), "tensors": 3, "block": 200,
        "size": 4, "accumulate": 1, "checkpointing": False, "steps": 100, "epochs": False,
    }  # fmt: skip
    return Step(**given | more)


def devices(world: int, memory: float = 10_000 / 0.95) -> Devices:
    return Devices("some", 1, world, memory, 1e3, "32-true", lambda precision: RATES)


def test_one_device() -> None:
    found = plan(step(), devices(1), "ddp", RATES)
    # Muon's two matrices have 100 numbers, of which eight copies are held.
    assert found.memory == {"weights": 1_000, "optimizer": 1_500, "activations": 1_000, "Muon": 3_200}
    assert found.total == 6_700
    assert found.largest == 4 + (10_000 - 6_700) // 200  # an example takes (1800 - 1000) / 4
    assert found.sent == found.communication == 0
    assert found.compute == pytest.approx(1e-3 + 1e-5)
    assert found.seconds == found.compute + found.update


def test_several_devices() -> None:
    alike = plan(step(), devices(4), "ddp", RATES)
    assert alike.memory == {
        "weights": 1_000,
        "optimizer": 1_500,
        "activations": 1_000,
        "exchange": 1_000,
        "Muon": 1_600,
    }
    assert alike.sent == pytest.approx(3 / 4 * (2 * 1_000 + 2 * 50 * 4))
    assert alike.communication == pytest.approx(alike.sent / 1e3)
    assert alike.seconds == alike.communication + alike.update  # the link is slower than the passes
    cut = plan(step(accumulate=2), devices(4), "fsdp2", RATES)
    assert cut.memory == {
        "weights": 250, "optimizer": 375, "gradients": 250, "gathered": 600, "activations": 1_000, "Muon": 1_600
    }  # fmt: skip
    assert cut.sent == pytest.approx(3 / 4 * (2 * (2 * 1_000 + 1_000) + 2 * 400))
    assert cut.flops == 2 * 4 * 1e6
    averaged = step(averages=800)
    assert plan(averaged, devices(4), "fsdp2", RATES).memory["averages"] == 200  # cut as the weights are
    assert plan(averaged, devices(4), "ddp", RATES).memory["averages"] == 800
    # On a CPU what the passes took is given back before the update, which is the fuller moment here.
    here = step(base=100.0)
    assert plan(here, devices(4), "fsdp2", RATES).memory == {
        "weights": 250, "optimizer": 375, "activations": 1_250, "gradients": 250, "gathered": 2_500, "process": 100
    }  # fmt: skip
    narrow = plan(step(base=100.0, matrices=Counter({(100, 50): 2})), devices(4), "fsdp2", RATES).memory
    assert narrow["Muon"] == 4 * 10_000 * 4 - 3_750
    assert "checkpoint" not in narrow
    wide = plan(step(base=100.0, matrices=Counter(), state=5_000), devices(4), "fsdp2", RATES).memory
    assert wide["checkpoint"] == 6_000 - 3_750
    assert plan(step(), devices(1), "fsdp2", RATES).memory == plan(step(), devices(1), "ddp", RATES).memory


def test_computed_again() -> None:
    again = {"again": Pass(400, [("mm", 1e6, 1, 0)] * 2), "again_two": Pass(600, [])}
    found = plan(step(**again), devices(1), "ddp", RATES)
    assert (found.total, found.total_again) == (6_700, 6_100)
    assert found.largest_again == 4 + (10_000 - 6_100) // 50
    asked = plan(step(**again, checkpointing=True), devices(1), "ddp", RATES)
    assert (asked.total, asked.largest, asked.largest_again) == (6_100, found.largest, found.largest_again)
    assert asked.compute == pytest.approx(2 * found.compute)
    assert asked.flops == found.flops  # by convention


def test_rates() -> None:
    rates = Rates([(1e3, 1e-6), (1e5, 1e-5)], {"": 1e9, "gelu": 1e8}, 1e-6)
    assert rates.product(1e3) == 1e-6
    assert rates.product(1e4) == pytest.approx(10**-5.5)
    assert rates.product(1e7) == pytest.approx(1e-3)
    assert rates.product(10) == pytest.approx(1e-8)
    assert rates.bytes_per_second("gelu_backward") == 1e8
    assert seconds([("gelu", 0.0, 1, 1_000_000), ("add", 0.0, 1, 1)], rates) == pytest.approx(1e-2 + 1e-6)
    here = measured("32-true")
    assert here.product(2.0 * 512**3) > here.product(2.0 * 64**3) > 0


def test_devices_by_name() -> None:
    assert (parse("H100").world, parse("16xh100").nodes, parse("4x8xA100").world) == (1, 2, 32)
    assert parse("8xH100").link == SHEETS["H100"].link > parse("2x8xH100").link
    assert parse("8xH100", 100).link == 100e9
    assert (parse("T4").precision, parse("H200").precision) == ("32-true", "bf16-mixed")
    assert parse("2xcpu").memory * 1.5 < parse("cpu").memory


@pytest.mark.parametrize("text", ["", "H1000", "0xH100", "8 H100", "12xH100", "2x8xcpu", "x8", "8xH100x", "9" * 40])
def test_no_such_devices(text: str) -> None:
    with pytest.raises(UserError, match="--devices is"):
        parse(text)


SMALL = [
    "--data.tokenizer", "bytes", "--data.context", "16", "--data.batch_size", "2", "--model.transformer.dim", "16",
    "--model.transformer.depth", "1", "--model.transformer.heads", "2", "--threads", "1", "--trainer.max_steps", "9",
]  # fmt: skip


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("".join(f"{i} and {i} is {i + i}\n" for i in range(300)))
    return ["plan", "text", *SMALL, "--data.files", str(tmp_path / "text.txt"), "--data.cache", str(tmp_path)]


def test_command(line: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    own = ["--trainer.precision", "auto", "--run", "mine"]
    assert main([*line, "--devices", "8xH100", "--trainer.strategy", "fsdp2", *own]) == 0
    said = capsys.readouterr().out
    assert "8 x H100, fsdp2, bf16-mixed" in said
    number = re.search(r"weights +([\d.]+) (k?)B = ([\d.]+)k parameters x 4 bytes / 8 devices", said)
    assert number is not None
    assert float(number[1]) == pytest.approx(float(number[3]) * 4 / 8, rel=0.05)
    assert re.search(r"time +about 0:00: 9 steps", said)
    assert not (tmp_path / "mine").exists()
    assert not (tmp_path / "runs").exists()


def test_a_model_that_tells_its_data_what_to_hide(tmp_path: Path, capsys, monkeypatch) -> None:
    """Masked images: the number of patches is known from the model alone."""
    monkeypatch.chdir(tmp_path)
    words = ["--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
    assert main(["plan", "vision", "pretrain", *words, "--data.batch_size", "4", "--devices", "H100"]) == 0
    assert "4 examples each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--devices", "8xK80"], "--devices is 8xK80"),
        (["--devices"], "--devices needs a value"),
        (["--link", "fast"], "--link is fast"),
        (["--data.fils", "x"], "data.fils"),
        (["--trainer.strategy", "nan"], "--trainer.strategy is nan, but must be"),
        (["--trainer.devices", "8"], "--trainer.devices would change nothing in a plan; give --devices"),
        (["--devices", "T4", "--trainer.precision", "bf16-mixed"], "--trainer.precision is bf16-mixed"),
    ],
)
def test_mistakes(line: list[str], tmp_path: Path, capsys, monkeypatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*line, *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
