"""Simple detectors of changes, for comparison: each looks at the newest points and those before them, and begins anew after a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import log, sqrt
from statistics import fmean, median, variance

NEWEST, BEFORE = 5, 30
SMALLEST = log(1.05)
#: Flags a point (its index, whether it is worse) given (logarithm, up is worse) the newest points and those before.
Test = Callable[[Sequence[float], Sequence[float]], bool]


def flags(values: Sequence[float], test: Test) -> Iterator[tuple[int, int, bool]]:
    """(first changed point, point at which it was said, whether it is worse) of each change. `values`: logarithms, up is worse."""
    begin = 0
    for place in range(len(values)):
        newest = values[max(place - NEWEST + 1, begin) : place + 1]
        before = values[max(place - NEWEST - BEFORE + 1, begin) : max(place - NEWEST + 1, begin)]
        if len(newest) < NEWEST or len(before) < 15 or not test(newest, before):
            continue
        begin = place - NEWEST + 1
        yield begin, place, median(newest) > median(before)


def rolling_median(newest: Sequence[float], before: Sequence[float]) -> bool:
    """The medians differ by 5 %."""
    return abs(median(newest) - median(before)) >= SMALLEST


def welch(newest: Sequence[float], before: Sequence[float]) -> bool:
    """The means differ by 5 % and by five standard errors."""
    apart = abs(fmean(newest) - fmean(before))
    error = sqrt(variance(newest) / len(newest) + variance(before) / len(before))
    return apart >= SMALLEST and apart >= 5 * error


def mann_whitney(newest: Sequence[float], before: Sequence[float]) -> bool:
    """The medians differ by 5 % and the ranks by what chance does once in a thousand times, in the normal approximation."""
    wins = sum((new > old) + (new == old) / 2 for new in newest for old in before)
    pairs = len(newest) * len(before)
    spread = sqrt(pairs * (len(newest) + len(before) + 1) / 12)
    return rolling_median(newest, before) and abs(wins - pairs / 2) >= 3.29 * spread


BASELINES: dict[str, Test] = {
    "rolling median, 5 after 30, 5 %": rolling_median,
    "Welch's test, 5 after 30, 5 %": welch,
    "Mann-Whitney, 5 after 30, 5 %": mann_whitney,
}
