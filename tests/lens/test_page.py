"""The page in a browser, where there is one: it draws all that it was given, and its script ends."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from triune.core.subject import Square, Table
from triune.lens.page import page
from triune.lens.report import Curves, Grid, Heads, Report, Tokens

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]


def everything() -> Report:
    torch.manual_seed(0)
    nan = torch.rand(3, 4)
    nan[1] = float("nan")
    square, names, maps = torch.rand(9, 9), list("ab\nc<"), torch.rand(3, 5, 5)
    band = ([0.0, 0.1, 0.2], [0.2, 0.3, 0.4])
    image = Tokens("rollout", ["class", "0,0", "0,1"], ["answer"], torch.rand(1, 3), torch.rand(1, 3), "r", (1, 2))
    image.image = torch.rand(4, 8, 3)
    panels = [
        Heads("scores", nan, "mean attention", False, "a caption"),
        Curves("a curve", [1, 2, 4], {"without": [0.1, 0.2, 0.3]}, "nats", "parts", band),
        Grid("a grid", torch.randn(2, 5), ["0", "1"], list("abcde"), "share", "its caption"),
        Square("Contacts", "above and below", square + square.T, square + square.T, [[0, 8]]),
        Tokens("all layers", names, names, maps[0], maps[1], "r", heads={"0.1": maps[2]}),
        image,
    ]
    rows = [["<i>", 0.25], [None, 3]]
    return Report("All panels </script><b>", ["a note"], [Table("a table", ["word", "number"], rows)], panels)


@pytest.mark.slow(reason="starts a browser")
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("size", ["1280,900", "390,844"])
def test_a_browser_draws_all_panels(size: str, tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text(page(everything()), encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}"]
    found = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'x.html'}"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert 'data-ready="true"' in found.stdout  # the last line of the script was reached
    assert found.stdout.count("<canvas") == 5 and len(re.findall(r'<polyline class="c0" points="\d', found.stdout)) == 1
    titles = re.findall(r"<h2>(.*?)</h2>", found.stdout)
    assert {"a curve", "a grid", "Contacts", "a table"} <= set(titles)
    assert "All panels &lt;/script&gt;&lt;b&gt;" in found.stdout
