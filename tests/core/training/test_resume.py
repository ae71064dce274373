import logging
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from triune.core.training.module import Loss, TrainingModule
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.rng import rng_state, set_rng_state
from triune.core.training.schedules import ScheduleConfig

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)) for _ in range(2))
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(index))


class StatefulLoader:
    """A loader that keeps its place: batches 0..7 of an epoch, and its position in the checkpoint."""

    def __init__(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return 8

    def __iter__(self):
        start, self.position = self.position, 0
        rows = Rows()
        for index in range(start, 8):
            # Before the yield: when a checkpoint is saved, this batch has been trained on.
            self.position = (index + 1) % 8
            # An augmentation that draws from the global generator while fetching.
            noise = torch.randint(2, (2, 6))
            yield (rows[2 * index] + noise) % 11, rows[2 * index + 1]

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]


class Module(TrainingModule):
    stateful = True

    def build_model(self, data: object) -> nn.Module:
        return Toy()

    def loss(self, batch: tuple[Tensor, Tensor] | Tensor) -> Loss:
        rows = torch.cat(tuple(batch))
        # Draws from every generator that a data pipeline might use.
        shift = random.randrange(11) + int(np.random.randint(11)) if self.training else 0  # noqa: NPY002
        logits = self.model((rows[:, :-1] + shift) % 11)
        total = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
        return Loss(total, torch.tensor(rows[:, 1:].numel()))

    def train_dataloader(self) -> StatefulLoader | DataLoader:
        return StatefulLoader() if self.stateful else DataLoader(Rows(), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(), batch_size=4)


class Record(pl.Callback):
    """Loss and learning rate of every step, by step."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, float]] = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.last_loss is not None:
            self.seen[trainer.global_step] = (float(module.last_loss), trainer.optimizers[0].param_groups[0]["lr"])


def run(
    folder: Path, seed: int, resume: Path | None = None, every: int | None = None, stop: int | None = None,
    more: Sequence[pl.Callback] = (), **limits
):  # fmt: skip
    """Train; `stop` breaks the run off after that many steps, as an interruption would."""
    warnings.filterwarnings("ignore", module="lightning")
    pl.seed_everything(seed)
    record = Record()
    callbacks: list[pl.Callback] = [record, *more]
    if every is not None:  # 0: after each validation
        callbacks.append(
            pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=every or None, save_top_k=-1)
        )

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            trainer.should_stop = trainer.should_stop or trainer.global_step == stop

    module = Module(OptimizerConfig(lr=0.01), ScheduleConfig(kind="cosine", warmup=4), ema=0.9)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, Stop()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=every is not None,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        **limits,
    )
    trainer.fit(module, ckpt_path=resume, weights_only=True)
    return module, trainer, record


def assert_same(a, b) -> None:
    """Bit-equal nested states."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize(
    "limits",
    [
        {"max_steps": 20, "val_check_interval": 5},
        {"max_epochs": 3, "val_check_interval": 5},  # the schedule's length comes from the loader
        {"max_steps": 20, "accumulate_grad_batches": 2},
    ],
    ids=["steps", "epochs", "accumulated"],
)
@pytest.mark.parametrize("at", [7, 8])  # in the middle of an epoch, and at its end
def test_resumed_equals_uninterrupted(tmp_path: Path, limits: dict, at: int) -> None:
    whole, whole_trainer, whole_record = run(tmp_path / "whole", seed=1, **limits)
    _, _, first = run(tmp_path / "part", seed=1, every=at, stop=at, **limits)
    resumed, trainer, second = run(tmp_path / "rest", seed=99, resume=tmp_path / "part" / f"step={at}.ckpt", **limits)
    assert trainer.global_step == whole_trainer.global_step >= 20
    assert (first.seen | second.seen) == whole_record.seen
    assert at + 1 == min(second.seen)
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert_same(resumed.ema.state_dict(), whole.ema.state_dict())
    assert_same(trainer.optimizers[0].state_dict(), whole_trainer.optimizers[0].state_dict())


def test_resumed_from_a_checkpoint_of_validation(tmp_path: Path) -> None:
    limits = {"max_steps": 14, "val_check_interval": 5}
    whole, _, whole_record = run(tmp_path / "whole", seed=1, **limits)
    run(tmp_path / "part", seed=1, every=0, stop=5, **limits)
    resumed, _, second = run(tmp_path / "rest", seed=99, resume=tmp_path / "part" / "step=5.ckpt", **limits)
    assert second.seen == {step: seen for step, seen in whole_record.seen.items() if step > 5}
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert_same(resumed.ema.state_dict(), whole.ema.state_dict())


def test_validating_more_often_does_not_change_training(tmp_path: Path) -> None:
    _, _, often = run(tmp_path, seed=1, max_steps=8, val_check_interval=2)
    _, _, never = run(tmp_path, seed=1, max_steps=8, limit_val_batches=0)
    assert often.seen == never.seen


def test_without_random_states_it_would_differ(tmp_path: Path) -> None:
    limits = {"max_steps": 12}
    _, _, whole = run(tmp_path / "whole", seed=1, **limits)
    run(tmp_path / "part", seed=1, every=7, stop=7, **limits)
    path = tmp_path / "part" / "step=7.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["rng"]
    torch.save(checkpoint, path)
    _, _, resumed = run(tmp_path / "rest", seed=99, resume=path, **limits)
    assert whole.seen[12] != resumed.seen[12]


def test_checkpoint_is_plain_data(tmp_path: Path) -> None:
    run(tmp_path, seed=1, every=3, max_steps=3)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "ema", "rng", "loops"} <= saved.keys()
    assert not [key for key in saved["state_dict"] if "_orig_mod" in key]
    assert saved["ema"]["steps"] == 3


def test_all_generators_are_restored() -> None:
    state = rng_state()
    drawn = [(torch.rand(3).tolist(), random.random(), np.random.rand()) for _ in range(2)]  # noqa: NPY002
    set_rng_state(state)
    assert drawn == [(torch.rand(3).tolist(), random.random(), np.random.rand()) for _ in range(2)]  # noqa: NPY002


class Validations(pl.Callback):
    """Each validation: its step and what it found."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))


class Leave(pl.Callback):
    """Ends the process, as it were, at the first occasion after a step: within the validation, if there is one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer, *_) -> None:
        self.on_train_batch_start(trainer)

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise Left


class Left(Exception):
    pass


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 12, 16, 20]),
        ({"val_check_interval": 0.5}, [4, 8, 12, 16, 20]),
        ({}, [8, 16]),
    ],
    ids=["steps", "parts", "epochs"],
)
@pytest.mark.parametrize("at", [8, 6, 4])  # of 8 batches an epoch
def test_a_validation_that_was_due_when_the_checkpoint_was_written_is_made_good(
    tmp_path: Path, limits: dict, steps: list[int], at: int
) -> None:
    whole, part, rest = Validations(), Validations(), Validations()
    limits = limits | {"max_steps": 20}
    run(tmp_path / "whole", seed=1, more=[whole], **limits)
    with pytest.raises(Left):
        run(tmp_path / "part", seed=1, every=at, more=[part, Leave(at)], **limits)
    run(tmp_path / "rest", seed=99, resume=tmp_path / "part" / f"step={at}.ckpt", more=[rest], **limits)
    assert [step for step, _ in whole.seen] == steps
    assert part.seen + rest.seen == whole.seen
