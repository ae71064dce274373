"""A training that is killed anywhere goes on as if it had not been: weights, optimizer, averages, generators, rows of
metrics, the best checkpoint and the exported model, bit by bit.

A few moments of each training run here, more with --slow; `python -m triune.bench.kills` takes any number of them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from triune.bench.kills.compare import differences
from triune.bench.kills.kill import Killed, Point
from triune.bench.kills.server import Server
from triune.bench.kills.trainings import TRAININGS
from triune.core.training.run.folder import RunFolder

MOMENTS = {
    "before training": ("setup", 0.3, signal.SIGTERM),
    "first epoch": ("on_train_batch_start", 0.05, signal.SIGKILL),
    "window": ("on_after_backward", 0.55, signal.SIGTERM),
    "step": ("optimizer_step", 0.4, signal.SIGINT),
    "validation": ("validation_step", 0.5, signal.SIGKILL),
    "terminated validation": ("validation_step", 0.6, signal.SIGTERM),
    "checkpoint": ("half a checkpoint", 0.6, signal.SIGKILL),
    "first checkpoint": ("half a checkpoint", 0.15, signal.SIGKILL),
    "row": ("half a row", 0.5, signal.SIGKILL),
    "previous": ("os.link", 0.5, signal.SIGKILL),
    "last validation": ("on_validation_start", 0.9, signal.SIGKILL),
    "export": ("os.rename", 1.0, signal.SIGKILL),
    "full disk at a checkpoint": ("half a checkpoint", 0.6, None),
    "full disk at a row": ("half a row", 0.5, None),
    "full disk at the export": ("os.mkdir", 1.0, None),
}
"""Name of a moment, which one of that name (0 the first, 1 the last), and the signal that comes then; None: the disk is
full from then on, and has room again when the training is resumed."""
QUICK = {
    ("text", "window"), ("text", "checkpoint"), ("lora", "last validation"), ("vision", "validation"),
    ("contacts", "first checkpoint"), ("pretrain", "before training"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(servers: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Killed]:
    known: dict[str, Killed] = {}

    def get(name: str) -> Killed:
        if name not in known:
            known[name] = Killed(name, tmp_path_factory.mktemp(name), servers)
        return known[name]

    return get


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        pytest.param(name, moment, marks=[] if (name, moment) in QUICK else [pytest.mark.slow])
        for name in TRAININGS
        for moment in MOMENTS
    ],
)
def test_a_killed_training_goes_on_as_if_it_had_not_been(
    name: str, moment: str, trained: Callable[[str], Killed]
) -> None:
    killed = trained(name)
    kind, share, number = MOMENTS[moment]
    at = killed.moment(kind, share)
    assert killed.run(Point(at, kind, number)) == []


def test_two_runs_that_differ_are_told_apart(trained: Callable[[str], Killed]) -> None:
    killed = trained("text")
    words = [*killed.training.command("other"), "--seed_everything", "3"]
    killed.check(killed.servers[0].run(killed.place, words), {0})
    found = differences(killed.place / "whole", killed.place / "other")
    assert {"last.state_dict", "best.state_dict", "metrics.csv[0]"} <= {".".join(f.split(".")[:2]) for f in found}
    assert "model/model.safetensors differs" in found


@pytest.mark.parametrize("moment", ["configure_callbacks", "validation_step"])
def test_a_process_that_is_ended_before_the_first_step_ends_the_other(
    trained: Callable[[str], Killed], moment: str
) -> None:
    """Before the two meet, and in the check of the validation."""
    killed = trained("text-two-processes")
    words = killed.training.command(f"sanity-{moment}")
    ended = killed.servers[0].run(
        killed.place, words, killed.moment(moment, 0), signal.SIGTERM, ranks=killed.training.ranks
    )
    assert ended.code == 143 and "Traceback" not in ended.printed, ended.printed
    assert "Rank 0 of 0 to 1 ended with exit code 143, so that all end" in ended.printed, ended.printed


def test_a_training_that_was_killed_before_its_first_checkpoint_can_be_started_again(
    trained: Callable[[str], Killed],
) -> None:
    killed = trained("text")
    run = RunFolder(killed.place / "early")
    words = killed.training.command("early")
    killed.check(killed.servers[0].run(killed.place, words, killed.moment("training_step", 0)), {-9})
    assert run.config.exists() and not run.last.exists()
    refused = killed.servers[1].run(
        killed.place, [*killed.training.words.split(), "--run", "early", "--resume", "true"]
    )
    assert refused.code == 2 and "start it anew" in refused.printed
    killed.check(killed.servers[1].run(killed.place, words), {0})
    assert differences(killed.place / "whole", run.path) == []


def test_best_weights_of_a_run_that_cannot_go_on_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.best.write_bytes(b"mine")
    assert run.contents() == []
    run.create()
    assert not run.best.exists()
    assert (run.checkpoints / "best.before.ckpt").read_bytes() == b"mine"


def test_one_run_folder_has_one_training(trained: Callable[[str], Killed]) -> None:
    killed = trained("text")
    run = RunFolder(killed.place / "whole")
    run.lock()
    try:
        ended = killed.servers[0].run(killed.place, ["text", "fit", "--run", "whole", "--resume", "true"])
    finally:
        run.unlock()
    assert ended.code == 2
    assert "whole is being trained by another process" in ended.printed


def test_a_changed_option_that_cannot_be_exact_is_refused(trained: Callable[[str], Killed]) -> None:
    killed = trained("text")
    before = (killed.place / "whole" / "config.yaml").read_text()
    words = ["text", "fit", "--run", "whole", "--resume", "true", "--model.transformer.dim", "32"]
    ended = killed.servers[0].run(killed.place, words)
    assert ended.code == 2
    assert "dim" in ended.printed and "--model.pretrained" in ended.printed
    assert (killed.place / "whole" / "config.yaml").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    number: signal.Signals, trained: Callable[[str], Killed]
) -> None:
    killed = trained("text-two-processes")
    run, at = f"one-{number.name}", killed.moment("optimizer_step", 0.6)
    ended = killed.servers[0].run(killed.place, killed.training.command(run), at, number, ranks=2, rank=1)
    assert ended.code == 128 + number, ended.printed
    killed.check(killed.train(1, ["text", "fit", "--run", run, "--resume", "true"]), {0})
    assert differences(killed.place / "whole", killed.place / run) == []
