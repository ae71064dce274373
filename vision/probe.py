"""`triune vision probe`: how much a checkpoint's features say about your classes, before anything is trained.

The checkpoint stays as it is. Its pooled vectors of all images are computed once and kept; a linear classifier and the
nearest neighbours (as in DINO; Caron et al. 2021, section 4.1) are then matters of seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor

from ..core.errors import UserError
from ..core.files import OVERWRITE, check_new, write_atomic
from ..core.heads.base import HeadSpec
from ..core.heads.registry import prepare
from ..core.labelled.classifiers import NEIGHBOURS, Vectors, linear_outputs, neighbour_outputs
from ..core.labels.targets import Target
from ..core.training.run.bounds import check
from ..core.training.run.machine import usable_cores
from ..core.work import cache_folder, progress
from .data.found import FoundImages
from .data.gather import Settings
from .evaluate.baselines import Baseline, logistic_regression, majority
from .model import VisionTransformer

THUMBNAIL = 32
"""Side of the images that the baseline on pixels sees."""
VERSION = 2
"""Of what is kept; raised when the same model and images would give something else."""


class OptionParser(ArgumentParser):
    """As the parser of trainings, without Lightning, which would take longer than a probe."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries one type after another with inner parsers
            super().error(message, ex)
        from ..core.training.run import sentences

        raise UserError(sentences.parsing(message, self, self.prog)) from ex


class ProbedImages(FoundImages):
    """The images of a probe, whose pixels are read where features are not known yet.

    Args:
        **options: see `FoundImages`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def _settings(self) -> Settings:
        return replace(super()._settings(), later=True)


def parser() -> Any:
    """The options of `triune vision probe`; those of the data are those of `fit`."""
    p = OptionParser(
        prog="triune vision probe",
        usage="triune vision probe --model CHECKPOINT --data.root FOLDER [options]",
        description="Judge a checkpoint by its frozen features: a linear classifier and nearest neighbours, beside "
        "what the pixels alone give. Takes seconds once the features are there, and these are kept.",
    )
    p.add_argument(
        "--model", type=str, required=True, help="folder, file, run, hub name or timm name of the checkpoint"
    )
    p.add_argument("--limit", type=int | None, default=None, help="use that many training images, drawn at random")
    p.add_argument("--test", action="store_true", help="judge on the test images instead of the validation images")
    p.add_argument("--device", type=str | None, default=None, help="cpu, cuda, … (default: a GPU if there is one)")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    p.add_argument("--out", type=str | None, default=None, help="also write the JSON to this file")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    p.add_class_arguments(FoundImages, "data", skip={"augment"}, fail_untyped=False)
    return p


def main(args: list[str]) -> int:
    """Runs `triune vision probe` and returns its exit code."""
    p = parser()
    options = p.parse_args(args)
    check(options)
    if options.limit is not None and options.limit < 10:
        raise UserError(f"--limit is {options.limit}, but must be at least 10 training images.")
    check_new([Path(options.out)] if options.out else [], options.overwrite)
    side = "test" if options.test else "val"
    data = ProbedImages(**vars(options.data))
    result = probe(options.model, data, options.limit, options.device, side)
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
    if options.out:
        write_atomic(Path(options.out), f"{text}\n".encode())
    print(text if options.json else result.table())
    return 0


@dataclass(frozen=True)
class Score:
    """One line of the table.

    Args:
        name: of the method.
        top1: accuracy in 0..1; None when it was left out.
        seconds: what it took.
        note: what it was given, what it chose, or why it was left out.
    """

    name: str
    top1: float | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What `probe` found.

    Args:
        model, data: names of the checkpoint and of the data.
        side: whose images were judged, val or test.
        train, judged: images that were learned from, and that were judged.
        classes: number of classes.
        image_size: height and width of the inputs.
        scores: linear probe, k-NN, and the two baselines.
        feature_seconds: what computing the features took; 0 when they were kept.
    """

    model: str
    data: str
    side: str
    train: int
    judged: int
    classes: int
    image_size: tuple[int, int]
    scores: list[Score]
    feature_seconds: float

    @property
    def best(self) -> Score:
        """The better of linear probe and k-NN."""
        return max(self.scores[:2], key=lambda score: score.top1 or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"verdict": self.verdict()}

    def table(self) -> str:
        """What is printed."""
        height, width = self.image_size
        source = f"features of {self.train + self.judged:,} images of {height}×{width} pixels"
        rows = [(s.name, "—" if s.top1 is None else f"{s.top1:.2%}", f"{s.seconds:.1f}", s.note) for s in self.scores]
        rows.append((source, "", f"{self.feature_seconds:.1f}", "" if self.feature_seconds else "kept from before"))
        wide = max(len(row[0]) for row in rows)
        title = (
            f"{self.judged:,} {'test' if self.side == 'test' else 'validation'} images, {self.train:,} to learn from"
        )
        lines = [f"{title:{wide}}  {'top-1':>7}  {'seconds':>7}"]
        lines += [f"{name:{wide}}  {top1:>7}  {seconds:>7}  {note}".rstrip() for name, top1, seconds, note in rows]
        return "\n".join([*lines, "", self.verdict()])

    def verdict(self) -> str:
        """Whether fine-tuning looks worthwhile, as far as this can tell."""
        top1, images = self.best.top1 or 0.0, self.train / self.classes
        plain = max(s.top1 or 0.0 for s in self.scores[2:])
        margin = 2 * (_variance(top1, self.judged) + _variance(plain, self.judged)) ** 0.5
        gap = f"{100 * (top1 - plain):+.1f} points (± {100 * margin:.1f})"
        command = f"triune vision fit --model.pretrained {shlex.quote(self.model)} …"
        if top1 - plain <= margin:
            return (
                f"The features say no more about these classes than the baselines do ({gap}): this checkpoint promises "
                "little here, and a fine-tuning would have to learn nearly everything from the images themselves."
            )
        left = f"The frozen features are {gap} from the better baseline and err on {1 - top1:.1%} of the images"
        if 1 - top1 <= 2 * _variance(top1, self.judged) ** 0.5 + 0.01:
            return f"{left}; there is little left for fine-tuning to gain, and this many images could hardly show it."
        return (
            f"{left}, which is the most that fine-tuning can gain; it usually gains a part of it, and with "
            f"{images:.0f} images a class only a run can tell how much: {command}"
        )


def _variance(accuracy: float, images: int) -> float:
    return accuracy * (1 - accuracy) / max(images, 1)


def probe(
    name: str, data: FoundImages, limit: int | None = None, device: str | None = None, side: str = "val"
) -> Result:
    """Judges the frozen features of a checkpoint.

    Args:
        name: of the checkpoint; see `pretrained.load`.
        data: not yet set up; images are made as the checkpoint saw them, but for what was chosen in `data`.
        limit: number of training images, drawn at random.
        device: to compute features on.
        side: whose images to judge, val or test.

    Raises:
        UserError: the checkpoint or the data cannot be used.
    """
    from .checkpoints.pretrained import load

    model = load(name).model
    assert isinstance(model, VisionTransformer)
    config = model.config
    data.adopt(config.preprocessing, config.input_size, config.channels, name)
    data.setup()
    height, width = data.image_size
    if (height, width) != config.size:
        model = model.resized([height, width])
    if side not in data.names:
        raise UserError("There are no test images: give --data.test_root, or judge on the validation images.")
    order = np.random.default_rng(data.seed).permutation(len(data.names["train"]))[:limit]
    if len(np.unique(data._images["train"].labels[order])) < 2:
        raise UserError(f"The {len(order)} training images are all of one class; raise --limit.")
    start = time.perf_counter()
    weights = _hashed(model)
    train = _features(model, weights, data, "train", order, device)
    val = _features(model, weights, data, side, np.arange(len(data.names[side])), device)
    seconds = 0.0 if train.kept and val.kept else time.perf_counter() - start
    scores = [linear_probe(train, val), nearest_neighbours(train, val, data.classes)]
    baselines = [
        _of_pixels(train, val, data),
        majority(train.labels, val.labels, data.labels),
    ]
    return Result(
        name, str(data.figures()["data"]), side, len(order), len(val.labels), data.classes, (height, width),
        scores + [_score(baseline) for baseline in baselines], seconds,
    )  # fmt: skip


def _of_pixels(train: Features, val: Features, data: FoundImages) -> Baseline:
    """Logistic regression on the thumbnails, kept like the features: fitting it takes longer than all else."""
    digest = hashlib.blake2b(json.dumps([VERSION, data.classes]).encode(), digest_size=16)
    for part in (train, val):
        digest.update(str(tuple(part.thumbnails.shape)).encode())
        for values in (part.thumbnails, part.labels):
            digest.update(np.ascontiguousarray(values.numpy()).data)
    path = cache_folder(data.cache) / "features" / f"{digest.hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or damaged: made anew
        found = Baseline(**json.loads(path.read_bytes()))
        if found.top1 is None or 0 <= found.top1 <= 1:
            return replace(found, seconds=0.0)
    made = logistic_regression(train.thumbnails, train.labels, val.thumbnails, val.labels, data.classes)
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(asdict(made)).encode())
    return made


def _score(baseline: Baseline) -> Score:
    name = f"{baseline.name} on pixels" if baseline.name == "logistic regression" else baseline.name
    return Score(name, baseline.top1, baseline.seconds, baseline.note)


# --- the two classifiers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Of some images of a side, in one order.

    Args:
        vectors: float32 `[images, width]`.
        labels: int64 `[images]`.
        thumbnails: uint8 `[images, channels, height, width]`.
        kept: they were not computed but read.
    """

    vectors: Tensor
    labels: Tensor
    thumbnails: Tensor
    kept: bool = False


def linear_probe(train: Features, val: Features) -> Score:
    """Multinomial logistic regression on standardised features, as `probe` of a table has it."""
    start = time.perf_counter()
    outputs, penalty = linear_outputs(*_for_heads(train, val))
    top1 = float((outputs.argmax(1) == val.labels).double().mean())
    return Score("linear probe", top1, time.perf_counter() - start, f"L2 {penalty:g}, chosen on training images")


def nearest_neighbours(train: Features, val: Features, classes: int) -> Score:
    """The vote of the nearest training images by cosine, as `probe` of a table has it, among all of them."""
    start = time.perf_counter()
    outputs = neighbour_outputs(*_for_heads(train, val, classes), most=None)
    assert outputs is not None
    right, k = float((outputs.argmax(1) == val.labels).double().mean()), min(NEIGHBOURS, len(train.labels))
    return Score(f"k-NN (k = {k}, cosine)", right, time.perf_counter() - start)


def _for_heads(train: Features, val: Features, classes: int | None = None) -> tuple[HeadSpec, Vectors, Vectors]:
    """A head for the classes, and both sides as the core's classifiers take them."""
    classes = classes or int(torch.cat([train.labels, val.labels]).max()) + 1
    names = [str(number) for number in range(classes)]
    spec = prepare("classify", Target("classify", ["class"], names, train.labels.numpy()))
    sides = [Vectors(part.vectors.float(), part.labels, np.arange(len(part.labels))) for part in (train, val)]
    return spec, sides[0], sides[1]


# --- features ---------------------------------------------------------------------------------------------------------


def _features(
    model: VisionTransformer, weights: Any, data: FoundImages, side: str, rows: np.ndarray, device: str | None
) -> Features:
    """Pooled vectors of images of a side, from the cache if it knows these images, this model and this
    preprocessing. `weights` is the model's `_hashed`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    labels = torch.from_numpy(data._images[side].labels)[rows]
    path = cache_folder(data.cache) / "features" / f"{_key(model, weights, data, side, rows)}.safetensors"
    if path.is_file():
        with contextlib.suppress(SafetensorError, OSError, KeyError):  # damaged: made anew
            found = load_file(path)
            if len(found["vectors"]) == len(rows):
                return Features(found["vectors"], labels, found["thumbnails"], kept=True)
    vectors, thumbnails = compute(model, data, side, rows, device)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        write_atomic(path, save({"vectors": vectors, "thumbnails": thumbnails}))
    return Features(vectors, labels, thumbnails)


def compute(
    model: VisionTransformer, data: FoundImages, side: str, rows: Sequence[int] | np.ndarray, device: str | None = None
) -> tuple[Tensor, Tensor]:
    """Pooled vectors float32 `[images, width]` of images of a side, and their thumbnails uint8; with a progress bar."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = model.eval().to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    height, width = data.image_size
    shrink = min(1.0, THUMBNAIL / max(height, width))
    small = max(1, round(height * shrink)), max(1, round(width * shrink))
    data.decode(side)
    vectors, thumbnails = [], []
    batches = [rows[start : start + data.batch_size] for start in range(0, len(rows), data.batch_size)]
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        progress(f"features of {side} images", len(rows), "images") as advance,
        torch.inference_mode(),
    ):
        coming = [pool.submit(data.picture, side, int(row)) for row in batches[0]] if batches else []
        for number in range(len(batches)):
            pixels = torch.stack([future.result() for future in coming])
            following = batches[number + 1] if number + 1 < len(batches) else []
            coming = [pool.submit(data.picture, side, int(row)) for row in following]
            vectors.append(model.features(data.preprocessing.normalise(pixels.to(chosen))).float().cpu())
            thumbnails.append(F.interpolate(pixels.float(), small, mode="area").round().byte())
            advance(len(pixels))
    return torch.cat(vectors).clone(), torch.cat(thumbnails)


def _hashed(model: VisionTransformer) -> Any:
    """A hash of the weights that make the features, to be continued; a large model takes half a second."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest


def _key(model: VisionTransformer, weights: Any, data: FoundImages, side: str, rows: np.ndarray) -> str:
    """Stands for everything that the features depend on."""
    digest = weights.copy()
    config = replace(model.config, classes=0, labels=[], preprocessing=data.preprocessing).to_dict()
    digest.update(json.dumps([VERSION, config, data.image_size, data.channels]).encode())
    digests = data.digests[side]
    digest.update("".join(digests[row] for row in rows.tolist()).encode())
    return digest.hexdigest()
