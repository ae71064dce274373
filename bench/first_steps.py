"""The first 20 steps of every recipe, as one hash of the weights each: whether a change of the code changed a result.

    python bench/first_steps.py OUT.json [--protein SET] [--only NAME …]

Run before and after a change on the same machine and compare the two files: equal hashes mean that every weight and
every figure of the validation is equal to the last bit. Batches are small, so that the recipes for a GPU run on a CPU
too; images are noise of a fixed seed, texts are Python's standard library. `--protein` is a set made by `triune protein
prepare` for the recipes that need alignments; without it they are left out and named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

STEPS = [
    "--trainer.max_steps", "20", "--trainer.max_epochs", "-1", "--trainer.val_check_interval", "20",
    "--trainer.check_val_every_n_epoch", "null", "--trainer.limit_val_batches", "3", "--trainer.accelerator", "cpu",
    "--trainer.precision", "32-true", "--model.compile", "false", "--threads", "1",
]  # fmt: skip
SMALL = ["--trainer.accumulate_grad_batches", "1", "--data.batch_size", "2"]
IMAGES = {
    "cifar10-cpu": 10, "cifar10-gpu": 10, "fashion-mnist-cpu": 10, "fashion-mnist-gpu": 10, "deit3-s16": 4,
    "vit-s16-modern": 4, "vit-s16-plain": 4,
}  # fmt: skip
"""Recipes of images that need a folder, and how many classes it has."""


def noise(folder: Path, classes: int, channels: int) -> Path:
    """A folder of images of noise, 16 a class, 32 x 32."""
    if folder.exists():
        return folder
    random = np.random.default_rng(0)
    shape = (32, 32, 3) if channels == 3 else (28, 28)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(16):
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(
                folder / f"class{label}" / f"{index}.png"
            )
    return folder


def commands(work: Path, chains: str | None) -> dict[str, list[str]]:
    """The command of each recipe, less --run."""
    python = str(Path(json.__file__).parent)  # fourteen files of the standard library are enough
    text = ["--data.files", python]
    found = {f"text {name}": ["text", "fit", "--config", name, *text] for name in ("default", "demo")}
    for name in ("shakespeare-char-cpu", "shakespeare-char-gpu", "gpt2-124m"):
        small = SMALL if name != "shakespeare-char-cpu" else []
        small = [*small, "--data.context", "64"] if name == "gpt2-124m" else small
        found[f"text {name}"] = ["text", "fit", "--config", name, *text, *small]
    found["text finetune"] = ["text", "fit", "--model.pretrained", f"{work}/text default", *text]
    found["text lora"] = [*found["text finetune"], "--model.lora.rank", "4"]
    found["vision default"] = ["vision", "fit"]
    found["vision demo"] = ["vision", "fit", "--config", "demo"]
    for name, classes in IMAGES.items():
        root = noise(work / f"images {name}", classes, 1 if name.startswith("fashion") else 3)
        found[f"vision {name}"] = ["vision", "fit", "--config", name, "--data.root", str(root), *SMALL[:2]]
        found[f"vision {name}"] += ["--data.batch_size", "4", "--data.val_fraction", "0.25"]
    found["vision finetune"] = ["vision", "fit", "--model.pretrained", f"{work}/vision default"]
    found["protein default"] = ["protein", "fit"]
    found["protein demo"] = ["protein", "fit", "--config", "demo"]
    found["protein one-chain"] = ["protein", "fit", "--config", "one-chain"]
    if chains:
        for name in ("contacts-cpu", "contacts-gpu"):
            found[f"protein {name}"] = ["protein", "fit", "--config", name, "--data.folder", chains, *SMALL]
    found["protein pretrain"] = ["protein", "pretrain"]
    found["protein pretrain-finetune"] = ["protein", "pretrain", "--model.pretrained", f"{work}/protein pretrain"]
    return found


def digest(run: Path) -> str:
    """SHA-256 of all tensors of the last checkpoint, and of the figures of the validation."""
    content = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    found = hashlib.sha256()
    for name, tensor in sorted(content["state_dict"].items()):
        found.update(name.encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    summary = json.loads((run / "summary.json").read_text())
    figures = {k: v for k, v in summary.items() if k.startswith("val_")}
    found.update(json.dumps(figures, sort_keys=True).encode())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="written after each recipe; what it holds already is not run again")
    parser.add_argument("--protein", help="a set with alignments")
    parser.add_argument("--only", nargs="*", default=[], help="names as in the file that is written")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    found: dict[str, str] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        for name, command in commands(work, options.protein).items():
            if (options.only and name not in options.only) or name in found:
                continue
            line = [sys.executable, "-m", "triune", *command, "--run", f"{work}/{name}", *STEPS]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            found[name] = digest(work / name) if done.returncode == 0 else (done.stderr.strip() or "?").splitlines()[-1]
            print(f"{name:32} {found[name][:150]}", flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    if not options.protein:
        print("Left out, because they need --protein SET: contacts-cpu, contacts-gpu")


if __name__ == "__main__":
    main()
