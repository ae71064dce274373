"""`triune vision export`: a classifier as one file for other programs, compared with the model before it is kept.

The file's input `images` is float32 `[batch, channels, height, width]`, preprocessed; its output is `logits` or, with
`--probabilities`, the calibrated `probabilities`. Class names, preprocessing and temperature are in the file: in the
metadata of an ONNX file, and in the extra file `triune.json` of a `torch.export` one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.files import OVERWRITE, check_new, refuse_special
from ..core.options import Parser, whole
from .classify import Classifier

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4
"""Largest difference allowed, as a part of the largest output (at least of 1)."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune vision export`."""
    p = Parser(
        prog="triune vision export",
        description="Write a trained classifier as one file for other programs. The file is compared with the model on "
        "random and real input; one that differs is not kept, and the exit code is then 1.",
    )
    p.add_argument("run", metavar="RUN", help="a run folder, or a checkpoint of ours, timm or Hugging Face")
    kind = p.add_mutually_exclusive_group(required=True)
    kind.add_argument("--onnx", type=Path, metavar="FILE", help="write ONNX (pip install 'triune[onnx]')")
    kind.add_argument("--torch-export", type=Path, metavar="FILE", help="write what torch.export.load reads (.pt2)")
    p.add_argument("--dynamic-batch", action="store_true", help="any number of images at a time instead of one")
    p.add_argument("--probabilities", action="store_true", help="end with softmax(logits / temperature)")
    p.add_argument(
        "--image-size",
        type=whole(1, 16_384),
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width (default: as trained)",
    )
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_argument("--image", type=Path, help="an image to compare on (default: a photograph that matplotlib ships)")
    return p


@dataclass(frozen=True)
class Export:
    """What is written: a module of one argument `images`, an example of it and what goes along."""

    module: nn.Module
    example: Tensor
    output: str
    metadata: dict[str, Any]
    dynamic_batch: bool


def main(args: list[str]) -> int:
    """Runs `triune vision export` and returns its exit code: 1 when the file does not agree with the model."""
    options = parser().parse_args(args)
    target: Path = options.onnx or options.torch_export
    if target.is_dir():
        raise UserError(f"'{target}' is a folder; name the file to write, such as {target / 'model.onnx'}.")
    check_new([target], options.overwrite)
    if options.onnx:
        _need_onnx()
    classifier = Classifier.load(options.run, "cpu")
    if options.image_size or classifier.model.config.preprocessing.size:
        classifier = _resized(classifier, options.image_size or list(classifier.model.config.input_size))
    what = build(classifier, options.probabilities, options.dynamic_batch)
    inputs = _inputs(classifier, options.image, 3 if options.dynamic_batch else 1)
    import torch

    with torch.inference_mode():
        expected = {name: what.module(x) for name, x in inputs.items()}
    write, read = (write_onnx, read_onnx) if options.onnx else (write_torch, read_torch)
    with _aside(target) as part:
        write(what, part)
        largest = compare(read(part), inputs, expected)
        if largest > TOLERANCE:
            print(
                f"error: {target} was not kept: it differs from the model by {largest:.2g} of the output.",
                file=sys.stderr,
            )
            return 1
        part.replace(target)
    size = target.stat().st_size / 1e6
    shape = " x ".join(["batch" if options.dynamic_batch else "1", *map(str, what.example.shape[1:])])
    print(f"{target} ({size:.1f} MB): images [{shape}] -> {what.output} [{len(what.metadata['labels'])} classes]")
    print(
        f"It agrees with the model on {' and '.join(inputs)} input; the largest difference is {largest:.1g} of the "
        "output."
    )
    return 0


def build(classifier: Classifier, probabilities: bool = False, dynamic_batch: bool = False) -> Export:
    """The module to write. Positions are resampled to the image size beforehand, so that no antialiased resize is in
    it.
    """
    import torch
    from torch import nn

    class Calibrated(nn.Module):
        """softmax(logits / temperature)."""

        def __init__(self, model: nn.Module, temperature: float) -> None:
            super().__init__()
            self.model, self.temperature = model, temperature

        def forward(self, images: Tensor) -> Tensor:
            return (self.model(images) / self.temperature).softmax(dim=1)

    model, config = classifier.model, classifier.model.config
    module = Calibrated(model, classifier.temperature).eval() if probabilities else model
    metadata = {
        "labels": classifier.names,
        "preprocessing": {"image_size": config.input_size, **asdict(config.preprocessing)},
        "temperature": classifier.temperature,
    }
    # With a batch of 1, torch.export takes the batch for a constant.
    example = torch.randn(2 if dynamic_batch else 1, config.channels, *config.input_size)
    return Export(module, example, "probabilities" if probabilities else "logits", metadata, dynamic_batch)


def _resized(classifier: Classifier, sides: list[int]) -> Classifier:
    if len(sides) > 2:
        raise UserError(f"--image-size takes one number or two (height and width), not {len(sides)}.")
    return Classifier(classifier.model.resized(sides * (3 - len(sides))), classifier.temperature, classifier.device)


def _inputs(classifier: Classifier, image: Path | None, batch: int) -> dict[str, Tensor]:
    """Random and real input `[batch, channels, height, width]` to compare on."""
    import matplotlib
    import torch

    file = image or Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if image is None and not file.is_file():
        raise UserError(f"matplotlib has no {file} here to compare on; name an image with --image.")
    photograph = classifier.inputs([classifier.read(file)]).expand(batch, -1, -1, -1)
    # Others in the batch are mirrored, so that a file which mixes up its batch is found out.
    real = torch.stack([x if i % 2 == 0 else x.flip(-1) for i, x in enumerate(photograph)])
    generator = torch.Generator().manual_seed(0)
    return {"random": torch.randn(real.shape, generator=generator), "real": real.contiguous()}


def compare(run: Callable[[Tensor], Tensor], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of `run` from what is expected, as a part of the largest output or of 1."""
    worst = 0.0
    for name, x in inputs.items():
        found, wanted = run(x), expected[name]
        if found.shape != wanted.shape:
            return float("inf")
        difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        worst = max(worst, difference) if difference == difference else float("inf")
    return worst


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A place beside `target` to write to first; what is still there at the end goes away."""
    try:
        refuse_special(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            yield Path(folder) / target.name
    except OSError as error:
        raise UserError(f"'{target}' cannot be written ({error.strerror or error}).") from None


# --- torch.export -----------------------------------------------------------------------------------------------------


def _traced(what: Export) -> Any:
    import torch

    shapes = ({0: torch.export.Dim("batch", min=1, max=65_536)},) if what.dynamic_batch else None
    with torch.no_grad():
        return torch.export.export(what.module, (what.example,), dynamic_shapes=shapes)


def write_torch(what: Export, path: Path) -> None:
    """Writes a file for `torch.export.load`."""
    import torch

    content = io.BytesIO()
    torch.export.save(_traced(what), content, extra_files={"triune.json": json.dumps(what.metadata)})
    path.write_bytes(content.getvalue())


def read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    """A function from images to the outputs of the file."""
    import torch

    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _need_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install 'triune[onnx]'.")


def write_onnx(what: Export, path: Path) -> None:
    """Writes an ONNX file, weights included, and what goes along as its metadata."""
    import torch

    with _quiet():
        program = torch.onnx.export(
            _traced(what), (), input_names=["images"], output_names=[what.output], verbose=False, dynamo=True
        )
    assert program is not None
    model = program.model
    model.metadata_props.update({key: json.dumps(value) for key, value in what.metadata.items()})
    program.save(path, external_data=False)


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """A function from images to the outputs of the file, in ONNX Runtime."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
