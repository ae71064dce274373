"""Steps whose loss or gradient is not finite. Run as a script this file is the half with two processes."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from test_module import CONSTANT, ToyModule, batches, trainer, weights

from triune.bench.kills.server import Server
from triune.core.errors import UserError
from triune.core.training import guard
from triune.core.training.data import Batches
from triune.core.training.guard import Guard
from triune.core.training.module import Loss
from triune.core.training.optimizers import OptimizerConfig

BAD = 3
"""The optimizer step, counted from 1, that cannot be used."""


class Broken(ToyModule):
    """Its loss or gradient is not finite in the micro-batches `bad`, counted from 0 over all."""

    def __init__(self, *args: Any, bad: tuple[int, ...] = (), how: str = "loss", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bad, self.how, self.seen = bad, how, 0

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        total, count = super().loss(batch)
        if self.training:
            if self.seen in self.bad and self.how == "loss":
                total = total * math.nan
            elif self.seen in self.bad:  # the root of 0 has no slope
                total = total + (0 * total).sqrt()
            self.seen += 1
        return Loss(total, count)


def full(number: int) -> list[dict[str, Tensor]]:
    """Batches with targets in each."""
    return [batch for batch in batches(2 * number) if (batch["targets"] != -100).any()][:number]


def state(module: ToyModule) -> dict[str, Any]:
    optimizer = module.optimizers().state_dict()["state"]
    return {"weights": weights(module), "optimizer": optimizer, "ema": module.ema.averaged() if module.ema else {}}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("on_device", [False, True], ids=["read", "unread"])
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_bad_step_changes_nothing(
    name: Any, accumulate: int, how: str, on_device: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if on_device:  # nothing is read between log steps, as on a GPU
        monkeypatch.setattr(guard, "UNREAD", ("cpu",))
    fits = {}
    for steps in (BAD - 1, BAD, BAD + 1):
        bad = (BAD * accumulate - 1,)
        module = Broken(
            full(8), bad=bad, how=how, optimizer=OptimizerConfig(name=name), schedule=CONSTANT, ema=0.9,
        )  # fmt: skip
        fit = trainer(max_steps=steps, accumulate_grad_batches=accumulate, gradient_clip_val=1.0, log_every_n_steps=1)
        fit.fit(module)
        fits[steps] = module, fit
    before, after, later = (state(fits[steps][0]) for steps in (BAD - 1, BAD, BAD + 1))
    assert equal(before, after)
    assert not equal(after["weights"], later["weights"])
    assert all(value.isfinite().all() for value in later["weights"].values())
    module, fit = fits[BAD]
    assert fit.global_step == BAD  # the step counts: schedule and order of the data go on
    assert module.guard.counts["skipped_steps"] == 1
    said = capsys.readouterr().out
    assert f"step {BAD} was left out" in said
    assert ("loss is nan" if how == "loss" else "gradient is not finite") in said
    if accumulate == 2 and how == "loss":
        assert f"of batch {2 * BAD};" in said  # the one of the two that has it


def test_the_device_path_computes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for unread in ((), ("cpu",)):
        monkeypatch.setattr(guard, "UNREAD", unread)
        module = Broken(full(6), bad=(2,), schedule=CONSTANT, ema=0.9)
        trainer(gradient_clip_val=1.0).fit(module)
        found.append(state(module))
    assert equal(*found)


def test_another_optimizer_is_left_out_as_well() -> None:
    class Plain(Broken):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    found = {}
    for steps in (BAD - 1, BAD):
        module = Plain(full(4), bad=(BAD - 1,))
        trainer(max_steps=steps).fit(module)
        found[steps] = state(module)
    assert equal(found[BAD - 1], found[BAD])


@pytest.mark.parametrize("on_device", [False, True])
def test_several_in_a_row_stop_the_training(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_device:
        monkeypatch.setattr(guard, "UNREAD", ("cpu",))
    config = OptimizerConfig(skip_limit=3)
    scattered = Broken(full(8), bad=(0, 1, 3, 4, 6), optimizer=config)
    trainer(log_every_n_steps=4).fit(scattered)
    assert scattered.guard.counts["skipped_steps"] == 5
    module = Broken(full(8), bad=(1, 2, 3), optimizer=config)
    with pytest.raises(UserError, match=r"3 steps in a row.* step 4, .*loss is nan, of batch 4; .*lower learning rate"):
        trainer(log_every_n_steps=2 if on_device else 50).fit(module)
    assert all(value.isfinite().all() for value in weights(module).values())
    with pytest.raises(UserError, match=r"skip_limit is 0"):
        OptimizerConfig(skip_limit=0)


def test_weights_that_are_not_finite_stop_at_once() -> None:
    module = Broken(full(4), optimizer=OptimizerConfig(name="adamw", lr=3e38, weight_decay=0))
    with pytest.raises(UserError, match=r"Weights are not finite after step"):
        trainer().fit(module)


def test_a_batch_without_targets_is_counted(capsys: Any) -> None:
    module = Broken(batches(4), schedule=CONSTANT)  # the third has none
    trainer().fit(module)
    assert module.guard.counts == {"skipped_steps": 0, "loss_spikes": 0, "steps_without_targets": 1}
    assert all(value.isfinite().all() for value in weights(module).values())
    assert "step 3 has no target to learn from" in capsys.readouterr().out


def follow(losses: list[float]) -> Guard:
    fit = SimpleNamespace(
        global_step=0, log_every_n_steps=10, overfit_batches=0, world_size=1, precision_plugin=None,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(
            total=SimpleNamespace(processed=0)
        ))),
    )  # fmt: skip
    module, watch = SimpleNamespace(trainer=fit), Guard(5)
    for loss in losses:
        value = torch.tensor(loss)
        watch.saw(fit, value)
        watch.took(module, torch.tensor(False), value, torch.tensor(4))
        fit.global_step += 1
    return watch


def test_a_leap_of_the_loss_is_said_once(capsys: Any) -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0))
    falling = [4 * math.exp(-i / 100) + 0.1 * n for i, n in enumerate(noise.tolist())]
    assert follow(falling).counts["loss_spikes"] == 0
    assert capsys.readouterr().out == ""
    falling[200:205] = [9.0, 10.0, 11.0, 9.0, 8.0]
    watch = follow(falling)
    assert watch.counts["loss_spikes"] == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("the loss of step 201 leaps to 9, from 0.7")
    steady = [0.0] * 64 + [1e-3] * 3 + [0.0] * 100  # all equal: no spread at all
    assert follow(steady).counts["loss_spikes"] <= 1


def test_what_a_16_bit_scaler_mends_is_no_fault() -> None:
    scaler = SimpleNamespace(get_scale=lambda: 65536.0)
    fit = SimpleNamespace(global_step=1, world_size=1, precision_plugin=SimpleNamespace(scaler=scaler))
    watch = Guard(1)
    step = guard.Step(1, torch.tensor(True), torch.tensor(2.0), torch.tensor(4), [])
    watch._pending = [step]
    watch.review(SimpleNamespace(trainer=fit))
    assert watch.counts["skipped_steps"] == 0
    scaler.get_scale = lambda: 1.0
    watch._pending = [step]
    with pytest.raises(UserError, match="gradient is not finite"):
        watch.review(SimpleNamespace(trainer=fit, state_dict=dict))


def test_a_resumed_training_counts_on(tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "at.ckpt")

    class Placed(Broken):
        def loader(self, batches: list[dict]) -> Any:
            return Batches(batches, Following(self, len(batches)))

    class Following:
        def __init__(self, module: Any, count: int) -> None:
            self.module, self.count = module, count

        def __len__(self) -> int:
            return self.count

        def __iter__(self) -> Any:
            return iter(range(self.module.trainer.fit_loop.epoch_loop.batch_progress.current.processed, self.count))

    options = {"bad": (1, 2, 4), "schedule": CONSTANT, "ema": 0.9, "optimizer": OptimizerConfig(skip_limit=4)}
    whole = Placed(full(6), **options)
    trainer(callbacks=[Save()]).fit(whole)
    resumed = Placed(full(6), **options)
    resumed.seen = 3
    trainer().fit(resumed, ckpt_path=tmp_path / "at.ckpt", weights_only=True)
    assert equal(state(whole), state(resumed))
    assert whole.guard.state_dict() == resumed.guard.state_dict()
    assert whole.guard.counts["skipped_steps"] == 3


def test_two_ranks_leave_the_same_step_out(tmp_path: Path, server: Server) -> None:
    done = server.run(tmp_path, ["call", __file__, "two_ranks", str(tmp_path)], ranks=2)
    assert done.code == 0, done.printed[-2000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(one["weights"], other["weights"])
    assert one["counts"] == other["counts"] == {"skipped_steps": 1, "loss_spikes": 0, "steps_without_targets": 0}
    assert all(value.isfinite().all() for value in one["weights"].values())
    assert done.printed.count("step 2 was left out: its loss is nan") == 1
    assert "of batch 2;" in done.printed


def two_ranks(folder: str) -> None:
    module = Broken(full(8), optimizer=OptimizerConfig(), schedule=CONSTANT)
    fit = trainer(strategy="ddp", devices=2, use_distributed_sampler=False, num_sanity_val_steps=0)
    module.bad = (1,) if fit.global_rank == 1 else ()  # in one of the two processes only
    fit.fit(module)
    torch.save({"weights": weights(module), "counts": module.guard.counts}, f"{folder}/{fit.global_rank}.pt")
