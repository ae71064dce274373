"""What trainings of image models share: how a checkpoint is opened, and what its images were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.checkpoints.family import Pretrained
from ..core.initialise import uninitialised
from ..core.training.module import TrainingModule
from ..core.training.start import Start
from .data.module import ImageData
from .model import VisionTransformer


class ImageTraining(TrainingModule):
    """A training that may start from any image model that `vision/checkpoints` reads."""

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import load

        return load(source)

    def read_start(self, folder: Path) -> Start:
        settings = VisionTransformer.read_settings(folder)
        with uninitialised():
            return Start.read(settings, VisionTransformer.from_settings(settings))

    def adopt(self, start: Start, data: Any) -> str:
        """The images become what the checkpoint was trained on."""
        assert isinstance(start.model, VisionTransformer)
        config = start.model.config
        if not isinstance(data, ImageData):
            return ""
        return data.adopt(config.preprocessing, config.input_size, config.channels, start.source)
