"""Recipes of hybrids beside the same model with attention in all layers, at equal parameters: equal tokens, equal time.

    python bench/hybrids.py text --files tinyshakespeare.txt [--seeds 3] [--steps 2400]
    python bench/hybrids.py image
    python bench/hybrids.py protein

Both trainings of a seed run at the same time, with one thread each, so that other programs slow both alike; the ratio
of their processor seconds says how many steps of the hybrid take as long as those of attention (`--steps`, a run of
the hybrid alone). Each row goes into `results/hybrids.json` when it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, commit, record

VERBS = {"text": ["text", "fit"], "image": ["vision", "fit"], "protein": ["protein", "pretrain"]}
FIGURES = {"text": "val_loss", "image": "val_top1", "protein": "val_loss"}
ATTENTION = {"text": ["--config", "shakespeare-char-conv"], "image": [], "protein": ["--trainer.max_steps", "600"]}
HYBRID = {
    "text": [*ATTENTION["text"], "--model.transformer.mixer", "CACA", "--model.transformer.ffn_dim", "472"],
    "image": ["--model.transformer.mixer", "CAC", "--model.transformer.ffn_dim", "254"],
    "protein": [*ATTENTION["protein"], "--model.transformer.mixer", "CCCA", "--model.transformer.ffn_dim", "318"],
}


def start(task: str, words: list[str], seed: int, folder: Path) -> subprocess.Popen[bytes]:
    """A training in the background; what it prints goes into `folder`.log."""
    seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
    line = [sys.executable, "-m", "triune", *VERBS[task], *words, *seeds, "--threads", "1", "--run", str(folder)]
    with open(f"{folder}.log", "wb") as log:
        return subprocess.Popen(line, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(task: str, name: str, seed: int, folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Waits for a training and returns its row."""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(Path(f"{folder}.log").read_text()[-2000:])
    summary = json.loads((folder / "summary.json").read_text())
    kept = ("steps", "best_step", "parameters", "long_p_at_l5", "val_nll")
    return {
        "task": task, "model": name, "seed": seed, FIGURES[task]: summary[FIGURES[task]],
        **{key: summary[key] for key in kept if key in summary},
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1), "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def keep(rows: list[dict[str, Any]]) -> None:
    """Adds rows to those of the file."""
    file = RESULTS / "hybrids.json"
    held = json.loads(file.read_text())["rows"] if file.is_file() else []
    record("hybrids", held + rows, threads=1)
    print(*rows, sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(VERBS))
    parser.add_argument("--files", help="of the text")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, help="steps of the hybrid, which then runs alone")
    options = parser.parse_args()
    more = ["--data.files", options.files] if options.files else []
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as place:
            steps = ["--trainer.max_steps", str(options.steps)] if options.steps else []
            jobs = [("hybrid", HYBRID[options.task] + steps)]
            jobs += [] if options.steps else [("attention", ATTENTION[options.task])]
            runs = [(n, Path(place) / n, start(options.task, words + more, seed, Path(place) / n)) for n, words in jobs]
            keep([finish(options.task, name, seed, folder, process) for name, folder, process in runs])


if __name__ == "__main__":
    main()
