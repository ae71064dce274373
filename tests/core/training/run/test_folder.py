"""Run folders, and the shared command line over a toy task: fit, stop, resume, validate, and every mistake."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from triune.core.checkpoints.source import open_source
from triune.core.errors import UserError
from triune.core.training.data import DataModule
from triune.core.training.module import Loss, TrainingModule
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.run.cli import run_task
from triune.core.training.run.folder import RunFolder, load_summary, model_folder, newest_runs
from triune.core.training.run.plot import plot_loss, smooth
from triune.core.training.run.recipes import find_config, list_recipes
from triune.core.training.schedules import ScheduleConfig

# --- a toy task
# ----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.embed = nn.Embedding(20, dim)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.1)) for _ in range(2))
        self.head = nn.Linear(dim, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


class ToyTask(TrainingModule):
    def __init__(
        self,
        dim: int = 8,
        broken: bool = False,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        ema: float | None = 0.9,
    ):
        super().__init__(optimizer, schedule, ema)
        if dim % 2:
            raise UserError(f"model.dim is {dim}, but must be even.")
        self.dim, self.broken = dim, broken

    def build_model(self, data: Any) -> Net:
        return Net(self.dim)

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        assert self.model is not None
        if self.broken:
            raise ZeroDivisionError("a bug, not a mistake of the user")
        logits, targets = self.model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten()
        return Loss(F.cross_entropy(logits, targets, reduction="sum"), torch.tensor(targets.numel()))

    def slots(self, batch: dict[str, Tensor]) -> int:
        return batch["tokens"].numel()

    def export(self, folder: Path) -> None:
        torch.save(self.export_state(), folder / "weights.pt")

    def next_steps(self, run: RunFolder) -> list[str]:
        return [f"triune toy use {run}"]


class Batches:
    """Windows in an order that the number of batches consumed so far determines."""

    def __init__(self, data: ToyData):
        self.data = data

    def __len__(self) -> int:
        return 10

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        trainer: Any = self.data.trainer
        training = trainer.state.fn == "fit"
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed if training else 0
        for position in range(done, done - done % 10 + 10):
            if training and position == self.data.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            yield make_batch(position)


def make_batch(seed: int) -> dict[str, Tensor]:
    tokens = torch.randint(10, (4, 9), generator=torch.Generator().manual_seed(seed))
    tokens[:, 1:] = (tokens[:, :-1] * 3 + 1) % 20
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


class ToyData(DataModule):
    def __init__(self, files: str | None = None, interrupt_at: int = -1):
        super().__init__()
        self.files, self.interrupt_at = files, interrupt_at

    def setup(self, stage: str) -> None:
        if self.files and not Path(self.files).exists():
            raise UserError(f"{self.files}: no such file; give --data.files text that exists.")

    def describe(self) -> str:
        return "12,345 tokens"

    def train_dataloader(self) -> Batches:
        return Batches(self)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([make_batch(seed) for seed in range(1000, 1003)], batch_size=None)  # type: ignore[arg-type]


def toy(verb: str, *words: str | Path) -> dict[str, Any]:
    return run_task("toy", verb, [str(word) for word in words], ToyTask, ToyData, "triune.core")


SHORT = ("--trainer.max_steps", "12", "--trainer.val_check_interval", "5", "--trainer.log_every_n_steps", "2")
FLAT = ("--model.schedule.kind", "constant", "--model.schedule.warmup", "0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    toy("fit", "--run", run.path, *SHORT, *FLAT)
    return run


def weights(run: RunFolder) -> dict[str, Tensor]:
    return torch.load(run.last, weights_only=True)["state_dict"]


def rows(run: RunFolder) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


# --- fit and validate
# ----------------------------------------------------------------------------------------------------


def test_fit_leaves_a_whole_run(finished: RunFolder) -> None:
    for path in (finished.config, finished.best, finished.last, finished.plot, finished.model / "weights.pt"):
        assert path.stat().st_size > 0
    assert any(finished.tensorboard.iterdir())
    summary = load_summary(finished.path)
    net = Net(8)
    assert summary["parameters"] == sum(p.numel() for p in net.parameters())
    assert summary["tokens"] == 12 * 32
    assert (summary["steps"], summary["seed"], summary["task"], summary["interrupted"]) == (12, 1337, "toy", False)
    assert summary["command"].startswith("triune toy fit --run ")
    assert {"seconds", "device", "versions", "tokens_per_second", "mfu", "threads"} <= set(summary)
    validated = {row["step"]: float(row["val_loss"]) for row in rows(finished) if row["val_loss"]}
    assert list(validated) == ["5", "10", "12"]  # the last step too, wherever the interval stands
    assert summary["val_loss"] == pytest.approx(min(validated.values()), rel=1e-5)
    assert [row["step"] for row in rows(finished) if row["loss"]] == ["2", "4", "6", "8", "10", "12"]
    config = yaml.safe_load(finished.config.read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert config["seed_everything"] == 1337
    assert config["threads"] == torch.get_num_threads()
    assert not {"run", "resume", "config"} & set(config)


def test_validate_gives_the_same_figures(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    summary = load_summary(finished.path)
    before = finished.summary.read_bytes()
    figures = toy("validate", finished.path)
    assert figures["val_loss"] == summary["val_loss"]
    assert json.loads(finished.validation.read_text()) == figures
    assert f"val_loss {figures['val_loss']:.4f}" in capsys.readouterr().out
    assert finished.summary.read_bytes() == before
    last = toy("validate", "--run", finished.path, "--ckpt_path", finished.last)
    assert last["val_loss"] >= figures["val_loss"]


def test_export_holds_the_averaged_best_weights(finished: RunFolder) -> None:
    best = torch.load(finished.best, weights_only=True)
    exported = torch.load(finished.model / "weights.pt", weights_only=True)
    for name, value in best["ema"]["averages"].items():
        assert torch.equal(exported[name], value)


def test_what_a_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy("fit", "--run", tmp_path / "run", "--trainer.max_steps", "2")
    out, err = capsys.readouterr()
    assert "  data     12,345 tokens\n" in out
    assert f"{sum(p.numel() for p in Net(8).parameters())} parameters" in out
    assert "share of peak unknown" in out
    assert out.rstrip().endswith(f"triune toy use {tmp_path / 'run'}")
    assert "Lightning" not in out + err
    assert "GPU available" not in out + err
    assert "  length" not in out


def test_a_run_says_which_of_two_limits_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy("fit", "--run", tmp_path / "run", "--trainer.max_steps", "50", "--trainer.max_epochs", "1")
    said = " ".join(capsys.readouterr().out.split())
    assert " length 10 steps, the end of epoch 1 (--trainer.max_epochs -1 makes it 50) " in said
    assert load_summary(tmp_path / "run")["steps"] == 10


# --- stop and resume
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 7])  # with a validation at its end by the interval, and within
def test_resume_is_exact(finished: RunFolder, tmp_path: Path, stop: int) -> None:
    run = RunFolder(tmp_path / "run")
    toy("fit", "--run", run.path, *SHORT, *FLAT, "--trainer.max_steps", str(stop))
    assert load_summary(run.path)["steps"] == stop
    toy("fit", "--run", run.path, "--resume", "true", "--trainer.max_steps", "12")
    ours, theirs = weights(run), weights(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    summary, whole = load_summary(run.path), load_summary(finished.path)
    for key in ("val_loss", "tokens", "steps", "best_step"):
        assert summary[key] == whole[key]
    trained = [[r["loss"] for r in rows(folder) if r["step"] in ("10", "12")] for folder in (run, finished)]
    assert trained[0] == trained[1]
    assert summary["seconds"] > 0


def test_interrupt_saves_and_resumes(finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    toy("fit", "--run", run.path, *SHORT, *FLAT, "--data.interrupt_at", "6")
    assert signal.getsignal(signal.SIGINT) is handler
    summary = load_summary(run.path)
    assert (summary["interrupted"], summary["steps"]) == (True, 7)
    assert f"triune toy fit --run {run} --resume true" in capsys.readouterr().out
    toy("fit", "--run", run.path, "--resume", "true")
    ours, theirs = weights(run), weights(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load_summary(run.path)["interrupted"] is False


def test_a_run_that_never_started_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="no such file"):
        toy("fit", "--run", run, "--data.files", tmp_path / "missing.txt")
    assert not run.exists()
    with pytest.raises(ZeroDivisionError):
        toy("fit", "--run", run, "--model.broken", "true", "--trainer.num_sanity_val_steps", "0")
    assert not run.exists()


# --- mistakes
# ------------------------------------------------------------------------------------------------------------

MISTAKES = [
    (
        "--model.dimm 4",
        "Unknown option '--model.dimm' (did you mean '--model.dim'?); `triune toy fit --help` lists all.",
    ),
    ("--modle.dim=4", "Unknown option '--modle.dim' (did you mean '--model.dim'?)"),
    ("--model.optimizer.lrr 1", "Unknown option '--model.optimizer.lrr' (did you mean '--model.optimizer.lr'?)"),
    ("--model.dim x", "--model.dim is 'x', but must be a whole number."),
    ("--model.dim 3", "model.dim is 3, but must be even."),
    ("--model.dim", "--model.dim needs a value"),
    ("--model.optimizer.name sgd", "--model.optimizer.name is 'sgd', but must be one of 'muon', 'adamw'."),
    ("--model.optimizer.lr -1", "optimizer.lr is -1.0, but must be"),
    ("--model.schedule.kind cosin", "is 'cosin', but must be one of 'cosine', "),
    ("--trainer.precision bf17", "--trainer.precision is 'bf17', but must be"),
    ("--trainer.strategy warp", "warp"),
    ("--threads 0", "--threads is 0, but must be at least 1"),
    ("--config nowhere.yaml", "--config nowhere.yaml: neither a file nor a recipe"),
    ("--config", "--config needs a value"),
    ("--run", "--run needs a value"),
    ("--resume perhaps", "--resume is 'perhaps', but must be true or false."),
    ("--resume true", "--resume true needs the folder of the run"),
    ("--resume true --run nowhere", "nowhere does not exist"),
    ("stray", "Unexpected argument 'stray'"),
    ("--config unknown.yaml", "Unknown option '--model.dimm' (did you mean '--model.dim'?)"),
    ("--config nested.yaml", "Unknown option '--model.optimizer.lrr' (did you mean '--model.optimizer.lr'?)"),
    ("--config top.yaml", "Unknown option '--modle"),
    ("--config invalid.yaml", "--config invalid.yaml, line 2: "),
    ("--config binary.yaml", "--config binary.yaml is not UTF-8 text (byte 1)"),
    ("--config empty.yaml", "--config empty.yaml is empty"),
    ("--config list.yaml", "--config list.yaml holds a list"),
    ("--config .", "--config . is a folder"),
]


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("unknown.yaml").write_text("model:\n  dimm: 3\n")
    Path("nested.yaml").write_text("model:\n  optimizer:\n    lrr: 3\n")
    Path("top.yaml").write_text("modle:\n  dim: 4\n")
    Path("invalid.yaml").write_text("model: [\n")
    Path("binary.yaml").write_bytes(b"\x00\xff\xfe")
    Path("empty.yaml").write_text("# nothing\n")
    Path("list.yaml").write_text("- model\n")
    return tmp_path


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistakes_are_one_sentence(configs: Path, line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        toy("fit", *line.split())
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert not (configs / "runs").exists()


def test_a_run_is_never_overwritten(finished: RunFolder) -> None:
    before = {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"already holds a run \(summary.json.*--resume true"):
        toy("fit", "--run", finished.path, *SHORT)
    assert before == {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_shape(finished: RunFolder) -> None:
    with pytest.raises(UserError, match=r"does not fit the model \(size mismatch .*config.yaml"):
        toy("validate", finished.path, "--model.dim", "4")


def test_validate_wants_a_run(configs: Path, finished: RunFolder) -> None:
    with pytest.raises(UserError, match="`validate` needs a run"):
        toy("validate")
    with pytest.raises(UserError, match="nope does not exist"):
        toy("validate", "nope")
    with pytest.raises(UserError, match=r"no config.yaml.*newest runs here are .*whole"):
        toy("validate", finished.path.parent)
    with pytest.raises(UserError, match="no such file"):
        toy("validate", finished.path, "--ckpt_path", "nope.ckpt")


def test_help_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["--help"], "usage: triune toy fit"), (["--print_config"], "dim: 8")):
        with pytest.raises(SystemExit) as caught:
            toy("fit", *words)
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


# --- the folder, the plot, recipes
# ---------------------------------------------------------------------------------------


def test_export_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    run.unlock()
    run.export(lambda folder: (folder / "a").write_text("good"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.export(fail)
    assert (run.model / "a").read_text() == "good"
    run.export(lambda folder: (folder / "b").write_text("better"))
    assert [path.name for path in run.model.iterdir()] == ["b"]
    assert sorted(path.name for path in run.path.iterdir()) == ["model"]


def test_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = RunFolder.fresh("toy").create()
    assert first.path.parent == Path("runs/toy")
    monkeypatch.setattr("time.strftime", lambda form: first.path.name)
    assert RunFolder.fresh("toy").path.name == first.path.name + "-2"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder("file").create()
    with pytest.raises(UserError, match="train one with `fit` first"):
        RunFolder.open("nothing")
    first.config.write_text("")
    first.checkpoints.mkdir()
    assert newest_runs() == [first.path]
    with pytest.raises(UserError, match="has not finished"):
        load_summary(first.path)


def test_plot(tmp_path: Path) -> None:
    metrics, target = tmp_path / "metrics.csv", tmp_path / "loss.png"
    assert not plot_loss(metrics, target, "nothing yet")
    body = "".join(f"{i},{4 / i + 1},\n{i},,{4 / i + 1.1}\n" for i in range(1, 300))
    metrics.write_text("step,loss,val_loss\n" + body)
    assert plot_loss(metrics, target, "toy")
    assert target.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["loss.png", "metrics.csv"]
    assert smooth([2.0, 2.0, 2.0], 10) == pytest.approx([2.0, 2.0, 2.0])


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.yaml").write_text(
        "# A small one.\n# time: 2 min\n# expected: val_loss 1.6\n#\n# triune toy fit\nmodel:\n  dim: 4\n# time: no\n"
    )
    recipe = list_recipes(tmp_path)[0]
    assert (recipe.name, recipe.about, recipe.time, recipe.expected) == (
        "small",
        "A small one.",
        "2 min",
        "val_loss 1.6",
    )
    monkeypatch.setattr("triune.core.training.run.recipes.folder", lambda package: tmp_path)
    assert find_config("small", "any") == tmp_path / "small.yaml"
    with pytest.raises(UserError, match=r"smal: .*did you mean 'small'.*the recipes are small"):
        find_config("smal", "any")


# --- nothing lost
# ----------------------------------------------------------------------------------------------------------------------


def test_a_start_that_was_killed_before_its_first_checkpoint_can_be_repeated(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text("# triune toy fit --run run\nseed_everything: 1\n")
    run.metrics.write_text("step,loss\n1,9\n")
    with pytest.raises(UserError, match=r"no checkpoint to continue from.*start it anew"):
        toy("fit", "--run", run.path, "--resume", "true", *SHORT)
    toy("fit", "--run", run.path, *SHORT)
    assert [row["step"] for row in rows(run) if row["loss"]] == ["2", "4", "6", "8", "10", "12"]


def test_a_folder_with_a_config_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(UserError, match="already holds a run"):
        toy("fit", "--run", tmp_path, *SHORT)
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"


def test_two_processes_do_not_train_into_one_folder(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    code = (
        "import sys; from triune.core.training.run.folder import RunFolder; run = RunFolder(sys.argv[1]); run.lock();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "run")]
    resume = ("--run", tmp_path / "run", "--resume", "true", "--trainer.max_steps", "14")
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdin
        assert other.stdout.readline() == "locked\n"
        before = (tmp_path / "run" / "metrics.csv").read_bytes()
        with pytest.raises(UserError, match=f"is being trained by another process \\({other.pid}\\)"):
            toy("fit", *resume)
        assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
        other.kill()
    assert toy("fit", *resume)["steps"] == 14


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[content.index(b"/data/", len(content) // 2) + 400] ^= 1
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"hello" * 99}.get(how, content))


@pytest.mark.parametrize("how", ["empty", "cut", "garbage", "flipped"])
def test_a_damaged_last_checkpoint_is_seen_and_the_one_before_taken(
    how: str, finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    damaged(run.last, how)
    damaged(run.best, how)
    with pytest.raises(UserError, match=r"best.ckpt is damaged.*--ckpt_path"):
        toy("validate", run.path)
    toy("fit", "--run", run.path, "--resume", "true")
    said = capsys.readouterr().out
    assert "last.ckpt is damaged" in said and "continuing from previous.ckpt" in said and "best.ckpt is damaged" in said
    assert all(torch.equal(a, weights(finished)[name]) for name, a in weights(run).items())


def test_a_run_without_a_good_checkpoint_says_so(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    for path in (RunFolder(tmp_path / "run").last, RunFolder(tmp_path / "run").previous):
        path.write_bytes(pickle.dumps(os.system))
    with pytest.raises(UserError, match="cannot go on"):
        toy("fit", "--run", tmp_path / "run", "--resume", "true")


def test_a_changed_option_on_resume_is_refused_or_said(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    run, resume = RunFolder(tmp_path / "run"), ("--run", tmp_path / "run", "--resume", "true")
    before = run.config.read_bytes()
    with pytest.raises(UserError, match=r"--model.dim is 16, but this run was trained with 8.*--model.pretrained"):
        toy("fit", *resume, "--model.dim", "16")
    assert run.config.read_bytes() == before
    # Beyond the peak of a schedule that is constant, so that the rates can be read.
    options = {"--model.optimizer.lr": "0.5", "--model.optimizer.weight_decay": "0.25", "--trainer.max_steps": "14",
               "--model.schedule.kind": "constant", "--model.optimizer.adamw_lr": "0.05", "--model.ema": "0.5",
               "--trainer.gradient_clip_val": "0.3"}  # fmt: skip
    assert toy("fit", *resume, *(word for pair in options.items() for word in pair))["steps"] == 14
    said = " ".join(capsys.readouterr().out.split())
    assert "trainer.max_steps was 12, now 14" in said
    assert "model.optimizer.weight_decay was None, now 0.25" in said and "used from the next step on" in said
    assert (run.path / "config.until-step-12.yaml").read_bytes() == before
    groups = torch.load(run.last, weights_only=True)["optimizer_states"][0]["param_groups"]
    muon, embeddings = (next(g for g in groups if g["name"] == name) for name in ("matrices", "embeddings"))
    assert (muon["lr"], muon["initial_lr"], muon["weight_decay"], embeddings["lr"]) == (0.5, 0.5, 0.25, 0.05)
    assert [float(row["lr"]) for row in rows(run) if row["lr"]][-1] == 0.05  # of the first group, the embeddings


def test_a_changed_rate_is_that_of_the_next_step(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    run, resume = RunFolder(tmp_path / "run"), ("--run", tmp_path / "run", "--resume", "true")
    before = torch.load(run.last, weights_only=True)["state_dict"]
    # A rate that moves nothing: were the restored one used for a step, the weights would have moved.
    toy("fit", *resume, "--trainer.max_steps", "13", "--model.optimizer.lr", "1e-30", "--model.optimizer.adamw_lr",
        "1e-30", "--model.schedule.kind", "constant")  # fmt: skip
    after = torch.load(run.last, weights_only=True)
    assert after["global_step"] == 13
    assert all(torch.equal(tensor, before[name]) for name, tensor in after["state_dict"].items())


def test_groups_that_are_not_those_of_the_checkpoint_are_refused(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    resume = ("--run", tmp_path / "run", "--resume", "true", "--trainer.max_steps", "14")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="groups of parameters"):
        toy("fit", *resume, "--model.optimizer.head_lr", "0.1")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_run_that_was_killed_gets_a_model_by_validating_it(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    shutil.rmtree(run.model)
    with pytest.raises(UserError, match=r"`triune toy validate .*run` writes them for that"):
        toy("fit", "--run", run.path, "--resume", "true", "--model.dim", "16")
    for opened in (lambda: model_folder(run.path, "toy"), lambda: open_source(str(run))):
        with pytest.raises(UserError, match=r"no .*model yet.*validate"):
            opened()
    toy("validate", run.path)
    assert str(run.model) in capsys.readouterr().out
    assert all(torch.equal(a, weights(finished)[name]) for name, a in weights(run).items())
