"""`python -m triune.bench.kills [TRAINING …] [--points 60] [--seed 0] [--keep FOLDER]`: says how many of the killed
trainings ended as if nothing had happened, and what differs in the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .kill import Killed
from .server import Server
from .trainings import TRAININGS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m triune.bench.kills")
    parser.add_argument("trainings", nargs="*", default=list(TRAININGS), help=", ".join(TRAININGS))
    parser.add_argument("--points", type=int, default=60, help="moments at which each is killed")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--keep", type=Path, help="a folder where the runs that differ stay")
    chosen, failed = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as temporary, Server(1) as first, Server(2) as second:
        for name in chosen.trainings:
            place, began = (chosen.keep or Path(temporary)) / name, time.monotonic()
            place.mkdir(parents=True)
            killed, good = Killed(name, place, (first, second)), 0
            for point in killed.points(chosen.points, chosen.seed):
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
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
