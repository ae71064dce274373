"""A thousand ranks on paper: the order of 10^12 tokens as each process sees it, and the bytes of a step.

    python bench/scale_simulation.py

Simulated for 1,024 ranks with 8 loader workers each, which all hold the same order and manifest: memory and start of
one such process, milliseconds of processor time to find a batch, windows that no two sampled ranks share, and the same
batches after 100 ranks are lost. Shards are described but not there: their manifest is read, but no token, and where
documents start is not mapped. The bytes of a step are computed, not measured; the formula stands beside each.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import record, table

from triune.core import shards as core
from triune.core.errors import UserError
from triune.core.training.data import ResumableData
from triune.text.data.shards import Manifest, Shard, ShardedTokens, Stream
from triune.text.data.windows import ShuffledWindows

TOKENS, CONTEXT, SHARD = 10**12, 2048, 1 << 27
RANKS, WORKERS, OWN, LOST = 1024, 8, 7, 100
SAMPLED = 300


def manifest(folder: Path) -> Manifest:
    """That of 10^12 tokens in shards of 2^27, written, and read as training reads it."""
    count = -(-TOKENS // SHARD)
    shards = [
        Shard(f"train-{i:05d}", min(SHARD, TOKENS - i * SHARD), SHARD >> 10, SHARD * 4, SHARD >> 10, [0, 0])
        for i in range(count)
    ]
    entries = {"train": shards, "val": shards[:1]}
    core.finish(folder, "text", {"sides": entries, "tokenizer": "x", "identity": "simulated"})
    return read(folder)


def read(folder: Path) -> Manifest:
    """`read_manifest` of text, without the files of the shards."""
    content = core.read_manifest(core.Folder(folder), "text")
    sides: Any = {side: [Shard(*entry) for entry in content["sides"][side]] for side in ("train", "val")}
    return Manifest(folder, content["tokenizer"], "<u2", content["identity"], sides, {})


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def order(rank: int, world: int, own: int) -> ShuffledWindows:
    return ShuffledWindows(TOKENS, CONTEXT, own, rank, world, 1337)


def one_process(folder: Path) -> dict[str, Any]:
    """Memory, start and milliseconds a batch of one of the processes."""
    gc.collect()
    before, began = resident(), time.process_time()
    array = ShardedTokens([read(folder)], "train")
    stream, mine = Stream(array.shards), order(517, RANKS, OWN)
    mine.take(0)
    start = time.process_time() - began
    positions = np.random.default_rng(0).integers(0, 3 * len(mine), SAMPLED).tolist()
    times = []
    for position in positions:
        began = time.process_time()
        starts = mine.take(position)
        shard = np.searchsorted(stream._ends, starts, side="right")
        row = starts - (stream._ends[shard] - SHARD)
        times.append(1e3 * (time.process_time() - began))
        assert (row >= 0).all() and (shard < len(array.shards)).all()
    return {
        "memory_mb": round(resident() - before, 2), "start_s": round(start, 4),
        "batch_ms_median": float(np.median(times)), "batch_ms_99": float(np.quantile(times, 0.99)),
        "windows_of_an_epoch": mine.windows, "steps_of_an_epoch": len(mine), "shards": len(array.shards),
    }  # fmt: skip


def overlap_and_gap() -> dict[str, Any]:
    """Whether ranks share a window at sampled steps of an epoch, and whether their slices join without a gap."""
    ranks = [order(rank, RANKS, OWN) for rank in range(RANKS)]
    steps = np.random.default_rng(1).choice(len(ranks[0]), 12, replace=False).tolist()
    whole = order(0, 1, RANKS * OWN)
    found = []
    for step in steps:
        parts = np.concatenate([mine.take(step) for mine in ranks])
        assert np.array_equal(parts, whole.take(step)), "the slices of the ranks are not the batch of all"
        found.append(parts)
    windows = np.concatenate(found)
    inside = bool((windows >= 0).all() and (windows + CONTEXT < TOKENS).all())
    return {"windows_seen": len(windows), "seen_twice": len(windows) - len(np.unique(windows)), "all_inside": inside}


class Saved(ResumableData):
    """The batch size that a resumed run works out."""

    batch_size = OWN


def after_a_loss() -> dict[str, Any]:
    """The batches with 100 ranks less, at sampled steps: refused where they do not divide, else the same."""
    saved = {"batch_size": OWN, "devices": RANKS}
    left, data = RANKS - LOST, Saved()
    try:
        data.continue_with(saved, left)
        refused = ""
    except UserError as error:
        refused = str(error)
    usable = next(world for world in range(left, 0, -1) if RANKS * OWN % world == 0)
    data.continue_with(saved, usable)
    before, ranks = order(0, 1, RANKS * OWN), [order(rank, usable, data.batch_size) for rank in range(usable)]
    for step in (0, 12_345, len(before) - 1, len(before) + 17):
        assert np.array_equal(before.take(step), np.concatenate([mine.take(step) for mine in ranks]))
    return {"left": left, "sentence": refused, "goes_on_with": usable, "own": data.batch_size, "same": True}


def bytes_of_a_step() -> list[dict[str, Any]]:
    """Read, sent and stored by each rank, for three trainings with FSDP2 in bfloat16; figures are 1e6 bytes."""
    rows = []
    for name, parameters, world, examples, size, what in (
        ("text 7B, 2,048 tokens a window", 6.74e9, RANKS, 7, 2 * (CONTEXT + 1), "2 bytes a token"),
        ("ViT-g/14, 10^9 images", 1.01e9, RANKS, 32, 110e3, "110 kB an encoded image (assumed)"),
        ("pair model, whole PDB, crops of 256", 2.0e7, 64, 2, 256 * (4 + 4 + 12 + 20 + 2 * 64), "arrays and 64 rows"),
    ):
        share = (world - 1) / world
        rows.append({
            "training": name, "ranks": world, "parameters": parameters,
            "read_mb": examples * size / 1e6, "read_how": f"{examples} examples x {size:.0f} bytes ({what})",
            "sent_mb": share * parameters * (2 + 2 + 4) / 1e6,
            "sent_how": "(N-1)/N x P x (2 + 2 gathered in bf16 forward and backward + 4 reduced in float32)",
            "stored_mb": parameters * (4 + 8) / world / 1e6,
            "stored_how": "P x (4 weights + 8 AdamW) / N, at each checkpoint (Muon's matrices: 4 instead of 8)",
        })  # fmt: skip
    return rows


def main() -> None:
    if len(sys.argv) > 1:  # the process that is measured: it has not written the manifest
        print(json.dumps(one_process(Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        manifest(Path(name))
        command = [sys.executable, __file__, name]
        process = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    seen, loss = overlap_and_gap(), after_a_loss()
    rows = [{"what": "one process", **process}, {"what": "ranks", **seen}, {"what": "100 ranks lost", **loss}]
    steps = bytes_of_a_step()
    for row in rows:
        print(row)
    print(table(steps))
    setting = {"tokens": TOKENS, "context": CONTEXT, "ranks": RANKS, "workers": WORKERS, "batch": RANKS * OWN}
    asked = {"memory_mb": 50, "batch_ms": 1}
    record("scale_simulation", rows, setting=setting, asked=asked, bytes_of_a_step=steps)


if __name__ == "__main__":
    main()
