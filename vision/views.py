"""Several views of each image, whose probabilities are averaged: mirrored, and cut at its corners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checkpoints.checksums import write_config
from ..core.checkpoints.native import CONFIG
from ..core.errors import UserError, nearest
from ..core.files import read_json
from ..core.views import KINDS
from ..core.views import Views as Views

SHORT = {"--tta": "--model.tta"}
PART = 7 / 8
"""Side of a corner, as a part of that of the image."""


def check_views(kind: str, mirrors: bool) -> None:
    """Raises UserError for an unknown kind, or one with mirror images where these may be of another class."""
    if kind not in KINDS:
        raise UserError(f"tta is '{kind}'{nearest(kind, KINDS)}, but must be one of {', '.join(KINDS)}.")
    if kind in ("flip", "all") and not mirrors:
        raise UserError(
            f"tta is {kind}, which mirrors images, but the classes are characters, numbers or directions (or of IDX "
            "files), of which a mirror image may be another one; take crops."
        )


def check_use(kind: str, stage: str, data: Any) -> None:
    """Raises UserError for views in a training, or with mirror images where `data` (set up) do not bear them."""
    if kind != "none" and stage == "fit":
        raise UserError(f"tta is {kind}, but views are averaged in validate, test and classify alone; leave it out.")
    check_views(kind, data is None or kind == "none" or data.mirrors)


def views_of(images: Tensor, kind: str) -> list[Tensor]:
    """The views `[batch, channels, height, width]` of images, the images themselves first."""
    found = [images]
    if kind in ("crops", "all"):
        size = images.shape[-2:]
        height, width = (max(1, round(side * PART)) for side in size)
        corners = [(top, left) for top in (0, size[0] - height) for left in (0, size[1] - width)]
        cut = [images[..., top : top + height, left : left + width] for top, left in corners]
        found += [F.interpolate(part, tuple(size), mode="bilinear", align_corners=False) for part in cut]
    if kind in ("flip", "all"):
        found += [view.flip(-1) for view in found]
    return found


def count(kind: str) -> int:
    """How many views there are."""
    return {"none": 1, "flip": 2, "crops": 5, "all": 10}[kind]


def mean_of_logits(outputs: Tensor) -> Tensor:
    """Logits of the mean of the probabilities: `[views, batch, classes]` -> `[batch, classes]`."""
    return outputs.double().log_softmax(-1).logsumexp(0).sub(torch.tensor(float(len(outputs))).log()).to(outputs.dtype)


def averaged(
    call: Callable[[Tensor], Tensor], images: Tensor, kind: str, mean: Callable[[Tensor], Tensor] = mean_of_logits
) -> Tensor:
    """What `call` says of the views of images, averaged by `mean`; of `none` what it says of the images."""
    if kind == "none":
        return call(images)
    return mean(torch.stack([call(view) for view in views_of(images, kind)]))


# --- calibration of the averages --------------------------------------------------------------------------------------


def store_calibration(folder: Path, kind: str, calibration: dict[str, Any]) -> None:
    """Keeps what calibrates the averages of views in the `config.json` of a saved model."""
    config = read_json(folder / CONFIG)
    write_config(folder, config | {"views": config.get("views", {}) | {kind: calibration}})


def read_calibration(folder: Path, kind: str) -> dict[str, Any] | None:
    """What `store_calibration` kept; None where no validation was made with these views."""
    if kind == "none":
        return None
    found = read_json(folder / CONFIG).get("views", {})
    known = found.get(kind) if isinstance(found, dict) else None
    return known if isinstance(known, dict) else None


def said(kind: str, calibrated: bool, run: str = "RUN") -> list[str]:
    """A sentence about the averages; none for single views."""
    if kind == "none":
        return []
    text = f"Probabilities are means over {count(kind)} views of each image (tta {kind})"
    if calibrated:
        return [f"{text}, calibrated for them."]
    return [
        f"{text}, which are calibrated as single views are, and so say less than they could; "
        f"`triune vision validate {run} --tta {kind}` calibrates the means."
    ]
