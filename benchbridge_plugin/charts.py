"""Figures as the geometry of pictures: pure functions, for the pages of the dashboard and the report as HTML. The templates draw what comes out.

Lengths are in units of the picture's own width and height, which stretches to its place; so the words stand beside it and not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchbridge_plugin.model import ACCOUNTED

WIDTH = 1000
HEIGHT = 100
_THINNEST = 4.0  # of a part that is there: a single result among a million is seen
_WIDEST_BAR = 40.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the bar. `share` is in words, as percent."""

    name: str
    count: int
    share: str
    x: float
    width: float

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Bar:
    """One run in the picture of throughput. `y` counts from the top."""

    run_id: int
    state: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class History:
    """What syncs carried per second, and what was left over after each. `lines` are the unbroken pieces of the backlog, as the points of a polyline,
    `dots` its single points (an older run did not write it down: there is a gap)."""

    bars: Sequence[Bar]
    lines: Sequence[str]
    dots: Sequence[tuple[float, float, str]]
    most_per_second: float
    most_backlog: int
    first: str
    last: str


def share(count: int, total: int) -> str:
    """As percent. 100 is said of all and 0 of none only, however close it comes."""
    if not total or count in (0, total):
        return "100 %" if count and count == total else "0 %"
    percent = 100 * count / total
    return "< 0.1 %" if percent < 0.1 else "> 99.9 %" if percent > 99.9 else f"{percent:.1f} %"


def accounting_bar(accounting: Mapping[str, Any]) -> list[Segment]:
    """The accounting as parts of one bar. They fill it, whatever the figures are; one that is there is never too thin to be seen."""
    counts = {name: max(int(accounting[name]), 0) for name in ACCOUNTED}
    total = sum(counts.values())
    if not total:
        return [Segment(name, 0, "0 %", 0.0, 0.0) for name in ACCOUNTED]
    widths = {name: max(WIDTH * count / total, _THINNEST) if count else 0.0 for name, count in counts.items()}
    widest = max(widths, key=lambda name: widths[name])
    widths[widest] -= sum(widths.values()) - WIDTH
    segments: list[Segment] = []
    x = 0.0
    for name in ACCOUNTED:
        segments.append(Segment(name, counts[name], share(counts[name], total), round(x, 2), round(widths[name], 2)))
        x += widths[name]
    return segments


def cell_level(cell: Mapping[str, Any]) -> str:
    """How full a cell of the coverage is: `refused` or `waiting` while nothing of it is delivered, then 1 to 5. 5 is said of all only."""
    delivered, total = cell["delivered"], cell["total"]
    if not delivered:
        return "refused" if cell["rejected"] else "waiting"
    return "5" if delivered >= total else str(min(4, 1 + 4 * delivered // total))


def history(runs: Sequence[Mapping[str, Any]]) -> History:
    """The runs (JSON values, oldest first) side by side."""
    shown = [run for run in runs if run["finished_at"] is not None and not run.get("dry_run")]
    speeds = [per_second(run) or 0.0 for run in shown]
    backlogs = _backlogs(shown)
    most_speed = max(speeds, default=0.0)
    most_backlog = max((count for count in backlogs if count is not None), default=0)
    step = WIDTH / max(len(shown), 1)
    wide = min(step * 0.7, _WIDEST_BAR)
    bars: list[Bar] = []
    pieces: list[list[tuple[float, float, str]]] = [[]]
    for place, (run, speed, backlog) in enumerate(zip(shown, speeds, backlogs, strict=True)):
        middle = step * (place + 0.5)
        tall = 0.0 if not most_speed else round(HEIGHT * 0.94 * speed / most_speed, 2)
        what = f"Run {run['run_id']}, {run['started_at']}: {run.get('synced', 0):,} delivered, {speed:,.1f} per second, {run['state']}"
        bars.append(Bar(run["run_id"], run["state"], round(middle - wide / 2, 2), HEIGHT - tall, round(wide, 2), tall, what))
        if backlog is None:
            pieces.append([])
            continue
        level = HEIGHT - 3 - (HEIGHT - 8) * backlog / max(most_backlog, 1)
        pieces[-1].append((round(middle, 2), round(level, 2), f"{backlog:,} left over after run {run['run_id']}"))
    return History(
        bars,
        [" ".join(f"{x},{y}" for x, y, _ in piece) for piece in pieces if len(piece) > 1],
        [dot for piece in pieces for dot in piece],
        most_speed,
        most_backlog,
        shown[0]["started_at"] if shown else "",
        shown[-1]["started_at"] if shown else "",
    )


@dataclass(frozen=True, slots=True)
class Trend:
    """Values over time as one line: `points` are (x, y, words), `line` the same as the points of a polyline."""

    points: Sequence[tuple[float, float, str]]
    line: str
    most: float
    first: str
    last: str


def trend(values: Sequence[tuple[str, float]], word: str) -> Trend:
    """Values with the day of each, oldest first, evenly apart and from zero upwards. `word`: what the value is, for who points at it."""
    most = max((value for _, value in values), default=0.0)
    step = WIDTH / max(len(values), 1)
    points = [
        (round(step * (place + 0.5), 2), round(HEIGHT - 3 - (HEIGHT - 8) * value / (most or 1.0), 2), f"{day}: {word} {100 * value:.1f} %")
        for place, (day, value) in enumerate(values)
    ]
    first, last = (values[0][0], values[-1][0]) if values else ("", "")
    return Trend(points, " ".join(f"{x},{y}" for x, y, _ in points), most, first, last)


def _backlogs(runs: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """What was left over after each run, over all benchmark files: a run knows its own file, so for the others the run before counts."""
    known: dict[object, int | None] = {run.get("source"): None for run in runs}
    found: list[int | None] = []
    for run in runs:
        known[run.get("source")] = run.get("backlog")
        counts = [count for count in known.values() if count is not None]
        found.append(sum(counts) if len(counts) == len(known) else None)
    return found


def per_second(run: Mapping[str, Any]) -> float | None:
    """What the run delivered per second. None while it runs."""
    lasted: float | None = run.get("duration_s")
    return None if lasted is None else float(run.get("synced", 0)) / max(lasted, 0.001)
