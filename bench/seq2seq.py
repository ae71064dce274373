"""Exact match of the recipes seq2seq-dates and seq2seq-numbers on targets that were never trained on, over seeds.

python bench/seq2seq.py [--seeds 0 1 2] [--folder FOLDER]

Each run trains by the recipe with one thread, and is scored by `triune text test` on 2,000 pairs of the test side. Runs
that FOLDER holds already are only scored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record, table

RULES = ("numbers", "dates")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(rule: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains and tests one model."""
    target = folder / f"{rule}-{seed}"
    triune = [sys.executable, "-m", "triune", "text"]
    chosen = ["--seed_everything", str(seed), "--data.seed", str(seed), "--threads", "1"]
    if not (target / "summary.json").exists():
        subprocess.run(
            [*triune, "fit", "--config", f"seq2seq-{rule}", "--run", str(target), *chosen], check=True, env=ENVIRONMENT
        )
    subprocess.run([*triune, "test", str(target)], check=True, env=ENVIRONMENT)
    summary, test = (json.loads((target / name).read_text()) for name in ("summary.json", "test.json"))
    return {
        "rule": rule, "seed": seed, "parameters": summary["parameters"], "steps": summary["steps"],
        "val_exact_match": summary["val_exact_match"], "test_exact_match": test["test_exact_match"],
        "test_token_accuracy": test["test_token_accuracy"], "decoded": test["decoded"],
        "decoded_exact_match": test["decoded_exact_match"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [run(rule, seed, options.folder or Path(name)) for rule in RULES for seed in options.seeds]
    print(table(rows))
    record("seq2seq", rows)


if __name__ == "__main__":
    main()
