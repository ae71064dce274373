"""What every mixer remembers: `triune recall` row by row, kept in `results/recall.json` and drawn for `docs/mixers.md`.

    python bench/recall.py                           all rows that are not there yet; stopped, it goes on another time
    python bench/recall.py --only mqar --seeds 3     rows whose task, mixer and size hold this text
    python bench/recall.py --draw                    the pictures alone

`seconds` are those of the clock, on a machine that may have had other work, `processor_seconds` of the process; each
row names its commit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, commit, record

from triune.recall.command import EVERY, draw, sentence, table
from triune.recall.train import recall

DOCS = Path(__file__).parent.parent / "docs"
KNOWN = [
    {"task": "mqar", "mixer": "softmax"},
    {"task": "mqar", "mixer": "window:16"},
    {"task": "mqar", "mixer": "gru"},
    {"task": "mqar", "mixer": "gated_delta", "pairs": 4},
    {"task": "mqar", "mixer": "ssd", "state": 8},
    {"task": "mqar", "mixer": "MMMA", "state": 8},
    {"task": "lag", "mixer": "softmax"},
    {"task": "needle", "mixer": "window:32"},
    {"task": "needle", "mixer": "titans:gate"},
]
"""The rows of which something was asked."""
MORE = [{"task": task, "mixer": mixer} for task in ("induction", "copy", "needle", "mqar") for mixer in EVERY]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["mixer"], row.get("pairs"), row.get("state"), row["seed"]


def held(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows that hold this text, such as 'needle titans'")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--known", action="store_true", help="only the rows of which something was asked")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = RESULTS / "recall.json"
    rows = held(file)
    jobs = [job | {"seed": seed} for job in KNOWN + ([] if options.known else MORE) for seed in range(options.seeds)]
    for job in [] if options.draw else jobs:
        if options.only not in " ".join(str(x) for x in key(job)):
            continue
        if list(key(job)) in [row["job"] for row in rows]:
            continue
        start = time.process_time()
        row = recall(**job)
        row |= {"processor_seconds": round(time.process_time() - start, 1)}
        row |= {"job": list(key(job)), "commit": commit(), "date": datetime.date.today().isoformat()}
        print(sentence(row), flush=True)
        rows = held(file) + [row]  # another process may have written meanwhile
        record("recall", rows, threads=options.threads)
    table(rows)
    for task in dict.fromkeys(row["task"] for row in rows):
        draw([row for row in rows if row["task"] == task], DOCS / f"recall-{task}.png")


if __name__ == "__main__":
    main()
