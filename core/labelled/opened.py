"""Opening a run or a checkpoint for its vectors, and knowing its weights again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..checkpoints.native import CONFIG
from ..errors import UserError
from ..files import read_json
from ..training.run.folder import model_folder
from .model import LabelledModel, for_vectors
from .predict import opened
from .reader import Reader
from .run import Modality, device_of


def opened_vectors(
    modality: Modality, name: str, pool: str | None, device: str | None, image_size: int | None = None
) -> tuple[LabelledModel, Reader]:
    """A model whose `pooled` and `tokens` are wanted, on its device, and what reads its inputs.

    Args:
        modality: of its inputs.
        name: a run, a model folder, or a checkpoint.
        pool: None for that of the model.
        device: None for a GPU where there is one.
        image_size: pixels that images are made of, other than the model's own.

    Raises:
        UserError: it cannot be opened, or has no size of images.
    """
    model, reader = _opened(modality, name, pool, device)
    if image_size is not None:
        if modality.resized is None:
            raise UserError(f"An image size is given, but {modality.task} inputs have none; leave it out.")
        reader = modality.resized(model, image_size)
    return model, reader


def _opened(modality: Modality, name: str, pool: str | None, device: str | None) -> tuple[LabelledModel, Reader]:
    run = Path(name)
    if (run / "checkpoints").is_dir() or _is_labelled(run, modality):
        folder = model_folder(name, modality.task)
        if _is_labelled(folder, modality):
            return _of_run(modality, name, pool, device)
    model, reader = modality.trunk(name, pool)
    return model.to(device_of(device)), reader


def _is_labelled(folder: Path, modality: Modality) -> bool:
    """Whether a folder holds a model with a head of this task."""
    config = folder / CONFIG
    return config.is_file() and read_json(config).get("architecture") == modality.model.__name__


def _of_run(modality: Modality, name: str, pool: str | None, device: str | None) -> tuple[LabelledModel, Reader]:
    model, reader = opened(modality, name, device)
    if pool is None and model.config.pool is not None:
        return model, reader
    again: Any = for_vectors(modality.model, model.trunk, pool or model.config.pool or "mean", model.config.reads)
    own, known = again.state_dict(), model.state_dict()
    again.load_state_dict({k: known[k] if k in known and k[:5] != "head." else v for k, v in own.items()})
    return again.to(device_of(device)), reader


def weights_hash(model: LabelledModel) -> str:
    """A hash of the weights that make the vectors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()
