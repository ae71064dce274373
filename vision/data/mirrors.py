"""Whether a mirrored image is still of its class, as far as names tell: not where they are characters or directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ...core.labels.cells import same


def _all(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_NUMBER_WORDS = _all(
    "zero nought null none one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred",
    "eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "un deux trois quatre cinq sept huit neuf dix cero uno dos tres cuatro cinco seis siete ocho nueve diez",
    "due quattro cinque sei sette otto nove",
)
"""Of English, and the digits of German, French, Spanish and Italian."""
_LETTERS = _all(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi",
    "psi omega alef aleph bet gimel dalet he vav zayin het tet yod kaf lamed mem nun samekh ayin pe tsadi qof resh",
    "shin tav alif ba ta tha jim ha kha dal dhal ra zay sin sad dad za ghayn fa qaf lam mim waw ya",
)
"""Names of Greek, Hebrew and Arabic letters."""
_KANA = re.compile(r"(ch|sh|ts|[kgsztdnhbpmyrwjf]y?)?[aiueo]|n")
_SIGNS = _all("digit letter char character glyph numeral alphabet kana hiragana katakana kanji hangul")
"""Words that say that a class is a character."""
_BESIDE = _all("class number sample symbol upper lower uppercase lowercase cap caps capital small big")
"""Words beside a character that do not name another thing."""
_SIDES = (
    ("left", "right"), ("west", "east"), ("port", "starboard"), ("sinistral", "dextral"), ("sinister", "dexter"),
    ("anticlockwise", "clockwise"), ("counterclockwise", "clockwise"), ("ccw", "cw"), ("links", "rechts"),
    ("gauche", "droite"), ("izquierda", "derecha"), ("izquierdo", "derecho"), ("esquerda", "direita"),
    ("sinistra", "destra"), ("levo", "dextro"), ("less", "greater"), ("lt", "gt"), ("leq", "geq"),
    ("backslash", "slash"), ("l", "r"), ("od", "os"), ("ne", "nw"), ("se", "sw"), ("lcc", "rcc"), ("lmlo", "rmlo"),
    ("\u5de6", "\u53f3"),
)  # fmt: skip
"""Words, and parts of words of four letters and more, that a mirror exchanges. The last are Chinese and Japanese."""
_MEASURED = _all(
    "angle steering steer yaw heading bearing azimuth direction rotation roll tilt skew offset asymmetry longitude lon",
    "horizontal left right column col cx xmin xmax x1 x2 xcenter bbox",
)
"""Words in the names of quantities that another value belongs to in a mirror image."""


def mirrors(names: Sequence[str]) -> bool:
    """Whether a mirrored image is still of its class, as far as the names of the classes tell.

    It is not where two or more classes, or all, are digits, numbers, letters or other characters, or where classes
    differ by what a mirror exchanges, such as left and right.
    """
    signs = sum(map(_is_sign, names))
    lone = [same(name).lower() for name in names]
    letters = all(name in _LETTERS for name in lone) or (len(names) > 4 and all(map(_KANA.fullmatch, lone)))
    return signs < min(2, len(names)) and not letters and not has_sides(names)


def has_sides(names: Sequence[str]) -> bool:
    """Whether two of the names differ by what a mirror exchanges."""
    words = [_words(name) for name in names]
    if any(any(one in word for word in words) and any(other in word for word in words) for one, other in _SIDES):
        return True
    lower = {same(name).lower() for name in names}
    pairs = [pair for pair in _SIDES if len(pair[0]) > 3 or not pair[0].isascii()]
    return any(one in name and name.replace(one, other) in lower for name in lower for one, other in pairs)


def mirrors_all(parts: Iterable[Any]) -> bool:
    """Whether mirrored images keep their targets: a `Target` or `HeadSpec` for each head, with `kind` and `names`."""
    return all(mirrors(part.names) and not (part.kind == "regress" and _is_measured(part.names)) for part in parts)


def _is_measured(names: Sequence[str]) -> bool:
    return any(_words(name) & _MEASURED for name in names)


def _words(name: str) -> set[str]:
    """The words of a name, in small letters: apart by signs or by a capital letter within."""
    return {word.lower() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", same(name)) if word}


def _is_sign(name: str) -> bool:
    """Whether a name is that of a character or a number."""
    if len(same(name).strip()) == 1:
        return True
    words = _words(name)
    told = words - _BESIDE
    if words & _SIGNS:
        return True
    return bool(told) and (
        all(word in _NUMBER_WORDS or word.isdecimal() for word in told)
        or (len(told) == 1 and all(len(word) == 1 for word in told))
    )
