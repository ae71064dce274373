"""Vectors that are written while they are made, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import check_new, few, parsing, read_json, refuse_special, write_json, written_whole
from ..lock import Lock
from .store import check_ending, check_finite, files_of, write_vectors

ABOUT = "about.json"


class Writer:
    """Takes vectors in any order, keeps each part that was added in FILE.parts/, and joins them at the end.

    Args:
        path: of the file to be written; see `store.ENDINGS`.
        about: what makes the vectors; parts of before count only where it is equal.
        mark: a number below 2⁶³ for the content of the input of a name; parts of before count only where it is equal,
            too.

    Attributes:
        done: names whose vectors are in parts of before, or were added.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], mark: Callable[[str], int] = lambda name: 0) -> None:
        self._mark = mark
        self.path, self.about = Path(path), json.loads(json.dumps(dict(about)))
        self.folder = self.path.with_name(self.path.name + ".parts")
        self._lock = Lock(self.folder)
        self.done: set[str] = set()
        self._parts: list[Path] = []
        self._dim: int | None = None

    @classmethod
    def open(
        cls, path: str | Path, about: Mapping[str, Any], overwrite: bool = False,
        mark: Callable[[str], int] = lambda name: 0,
    ) -> Writer:  # fmt: skip
        """Begins to write vectors, or goes on.

        Args:
            path, about, mark: see the class.
            overwrite: whether a file, and parts of something else, may be replaced.

        Raises:
            UserError: the file exists, or there are parts that something else made, or that an input made which has
                changed.
        """
        writer = cls(check_ending(path), about, mark)
        # Parts of the same vectors say that a run was to write the file, and may have ended while it did.
        check_new(files_of(writer.path), overwrite or writer._before() == writer.about)
        writer._check_folder()
        writer.folder.mkdir(parents=True, exist_ok=True)
        writer._lock.take(
            lambda owner: (
                f"'{path}' is being written by another process{owner}; wait until it has ended, or give another name."
            )
        )
        try:
            writer._take(overwrite)
            write_json(writer.folder / ABOUT, writer.about)
        except BaseException:
            writer._lock.release()
            raise
        return writer

    def _before(self) -> dict[str, Any] | None:
        """What made the parts that are there; None where that is not said."""
        return read_json(self.folder / ABOUT) if (self.folder / ABOUT).is_file() else None

    def _check_folder(self) -> None:
        """Raises UserError where something else has the place of the parts."""
        if not self.folder.exists() and not self.folder.is_symlink():
            return
        if not self.folder.is_dir() or self.folder.is_symlink():
            raise UserError(f"'{self.folder}' is no folder, but parts of '{self.path}' would lie there; remove it.")
        odd = [p.name for p in self.folder.iterdir() if p.name != ABOUT and not p.name.startswith((".", "part-"))]
        if odd:
            raise UserError(f"'{self.folder}' holds {few(sorted(odd))}, which are no parts of vectors; move them away.")

    def _take(self, overwrite: bool) -> None:
        """Takes the parts of before, once they are sure to be of the same vectors."""
        before = self._before()
        if before != self.about:
            if not overwrite and before is not None:
                keys = sorted({*before, *self.about}, key=str)
                key = next(key for key in keys if before.get(key) != self.about.get(key))
                raise UserError(
                    f"'{self.folder}' holds parts of vectors with another {key} ({before.get(key)!r}, now "
                    f"{self.about.get(key)!r}); remove it, or begin anew with --overwrite."
                )
            self._clear()
            return
        for part in sorted(self.folder.glob("part-*.npz")):
            with parsing(part, "a part of vectors"), np.load(part, allow_pickle=False) as arrays:
                names = arrays["names"].tolist()
                marks = dict(zip(names, arrays["marks"].tolist() if "marks" in arrays.files else [0] * len(names)))
                self.done.update(names)
                self._dim = arrays["vectors"].shape[1]
            if changed := next((name for name, mark in marks.items() if mark != self._mark(name)), None):
                if not overwrite:
                    raise UserError(
                        f"'{changed}' has changed since its vector was made, which is in '{self.folder}'; begin anew "
                        "with --overwrite."
                    )
                self._clear()
                self.done, self._parts, self._dim = set(), [], None
                return
            self._parts.append(part)

    def _clear(self) -> None:
        """Removes the parts of before."""
        for file in self.folder.iterdir():
            if file != self._lock.path:
                file.unlink()

    def add(self, names: Sequence[str], values: np.ndarray, places: Mapping[str, np.ndarray] | None = None) -> None:
        """Writes one part: all rows of these inputs. What was added survives the end of the process.

        Args:
            names: one a row; all rows of an input come in one call.
            values: `[rows, dim]`.
            places: see `store.Vectors`; the same ones in each call.

        Raises:
            UserError: an input was added before, or a vector is not finite.
        """
        if not len(names):
            return
        if again := self.done.intersection(names):
            raise UserError(f"'{min(again)}' is the name of two inputs, but each needs one of its own; rename one.")
        if values.ndim != 2 or len(values) != len(names) or values.shape[1] != (self._dim or values.shape[1]):
            raise ValueError(f"{len(names)} names, values {values.shape}, before {self._dim}")
        check_finite(names, values)
        refuse_special(part := self.folder / f"part-{len(self._parts):07d}.npz")
        texts = np.array(list(names), np.str_)
        with written_whole(part) as new, new.open("wb") as file:
            arrays: dict[str, np.ndarray] = {
                name: np.asarray(numbers, np.int32) for name, numbers in (places or {}).items()
            }
            marks = {name: self._mark(name) for name in dict.fromkeys(names)}
            arrays["marks"] = np.array([marks[name] for name in names], np.int64)
            np.savez(file, names=texts, vectors=np.asarray(values, np.float32), **arrays)  # type: ignore[arg-type]
        self._dim = values.shape[1]
        self._parts.append(part)
        self.done.update(names)

    def close(self, order: Sequence[str] | None = None) -> int:
        """Joins the parts, in the order of `order` (names) where given, and removes them. Returns the number of rows.

        Names of `order` without a vector are left out, as are vectors whose name is not in it.

        Raises:
            UserError: there are no vectors.
        """
        names: list[str] = []
        ranks = {name: i for i, name in enumerate(order)} if order is not None else None
        counts, places = [], dict[str, list[np.ndarray]]()
        for part in self._parts:
            with parsing(part, "a part of vectors"), np.load(part, allow_pickle=False) as arrays:
                names += arrays["names"].tolist()
                counts.append(len(arrays["names"]))
                for name in set(arrays.files) - {"names", "vectors", "marks"}:
                    places.setdefault(name, []).append(arrays[name])
        kept = np.array([i for i, name in enumerate(names) if ranks is None or name in ranks], np.int64)
        if not len(kept):
            raise UserError(f"There are no vectors to write to '{self.path}'; give inputs.")
        if ranks is not None:
            kept = kept[np.argsort([ranks[names[i]] for i in kept], kind="stable")]
        target = np.empty(len(names), np.int64)
        target[:] = -1
        target[kept] = np.arange(len(kept))
        # On disk, so that memory does not grow with the number of vectors.
        joined = self.folder / ".joined.npy"
        values = np.lib.format.open_memmap(joined, "w+", np.float32, (len(kept), self._dim or 0))
        start = 0
        for part, count in zip(self._parts, counts, strict=True):
            with np.load(part, allow_pickle=False) as arrays:
                rows = target[start : start + count]
                values[rows[rows >= 0]] = arrays["vectors"][rows >= 0]
            start += count
        found = {name: np.concatenate(parts)[kept] for name, parts in sorted(places.items())}
        write_vectors(self.path, [names[i] for i in kept], values, found, self.about)
        del values
        shutil.rmtree(self.folder)
        self._lock.release()
        return len(kept)
