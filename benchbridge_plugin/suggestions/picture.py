"""The figures of a suggestion as the geometry of a small picture: pure, like charts.py. The template draws what comes out.

Lengths are in units of the picture's own width and height, which stretches to its place; so the words stand beside it and not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

WIDTH = 240
HEIGHT = 60
_SIDE = 6
_TALLEST = 52


@dataclass(frozen=True, slots=True)
class Mark:
    """A point, or the upper end of a bar. `kind`: plain, now or then (what is suggested)."""

    x: float
    y: float
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Picture:
    """`bars` beside each other, else points with a `line` through them where there is one. `words` say what is to be seen."""

    words: str
    marks: Sequence[Mark]
    bars: bool
    line: str
    first: str
    last: str


def picture(suggestion: Mapping[str, Any]) -> Picture | None:
    """The picture of a suggestion (JSON values). None where figures alone say as much."""
    figures = suggestion["figures"]
    if suggestion["code"] == "lower_precision":
        return _pair(suggestion, figures)
    if suggestion["code"] in ("larger_batch", "smaller_batch"):
        return _by_batch(suggestion, figures)
    return _repeats(figures) if suggestion["code"] == "noisy" else None


def _pair(suggestion: Mapping[str, Any], figures: Mapping[str, Any]) -> Picture:
    example = figures["example"]
    most = max(example["before"], example["after"])
    labels = (figures["from_precision"], suggestion["precision"])
    marks = [
        Mark(WIDTH * (1 + 2 * place) / 4, _down(value, most), kind, f"{label}: {value:,.4g} items/s")
        for place, (label, value, kind) in enumerate(zip(labels, (example["before"], example["after"]), ("now", "then"), strict=True))
    ]
    return Picture(f"Throughput at batch {example['batch_size']}: " + ", ".join(mark.label for mark in marks), marks, True, "", *labels)


def _by_batch(suggestion: Mapping[str, Any], figures: Mapping[str, Any]) -> Picture:
    points = figures["points"]
    places = [log2(point["batch_size"]) for point in points]
    span = (places[-1] - places[0]) or 1.0
    most = max(point["throughput"] for point in points)
    now = figures.get("from_batch", figures["peak_batch"])
    marks = [
        Mark(
            round(_SIDE + (WIDTH - 2 * _SIDE) * (place - places[0]) / span, 2),
            _down(point["throughput"], most),
            "then" if point["batch_size"] == suggestion["batch_size"] else "now" if point["batch_size"] == now else "plain",
            f"batch {point['batch_size']}: {point['throughput']:,.4g} items/s, {point['latency']:,.4g} ms",
        )
        for place, point in zip(places, points, strict=True)
    ]
    words = (
        f"Throughput by batch size, from {points[0]['batch_size']} to {points[-1]['batch_size']}; {suggestion['batch_size']} is suggested"
    )
    line = " ".join(f"{mark.x},{mark.y}" for mark in marks)
    return Picture(words, marks, False, line, f"batch {points[0]['batch_size']}", f"batch {points[-1]['batch_size']}")


def _repeats(figures: Mapping[str, Any]) -> Picture:
    repeats = figures["repeats"]
    step = (WIDTH - 2 * _SIDE) / max(len(repeats) - 1, 1)
    marks = [
        Mark(round(_SIDE + step * place, 2), _down(value, figures["highest"]), "plain", f"{value:,.4g} items/s")
        for place, value in enumerate(repeats)
    ]
    return Picture(f"{len(repeats)} repeats, one after the other, from zero upwards", marks, False, "", "oldest", "newest")


def _down(value: float, most: float) -> float:
    """From zero at the bottom: what is half as much stands half as high."""
    return round(HEIGHT - _TALLEST * value / most, 2)
