"""`metrics.csv`: columns stay, a resumed run goes back, and a damaged file costs its damaged rows and nothing else."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from triune.core.training.run.rows import DAMAGED, MetricsFile, read_rows
from triune.core.training.run.telemetry import Snapshot

COLUMNS = [field.name for field in fields(Snapshot)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_stay_and_a_resumed_run_goes_back(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", COLUMNS)
    file.append({"step": 1, "loss": 2.0, "mfu": None})
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith("step,epoch,units,seconds,loss,val_loss,lr,")
    file.append({"step": 2, "val_loss": 1.5, "val_accuracy": 0.25})
    file.append({"step": 3, "loss": 1.25})
    found = rows(tmp_path / "metrics.csv")
    assert [row["loss"] for row in found] == ["2", "", "1.25"]
    assert [row["val_accuracy"] for row in found] == ["", "0.25", ""]
    assert found[0]["mfu"] == ""
    again = MetricsFile(tmp_path / "metrics.csv", COLUMNS)
    assert again.rewind(2) == ""
    again.append({"step": 3, "loss": 1.0, "val_accuracy": 0.5})
    assert [(row["step"], row["val_accuracy"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("1", ""), ("2", "0.25"), ("3", "0.5"),
    ]  # fmt: skip


def test_a_file_of_an_older_run_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("step,epoch,tokens,seconds,tokens_per_second\r\n2,0,64,1.5,40\r\n9,0,99,2,40\r\n")
    file = MetricsFile(path, COLUMNS)
    assert file.rewind(4) == ""
    file.append({"step": 6, "units": 128})
    assert path.read_text().split() == ["step,epoch,units,seconds,units_per_second", "2,0,64,1.5,40", "6,,128,,"]


GOOD = b"step,loss\n2,5.5\n4,5.25\n4,\n6,5.125\n8,5.0\n"
"""Of which a checkpoint of step 6 holds four rows."""
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "a zeroed end": (lambda text: text[:-12] + bytes(12), ["2", "4", "4"]),
    "zeros in the middle": (lambda text: text.replace(b"5.25", bytes(4)), ["2", "4", "6"]),
    "a cut row": (lambda text: text[:-8], ["2", "4", "4"]),
    "a cut number": (lambda text: text.replace(b"5.125\n8,5.0\n", b"5.1"), ["2", "4", "4"]),
    "lost rows": (lambda text: text[:18], ["2"]),
    "an empty file": (lambda text: b"", []),
    "another header": (lambda text: text.replace(b"step,loss", b"a,b"), []),
    "a column twice": (lambda text: text.replace(b"step,loss", b"step,step"), []),
    "no text": (lambda text: b"\xff\xfe\x00\x81" * 40, []),
    "a byte that is no text": (lambda text: text.replace(b"5.25", b"5\xe925"), ["2", "4", "6"]),
    "a word for a number": (lambda text: text.replace(b"\n4,5", b"\nfour,5"), ["2", "4", "6"]),
    "a cell too many": (lambda text: text.replace(b"5.25", b"5,25"), ["2", "4", "6"]),
    "an open quote": (lambda text: text.replace(b"5.25", b'"5.25'), ["2", "4", "6"]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_keeps_its_good_rows_and_a_copy_of_what_it_was(how: str, tmp_path: Path) -> None:
    path, (spoil, steps) = tmp_path / "metrics.csv", DAMAGE[how]
    path.write_bytes(spoil(GOOD))
    file = MetricsFile(path, COLUMNS)
    said = file.rewind(6, count=4)
    lost = 4 - len(steps)
    assert f"{lost} row{'s' if lost > 1 else ''} of {path} cannot be read" in said and said.endswith(".")
    assert (tmp_path / DAMAGED).read_bytes() == spoil(GOOD)
    file.append({"step": 8, "loss": 5.0})
    assert [row["step"] for row in rows(path)] == [*steps, "8"]
    assert file.rows == len(steps) + 1
    assert all(row is not None for row in read_rows(path).rows)


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", COLUMNS)
    assert "is gone" in file.rewind(6, count=4)
    assert file.rows == 0 and rows(file.path) == []
    new = MetricsFile(tmp_path / "new.csv", COLUMNS)
    assert new.rewind(0, count=None) == "" and not new.path.exists()


def test_what_was_being_written_when_the_process_died_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for count in (4, None):  # older checkpoints do not say how many rows they have seen
        path.write_bytes(GOOD[:-2])
        assert MetricsFile(path, COLUMNS).rewind(6, count) == ""
        assert [row["step"] for row in rows(path)] == ["2", "4", "4", "6"]
    assert not (tmp_path / DAMAGED).exists()
