"""The first two steps of the ladder: one chain learned by heart, and the built-in chains in about three minutes.

    python bench/protein_learning.py --seeds 3

Both are what `triune protein fit` does; the first with the recipe `one-chain`, each time for another of the built-in
chains, named by `--data.only`. Seconds are those of the whole training with its validations; with one thread they are
of one core.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record, spread, table

from triune.protein.data.store import builtin_set

FIGURES = ("long_p_at_l", "long_p_at_l5", "medium_p_at_l")


def train(*words: str) -> dict[str, Any]:
    """Figures of one run, each beside chance and ceiling."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([sys.executable, "-m", "triune", "protein", "fit", "--run", str(run), *words], check=True)
        summary = json.loads((run / "summary.json").read_text())
    found = {key: summary[key] for key in ("seconds", "parameters", "threads") if key in summary}
    for figure in FIGURES:
        value, chance, ceiling = (summary[f"val_{figure}{part}"] for part in ("", "_chance", "_ceiling"))
        found |= {figure: value, f"{figure}_times_chance": value / chance, f"{figure}_of_ceiling": value / ceiling}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["one-chain", "built-in"], help="one of the two steps")
    parser.add_argument("--options", default="", help="more options for `triune protein fit`")
    options = parser.parse_args()
    more, rows, runs = shlex.split(options.options), [], []
    chains = builtin_set()
    long = chains.names[chains.lengths >= 80].tolist()
    for step in [options.only] if options.only else ["one-chain", "built-in"]:
        found = []
        for seed in range(options.seeds):
            words = ["--seed_everything", str(seed), "--data.seed", str(seed), *more]
            if step == "one-chain":
                words = ["--config", "one-chain", "--data.only", json.dumps([long[seed]]), *words]
            found.append({"step": step, "seed": seed} | train(*words))
            print(json.dumps(found[-1]), flush=True)
        runs += found
        numbers = [key for key in found[0] if key not in ("step", "seed")]
        rows += [{"step": step, "figure": key, **spread([run[key] for run in found])} for key in numbers]
    print(table(rows))
    name = "protein_learning" + (f"_{options.only.replace('-', '_')}" if options.only else "")
    record(name, rows, runs=runs, options=options.options)


if __name__ == "__main__":
    main()
