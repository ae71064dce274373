"""Pages: what texts cannot do in them, what a curve keeps, and that nothing outside is asked."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.core.page import document
from triune.core.page.curves import Line, curves, ticks

EVIL = ["</title><script>alert(1)</script>", '" onload="alert(1)', "'><img src=x onerror=alert(1)>", "a\x00b\ud800\x1b"]


class Seen(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_becomes_markup(evil: str) -> None:
    body = document.section(
        evil,
        document.element("p", evil, evil),
        document.table([evil, "b"], [[evil, evil]]),
        document.picture(b"png", evil),
        document.folded(evil, document.element("pre", evil)),
        curves(evil, [Line(evil, [1, 2], [1.0, 2.0])], evil, evil, caption=evil),
    )
    page = document.document(evil, body, data={"text": evil})
    page.encode()  # what no file can hold is replaced
    seen = Seen(page)
    assert [tag for tag, _ in seen.tags].count("script") == 2  # the data and the page's own
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert [tag for tag, _ in seen.tags].count("img") == 1
    shown = document.CONTROL.sub("\ufffd", evil)
    assert sum(text.strip() == shown.strip() for text in seen.texts) >= 8
    data = re.search(r'id="data">(.*?)</script>', page)
    assert data and json.loads(data[1])["text"] == evil


def test_only_scripts_of_the_page_run_and_nothing_is_loaded() -> None:
    page = document.document("t", "<p>x</p>", scripts=["let a = 1;"])
    policy = html.unescape(re.search(r'Security-Policy" content="(.*?)"', page)[1])  # type: ignore[index]
    codes = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in codes]
    assert len(codes) == 2 and all(f"'sha256-{one}'" in policy for one in hashes)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_page_that_is_too_large_is_refused() -> None:
    assert document.check_size("x" * document.LARGEST, "cut it") == "x" * document.LARGEST
    with pytest.raises(UserError, match=r"5.0 MB, but may have 5; cut it\."):
        document.check_size("ä" * (document.LARGEST // 2 + 1), "cut it")


def test_numbers_stand_to_the_right_and_the_best_is_marked() -> None:
    page = document.table(["name", "value", "text"], [["a", "1.5", "b"], ["c", "—", "2"]], [(0, 1)])
    assert page.count('class="n best"') == 1 and page.count('class="n"') == 2  # the head and the dash


def test_a_curve_keeps_its_extremes_and_leaves_out_what_is_no_number() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=20_000)
    y[777], y[12_345] = 50.0, -60.0
    drawn = curves("x", [Line("a", range(20_000), y.tolist())])
    points = re.search(r'polyline class="c0" points="(.*?)"', drawn)[1].split()  # type: ignore[index]
    assert len(points) <= 4 * 181
    heights = [float(point.split(",")[1]) for point in points]
    told = [point[2] for point in json.loads(html.unescape(re.search(r'data-lines="(.*?)"', drawn)[1]))[1][0][1]]  # type: ignore[index]
    assert "50" in told and "-60" in told and min(heights) >= 10 and max(heights) <= 220
    nan, inf = float("nan"), float("inf")
    held = curves("x", [Line("a", [0, 1, 2, 3, 4], [1.0, nan, None, inf, 3.0], points=True)])
    assert held.count("<circle") == 2 and "nan" not in held and "inf" not in held
    assert curves("x", [Line("a", [0, 1], [nan, None])]) == ""
    assert curves("x", [Line("a", [0], [1.0])], log_x=True) == ""  # no logarithm


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.2345, 1.2346), (-3, 7e6), (1e-9, 3e-9)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8 and low <= found[0] and found[-1] <= high * (1 + 1e-9)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0]) and round(steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)) in (1, 2, 5, 10)
