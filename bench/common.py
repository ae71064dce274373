"""What all measurements share: how a result is recorded, and how two things are timed fairly."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit measured, with `+` when the working tree differs from it."""
    here = Path(__file__).parent
    git = lambda *words: subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()  # noqa: E731
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def device_name() -> str:
    """The GPU, or the CPU and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{model[0]}, {len(model)} cores" if model else platform.processor()


def record(name: str, rows: list[dict[str, Any]], **notes: Any) -> Path:
    """Writes `results/NAME.json` with the figures and all that is needed to repeat them."""
    import importlib.metadata as metadata

    versions = {}
    for package in ("torch", "lightning", "transformers", "x-transformers", "timm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    header = {
        # Where the data lies on this machine means nothing on another.
        "command": " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *(Path(w).name for w in sys.argv[1:])]),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "python": platform.python_version(),
        "versions": versions,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**header, **notes, "rows": rows}, indent=1) + "\n")
    print(f"Written: {path}")
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    show = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def interleaved(
    actions: dict[str, Callable[[], Any]], rounds: int, repeats: int, sync: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds per call of each action, one figure a round. The actions take turns, so that all see the same machine;
    where others work on it, `time.process_time` with one thread leaves out their turns.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        for _ in range(max(2, repeats // 4)):
            action()
    for turn in range(rounds):
        order = list(actions) if turn % 2 == 0 else list(reversed(actions))
        for name in order:
            if sync:
                torch.cuda.synchronize()
            start = clock()
            for _ in range(repeats):
                actions[name]()
            if sync:
                torch.cuda.synchronize()
            seconds[name].append((clock() - start) / repeats)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
