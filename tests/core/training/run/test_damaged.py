"""Files of a run that something has damaged: the run goes on without them and says so, or one sentence says why not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.bench.kills.compare import differences
from triune.bench.kills.moments import FULL_DISK, READ_ONLY
from triune.bench.kills.server import Ended, Server
from triune.core.training.run.checkpoints import damage

FIT = (
    "text fit --data.files text.txt --data.cache cache --data.tokenizer bytes --data.context 16 --data.batch_size 4"
    " --model.transformer.dim 16 --model.transformer.depth 1 --model.transformer.heads 2 --trainer.max_steps 12"
    " --trainer.val_check_interval 4 --trainer.log_every_n_steps 2 --trainer.limit_val_batches 2 --threads 1"
    " --trainer.accelerator cpu --trainer.logger false --run"
)
RESUME = "text fit --run run --resume true"
MORE = f"{RESUME} --trainer.max_steps 16"
SCORE = "text validate run"


class Place:
    """A folder with a finished run, `whole`, and a copy of it, `run`, for each test."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(600)))
        assert self(f"{FIT} whole").code == 0

    def __call__(self, line: str, at: int = 0, number: int = FULL_DISK) -> Ended:
        return self.server.run(self.folder, line.split(), at, number)

    def copy(self) -> Path:
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.folder / "whole", run)
        return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Place:
    return Place(tmp_path_factory.mktemp("damaged"), server)


def only_sentence(ended: Ended, *parts: str) -> None:
    """Asserts that a command was refused in one sentence that holds these parts."""
    said = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and len(said) == 1 and "Traceback" not in ended.printed, ended
    assert said[0].endswith(".") and all(part in said[0] for part in parts), said


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOIL: list[Any] = [cut, garbage, *(pytest.param(spoil, marks=pytest.mark.slow) for spoil in (emptied, a_folder))]


@pytest.mark.parametrize("spoil", SPOIL)
def test_the_last_checkpoint(place: Place, spoil: Callable[[Path], None]) -> None:
    run = place.copy()
    previous = (run / "checkpoints" / "previous.ckpt").read_bytes()
    spoil(run / "checkpoints" / "last.ckpt")
    bad = run / "checkpoints" / "last.damaged.ckpt"
    killed = place(RESUME, at=60, number=9)  # before anything new is saved
    assert killed.code == -9 and bad.exists()
    assert (run / "checkpoints" / "previous.ckpt").read_bytes() == previous  # the only good one is not replaced
    ended = place(RESUME)
    assert ended.code == 0, ended.printed
    assert differences(place.folder / "whole", run) == []


@pytest.mark.parametrize("spoil", SPOIL)
def test_the_best_checkpoint(place: Place, spoil: Callable[[Path], None]) -> None:
    run = place.copy()
    spoil(run / "checkpoints" / "best.ckpt")
    before = content(run)
    only_sentence(place(SCORE), "best.ckpt is damaged", "last.ckpt")
    assert content(run) == before
    ended = place(MORE)
    assert ended.code == 0 and "the next validation writes a new one" in ended.printed
    assert damage(run / "checkpoints" / "best.ckpt") == ""
    assert (run / "checkpoints" / "best.damaged.ckpt").exists()


def test_best_weights_that_are_gone_are_not_those_that_the_summary_names(place: Place) -> None:
    run = place.copy()
    (run / "checkpoints" / "best.ckpt").unlink()
    ended = place(MORE)
    assert ended.code == 0 and "best.ckpt is missing; the next validation writes a new one." in ended.printed
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 16


def test_all_checkpoints(place: Place) -> None:
    run = place.copy()
    for name in ("last", "previous", "best"):
        garbage(run / "checkpoints" / f"{name}.ckpt")
    before = content(run)
    only_sentence(place(MORE), "last.ckpt is damaged", "previous.ckpt is damaged", "start anew")
    only_sentence(place(SCORE), "best.ckpt is damaged")
    assert content(run) == before


@pytest.mark.parametrize("spoil", SPOIL[1:])
def test_the_configuration(place: Place, spoil: Callable[[Path], None]) -> None:
    run = place.copy()
    spoil(run / "config.yaml")
    before = content(run)
    for words in (MORE, SCORE):
        only_sentence(place(words), "run")
    only_sentence(place(f"{FIT} run"), "already holds a run")  # what it holds is not written over
    assert content(run) == before


def test_a_configuration_that_is_gone_is_written_again(place: Place) -> None:
    run = place.copy()
    before = (run / "config.yaml").read_bytes()
    (run / "config.yaml").unlink()
    ended = place(RESUME)
    assert ended.code == 0 and "config.yaml is gone; it is written again" in ended.printed
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(place: Place, name: str) -> None:
    path = place.copy() / name
    path.unlink()
    os.mkfifo(path)
    ended = place(MORE)
    if name == "metrics.csv":
        only_sentence(ended, "metrics.csv' is a pipe")
    else:
        assert ended.code == 0 and "damaged (it is no regular file)" in ended.printed


@pytest.mark.parametrize("spoil", SPOIL[1:3])
def test_the_rows_of_metrics(place: Place, spoil: Callable[[Path], None]) -> None:
    run = place.copy()
    spoil(run / "metrics.csv")
    ended = place(MORE)
    assert ended.code == 0 and "metrics.damaged.csv" in ended.printed
    (run / "metrics.csv").unlink()
    ended = place(f"{RESUME} --trainer.max_steps 18")
    assert ended.code == 0 and "metrics.csv is gone" in ended.printed


def test_a_disk_that_is_full_from_the_start_leaves_no_run(place: Place) -> None:
    only_sentence(place(f"{FIT} none", at=1), "No space left on device")
    assert not (place.folder / "none").exists()


def test_a_file_that_may_not_grow(place: Place) -> None:
    """The real thing: the system refuses what goes beyond a size, within a write."""
    code = """
import resource, sys
from triune.cli import main
def limited(*words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, -1))
    sys.exit(main([*words]))
"""
    (place.folder / "limited.py").write_text(code)
    only_sentence(place(f"call limited.py limited {FIT} grown"), "File too large")
    run = place.folder / "grown"
    assert not list(run.rglob("*.part.ckpt"))
    assert not (run / "checkpoints" / "last.ckpt").exists()
    assert place(f"{FIT} grown").code == 0  # with room again the same command works
    assert differences(place.folder / "whole", run) == []


@pytest.mark.parametrize("words", [MORE, SCORE, f"{FIT} none", "text predict run", "text test run"])
def test_a_disk_that_is_read_only(place: Place, words: str) -> None:
    """As the system says it of a disk that is mounted so, which root meets too."""
    run = place.copy()
    only_sentence(place(words, at=1, number=READ_ONLY), "Read-only file system")
    assert content(run) == content(place.folder / "whole") and not (place.folder / "none").exists()


def test_a_run_without_a_step_left_says_that_nothing_was_trained(place: Place) -> None:
    run = place.copy()
    before = (run / "config.yaml").read_bytes()
    ended = place(f"{RESUME} --model.optimizer.lr 0.5")
    assert ended.code == 0 and "nothing was trained, and no changed option has an effect" in ended.printed
    assert (run / "config.yaml").read_bytes() == before
    assert "nothing was trained" not in place(MORE).printed


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(place: Place) -> None:
    run = place.copy()
    for path in (run, run / "checkpoints"):
        path.chmod(0o555)
    try:
        only_sentence(place(MORE), "Permission denied")
    finally:
        for path in (run, run / "checkpoints"):
            path.chmod(0o755)
    assert content(run) == content(place.folder / "whole")


def test_predictions_of_no_run_replace_nothing(place: Place) -> None:
    mine = place.folder / "predictions.pt"
    mine.write_bytes(b"mine")
    words = "text predict --config whole/config.yaml --ckpt_path whole/checkpoints/best.ckpt"
    only_sentence(place(words), "predictions.pt' exists already", "--overwrite true")
    assert mine.read_bytes() == b"mine"
    assert place(f"{words} --overwrite true").code == 0
    assert len(mine.read_bytes()) > 1000


def test_a_checkpoint_whose_list_of_contents_is_damaged(place: Place) -> None:
    """PyTorch reads memory that nobody wrote, without a word, where a member of the archive is marked as a folder."""
    last = place.copy() / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 38] |= 0x10
    last.write_bytes(content)
    assert damage(last) == "its list of contents is damaged"


def test_a_changed_config_is_seen(place: Place) -> None:
    """Also by a hand: config.yaml says what a run was trained with, and the checkpoint knows it too."""
    run = place.copy()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        text.replace("warmup: ", "warmup: 1").replace("seed_everything: 1", "seed_everything: 2")
    )
    only_sentence(place(MORE), "seed_everything is 2337, but this run was trained with 1337")
    scored = place(SCORE)
    assert scored.code == 0 and "seed_everything was 1337, now 2337" in scored.printed
    (run / "config.yaml").write_text(text.replace("weight_decay: ", "weight_decay: 0.5 # "))
    ended = place(MORE)
    assert ended.code == 0 and "model.optimizer.weight_decay was" in " ".join(ended.printed.split())
    assert "weight_decay: 0.5" not in (run / "config.until-step-12.yaml").read_text()


def test_rows_of_metrics_that_are_not_those_that_were_written(place: Place) -> None:
    run = place.copy()
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace(".", "1.", 1)
    (run / "metrics.csv").write_text("".join(lines))
    assert "are not those that were written" in place(MORE).printed


def test_files_of_another_run_are_not_taken_for_its_own(place: Place) -> None:
    other = place.folder / "other"
    if not other.exists():
        assert place(f"{FIT} other --seed_everything 7").code == 0
    run = place.copy()
    best = (other / "checkpoints" / "best.ckpt").read_bytes()
    (run / "checkpoints" / "best.ckpt").write_bytes(best)
    before = content(run)
    only_sentence(place(SCORE), "best.ckpt is of another run than last.ckpt", "--ckpt_path")
    assert content(run) == before
    assert place(f"{SCORE} --ckpt_path run/checkpoints/best.ckpt").code == 0  # asked for
    ended = place(MORE)
    assert ended.code == 0 and "best.ckpt is of another run than last.ckpt; the next" in ended.printed, ended.printed
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 16
    assert (run / "checkpoints" / "best.damaged.ckpt").read_bytes() == best
    assert "another run" not in place(SCORE).printed  # options that a resumed run changes are not another run


def test_a_model_of_another_run_is_not_used(place: Place) -> None:
    """A whole folder, which its own checksums agree with."""
    other = place.folder / "other"
    if not other.exists():
        assert place(f"{FIT} other --seed_everything 7").code == 0
    run = place.copy()
    own = (run / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "model")
    shutil.copytree(other / "model", run / "model")
    before = content(run)
    for words in ("text generate run --prompt a", "text test run --data.files text.txt", "convert run out --to triune"):
        if words.startswith("text test"):
            assert place(words).code == 0  # scores a checkpoint
            (run / "test.json").unlink()
            continue
        only_sentence(place(words), "model' is of another run than 'run/config.yaml'", "validate run", "'run/model'")
    assert content(run).keys() - before.keys() <= {"report.html"}
    assert place("text generate run/model --prompt a --max-tokens 1").code == 0  # asked for
    assert "model' is of another run" in place(SCORE).printed
    shutil.rmtree(run / "model")
    assert place(SCORE).code == 0 and (run / "model" / "model.safetensors").read_bytes() == own
    assert place("text generate run --prompt a --max-tokens 1").code == 0
    # resumed with another option, it stays the same run
    ended = place(f"{MORE} --model.optimizer.lr 0.01")
    assert ended.code == 0 and place("text generate run --prompt a --max-tokens 1").code == 0, ended


def test_metrics_of_another_run_are_told(place: Place) -> None:
    other = place.folder / "other"
    if not other.exists():
        assert place(f"{FIT} other --seed_everything 7").code == 0
    run = place.copy()
    for words in ("report run", "compare run whole"):
        assert "this training wrote" not in (ended := place(words)).printed and ended.code == 0, ended
    shutil.copy(other / "metrics.csv", run / "metrics.csv")
    for words in ("report run", "compare run other"):
        ended = place(words)
        assert ended.code == 0 and "Rows of run/metrics.csv are not those" in " ".join(ended.printed.split()), ended
    assert "Rows of run/metrics.csv are not those" in (run / "report.html").read_text()


def test_a_configuration_or_a_checkpoint_of_another_task(place: Place) -> None:
    run = place.copy()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("# triune text fit", "# triune vision fit", 1))
    for words in (MORE, SCORE):
        only_sentence(place(words), "config.yaml is of a run of `triune vision fit`", "put the original back")
    run = place.copy()
    for name in ("last.ckpt", "previous.ckpt"):
        path = run / "checkpoints" / name
        state = torch.load(path, weights_only=True)
        state["callbacks"]["Checkpoints"]["config"] = "# triune vision fit\n" + text.partition("\n")[2]
        torch.save(state, path)
    only_sentence(place(MORE), "is of a run of vision", "put the original back")


def test_best_weights_that_are_gone_are_said_when_others_are_scored(place: Place) -> None:
    run = place.copy()
    (run / "checkpoints" / "best.ckpt").unlink()
    ended = place(SCORE)
    assert ended.code == 0 and "best.ckpt is missing; the weights of last.ckpt are scored." in ended.printed
