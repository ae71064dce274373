"""HTML pages that hold all they show: no network, light and dark, wide and narrow. Nothing else in the package writes
HTML.

Every text goes through `escape`, and the content security policy of a page runs no script but its own, by its hash, and
loads nothing: what a class or a file is called can change nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

LARGEST = 5_000_000
"""Bytes of a page."""
FOLDER = Path(__file__).parent
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Characters that a page cannot hold: control characters, and halves of pairs, as undecodable names of files have."""


def escape(text: object) -> str:
    """A text for an element or a quoted attribute."""
    return html.escape(CONTROL.sub("\ufffd", str(text)))


def document(title: str, body: str, style: str = "", scripts: Sequence[str] = (), data: Any = None) -> str:
    """A whole page.

    Args:
        title: of the window; a plain text.
        body: HTML, whose texts are escaped.
        style: CSS beside the common one.
        scripts: run at the end, each an element of its own; the common one comes first.
        data: JSON that they read from the element `data`; None for no such element.
    """
    codes = [(FOLDER / "page.js").read_text(encoding="utf-8"), *scripts]
    hashes = " ".join(f"'sha256-{_hash(code)}'" for code in codes)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}; img-src data:"
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    held = "" if data is None else f'<script type="application/json" id="data">{as_script(data)}</script>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}{style}</style>\n</head>\n<body>\n{body}\n{held}"
        + "\n".join(f"<script>{code}</script>" for code in codes)
        + "\n</body>\n</html>\n"
    )


def _hash(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def as_script(data: Any) -> str:
    """JSON that no text in it can end the element of."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


def check_size(page: str, advice: str) -> str:
    """The page, where it is not too large. Raises UserError with `advice` where it is."""
    size = len(page.encode())
    if size > LARGEST:
        raise UserError(f"The page would have {size / 1e6:.1f} MB, but may have {LARGEST / 1e6:.0f}; {advice}.")
    return page


# --- parts ------------------------------------------------------------------------------------------------------------


def element(tag: str, text: object, name: str = "") -> str:
    """An element with a text, and its class."""
    return f"<{tag}{_class(name)}>{escape(text)}</{tag}>"


def section(title: str, *parts: str, name: str = "") -> str:
    """A section below a heading; nothing where all parts are empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section{_class(name)}>\n{element('h2', title)}\n{inner}\n</section>" if inner else ""


def folded(title: str, inner: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>\n{inner}\n</details>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], marked: Iterable[tuple[int, int]] = ()) -> str:
    """A table that scrolls in itself where it is wider than the window.

    Args:
        columns: their names.
        rows: texts, and numbers as they are to be shown; columns but the first are set to the right where each cell
            begins like a number.
        marked: row and column of cells that stand out.
    """
    cells, bright = [[str(cell) for cell in row] for row in rows], set(marked)
    right = [
        number > 0 and all(re.match(r"[-+−–—]?[\d.]|[–—]?$", row[number]) for row in cells)
        for number in range(len(columns))
    ]
    head = "".join(f"<th{_class('n' * right[i])}>{escape(name)}</th>" for i, name in enumerate(columns))
    lines = []
    for at, row in enumerate(cells):
        names = [" ".join(["n"] * right[i] + ["best"] * ((at, i) in bright)) for i in range(len(row))]
        lines.append("".join(f"<td{_class(name)}>{escape(cell)}</td>" for name, cell in zip(names, row, strict=True)))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def picture(content: bytes, about: str, kind: str = "png") -> str:
    """An image that the page holds itself, with a line below."""
    return (
        f'<figure class="picture"><img src="{data_uri(content, kind)}" alt="{escape(about)}" loading="lazy">'
        f"<figcaption>{escape(about)}</figcaption></figure>"
    )


def data_uri(content: bytes, kind: str = "png") -> str:
    """The content of an image file as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def reduced(path: Path, side: int, colours: int = 0) -> bytes:
    """A picture as a PNG of at most `side` pixels; `colours` is the size of a palette, 0 for all colours.

    Raises:
        OSError: it is no picture.
    """
    from PIL import Image

    with Image.open(path) as found:
        small = found.convert("RGB")
    small.thumbnail((side, side))
    if colours:
        small = small.quantize(colours)
    held = io.BytesIO()
    small.save(held, "PNG", optimize=True)
    return held.getvalue()


def _class(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""
