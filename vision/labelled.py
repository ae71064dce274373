"""Images for models with a head, wherever they are used; nothing here trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.errors import UserError
from ..core.files import written_whole
from ..core.labelled.model import OWN, LabelledModel, for_vectors
from ..core.labelled.run import Modality
from ..core.training.run.folder import model_folder
from .data.mirrors import mirrors_all
from .heads import open_with_head, whole_trunk
from .masks import MASKS, PALETTE, as_mask, size_of, value_of
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
    if model.head.per_token:
        raise refuse_views(kind)
    check_views(kind, mirrors_all(model.head.spec.parts.values() or [model.head.spec]))
    folder = model_folder(run, "vision")
    known = read_calibration(folder, kind)
    if known is not None:
        model.head.spec = model.head.spec.calibrated(known)
    return seen_in(model, kind), said(kind, known is not None, run)


def refuse_views(kind: str) -> UserError:
    """What is said of views of images whose patches have answers."""
    return UserError(f"tta is {kind}, but answers of patches are not averaged over views; leave it out.")


def painter(model: LabelledModel, folder: Path) -> Callable[[str, str, Path, dict[str, Any]], Path]:
    """What writes the answers to the patches of an image into a folder, as a mask of the size of the image.

    Classes go into a PNG with a palette, under the value that masks had for them; without masks under their own number
    where all names are whole numbers below 255, else under their place among the names; 255 stands for pixels that
    were cut off. Numbers go into a TIFF of floats.

    Raises:
        UserError: the model has no head for patches.
    """
    head: Any = model.head
    if not head.per_token:
        raise UserError(
            "--masks is given, but this model has one answer for an image, none for its parts; leave it out."
        )
    config: Any = model.trunk.config  # type: ignore[attr-defined]
    names = list(head.spec.names)
    numbers = value_of(names, model.config.reads.get("mask_names") or {})

    def paint(name: str, cell: str, beside: Path, found: dict[str, Any]) -> Path:
        path, grid = beside / Path(cell).expanduser(), config.grid(*config.input_size)
        values = np.array([numbers[label] for label in found["label"]]) if "label" in found else found["value"]
        seen = as_mask(values.reshape(grid), size_of(path), config.preprocessing, config.input_size)
        target = folder / f"{name}.{'png' if 'label' in found else 'tif'}"
        with written_whole(target) as part:
            if "label" in found:
                image = Image.fromarray(np.where(np.isnan(seen), 255, seen).astype(np.uint8))
                image.putpalette(PALETTE)
                image.save(part, format="PNG")
            else:
                Image.fromarray(seen.astype(np.float32)).save(part, format="TIFF")
        return target

    return paint


def _reader(model: LabelledModel, folder: Path) -> ImageReader:
    return ImageReader(model.trunk.config)  # type: ignore[attr-defined]


def _expand(words: Sequence[str]) -> list[tuple[str, str]]:
    """Files, and all images below folders."""
    from .data.folders import collect

    files, problems = collect(words)
    if problems:
        raise UserError(problems[0])
    return [(file, file) for file in files]


def _trunk(name: str, pool: str | None) -> tuple[LabelledModel, ImageReader]:
    from .checkpoints.pretrained import load

    model: Any = load(name).model
    return for_vectors(ImagePredictor, model, pool or OWN), ImageReader(model.config)


def _resized(model: LabelledModel, size: int) -> ImageReader:
    trunk: Any = model.trunk
    model.trunk = trunk.resized(size)
    return ImageReader(model.trunk.config)  # type: ignore[attr-defined]


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
    masks=MASKS,
    painter=painter,
    resized=_resized,
)


def predict(args: list[str]) -> int:
    """Runs `triune vision predict` for a model with a head."""
    from ..core.labelled.predict import main

    return main(MODALITY, args)


def probe(args: list[str]) -> int:
    """Runs `triune vision probe` for a table."""
    from ..core.labelled.probe import main

    return main(MODALITY, args)
