"""`report.html`: the figures of a run beside what they are judged by, and all that may be missing or damaged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from triune.cli import main
from triune.core.training.run.figures import better, evaluations, figures_of
from triune.core.training.run.folder import RunFolder
from triune.core.training.run.page import run_page

EVIL = "<script>alert(1)</script>"
Make = Callable[..., RunFolder]


def picture(path: Path, side: int) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def test_the_page_holds_figures_baselines_curves_and_origin(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = run_page(run)
    row = re.search(r"<tr><td>accuracy</td>.*?</tr>", page)
    assert row and re.findall(r">([^<>]+)</td>", row[0]) == ["accuracy", "0.7500", "0.6000 to 0.9000", "0.4000"]
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles == ["loss", "learning rate", "throughput", "accuracy"]
    assert "4 steps, figures are of the weights of step 4, 1,234 parameters, 99 row in 1:01, a CPU" in page
    assert "Few rows." in page and "config.yaml" in page and page.count("&lt;script&gt;") == 3 and EVIL not in page


def test_the_later_of_two_validations_and_the_test_are_shown(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.validation.write_text(json.dumps({"val_loss": 0.25, "val_top1": 0.5, "baseline_majority_class": 0.3}))
    (run.path / "test.json").write_text(json.dumps({"test_loss": 0.7, "test_x_p_at_l": 0.2, "test_x_p_at_l_chance": 0.1,
                                                    "test_x_p_at_l_ceiling": 0.8}))  # fmt: skip
    os.utime(run.validation, ns=(2**62, 2**62))
    first, second = evaluations(run)
    assert [(f.name, f.value) for f in first.figures] == [("loss", 0.25), ("top1", 0.5)] and first.side == "val"
    assert first.figures[1].baselines == {"majority class": 0.3}
    assert second.side == "test" and second.figures[1].baselines == {"chance": 0.1} and second.figures[1].ceiling == 0.8
    os.utime(run.validation, ns=(1, 1))
    assert evaluations(run)[0].source == "summary.json"


@pytest.mark.parametrize(
    ("name", "side"),
    [("val_loss", "low"), ("nll_calibrated", "low"), ("val_long_p_at_l5", "high"), ("long_p_at_l_neff_10_50", "high"),
     ("ece_calibrated", "low"), ("coverage", None), ("images", None), ("val_bits_per_byte", "low"), ("auroc", "high")],
)  # fmt: skip
def test_the_better_side_of_a_figure(name: str, side: str | None) -> None:
    assert better(name) == side


def test_figures_of_a_damaged_file_are_left_out() -> None:
    content = {"val_loss": float("nan"), "val_top1": True, "nll": "x", "ece": 0.1, "judged": [1], "per_class": 3}
    assert [figure.name for figure in figures_of(content, "x").figures] == ["ece"]


def test_large_pictures_are_made_smaller_and_damaged_ones_named(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("a", "b", "loss"):
        picture(run.path / f"{name}.png", 900)
    (run.path / "torn.png").write_bytes((run.path / "a.png").read_bytes()[:400_000])
    (run.path / "no.png").write_bytes(b"<svg onload=alert(1)>")
    os.mkfifo(run.path / "pipe.png")
    page = run_page(run)
    assert len(page.encode()) <= 5_000_000 and page.count("<img ") == 2
    for name in ("torn.png", "no.png", "pipe.png"):
        assert f"{name} lies beside this page, but cannot be shown here." in page


def test_an_unfinished_run_says_so_and_shows_its_curves(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    run.summary.unlink()
    assert main(["report", str(run)]) == 0
    page = run.report.read_text()
    assert "has not finished" in page and "<h3>loss</h3>" in page
    assert str(run.report) in capsys.readouterr().out
    run.metrics.write_bytes(b"\x00nonsense")
    assert main(["report", str(run), "--out", str(tmp_path / "o.html")]) == 0
    assert "<svg" not in (tmp_path / "o.html").read_text()


def test_what_is_no_run_is_one_sentence(make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    file = tmp_path / "x.ckpt"
    file.write_bytes(b"x")
    for words, said in (
        ([str(file)], "is a file, not a run folder"), ([str(tmp_path)], "is not a run folder"),
        ([str(run), "--out", str(tmp_path / "x.png")], "must end in .html"), ([], "required: RUN"),
    ):  # fmt: skip
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    run.summary.write_text("{")
    assert main(["report", str(run)]) == 2
    assert "not valid JSON" in capsys.readouterr().err and not run.report.exists()
