"""Training from shards of text beside training from files: processor time a token, start, resume, memory.

    python bench/large_shards.py SHARDS FILES [--steps 150] [--rounds 3]

The tokens of files lie in one memory map. Both have the same number of tokens a step and one thread. The processor time
of a step is that of a long training less that of a short one, over the steps between them, so that the start does not
count; shards and files take turns, and the ratio is that of a round. `start` and `resume` are seconds from the command
to the first step that is shown, of which loading PyTorch and Lightning is the most. With workers the time of their
processes counts too.
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
from typing import Any

from common import record, spread, table

MODEL = (
    "--data.context 256 --data.batch_size 8 --model.transformer.dim 128 --model.transformer.depth 2"
    " --model.transformer.heads 2 --trainer.accelerator cpu --threads 1 --trainer.limit_val_batches 1"
    " --trainer.log_every_n_steps 1 --trainer.val_check_interval 100000"
)
SHORT = 10
"""Steps of the short training."""


def run(words: list[str]) -> tuple[float, float, float]:
    """Processor seconds of a command and its workers, its memory in bytes, seconds until its first step is shown."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    began, first = time.monotonic(), 0.0
    process = subprocess.Popen(
        [sys.executable, "-m", "triune", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout
    said = b""
    while piece := os.read(process.stdout.fileno(), 4096):
        said += piece
        if not first and re.search(rb"\n\d+/\d+ +loss", said):
            first = time.monotonic() - began
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()[-2000:]
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("files", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="where the tokens of FILES are kept")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        cache = options.cache or Path(name) / "cache"
        sources = {
            "shards": f"--data.shards {options.shards}",
            "files": f"--data.files {options.files} --data.tokenizer bytes --data.cache {cache}",
        }
        target = Path(name) / "run"

        def trained(source: str, workers: int, steps: int, keep: bool = False) -> tuple[float, float, float]:
            line = f"text fit --run {target} {sources[source]} {MODEL} --data.workers {workers}"
            found = run([*line.split(), "--trainer.max_steps", str(steps)])
            if not keep:
                shutil.rmtree(target)
            return found

        trained("files", 0, 1)  # fills the cache
        for workers in (0, 2):
            ratios, memory, starts = [], [], []
            for _ in range(options.rounds):
                taken = {}
                for source in sources:
                    short, long = trained(source, workers, SHORT), trained(source, workers, SHORT + options.steps)
                    taken[source] = (long[0] - short[0]) / options.steps
                    if source == "shards":
                        memory.append(long[1])
                        starts.append(short[2])
                ratios.append(taken["files"] / taken["shards"])
                print(workers, taken, starts[-1], flush=True)
            trained("shards", workers, SHORT, keep=True)
            again = run(
                ["text", "fit", "--run", str(target), "--resume", "true", "--trainer.max_steps", f"{SHORT + 5}"]
            )
            shutil.rmtree(target)
            rows.append({
                "workers": workers, "tokens a processor second, shards / files": spread(ratios),
                "memory, GB": round(max(memory) / 1e9, 2), "start, s": spread(starts), "resume, s": round(again[2], 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    size = sum(file.stat().st_size for file in options.shards.rglob("*.npy"))
    record("large_shards", rows, steps=options.steps, shards_gb=round(size / 1e9, 2), load=os.getloadavg()[1])
    print(table(rows))


if __name__ == "__main__":
    main()
