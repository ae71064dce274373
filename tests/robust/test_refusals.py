"""A sample of docs/refusals.md (all of it with --slow): one sentence, exit code 2, nothing overwritten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triune.bench.refusals import all_cases
from triune.bench.refusals.made import Case
from triune.bench.refusals.run import LONGEST, make_good, make_runs, run

SAMPLE = 4
"""One case of so many runs without --slow; those that open a model's room cost up to a second each."""


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("good")
    make_good(place)
    make_runs(place, ("run-text", "run-texts", "run-images", "run-chains"))
    return place


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{case.room}-{case.about}", marks=[pytest.mark.slow] if number % SAMPLE else [])
        for number, case in enumerate(all_cases())
    ],
)
def test_one_sentence_exit_code_2_and_nothing_overwritten(
    case: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "ok").symlink_to(good)
    code, sentence = run(case, tmp_path)
    assert code == 2, sentence
    assert len(sentence) <= LONGEST
    assert re.search(case.words, sentence, re.IGNORECASE), sentence
