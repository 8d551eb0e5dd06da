"""The growth curves as one SVG: small multiples on logarithmic axes, for light and dark pages, without a library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 400, 230  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 54, 48, 40  # around its plot
_COLUMNS = 2

_STYLE = """
    .page { fill: #ffffff } .title { fill: #1f2328; font-weight: 600; font-size: 13px } .text { fill: #59636e; font-size: 11px }
    .grid { stroke: #d1d9e0; stroke-width: 1 } .promise { stroke: #9a6700; stroke-dasharray: 5 4 } .promised { fill: #9a6700; font-size: 11px }
    .line { fill: none; stroke-width: 2 } .first { stroke: #0969da } .dot-first, .name-first { fill: #0969da }
    .second { stroke: #8250df } .dot-second, .name-second { fill: #8250df } .name { font-size: 11px; font-weight: 600 } .run { opacity: 0.35 }
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117 } .title { fill: #f0f6fc } .text { fill: #9198a1 } .grid { stroke: #3d444d }
      .promise { stroke: #d29922 } .promised { fill: #d29922 } .first { stroke: #4493f8 } .dot-first, .name-first { fill: #4493f8 }
      .second { stroke: #ab7df8 } .dot-second, .name-second { fill: #ab7df8 }
    }
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """A level that is promised for some number of results, as a line across the panel."""

    value: float
    words: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure, or two of the same unit, over the number of results. `series`: the figure's name in the file, and in words."""

    title: str
    unit: str
    series: tuple[tuple[str, str], ...]
    promise: Promise | None = None


PANELS = (
    Panel("Backfill in process", "results/s", (("results_per_second", "benchbridge"),)),
    Panel(
        "Backfill, of what DuckDB's own copy reaches",
        "ratio",
        (("ratio", "of the same rows"), ("ratio_to_bare_copy", "of a bare copy")),
        Promise(0.45, "promised: 0.45"),
    ),
    Panel("A scheduled cycle, nothing new", "ms", (("idle_ms", "cycle"),), Promise(5, "promised for 1M: 5 ms")),
    Panel(
        "A scheduled cycle, 100 new results",
        "ms",
        (("new_ms", "cycle"), ("new_held_max_ms", "file held")),
        Promise(400, "promised for 1M: 400 ms"),
    ),
    Panel("The whole file compared, nothing changed", "s", (("comparison_s", "sync"),)),
    Panel("Reading the accounting, p95", "ms", (("accounting_p95_ms", "p95"),)),
    Panel("Peak memory of a backfill, service included", "MB", (("peak_mb", "process"),)),
    Panel(
        "The benchmark file held during a backfill",
        "ms",
        (("held_p95_ms", "p95"), ("held_max_ms", "longest")),
        Promise(100, "promised: 100 ms"),
    ),
)


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten; over less than two of them also twos and fives, over less than three also threes."""
        steps = (1, 2, 5) if self.high / self.low < 100 else (1, 3) if self.high / self.low < 1000 else (1,)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [mark for mark in marks if self.low * 0.999 <= mark <= self.high * 1.001]


def draw(figures: Sequence[Mapping[str, Any]]) -> str:
    """The picture of measurements of several sizes. Where a size was measured more than once the line goes through the median, and each run has a dot."""
    sizes = sorted({int(figure["results"]) for figure in figures})
    rows = -(-len(PANELS) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-labelledby="name about">',
        '<title id="name">benchbridge: speed and memory by the number of results</title>',
        f'<desc id="about">{escape("; ".join(_in_words(panel, figures, sizes) for panel in PANELS))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for place, panel in enumerate(PANELS):
        row, column = divmod(place, _COLUMNS)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')
        parts += _panel(panel, figures, sizes)
        parts.append("</g>")
    parts += [_text(_LEFT, height - 10, _footnote(figures, sizes)), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, figures: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> list[str]:
    across = Axis(sizes[0] / 1.15, sizes[-1] * 1.15, _LEFT, _WIDTH - _RIGHT)
    levels = [float(figure[name]) for figure in figures for name, _ in panel.series]
    up = Axis(*_bounds([*levels, *([panel.promise.value] if panel.promise else [])]), _HEIGHT - _BOTTOM, _TOP)
    parts = [_text(_LEFT, 22, panel.title, "title"), _text(8, _TOP - 10, panel.unit)]
    for mark in up.ticks():
        parts.append(f'<path class="grid" d="M{_LEFT} {up.at(mark):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, up.at(mark) + 4, _short(mark), "text", "end"))
    for mark in _spaced(sizes, across):
        parts.append(f'<path class="grid" d="M{across.at(mark):.1f} {_HEIGHT - _BOTTOM}v4"/>')
        parts.append(_text(across.at(mark), _HEIGHT - _BOTTOM + 16, _short(mark), "text", "middle"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - _BOTTOM + 30, "results in the file", "text", "end"))
    if panel.promise:
        level = up.at(panel.promise.value)
        parts.append(f'<path class="promise" d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_WIDTH - 8, _TOP - 10, panel.promise.words, "promised", "end"))
    ends: list[tuple[float, str, str, str]] = []  # height, class, value, words
    for rank, (name, words) in zip(("first", "second"), panel.series, strict=False):
        middles = [(across.at(size), up.at(_middle(figures, name, size))) for size in sizes]
        for figure in figures if len(figures) > len(sizes) else ():
            x, y = across.at(figure["results"]), up.at(float(figure[name]))
            parts.append(f'<circle class="dot-{rank} run" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
        parts.append(f'<path class="line {rank}" d="M{" ".join(f"{x:.1f},{y:.1f}" for x, y in middles)}"/>')
        parts += [f'<circle class="dot-{rank}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in middles]
        ends.append((middles[-1][1], rank, _short(_middle(figures, name, sizes[-1])), words))
    for height, (_, rank, value, _) in zip(_apart([end[0] for end in ends]), ends, strict=True):
        parts.append(_text(across.at(sizes[-1]) + 8, height + 4, value, f"name name-{rank}"))
    if len(ends) > 1:
        legend = "".join(f'<tspan class="name-{rank}" dx="10">{escape(words)}</tspan>' for _, rank, _, words in ends)
        parts.append(f'<text class="name" x="{_LEFT}" y="{_TOP - 10}">{legend}</text>')
    return parts


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights of one or two labels, moved where they would be written over each other."""
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= 12:
        return list(heights)
    middle, upper = sum(heights) / 2, 0 if heights[0] <= heights[1] else 1
    return [middle - 6, middle + 6] if upper == 0 else [middle + 6, middle - 6]


def _bounds(levels: Iterable[float]) -> tuple[float, float]:
    """A decade at least, so that what hardly changes looks flat, with some air at both ends."""
    positive = [level for level in levels if level > 0]
    low, high = min(positive) / 1.4, max(positive) * 1.4
    spare = math.sqrt(max(1.0, 10 * low / high))
    return low / spare, high * spare


def _spaced(sizes: Sequence[int], across: Axis) -> list[int]:
    """The sizes whose labels do not run into each other, the largest in any case."""
    shown: list[int] = []
    for size in reversed(sizes):
        if not shown or across.at(shown[-1]) - across.at(size) >= 34:
            shown.append(size)
    return shown


def _middle(figures: Sequence[Mapping[str, Any]], name: str, size: int) -> float:
    return statistics.median(float(figure[name]) for figure in figures if figure["results"] == size)


def _in_words(panel: Panel, figures: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> str:
    name = panel.series[0][0]
    points = ", ".join(f"{_short(_middle(figures, name, size))} at {_short(size)}" for size in sizes)
    return f"{panel.title} ({panel.unit}): {points}"


def _footnote(figures: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> str:
    machine = ", ".join(sorted({f"{figure['cores']} cores, duckdb {figure['duckdb']}" for figure in figures}))
    runs = [sum(1 for figure in figures if figure["results"] == size) for size in sizes]
    many = f"{min(runs)}" if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
    return f"{machine}; {many} run{'s' if max(runs) > 1 else ''} of each size{', lines through the medians' if max(runs) > 1 else ''}"


def _text(x: float, y: float, words: str, kind: str = "text", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _short(value: float) -> str:
    """Three digits: 0.045, 1.7, 1,500, 15k, 3M."""
    for least, size, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{value:.3g}"
