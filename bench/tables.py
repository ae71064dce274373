"""Reading, coding and splitting a table of many rows, and search among vectors: seconds of the processor, peak memory.

python bench/tables.py [ROWS]

Each table is read in a process of its own, whose peak is what the system counted. Search is timed in rounds in which
ours and scikit-learn's brute force take turns; both are exact.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import interleaved, record, spread, table

PART = 10_000


def write(path: Path, shape: str, rows: int) -> None:
    """A table of `rows` rows: equal ones ("x,0"), or different names with different numbers."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("x,y\n")
        for start in range(0, rows, PART):
            if shape == "equal rows":
                file.write("".join(f"x,{i % 2}\n" for i in range(PART)))
            else:
                file.writelines(f"images/{start + i}.png,{y:.4f}\n" for i, y in enumerate(rng.random(PART) * 100))


def measure(path: Path) -> dict[str, Any]:
    """Seconds and peak memory of each step, in this process."""
    from triune.core.labels.split import split, strata
    from triune.core.labels.table import read_table
    from triune.core.labels.targets import infer

    found: dict[str, Any] = {}

    def note(name: str, start: float) -> None:
        found[f"{name}_seconds"] = round(time.process_time() - start, 2)
        found[f"{name}_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    start = time.process_time()
    read = read_table(path, ["x", "y"])
    note("read", start)
    start = time.process_time()
    target = infer(read, ["y"])
    note("infer", start)
    start = time.process_time()
    equal = read.columns["x"][0] == read.columns["x"][-1]
    sides = split(len(read), inputs=None if equal else read.columns["x"], labels=strata(target.kind, target.values))
    note("split", start)
    return {**found, "kind": target.kind, "rows": len(read), "held_out": len(sides["val"])}


def nearest() -> list[dict[str, Any]]:
    """Queries a second among 50,000 vectors of 384 numbers."""
    from sklearn.neighbors import NearestNeighbors

    from triune.core.embeddings.nearest import search

    rng = np.random.default_rng(0)
    index = rng.standard_normal((50_000, 384)).astype(np.float32)
    queries = rng.standard_normal((500, 384)).astype(np.float32)
    other = NearestNeighbors(n_neighbors=10, algorithm="brute", metric="cosine").fit(index)
    found = search(queries, index, 10)
    same = float((np.sort(found.rows) == np.sort(other.kneighbors(queries)[1])).mean())
    actions = {
        "triune": lambda: search(queries, index, 10),
        "scikit-learn": lambda: other.kneighbors(queries),
    }
    seconds = interleaved(actions, 5, 1)
    return [
        {"search": name, **{key: round(s, 3) for key, s in spread(values).items()}, "unit": "s for 500 queries",
         "queries_per_second_at_best": round(500 / min(values)), "same_rows": same}
        for name, values in seconds.items()
    ]  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
        return
    rows = int((sys.argv[1:] or ["10000000"])[0])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in ("equal rows", "different rows"):
            path = Path(folder, "table.csv")
            write(path, shape, rows)
            done = subprocess.run(
                [sys.executable, __file__, "--one", path], stdout=subprocess.PIPE, check=True, text=True
            )
            found.append({"table": shape, "file_mb": round(path.stat().st_size / 1e6), **json.loads(done.stdout)})
    print(table(found))
    speeds = nearest()
    print(table(speeds))
    record("tables", found, search=speeds, seconds="of the processor, one thread")


if __name__ == "__main__":
    main()
