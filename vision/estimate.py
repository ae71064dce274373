"""What training on a folder of images will take, measured on a few of them and on one step of the default recipe."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from ..core.training.run import machine
from ..core.training.run.recipes import find_config
from .data.batches import load
from .data.collection import Collection, Images
from .data.found import MEMORY
from .data.gather import chosen_shape
from .data.scan import Record
from .preprocessing import Preprocessing

TIMED_IMAGES, TIMED_STEPS = 64, 2


def estimate(collection: Collection, records: dict[str, list[Record]], image_size: int | None) -> dict[str, Any]:
    """Image size, memory and time of training with the default recipe; nothing if no training image can be read.

    Args:
        collection: the images.
        records: what `scan` found of each side.
        image_size: pixels a side; None: as training chooses.

    Returns:
        image_size [height, width], channels, in_memory (else decoded for each epoch), bytes of all pixels; of files
        also images_per_second of one core, cores and seconds_to_read; and steps, batch_size (all images, where these
        are fewer than the recipe's batch), seconds_to_train and memory_gb (the process's peak, or the GPU's).
    """
    good = [i for i, record in enumerate(records["train"]) if not record.problem]
    if not good:
        return {}
    known = [record for found in records.values() for record in found if not record.problem]
    size, channels = chosen_shape(known, image_size, None)
    total = len(known) * channels * size[0] * size[1]
    resident = total <= MEMORY * 1e9
    values: dict[str, Any] = {"image_size": list(size), "channels": channels, "in_memory": resident, "bytes": total}
    if collection.sides["train"].array is None:
        rate = _decoding_rate(collection.sides["train"], good, size, channels)
        cores = max(1, machine.usable_cores() if resident else machine.default_workers())
        values["images_per_second"], values["cores"] = round(rate), cores
        values["seconds_to_read"] = round(len(good) / rate / cores, 1)
    return values | _training(len(good), "val" in collection.sides, size, channels, len(collection.classes))


def _decoding_rate(images: Images, good: list[int], size: tuple[int, int], channels: int) -> float:
    """Images per second that one core decodes and resizes."""
    some = good[:: max(1, len(good) // TIMED_IMAGES)][:TIMED_IMAGES]
    start = time.perf_counter()
    for index in some:
        Preprocessing().pixels(load(images, index, channels), size)
    return len(some) / max(time.perf_counter() - start, 1e-6)


def _training(images: int, validated: bool, size: tuple[int, int], channels: int, classes: int) -> dict[str, Any]:
    """Steps and time of the default recipe. `images` to train on, of which a part is held out unless `validated`."""
    import yaml

    recipe = yaml.safe_load(find_config("default", "triune.vision").read_text(encoding="utf-8"))
    limits = recipe["trainer"]
    kept = images if validated else images - round(images * recipe["data"]["val_fraction"])
    batch = min(recipe["data"]["batch_size"], kept)
    if classes < 2 or not batch:
        return {}
    steps = min(limits["max_steps"], limits["max_epochs"] * (kept // batch))
    device = machine.default_device()
    seconds = _seconds_of_a_step(recipe["model"]["transformer"], batch, size, channels, classes, device)
    return {
        "steps": steps, "batch_size": batch, "seconds_to_train": round(steps * seconds),
        "memory_gb": round(machine.peak_memory(device) or 0.0, 1),
    }  # fmt: skip


def _seconds_of_a_step(
    transformer: dict[str, Any], batch: int, size: tuple[int, int], channels: int, classes: int, device: Any
) -> float:
    import torch

    from .model import VisionTransformer, VisionTransformerConfig
    from .task import SMALL, patch_for

    config = VisionTransformerConfig(
        image_size=list(size), patch_size=patch_for(size), channels=channels, classes=classes, pool="mean",
        class_token=False, transformer=dataclasses.replace(SMALL, **transformer),
    )  # fmt: skip
    model = VisionTransformer(config).to(device)
    images, labels = torch.zeros(batch, channels, *size, device=device), torch.zeros(batch, dtype=torch.long).to(device)
    start = 0.0
    for step in range(1 + TIMED_STEPS):
        if step == 1:  # the first warms up
            start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad()
        loss.item()  # waits for the device
    return (time.perf_counter() - start) / TIMED_STEPS
