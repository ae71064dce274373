"""What `triune plan` says of trainings on this machine beside what these take: time of a step, and peak memory.

    python bench/plan_accuracy.py TEXT_FILE [--rounds 2] [--only NAME] [--clock wall]

Several sizes of each task, one thread. `triune check`, which runs real steps, gives what is true, in turn with the
plan, which runs none. By default it reads the time of the processor, so that other work on the machine counts for
little. `beside` is the memory beside libraries and data, which both measure and which would flatter the comparison.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from check_accuracy import COMMON, estimated, triune
from common import record, spread, table

ENDS = "--trainer.max_steps 1000 --trainer.val_check_interval 1000 --trainer.limit_val_batches 1"
TEXT = "text fit --data.files TEXT --data.cache CACHE --data.tokenizer bytes"
CASES = {
    "text, 2 x 64": f"{TEXT} --data.context 64 --data.batch_size 8 --model.transformer.dim 64"
    " --model.transformer.depth 2 --model.transformer.heads 2",
    "text, 4 x 128": f"{TEXT} --data.context 128 --data.batch_size 16 --model.transformer.dim 128"
    " --model.transformer.depth 4 --model.transformer.heads 4",
    "text, 6 x 384": f"{TEXT} --data.context 256 --data.batch_size 16 --model.transformer.dim 384"
    " --model.transformer.depth 6 --model.transformer.heads 6",
    "text, 6 x 384, checkpointing": f"{TEXT} --data.context 256 --data.batch_size 16 --model.transformer.dim 384"
    " --model.transformer.depth 6 --model.transformer.heads 6 --model.checkpointing true",
    "images, 2 x 64": "vision fit --data.batch_size 32 --model.transformer.dim 64 --model.transformer.depth 2"
    " --model.transformer.heads 2",
    "images, 6 x 192": "vision fit --data.batch_size 64 --model.transformer.dim 192 --model.transformer.depth 6"
    " --model.transformer.heads 3",
    "images, 8 x 384": "vision fit --data.batch_size 128 --model.transformer.dim 384 --model.transformer.depth 8"
    " --model.transformer.heads 6",
    "contacts, demo": "protein fit --config demo",
    "contacts, crop 64": "protein fit --config demo --data.crop 64 --data.batch_size 4",
    "proteins, 4 x 128": "protein pretrain --data.context 128 --data.batch_size 16 --model.transformer.dim 128"
    " --model.transformer.depth 4 --model.transformer.heads 4",
}
UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6}


def planned(printed: str) -> dict[str, float]:
    """The figures in what `triune plan` prints."""
    number = r"([\d.e+]+) (TB|GB|MB|kB|B|s|ms|µs)"
    found = {}
    for name, pattern in (("step", rf"step +{number} ="), ("memory", rf"memory +{number} a device"),
                          ("process", rf"process +{number} =")):  # fmt: skip
        match = re.search(pattern, printed)
        assert match, printed
        found[name] = float(match[1]) * UNITS[match[2]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--clock", choices=("processor", "wall"), default="processor")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, words in CASES.items():
            if options.only not in name:
                continue
            said: list[dict[str, float]] = []
            true: list[dict[str, float]] = []
            for _ in range(options.rounds):
                line = f"{words} {COMMON} {ENDS}".replace("TEXT", str(options.text.absolute())).replace("CACHE", folder)
                said.append(planned(triune(["plan", *line.split()], options.clock)))
                true.append(estimated(triune(["check", *line.split()], options.clock)))
                print(name, said[-1], true[-1], flush=True)
            pairs = list(zip(said, true, strict=True))
            row: dict[str, Any] = {"training": name}
            row["step, s"] = spread([t["step"] for t in true])
            row["step, plan / run"] = spread([s["step"] / t["step"] for s, t in pairs])
            row["memory, GB"] = spread([t["memory"] for t in true])
            row["memory, plan / run"] = spread([s["memory"] / t["memory"] / 1e9 for s, t in pairs])
            beside = [(s["memory"] - s["process"]) / max(t["memory"] * 1e9 - s["process"], 1e6) for s, t in pairs]
            row["beside, plan / run"] = spread(beside)
            rows.append(row)
            print(table(rows[-1:]), flush=True)
    if not options.only:
        record("plan_accuracy", rows, rounds=options.rounds, clock=options.clock, load=os.getloadavg()[1])
    print(table(rows))


if __name__ == "__main__":
    main()
