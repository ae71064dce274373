"""Make `protein/builtin/chains.npz` from the reduced promod3 data (see `protein/builtin/README.md` for its licence).

    python bench/make_protein_builtin.py CHAINS.npz SPLIT.tsv

CHAINS.npz and SPLIT.tsv are those of the shared protein data. Only chains of its training split are taken, so that its
validation and test chains stay unseen by whatever is trained on the built-in set.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from triune.protein.data.prepare.clusters import separate

SPARE = 10
OUT = Path(__file__).parents[1] / "protein" / "builtin" / "chains.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chains", type=Path)
    parser.add_argument("split", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--val", type=int, default=60)
    parser.add_argument("--shortest", type=int, default=50)
    parser.add_argument("--longest", type=int, default=128)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    data = np.load(args.chains)
    names, lengths = data["name"], data["length"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    with args.split.open(newline="") as file:
        rows = {row["chain"]: row for row in csv.DictReader(file, delimiter="\t")}
    by_cluster: dict[str, list[int]] = {}
    for number, (name, length) in enumerate(zip(names.tolist(), lengths.tolist())):
        row = rows[name]
        if row["split"] == "train" and args.shortest <= length <= args.longest:
            by_cluster.setdefault(row["cluster"], []).append(number)
    # A few to spare: clusters alone do not keep all relatives apart.
    clusters = rng.permutation(sorted(by_cluster))[: args.train + args.val + SPARE]
    drawn = [int(rng.choice(by_cluster[cluster])) for cluster in clusters]
    sequences = [data["sequence"][starts[chain] : starts[chain + 1]].tobytes().decode() for chain in drawn]
    side = separate(sequences, np.array(["train"] * args.train + ["val"] * (args.val + SPARE)))
    chosen = drawn[: args.train] + [drawn[number] for number in np.flatnonzero(side == "val")[: args.val]]
    split = np.array(["train"] * args.train + ["val"] * args.val)
    residues = np.concatenate([np.arange(starts[chain], starts[chain + 1]) for chain in chosen])
    atoms = data["backbone"][residues].astype(np.int64).reshape(-1, 3)
    steps = np.diff(atoms, axis=0, prepend=0)
    assert abs(steps).max() < 1 << 15
    np.savez_compressed(
        args.out,
        name=names[chosen],
        split=split,
        length=lengths[chosen].astype(np.int32),
        sequence=data["sequence"][residues],
        steps=steps.astype(np.int16).reshape(-1, 3, 3),
        profile=data["profile"][residues],
    )
    print(f"{args.out}: {len(chosen)} chains, {len(residues):,} residues, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
