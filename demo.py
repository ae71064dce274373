"""`triune demo`: the main job of every task, small enough for a coffee break, and one table at the end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

_FEW = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--model.transformer.depth", "1"]
_FEW_PAIRS = [*_FEW[:4], "--model.settings", '{"depth": 1, "sequence_dim": 32, "sequence_depth": 1}']
SMALLEST = {"vision": _FEW, "text": _FEW, "protein": _FEW_PAIRS}
"""Options that shrink a task's demonstration to a proof that everything is installed."""

SHOWN = (
    "val_loss", "val_top1", "val_bits_per_byte", "ece_calibrated", "baseline_logistic_regression", "val_long_p_at_l5",
    "val_long_p_at_l5_chance", "val_long_p_at_l5_ceiling",
)  # fmt: skip
"""Figures of the table at the end."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune demo`."""
    p = argparse.ArgumentParser(
        prog="triune demo",
        description="Train a small classifier of handwritten digits and let it name some and show where it looks; "
        "train a small language model on the source code of the Python standard library and let it write; train a "
        "small pair model on protein chains and draw the contacts of one it has not seen. All data is on this machine "
        "already. About four minutes on two cores.",
    )
    p.add_argument("--run", type=Path, help="folder for the runs (default: runs/demo/DATE)")
    p.add_argument("--smallest", action="store_true", help="only prove that everything works, in seconds")
    return p


def main(args: list[str]) -> int:
    """Run `triune demo` and return its exit code."""
    options = parser().parse_args(args)
    base = options.run or Path("runs/demo") / time.strftime("%Y-%m-%d_%H-%M-%S")
    parts = {"vision": _vision, "text": _text, "protein": _protein}
    _table(
        [(task, part(base / task, SMALLEST[task] if options.smallest else [])) for task, part in parts.items()], base
    )
    return 0


def _vision(run: Path, options: list[str]) -> dict[str, Any]:
    from PIL import Image

    from .core.training.run.cli import run_task
    from .vision import classify as predict
    from .vision.data.module import ImageData
    from .vision.task import VisionTask

    summary = run_task(
        "vision", "fit", ["--config", "demo", "--run", str(run), *options], VisionTask, ImageData, "triune.vision"
    )
    data, files = ImageData(val_fraction=0.25), []
    data.setup()
    for index in range(4):
        files.append(str(run / f"{data.names['val'][index].replace(' ', '_')}.png"))
        Image.fromarray(data.picture("val", index)[0].numpy()).save(files[-1])
    print("\nWhat it says about four of the digits:\n")
    predict.main([*files, "--run", str(run), "--top", "3", "--attention", str(run / "attention.png")])
    print(
        f"\nPictures to look at: {run}/attention.png, confusion.png, reliability.png, mistakes.png, "
        "learning_curves.png\n"
    )
    return summary


def _text(run: Path, options: list[str]) -> dict[str, Any]:
    from .core.training.run.cli import run_task
    from .text import generate as predict
    from .text.data.module import TextData
    from .text.task import TextTask

    summary = run_task(
        "text", "fit", ["--config", "demo", "--run", str(run), *options], TextTask, TextData, "triune.text"
    )
    print("\nA sample of what it writes:\n")
    predict.main([str(run), "--prompt", "def read(self, ", "--max-tokens", "120", "--min-p", "0.1", "--seed", "1"])
    return summary


def _protein(run: Path, options: list[str]) -> dict[str, Any]:
    import numpy as np
    import torch

    from .core.training.run.cli import run_task
    from .protein.data.module import ProteinData
    from .protein.data.store import builtin_set
    from .protein.pair.task import PairTask
    from .protein.predict.metrics import contact_targets
    from .protein.predict.plots import contact_map
    from .protein.predict.predictors import predictor_for

    summary = run_task(
        "protein", "fit", ["--config", "demo", "--run", str(run), *options], PairTask, ProteinData, "triune.protein"
    )
    chains = builtin_set()
    held_out = chains.of("val")
    longest = int(held_out[chains.lengths[held_out].argmax()])
    here = slice(chains.start[longest], chains.start[longest + 1])
    tokens, profile = chains.arrays["tokens"][here], chains.arrays["profile"][here].astype(np.float32) / 255
    cbeta = torch.from_numpy(chains.arrays["cb"][here])
    contacts = predictor_for(run / "model").predict(tokens, profile).contacts
    truth, name = contact_targets(cbeta, ~cbeta[:, 0].isnan()), str(chains.names[longest])
    about = f"{len(tokens)} residues, held out of training; input: sequence and profile"
    contact_map(run / "contacts.png", contacts.numpy(), name, about, truth.numpy())
    print(f"\nContacts of {name}, which it has not seen, beside those of the structure: {run}/contacts.png\n")
    return summary


def _table(rows: list[tuple[str, dict[str, Any]]], base: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"\nTrained in {base}", title_justify="left")
    for column in ("task", "figure", "parameters", "time"):
        table.add_column(column)
    for task, summary in rows:
        figures = [f"{name} {value:.3f}" for name, value in summary.items() if name in SHOWN]
        table.add_row(task, "\n".join(figures), f"{summary['parameters']:,}", f"{summary['seconds']:.0f} s")
    Console().print(table)
