"""A history as the geometry of a picture, with the change in it: pure, like charts.py. The template draws what comes out.

Lengths are in units of the picture's own width and height, which stretches to its place; so the words stand beside it and not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

WIDTH = 1000
HEIGHT = 220
_MARGIN = 10  # above the highest and below the lowest point
_SIDE = 8


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    changed: bool  # it came after the change
    label: str


@dataclass(frozen=True, slots=True)
class Level:
    """The median before or after the change, from left to right."""

    left: float
    right: float
    y: float


@dataclass(frozen=True, slots=True)
class Picture:
    """`cut`: where the change is, between two points; None when no point from before is there any more. `lowest`, `highest`: of the points drawn."""

    dots: Sequence[Dot]
    cut: float | None
    before: Level | None
    after: Level
    lowest: float
    highest: float
    first: str
    last: str


def picture(regression: Mapping[str, Any]) -> Picture | None:
    """The picture of a regression as `bridge.regression` gives it. None when it has no points."""
    points: Sequence[tuple[int, float, float]] = regression["points"]
    if not points:
        return None
    figures = [figure for _, _, figure in points]
    lowest, highest = min(figures), max(figures)
    every: list[float] = [*figures, regression["before"], regression["after"]]
    low, high = float(min(every)), float(max(every))
    span: float = (high - low) or 1.0
    step = (WIDTH - 2 * _SIDE) / max(len(points) - 1, 1)

    def across(place: float) -> float:
        return round(_SIDE + step * place, 2)

    def down(figure: float) -> float:
        return round(_MARGIN + (HEIGHT - 2 * _MARGIN) * (high - figure) / span, 2)

    old = sum(number < regression["first_number"] for number, _, _ in points)
    cut = across(old - 0.5) if old else None
    dots = [
        Dot(across(place), down(figure), place >= old, f"{figure:,.6g} {regression['unit']}, {_time(at)}")
        for place, (_, at, figure) in enumerate(points)
    ]
    return Picture(
        dots,
        cut,
        Level(_SIDE, cut, down(regression["before"])) if cut is not None else None,
        Level(cut or _SIDE, WIDTH - _SIDE, down(regression["after"])),
        lowest,
        highest,
        _time(points[0][1]),
        _time(points[-1][1]),
    )


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y, %H:%M}"
