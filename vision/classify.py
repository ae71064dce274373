"""`triune vision classify`: name what is in images with a trained classifier."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.files import OVERWRITE, check_new, read_json
from ..core.options import Parser
from ..core.training.run.folder import model_folder
from ..core.views import ABOUT, KINDS, Views

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from .evaluate.explain import Explanation
    from .model import VisionTransformer

MOST_EXPLAINED = 8
"""Rows of the picture that `--attention` draws."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune vision classify`."""
    p = Parser(
        prog="triune vision classify",
        description="Name what is in images, with calibrated probabilities. Files that are no readable images are "
        "named on standard error, the others are still classified, and the exit code is then 2.",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (searched to the bottom) or quoted globs")
    p.add_argument("--run", required=True, help="a run folder, or a checkpoint of ours, timm or Hugging Face")
    p.add_argument("--top", type=int, default=5, help="classes shown for each image (default 5)")
    p.add_argument(
        "--attention", type=Path, metavar="OUT.png",
        help=f"draw where the model looks and what hiding each patch does, for the first {MOST_EXPLAINED} images",
    )  # fmt: skip
    p.add_argument("--tta", choices=KINDS, default="none", help=ABOUT)
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--json", action="store_true", help="print one JSON list of {file, classes} and nothing else")
    p.add_argument("--max-megapixels", type=float, default=80, help="larger images are not read (default 80)")
    p.add_argument("--batch-size", type=int, default=32, help="images at a time (default 32)")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


@dataclass(frozen=True)
class Classifier:
    """A trained model with what it takes to use it: class names, preprocessing and temperature; files of more than
    `max_pixels` pixels are refused.

    >>> classifier = Classifier.load("runs/vision/2026-11-21_12-00-00")
    >>> p = classifier.probabilities([Image.open("cat.jpg").convert("RGB")])[0]
    >>> classifier.names[p.argmax()]
    """

    model: VisionTransformer
    temperature: float
    device: torch.device
    max_pixels: int = 80_000_000
    views: Views = "none"

    def seen_in(self, views: Views, run: str) -> tuple[Classifier, list[str]]:
        """A classifier that averages over views, and a sentence about their calibration; `run` is where it came from.

        Raises:
            UserError: mirror images may be of another class.
        """
        from .data.mirrors import mirrors
        from .views import check_views, read_calibration, said

        check_views(views, mirrors(self.names))
        folder = Path(run) / "model" if (Path(run) / "model").is_dir() else Path(run)
        known = read_calibration(folder, views) if (folder / "config.json").is_file() else None
        temperature = known["temperature"] if known else self.temperature
        return replace(self, views=views, temperature=temperature), said(views, known is not None, run)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> Classifier:
        """Opens a run folder, a model folder, or a checkpoint of timm or Hugging Face (see `pretrained.py`).

        Raises:
            UserError: it holds no classifier, or `device` cannot be used.
        """
        import torch

        model, temperature = open_model(folder)
        if not model.config.classes:
            raise UserError(
                f"The model in {folder} has no classes (it is a backbone); fine-tune it with `triune vision fit "
                f"--model.pretrained {folder} --data.root FOLDER`."
            )
        try:
            chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            return cls(model.eval().to(chosen), temperature, chosen)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None

    @property
    def names(self) -> list[str]:
        """One name a class, in the order of the probabilities."""
        return self.model.config.labels or [f"class {number}" for number in range(self.model.config.classes)]

    def pixels(self, image: Image) -> Tensor:
        """An image of mode L (grey models) or RGB, resized and cropped as in validation: uint8 `[channels, height,
        width]`.
        """
        return self.model.config.preprocessing.pixels(image, self.model.config.input_size)

    def read(self, file: str | Path) -> Tensor:
        """`pixels` of an image file. Raises UnreadableImage, a UserError."""
        from .data.images import Decoding, read_image

        config = self.model.config
        decoding = Decoding(self.max_pixels, config.preprocessing.grey_bits)
        return self.pixels(read_image(file, config.channels, decoding=decoding))

    def inputs(self, pixels: Sequence[Tensor]) -> Tensor:
        """What the model reads, float32 `[images, channels, height, width]` on its device."""
        import torch

        return self.model.config.preprocessing.normalise(torch.stack(list(pixels)).to(self.device))

    def probabilities(self, images: Sequence[Image | Tensor]) -> Tensor:
        """Calibrated probabilities float64 `[images, classes]` of Pillow images or of what `pixels` returned."""
        import torch

        from .evaluate.metrics import class_head
        from .views import averaged

        pixels = [image if isinstance(image, torch.Tensor) else self.pixels(image) for image in images]
        with torch.inference_mode():
            logits = averaged(self.model, self.inputs(pixels), self.views)
        return class_head(self.names).log_p(logits.cpu(), {"temperature": self.temperature}).exp()


def open_model(name: str | Path) -> tuple[VisionTransformer, float]:
    """A model and its temperature, which only runs of ours have."""
    from ..core.checkpoints.source import PACKAGE, open_source
    from .evaluate.calibration import read_temperature
    from .model import VisionTransformer

    path = Path(name)
    # A run that is not there, rather than a name on the hub (OWNER/NAME), of timm or in a package.
    local = len(path.parts) > 2 or Path(*path.parts[:1]).is_dir()
    missing = local and not path.exists() and not str(name).startswith(PACKAGE)
    if missing or (path.is_dir() and not (path / "config.json").is_file()):
        path = model_folder(path, "vision")
    if path.is_dir() and open_source(str(path)).is_ours:
        return VisionTransformer.from_pretrained(path), read_temperature(path)
    from .checkpoints.pretrained import load  # the families of other libraries

    found = load(str(path) if path.exists() else str(name))
    assert isinstance(found.model, VisionTransformer)
    return found.model, read_temperature(found.source.path) if found.source.is_ours else 1.0


@dataclass
class Result:
    """One classified image: its file, probabilities `[classes]` and, for an explanation, its pixels."""

    file: str
    p: Tensor
    pixels: Tensor | None = None
    explanation: Explanation | None = None


def main(args: list[str]) -> int:
    """Runs `triune vision classify` and returns its exit code."""
    options = parser().parse_args(args)
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be at least 1.")
    if not 0 < options.max_megapixels <= 10_000:
        raise UserError(f"--max-megapixels is {options.max_megapixels}, but must be above 0 and at most 10,000.")
    if options.attention and options.attention.suffix.lower() != ".png":
        raise UserError(f"--attention writes a PNG picture; '{options.attention}' must end in .png.")
    check_new([options.attention] if options.attention else [], options.overwrite)
    if _has_head_of_table(options.run):
        return _by_predict(options)
    from .data.folders import collect

    files, problems = collect(options.images)
    classifier = replace(Classifier.load(options.run, options.device), max_pixels=round(options.max_megapixels * 1e6))
    classifier, notes = classifier.seen_in(options.tta, options.run)
    for problem in [*problems, *notes]:
        print(problem, file=sys.stderr)
    results, failed = _classify(classifier, files, options)
    if options.attention and results:
        _explain(classifier, results, options)
    if options.json:
        rows = [_row(result, classifier.names, options.top) for result in results]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    elif results:
        _print_table(results, classifier, options.top)
    return 2 if problems or failed else 0


def _has_head_of_table(run: str) -> bool:
    """Whether a run, or the model in a folder, was trained on the labels of a table."""
    from ..core.checkpoints.native import CONFIG
    from .predictor import ImagePredictor

    held = next((f for f in (Path(run) / CONFIG, Path(run) / "model" / CONFIG) if f.is_file()), None)
    return held is not None and read_json(held).get("architecture") == ImagePredictor.__name__


def _by_predict(options: argparse.Namespace) -> int:
    """Answers with the head of a table. Raises UserError for what only classifiers of folders have."""
    from .labelled import predict

    for name in ("attention", "json"):
        if getattr(options, name):
            raise UserError(
                f"--{name} is of classifiers of class folders, and '{options.run}' was trained on a table; use "
                f"`triune vision predict {options.run} IMAGE … --out answers.jsonl`."
            )
    words = [options.run, *options.images, "--tta", options.tta, "--batch_size", str(options.batch_size)]
    words += ["--max_megapixels", str(options.max_megapixels)]
    words += [] if options.device is None else ["--device", options.device]
    return predict(words)


def _classify(classifier: Classifier, files: list[str], options: argparse.Namespace) -> tuple[list[Result], int]:
    """Results in the order of `files`, and how many could not be read; those are named as they are met."""
    from rich.console import Console
    from rich.progress import Progress

    from ..core.training.run.machine import usable_cores

    results, failed = [], 0
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    shown = len(files) > options.batch_size and console.is_terminal
    with ThreadPoolExecutor(usable_cores()) as pool, Progress(console=console, disable=not shown) as progress:
        task = progress.add_task("classifying", total=len(files))
        for batch in _ahead(pool, classifier, files, options.batch_size):
            good = []
            for file, future in batch:
                try:
                    good.append((file, future.result()))
                except UserError as error:
                    failed += 1
                    console.print(str(error), markup=False)
            if good:
                found = classifier.probabilities([pixels for _, pixels in good])
                for (file, pixels), p in zip(good, found):
                    kept = options.attention and len(results) < MOST_EXPLAINED
                    results.append(Result(file, p, pixels if kept else None))
            progress.advance(task, len(batch))
    return results, failed


def _ahead(
    pool: ThreadPoolExecutor, classifier: Classifier, files: list[str], size: int
) -> Iterator[list[tuple[str, Future[Tensor]]]]:
    """Batches of files being read; the next one is started before the present one is given out."""
    present: list[tuple[str, Future[Tensor]]] = []
    for start in range(0, len(files), size):
        coming = [(file, pool.submit(classifier.read, file)) for file in files[start : start + size]]
        if present:
            yield present
        present = coming
    if present:
        yield present


def _row(result: Result, names: list[str], top: int) -> dict[str, Any]:
    p, order = result.p.sort(descending=True, stable=True)
    # The number tells classes of one name apart (ImageNet has two cranes).
    classes = [{"class": names[i], "index": i, "probability": v} for v, i in zip(p.tolist()[:top], order.tolist())]
    row: dict[str, Any] = {"file": result.file, "classes": classes}
    return row | ({"explanation": result.explanation.to_dict()} if result.explanation else {})


def _print_table(results: list[Result], classifier: Classifier, top: int) -> None:
    """One line an image; in a pipe it is not cut to the width of a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from .evaluate.plots import percent

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("class", style="bold", overflow="fold")
    table.add_column("probability", justify="right")
    if top > 1:
        table.add_column("next", style="dim", overflow="fold")
    for result in results:
        first, *rest = _row(result, classifier.names, top)["classes"]
        others = ", ".join(f"{c['class']} ({percent(c['probability'])})" for c in rest)
        cells = [result.file, first["class"], percent(first["probability"]), *([others] if top > 1 else [])]
        table.add_row(*map(_escaped, cells))
    console = Console()
    console = console if console.is_terminal else Console(width=10_000)
    console.print(table)
    if classifier.temperature == 1:
        print("The probabilities are not calibrated: this model was saved without a temperature.")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _explain(classifier: Classifier, results: list[Result], options: argparse.Namespace) -> None:
    """Draws `--attention`, and says beside each file how far the weights agree with their effect."""
    from .evaluate.explain import draw, explain
    from .evaluate.plots import percent

    rows = []
    for result in results[:MOST_EXPLAINED]:
        assert result.pixels is not None
        image = classifier.inputs([result.pixels])[0]
        found = explain(classifier.model, image, temperature=classifier.temperature, batch_size=options.batch_size)
        result.explanation = found
        title = f"{Path(result.file).name}: {classifier.names[found.target]} ({percent(found.probability)})"
        rows.append((title, result.pixels.permute(1, 2, 0).numpy(), found))
        print(f"{result.file}: {found.caption()}", file=sys.stderr)
    draw(rows, options.attention)
    left = len(results) - len(rows)
    more = f" ({left} more images are not in it)" if left else ""
    print(f"The picture is {options.attention}{more}.", file=sys.stderr)
