"""Mean-field DCA beside the published figures and, where it is installed, `freecontact`.

    python bench/protein_dca.py SHARED/protein [--every 4] [--freecontact 3]

SHARED/protein holds chains.npz, msa-test.tar.gz and dca-test.tsv. Prints, per chain and on average, Neff and long-range
precision here and as published, then the correlation of all scores with those of freecontact (which takes 10 s a
chain).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import torch

from triune.protein.data.prepare.sources import from_arrays
from triune.protein.predict.dca import couplings, mean_field_dca, scores_of
from triune.protein.predict.metrics import NEFF_BINS, ContactMetrics, contact_targets
from triune.protein.read.alignment import parse_alignment
from triune.protein.read.alphabet import GAP, UNKNOWN, decode
from triune.protein.read.profile import informative_rows, sequence_weights

COLUMNS = {"long_p_at_l": "long_P@L", "long_p_at_l2": "long_P@L/2", "long_p_at_l5": "long_P@L/5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th chain")
    parser.add_argument("--freecontact", type=int, default=0, help="chains to compare with freecontact, shortest first")
    args = parser.parse_args()
    with (args.folder / "dca-test.tsv").open(newline="") as file:
        published = [row for row in csv.DictReader(file, delimiter="\t") if row["long_P@L"]][:: args.every]
    chains = {found.entry.name: found.entry for found in from_arrays(args.folder / "chains.npz")}
    alignments = {}
    with tarfile.open(args.folder / "msa-test.tar.gz") as archive:
        for row in published:
            stream = archive.extractfile(f"{row['chain']}.a3m")
            assert stream is not None
            alignments[row["chain"]] = parse_alignment(row["chain"] + ".a3m", stream.read()).tokens
    compare_published(published, chains, alignments)
    if args.freecontact and shutil.which("freecontact"):
        for name in sorted(alignments, key=lambda name: alignments[name].shape[1])[: args.freecontact]:
            compare_freecontact(name, alignments[name])


def compare_published(published: list[dict[str, str]], chains: dict, alignments: dict[str, np.ndarray]) -> None:
    """Prints each chain and the means by Neff bin."""
    ours, neffs, seconds = ContactMetrics(), [], 0.0
    for row in published:
        cb = torch.from_numpy(chains[row["chain"]].cb)
        targets = contact_targets(cb, torch.ones(len(cb), dtype=torch.bool))[None]
        start = time.perf_counter()
        scores, neff = mean_field_dca(alignments[row["chain"]])
        seconds += time.perf_counter() - start
        ours.update(scores[None], targets, torch.tensor([len(cb)]), torch.tensor([neff]), [row["chain"]])
        neffs.append(neff)
        found = {key: float(ours.values[-1, ours.keys.index(key)]) for key in COLUMNS}
        cells = "  ".join(f"{found[key]:.4f} {float(row[column]):.4f}" for key, column in COLUMNS.items())
        print(f"{row['chain']:12} Neff {neff:9.4f} {float(row['neff']):9.4f}  P@L, /2, /5: {cells}", flush=True)
    values = ours.values[:, [ours.keys.index(key) for key in COLUMNS]].double().numpy()
    theirs = np.array([[float(row[column]) for column in COLUMNS.values()] for row in published])
    depth = np.array([float(row["neff"]) for row in published])
    print(f"\n{len(published)} chains, {seconds / len(published):.2f} s each")
    print(f"largest difference of Neff {np.abs(depth - neffs).max():.4f}")
    print(f"{'Neff':>12}  chains  P@L here published   L/2 here published   L/5 here published")
    for lower, upper in [(0.0, np.inf), *itertools.pairwise(NEFF_BINS)]:
        chosen = (depth >= lower) & (depth < upper)
        if chosen.any():
            pairs = "   ".join(f"{a:8.4f} {b:9.4f}" for a, b in zip(values[chosen].mean(0), theirs[chosen].mean(0)))
            print(f"{lower:5.0f} - {upper:4.0f}  {chosen.sum():6}  {pairs}")


def compare_freecontact(name: str, tokens: np.ndarray) -> None:
    """Prints the correlation of all scores with `freecontact --parprof evfold`."""
    rows = informative_rows(torch.from_numpy(tokens)).numpy()
    rows = np.where(rows == UNKNOWN, GAP, rows)
    command = ["freecontact", "--parprof", "evfold", "--clustpc", "80", "--apply-gapth", "0", "--quiet", "1", "-a", "1"]
    lines = "".join(f"{decode(row)}\n" for row in rows)
    start = time.perf_counter()
    printed = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    theirs_took = time.perf_counter() - start
    start = time.perf_counter()
    scores = scores_of(couplings(rows, sequence_weights(rows)), with_gap=True)
    ours_took = time.perf_counter() - start
    pairs = [line.split() for line in printed.splitlines()]
    ours = [float(scores[int(pair[0]) - 1, int(pair[2]) - 1]) for pair in pairs]
    theirs = [float(pair[5]) for pair in pairs]
    print(
        f"freecontact {name}: {tokens.shape[1]} columns, {len(rows)} rows, correlation "
        f"{np.corrcoef(ours, theirs)[0, 1]:.9f}; {ours_took:.2f} s here, {theirs_took:.2f} s there"
    )


if __name__ == "__main__":
    main()
