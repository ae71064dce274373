"""`TrainingModule`."""

import copy
import logging
import traceback
import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from triune.bench.kills.server import Server
from triune.core.errors import UserError
from triune.core.training import guard
from triune.core.training.groups import build_optimizer
from triune.core.training.module import Loss, TrainingModule
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.schedules import ScheduleConfig

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
CONSTANT = ScheduleConfig(kind="constant", warmup=0)
VOCABULARY, DIM = 11, 8


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(2))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def toy_loss(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
    logits, targets = model(batch["tokens"]).float().flatten(0, 1), batch["targets"].flatten()
    return Loss(
        nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"), (targets != -100).sum()
    )


class ToyModule(TrainingModule):
    def __init__(self, train: list[dict], val: list[dict] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.data = (train, val or [])

    def build_model(self, data: object) -> nn.Module:
        torch.manual_seed(0)
        return Toy()

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        return toy_loss(self.model, batch)

    def loader(self, batches: list[dict]) -> DataLoader:
        # Each rank takes its share; all weights and counts are the test's own.
        mine = batches[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.data[0])

    def val_dataloader(self) -> DataLoader | list:
        return self.loader(self.data[1]) if self.data[1] else []


class Sparing(ToyModule):
    """Leaves parameters unused, as a model does that takes an input which these data lack."""

    leaves_unused = True

    def build_model(self, data: object) -> nn.Module:
        model = super().build_model(data)
        model.spare = nn.Linear(DIM, DIM)
        return model


def batches(number: int, seed: int = 0, rows: int = 3) -> list[dict[str, Tensor]]:
    """Micro-batches with very different numbers of real targets; number 2 has none at all."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index in range(number):
        tokens = torch.randint(VOCABULARY, (rows, 7), generator=generator)
        targets = torch.randint(VOCABULARY, (rows, 7), generator=generator)
        keep = torch.rand(rows, 7, generator=generator) < (0.1, 0.9, 0.0, 0.5)[index % 4]
        result.append({"tokens": tokens, "targets": torch.where(keep, targets, -100)})
    return result


def merged(group: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([batch[key] for batch in group]) for key in group[0]}


def trainer(**kwargs) -> pl.Trainer:
    warnings.filterwarnings("ignore", module="lightning")
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(**({"accelerator": "cpu", "max_epochs": 1} | quiet | kwargs))


def weights(module: ToyModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.model.named_parameters()}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


SMOOTH = OptimizerConfig(name="adamw", lr=0.01, eps=1e-3)  # a larger eps: Adam's sign of a tiny gradient is not smooth


def by_hand(groups: list[list[dict]], config: OptimizerConfig) -> dict[str, Tensor]:
    """The definition: one large batch a step, its summed loss divided by its number of real targets."""
    torch.manual_seed(0)
    model = Toy()
    optimizer = build_optimizer(model, config)
    for group in groups:
        total, count = toy_loss(model, merged(group))
        optimizer.zero_grad()
        (total / max(1, int(count))).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("config", [SMOOTH, OptimizerConfig(lr=0.01)], ids=["adamw", "muon"])
def test_any_split_gives_the_same_step(config: OptimizerConfig) -> None:
    micro = batches(7)
    accumulated = ToyModule(micro, optimizer=config, schedule=CONSTANT)
    fit = trainer(accumulate_grad_batches=3)
    fit.fit(accumulated)  # windows of 3, 3 and, at the end of the epoch, 1
    assert fit.global_step == 3
    expected = by_hand([micro[:3], micro[3:6], micro[6:]], config)
    assert_close(weights(accumulated), expected, 1e-6 if config is SMOOTH else 1e-5)
    whole = ToyModule([merged(micro[:3]), merged(micro[3:6]), micro[6]], optimizer=config, schedule=CONSTANT)
    trainer().fit(whole)
    assert_close(weights(whole), expected)


def test_last_loss_is_the_mean_over_the_window() -> None:
    micro = batches(4)
    module = ToyModule(micro, optimizer=SMOOTH, schedule=CONSTANT)
    trainer(accumulate_grad_batches=4).fit(module)
    torch.manual_seed(0)
    total, count = toy_loss(Toy(), merged(micro))
    torch.testing.assert_close(module.last_loss, (total / count).detach())
    assert not module.last_loss.requires_grad


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_without_targets_is_harmless(accumulate: int) -> None:
    empty = [batches(3)[2]] * 2
    module = ToyModule(empty, optimizer=OptimizerConfig(name="adamw", weight_decay=0), schedule=CONSTANT)
    trainer(accumulate_grad_batches=accumulate).fit(module)
    torch.manual_seed(0)
    assert_close(weights(module), {name: p.detach() for name, p in Toy().named_parameters()}, 0)
    assert float(module.last_loss) == 0


def test_flattened_weights_are_refused_with_what_works() -> None:
    module = ToyModule([])
    module.model = Toy()
    module._trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(UserError, match="take fsdp2, or ddp where the model fits one device"):
        module.configure_optimizers()


@pytest.mark.parametrize("kind", [ToyModule, Sparing])
def test_two_ranks_equal_one_process(tmp_path, kind: type[ToyModule], server: Server) -> None:
    done = server.run(tmp_path, ["call", __file__, "two_ranks", kind.__name__, str(tmp_path / "two.pt")], ranks=2)
    assert done.code == 0, done.printed[-2000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = kind(batches(8), batches(6, seed=1), optimizer=SMOOTH, schedule=CONSTANT, ema=0.9)
    fit = trainer(accumulate_grad_batches=4, gradient_clip_val=0.5)
    fit.fit(one)
    assert_close(two["weights"], weights(one))
    torch.testing.assert_close(two["last_loss"], one.last_loss)
    torch.testing.assert_close(two["val_loss"], fit.callback_metrics["val_loss"])
    assert two["rng_states"] == 2


def two_ranks(kind: str, path: str) -> None:
    module = globals()[kind](batches(8), batches(6, seed=1), optimizer=SMOOTH, schedule=CONSTANT, ema=0.9)
    fit = trainer(
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    fit.fit(module)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    if fit.is_global_zero:
        found = {"weights": weights(module), "last_loss": module.last_loss, "rng_states": len(checkpoint["rng"])}
        torch.save(found | {"val_loss": fit.callback_metrics["val_loss"]}, path)


SYNCS = ["item", "__float__", "__int__", "__bool__", "__index__", "cpu", "tolist", "numpy", "__array__", "nonzero"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_host_sync_in_a_step(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UNREAD", ("cpu",))  # as on a GPU
    seen: list[str] = []
    active = [False]

    def spy(name: str):
        original = getattr(Tensor, name)

        def wrapper(self, *args, **kwargs):
            if active[0]:
                seen.append(f"{name}: {''.join(traceback.format_stack(limit=4))}")
            return original(self, *args, **kwargs)

        return wrapper

    for name in SYNCS:
        monkeypatch.setattr(Tensor, name, spy(name))

    class Watch(pl.Callback):
        steps = 0

        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            active[0] = batch_idx >= 1

        def on_train_epoch_end(self, trainer, module) -> None:
            active[0] = False
            Watch.steps = trainer.global_step

    module = ToyModule(batches(8), ema=0.9)
    trainer(accumulate_grad_batches=accumulate, gradient_clip_val=1.0, limit_val_batches=0, callbacks=[Watch()]).fit(
        module
    )
    assert Watch.steps == 8 // accumulate
    assert not seen, "\n".join(seen)
    active[0] = True
    float(module.last_loss)  # the spies do work
    assert seen


def test_gradient_clipping() -> None:
    plain, clipped = (
        ToyModule(batches(2)[1:], optimizer=OptimizerConfig(name="adamw", eps=1.0, weight_decay=0)) for _ in "ab"
    )
    trainer().fit(plain)
    trainer(gradient_clip_val=0.01).fit(clipped)
    torch.manual_seed(0)
    model = Toy()
    total, count = toy_loss(model, batches(2)[1])
    (total / count).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(clipped.last_grad_norm, norm)
    start = {name: p.detach() for name, p in model.named_parameters()}
    moved = [sum((weights(m)[n] - start[n]).norm() ** 2 for n in start) ** 0.5 for m in (plain, clipped)]
    assert moved[1] < 0.2 * moved[0]
    by_value = ToyModule(batches(2)[1:])
    trainer(gradient_clip_val=0.01, gradient_clip_algorithm="value").fit(by_value)
    torch.testing.assert_close(by_value.last_grad_norm, norm)


def test_validation_scores_the_whole_set_by_units() -> None:
    class Counting(ToyModule):
        seen = 0

        def update_metrics(self, batch: dict) -> None:
            self.seen += len(batch["tokens"])

        def compute_metrics(self) -> dict:
            assert self.evaluated is not None
            return {"rows": self.seen, "targets": self.evaluated.count}

    val = batches(5, seed=3)
    module = Counting([], val)
    run = trainer()
    [metrics] = run.validate(module, verbose=False)
    torch.manual_seed(0)
    total, count = toy_loss(Toy(), merged(val))
    assert metrics["val_loss"] == pytest.approx(float(total.detach() / count), rel=1e-6)
    assert (metrics["val_rows"], metrics["val_targets"]) == (15, int(count))


def averages_by_hand(micro: list[dict]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Toy()
    optimizer = build_optimizer(model, SMOOTH)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step, batch in enumerate(micro):
        total, count = toy_loss(model, batch)
        optimizer.zero_grad()
        (total / count.clamp(min=1)).backward()
        optimizer.step()
        d = min(0.9, (1 + step) / (10 + step))
        average = {name: d * average[name] + (1 - d) * p.detach() for name, p in model.named_parameters()}
    return average


def test_evaluation_and_export_use_the_averages_and_training_does_not(tmp_path) -> None:
    micro, val = batches(8), batches(4, seed=1)
    module = ToyModule(micro, val, optimizer=SMOOTH, schedule=CONSTANT, ema=0.9)
    run = trainer(val_check_interval=4)
    run.fit(module)
    assert_close(weights(module), by_hand([[batch] for batch in micro], SMOOTH))
    averages = averages_by_hand(micro)
    assert_close(module.export_state(), averages)
    model = Toy()
    model.load_state_dict(averages)
    total, count = toy_loss(model, merged(val))
    expected = float(total.detach() / count)
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(expected, rel=1e-5)
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert_close({k.removeprefix("model."): v for k, v in saved["state_dict"].items()}, weights(module), 0)
    assert_close(saved["ema"]["averages"], averages)
    fresh = ToyModule([], val, ema=0.9)
    [metrics] = trainer().validate(fresh, ckpt_path=tmp_path / "x.ckpt", verbose=False, weights_only=True)
    assert metrics["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert_close(fresh.export_state(), averages)


def test_a_failing_validation_leaves_the_training_weights(tmp_path) -> None:
    class Failing(ToyModule):
        def update_metrics(self, batch: dict) -> None:
            if self.trainer.global_step:
                self.trainer.save_checkpoint(tmp_path / "inside.ckpt")
                raise RuntimeError("no disk")

    micro = batches(6)
    module = Failing(micro, batches(1), optimizer=SMOOTH, schedule=CONSTANT, ema=0.9)
    with pytest.raises(RuntimeError, match="no disk"):
        trainer().fit(module)
    expected = by_hand([[batch] for batch in micro], SMOOTH)
    assert_close(weights(module), expected)
    saved = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    assert_close({k.removeprefix("model."): v for k, v in saved["state_dict"].items()}, expected)
    assert_close(saved["ema"]["averages"], averages_by_hand(micro))


def test_model_is_built_once_and_blocks_are_compiled_in_place() -> None:
    module = ToyModule([], compile=True)
    module.configure_model()
    model = module.model
    module.configure_model()
    assert module.model is model
    compiled = {name for name, m in model.named_modules() if m._compiled_call_impl is not None}
    assert compiled == {"blocks.0", "blocks.1"}
    assert not [key for key in module.state_dict() if "_orig_mod" in key]
    assert module.state_dict().keys() == {f"model.{key}" for key in Toy().state_dict()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(precision: str) -> None:
    micro = batches(8)
    split = ToyModule(micro, batches(2), optimizer=SMOOTH, schedule=CONSTANT, ema=0.9)
    trainer(precision=precision, accumulate_grad_batches=2, gradient_clip_val=10.0).fit(split)
    assert next(split.model.parameters()).dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    whole = [merged(micro[i : i + 2]) for i in range(0, 8, 2)]
    one = ToyModule(whole, optimizer=SMOOTH, schedule=CONSTANT, ema=0.9)
    start = Toy()
    trainer(precision=precision, gradient_clip_val=10.0).fit(one)
    assert_close(weights(split), weights(one), 0.02)
    moved = (one.model.head.weight.float() - start.head.weight).abs().max()
    assert moved > 0.02


def test_a_run_without_a_length_needs_a_schedule_that_needs_none() -> None:
    with pytest.raises(UserError, match=r"give --trainer\.max_steps or --trainer\.max_epochs"):
        trainer(max_epochs=-1).fit(ToyModule(batches(2)))
    module = ToyModule(batches(2), schedule=CONSTANT)
    trainer(max_epochs=-1, max_time={"seconds": 0.05}).fit(module)
    assert module.last_loss is not None


def test_learning_rate_follows_the_schedule_over_optimizer_steps() -> None:
    class Rates(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_before_zero_grad(self, trainer, module, optimizer) -> None:
            self.seen.append(optimizer.param_groups[0]["lr"])

    rates = Rates()
    schedule = ScheduleConfig(kind="linear", warmup=2)
    config = OptimizerConfig(name="adamw", lr=1.0)
    run = trainer(accumulate_grad_batches=2, callbacks=[rates], max_epochs=2)
    run.fit(ToyModule(batches(5), optimizer=config, schedule=schedule))
    assert rates.seen == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


def test_data_module_reaches_build_model() -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(batches(1), batch_size=None)

    class Module(ToyModule):
        def build_model(self, data: object) -> nn.Module:
            self.got = data
            return Toy()

        train_dataloader = pl.LightningModule.train_dataloader

    module, data = Module([]), Data()
    trainer().fit(module, data)
    assert module.got is data


def test_what_a_task_must_implement() -> None:
    base = TrainingModule()
    for method in (base.build_model, base.loss, base.slots):
        with pytest.raises(NotImplementedError, match="TrainingModule must implement"):
            method(copy.copy(None))


def test_compiling_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    module = ToyModule([], compile=True)
    with pytest.raises(UserError, match=r"needs the C.. compiler 'no-such-compiler', which was not found; install it"):
        module.configure_model()
