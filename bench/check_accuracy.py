"""What `triune check` says of a training beside what the training then shows: time of a step, whole time, peak memory.

    python bench/check_accuracy.py [--rounds 3] [--only NAME] [--clock wall]

A recipe of each task, shortened to a few dozen steps and one validation, in processes of their own, check and training
in turn. Figures are those that a person reads: the printed estimate, and summary.json. FLOPs are counted by one
function for both, and parameters must be equal. By default both read the time of the processor, of one thread, in the
place of the clock, so that other work on the machine counts for little; memory does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record, spread, table

CASES = {
    "vision digits": "vision fit --trainer.max_steps 100 --trainer.val_check_interval 100",
    "text default": "text fit --trainer.max_steps 30 --trainer.val_check_interval 30 --trainer.limit_val_batches 8",
    "protein demo": "protein fit --config demo --trainer.max_steps 40 --trainer.val_check_interval 40",
}
PROCESSOR = """
import sys, time
from triune.core.training.run import devices, probe, telemetry
devices.CLOCK = time.process_time
probe.Probe.__init__.__defaults__ = (time.process_time,)
telemetry.Telemetry.__init__.__defaults__ = (None, 3, time.process_time)
"""
START = """
import sys
from triune.cli import main
sys.exit(main(sys.argv[1:]))
"""
COMMON = "--threads 1 --trainer.accelerator cpu --trainer.log_every_n_steps 5"


def triune(words: list[str], clock: str) -> str:
    code = (PROCESSOR if clock == "processor" else "") + START
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "1000", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.stdout


def seconds(text: str) -> float:
    """Of "0:12" or "1:02:03"."""
    found = 0.0
    for part in text.split(":"):
        found = 60 * found + float(part)
    return found


def estimated(printed: str) -> dict[str, float]:
    """The figures in what `triune check` prints."""
    time = re.search(r"about ([\d:.]+): [\d,]+ steps of ([\d.e-]+) s", printed)
    memory = re.search(r"memory +about ([\d.]+) GB", printed)
    parameters = re.search(r"([\d,]+) parameters", printed)
    assert time and memory, printed
    return {
        "seconds": seconds(time[1]), "step": float(time[2]), "memory": float(memory[1]),
        **({"parameters": float(parameters[1].replace(",", ""))} if parameters else {}),
    }  # fmt: skip


def shown(run: Path) -> dict[str, float]:
    """The same figures of a run."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return {
        "seconds": summary["seconds"],
        "step": summary["tokens"] / summary["steps"] / summary["tokens_per_second"],
        "memory": summary["memory_gb"],
        "parameters": float(summary["parameters"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
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
            for turn in range(options.rounds):
                run = Path(folder) / f"{name.replace(' ', '-')}-{turn}"
                line = f"{words} {COMMON} --run {run}".split()
                said.append(estimated(triune(["check", *line], options.clock)))
                triune(line, options.clock)
                true.append(shown(run))
                print(name, said[-1], true[-1], flush=True)
            if "parameters" in said[0]:
                assert all(s["parameters"] == t["parameters"] for s, t in zip(said, true, strict=True))
            row: dict[str, Any] = {"training": name, "options": f"{words} {COMMON}"}
            for figure in ("step", "seconds", "memory"):
                row[figure] = spread([t[figure] for t in true])
                row[f"{figure}, check / run"] = spread([s[figure] / t[figure] for s, t in zip(said, true, strict=True)])
            rows.append(row)
            print(table(rows[-1:]), flush=True)
    record("check_accuracy", rows, rounds=options.rounds, clock=options.clock, load=os.getloadavg()[1])


if __name__ == "__main__":
    main()
