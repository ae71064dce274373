"""`python -m triune.bench.kills [TRAINING …] [--points 60] [--seed 0] [--keep FOLDER]`: says how many of the killed
trainings ended as if nothing had happened, and what differs in the others. `--record` also writes `results/kills.json`,
where the rows of other trainings stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..common import RESULTS, commit, record
from .kill import Killed, Point
from .server import Server
from .trainings import TRAININGS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m triune.bench.kills")
    parser.add_argument("trainings", nargs="*", default=list(TRAININGS), help=", ".join(TRAININGS))
    parser.add_argument("--points", type=int, default=60, help="moments at which each is killed")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--keep", type=Path, help="a folder where the runs that differ stay")
    parser.add_argument("--record", action="store_true", help="write results/kills.json")
    chosen, failed = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as temporary, Server(1) as first, Server(2) as second:
        for name in chosen.trainings:
            place, began = (chosen.keep or Path(temporary)) / name, time.monotonic()
            place.mkdir(parents=True)
            killed, good = Killed(name, place, (first, second)), 0
            points = killed.points(chosen.points, chosen.seed)
            for point in points:
                try:
                    found = killed.run(point)
                except AssertionError as error:
                    found = [str(error)]
                good += not found
                if found:
                    print(f"{name}, {point}: {'; '.join(found[:5])}", flush=True)
            failed += chosen.points - good
            seconds = time.monotonic() - began
            print(f"{name}: {good} of {chosen.points} equal bit by bit, {len(killed.names):,} moments, {seconds:.0f} s")
            sys.stdout.flush()
            if chosen.record:
                _record(name, chosen.seed, points, good, len(killed.names))
    return min(failed, 1)


def _record(name: str, seed: int, points: list[Point], good: int, moments: int) -> None:
    """Adds the row of a training to the results, in the place of its former one."""
    row: dict[str, Any] = {"training": name, "seed": seed, "points": len(points), "equal": good, "moments": moments}
    row |= {
        "phases": dict(Counter(point.phase for point in points)),
        "signals": dict(Counter(point.what for point in points)),
        "resumed killed too": sum(point.again > 0 for point in points),
        "commit": commit(),
    }
    path = RESULTS / "kills.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [*(other for other in before if other["training"] != name), row]
    total, equal = (sum(r[key] for r in rows) for key in ("points", "equal"))
    command = f"python -m triune.bench.kills --points {len(points)} --seed {seed} --record"
    record("kills", rows, command=command, points=total, equal=equal)


if __name__ == "__main__":
    sys.exit(main())
