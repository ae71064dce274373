"""The rows of `metrics.csv`: appended in training, and cut back when a run is resumed, whatever became of the file."""

from __future__ import annotations

import contextlib
import csv
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...files import refuse_special, write_atomic

RENAMED = {"tokens": "units", "tokens_per_second": "units_per_second"}
"""Columns that files of older runs call otherwise."""
DAMAGED = "metrics.damaged.csv"
"""What a file is kept as of which not all rows can be read."""


class Rows(NamedTuple):
    """The columns of a file, and each of its rows; None for one that is cut, or holds something else than numbers."""

    columns: list[str]
    rows: list[dict[str, str] | None]


def read_rows(path: Path) -> Rows:
    """The rows of a `metrics.csv`; without columns where its first line is none of ours."""
    lines = path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
    columns = [RENAMED.get(name, name) for name in "".join(lines[:1]).rstrip("\r\n").split(",")]
    if "step" not in columns or len(set(columns)) < len(columns) or not lines[0].endswith("\n"):
        return Rows([], [None] * len(lines))
    return Rows(columns, [_row(line, columns) for line in lines[1:]])


def _row(line: str, columns: list[str]) -> dict[str, str] | None:
    with contextlib.suppress(ValueError):  # numbers need no quotes
        cells = line.rstrip("\r\n").split(",")
        row = dict(zip(columns, cells, strict=True))
        int(row["step"])
        for cell in filter(None, cells):
            float(cell)
        if line.endswith("\n"):
            return row
    return None


def changed(path: Path, known: Any) -> str:
    """Says that the rows of a `metrics.csv` are not those of its run; empty where they are, or that is not known.

    Args:
        known: `MetricsFile.known` of the run when its last checkpoint was written; later rows may follow.
    """
    if not isinstance(known, dict) or not isinstance(count := known.get("count"), int) or not path.is_file():
        return ""
    found = 0
    rows = read_rows(path).rows[:count]
    for row in rows:
        found = _add(row or {}, found)
    if len(rows) == count and found == known.get("checksum"):
        return ""
    return f"Rows of {path} are not those that this training wrote; the file is damaged, or of another run."


class MetricsFile:
    """A CSV file whose columns stay; it is rewritten only when a task brings new ones or a resumed run goes back.

    Args:
        path: of the file.
        columns: those of a new file.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = list(columns)
        self.rows = 0
        self.checksum = 0
        """Of all rows so far, whatever columns the file has beside those of a row."""
        self.known: dict[str, int] = {}
        """Number and checksum of the rows when the last checkpoint was written, or read."""

    def rewind(self, step: int, count: int | None = None, checksum: int | None = None) -> str:
        """Drops the rows after `step`, and all but the first `count`, which a resumed run writes again.

        Returns what is lost, in words, where rows of before cannot be read; the file is then kept as `DAMAGED`. Says so
        too where they can, but are not those of `checksum`.

        Raises:
            UserError: there is something else than a regular file.
        """
        refuse_special(self.path)
        if self.path.exists():
            columns, rows = read_rows(self.path)
        elif count:
            columns, rows = [], []
        else:
            return ""
        if count is None:  # a run of before, whose checkpoints do not say it; what was being written may be cut
            rows = rows[:-1] if rows and rows[-1] is None and columns else rows
            before = [row for row in rows if row is None or int(row["step"]) <= step]
        else:
            before = rows[:count]
        good = [row for row in before if row is not None and int(row["step"]) <= step] if columns else []
        lost = (len(before) if count is None else count) - len(good)
        said = self._keep_damaged(lost) if lost else ""
        self.columns = columns or self.columns
        self._rewrite(good)
        self.rows, self.checksum = len(good), 0
        for row in good:
            self.checksum = _add(row, self.checksum)
        if not said and checksum is not None and checksum != self.checksum:
            said = f"Rows of {self.path} are not those that were written; the training itself is not touched by it."
        return said

    def _keep_damaged(self, lost: int) -> str:
        what = f"{lost:,} row{'s' if lost > 1 else ''} of {self.path} cannot be read"
        if not self.path.exists():
            return (
                f"{self.path} is gone, and with it {lost:,} rows of before; the training itself is not touched by it."
            )
        kept = self.path.with_name(DAMAGED)
        write_atomic(kept, self.path.read_bytes())
        return f"{what}; the file is kept as {kept}, and goes on without; the training itself is not touched by it."

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row; missing and unknown values stay empty."""
        if new := [name for name in row if name not in self.columns]:
            rows = read_rows(self.path).rows if self.path.exists() else []
            self.columns += new
            self._rewrite([before for before in rows if before is not None])
        if not self.path.exists():
            self._rewrite([])
        with self.path.open("a", encoding="utf-8", newline="") as file:
            cells = {name: _cell(value) for name, value in row.items()}
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(cells)
        self.rows, self.checksum = self.rows + 1, _add(cells, self.checksum)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        # Complete or not at all: a full disk must not cost the rows that were there.
        write_atomic(self.path, text.getvalue().encode())


def _add(row: dict[str, Any], before: int) -> int:
    """The checksum of rows, with one more."""
    text = "".join(f"{name}={cell}\n" for name, cell in sorted(row.items()) if cell not in ("", None))
    return zlib.crc32(text.encode(), before)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
