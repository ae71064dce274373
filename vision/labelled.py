"""Images for models with a head, wherever they are used; nothing here trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import UserError
from ..core.labelled.model import OWN, LabelledModel, for_vectors
from ..core.labelled.run import Modality
from ..core.training.run.folder import model_folder
from .data.names import mirrors
from .heads import open_with_head, whole_trunk
from .predictor import ImagePredictor, ImageReader
from .views import averaged, check_views, read_calibration, said


def seen_in(model: LabelledModel, views: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """The outputs for a batch, averaged over views of its images."""

    def call(batch: dict[str, Tensor]) -> Tensor:
        return averaged(lambda images: model(batch | {"images": images}), batch["images"], views, model.head.over_views)

    return call


def several_views(model: LabelledModel, kind: str, run: str) -> tuple[Any, list[str]]:
    """What `triune vision predict --tta` calls, and a sentence about it; the head gets the calibration of the means.

    Raises:
        UserError: mirror images may be of another class.
    """
    check_views(kind, mirrors(model.head.spec.words))
    folder = model_folder(run, "vision")
    known = read_calibration(folder, kind)
    if known is not None:
        model.head.spec = model.head.spec.calibrated(known)
    return seen_in(model, kind), said(kind, known is not None, run)


def _reader(model: LabelledModel, folder: Path) -> ImageReader:
    return ImageReader(model.trunk.config)  # type: ignore[attr-defined]


def _expand(words: Sequence[str]) -> list[tuple[str, str]]:
    """Files, and all images below folders."""
    from .classify import collect

    files, problems = collect(words)
    if problems:
        raise UserError(problems[0])
    return [(file, file) for file in files]


def _trunk(name: str, pool: str | None) -> tuple[LabelledModel, ImageReader]:
    from .checkpoints.pretrained import load

    model: Any = load(name).model
    return for_vectors(ImagePredictor, model, pool or OWN), ImageReader(model.config)


def _headed(name: str) -> tuple[LabelledModel, ImageReader] | None:
    found = open_with_head(name)
    return None if found is None else (found.model, ImageReader(found.model.trunk.config))


MODALITY = Modality(
    "vision",
    ImagePredictor,
    _reader,
    _expand,
    _trunk,
    "triune.vision.labels:ImageTable",
    whole_trunk,
    _headed,
    several_views,
)


def predict(args: list[str]) -> int:
    """Runs `triune vision predict` for a model with a head."""
    from ..core.labelled.predict import main

    return main(MODALITY, args)


def probe(args: list[str]) -> int:
    """Runs `triune vision probe` for a table."""
    from ..core.labelled.probe import main

    return main(MODALITY, args)
