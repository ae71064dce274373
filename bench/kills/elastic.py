"""Trainings that are killed and go on with another number of processes, beside one process that is left alone.

    python -m triune.bench.kills.elastic [TASK …] [--precision 64-true]

All processes of a training are killed between two checkpoints. What must be equal: the loss of each step, as
metrics.csv has it, within 1e-6; and the weights of the last checkpoint, as far as rounding lets them.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch

from .server import Server
from .trainings import COMMON, SMALL, make_images, make_proteins, make_text

WHOLE = 12
"""Examples of a batch of all processes, which 1, 2, 3 and 4 divide."""
STEPS, CHECKPOINT = 9, 4
"""Of a training, and after how many of them it saves."""
WAYS = ((2, 2), (2, 1), (1, 2), (4, 3))
"""Processes that are killed, and those that go on."""
TASKS = {
    "text": ("text fit", "--data.files text.txt --data.tokenizer bytes --data.context 16" + SMALL, make_text),
    "text pretrain": (
        "text pretrain", "--data.files text.txt --data.tokenizer bytes --data.context 16" + SMALL, make_text
    ),
    "vision": (
        "vision fit",
        "--data.root images --model.patch_size 4 --data.val_fraction 0.25 --data.augment.crop resized"
        " --data.augment.flip true --data.augment.erasing 0.3 --data.augment.mixup 0.8" + SMALL,
        make_images,
    ),
    "contacts": (
        "protein fit",
        "--data.crop 24 --model.preset tiny --model.settings"
        ' {"depth":1,"sequence_depth":0,"dropout_pair":0,"dropout_msa":0}',
        make_proteins,
    ),
    "protein pretrain": (
        "protein pretrain", "--data.files chains.fasta --data.context 24 --data.val_fraction 0.2 --model.size tiny",
        make_proteins,
    ),
}  # fmt: skip


class Elastic:
    """A task in a folder, with one server for its command lines.

    Args:
        task: of `TASKS`.
        precision: what Lightning calls it.
        options: further words of the command line.
    """

    def __init__(self, task: str, place: Path, server: Server, precision: str, *options: str) -> None:
        self.words, line, make = TASKS[task]
        self.place, self.server = place, server
        self.options = [*line.split(), *COMMON.split(), "--trainer.precision", precision, *options]
        self.names: dict[int, list[str]] = {}
        make(place)
        self.one = self.whole(1)

    def whole(self, ranks: int) -> Path:
        """The run of a training that nothing happens to; notes its moments."""
        run, names = f"whole-{ranks}", self.place / f"moments-{ranks}"
        self._run(self._begin(run, ranks), ranks, names=names)
        self.names[ranks] = names.read_text().splitlines()
        return self.place / run

    def killed(self, before: int, after: int) -> Path:
        """The run of a training of `before` processes that is killed between its last two checkpoints, and goes on
        with `after`.
        """
        if before not in self.names:
            self.whole(before)
        run, names = f"{before}-{after}", self.names[before]
        steps = [at for at, name in enumerate(names, 1) if name == "optimizer_step"]
        self._run(self._begin(run, before), before, at=steps[CHECKPOINT + 1] + 1, code=-9)
        assert (self.place / run / "checkpoints" / "last.ckpt").exists()
        kept = len(losses(self.place / run))
        assert CHECKPOINT <= kept < STEPS, f"killed after {kept} steps"
        self._run([*self.words.split(), "--run", run, "--resume", "true", "--trainer.devices", f"{after}"], after)
        return self.place / run

    def _begin(self, run: str, ranks: int) -> list[str]:
        steps = f"--trainer.max_steps {STEPS} --trainer.val_check_interval {CHECKPOINT} --trainer.log_every_n_steps 1"
        size = f"--data.batch_size {WHOLE // ranks} --trainer.devices {ranks}"
        return [*self.words.split(), *self.options, *steps.split(), *size.split(), "--run", run]

    def _run(self, words: list[str], ranks: int, at: int = 0, code: int = 0, names: Path | None = None) -> None:
        ended = self.server.run(self.place, words, at, names=names, ranks=ranks)
        if ended.code != code:
            raise AssertionError(f"exit code {ended.code}, but must be {code}: {ended.printed[-3000:]}")


def losses(run: Path) -> dict[int, float]:
    """Of each step, by its number."""
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}


def apart(one: Path, other: Path) -> tuple[float, float]:
    """The largest relative difference of two runs' losses, and the largest difference of their last weights.

    Raises:
        AssertionError: they have other steps.
    """
    ours, theirs = losses(one), losses(other)
    assert ours.keys() == theirs.keys(), (sorted(ours), sorted(theirs))
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (one, other)]
    weights = max(float((last[0][name].double() - last[1][name].double()).abs().max()) for name in last[0])
    return max(abs(ours[step] - theirs[step]) / abs(ours[step]) for step in ours), weights


def main() -> None:
    from triune.bench.common import record, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--precision", nargs="+", default=["32-true", "64-true"])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Server() as server:
        for task in options.tasks:
            for precision in options.precision:
                with tempfile.TemporaryDirectory() as name:
                    one = Elastic(task, Path(name), server, precision)
                    for before, after in WAYS:
                        row = {"task": task, "precision": precision, "killed": before, "goes on": after}
                        found = apart(one.one, one.killed(before, after))
                        rows.append(row | dict(zip(("losses", "weights"), found, strict=True)))
                        print(rows[-1], flush=True)
                record("elastic", rows, asked=1e-6, steps=STEPS)
    print(table(rows))


if __name__ == "__main__":
    main()
