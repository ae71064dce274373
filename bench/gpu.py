"""Every measurement that needs a GPU, in one call of at most 25 minutes, the most important first.

    python bench/gpu.py --shakespeare tinyshakespeare.txt --fashion FOLDER --cifar TRAIN.tar.gz --cifar-test TEST.tar.gz
    python bench/gpu.py --rehearse            # the same rows in small, on a CPU

Each row runs in a process of its own with a limit of time, and its result is written as it comes, so that a row that
fails or takes too long costs no other. `results/gpu.json` then says what each of them answered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
MINUTES = 25
SHOWN = 4000
"""Characters of the end of an output that are kept."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        name: shown and written.
        asked: what it must reach.
        command: words behind `python`; `{name}` stands for a path that an option gives.
        limit: seconds at most.
        small: what the rehearsal adds or has instead of the command; empty for no rehearsal.
        needs: options without which the row is left out.
    """

    name: str
    asked: str
    command: tuple[str, ...]
    limit: int
    small: tuple[str, ...] = ()
    needs: tuple[str, ...] = field(default=())


ROWS = (
    Row("kernels", "all pass", ("-m", "pytest", "-q", "-m", "gpu", "tests"), 150, ("-m", "pytest", "--version")),
    Row(
        "generation", "tokens/s plain, one graph, look-up; same tokens",
        ("bench/generation.py", "--rounds", "3"), 150,
        ("bench/generation.py", "--smallest", "--rounds", "1", "--tokens", "8", "--prompt", "8", "--no-compile"),
    ),
    Row(
        "language model", "124M: share of the matmul rate >= 0.5, beside Hugging Face",
        ("bench/text_speed.py", "--size", "124M", "--batch", "16", "--context", "1024", "--bf16", "--compile"), 240,
        ("bench/text_speed.py", "--batch", "2", "--context", "16", "--rounds", "1", "--repeats", "1"),
    ),
    Row(
        "images", "ViT-S/16 training >= timm and Hugging Face; >= 12,000 images/s on an H100",
        ("bench/vision_speed.py", "--batch", "256", "--bf16", "--compile"), 240,
        ("bench/vision_speed.py", "--batch", "1", "--rounds", "1", "--repeats", "1"),
    ),
    Row(
        "pair stack", ">= 1.5 times faster than a straightforward form at <= 0.5 of its memory",
        ("bench/pair_stack.py", "--device", "cuda", "--dtype", "bfloat16", "--blocks", "4", "--compile"), 180,
        ("bench/pair_stack.py", "--device", "cpu", "--residues", "16", "--repeats", "1"),
    ),
    Row(
        "shakespeare", "best full validation loss <= 1.45",
        ("-m", "triune", "text", "fit", "--config", "shakespeare-char-gpu", "--data.files", "{shakespeare}"), 300,
        ("-m", "triune", "text", "fit", "--config", "shakespeare-char-gpu", "--data.files", "{shakespeare}",
         "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--model.transformer.depth", "1"),
        ("shakespeare",),
    ),
    Row(
        "fashion-mnist", ">= 94.5 % within 5 minutes",
        ("bench/vision_learning.py", "fashion-mnist", "--root", "{fashion}", "--gpu", "--seeds", "1"), 330, (),
        ("fashion",),
    ),
    Row(
        "cifar10", ">= 93 % in 10 minutes",
        ("bench/vision_learning.py", "cifar10", "--root", "{cifar}", "--test-root", "{cifar_test}", "--gpu",
         "--seeds", "1"), 640, (), ("cifar", "cifar_test"),
    ),
    Row(
        "contacts", "long-range P@L >= 0.40 in 30 minutes: what is reached in the time that is left",
        ("bench/protein_contacts.py", "{chains}", "--config", "contacts-gpu"), 1800, (), ("chains",),
    ),
)  # fmt: skip
"""In the order of importance."""


def run(command: list[str], limit: float) -> tuple[int | None, str]:
    """The exit code, None where the time was over, and the end of the output. All that it started ends with it."""
    root = HERE.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root.parent), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, *command], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=environment,
    ) as process:  # fmt: skip
        try:
            return _finished(process, limit)
        except BaseException:
            _end(process)
            raise


def _finished(process: subprocess.Popen[str], limit: float) -> tuple[int | None, str]:
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output[-SHOWN:]
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
        return None, output[-SHOWN:]


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def command_of(row: Row, paths: dict[str, Any], rehearse: bool) -> list[str] | str:
    """The words of a row, or why it is left out."""
    if missing := [name for name in row.needs if not paths.get(name)]:
        return f"left out: needs --{missing[0].replace('_', '-')}"
    if rehearse and not row.small:
        return "left out: too long to rehearse"
    words = row.small if rehearse else row.command
    return [word.format(**paths) for word in words]


def main(args: list[str] | None = None) -> int:
    """Runs the rows; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="small forms of the rows, on a CPU")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="repeat it for several")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all rows together (default {MINUTES})")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu.json")
    for name in ("shakespeare", "fashion", "cifar", "cifar-test", "chains"):
        parser.add_argument(f"--{name}", type=lambda text: str(Path(text).resolve()), help="data of a row")
    options = parser.parse_args(args)
    import torch
    from common import commit, device_name

    if not options.rehearse and not torch.cuda.is_available():
        print("There is no GPU here; --rehearse runs the rows in small on a CPU.", file=sys.stderr)
        return 2
    began, paths = time.monotonic(), vars(options)
    header = {"commit": commit(), "device": device_name(), "torch": torch.__version__, "rehearsal": options.rehearse}
    results: list[dict[str, Any]] = []
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        left = 60 * options.minutes - (time.monotonic() - began)
        command = command_of(row, paths, options.rehearse)
        found: dict[str, Any] = {"row": row.name, "asked": row.asked}
        if left < 5:
            found["state"] = "left out: no time was left"
        elif isinstance(command, str):
            found["state"] = command
        else:
            start = time.monotonic()
            code, output = run(command, min(left, row.limit))
            state = "over its time" if code is None else "done" if code == 0 else f"failed ({code})"
            found |= {"state": state, "seconds": round(time.monotonic() - start, 1)}
            found |= {"command": " ".join(["python", *command]), "output": output}
        results.append(found)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({**header, "rows": results}, indent=1) + "\n")
        print(f"{row.name:16} {found['state']:32} {found.get('seconds', '')}", flush=True)
    return 1 if any(found["state"].startswith("failed") for found in results) else 0


if __name__ == "__main__":
    sys.exit(main())
