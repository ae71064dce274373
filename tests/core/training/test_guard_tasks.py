"""A step without a finite loss in each task, through the command line: named by its samples, left out, and exact after
a kill.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triune.bench.kills.trainings import make_start
from triune.core import UserError
from triune.core.training.module import Loss
from triune.core.training.run.cli import run_task
from triune.core.training.run.folder import load_summary
from triune.protein.data.module import ProteinData
from triune.protein.data.store import builtin_set
from triune.protein.language.data import SequenceData
from triune.protein.language.task import PretrainTask
from triune.protein.pair.task import PairTask
from triune.text.data.module import TextData
from triune.text.task import TextTask
from triune.vision.data.module import ImageData
from triune.vision.task import VisionTask

COMMON = [
    "--trainer.max_steps", "6", "--trainer.val_check_interval", "4", "--trainer.limit_val_batches", "1",
    "--trainer.accelerator", "cpu", "--threads", "1", "--model.ema", "0.9", "--trainer.log_every_n_steps", "2",
]  # fmt: skip
SMALL = ["--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
TASKS: dict[str, tuple[str, str, Any, Any, list[str]]] = {
    "text": ("text", "fit", TextTask, TextData, [
        *SMALL, "--data.files", "{folder}/*.txt", "--data.cache", "{folder}", "--data.tokenizer", "bytes",
        "--data.context", "16", "--data.batch_size", "2", "--model.transformer.dropout", "0.1",
    ]),
    "chats": ("text", "fit", TextTask, TextData, [
        *SMALL, "--data.chats", "{folder}/chats.jsonl", "--data.tokenizer", "bytes", "--data.context", "32",
        "--data.batch_size", "2",
    ]),
    "lora": ("text", "fit", TextTask, TextData, [
        "--model.pretrained", "{folder}/start", "--model.lora.rank", "2", "--data.files", "{folder}/*.txt",
        "--data.cache", "{folder}", "--data.context", "16", "--data.batch_size", "2",
    ]),
    "vision": ("vision", "fit", VisionTask, ImageData, [*SMALL, "--data.batch_size", "16", "--data.cache", "{folder}"]),
    "protein": ("protein", "fit", PairTask, ProteinData, [
        "--data.crop", "16", "--data.batch_size", "2", "--data.max_length", "32", "--model.settings",
        '{"depth": 1, "sequence_dim": 16, "sequence_depth": 1}',
    ]),
    "pretrain": ("protein", "pretrain", PretrainTask, SequenceData, [
        "--model.size", "tiny", "--data.context", "16", "--data.batch_size", "4",
    ]),
}  # fmt: skip


def command(name: str, folder: Path) -> Any:
    task, verb, module, data, options = TASKS[name]
    (folder / "one.txt").write_text("".join(f"{i} and {i} is {i + i}\n" for i in range(300)))
    (folder / "two.txt").write_text("".join(f"{i} times {i} is {i * i}\n" for i in range(100)))
    row = '{{"prompt": "What is {0}?", "completion": "A number, {0}."}}\n'
    (folder / "chats.jsonl").write_text("".join(row.format(i) for i in range(60)))
    if name == "lora":
        make_start(folder)
    words = [word.replace("{folder}", str(folder)) for word in options]

    def run(where: str, *more: str, fresh: bool = True) -> None:
        line = ["--run", str(folder / where), *([*words, *COMMON] if fresh else []), *more]
        run_task(task, verb, line, module, data, f"triune.{task}")

    return run, module


class Dies(BaseException):
    """Stands for a signal that nothing catches."""


def breaks(monkeypatch: pytest.MonkeyPatch, module: Any, bad: tuple[int, ...], dies: int = -1) -> None:
    """Let training lose the finite loss in the batches `bad`, and the process its life in the batch `dies`."""
    original = module.loss

    def loss(self: Any, batch: Any) -> Loss:
        total, count = original(self, batch)
        position = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if self.training and position == dies:
            raise Dies
        return Loss(total * float("nan") if self.training and position in bad else total, count)

    monkeypatch.setattr(module, "loss", loss)


def content(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "pretrain" else ()) for name in TASKS if name != "lora"],
)
def test_a_bad_step_is_named_and_left_out_and_resume_is_exact(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, module = command(name, tmp_path)
    breaks(monkeypatch, module, (2,))
    run("whole")
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("step 3 was left out: its loss is nan, of "))
    known = {
        "text": lambda: ["one.txt"] if "one.txt" in line else ["two.txt"],
        "chats": lambda: ["chats.jsonl:"],
        "vision": lambda: ["digit"],
        "protein": lambda: [n for n in builtin_set().names.tolist() if n in line][:1] or ["a chain"],
        "pretrain": lambda: [n for n in builtin_set().names.tolist() if n in line][:1] or ["a chain"],
    }
    assert all(part in line for part in known[name]()), line
    assert load_summary(tmp_path / "whole")["skipped_steps"] == 1
    assert "or gradient was not finite: 1" in said

    breaks(monkeypatch, module, (), dies=5)
    with pytest.raises(Dies):
        run("killed")
    monkeypatch.undo()
    breaks(monkeypatch, module, (2,))
    run("killed", "--resume", "true", fresh=False)
    whole, killed = content(tmp_path / "whole"), content(tmp_path / "killed")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "ema", "rng", "global_step", "guard"):
        same(whole[key], killed[key], key)
    assert whole["guard"]["counts"]["skipped_steps"] == 1


@pytest.mark.parametrize(
    ("name", "more"),
    [("text", ""), ("text", "--trainer.precision bf16-mixed"), ("lora", ""), ("protein", "")]
    + [pytest.param("vision", "", marks=pytest.mark.slow)],
)
def test_weights_after_a_bad_step_are_those_before(
    name: str, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, module = command(name, tmp_path)
    shared = ["--trainer.val_check_interval", "6", "--model.schedule.kind", "constant", "--model.schedule.warmup", "0"]
    shared += more.split()
    run("before", *shared, "--trainer.max_steps", "2")
    breaks(monkeypatch, module, (2,))
    run("after", *shared, "--trainer.max_steps", "3")
    before, after = content(tmp_path / "before"), content(tmp_path / "after")
    same(before["state_dict"], after["state_dict"])
    same(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"])
    same(before["ema"]["averages"], after["ema"]["averages"])
    assert after["global_step"] == 3


def test_several_in_a_row_keep_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, module = command("text", tmp_path)
    breaks(monkeypatch, module, (4, 5))
    with pytest.raises(UserError, match=r"2 steps in a row, the last of them step 6.*\.txt.*lower learning rate"):
        run("stopped", "--model.optimizer.skip_limit", "2")
    kept = content(tmp_path / "stopped")
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    # The data are the same, so is what happens; the limit may be raised for a resumed run.
    run("stopped", "--resume", "true", "--model.optimizer.skip_limit", "3", fresh=False)
    assert load_summary(tmp_path / "stopped")["skipped_steps"] == 2


def test_a_leap_and_batches_without_a_target_in_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A batch of which nothing is to be predicted has a loss of zero over no unit, not 0 / 0."""
    run, module = command("text", tmp_path)
    original = module.loss

    def loss(self: Any, batch: Any) -> Loss:
        position = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if self.training and position == 36:
            batch = batch | {"targets": torch.full_like(batch["targets"], -100)}
        total, count = original(self, batch)
        return Loss(total * 50 if self.training and position == 38 else total, count)

    monkeypatch.setattr(module, "loss", loss)
    length = ["--trainer.max_steps", "40", "--trainer.val_check_interval", "40"]
    run("odd", "--trainer.precision", "bf16-mixed", *length)
    said, counts = capsys.readouterr().out, load_summary(tmp_path / "odd")
    assert "step 37 has no target to learn from" in said and "the loss of step 39 leaps to" in said
    names = ("skipped_steps", "loss_spikes", "steps_without_targets")
    assert [counts[name] for name in names] == [0, 1, 1]
    assert all(value.isfinite().all() for value in content(tmp_path / "odd")["state_dict"].values())
