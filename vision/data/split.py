"""Which images are used on which side: what can be read, classes that make sense, no image on two sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ...core.errors import UserError
from .collection import Collection, Side
from .folders import unread_note
from .scan import Record


def hold_out(digests: Sequence[str], labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Chooses about `fraction` of each class, but at least one image, for validation: bool `[images]`, True there.

    Images of equal content (equal `digests`) stay together. The choice follows a hash of `seed` and the content, so it
    depends neither on file names nor on their order, and an image keeps its side when others are added or removed at
    the end of that order. Every class keeps at least one image for training.

    Raises:
        UserError: nothing can be held out.
    """
    key = str(seed).encode()[:64]
    members: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(digests):
        members[content].append(index)
    groups: dict[int, list[str]] = defaultdict(list)
    for content, indices in members.items():
        groups[int(labels[indices[0]])].append(content)
    held = np.zeros(len(labels), dtype=bool)
    for contents in groups.values():
        contents.sort(key=lambda content: hashlib.blake2b(content.encode(), digest_size=16, key=key).digest())
        wanted = max(1, round(fraction * sum(len(members[content]) for content in contents)))
        taken = 0
        for content in contents[:-1]:  # the last group stays for training
            size = len(members[content])
            if taken + size <= wanted:
                held[members[content]] = True
                taken += size
    if not held.any():
        raise UserError(
            f"No image can be held out for validation: of {len(labels):,} images in {len(groups)} classes no class "
            "has two different ones; add images, or name a validation folder with --data.val_root."
        )
    return held


def count_copies(digests: Sequence[str]) -> int:
    """Images whose content an earlier one has."""
    return len(digests) - len(set(digests))


def check_classes(collection: Collection) -> None:
    """Raises UserError for fewer than two classes, or a class without training images."""
    if not collection.labelled:
        return
    if collection.empty:
        more = f" (and {len(collection.empty) - 1} more class folders)" if len(collection.empty) > 1 else ""
        unread = " ".join(["", *unread_note(collection.others)])
        raise UserError(f"'{collection.empty[0]}'{more} holds no images: add some, or remove the folder.{unread}")
    if len(collection.classes) < 2:
        raise UserError(f"There is one class only ('{''.join(collection.classes)}'): a classifier needs two or more.")
    counts = np.bincount(collection.sides["train"].labels, minlength=len(collection.classes))
    if not counts.all():
        name = collection.classes[int(counts.argmin())]
        raise UserError(
            f"The class '{name}' has no training images left that can be read and are not in validation or test: add "
            "some, or remove its folder."
        )
    check_sides(collection)


def check_sides(collection: Collection) -> None:
    """Raises UserError for a side without an image that can be read."""
    for side, images in collection.sides.items():
        if not len(images):
            raise UserError(f"The {side} side holds no images that can be read: add some, or remove its folder.")


def drop_unreadable(collection: Collection, records: dict[Side, list[Record]], on_error: str) -> int:
    """Takes out what cannot be read, from both arguments, and returns how many these are.

    Raises:
        UserError: `on_error` is stop and there are any; lists the first ten.
    """
    bad = [
        (images.names[index], record.problem)
        for side, images in collection.sides.items()
        for index, record in enumerate(records[side])
        if record.problem
    ]
    if bad and on_error == "stop":
        listed = [f"'{name}' {problem}" for name, problem in bad[:10]]
        rest = [f"and {len(bad) - 10:,} more"] if len(bad) > 10 else []
        raise UserError(
            f"{len(bad):,} of {sum(map(len, records.values())):,} images cannot be read ({'; '.join(listed + rest)}): "
            "mend or remove them, or leave them out with `--data.on_error skip`."
        )
    for side, images in collection.sides.items():
        good = np.array([i for i, record in enumerate(records[side]) if not record.problem], dtype=np.int64)
        collection.sides[side] = images.select(good)
        records[side] = [records[side][i] for i in good]
    return len(bad)
