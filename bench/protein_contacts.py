"""Contacts on the fixed split of 12,252 training and 200 test chains: long-range P@L by alignment depth, beside DCA.

    triune protein prepare SET --arrays chains.npz --split split.tsv --alignments msa-train.tar.gz --alignments
    msa-test.tar.gz
    python bench/protein_contacts.py SET --dca dca-test.tsv --seeds 1                       30 minutes on two cores
    python bench/protein_contacts.py SET --dca dca-test.tsv --config contacts-gpu --seeds 1       30 minutes on one GPU

`--runs DIR …` scores runs that exist instead of training. "unrelated" are the test chains without a training chain of
at least 30 % identity over half of the shorter one. DCA is scored on the chains it was run on (Neff of at least 10, at
most 200 residues), and so is the model in the column beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record, table

BINS = ((10, 50), (50, 100), (100, 300), (300, 1000), (1000, None))


def triune(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "triune", "protein", *words], check=True)


def scores(run: Path, only: list[str] | None = None) -> dict[str, float]:
    """Figures of the test set, or of some of its chains."""
    triune("test", str(run), *(["--data.only", json.dumps(only)] if only else []))
    return json.loads((run / "test.json").read_text())


def dca_by_bin(path: Path) -> dict[tuple[int, int | None], list[tuple[str, float]]]:
    """Chains and P@L of DCA in each bin of Neff."""
    rows = [row for row in csv.DictReader(path.open(), delimiter="\t") if row["long_P@L"]]
    return {
        (low, high): [
            (row["chain"], float(row["long_P@L"])) for row in rows if low <= float(row["neff"]) < (high or 1e9)
        ]
        for low, high in BINS
    }


def judge(run: Path, chains: Path, dca: Path | None) -> list[dict[str, Any]]:
    """Rows of the table for one run."""
    rows = list(csv.DictReader((chains / "chains.tsv").open(), delimiter="\t"))
    unrelated = [row["name"] for row in rows if row["split"] == "test" and float(row["relative"]) < 0.3]
    sets: list[tuple[str, list[str] | None, float | None]] = [("all 200", None, None)]
    sets.append((f"unrelated ({len(unrelated)})", unrelated, None))
    for (low, high), found in (dca_by_bin(dca) if dca else {}).items():
        if found:
            mean = statistics.mean(value for _, value in found)
            sets.append((f"Neff {low} to {high or '…'} ({len(found)})", [name for name, _ in found], mean))
    table_rows = []
    for name, only, baseline in sets:
        figures = scores(run, only)
        keys = (
            "long_p_at_l",
            "long_p_at_l_chance",
            "long_p_at_l_ceiling",
            "long_p_at_l2",
            "long_p_at_l5",
            "medium_p_at_l",
        )
        row = {"chains": name} | {key: figures[f"test_{key}"] for key in keys}
        table_rows.append(row | ({} if baseline is None else {"dca_long_p_at_l": baseline}))
    return table_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chains", type=Path, help="a prepared set")
    parser.add_argument("--dca", type=Path, help="dca-test.tsv")
    parser.add_argument("--config", default="contacts-cpu")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, nargs="+", help="score these instead of training")
    parser.add_argument("--options", default="", help="more options for `triune protein fit`")
    options = parser.parse_args()
    rows, trainings = [], []
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or [Path(temporary) / str(seed) for seed in range(options.seeds)]
        for seed, run in enumerate(runs):
            if not options.runs:
                seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
                words = ["--config", options.config, "--run", str(run), "--data.folder", str(options.chains)]
                triune("fit", *words, *seeds, *shlex.split(options.options))
            summary = json.loads((run / "summary.json").read_text())
            keys = ("seconds", "steps", "parameters", "device", "threads", "val_long_p_at_l", "seed")
            trainings.append({key: summary[key] for key in keys if key in summary})
            rows += [{"run": seed} | row for row in judge(run, options.chains, options.dca)]
    print(table(rows))
    record(f"protein_{options.config.replace('-', '_')}", rows, trainings=trainings)


if __name__ == "__main__":
    main()
