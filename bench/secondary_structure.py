"""A table of secondary structure in three classes, from the backbones of `protein/chains.npz`.

    python bench/secondary_structure.py SHARED_DATA FOLDER [--train 2000] [--val 200]

writes FOLDER/table.csv (chain, alignment, split, structure, exposure) and the alignments it names. The rule is that of
DSSP (Kabsch and Sander 1983): hydrogen bonds of N-H···O=C with an energy below -0.5 kcal/mol, O and H placed by the
geometry of the peptide, as the chains have N, CA and C only. H stands for helices of three, four or five residues a
turn (two turns in a row), E for residues in a bridge or ladder, C for all others. Exposure is the number of CA atoms
within 10 Å.
"""

from __future__ import annotations

import argparse
import csv
import tarfile
from pathlib import Path

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def bonds(backbone: np.ndarray) -> np.ndarray:
    """Whether the N-H of residue i is bonded to the C=O of residue j: bool `[residues, residues]` of (i, j).

    Args:
        backbone: ångström `[residues, 3 atoms N CA C, 3]`, NaN where unresolved.
    """
    n, ca, c = backbone[:, 0], backbone[:, 1], backbone[:, 2]
    linked = np.linalg.norm(n[1:] - c[:-1], axis=1) < 2.5
    oxygen = np.full_like(c, np.nan)
    oxygen[:-1] = c[:-1] - 1.231 * unit(unit(ca[:-1] - c[:-1]) + unit(n[1:] - c[:-1]))
    oxygen[:-1][~linked] = np.nan
    hydrogen = np.full_like(n, np.nan)
    hydrogen[1:] = n[1:] - 1.01 * unit(unit(c[:-1] - n[1:]) + unit(ca[1:] - n[1:]))
    hydrogen[1:][~linked] = np.nan

    def inverse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return 1 / np.maximum(np.linalg.norm(a[:, None] - b[None], axis=-1), 0.5)

    energy = 27.9 * (inverse(n, oxygen) + inverse(hydrogen, c) - inverse(hydrogen, oxygen) - inverse(n, c))
    found = np.nan_to_num(energy, nan=0.0) < -0.5
    near = np.abs(np.subtract.outer(np.arange(len(n)), np.arange(len(n)))) < 2
    return found & ~near


def structure(backbone: np.ndarray) -> str:
    """H, E or C of each residue."""
    bond = bonds(backbone)
    count = len(bond)
    helix = np.zeros(count, bool)
    for turn in (3, 4, 5):
        if count <= turn + 1:
            continue
        # A turn at i: the C=O of i takes the N-H of i + turn.
        at = np.zeros(count, bool)
        at[: count - turn] = bond[np.arange(turn, count), np.arange(count - turn)]
        for i in np.flatnonzero(at[1:] & at[:-1]) + 1:
            helix[i : i + turn] = True
    # Bridges of i and j (Kabsch and Sander 1983, figure 2), for inner residues at least three apart.
    bridge = np.zeros((count, count), bool)
    inner, before, behind = slice(1, count - 1), slice(0, count - 2), slice(2, count)
    middle, b = bond[inner, inner], bond
    parallel = (b[inner, before].T & b[behind, inner]) | (b[inner, before] & b[behind, inner].T)
    anti = (middle & middle.T) | (b[behind, before].T & b[behind, before])
    bridge[inner, inner] = parallel | anti
    apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) >= 3
    sheet = (bridge & apart).any(0) | (bridge & apart).any(1)
    return "".join("H" if h else "E" if e else "C" for h, e in zip(helix, sheet))


def exposure(backbone: np.ndarray) -> list[int]:
    """CA atoms within 10 Å of each, itself left out."""
    ca = backbone[:, 1]
    near = np.linalg.norm(ca[:, None] - ca[None], axis=-1) < 10
    return (near.sum(1) - 1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--val", type=int, default=200)
    options = parser.parse_args()
    chains = np.load(options.data / "protein" / "chains.npz")
    starts = np.concatenate([[0], np.cumsum(chains["length"])])
    number = {name: i for i, name in enumerate(chains["name"].tolist())}
    with (options.data / "protein" / "split.tsv").open() as file:
        sides = {row["chain"]: row["split"] for row in csv.DictReader(file, delimiter="\t")}
    most = {"train": options.train, "val": options.val, "test": 10**9}
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for archive in ("msa-train.tar.gz", "msa-test.tar.gz"):
        with tarfile.open(options.data / "protein" / archive) as tar:
            for member in tar:
                name = Path(member.name).name.split(".")[0]
                side = sides.get(name)
                if side is None or name not in number or most[side] <= 0:
                    continue
                most[side] -= 1
                i = number[name]
                backbone = chains["backbone"][starts[i] : starts[i + 1]].astype(np.float64) / 100
                content = tar.extractfile(member)
                assert content is not None
                (options.out / f"{name}.a3m").write_bytes(content.read())
                rows.append([name, f"{name}.a3m", side, structure(backbone), str(exposure(backbone))])
    with (options.out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["chain", "alignment", "split", "structure", "exposure"], *rows])
    letters = "".join(row[3] for row in rows)
    print(f"{len(rows):,} chains, " + ", ".join(f"{c} {letters.count(c) / len(letters):.1%}" for c in "HEC"))


if __name__ == "__main__":
    main()
