"""Memory and time of what `triune text fit` does before training: reading, learning a BPE, tokenising.

    python bench/text_memory.py [MEGABYTES ...]

Each size is prepared in a process of its own, whose largest resident memory is recorded beside that of one that only
imports the same. The text is generated: lines of words drawn by Zipf's law from 200,000 of random letters.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (22, 66, 200)
WORDS, LINE = 200_000, 12


def generate(path: Path, megabytes: int) -> None:
    """Writes a text of this size, 4 MB at a time."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = random.integers(1, 12, WORDS)
    words = np.array(["".join(letters[random.geometric(0.12, n).clip(1, 26) - 1]) for n in lengths], dtype=object)
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            drawn = words[(random.zipf(1.2, 700_000) - 1) % WORDS]
            file.writelines(" ".join(drawn[at : at + LINE]) + ".\n" for at in range(0, len(drawn), LINE))


def prepare(path: Path | None, cache: str) -> dict[str, Any]:
    """Seconds, megabytes and tokens of the preparation, or of its imports alone (without a path)."""
    import torch

    from triune.text.data.module import TextData

    torch.set_num_threads(1)
    started, tokens = time.perf_counter(), 0
    if path:
        data = TextData(str(path), tokenizer="bpe", vocab_size=2048, cache=cache)
        data.setup()
        tokens = data.counts()["tokens_train"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak), "train_tokens": tokens}


def measured(path: Path | None, cache: str) -> dict[str, Any]:
    """What `prepare` returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prepare, path, cache).result()


def main() -> None:
    from common import record, table

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        alone = measured(None, folder)["peak_mb"]
        for size in map(int, sys.argv[1:] or SIZES):
            path = Path(folder) / f"{size}.txt"
            generate(path, size)
            rows.append({"file_mb": round(path.stat().st_size / 1e6, 1), "imports_mb": alone, **measured(path, folder)})
            path.unlink()
            print(rows[-1], flush=True)
    print(table(rows))
    record("text_memory", rows)


if __name__ == "__main__":
    main()
