"""What a masked autoencoder learns from 12,000 CIFAR images without their labels, in a given time.

    python bench/masked_autoencoder.py cifar10-train.tar.gz cifar10-test.tar.gz --minutes 15

1,200 images of each class train, with `triune vision pretrain --config pretrain-cifar10-cpu`; the steps are as many as
the time allows, by the rate of a short trial. `triune vision probe` then judges the encoder at random and as trained
by the 10,000 test images, with all 12,000 labels: a linear classifier on frozen vectors, beside a logistic regression
on the pixels. Needs the two archives of CIFAR-10 as class folders of image files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from common import record, table

TRIAL = 60
"""Optimizer steps of the trial that measures the rate."""


def extract(archive: str, folder: Path, each: int | None) -> None:
    """Writes the first `each` images of every class of an archive into class folders."""
    count: dict[str, int] = {}
    with tarfile.open(archive) as file:
        for member in file:
            name = member.name.split("/")[-2] if member.isfile() else ""
            if not name or (each is not None and count.get(name, 0) >= each):
                continue
            count[name] = count.get(name, 0) + 1
            content = file.extractfile(member)
            assert content is not None
            path = folder / name / Path(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


def pretrain(run: Path, root: Path, steps: int, threads: int, more: list[str]) -> dict[str, Any]:
    """The summary of a run."""
    command = [
        *(sys.executable, "-m", "triune", "vision", "pretrain", "--config", "pretrain-cifar10-cpu", "--run", str(run)),
        *("--data.root", str(root), "--trainer.max_steps", str(steps), "--threads", str(threads)),
        *("--trainer.val_check_interval", str(steps)),
        *more,
    ]
    subprocess.run(command, check=True)
    return json.loads((run / "summary.json").read_text())


def random_weights(run: Path, folder: Path) -> Path:
    """A model folder like that of a run, with weights at random."""
    import torch

    from triune.vision.model import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer.from_settings(VisionTransformer.read_settings(run / "model"))
    model.save_pretrained(folder)
    return folder


def judged(model: Path, train: Path, test: Path) -> dict[str, float]:
    """Accuracies on the test images, by the name of what gave them."""
    from triune.vision.data.module import ImageData
    from triune.vision.probe import probe

    found = probe(str(model), ImageData(root=str(train), test_root=str(test), val_fraction=1e-4), side="test")
    return {score.name: score.top1 for score in found.scores if score.top1 is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="cifar10-train.tar.gz")
    parser.add_argument("test", help="cifar10-test.tar.gz")
    parser.add_argument("--minutes", type=float, default=15, help="of the training (default: 15)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", type=int, default=1200, help="images of each class to train on (default: 1200)")
    parser.add_argument("--steps", type=int, help="optimizer steps, in the place of --minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extract(options.train, folder / "train", options.each)
        extract(options.test, folder / "test", None)
        steps = options.steps
        if steps is None:
            quick = ["--model.probe", "0", "--trainer.limit_val_batches", "1"]
            trial = pretrain(folder / "trial", folder / "train", TRIAL, options.threads, quick)
            steps = int(options.minutes * 60 / (trial["seconds"] / TRIAL) * 0.97)
        start = time.perf_counter()
        summary = pretrain(folder / "run", folder / "train", steps, options.threads, ["--model.probe", "0"])
        seconds = time.perf_counter() - start
        before = judged(random_weights(folder / "run", folder / "random"), folder / "train", folder / "test")
        after = judged(folder / "run", folder / "train", folder / "test")
    names = list(dict.fromkeys([*before, *after]))
    rows = [{"what": name, "random weights": before.get(name), "trained": after.get(name)} for name in names]
    print(table(rows))
    record(
        "masked_autoencoder", rows, steps=steps, images=10 * options.each, val_loss=summary["val_loss"],
        parameters=summary["parameters"], training_seconds=summary["seconds"], seconds_with_start=round(seconds, 1),
        threads=options.threads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
