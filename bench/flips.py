"""Single bytes of the files of a run changed, and what each command that reads them makes of it.

    python bench/flips.py [--flips 200] [--seed 0]

Each flip gives a byte at a random place another value. It is `detected` where the reader refuses the file, falls back
on another or says what differs; `harmless` where all that it reads is equal to the original; else a fault. Read are
both checkpoints as resuming and scoring do, the model as `generate`, `info`, `convert` and `lens` do, config.yaml as
resuming and as scoring does, metrics.csv as resuming does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import record, table

from triune import cli
from triune.bench.kills.compare import _unequal
from triune.core.errors import UserError
from triune.core.training.run import checkpoints
from triune.core.training.run import cli as training
from triune.core.training.run.arguments import RUN_VARIABLE
from triune.core.training.run.changes import edited
from triune.core.training.run.folder import RunFolder
from triune.core.training.run.rows import MetricsFile, read_rows
from triune.text.checkpoints.pretrained import load

FIT = (
    "text fit --data.files text.txt --data.cache cache --data.tokenizer bpe --data.vocab_size 300 --data.context 16"
    " --data.batch_size 4 --model.transformer.dim 16 --model.transformer.depth 1 --model.transformer.heads 2"
    " --trainer.max_steps 40 --trainer.val_check_interval 20 --trainer.log_every_n_steps 2"
    " --trainer.limit_val_batches 2 --threads 1 --trainer.accelerator cpu --trainer.logger false --run run"
)
Reader = Callable[[RunFolder], tuple[str, Any]]
"""What a reader says about a file (empty for nothing), and all that it reads."""


def checkpoint(name: str) -> Reader:
    def read(run: RunFolder) -> tuple[str, Any]:
        path = getattr(run, name)
        said = checkpoints.damage(path)
        return said, {} if said else torch.load(path, map_location="cpu", weights_only=True)

    return read


def model(run: RunFolder) -> tuple[str, Any]:
    found = load(str(run.model))
    return "", {
        "state": dict(found.model.state_dict()),
        "config": found.model.config.to_dict(),
        "tokenizer": found.companion.fingerprint,
        "ends": [found.companion.eos_id, sorted(found.companion.end_ids)],
    }


def resume(run: RunFolder) -> tuple[str, Any]:
    """Up to where the training would begin."""
    seen: list[Any] = []

    def instead(session: Any) -> dict[str, Any]:
        seen.append(session)
        return {}

    with mock.patch.object(training, "_fit", instead):
        code = cli.main(["text", "fit", "--run", str(run), "--resume", "true"])
    if code:
        return "refused", None
    return "; ".join(change.name for change in seen[0].changes), seen[0].config_text


def score(run: RunFolder) -> tuple[str, Any]:
    return edited(run, checkpoints.recorded_config(run)), None


def metrics(run: RunFolder) -> tuple[str, Any]:
    state = torch.load(run.last, map_location="cpu", weights_only=True)
    telemetry = state["callbacks"]["Telemetry"]
    before = run.metrics.read_bytes()
    try:
        said = MetricsFile(run.metrics, []).rewind(state["global_step"], telemetry["rows"], telemetry["checksum"])
        return said, read_rows(run.metrics)
    finally:
        run.metrics.write_bytes(before)


READERS: dict[str, tuple[str, Reader]] = {
    "last.ckpt": ("checkpoints/last.ckpt", checkpoint("last")),
    "best.ckpt": ("checkpoints/best.ckpt", checkpoint("best")),
    "model.safetensors": ("model/model.safetensors", model),
    "config.json": ("model/config.json", model),
    "tokenizer.json": ("model/tokenizer.json", model),
    "tokenizer_config.json": ("model/tokenizer_config.json", model),
    "config.yaml, resumed": ("config.yaml", resume),
    "config.yaml, scored": ("config.yaml", score),
    "metrics.csv": ("metrics.csv", metrics),
}


def judge(run: RunFolder, reader: Reader, whole: Any) -> str:
    """What becomes of a run as it lies there."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            said, found = reader(run)
        except UserError:
            return "detected"
        except Exception as error:
            return f"traceback: {type(error).__name__} {error}"
        finally:
            os.environ.pop(RUN_VARIABLE, None)
    if said:
        return "detected"
    return "harmless" if not list(_unequal(whole, found)) else "silent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, draw = [], random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(600)))
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(FIT.split()) == 0
        os.environ.pop(RUN_VARIABLE, None)
        run = RunFolder("run")
        for name, (file, reader) in READERS.items():
            path = run.path / file
            content, counts = path.read_bytes(), Counter[str]()
            with contextlib.redirect_stdout(io.StringIO()):
                said, whole = reader(run)
            assert not said, said
            for _ in range(options.flips):
                at, by = draw.randrange(len(content)), draw.randrange(1, 256)
                path.write_bytes(content[:at] + bytes([content[at] ^ by]) + content[at + 1 :])
                found = judge(run, reader, whole)
                counts[found.split(":")[0]] += 1
                if found not in ("detected", "harmless"):
                    print(f"{name}, byte {at:,} {content[at]:#x} by {by:#x}: {found}", flush=True)
            path.write_bytes(content)
            kinds = ("detected", "harmless", "silent", "traceback")
            rows.append({"file": name, "bytes": len(content), **{kind: counts[kind] for kind in kinds}})
            print(rows[-1], flush=True)
    print(table(rows))
    record("flips", rows, flips=options.flips, seed=options.seed)


if __name__ == "__main__":
    main()
