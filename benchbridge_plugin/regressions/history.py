"""The history of one configuration, as much of it as is remembered, and what its newest point changes.

A point carries the figures of one result. Per metric the history knows since which point the level holds, and which changes it may still come back from.
The same points in the same order give the same history and the same findings, however they are handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import median
from typing import Any

from benchbridge_plugin.regressions.detector import PAST, SIZES, WINDOW, find

#: Which way is worse: +1 when more is.
METRICS = {"throughput": -1, "latency": 1, "memory_usage": 1}
_QUICK = SIZES[0]
_KNOWN = (PAST + 1) * _QUICK  # points from which on a level can be told from the next one
_MOST_OPEN = 4  # changes of a metric from which the level can come back
_NEAR = 4  # the level is back when no more than a quarter of the change is left


@dataclass(frozen=True, slots=True)
class Point:
    """A result: when it was measured, and what it belongs to."""

    measured_at: float  # seconds since 1970 UTC
    result_id: str
    run: str | None = None
    commit: str | None = None

    @property
    def order(self) -> tuple[float, int, str]:
        """Points of one time stand in the order of their ids, numbers as numbers."""
        return self.measured_at, len(self.result_id), self.result_id


@dataclass(frozen=True, slots=True)
class Found:
    """A metric changed for good. `first` counts points from the beginning of the history; `size` is relative: 0.1 is 10 % more."""

    metric: str
    first: int
    worse: bool
    before: float
    after: float
    confidence: float
    last_good: Point
    first_changed: Point

    @property
    def size(self) -> float:
        return self.after / self.before - 1


@dataclass(frozen=True, slots=True)
class Back:
    """The level is back where it was before the change that began at `first`."""

    metric: str
    first: int
    at: Point


@dataclass(slots=True)
class Level:
    """Of one metric: the number of the first point on the present level, and the changes it may come back from, oldest first."""

    begin: int = 0
    changes: list[tuple[int, float, float, int]] = field(
        default_factory=list
    )  # first, before, after (logarithms, up is worse), begin before


class History:
    """What is remembered of a history; it grows by `add`."""

    def __init__(self) -> None:
        self.count = 0  # points that ever arrived in time
        self.late = 0  # points that were older than the newest one when they came: they change nothing
        self.points: list[Point] = []
        self.values: dict[str, list[float | None]] = {metric: [] for metric in METRICS}
        self._levels: dict[str, Level] = {metric: Level() for metric in METRICS}
        self._logs: dict[str, list[float | None]] = {metric: [] for metric in METRICS}

    def add(self, point: Point, figures: Sequence[float | None], smallest: float) -> list[Found | Back]:
        """Take up the next point; `figures` in the order of METRICS. One that is not newer than the newest changes nothing."""
        if self.points and point.order <= self.points[-1].order:
            self.late += 1
            return []
        self.count += 1
        self.points.append(point)
        for (metric, sign), figure in zip(METRICS.items(), figures, strict=True):
            known = figure is not None and figure > 0
            self.values[metric].append(figure if known else None)
            self._logs[metric].append(sign * log(figure) if known and figure is not None else None)
        if len(self.points) > WINDOW:
            self._forget(1)
        happened: list[Found | Back] = []
        for metric in METRICS:
            if self._logs[metric][-1] is not None:
                happened += self._look(metric, log(1 + smallest))
        return happened

    # -- as it is kept ------------------------------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """JSON values, small for a history of one point: most histories of a catalogue of models are that."""
        kept: dict[str, Any] = {
            "n": self.count,
            "p": [[point.measured_at, point.result_id, point.run, point.commit] for point in self.points],
        }
        kept["v"] = {metric: values for metric, values in self.values.items() if any(value is not None for value in values)}
        levels = {metric: [level.begin, level.changes] for metric, level in self._levels.items() if level.begin or level.changes}
        return kept | ({"l": levels} if levels else {}) | ({"late": self.late} if self.late else {})

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> History:
        history = cls()
        history.count, history.late = kept["n"], kept.get("late", 0)
        history.points = [Point(*point) for point in kept["p"]]
        for metric, sign in METRICS.items():
            values = kept["v"].get(metric) or [None] * len(history.points)
            history.values[metric] = values
            history._logs[metric] = [None if value is None else sign * log(value) for value in values]
        for metric, (begin, changes) in kept.get("l", {}).items():
            history._levels[metric] = Level(begin, [tuple(change) for change in changes])
        return history

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def _forget(self, points: int) -> None:
        del self.points[:points]
        for metric in METRICS:
            del self.values[metric][:points], self._logs[metric][:points]

    def _look(self, metric: str, smallest: float) -> list[Found | Back]:
        level = self._levels[metric]
        base = self.count - len(self.points)
        if level.changes and (back := self._back(metric, level, smallest)):
            return back
        start = max(level.begin - base, 0)
        logs = self._logs[metric]
        places = [place for place in range(start, len(logs)) if logs[place] is not None]
        if len(places) < _KNOWN:
            return []
        values = [value for value in logs[start:] if value is not None]
        change = find(values, lambda: self._commits(places), smallest)
        if change is None:
            return []
        first = places[change.first]
        worse = change.size > 0
        kept = [entry for entry in level.changes if entry[2] > entry[1]]  # an improvement that is changed again is history
        level.changes = [*kept, (base + first, change.before, change.after, level.begin)][-_MOST_OPEN:]
        level.begin = base + first
        before, after = (exp(METRICS[metric] * value) for value in (change.before, change.after))
        last_good = self.points[places[change.first - 1]]
        return [Found(metric, base + first, worse, before, after, change.confidence, last_good, self.points[first])]

    def _back(self, metric: str, level: Level, smallest: float) -> list[Found | Back]:
        """The changes whose level from before is back, in all of the newest points. A change that held for short was an excursion: it becomes a part of
        the level around it, and of its noise. An improvement that held is not excused like that: losing it is a change of its own."""
        newest = [value for value in self._logs[metric][-2 * _QUICK :] if value is not None][-_QUICK:]
        back: list[Found | Back] = []
        while level.changes and len(newest) == _QUICK:
            first, before, after, begin = level.changes[-1]
            shift, held = after - before, self.count - _QUICK - first
            returned = all((value < before + shift / 2) == (shift > 0) for value in newest)
            left = (median(newest) - before) * (1 if shift > 0 else -1)
            if not returned or left > max(smallest, abs(shift) / _NEAR) or (shift < 0 and held >= _KNOWN):
                break
            level.changes.pop()
            level.begin = self.count - _QUICK if held >= _KNOWN else begin
            back.append(Back(metric, first, self.points[-1]))
        return back

    def _commits(self, places: Sequence[int]) -> list[int]:
        """A number for the commit of each of these points; where it is not known, for the run, and else each point by itself."""
        numbers: list[int] = []
        last: str | None = None
        for place in places:
            point = self.points[place]
            label = point.commit or point.run
            numbers.append(numbers[-1] if numbers and label is not None and label == last else place)
            last = label
        return numbers
