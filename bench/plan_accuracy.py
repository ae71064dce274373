"""What `triune plan` says of trainings on this machine beside what these take: memory of a process, time of a step.

    python bench/plan_accuracy.py TEXT_FILE [--only NAME]

Each training runs four steps and one validation, in one or two processes of one thread each; what is true is the
largest memory that the system has given to one of its processes, from its start to its end. `beside` is the memory
beside libraries and data, which both measure and which would flatter the comparison. Other work on the machine changes
the time of a step, but no memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, record, table

ENDS = "--trainer.max_steps 4 --trainer.val_check_interval 4 --trainer.limit_val_batches 1 --threads 1"
TEXT = "text fit --data.files TEXT --data.cache CACHE --data.tokenizer bytes"
LARGE = (
    f"{TEXT} --data.context 256 --data.batch_size 16 --model.transformer.dim 384 --model.transformer.depth 6"
    " --model.transformer.heads 6"
)
DEEP = (
    f"{TEXT} --data.context 64 --data.batch_size 4 --model.transformer.dim 768 --model.transformer.depth 8"
    " --model.transformer.heads 12"
)
CASES: dict[str, tuple[str, int]] = {
    "text, 2 x 64": (
        f"{TEXT} --data.context 64 --data.batch_size 8 --model.transformer.dim 64 --model.transformer.depth 2"
        " --model.transformer.heads 2", 1,
    ),
    "text, 6 x 384": (LARGE, 1),
    "text, 6 x 384, checkpointing": (f"{LARGE} --model.checkpointing true", 1),
    "text, 6 x 384, fsdp2": (f"{LARGE} --trainer.strategy fsdp2", 2),
    "text, 8 x 768": (DEEP, 1),
    "text, 8 x 768, AdamW, averages": (f"{DEEP} --model.optimizer.name adamw --model.ema 0.9", 1),
    "text, 8 x 768, ddp": (f"{DEEP} --trainer.strategy ddp", 2),
    "text, 8 x 768, fsdp2": (f"{DEEP} --trainer.strategy fsdp2", 2),
    "text, 8 x 768, fsdp2, checkpointing": (f"{DEEP} --trainer.strategy fsdp2 --model.checkpointing true", 2),
    "text, 8 x 768, LoRA": (
        "text fit --data.files TEXT --data.cache CACHE --data.context 64 --data.batch_size 4 --model.pretrained START"
        " --model.lora.rank 8", 1,
    ),
    "text, 8 x 768, LoRA, fsdp2": (
        "text fit --data.files TEXT --data.cache CACHE --data.context 64 --data.batch_size 4 --model.pretrained START"
        " --model.lora.rank 8 --trainer.strategy fsdp2", 2,
    ),
    "images, 6 x 192": (
        "vision fit --data.batch_size 64 --model.transformer.dim 192 --model.transformer.depth 6"
        " --model.transformer.heads 3", 1,
    ),
    "images, 8 x 384": (
        "vision fit --data.batch_size 128 --model.transformer.dim 384 --model.transformer.depth 8"
        " --model.transformer.heads 6", 1,
    ),
    "images, 8 x 384, fsdp2": (
        "vision fit --data.batch_size 128 --model.transformer.dim 384 --model.transformer.depth 8"
        " --model.transformer.heads 6 --trainer.strategy fsdp2", 2,
    ),
    "masked images, 6 x 192": (
        "vision pretrain --data.batch_size 64 --model.transformer.dim 192 --model.transformer.depth 6"
        " --model.transformer.heads 3", 1,
    ),
    "contacts, demo": ("protein fit --config demo", 1),
    "contacts, crop 64": ("protein fit --config demo --data.crop 64 --data.batch_size 4", 1),
    "contacts, crop 64, fsdp2": (
        "protein fit --config demo --data.crop 64 --data.batch_size 4 --trainer.strategy fsdp2", 2
    ),
    "sequences, 4 x 128": (
        "protein pretrain --data.context 128 --data.batch_size 16 --model.size null --model.transformer.dim 128"
        " --model.transformer.depth 4 --model.transformer.heads 4", 1,
    ),
}  # fmt: skip
"""Words behind `triune`, and processes."""
UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6}


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"COLUMNS": "1000", "OMP_NUM_THREADS": "1"} | more


def planned(words: list[str], ranks: int) -> dict[str, float]:
    """The figures in what `triune plan` prints, in bytes and seconds."""
    command = [sys.executable, "-m", "triune", "plan", *words, "--devices", f"{ranks}xcpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    number, found = r"([\d.e+]+) (TB|GB|MB|kB|B|s|ms|µs)", {}
    for name, pattern in (("step", rf"step +{number} ="), ("memory", rf"memory +{number} a device"),
                          ("process", rf"process +{number} =")):  # fmt: skip
        match = re.search(pattern, done.stdout)
        assert match, done.stdout
        found[name] = float(match[1]) * UNITS[match[2]]
    return found


def trained(words: list[str], ranks: int, folder: Path) -> dict[str, float]:
    """What the training takes: bytes of its largest process, seconds of a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "triune", *words, "--trainer.accelerator", "cpu", "--run", str(folder / "run")]
    started = []
    with (folder / "printed").open("w") as printed:
        for rank in range(ranks):
            names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
            own = {name: str(value) for name, value in names.items()} if ranks > 1 else {}
            started.append(subprocess.Popen(command, env=environment(**own), stdout=printed, stderr=printed))
        used = []
        for process in started:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            used.append(usage.ru_maxrss * 1024.0)
    assert all(process.returncode == 0 for process in started), (folder / "printed").read_text()[-3000:]
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    shutil.rmtree(folder / "run")
    seconds = next(summary[key] for key in summary if key.startswith("seconds")) / summary["steps"]
    return {"memory": max(used), "step": seconds}


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, and those of an earlier call for other trainings, in the order of `CASES`."""
    file = RESULTS / "plan_accuracy.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    found = {row["training"]: row for row in [*before, *rows]}
    return [found[name] for name in CASES if name in found]


def make_start(folder: Path) -> None:
    """A language model to fine-tune, as large as the deep one that is trained from scratch."""
    import torch

    from triune.core.config import TransformerConfig
    from triune.text.model import LanguageModel, LanguageModelConfig
    from triune.text.tokenizer import Tokenizer

    torch.manual_seed(0)
    size = TransformerConfig(dim=768, depth=8, heads=12, context=64, causal=True)
    LanguageModel(LanguageModelConfig(vocab_size=257, transformer=size)).save_pretrained(folder)
    Tokenizer.bytes().save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--only", default="", help="the name of one training; the rows of others stay")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what this one has used would count for those that it starts.
        start = multiprocessing.get_context("spawn").Process(target=make_start, args=(folder / "start",))
        start.start()
        start.join()
        for training, (words, ranks) in CASES.items():
            if options.only not in (training, ""):
                continue
            line = f"{words} {ENDS}".replace("TEXT", str(options.text.absolute())).replace("CACHE", f"{name}/cache")
            line = line.replace("START", f"{name}/start")
            said, true = planned(line.split(), ranks), trained(line.split(), ranks, folder)
            beside = (said["memory"] - said["process"]) / max(true["memory"] - said["process"], 1e6)
            rows.append({
                "training": training, "processes": ranks, "memory, GB": round(true["memory"] / 1e9, 3),
                "memory, plan / run": round(said["memory"] / true["memory"], 3),
                "beside, plan / run": round(beside, 3), "step, plan / run": round(said["step"] / true["step"], 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
            record("plan_accuracy", kept(rows), load=os.getloadavg()[1])
    print(table(rows))


if __name__ == "__main__":
    main()
