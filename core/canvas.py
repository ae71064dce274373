"""What all pictures share: the empty figure, its style, names that fit and can be drawn, and the file."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import written_whole

BLUE, RED, GREEN, GREY, PALE = "#2f6db3", "#d1495b", "#3d9a8b", "#8a8a8a", "#9db8d9"
"""What is right, wrong, better than it says, said beside it, and in the background."""
MISSING = (
    "<U+…> stands for a character that no font on this machine has; Noto Sans CJK has Chinese, Japanese and Korean"
)


def figure(width: float, height: float, layout: Any = "constrained") -> Any:
    """An empty figure, in inches; it needs no display and does not change a caller's pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(empty)
    return empty


def save(drawn: Any, target: Path, **options: Any) -> None:
    """Writes the PNG completely or not at all, every text in fonts that have its characters.

    `options` are those of matplotlib's `savefig`.
    """
    _choose_fonts(drawn)
    with written_whole(target) as part:
        drawn.savefig(part, format="png", **options)


def plain(axes: Any) -> None:
    """Only the lines that carry something: a light grid, no box."""
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def counted(number: float, _: Any = None) -> str:
    """A tick label: 0, 500, 12,000, 1.5M."""
    return f"{number / 1e6:g}M" if number >= 1e6 else f"{number:,.0f}"


# --- names ------------------------------------------------------------------------------------------------------------


def literal(name: str) -> str:
    """A name as it is to be read: a `$` would otherwise begin a formula."""
    return name.replace("$", r"\$")


def clip(name: str, most: int) -> str:
    """A class name in at most `most` characters, cut in the middle: names often differ only at their ends."""
    if len(name) > most:
        name = f"{name[: most - most // 3 - 1]}…{name[-(most // 3) :]}"
    return literal(name)


def fitted(names: Sequence[str], width: int, lines: int = 3) -> list[str]:
    """Names broken into at most `lines` lines of about `width` letters; a longer one is cut in the middle, and two that
    would then read alike get their numbers. Chinese, Japanese and Korean characters are as wide as two letters.
    """
    lacking = _families(frozenset("".join(names)))[1]
    spelled = [[" " if letter.isspace() else _spelled(letter, lacking) for letter in name] for name in names]
    short = [_broken(characters, width, lines) for characters in spelled]
    doubled = {text for text in short if short.count(text) > 1} if len(set(short)) < len(short) else set()
    return [f"{text} #{number}" if text in doubled else text for number, text in enumerate(short)]


def _broken(characters: list[str], width: int, lines: int) -> str:
    """A name in lines; what it is cut by is a whole number of characters, each as `_spelled` writes it."""
    kept = min(len(characters), width * lines)
    found = _lines(characters, width) if kept == len(characters) else []
    while not 0 < len(found) <= lines:
        kept -= 1
        tail = kept // 3
        found = _lines([*characters[: kept - tail], "…", *characters[len(characters) - tail :]], width)
    return literal("\n".join(found))


def _lines(characters: list[str], width: int) -> list[str]:
    """Breaks between words, within a word that is longer than a line, and beside wide characters."""
    lines: list[list[str]] = [[]]
    for character in characters:
        line = lines[-1]
        if line and not character.isspace() and sum(map(_width, [*line, character])) > width:
            breaks = [i + 1 for i, before in enumerate(line) if before.isspace() or _width(before) > 1]
            place = len(line) if _width(character) > 1 else max(breaks, default=len(line))
            lines[-1:] = [line[:place], line[place:]]
        lines[-1].append(character)
    return [text for line in lines if (text := "".join(line).strip())] or [""]


def _width(character: str) -> int:
    """Of a character or its code point in letters."""
    return len(character) * (2 if unicodedata.east_asian_width(character[0]) in "WF" else 1)


def _spelled(text: str, lacking: frozenset[str]) -> str:
    """A text with the code points of characters that no font has."""
    return "".join(f"<U+{ord(character):04X}>" if character in lacking else character for character in text)


def _choose_fonts(drawn: Any) -> None:
    """Gives texts with characters that the usual font lacks others beside it; writes out what no font has."""
    from matplotlib.text import Text

    texts = [text for text in drawn.findobj(Text) if not text.get_text().isascii() or "<U+" in text.get_text()]
    families, lacking = _families(frozenset("".join(text.get_text() for text in texts)))
    for text in texts:
        text.set_fontfamily(list(families))
        text.set_text(_spelled(text.get_text(), lacking))
    if any("<U+" in text.get_text() for text in texts):
        if (layout := drawn.get_layout_engine()) is not None:
            layout.set(rect=(0, 0.04, 1, 0.96))
        drawn.text(0.995, 0.002, MISSING, fontsize=6, color=GREY, ha="right", va="bottom")


@functools.lru_cache(maxsize=64)
def _families(wanted: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of fonts that have these characters between them, the usual one first, and what none has."""
    wanted = frozenset(character for character in wanted if not character.isspace())
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    def missing(file: str, characters: frozenset[str]) -> frozenset[str]:
        held = FT2Font(file).get_charmap()
        return frozenset(character for character in characters if ord(character) not in held)

    usual = findfont(FontProperties())
    families, left = [FT2Font(usual).family_name], missing(usual, wanted)
    for entry in fontManager.ttflist if left else ():
        if "last resort" in entry.name.lower() or entry.style != "normal":
            continue
        try:
            rest = missing(entry.fname, left)
        except (RuntimeError, OSError):  # a font that cannot be read is none
            continue
        if rest != left:
            families.append(entry.name)
            left = rest
        if not left:
            break
    return tuple(families), left
