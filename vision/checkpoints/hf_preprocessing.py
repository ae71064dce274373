"""How images are prepared, as Hugging Face's `preprocessor_config.json` says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files import read_json
from ..model import VisionTransformerConfig
from ..preprocessing import IMAGENET, Preprocessing
from .family import PREPROCESSOR

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
PROCESSOR = "processor_config.json"
"""Where transformers 5 puts the preprocessing of models that read texts, too."""
HALF = Preprocessing(interpolation="bilinear", resize="squash")
BILINEAR = Preprocessing(list(IMAGENET[0]), list(IMAGENET[1]), "bilinear", resize="squash")
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
"""Mean and standard deviation of the channels of OpenAI's images."""
CROPPED = Preprocessing(list(IMAGENET[0]), list(IMAGENET[1]), crop_pct=224 / 256, size=[224, 224])


def read_preprocessing(folder: Path, default: Preprocessing, channels: int) -> Preprocessing:
    """What `preprocessor_config.json` says, or the default when there is none.

    Raises:
        UserError: it does something that `Preprocessing` cannot say.
    """
    path = folder / PREPROCESSOR
    if not has_preprocessing(folder):
        usual = len(default.mean) in (1, channels)
        return replace(default, size=None, mean=default.mean if usual else [0.5], std=default.std if usual else [0.5])
    if path.is_file():
        c = read_json(path)
    else:
        path = folder / PROCESSOR
        c = read_json(path)["image_processor"]
    try:
        found = _size(c.get("size")), _size(c.get("crop_size")) if c.get("do_center_crop") else None
        factor = float(c.get("rescale_factor") or 1 / 255)
        if c.get("do_resize") is False or c.get("do_rescale") is False or abs(factor * 255 - 1) > 1e-3:
            raise UserError(
                f"'{path}' leaves out resizing or does not divide pixels by 255 (do_resize, do_rescale, "
                "rescale_factor), which is not supported; mend it, or remove it to use this family's usual "
                "preprocessing."
            )
        plain = c.get("do_normalize") is False
        mean = [0.0] if plain else c.get("image_mean") or default.mean
        std = [1.0] if plain else c.get("image_std") or default.std
        method = choose({"resample": c.get("resample", 2)}, "resample", _FILTERS)
        return Preprocessing(list(mean)[:channels], list(std)[:channels], method, **_fitting(*found))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be understood ({type(error).__name__}: {error}); it was damaged.") from None


def has_preprocessing(folder: Path) -> bool:
    """Whether a folder says how images are prepared, by itself or beside how texts are."""
    if (folder / PREPROCESSOR).is_file():
        return True
    return (folder / PROCESSOR).is_file() and isinstance(read_json(folder / PROCESSOR).get("image_processor"), dict)


def _size(value: Any) -> tuple[str, list[int]] | None:
    """How images are resized: to a whole size, or so that the shortest side has that length."""
    if value is None or isinstance(value, int):
        return None if value is None else ("whole", [value, value])
    if "shortest_edge" in value:
        return "shortest", [int(value["shortest_edge"])] * 2
    return "whole", [int(value["height"]), int(value["width"])]


def _fitting(size: tuple[str, list[int]] | None, crop: tuple[str, list[int]] | None) -> dict[str, Any]:
    if size is None:
        return {"size": crop[1]} if crop else {}
    kind, sides = size
    kept = crop[1] if crop else sides
    resize = "crop" if kind == "shortest" else "squash"
    return {"size": kept, "resize": resize, "crop_pct": min(1.0, min(kept) / min(sides))}


def write_preprocessing(config: VisionTransformerConfig) -> dict[str, Any]:
    """`preprocessor_config.json` for a config of ours."""
    p, (height, width) = config.preprocessing, config.input_size
    crop = p.resize == "crop"
    sides = [int(height / p.crop_pct), int(width / p.crop_pct)]
    return {
        "image_processor_type": "BitImageProcessor" if crop or p.crop_pct < 1 else "ViTImageProcessor",
        "do_resize": True, "resample": their_word(_FILTERS, p.interpolation),
        "size": {"shortest_edge": min(sides)} if crop else {"height": sides[0], "width": sides[1]},
        "do_center_crop": crop or p.crop_pct < 1, "crop_size": {"height": height, "width": width},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": _each(p.mean, config.channels), "image_std": _each(p.std, config.channels),
        "do_convert_rgb": config.channels == 3,
    }  # fmt: skip


def _each(values: list[float], channels: int) -> list[float]:
    return list(values) * (channels if len(values) == 1 else 1)


def choose(values: Mapping[str, Any], key: str, allowed: Mapping[Any, Any]) -> Any:
    """What a setting of theirs means. Raises UserError when the core does not have it."""
    if values[key] not in allowed:
        raise UserError(
            f"{key} is {values[key]!r}, which the core does not have; it has {', '.join(map(str, allowed))}."
        )
    return allowed[values[key]]


def their_word(table: Mapping[Any, Any], ours: Any) -> Any:
    return next((theirs for theirs, value in table.items() if value == ours), None)
