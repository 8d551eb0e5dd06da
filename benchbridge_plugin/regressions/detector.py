"""Finds where a history changed for good, from its newest points.

Pure: values in, a change or nothing out. Values are logarithms, turned so that up is worse: a change of 10 % is then as large at 5 ms as at 500 ms,
and faster is the mirror of slower.

The newest `size` points count as changed when all of them lie beyond the middle between the old level and the new one, and the medians of both stand
`CLEARANCE` times further apart than medians of `size` points in a row of this very history usually stood from its level. That asks nothing of the kind
of noise. A spike does not move a median; builds that come out different, several modes, seasons and slow drift all move the medians of the past
as well, and so raise the bar for themselves. A level on which a good part of the past already lay is not new, however the points fall: see `_chance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

#: How many points of a history are looked at, and remembered: a hundred tell the spread of medians of twenty, and are little to keep.
WINDOW = 100
#: Five points tell at once what stands out; twenty tell later what does not.
SIZES = (5, 20)
#: A change has a past of three times as many points as it has itself: three medians that share no point.
PAST = 3
#: In standard deviations of the medians of this history. Three would do for independent noise; a shared machine can be slow for ten points on end.
CLEARANCE = 5.0
#: As many points in a row tell no more than one: a machine that is busy at one point still is at the next.
MEMORY = 5
#: How probable, at most, a row of points is if they fell as in the past, in all of the window: one false alarm in a hundred windows.
CHANCE = 0.01
#: At most one in five of the long row may be a spike. Of the short one none: four out of five is what a burst of noise looks like.
_ASTRAY = {5: 0, 20: 4}
_NORMAL_MAD = 1.4826  # makes a median absolute deviation a standard deviation where noise is normal


@dataclass(frozen=True, slots=True)
class Change:
    """A change for good. `first` is the first changed point, counted in the points that were given; the levels are medians, as logarithms."""

    first: int
    before: float
    after: float
    confidence: float  # 0.9 for what just counts, towards 1 the further it stands out

    @property
    def size(self) -> float:
        """As a logarithm; above 0 is worse."""
        return self.after - self.before


def find(values: Sequence[float], commits: Callable[[], Sequence[int]], smallest: float) -> Change | None:
    """The change that the newest of these points complete, or None.

    `values` are at most WINDOW points on one level, oldest first; `commits` numbers the commits they were measured at, points of one side by side, and is
    asked only when that matters; `smallest` is the least change that counts, as a logarithm. The cost does not grow with the history.
    """
    for size in SIZES:
        if len(values) < (PAST + 1) * size:
            return None
        change = _stands_out(values, commits, size, smallest)
        if change is not None:
            return change
    return None


def _stands_out(values: Sequence[float], commits: Callable[[], Sequence[int]], size: int, smallest: float) -> Change | None:
    past, newest = values[:-size], values[-size:]
    level, after = median(past), median(newest)
    shift = after - level
    if abs(shift) < smallest or _beyond(newest, level, shift) < size - _ASTRAY[size] or _chance(past, level, shift, size) > CHANCE:
        return None
    numbers = commits()
    usual = max(_usual(past, level, size), _between_commits(past, numbers, level, size))
    if abs(shift) < CLEARANCE * usual:
        return None
    first = _first(values, numbers, size)
    before, after = median(values[:first]), median(values[first:])
    if abs(after - before) < smallest or (after > before) != (shift > 0):
        return None
    return Change(first, before, after, 1 - 0.1 * (CLEARANCE * usual / abs(shift)) ** 2)


def _beyond(values: Sequence[float], level: float, shift: float) -> int:
    """How many values lie on the far side of the middle between the level and the shifted one."""
    middle = level + shift / 2
    return sum((value > middle) == (shift > 0) for value in values)


def _chance(past: Sequence[float], level: float, shift: float, size: int) -> float:
    """How often the past would show such a row of points if each fell as its points fell, independently: a second mode makes rows of its own."""
    share = (_beyond(past, level, shift) + 1) / (len(past) + 2)
    return len(past) * share ** (size - _ASTRAY[size])


def _usual(past: Sequence[float], level: float, size: int) -> float:
    """How far from its level the medians of `size` points in a row of the past were, and no less than noise without any memory makes them."""
    spread = _NORMAL_MAD * median([abs(value - level) for value in past])
    squares = [(median(past[start : start + size]) - level) ** 2 for start in range(len(past) - size + 1)]
    return max(spread / sqrt(size / MEMORY), sqrt(sum(squares) / len(squares)))


def _between_commits(past: Sequence[float], commits: Sequence[int], level: float, size: int) -> float:
    """The same for the medians of whole commits, where all the newest points are of one and are no more independent than its points were before."""
    if commits[-1] != commits[-size]:
        return 0.0
    whole: dict[int, list[float]] = {}
    for value, commit in zip(past, commits, strict=False):
        whole.setdefault(commit, []).append(value)
    squares = [(median(points) - level) ** 2 for points in whole.values() if len(points) >= PAST]
    return sqrt(sum(squares) / len(squares)) if len(squares) >= PAST else 0.0


def _first(values: Sequence[float], commits: Sequence[int], size: int) -> int:
    """Where the points part best: the split with the least sum of distances from the medians of both sides, and there the beginning of the commit."""
    splits = range(max(size, len(values) - 2 * size), len(values) - size // 2)
    best = min(splits, key=lambda split: _distances(values[:split]) + _distances(values[split:]))
    begin = best
    while begin > splits.start and commits[begin - 1] == commits[best]:
        begin -= 1
    return begin if best - begin <= size // 2 else best


def _distances(values: Sequence[float]) -> float:
    level = median(values)
    return sum(abs(value - level) for value in values)
