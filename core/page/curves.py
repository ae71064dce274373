"""Curves of a page, as SVG: they are sharp at every size, and need no script to be seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .document import escape

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 38
"""Space around the drawing, in the units of the picture."""
COLOURS = 6
"""Of the style: `.c0` to `.c5`."""
MOST_BINS = 180
"""Of a line with more points, each part of the axis keeps the first, lowest, highest and last."""


@dataclass(frozen=True)
class Line:
    """One line.

    Args:
        name: for the legend; empty for none.
        x, y: its points, `[points]`; those that are missing or not finite are left out.
        colour: number of the colour; None for the place of the line.
        faint: thin and pale, in the background.
        points: with a mark at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int | None = None
    faint: bool = False
    points: bool = False


@dataclass(frozen=True)
class _Axes:
    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    def along(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (*self.x, value))
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def curves(
    title: str,
    lines: Sequence[Line],
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    band: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None,
    caption: str = "",
) -> str:
    """A figure of lines with its legend; empty where no line has a point.

    Args:
        title: above it.
        lines: the later ones above the earlier.
        x_label, y_label: what stands beside the axes.
        log_x: the horizontal axis is logarithmic; points at 0 and below are left out.
        band: x, low and high of an area behind the lines.
        caption: below it.
    """
    kept = [(number, line, _finite(line, log_x)) for number, line in enumerate(lines)]
    kept = [(number, line, points) for number, line, points in kept if points]
    area = [(x, y) for side in (1, 2) for x, y in zip(band[0], band[side])] if band else []
    every = [point for _, _, points in kept for point in points] + area
    if not kept:
        return ""
    axes = _Axes(_limits([x for x, _ in every], log_x), _limits([y for _, y in every]), log_x)
    parts = [_grid(axes)]
    if band:
        half = len(band[0])
        parts.append(f'<polygon class="band" points="{_path(axes, area[:half] + area[half:][::-1])}"/>')
    told, legend = [], []
    for number, line, points in kept:
        colour = f"c{(number if line.colour is None else line.colour) % COLOURS}"
        drawn = _thinned(points, axes)
        parts.append(f'<polyline class="{colour}{" faint" * line.faint}" points="{_path(axes, drawn)}"/>')
        if line.points:
            marks = (
                f'<circle class="{colour}" cx="{axes.along(x):.1f}" cy="{axes.up(y):.1f}" r="2.6"/>' for x, y in drawn
            )
            parts += marks
        if line.name:
            legend.append(f'<span class="{colour}{" faint" * line.faint}">{escape(line.name)}</span>')
        if not line.faint:
            told.append([line.name, [[round(axes.along(x), 1), _short(x), _short(y)] for x, y in drawn]])
    parts += _words(x_label, y_label)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    data = escape(json.dumps([x_label, told], ensure_ascii=True))
    svg = (
        f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-lines="{data}">{"".join(parts)}</svg>'
    )
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="chart">{heading}<p class="legend">{"".join(legend)}</p>{svg}<output></output>{below}</figure>'
    )


def _finite(line: Line, log_x: bool) -> list[tuple[float, float]]:
    pairs = ((x, y) for x, y in zip(line.x, line.y) if y is not None)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)]


def _limits(values: Sequence[float], tight: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if tight:
        return (low, high) if high > low else (low / 2, low * 2)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        gap = abs(low) * 0.1 or 1.0
    else:
        gap = (high - low) * 0.03
    return low - gap, high + gap


def _thinned(points: list[tuple[float, float]], axes: _Axes) -> list[tuple[float, float]]:
    if len(points) <= 2 * MOST_BINS:
        return points
    bins: dict[int, list[int]] = {}
    for number, (x, _) in enumerate(points):
        bins.setdefault(int((axes.along(x) - LEFT) / (WIDTH - LEFT - RIGHT) * MOST_BINS), []).append(number)
    kept: set[int] = set()
    for held in bins.values():
        kept |= {held[0], held[-1], min(held, key=lambda n: points[n][1]), max(held, key=lambda n: points[n][1])}
    return [points[number] for number in sorted(kept)]


def _path(axes: _Axes, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{axes.along(x):.1f},{axes.up(y):.1f}" for x, y in points)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    found = [10.0**power for power in powers]
    return found if len(found) > 1 else [low, high]


def _grid(axes: _Axes) -> str:
    floor, parts = HEIGHT - BOTTOM, []
    for value, text in _told(ticks(*axes.y)):
        y = axes.up(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" class="end">{text}</text>')
    for value, text in _told((_decades if axes.logarithmic else ticks)(*axes.x)):
        x = axes.along(value)
        parts.append(f'<path d="M{x:.1f} {TOP}V{floor}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 13}" class="middle">{text}</text>')
    return f'<g class="grid">{"".join(parts)}</g>'


def _told(values: list[float]) -> list[tuple[float, str]]:
    """Each with its text, of as many digits as tell them apart."""
    texts: list[str] = []
    for digits in range(4, 9):
        texts = [_short(value, digits) for value in values]
        if len(set(texts)) == len(texts):
            break
    return list(zip(values, texts))


def _words(x_label: str, y_label: str) -> list[str]:
    middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    below, beside = f'x="{middle}" y="{HEIGHT - 6}"', f'transform="translate(9 {centre}) rotate(-90)"'
    words = ((below, x_label), (beside, y_label))
    return [f'<text {place} class="middle">{escape(word)}</text>' for place, word in words if word]


def _short(value: float, digits: int = 4) -> str:
    """A number in few letters: 0.0123, 1.5, 12k, 3.4M, 1e-05."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= abs(value) < 1e12:
            return f"{value / (1e3 if unit == 'k' else limit):.{digits}g}{unit}"
    return f"{0.0 if abs(value) < 1e-300 else value:.{digits}g}"
