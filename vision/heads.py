"""Classifiers of images in and out: their heads as heads of a table, and the other way round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..core.errors import UserError
from ..core.labelled.export import classifier
from ..core.labelled.headed import Headed, full, set_linear, spec_of
from ..core.labelled.model import OWN, LabelledConfig, LabelledModel
from .model import VisionTransformer, VisionTransformerConfig
from .predictor import ImagePredictor


def open_with_head(name: str) -> Headed | None:
    """A classifier of images of any library that `vision/checkpoints` reads, or of a folder of images (`VisionTask`);
    None for one without classes.
    """
    from .checkpoints.pretrained import find, load
    from .evaluate.calibration import read_temperature

    found = load(name)
    trunk: Any = found.model
    config, source = trunk.config, find(name)
    if not config.classes:
        return None
    given = {} if source.file or source.is_ours else {"problem_type": source.config.get("problem_type")}
    labels = {"id2label": {str(i): label for i, label in enumerate(config.labels)}} if config.labels else {}
    spec = full(spec_of(labels | given, False, config.classes, name))
    if source.is_ours and (temperature := read_temperature(source.path)) != 1:
        spec = spec.calibrated({"temperature": temperature})
    weight, bias = trunk.head.weight.detach().clone(), trunk.head.bias.detach().clone()
    settings = trunk.settings()[trunk.config_entry]
    about = LabelledConfig(trunk.architecture, settings, spec.to_dict(), OWN)
    model = ImagePredictor(about, trunk).eval()
    set_linear(model.head, weight, bias)
    return Headed(model, found, type(trunk).__name__)


def whole_trunk(model: LabelledModel, library: str) -> VisionTransformer:
    """The trunk with the head. A library that has no model with a head on the class token alone may have one that reads
    the mean of the patches beside it, whose weights are then zero.

    Raises:
        UserError: the model was not trained with the trunk's own pool, or answers for each patch.
    """
    if model.head.per_token:
        raise UserError(
            "This model answers for each patch, which no classifier of other libraries that is written here does; use "
            "`triune vision predict`."
        )
    if model.config.pool != OWN or model.config.hidden is not None:
        raise UserError(
            f"This model was trained with pool {model.config.pool}"
            + (f" and a layer before the head ({model.config.hidden})" if model.config.hidden else "")
            + ", but classifiers of other libraries read what their model gives; train with --model.pool own."
        )
    weight, bias = classifier(model.head)
    trunk: Any = model.trunk
    config = replace(trunk.config, classes=len(weight), labels=list(model.head.spec.names))
    wider = replace(config, pool="class_and_mean") if config.pool == "class" else config
    if wider != config and not _is_written(config, library) and _is_written(wider, library):
        config, weight = wider, torch.cat([weight, torch.zeros_like(weight)], dim=1)
    whole = VisionTransformer(config).eval()
    whole.load_state_dict(whole.state_dict() | trunk.state_dict() | {"head.weight": weight, "head.bias": bias})
    return whole


def _is_written(config: VisionTransformerConfig, library: str) -> bool:
    """Whether a library has such a model."""
    from .checkpoints.pretrained import family_for

    try:
        return family_for(config, library) is not None
    except UserError:
        return False
