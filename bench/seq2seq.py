"""Exact match of the recipes seq2seq-dates and seq2seq-numbers on targets that were never trained on, over seeds.

python bench/seq2seq.py [--seeds 3] [--jobs 1]

Each run trains by the recipe with one thread, and is scored by `triune text test` on 2,000 pairs of the test side. The
seconds are of the processor, not of the clock, because several runs may share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import record, table

RULES = ("numbers", "dates")


def run(rule: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains and tests one model."""
    target = folder / f"{rule}-{seed}"
    triune = [sys.executable, "-m", "triune", "text"]
    chosen = ["--seed_everything", str(seed), "--data.seed", str(seed), "--threads", "1"]
    train = [*triune, "fit", "--config", f"seq2seq-{rule}", "--run", str(target), *chosen]
    seconds = _seconds(train)
    _seconds([*triune, "test", str(target)])
    summary, test = (json.loads((target / name).read_text()) for name in ("summary.json", "test.json"))
    return {
        "rule": rule, "seed": seed, "parameters": summary["parameters"], "steps": summary["steps"],
        "val_exact_match": summary["val_exact_match"], "test_exact_match": test["test_exact_match"],
        "test_token_accuracy": test["test_token_accuracy"], "decoded": test["decoded"],
        "decoded_exact_match": test["decoded_exact_match"], "processor_seconds": round(seconds, 1),
    }  # fmt: skip


def _seconds(command: list[str]) -> float:
    """Runs a command; processor time of it."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}.")
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(run, rule, seed, Path(name)) for rule in RULES for seed in range(options.seeds)]
        rows = [job.result() for job in jobs]
    print(table(rows))
    record("seq2seq", rows)


if __name__ == "__main__":
    main()
