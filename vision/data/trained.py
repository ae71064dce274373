"""What a model was trained on: it stays in checkpoints, so that other images are scored as these were seen."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.checkpoints.native import CONFIG
from ...core.errors import UserError
from ...core.labels.cells import same
from ..model import VisionTransformer, VisionTransformerConfig
from ..preprocessing import Preprocessing
from .collection import Collection, Side
from .find import Where, at, find, note_missing, side_in
from .names import given, join, refuse_other


@dataclass(frozen=True)
class Trained:
    """The images of a training.

    Args:
        classes: what the data called the classes (such as the names of folders), in the order of the logits; None in
            checkpoints that do not say it.
        numbered: see `Collection`.
        labels: their names, in the same order.
        image_size: height and width in pixels.
        channels: of the inputs.
        preprocessing: from decoded images to inputs.
        root: where the images were.
        content: hash of the images to train and validate on; empty if unknown.
    """

    classes: list[str] | None
    numbered: bool
    labels: list[str]
    image_size: tuple[int, int]
    channels: int
    preprocessing: Preprocessing
    root: str | None = None
    content: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trained:
        """The inverse of `to_dict`."""
        height, width = values["image_size"]
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        return cls(**{**values, "image_size": (height, width), "preprocessing": preprocessing})

    def find(self, where: Where, side: Side, alone: bool, cache: Path) -> Collection:
        """The images to score, with the classes of this training.

        Args:
            where: the settings. A folder for the side itself is all that is read; the training folder may be gone.
            side: val or test.
            alone: only that side is wanted, if the data have it.
            cache: see `find`.

        Raises:
            UserError: nothing there, or a class that the training did not have.
        """
        if self.classes is not None and where.labels is not None:
            refuse_other(given(where.labels, self.classes, self.numbered), self.labels, "the checkpoint")
        other = where.test_root if side == "test" else where.val_root
        if other is not None:
            name = f"data.{side}_root '{other}'"
            found = at(other, cache, f"data.{side}_root")
            collection = replace(found, sides={side: side_in(found, side, name)})
            if self.root is not None and resolved(where.root) != self.root:
                collection.notes.append(f"The {side} images are those of {name}; data.root '{where.root}' is not read.")
        else:
            name = f"data.root '{where.root}'"
            collection = find(replace(where, labels=None if self.classes else where.labels), cache)
            if alone and side in collection.sides:
                collection.sides = {side: collection.sides[side]}
        if self.classes is None and where.labels and sorted(collection.classes) == sorted(self.labels):
            if collection.classes != self.labels:
                collection.notes.append("This run joined names to classes by position; they are joined by key now.")
        else:
            self.join(collection, name)
        note_missing(collection, side)
        return collection

    def changed(self, root: str | None, side: Side, content: str, notes: list[str]) -> None:
        """Says that the images of `root` are not those of the training, if so; refuses to split those of another root.

        Raises:
            UserError: they are others, and none of them are of the side to be scored.
        """
        if not content or self.content in ("", content):
            return
        if resolved(root) != self.root:
            raise UserError(
                f"data.root '{root}' holds other images than this model was trained on, and no {side} side: give "
                f"--data.{side}_root '{root}' to score all of them."
            )
        notes.append(
            f"The images of '{root}' are not those of the training any more, so some that are scored here may have "
            "been trained on."
        )

    def join(self, collection: Collection, where: str) -> None:
        """Gives the images of a collection the classes of this training, by name; a class may be missing.

        Raises:
            UserError: a class that the training did not have.
        """
        texts = {side: [collection.classes[i] for i in images.labels] for side, images in collection.sides.items()}
        known = self._names({text for found in texts.values() for text in found})
        for side, images in collection.sides.items():
            images.labels = join(texts[side], known, where) if texts[side] else np.zeros(0, dtype=np.int64)
        collection.classes, collection.empty = list(self.labels), []

    def _names(self, found: set[str]) -> list[str]:
        """Which of the two names of its classes data use."""
        if self.classes is None or self.classes == self.labels:
            return self.labels
        of = {same(name): i for i, name in enumerate(self.classes)}
        by_label = {same(name): i for i, name in enumerate(self.labels)}
        texts = {same(text) for text in found}
        if texts <= of.keys():
            if texts <= by_label.keys() and any(of[text] != by_label[text] for text in texts):
                raise UserError(
                    f"The classes {sorted(texts)[:3]} are folders of the training and also names that it gave to "
                    "others; rename the folders."
                )
            return self.classes
        return self.labels if texts <= by_label.keys() else self.classes


def read_trained(checkpoint: Path) -> Trained | None:
    """What a checkpoint of Lightning, or the model folder of its run, says of its training; None if neither does."""
    content: Any = {}
    if checkpoint.is_file():
        with contextlib.suppress(Exception):  # a damaged file is reported by who loads the weights
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, dict) and isinstance(content.get("images"), dict):
        return Trained.from_dict(content["images"])
    folder = checkpoint.parent.parent / "model"
    if not (folder / CONFIG).is_file():
        return None
    config = VisionTransformerConfig.from_dict(VisionTransformer.read_settings(folder)["model"])
    return Trained(None, False, config.labels, config.size, config.channels, config.preprocessing)


def resolved(root: str | None) -> str | None:
    """A path that means the same from every folder."""
    return None if root is None else str(Path(root).expanduser().absolute())
