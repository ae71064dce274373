"""The part of images in `triune demo`: train on digits, name some of them, show where the model looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ..core.training.run.cli import run_task
from . import classify
from .data.module import ImageData
from .task import VisionTask


def main(run: Path, options: list[str]) -> dict[str, Any]:
    """Trains into the folder `run` with further options of `fit`; returns the summary of the run."""

    summary = run_task(
        "vision", "fit", ["--config", "demo", "--run", str(run), *options], VisionTask, ImageData, "triune.vision"
    )
    data, files = ImageData(val_fraction=0.25), []
    data.setup()
    for index in range(4):
        files.append(str(run / f"{data.names['val'][index].replace(' ', '_')}.png"))
        Image.fromarray(data.picture("val", index)[0].numpy()).save(files[-1])
    print("\nWhat it says about four of the digits:\n")
    classify.main([*files, "--run", str(run), "--top", "3", "--attention", str(run / "attention.png")])
    print(
        f"\nPictures to look at: {run}/attention.png, confusion.png, reliability.png, mistakes.png, "
        "learning_curves.png\n"
    )
    return summary
