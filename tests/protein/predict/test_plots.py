"""The pictures and tables of predicted contacts."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triune.protein.predict.outputs import batch_table, confidence, pair_table, score_table
from triune.protein.predict.plots import BLUE, GREY, PALE, RED, contact_map, highest, known_cells
from triune.protein.predict.predictors import Prediction


def colour(text: str) -> tuple[int, ...]:
    return tuple(int(text[at : at + 2], 16) for at in (1, 3, 5))


def test_the_known_side_tells_found_missed_and_wrong() -> None:
    truth = np.zeros((20, 20), dtype=np.int8)
    truth[2, 12] = truth[3, 15] = 1
    truth[5] = truth[:, 5] = -1
    p = np.full((20, 20), 0.1)
    p[2, 12] = p[4, 14] = 0.9
    p[5, 17] = 0.99  # the most probable, but unknown
    cells, entries, counted = known_cells(p, truth, count=2)
    shown = (np.rint(cells[..., :3] * 255)).astype(int)
    for (i, j), expected in (((2, 12), BLUE), ((3, 15), GREY), ((4, 14), RED), ((5, 17), PALE), ((0, 19), "#ffffff")):
        assert tuple(shown[i, j]) == colour(expected), (i, j)
    assert [text for _, text in entries] == [
        "contact, predicted", "no contact, but predicted", "contact, missed", "unresolved",
    ]  # fmt: skip
    assert counted == 2


def test_the_map_shows_the_truth_above_the_diagonal(tmp_path: Path) -> None:
    p, truth = np.zeros((40, 40), dtype=np.float32), np.zeros((40, 40), dtype=np.int8)
    truth[5:15, 25:35] = truth[25:35, 5:15] = 1
    contact_map(tmp_path / "plain.png", p, "a $name$", "60 residues")
    contact_map(tmp_path / "known.png", p, "x" * 200, "one\ntwo", truth)
    plain, known = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("plain", "known"))
    grey = (known == colour(GREY)).all(-1)
    rows, columns = np.nonzero(grey)
    assert grey.sum() > 3000
    assert columns.mean() / known.shape[1] > 0.5 > rows.mean() / known.shape[0]  # in the upper right corner
    assert (plain == colour(GREY)).all(-1).sum() < 500


def test_tables_fit_narrow_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    pairs = [
        {
            "i": 100,
            "j": 1999,
            "residues": "W100-W1999",
            "probability": 0.5,
            "expected_distance": 12.3,
            "true_distance": d,
        }
        for d in (None, 12.3)
    ]
    values = {
        f"{r}_{s}{k}": 0.5 for r in ("short", "medium", "long") for s in ("p_at_l", "auc") for k in ("", "_chance")
    }
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for table in (pair_table(pairs), score_table(values), batch_table([])):
        stream = io.StringIO()
        Console(width=60, file=stream, force_terminal=False).print(table)
        lines = stream.getvalue().splitlines()
        assert lines
        assert max(map(len, lines)) <= 60
        assert "…" not in stream.getvalue()


def test_confidence_is_the_mean_of_the_best() -> None:
    p = torch.zeros(50, 50)
    p[0, 30], p[1, 40], p[2, 5] = 1.0, 0.5, 1.0
    assert confidence(p) == pytest.approx(1.5 / 10)
    assert confidence(torch.zeros(20, 20)) is None
    assert Prediction(p).notes == ()


def test_a_weak_map_is_no_blank_picture(tmp_path: Path) -> None:
    assert [highest(np.array([x, 0.0])) for x in (0.9, 0.5, 0.07, 0.0)] == pytest.approx([1, 1, 0.07, 1])
    p = np.full((40, 40), 0.001, dtype=np.float32)
    p[5:15, 25:35] = p[25:35, 5:15] = 0.04
    contact_map(tmp_path / "weak.png", p, "weak")
    picture = np.asarray(Image.open(tmp_path / "weak.png").convert("RGB")).astype(int)
    assert (picture.sum(-1) < 250).sum() > 3000  # dark squares


def test_the_border_of_chains_is_drawn(tmp_path: Path) -> None:
    p = np.zeros((40, 40), dtype=np.float32)
    for name, chains in (("one", ()), ("two", (25, 15))):
        contact_map(tmp_path / f"{name}.png", p, "title", chains=chains)
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).astype(int) for name in ("one", "two"))
    dark = [(picture < 90).sum(axis) for picture in (one, two) for axis in (0, 1)]
    assert (dark[2] > 800).sum() > (dark[0] > 800).sum()
    assert (dark[3] > 800).sum() > (dark[1] > 800).sum()
