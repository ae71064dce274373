"""Accuracy of the small-data recipes, over seeds, beside their baselines.

    python bench/vision_learning.py digits                                     scikit-learn's digits, a held-out quarter
    python bench/vision_learning.py fashion-mnist --root FOLDER [--gpu]        the 10,000 test images
    python bench/vision_learning.py cifar10 --root cifar10-train.tar.gz --test-root cifar10-test.tar.gz [--gpu]

Every figure is that of `triune vision fit` and, where there are test images, of `triune vision test`. The seed chooses
the split, the order, every augmentation and the initial weights. `best` is the accuracy of the weights that were
chosen by the images they are judged on; `last` that of the last weights, which nobody chose. On test images the two
are the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record, spread, table

ANCHORS = {
    "digits": "logistic regression 95.8 %, SVM 98.7 %",
    "fashion-mnist": "two-layer CNNs 91 to 93 %, human 83.5 % (Zalando's board)",
    "cifar10": "ViT-CIFAR 90.9 % (200 epochs)",
}


def train(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Figures of one run."""
    triune = [sys.executable, "-m", "triune", "vision"]
    recipe = "default" if options.data == "digits" else f"{options.data}-{'gpu' if options.gpu else 'cpu'}"
    extra = ["--data.root", options.root] if options.root else []
    extra += ["--data.test_root", options.test_root] if options.test_root else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
        command = [*triune, "fit", "--config", recipe, "--run", str(run), *seeds, *extra, *shlex.split(options.options)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((run / "summary.json").read_text())
        with (run / "metrics.csv").open() as file:
            accuracies = [float(row["val_top1"]) for row in csv.DictReader(file) if row["val_top1"]]
        found = {"val_top1": summary["val_top1"], "last": accuracies[-1]}
        if options.data != "digits":
            subprocess.run([*triune, "test", str(run)], check=True, stdout=subprocess.DEVNULL)
            found["test_top1"] = json.loads((run / "test.json").read_text())["test_top1"]
    keys = ("ece", "ece_calibrated", "baseline_logistic_regression", "parameters", "seconds", "best_step")
    return found | {key: summary[key] for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=ANCHORS)
    parser.add_argument("--root", help="--data.root")
    parser.add_argument("--test-root", help="--data.test_root")
    parser.add_argument("--gpu", action="store_true", help="the recipe for a GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--options", default="", help="more options of triune vision fit")
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        runs.append({"seed": seed} | train(options, seed))
        print(json.dumps(runs[-1]), flush=True)
    figures = [key for key in runs[0] if key not in ("seed", "best_step", "parameters")]
    rows = [{"figure": key, **spread([run[key] for run in runs if run[key] is not None] or [0.0])} for key in figures]
    for row in rows:
        row["mean"] = sum(run[row["figure"]] or 0.0 for run in runs) / len(runs)
    print(table(rows))
    name = options.data.replace("-", "_") + ("_gpu" if options.gpu else "")
    record(f"vision_learning_{name}", rows, runs=runs, options=options.options, anchor=ANCHORS[options.data])


if __name__ == "__main__":
    main()
