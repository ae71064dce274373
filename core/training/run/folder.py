"""The folder of one training run: what lies where, written so that nothing good is ever half replaced."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...checkpoints.origin import PRETRAINED, mark_model, refuse_foreign_model
from ...errors import UserError
from ...files import naming, read_json, write_atomic, write_json
from ...lock import Lock

ROOT = Path("runs")


class RunFolder:
    """Paths and files of a run. Constructing touches nothing.

    config.yaml       every option, resolved; `--config` takes it to train the same again. Where a resumed run changed
                      some, config.until-step-N.yaml holds what was true before
    metrics.csv       one row per log step and per validation (telemetry.Snapshot says what the columns mean)
    tensorboard/      the same numbers for `tensorboard --logdir`
    checkpoints/      best.ckpt (lowest val_loss), last.ckpt (to continue), previous.ckpt (should last be damaged)
    model/            the best weights for use: config.json, model.safetensors, tokenizer or labels
    pretrained/       of a fine-tuning: config and tokenizer it started from, so that it goes on without the checkpoint
    adapter/          of a fine-tuning with LoRA: the factors in PEFT's format, where Hugging Face has the model
    heads.csv, .png   with --head_scores, what each attention head looks at, by step
    loss.png          training and validation loss
    report.html       figures, curves, pictures and options on one page; `triune report RUN` writes it again
    summary.json      the final figures
    validation.json   the figures of the latest `validate`
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.planned = self.checkpoints / "planned.ckpt"
        self.aside = self.checkpoints / "best.old.ckpt"
        self.model = self.path / "model"
        self.pretrained = self.path / PRETRAINED
        self.adapter = self.path / "adapter"
        self.plot = self.path / "loss.png"
        self.heads = self.path / "heads.csv"
        self.report = self.path / "report.html"
        self.summary = self.path / "summary.json"
        self.validation = self.path / "validation.json"
        self._lock = Lock(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def fresh(cls, task: str) -> RunFolder:
        """`runs/<task>/<YYYY-MM-DD_HH-MM-SS>`, with a number behind it when two start in the same second."""
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        path, number = ROOT / task / name, 2
        while path.exists():
            path, number = ROOT / task / f"{name}-{number}", number + 1
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in an existing folder.

        Raises:
            UserError: the folder does not exist or holds no run; names runs nearby.
        """
        run = cls(path)
        if run.config.is_file():
            return run
        if not run.path.exists():
            found, base = "does not exist", next((p for p in run.path.parents if p.is_dir()), Path())
        elif not run.path.is_dir():
            found, base = "is a file, not a run folder", run.path.parent
        else:
            found, base = "is not a run folder (it holds no config.yaml)", run.path
        newest = newest_runs(base)
        hint = f"; the newest runs here are {', '.join(map(str, newest))}" if newest else "; train one with `fit` first"
        raise UserError(f"{run} {found}{hint}.")

    @property
    def best_there(self) -> Path:
        """The best weights: also where a training was killed that was replacing a folder of them."""
        return next((path for path in (self.best, self.aside, self.planned) if path.exists()), self.best)

    @property
    def verb(self) -> str:
        """The verb that trains this run: that of the command in the first line of config.yaml; `fit` where there is
        none.
        """
        return self._command()[1] or "fit"

    @property
    def task(self) -> str:
        """The task of this run, by the same line; empty where there is none."""
        return self._command()[0]

    def _command(self) -> tuple[str, str]:
        """Task and verb in the first line of config.yaml, empty where there are none."""
        try:
            with self.config.open(encoding="utf-8") as file:
                return task_and_verb(file.readline(10_000))
        except (OSError, ValueError):
            return "", ""

    def contents(self) -> list[str]:
        """Names of what makes this folder a run; empty when it may be used for a new one."""
        # `last.ckpt` and the like may be folders (sharded checkpoints).
        parts = [self.summary, self.last, self.previous, self.model]
        held = [str(p.relative_to(self.path)) for p in parts if p.exists()]
        if self.config.exists() and not self._config_is_ours():
            held.insert(0, self.config.name)
        return held

    def _config_is_ours(self) -> bool:
        """Whether config.yaml is that of a training, as far as its first line says."""
        try:
            with self.config.open("rb") as file:
                return file.readline(200).startswith(b"# triune ")
        except OSError:
            return False

    def check_free(self) -> None:
        """Raises UserError when the folder already holds a run, or is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run {self} is a file; name a folder that does not exist yet.")
        if held := self.contents():
            raise UserError(
                f"{self} already holds a run ({', '.join(held)}): choose another --run, or continue this one with "
                f"`--run {self} --resume true`."
            )

    def create(self) -> RunFolder:
        """Makes the folder and locks it; refuses (UserError) one that holds a run already, or where one is starting.

        What a training left that ended before it could be continued is removed; best weights without a last state are
        kept as `best.before.ckpt`.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        self.check_free()
        self._clear()
        return self

    def change_config(self, text: str, step: int, recorded: str | None = None) -> None:
        """Lets config.yaml hold `text`; what was true before (`recorded`, else what it held) stays in a file with the
        last step it is true of in its name.
        """
        before = self.path / f"config.until-step-{step}.yaml"
        if not before.exists():
            write_atomic(before, recorded.encode() if recorded else self.config.read_bytes())
        write_atomic(self.config, text.encode())

    def remove_start(self) -> None:
        """Removes what a training wrote before its first checkpoint, and the folder when nothing else is in it."""
        self._clear()
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        self.unlock()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _clear(self) -> None:
        # Not the folder of the logger, which is open already when a training starts.
        shutil.rmtree(self.pretrained, ignore_errors=True)
        for file in (self.config, self.metrics):
            file.unlink(missing_ok=True)
        if self.best.exists():  # the process was killed between its two first checkpoints
            before = self.best.with_name("best.before.ckpt")
            if before.is_dir() or self.best.is_dir():
                shutil.rmtree(before, ignore_errors=True)
            self.best.replace(before)

    def lock(self) -> None:
        """Lets no other process train into this folder while this one lives; the system takes the lock back at its end.

        Raises:
            UserError: another process does, or what should be the lock is no regular file.
        """
        self._lock.take(
            lambda owner: (
                f"--run {self} is being trained by another process{owner}; wait until it has ended, stop it, or choose"
                " another folder."
            )
        )

    def unlock(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def export(self, write: Callable[[Path], Any], origin: str | None = None) -> None:
        """Lets `write(folder)` fill a new `model/`, and only then put it in the place of the old one. `origin` is that
        of the run whose weights they are.
        """
        new, old = (self.path / f".model.{name}" for name in ("new", "old"))
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            with naming(self.model):
                write(new)
                mark_model(new, origin)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        # A folder cannot be replaced in one step where it is not empty; between the two the old one is still there.
        if self.model.exists():
            self.model.rename(old)
        new.rename(self.model)
        shutil.rmtree(old, ignore_errors=True)

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Writes a JSON file completely or not at all."""
        write_json(path, values)


def task_and_verb(config: str) -> tuple[str, str]:
    """Those of the command in the first line of a configuration of ours, empty where there are none."""
    command = re.match(r"# triune ([\w-]+) ([\w-]+)", config)
    return (command[1], command[2]) if command else ("", "")


def model_folder(path: str | Path, task: str) -> Path:
    """The model of a run folder, or a model folder itself.

    Raises:
        UserError: there is none, it is of another run, or its training has not finished.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    run = RunFolder.open(path)
    if not run.model.is_dir():
        raise UserError(
            f"{run} holds no finished model yet; continue it with `triune {task} {run.verb} --run {run} --resume true`,"
            f" or let `triune {task} validate {run}` write its best weights so far."
        )
    refuse_foreign_model(run.path)
    return run.model


def load_summary(path: str | Path) -> dict[str, Any]:
    """The figures in a run's `summary.json`.

    Raises:
        UserError: no such run, or its training has not finished.
    """
    run = RunFolder.open(path)
    if not run.summary.is_file():
        raise UserError(f"{run} has no summary.json: its training has not finished; continue it with `--resume true`.")
    return read_json(run.summary)


def newest_runs(base: str | Path = ROOT, most: int = 3) -> list[Path]:
    """Folders of the runs up to three levels below `base` (or in `runs/` below it), the newest first."""
    base = Path(base)
    found: set[Path] = set()
    for root in (base, base / ROOT):
        for depth in ("*", "*/*", "*/*/*"):
            found.update(p.parent for p in root.glob(f"{depth}/checkpoints"))
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)[:most]
