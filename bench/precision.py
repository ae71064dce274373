"""What bfloat16 gains on this CPU, and whether it learns as well: whole trainings in float32 and in bfloat16.

    python bench/precision.py tinyshakespeare.txt [--seeds 3] [--threads 1]

Each training is a command of its own; its time is the processor's, so that other work on the machine counts for little,
and holds the imports (some seconds). `auto` is what `--trainer.precision auto` chooses. The losses of validation are
those of the best weights, over the same seeds.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import record, spread, table

CASES = {
    "text, 4 layers x 128": "text fit --config shakespeare-char-cpu --data.files {text} --trainer.max_steps 400",
    "text, 6 layers x 384": "text fit --config shakespeare-char-cpu --data.files {text} --trainer.max_steps 150 "
    "--model.transformer.depth 6 --model.transformer.dim 384 --model.transformer.heads 6",
    "images, built-in digits": "vision fit --trainer.max_epochs 3",
    "images, 6 layers x 384": "vision fit --trainer.max_epochs 2 --model.transformer.depth 6 "
    "--model.transformer.dim 384 --model.transformer.heads 6",
    "proteins, language model": "protein pretrain --trainer.max_steps 100",
    "proteins, contacts": "protein fit --config demo --trainer.max_steps 30",
}


def train(words: str, seed: int, threads: int, precision: str, folder: Path) -> tuple[dict[str, Any], float, str]:
    """The summary of a training, its processor time, and the precision that it had."""
    run = folder / f"{precision}-{seed}"
    command = [sys.executable, "-m", "triune", *shlex.split(words), "--seed_everything", str(seed), "--run", str(run)]
    command += ["--trainer.precision", precision, "--threads", str(threads), "--trainer.logger", "none"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    used = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"]
    return json.loads((run / "summary.json").read_text()), spent, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    rows = []
    for name, words in CASES.items():
        if options.only not in name:
            continue
        words = words.format(text=shlex.quote(str(options.text.absolute())))
        row: dict[str, Any] = {"training": name}
        with tempfile.TemporaryDirectory() as folder:
            for precision in ("32-true", "bf16-mixed"):
                found = [train(words, seed, options.threads, precision, Path(folder)) for seed in range(options.seeds)]
                row[f"loss {precision}"] = spread([summary["val_loss"] for summary, _, _ in found])
                row[f"seconds {precision}"] = min(spent for _, spent, _ in found)
            row["auto"] = train(words, options.seeds, options.threads, "auto", Path(folder))[2]
        row["times as fast"] = row["seconds 32-true"] / row["seconds bf16-mixed"]
        rows.append(row)
        print(table([row]), flush=True)
    record("precision", rows, seeds=options.seeds, threads=options.threads)


if __name__ == "__main__":
    main()
