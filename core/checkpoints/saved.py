"""SavedModel: a model that is its config and its weights, with one way to write it and one to read it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..initialise import uninitialised
from .native import dtype_of, load_config, load_weights, refuse_overflow, save


class SavedModel(nn.Module):
    """A module that is built from `config` alone, in a folder with `config.json` and `model.safetensors`.

    >>> class LanguageModel(SavedModel, config=LanguageModelConfig): ...

    The name of the direct subclass stands in the file as the architecture, also for classes below it.

    Class arguments:
        config: class of `self.config`, with `to_dict` and `from_dict`.
        entry: where the config stands in `config.json`.
    """

    architecture: ClassVar[str]
    config_class: ClassVar[Any]
    config_entry: ClassVar[str]

    def __init_subclass__(cls, config: type | None = None, entry: str = "model", **others: Any) -> None:
        super().__init_subclass__(**others)
        if SavedModel in cls.__bases__:
            cls.architecture, cls.config_class, cls.config_entry = cls.__name__, config, entry

    def settings(self) -> dict[str, Any]:
        """What `config.json` says of this model: plain values from which `from_settings` builds it."""
        config: Any = self.config  # declared by the subclasses, with its type
        return {self.config_entry: config.to_dict()}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A new model with the config of `settings`. Raises UserError for a config that does not fit the class."""
        return cls(cls.config_class.from_dict(settings.get(cls.config_entry)))

    @classmethod
    def read_settings(cls, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """All of `config.json`. Raises UserError when it is missing, damaged, or of another class."""
        return load_config(Path(folder), cls.architecture)

    def save_pretrained(
        self, folder: str | os.PathLike[str], state: Mapping[str, Tensor] | None = None, **settings: Any
    ) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, atomically.

        Args:
            folder: created if needed.
            state: weights to write instead of the model's own, such as their average.
            settings: further plain values for `config.json`.
        """
        save(folder, self.architecture, self.settings() | settings, self.state_dict() if state is None else state)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], dtype: str | torch.dtype = "float32") -> Self:
        """Loads what `save_pretrained` wrote.

        Args:
            folder: where it lies.
            dtype: what the weights are kept in, whatever the file has: float32, bfloat16 or float16.

        Raises:
            UserError: files are missing or do not fit, or float16 cannot hold the weights.
        """
        kept, settings = dtype_of(dtype), cls.read_settings(folder)
        with uninitialised() if kept != torch.float32 else nullcontext():
            model = cls.from_settings(settings).to(kept)
        load_weights(model, Path(folder))
        refuse_overflow(model, str(folder))
        return model
