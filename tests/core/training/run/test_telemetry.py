"""Numbers about a training: right with a fake clock, free of reads between log steps, and shown in one line."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from triune.core.training.module import Loss
from triune.core.training.run import machine
from triune.core.training.run.flops import count_step
from triune.core.training.run.progress import Progress, duration, line, short
from triune.core.training.run.telemetry import Snapshot, Telemetry


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """Drives a `Telemetry` as Lightning would, with steps, waits and validations of chosen length."""

    def __init__(self, path: Path | None = None, every: int = 2, steps: int = 100, warmup: int = 0, start: int = 0):
        self.clock = Clock()
        self.telemetry = Telemetry(path, warmup, self.clock)
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.01}])
        self.trainer: Any = SimpleNamespace(
            global_step=start, current_epoch=0, log_every_n_steps=every, max_steps=steps, max_epochs=-1, world_size=1,
            num_training_batches=math.inf, accumulate_grad_batches=1, precision="32-true", is_global_zero=True,
            sanity_checking=False, state=SimpleNamespace(fn="fit"), callback_metrics={}, optimizers=[optimizer],
            strategy=SimpleNamespace(reduce=lambda x, reduce_op: x), loggers=[],
        )  # fmt: skip
        self.module: Any = SimpleNamespace(
            thawed=0, device=torch.device("cpu"), last_grad_norm=None, slots=lambda batch: batch["tokens"].numel(),
            guard=SimpleNamespace(review=lambda module: None, counts={"skipped_steps": 0}), modules=lambda: [],
        )  # fmt: skip
        self.module.loss = lambda batch: (batch["weight"] * 2.0).sum()
        self.telemetry.on_train_start(self.trainer, self.module)

    def step(
        self, busy: float = 0.5, wait: float = 0.0, real: int = 8, slots: int = 10, stepped: bool = True,
        loss: float = 3.0,
    ) -> None:  # fmt: skip
        batch = {"tokens": torch.zeros(slots)}
        self.clock.now += wait
        self.telemetry.on_train_batch_start(self.trainer, self.module, batch, 0)
        self.clock.now += busy
        self.module.last_batch = Loss(torch.tensor(loss * real), torch.tensor(real))
        self.trainer.global_step += stepped
        self.telemetry.on_train_batch_end(self.trainer, self.module, None, batch, 0)

    def validate(self, seconds: float, **metrics: float) -> None:
        self.clock.now += 1.0  # the loader of the validation starts
        self.telemetry.on_validation_start(self.trainer, self.module)
        self.clock.now += seconds
        self.trainer.callback_metrics = {k: torch.tensor(v) for k, v in metrics.items()}
        self.telemetry.on_validation_end(self.trainer, self.module)

    @property
    def now(self) -> Snapshot:
        return self.telemetry.latest


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- rates
# ---------------------------------------------------------------------------------------------------------------


def test_rates_count_real_tokens_and_waiting() -> None:
    loop = Loop(every=4)
    for _ in range(4):
        loop.step(busy=0.5, wait=0.3, real=8, slots=10)
    assert loop.now.units == 32
    assert loop.now.units_per_second == pytest.approx(32 / 3.2)
    assert loop.now.slots_per_second == pytest.approx(40 / 3.2)
    assert loop.now.padding == pytest.approx(0.2)
    assert loop.now.data_wait == pytest.approx(1.2 / 3.2)
    assert loop.now.loss == pytest.approx(3.0)
    assert loop.now.eta == pytest.approx(96 * 0.8)
    assert loop.now.lr == 0.01


def test_loss_is_weighted_by_tokens() -> None:
    loop = Loop(every=2)
    loop.step(real=1)
    loop.module.last_grad_norm = torch.tensor(0.25)
    batch = {"tokens": torch.zeros(10)}
    loop.telemetry.on_train_batch_start(loop.trainer, loop.module, batch, 0)
    loop.module.last_batch = Loss(torch.tensor(9.0), torch.tensor(9))
    loop.trainer.global_step += 1
    loop.telemetry.on_train_batch_end(loop.trainer, loop.module, None, batch, 0)
    assert loop.now.loss == pytest.approx((3 + 9) / 10)
    assert loop.now.grad_norm == 0.25


def test_warmup_validation_and_checkpoints_are_in_no_rate(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "metrics.csv", every=10, warmup=3)
    for _ in range(3):
        loop.step(busy=60.0, wait=5.0)
    for i in range(7):
        loop.step(busy=0.5)
        if i == 3:
            loop.validate(1000.0, val_loss=2.5)
            with loop.telemetry.pause():
                loop.clock.now += 77.0
    assert loop.now.units == 80
    assert loop.now.units_per_second == pytest.approx(16.0)
    assert loop.now.data_wait == 0
    assert loop.now.val_loss == 2.5
    assert loop.now.seconds == pytest.approx(3 * 65 + 7 * 0.5 + 1001 + 77)
    assert loop.telemetry.totals()["tokens_per_second"] == pytest.approx(16.0)
    assert [row["val_loss"] for row in rows(tmp_path / "metrics.csv")] == ["2.5", ""]
    assert rows(tmp_path / "metrics.csv")[0]["units"] == "56"


def test_no_rate_before_the_warmup_is_over() -> None:
    loop = Loop(every=1, warmup=3)
    for _ in range(3):
        loop.step()
        assert loop.now.units_per_second is None
        assert loop.now.loss == pytest.approx(3.0)
    loop.step(busy=0.25)
    assert loop.now.units_per_second == pytest.approx(8 / 0.25)


def test_micro_batches_are_one_step(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "m.csv", every=1)
    for i in range(6):
        loop.step(busy=0.5, stepped=i % 3 == 2)
    found = rows(tmp_path / "m.csv")
    assert [row["step"] for row in found] == ["1", "2"]
    assert [row["units"] for row in found] == ["24", "48"]
    assert float(found[1]["units_per_second"]) == pytest.approx(16.0)


def test_resume_continues_counts_and_sums(tmp_path: Path) -> None:
    whole, first = Loop(tmp_path / "a.csv", every=4), Loop(tmp_path / "b.csv", every=4)
    for _ in range(8):
        whole.step()
    for _ in range(6):
        first.step()
    state = first.telemetry.state_dict()
    second = Loop(every=4, start=6)
    second.telemetry.load_state_dict(state)
    for _ in range(2):
        second.step(busy=0.25)
    assert (second.now.units, second.now.loss, second.now.padding) == (64, whole.now.loss, whole.now.padding)
    assert second.now.seconds == pytest.approx(3.5)
    assert second.now.units_per_second == pytest.approx(32.0)  # of its own steps alone


def test_nothing_is_read_between_log_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(every=5, warmup=1)
    loop.step()
    reads: list[str] = []
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy", "__index__"):
        original = getattr(Tensor, name)

        def spy(self: Tensor, *args: Any, _original: Any = original, _name: str = name, **named: Any) -> Any:
            reads.append(_name)
            return _original(self, *args, **named)

        monkeypatch.setattr(Tensor, name, spy)
    for _ in range(3):
        loop.step()
    assert reads == []
    loop.step()
    assert reads == ["tolist"]


def test_a_loss_that_is_not_finite_is_in_no_mean(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "metrics.csv", every=3)
    loop.step(real=8)
    loop.module.guard.counts["skipped_steps"] = 1
    loop.step(real=5, loss=math.nan)
    again = loop.telemetry.state_dict()  # the sums of a window survive a resume
    loop.step(real=2)
    assert loop.now.loss == 3.0
    assert loop.now.units == 15
    assert rows(tmp_path / "metrics.csv")[0]["skipped"] == "1"
    resumed = Loop(every=3, start=2)
    resumed.telemetry.load_state_dict(again)
    resumed.step(real=2)
    assert resumed.now.loss == 3.0
    alone = Loop(every=1)
    alone.step(loss=math.inf)
    assert alone.now.loss is None


# --- FLOPs
# ---------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """A layer of attention and a layer that mixes channels, as small as can be counted by hand."""

    def __init__(self, dim: int = 32, heads: int = 4, kv_heads: int = 4, causal: bool = True, mask: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.causal, self.mask = heads, kv_heads, causal, mask
        self.embed = nn.Embedding(50, dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim * kv_heads // heads)
        self.value = nn.Linear(dim, dim * kv_heads // heads)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.5)

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        x = self.embed(batch["tokens"])
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for f in (self.key, self.value))
        mask = torch.ones(q.shape[-2], q.shape[-2], device=x.device) if self.mask else None
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal and mask is None, enable_gqa=True)
        y = self.dropout(self.out(self.norm(y.transpose(1, 2).flatten(2))))
        return Loss((y + x).sum(), torch.tensor(y.shape[1]))


def by_hand(model: Attention, tokens: int, length: int) -> int:
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 6 * matrices * tokens + 12 * 32 * length * tokens


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("causal", "mask"), [(True, False), (False, False), (False, True)])
def test_flops_equal_the_formula_for_every_kernel(kv_heads: int, causal: bool, mask: bool) -> None:
    model = Attention(kv_heads=kv_heads, causal=causal, mask=mask)
    assert count_step(model, {"tokens": torch.randint(50, (3, 16))}) == by_hand(model, 48, 16)


def test_counting_leaves_no_trace() -> None:
    model = Attention()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    count_step(model, {"tokens": torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(0))})
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_weights_need_fewer_flops() -> None:
    model = Attention()
    model.key.weight.requires_grad_(False)
    expected = by_hand(model, 48, 16) - 2 * model.key.weight.numel() * 48
    assert count_step(model, {"tokens": torch.randint(50, (3, 16))}) == expected


def test_share_of_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "peak_flops", lambda name, precision: 1e9)
    loop = Loop(every=2)
    counted: list[int] = []

    def count(module: Any, batch: Any) -> int:
        counted.append(1)
        return 10**8

    monkeypatch.setattr("triune.core.training.run.telemetry.count_step", count)
    for _ in range(4):
        loop.step(busy=0.4, wait=0.1)
    assert loop.now.mfu == pytest.approx(2e8 / 1.0 / 1e9)
    assert len(counted) == 1  # once per shape
    loop.step(slots=11)
    assert len(counted) == 2


def test_share_of_peak_is_unknown_rather_than_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(every=1)
    loop.step()
    assert loop.now.mfu is None
    assert "not in the table" in loop.telemetry.flops_unknown

    monkeypatch.setattr(machine, "peak_flops", lambda name, precision: 1e9)
    loop = Loop(every=1)
    loop.module, loop.module.guard = Attention(), loop.module.guard
    loop.module.device, loop.module.last_grad_norm, loop.module.thawed = torch.device("cpu"), None, 0
    loop.module.slots = lambda batch: batch["tokens"].numel()
    loop.module.loss = lambda batch: batch["tokens"].sum() * (2 if batch["tokens"].sum().item() else 1)
    loop.step()
    assert loop.now.mfu is None
    assert loop.now.units_per_second is not None
    assert loop.telemetry.flops_unknown


# --- the progress line
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def busy() -> Snapshot:
    return Snapshot(
        step=123_456, units=10**9, seconds=4000, loss=2.34567, val_loss=2.5, units_per_second=1_234_567, mfu=0.41,
        data_wait=0.25, memory_gb=71.25, eta=7350,
    )  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_line_fits_every_width(busy: Snapshot, width: int) -> None:
    text = line(busy, 123_456, 600_000, width)
    assert len(text) <= width
    assert text.startswith("123456/600000")
    assert ("loss 2.346" in text) == (width >= 40)
    assert "\n" not in text


def test_line_says_everything_in_a_log_file(busy: Snapshot) -> None:
    assert line(busy, 123_456, 600_000, None, "img") == (
        "123456/600000  loss 2.346  val 2.500  2:02:30 left  1.23M img/s  41% of peak  25% waiting for data  71.2 GB"
    )
    assert line(Snapshot(), 5, None, 60) == "step 5"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (947, "947"), (999.6, "1.00k"), (31_240, "31.2k"), (999_960, "1.00M"), (2.5e9, "2.50B")]
)  # fmt: skip
def test_short(number: float, text: str) -> None:
    assert short(number) == text


def test_duration() -> None:
    assert [duration(s) for s in (0.4, 59.6, 725, 11_220, 187_800)] == ["0:00", "1:00", "12:05", "3:07:00", "2d 04:10"]


def drive(console: Console, steps: int = 6) -> None:
    loop = Loop(every=1)
    progress = Progress(loop.telemetry, interval=5.0, console=console, clock=loop.clock)
    progress.on_train_start(loop.trainer, loop.module)
    for i in range(steps):
        loop.step(busy=2.0)
        progress.on_train_batch_end(loop.trainer, loop.module, None, None, i)
        if i == 3:
            progress.on_validation_start(loop.trainer, loop.module)
            loop.validate(1.0, val_loss=1.75)
            progress.on_validation_end(loop.trainer, loop.module)
    progress.on_train_end(loop.trainer, loop.module)


def test_a_log_file_gets_few_plain_lines() -> None:
    out = io.StringIO()
    drive(Console(file=out, force_terminal=False, width=40))
    lines = out.getvalue().splitlines()
    assert [text.split("  ")[0] for text in lines] == ["1/100", "4/100", "step 4", "6/100"]
    assert "val_loss 1.7500" in lines[2]
    assert "\x1b" not in out.getvalue()


def test_a_narrow_terminal_is_not_garbled() -> None:
    out = io.StringIO()
    drive(Console(file=out, force_terminal=True, width=60, height=20, color_system=None))
    drawn = out.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    texts = [text for text in re.split(r"[\r\n]+", plain) if text.strip()]
    assert max(map(len, texts)) < 60
    assert any("validating" in text for text in texts)
    assert any(text.startswith("6/100") for text in texts)
    assert "step 4  val_loss 1.7500  after 0:10" in texts


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
