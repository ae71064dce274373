"""`triune emergence` in its smallest form: what is computed, written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from triune.cli import main
from triune.recall.emergence import DIGITS, change, leap, sums


def test_sums_are_written_with_the_highest_digit_first() -> None:
    rows = sums(torch.tensor([7, 999]), torch.tensor([95, 1]))
    assert rows.shape == (2, 3 * DIGITS + 3)
    assert rows.tolist() == [[0, 0, 7, 10, 0, 9, 5, 11, 0, 1, 0, 2], [9, 9, 9, 10, 0, 0, 1, 11, 1, 0, 0, 0]]


def test_a_leap_and_a_slope_are_told_apart() -> None:
    assert leap([0.0, 0.5, 1.0]) == 0.5 and leap([0.0, 0.0, 1.0]) == 1.0 and leap([1.0, 1.0]) == 0.0
    steps = range(0, 101, 5)
    slope = change([{"step": step, "nats": 4 - step / 25} for step in steps])
    sudden = change([{"step": step, "nats": 4.0 if step < 50 else 0.0} for step in steps])
    assert slope["share_of_fall"] == pytest.approx(0.1) and sudden["share_of_fall"] == 1.0
    assert sudden["steepest"][0] < 50 <= sudden["steepest"][1]


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "emergence.json"
    words = ["emergence", "--widths", "4,8", "--budget", "0.01", "--output", str(target)]
    assert main(words) == 0
    said, found = capsys.readouterr().out, json.loads(target.read_text())
    assert [row["width"] for row in found["ladder"]] == [4, 8]
    assert [run["layers"] for run in found["induction"]] == [2, 1]
    for row in found["ladder"]:
        assert 0 <= row["exact_match"] <= row["digit_accuracy"] <= 1 and row["log_likelihood"] < 0
        assert f"digits {row['digit_accuracy']:.3f}" in said
    assert found["induction"][0]["points"][-1]["step"] == 8
    assert target.with_suffix(".png").stat().st_size > 10_000
    assert main(words) == 2  # the files are there


@pytest.mark.parametrize("widths", ["8", "8,8", "3,8", "a,8", "", "8,,16"])
def test_widths_that_are_no_ladder_are_refused(widths: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emergence", "--widths", widths, "--output", str(tmp_path / "a.json")]) == 2
    assert "--widths is" in capsys.readouterr().err
