"""Pairs of texts made by rules: dates to ISO 8601, number words to digits. Standard library only.

A pair belongs to a side by a hash of its target, so that no target of validation or test is ever trained on, in
whatever words it is written.
"""

from __future__ import annotations

import datetime
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")
SHARES = 10
"""One target of so many belongs to validation, one to test."""

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth",
}  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
LARGEST = 999_999


class Pair(NamedTuple):
    """A text and what it becomes."""

    source: str
    target: str


def side_of(target: str) -> Side:
    """The side that a target belongs to, the same on every machine."""
    return {0: "val", 1: "test"}.get(zlib.crc32(target.encode()) % SHARES, "train")  # type: ignore[return-value]


def pairs(rule: str, side: Side, seed: int) -> Iterator[Pair]:
    """Pairs of one side, without an end; equal ones may come again.

    Args:
        rule: a key of `RULES`.
        side: whose targets.
        seed: of the draws.
    """
    draw, chance = RULES[rule].draw, random.Random(f"{rule} {side} {seed}")
    while True:
        pair = draw(chance)
        if side_of(pair.target) == side:
            yield pair


def first(rule: str, side: Side, count: int, seed: int) -> list[Pair]:
    """The first `count` different pairs of a side."""
    found: dict[Pair, None] = {}
    for pair in pairs(rule, side, seed):
        found.setdefault(pair)
        if len(found) == count:
            return list(found)
    raise AssertionError("pairs does not end")


# -- numbers ----------------------------------------------------------------------------------------------------------


def words(number: int, conjunction: bool = False, hyphen: str = "-") -> str:
    """English words of a number from 0 to 999,999.

    Args:
        number: the number.
        conjunction: British: "one hundred and five", "twelve thousand and five".
        hyphen: between tens and ones.
    """
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, rest = TENS[number // 10 - 2], number % 10
        return f"{tens}{hyphen}{ONES[rest]}" if rest else tens
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head, rest = f"{words(number // size, conjunction, hyphen)} {name}", number % size
    if not rest:
        return head
    link = " and " if conjunction and rest < 100 else " "
    return f"{head}{link}{words(rest, conjunction, hyphen)}"


def draw_number(chance: random.Random) -> Pair:
    """A number below a million, in words and in digits; all lengths come equally often."""
    number = chance.randrange(10 ** chance.randint(1, len(str(LARGEST))))
    text = words(number, chance.random() < 0.5, chance.choice("- "))
    return Pair(_case(text, chance), str(number))


# -- dates ------------------------------------------------------------------------------------------------------------


def ordinal(number: int, spelled: bool) -> str:
    """first, twenty-third; 1st, 23rd."""
    if not spelled:
        ending = "th" if 10 < number % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{ending}"
    head, hyphen, last = words(number).rpartition("-")
    return f"{head}{hyphen}{ORDINALS.get(last, f'{last}th')}"


def year_words(year: int) -> str:
    """nineteen eighty-seven, nineteen oh five, two thousand and five, twenty fifty."""
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return words(year, True)
    if not rest:
        return f"{words(century)} hundred"
    return f"{words(century)} oh {words(rest)}" if rest < 10 else f"{words(century)} {words(rest)}"


def draw_date(chance: random.Random) -> Pair:
    """A day from 1900 to 2099 in one of many forms, and in ISO 8601.

    Months are names, as 03/04/1987 is one day in Europe and another in America; years have four digits.
    """
    date = datetime.date.fromordinal(chance.randint(FIRST_DAY, LAST_DAY))
    month = MONTHS[date.month - 1]
    short = month[:3] + chance.choice(("", "."))
    month = short if chance.random() < 0.3 and len(month) > 4 else month
    day = chance.choice((str(date.day), f"{date.day:02d}", ordinal(date.day, False), ordinal(date.day, True)))
    year = year_words(date.year) if chance.random() < 0.25 else str(date.year)
    text = chance.choice(FORMS).format(day=day, month=month, year=year, of=chance.choice(("of ", "")))
    if chance.random() < 0.25:
        text = f"{DAYS[date.weekday()]}{chance.choice((',', ''))} {text}"
    return Pair(_case(text, chance), date.isoformat())


FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{month} {day} {year}",
    "the {day} {of}{month}, {year}",
    "the {day} {of}{month} {year}",
    "{year}, {month} {day}",
    "{month} the {day}, {year}",
)


def _case(text: str, chance: random.Random) -> str:
    """As it is, in small letters, or in capitals."""
    how = chance.random()
    return text if how < 0.6 else text.lower() if how < 0.85 else text.upper()


class Rule(NamedTuple):
    """What `--data.pairs NAME` means."""

    about: str
    draw: Callable[[random.Random], Pair]


RULES: dict[str, Rule] = {
    "dates": Rule("days from 1900 to 2099 in many forms, to ISO 8601", draw_date),
    "numbers": Rule("number words below a million, to digits", draw_number),
}
