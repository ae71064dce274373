"""Fine-tuning on a toy task: what trains, with which rates, what stays, and exact resume."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from triune.core import TransformerConfig, UserError
from triune.core.adapt.lora import LoRAConfig, is_factor, lora_state
from triune.core.checkpoints.family import Pretrained
from triune.core.checkpoints.native import load_config
from triune.core.checkpoints.source import Source
from triune.core.checkpoints.weights import Target
from triune.core.training.freezing import FreezeConfig, Freezing, trained
from triune.core.training.groups import build_optimizer, parameter_groups
from triune.core.training.module import Loss, TrainingModule
from triune.core.training.optimizers import LORA_LR, PRETRAINED_LR, OptimizerConfig
from triune.core.training.schedules import ScheduleConfig
from triune.core.training.start import Start, adapted_transformer, rebuilt, refuse_contradictions
from triune.core.transformer import Transformer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")

# --- a toy: a checkpoint, and a task that puts a head on it -----------------------------------------------------------


@dataclass(frozen=True)
class NetConfig:
    dim: int = 16
    depth: int = 3
    outputs: int = 11

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Net(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(11, config.dim)
        self.transformer = Transformer(
            TransformerConfig(dim=config.dim, depth=config.depth, heads=2, dropout=0.1, causal=True, init_std=None)
        )
        self.head = nn.Linear(config.dim, config.outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.transformer(self.embedding(tokens)))


def checkpoint() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net(NetConfig())


def row(index: int) -> Tensor:
    return torch.randint(11, (6,), generator=torch.Generator().manual_seed(index))


class Loader:
    """Batches of two rows that keep their place in a checkpoint."""

    def __init__(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Tensor]:
        start, self.position = self.position, 0
        for index in range(start, 8):
            self.position = (index + 1) % 8
            yield torch.stack([row(2 * index), row(2 * index + 1)])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Task(TrainingModule):
    """Its head has 5 outputs."""

    def build_model(self, data: Any) -> Net:
        return Net(NetConfig(outputs=5))

    def load_pretrained(self, source: str) -> Pretrained:
        if source == "gone":
            raise UserError("There is no checkpoint 'gone'.")
        return Pretrained(checkpoint().eval(), Source(source, Path(source)))

    def read_start(self, folder: Path) -> Start:
        config = load_config(folder, "Net")
        return Start.read(config, Net(NetConfig(**config["model"])))

    def adapt_model(self, start: Start, data: Any) -> Net:
        assert isinstance(start.model, Net)
        start.model.head = nn.Linear(16, 5)
        return start.model

    def is_new(self, name: str) -> bool:
        return name.startswith("head.")

    def loss(self, batch: Tensor) -> Loss:
        assert self.model is not None
        logits = self.model(batch)
        total = nn.functional.cross_entropy(logits.flatten(0, 1), batch.flatten() % 5, reduction="sum")
        return Loss(total, torch.tensor(batch.numel()))

    def train_dataloader(self) -> Loader:
        return Loader()

    def val_dataloader(self) -> Loader:
        return Loader()


class Record(pl.Callback):
    """Loss and number of parameters with a gradient, by step."""

    def __init__(self) -> None:
        self.loss: dict[int, float] = {}
        self.trained: dict[int, set[str]] = {}

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.trained[trainer.global_step] = {n for n, p in module.model.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.loss[trainer.global_step] = float(module.last_loss)


def fit(
    folder: Path,
    seed: int = 1,
    resume: Path | None = None,
    save_at: int | None = None,
    max_steps: int = 12,
    **options: Any,
) -> tuple[Task, Record]:
    pl.seed_everything(seed)
    record = Record()
    callbacks: list[pl.Callback] = [record]
    if save_at is not None:
        callbacks.append(pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=save_at, save_top_k=-1))
    task = Task(schedule=ScheduleConfig(kind="constant", warmup=0), **({"pretrained": "toy"} | options))
    if resume is not None and (resume.parent / "start").is_dir():
        assert task.tuning is not None
        task.tuning.folder = resume.parent / "start"
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=save_at is not None, gradient_clip_val=1.0, max_steps=max_steps, default_root_dir=folder,
        val_check_interval=5,
    )  # fmt: skip
    trainer.fit(task, ckpt_path=resume, weights_only=True)
    return task, record


FAST = OptimizerConfig(pretrained_lr=0.01, adamw_lr=0.01)
FAST_LORA = OptimizerConfig(lora_lr=0.01, adamw_lr=0.01)
BASE = {name: tensor for name, tensor in checkpoint().state_dict().items() if not name.startswith("head.")}


# --- which parameters train -------------------------------------------------------------------------------------------


def names_of(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def block(*numbers: int) -> set[str]:
    return {n for n in BASE if any(n.startswith(f"transformer.blocks.{i}.") for i in numbers)}


NORM = {"transformer.final_norm.weight", "transformer.final_norm.bias"}
HEAD = {"head.weight", "head.bias"}
EMBEDDING = {"embedding.weight"}


@pytest.mark.parametrize(
    ("blocks", "left"),
    [
        ("all", HEAD),
        (3, HEAD),
        (2, HEAD | NORM | block(2)),
        (0, HEAD | NORM | block(0, 1, 2)),
    ],
)
def test_what_is_frozen(blocks, left):
    net = checkpoint()
    Freezing(net, FreezeConfig(blocks), lambda name: False)
    assert names_of(net) == left


def test_blocks_thaw_from_the_top_and_the_embeddings_last():
    net = checkpoint()
    freezing = Freezing(net, FreezeConfig("all", steps=10), lambda name: False)
    stages = [HEAD, NORM | block(2), block(1), block(0), EMBEDDING]
    expected: set[str] = set()
    for stage, names in enumerate(stages):
        expected = expected | names
        for step in (10 * stage, 10 * stage + 9):
            freezing.at(step)
            assert names_of(net) == expected
    freezing.at(1000)
    assert names_of(net) == set(dict(net.named_parameters()))
    freezing.at(15)  # what is frozen depends on the step alone
    assert names_of(net) == HEAD | NORM | block(2)


def test_only_factors_thaw_beside_lora():
    task = Task(pretrained="toy", lora=LoRAConfig(targets=["q"]), freeze=FreezeConfig(2))
    task.configure_model()
    assert task.model is not None
    assert names_of(task.model) == HEAD | {f"transformer.blocks.2.attn.q.{f}" for f in ("lora_a", "lora_b")}


def test_a_tied_head_is_frozen_with_its_embedding():
    net = checkpoint()
    net.head = nn.Linear(16, 11, bias=False)
    net.head.weight = net.embedding.weight
    Freezing(net, FreezeConfig("all"), lambda name: False)
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(net, OptimizerConfig())


@pytest.mark.parametrize(
    ("values", "says"), [({"blocks": -1}, "blocks is -1"), ({"blocks": "some"}, "some"), ({"steps": 0}, "steps is 0")]
)
def test_values_outside_their_range(values, says):
    with pytest.raises(UserError, match=says):
        FreezeConfig(**values)


def test_more_blocks_than_there_are():
    with pytest.raises(UserError, match="blocks is 4, but the model has 3"):
        Freezing(checkpoint(), FreezeConfig(4), lambda name: False)


@pytest.mark.parametrize("name", ["lora", "freeze"])
def test_they_need_a_checkpoint(name):
    config = {"lora": LoRAConfig(), "freeze": FreezeConfig()}[name]
    with pytest.raises(UserError, match=f"model.{name} needs a checkpoint"):
        Task(**{name: config})


def test_a_task_without_checkpoints_says_so():
    class Scratch(TrainingModule):
        pass

    with pytest.raises(UserError, match="random weights only"):
        Scratch(pretrained="x").configure_model()


def test_gradual_unfreezing_is_refused_on_several_devices():
    task = Task(pretrained="toy", freeze=FreezeConfig(steps=5))
    assert task.tuning is not None
    with pytest.raises(UserError, match="one device"):
        task.tuning.build(task, None, devices=2)


# --- training ---------------------------------------------------------------------------------------------------------


def changed(task: Task) -> set[str]:
    assert task.model is not None
    state = task.model.state_dict()
    return {name for name, tensor in BASE.items() if not torch.equal(state[name], tensor)}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_what_is_frozen_stays_to_the_bit(tmp_path, ema):
    # A decay that would be seen in one step, if it were applied.
    optimizer = OptimizerConfig(pretrained_lr=0.01, adamw_lr=0.01, weight_decay=1.0, embedding_decay=1.0)
    task, record = fit(tmp_path, optimizer=optimizer, freeze=FreezeConfig(2), ema=ema)
    assert changed(task) == NORM | block(2)
    assert all(names == HEAD | NORM | block(2) for names in record.trained.values())
    exported = task.export_state()
    assert all(torch.equal(exported[name], BASE[name]) for name in EMBEDDING | block(0, 1))
    assert min(record.loss[i] for i in (11, 12)) < record.loss[1]


def test_gradual_unfreezing_computes_gradients_as_it_goes(tmp_path):
    # Under Muon, too, which would cost time for what is frozen.
    optimizer = OptimizerConfig(name="muon", pretrained_lr=0.01)
    task, record = fit(tmp_path, optimizer=optimizer, freeze=FreezeConfig(steps=3), max_steps=8)
    assert record.trained[2] == HEAD
    assert record.trained[3] == record.trained[5] == HEAD | NORM | block(2)
    assert record.trained[7] == HEAD | NORM | block(1, 2)
    assert changed(task) == NORM | block(1, 2)
    state = task.trainer.optimizers[0].state
    assert {id(p) for p in state} == {id(p) for p in task.model.parameters() if p.requires_grad}


def test_lora_trains_the_factors_and_the_head_only(tmp_path):
    task, record = fit(tmp_path, optimizer=FAST_LORA, lora=LoRAConfig(rank=2, dropout=0.1), max_steps=16)
    assert changed(task) == set()
    assert record.trained[1] == HEAD | set(lora_state(task.model))
    assert record.loss[16] < record.loss[1]
    exported = task.export_state()
    assert exported.keys() == Net(NetConfig(outputs=5)).state_dict().keys()
    plain = Net(NetConfig(outputs=5)).eval()
    plain.load_state_dict(exported)
    tokens = row(3)[None]
    assert torch.allclose(plain(tokens), task.model.eval()(tokens), atol=1e-6)


def test_dropout_is_on_although_checkpoints_are_read_for_use(tmp_path):
    task = Task(pretrained="toy")
    task.configure_model()
    assert task.model is not None
    assert all(module.training for module in task.model.modules())


VARIANTS = {
    "full": {"optimizer": FAST},
    "lora": {"optimizer": FAST_LORA, "lora": LoRAConfig(rank=2, dropout=0.2)},
    "gradual": {"optimizer": OptimizerConfig(name="muon", pretrained_lr=0.01), "freeze": FreezeConfig("all", steps=3)},
    "both": {"optimizer": FAST_LORA, "lora": LoRAConfig(rank=2), "freeze": FreezeConfig(2, steps=5)},
}


# In the gradual ones at an unfreezing, and between two.
@pytest.mark.parametrize(("variant", "at"), [("full", 4), ("lora", 6), ("gradual", 4), ("gradual", 6), ("both", 6)])
def test_resumed_equals_uninterrupted(tmp_path, variant, at):
    options = VARIANTS[variant] | {"ema": 0.9}
    whole, record = fit(tmp_path / "whole", **options)
    first, early = fit(tmp_path / "part", save_at=at, max_steps=at, **options)
    assert first.tuning is not None and first.tuning.start is not None
    first.tuning.start.save(tmp_path / "part" / "start")
    # The checkpoint that it started from is gone.
    resumed, late = fit(
        tmp_path / "rest", seed=99, resume=tmp_path / "part" / f"step={at}.ckpt", **(options | {"pretrained": "gone"})
    )
    assert early.loss | late.loss == record.loss
    assert early.trained | late.trained == record.trained
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    averages = whole.ema.averaged(), resumed.ema.averaged()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_without_the_checkpoint_a_new_run_says_so(tmp_path):
    with pytest.raises(UserError, match="no checkpoint 'gone'"):
        fit(tmp_path, pretrained="gone")


# --- learning rates ---------------------------------------------------------------------------------------------------


def groups(net: nn.Module, config: OptimizerConfig, new: str = "head.") -> dict[str, tuple[str, float]]:
    """Algorithm and learning rate of each parameter."""
    names = {id(p): name for name, p in net.named_parameters()}
    loaded = {name for name in names.values() if not name.startswith(new)}
    return {
        names[id(p)]: (group["algorithm"], group["lr"])
        for group in parameter_groups(net, config, loaded)
        for p in group["params"]
    }


def test_the_weights_of_a_checkpoint_have_a_small_rate_and_adamw():
    found = groups(checkpoint(), OptimizerConfig(head_lr=0.003))
    assert {found[name] for name in BASE} == {("adamw", PRETRAINED_LR)}
    assert found["head.weight"] == ("adamw", 0.003)
    assert found["head.bias"] == ("adamw", 0.003), "a head's bias trains as its matrix does"
    muon = groups(checkpoint(), OptimizerConfig(name="muon", pretrained_lr=1e-4))
    assert muon["transformer.blocks.0.attn.q.weight"] == ("muon", 1e-4)
    assert muon["transformer.blocks.0.norm1.weight"] == ("adamw", 1e-4)


def test_new_blocks_keep_their_own_optimizer():
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(7))
            self.trunk = checkpoint()

    config = OptimizerConfig(lr=0.02, pretrained_lr=1e-4, layer_decay=0.5)
    found = groups(Stacked(), config, new="blocks.")
    assert found["blocks.6.weight"] == ("muon", 0.02)
    # Depth is that of the pretrained part, whatever else has blocks.
    assert found["trunk.embedding.weight"] == ("adamw", 1e-4 * 0.5**4)
    assert found["trunk.transformer.blocks.2.attn.q.weight"] == ("adamw", 1e-4 * 0.5)
    assert found["trunk.head.weight"] == ("adamw", 1e-4)


def test_factors_have_a_rate_of_their_own_and_adamw():
    task = Task(pretrained="toy", lora=LoRAConfig())
    task.configure_model()
    for config in (OptimizerConfig(), OptimizerConfig(name="muon"), OptimizerConfig(name="adamw")):
        found = groups(task.model, config)
        assert {found[name] for name in found if is_factor(name)} == {("adamw", LORA_LR)}
        assert set(found) == HEAD | set(lora_state(task.model))
    decayed = groups(task.model, OptimizerConfig(lora_lr=0.01, layer_decay=0.5))
    assert decayed["transformer.blocks.0.attn.q.lora_a"] == ("adamw", 0.01 * 0.5**3)
    assert decayed["head.weight"] == ("adamw", 0.01)


@pytest.mark.parametrize(
    ("config", "lora", "says"),
    [
        (OptimizerConfig(lr=0.1), False, "optimizer.pretrained_lr"),
        (OptimizerConfig(lr=0.1), True, "optimizer.lora_lr"),
        (OptimizerConfig(lora_lr=0.1), False, "model.lora.rank"),
    ],
)
def test_a_rate_that_nothing_uses_is_refused(config, lora, says):
    task = Task(pretrained="toy", lora=LoRAConfig() if lora else None)
    task.configure_model()
    with pytest.raises(UserError, match=says):
        groups(task.model, config)


def test_rates_for_fine_tuning_need_it():
    with pytest.raises(UserError, match=r"--model\.pretrained"):
        parameter_groups(checkpoint(), OptimizerConfig(pretrained_lr=1e-4))
    # And `lr` is as ever where nothing is pretrained.
    assert parameter_groups(checkpoint(), OptimizerConfig(lr=0.5))


# --- what a run says and keeps ----------------------------------------------------------------------------------------


def test_how_much_trains():
    net = nn.Linear(10, 100)
    net.bias.requires_grad_(False)
    assert trained(net) == "1.00k of 1.10k parameters (90.9 %)"


def test_the_opening_names_what_trains(tmp_path):
    task, _ = fit(tmp_path, lora=LoRAConfig(rank=2, targets=["q", "v"]), freeze=FreezeConfig(1, steps=4), max_steps=1)
    (start, source), (tuning, text) = task.tuning.describe(task.model, task.trainer.optimizers[0])
    assert (start, source, tuning) == ("start", "toy", "tuning")
    for part in (
        "LoRA of rank 2 on q, v", "the first 1 of 3 blocks frozen", "one block more trains every 4 steps",
        "factors 0.0015", "heads 0.01",
    ):  # fmt: skip
        assert part in text
    count = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    assert text.startswith(f"training {count} of ")


def test_an_adapter_that_peft_cannot_hold_is_named(tmp_path):
    task, _ = fit(tmp_path, lora=LoRAConfig(rank=2, targets=["q", "v"]), max_steps=1)
    with pytest.raises(UserError, match="'toy' is no checkpoint of Hugging Face's, to whose layers PEFT"):
        task.export_adapter(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    plain, _ = fit(tmp_path, max_steps=1)
    assert plain.export_adapter(tmp_path / "adapter") is False


def test_a_start_of_an_older_run_has_no_groups(tmp_path):
    config = {
        "source": "x",
        "targets": {"a": ["h.a", False, None], "b": ["h.b", True, [1, 3]], "c": ["c", False, None, 4]},
    }
    found = Start.read(config, checkpoint()).targets
    assert found == {"a": Target("h.a"), "b": Target("h.b", True, (1, 3)), "c": Target("c", groups=4)}


def test_a_start_is_written_and_read(tmp_path):
    targets = {"transformer.blocks.0.attn.q": Target("h.0.attn", True, (0, 3)), "head": Target("lm_head")}
    start = Start("org/name", checkpoint(), None, targets)
    start.save(tmp_path)
    again = Task().read_start(tmp_path)
    assert (again.source, again.targets, again.config) == ("org/name", targets, NetConfig().to_dict())
    assert isinstance(again.model, Net)


# --- options beside a config ------------------------------------------------------------------------------------------


def test_only_regularisation_may_differ_from_the_checkpoint():
    default, found = TransformerConfig(dim=64), TransformerConfig(dim=96, heads=4, dropout=0.1)
    same = adapted_transformer(default, default, found, "X")
    assert same == found
    changed = adapted_transformer(TransformerConfig(dim=64, stochastic_depth=0.2), default, found, "X")
    assert changed == TransformerConfig(dim=96, heads=4, dropout=0.1, stochastic_depth=0.2)
    with pytest.raises(UserError, match=r"model\.transformer\.dim is 32, but 'X' has 96"):
        adapted_transformer(TransformerConfig(dim=32), default, found, "X")


def test_an_option_is_given_when_it_differs_from_its_default():
    class Some:
        def __init__(self, tied: bool = False, scale: float = 1.0) -> None: ...

    refuse_contradictions(Some, {"tied": False, "scale": 1.0}, {"tied": True, "scale": 2.0}, "X")
    refuse_contradictions(Some, {"tied": True}, {"tied": True}, "X")
    with pytest.raises(UserError, match=r"model\.tied is True, but 'X' has False"):
        refuse_contradictions(Some, {"tied": True}, {"tied": False}, "X")


def test_rebuilding_keeps_the_weights():
    model = Transformer(TransformerConfig(dim=16, depth=1, heads=2))
    x = torch.randn(1, 4, 16)
    new = rebuilt(model, TransformerConfig(dim=16, depth=1, heads=2, dropout=0.5))
    assert torch.equal(new.eval()(x), model(x))
    assert not torch.equal(new.train()(x), model(x))
