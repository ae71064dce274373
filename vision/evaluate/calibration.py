"""The temperature of a saved classifier, which makes its probabilities honest (Guo et al. 2017, 4.2)."""

from __future__ import annotations

import os
from pathlib import Path

from ...core.checkpoints.checksums import CONFIG, write_config
from ...core.errors import UserError
from ..model import VisionTransformer


def store_temperature(folder: str | os.PathLike[str], temperature: float) -> None:
    """Adds the key `temperature` to the `config.json` of a saved model; saving the model anew drops it."""
    path = Path(folder)
    config = VisionTransformer.read_settings(path) | {"temperature": temperature}
    write_config(path, config)


def read_temperature(folder: str | os.PathLike[str]) -> float:
    """The temperature stored with a model; 1 where there is none. Raises UserError for one that is no positive
    number.
    """
    temperature = VisionTransformer.read_settings(folder).get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise UserError(f"'{Path(folder) / CONFIG}': temperature is {temperature!r}, but must be positive.")
    return float(temperature)
