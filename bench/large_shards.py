"""Training from shards beside training from memory: processor time and seconds of a step, start, resume, memory.

    python bench/large_shards.py text SHARDS FILES [--steps 150] [--rounds 3]
    python bench/large_shards.py images SHARDS IDX_FOLDER [--steps 40] [--rounds 3]

Tokens of FILES lie in one memory map, images of IDX_FOLDER in one array. Both have the same examples a step and one
thread. What a step takes is that of a long training less that of a short one, over the steps between them, so that the
start does not count; shards and memory take turns, and the ratio is that of a round. `first` takes the shards out of
the system's cache of files before each training, as in memory that is smaller than they are; `later` reads what a
training of the same order has just read. `start` and `resume` are seconds from the command to the first step that is
shown, of which loading PyTorch and Lightning is the most; runs go on after the short training and after the long one.
With workers the time of their processes counts too. Each row is written as soon as it is there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from common import record, spread, table

SHARED = (
    "--trainer.accelerator cpu --threads 1 --trainer.limit_val_batches 1 --trainer.log_every_n_steps 1"
    " --trainer.val_check_interval 100000"
)
MODELS = {
    "text": "text fit --data.context 256 --data.batch_size 8 --model.transformer.dim 128 --model.transformer.depth 2"
    " --model.transformer.heads 2",
    "images": "vision fit --data.batch_size 64 --model.patch_size 4 --model.transformer.dim 96"
    " --model.transformer.depth 4 --model.transformer.heads 3",
}
SHORT = 10
"""Steps of the short training."""


class Taken(NamedTuple):
    """Of a command with its workers: processor seconds, seconds, bytes of its largest process, and seconds until its
    first step is shown.
    """

    processor: float
    wall: float
    memory: float
    first: float


def run(words: list[str]) -> Taken:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    began, first = time.monotonic(), 0.0
    process = subprocess.Popen(
        [sys.executable, "-m", "triune", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout
    said = b""
    while piece := os.read(process.stdout.fileno(), 4096):
        said += piece
        if not first and re.search(rb"\n\d[\d,]*/[\d,]+ +loss", said):
            first = time.monotonic() - began
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()[-2000:]
    assert first, said.decode()[-2000:]
    return Taken(usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * 1024.0, first)


def forget(folder: Path) -> None:
    """Takes the files of a folder out of the system's cache of files."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


class Compared:
    """Trainings of a task from shards and from memory.

    Args:
        what: "text" or "images".
        sources: words of each.
        folder: for runs.
        shards: the folder of shards.
        steps: between the short training and the long one.
    """

    def __init__(self, what: str, sources: dict[str, str], folder: Path, shards: Path, steps: int) -> None:
        self._what, self._sources, self._target, self._shards, self._steps = what, sources, folder, shards, steps

    def trained(self, source: str, workers: int, steps: int, cold: bool = True) -> Taken:
        """A training from its start; its folder stays until the next one."""
        shutil.rmtree(self._target, ignore_errors=True)
        if cold:
            forget(self._shards)
        line = f"{MODELS[self._what]} --run {self._target} {self._sources[source]} {SHARED}"
        more = f" --data.workers {workers}" if source == "shards" or self._what == "text" else ""
        return run([*f"{line}{more}".split(), "--trainer.max_steps", str(steps)])

    def resumed(self, steps: int) -> Taken:
        """The training in the folder, to so many steps."""
        forget(self._shards)
        verb = MODELS[self._what].split()[:2]
        return run([*verb, "--run", str(self._target), "--resume", "true", "--trainer.max_steps", str(steps)])

    def round(self, workers: int, cold: bool) -> dict[str, Any]:
        """Both sources, one after the other."""
        found: dict[str, Any] = {}
        for source in self._sources:
            short = self.trained(source, workers, SHORT, cold)
            long = self.trained(source, workers, SHORT + self._steps, cold)
            found[source] = (
                (long.processor - short.processor) / self._steps, (long.wall - short.wall) / self._steps
            )  # fmt: skip
            if source == "shards":
                found["memory"], found["start"] = long.memory, short.first
        return found

    def row(self, workers: int, cold: bool, rounds: int) -> dict[str, Any]:
        """What is recorded of some rounds."""
        several = []
        for _ in range(rounds):
            several.append(self.round(workers, cold))
            print(workers, cold, several[-1], flush=True)
        ratio = lambda which: spread([each["files"][which] / each["shards"][which] for each in several])  # noqa: E731
        return {
            "what": self._what, "workers": workers, "pass": "first" if cold else "later",
            "steps a processor second, shards / memory": ratio(0), "steps a second, shards / memory": ratio(1),
            "processor, ms a step": round(1e3 * min(each["shards"][0] for each in several), 2),
            "memory, GB": round(max(each["memory"] for each in several) / 1e9, 2),
            "start, s": spread([each["start"] for each in several]),
        }  # fmt: skip

    def resumes(self, workers: int) -> dict[str, Any]:
        """Seconds until the first step of a run that goes on after a few steps, and after many."""
        found: dict[str, Any] = {"what": f"{self._what}, going on", "workers": workers}
        for steps in (SHORT, SHORT + self._steps):
            self.trained("shards", workers, steps)
            found[f"after {steps} steps, s"] = round(self.resumed(steps + 5).first, 2)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(MODELS))
    parser.add_argument("shards", type=Path)
    parser.add_argument("files", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="where the tokens of FILES are kept")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    size = round(sum(file.stat().st_size for file in options.shards.iterdir() if file.is_file()) / 1e9, 2)

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, flush=True)
        name = f"large_shards_{options.what}"
        record(name, rows, steps=options.steps, rounds=options.rounds, shards_gb=size, load=os.getloadavg()[1])

    with tempfile.TemporaryDirectory() as name:
        cache = options.cache or Path(name) / "cache"
        sources = {
            "text": {
                "shards": f"--data.shards {options.shards}",
                "files": f"--data.files {options.files} --data.tokenizer bytes --data.cache {cache}",
            },
            "images": {
                "shards": f"--data.root {options.shards} --data.memory 0 --data.cache {cache}",
                "files": f"--data.root {options.files} --data.cache {cache}",
            },
        }[options.what]
        compared = Compared(options.what, sources, Path(name) / "run", options.shards, options.steps)
        compared.trained("files", 0, 1)  # fills the cache
        for workers in (0, 2):
            for cold in (True, False):
                add(compared.row(workers, cold, options.rounds))
            add(compared.resumes(workers))
    print(table(rows))


if __name__ == "__main__":
    main()
