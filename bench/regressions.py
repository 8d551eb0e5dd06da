"""What the detector of regressions finds in histories that people labelled, in changes made on purpose and in histories nobody labelled, beside simple
baselines; and what a new point costs by the length of its history.

A change is found in time when, of the points after the first changed one, at most five had arrived: said at its index + 5 at the latest, in the right
direction and with a first point at most five away. A steady history is flagged when anything in it is called worse.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import Any

import duckdb

from bench.baselines import BASELINES, flags
from benchbridge_plugin.regressions.history import Found, History, Point
from benchbridge_plugin.report import table

IN_TIME = 5
_SMALLEST = 0.05
_LENGTHS = (100, 1_000, 10_000, 100_000)
_TIMED = 1_000  # points


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    sign: int  # +1: more is worse
    values: Sequence[float]
    commits: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Flag:
    first: int
    said_at: int
    worse: bool
    size: float | None = None  # relative


@dataclass(frozen=True, slots=True)
class Truth:
    """A change that is known: its first point, and whether it is for the worse."""

    first: int
    worse: bool


Detector = Callable[[Series], list[Flag]]


def ours(series: Series) -> list[Flag]:
    """Each history kept as the ledger keeps it and read again after every seventh point, as between runs."""
    history = History()
    metric = "latency" if series.sign > 0 else "throughput"
    found: list[Flag] = []
    for place, (value, commit) in enumerate(zip(series.values, series.commits, strict=True)):
        figures = [value if name == metric else None for name in history.values]
        events = history.add(Point(float(place), str(place), None, commit), figures, _SMALLEST)
        found += [Flag(event.first, place, event.worse, round(event.size, 4)) for event in events if isinstance(event, Found)]
        if place % 7 == 0:
            history = History.from_json(json.loads(json.dumps(history.as_json())))
    return found


def baseline(name: str) -> Detector:
    return lambda series: [Flag(*flag) for flag in flags([series.sign * log(value) for value in series.values], BASELINES[name])]


DETECTORS: Mapping[str, Detector] = {"benchbridge": ours, **{name: baseline(name) for name in BASELINES}}


def in_time(flag: Flag, truth: Truth) -> bool:
    return flag.worse == truth.worse and abs(flag.first - truth.first) <= IN_TIME and truth.first <= flag.said_at <= truth.first + IN_TIME


# -- reading --------------------------------------------------------------------------------------------------------------------------------


def read(path: str, directions: Mapping[str, str]) -> dict[str, Series]:
    rows = duckdb.execute(
        f"SELECT series_id, value, \"commit\" FROM read_parquet('{_quoted(path)}') WHERE value > 0 ORDER BY series_id, index"
    )
    return _series(
        (name, -1 if directions.get(name) == "higher_is_better" else 1, value, commit) for name, value, commit in rows.fetchall()
    )


def read_made(path: str) -> tuple[dict[str, Series], dict[str, Truth], dict[str, str]]:
    """Histories with a change made on purpose, or none, by name; where it is; and how large it is: of all points, and at its arrival."""
    rows = duckdb.execute(
        f"SELECT series_id, average_latency_ms, changed FROM read_csv('{_quoted(path)}') ORDER BY series_id, index"
    ).fetchall()
    series = _series((name, 1, value, None) for name, value, _ in rows)
    changed: dict[str, list[int]] = defaultdict(list)
    for name, _, flag in rows:
        changed[name].append(flag)
    truths: dict[str, Truth] = {}
    sizes: dict[str, str] = {}
    for name, marks in changed.items():
        if 1 in marks:
            first, values = marks.index(1), series[name].values
            whole = median(values[first:]) / median(values[:first]) - 1
            near = median(values[first : first + IN_TIME]) / median(values[first - IN_TIME : first]) - 1
            truths[name] = Truth(first, whole > 0)
            sizes[name] = f"{whole:+.0%}; five points after it against five before: {near:+.0%}"
    return series, truths, sizes


def _series(rows: Iterable[tuple[str, int, float, str | None]]) -> dict[str, Series]:
    values: dict[str, list[float]] = defaultdict(list)
    commits: dict[str, list[str | None]] = defaultdict(list)
    signs: dict[str, int] = {}
    for name, sign, value, commit in rows:
        signs[name] = sign
        values[name].append(value)
        commits[name].append(commit)
    return {name: Series(name, signs[name], values[name], commits[name]) for name in values}


def _quoted(path: str) -> str:
    return path.replace("'", "''")


# -- measuring ------------------------------------------------------------------------------------------------------------------------------


def compared(series: Mapping[str, Series], truths: Mapping[str, Truth]) -> list[dict[str, Any]]:
    """For each detector: changes found in time, steady histories it flags, and what it says besides."""
    figures = []
    for name, detector in DETECTORS.items():
        said = {key: detector(one) for key, one in series.items()}
        found = {key: [flag for flag in said[key] if in_time(flag, truth)] for key, truth in truths.items()}
        steady = [key for key in series if key not in truths]
        flagged = sorted(key for key in steady if any(flag.worse for flag in said[key]))
        better = sorted(key for key in steady if key not in flagged and said[key])
        besides = sum(len(said[key]) - bool(found[key]) for key in truths)
        figures.append(
            {
                "detector": name,
                "found": sum(map(bool, found.values())),
                "changes": len(truths),
                "flagged": len(flagged),
                "steady": len(steady),
                "called_better_only": len(better),
                "flags_besides": besides,
                "points_until_found": {key: flags[0].said_at - truths[key].first for key, flags in found.items() if flags},
                "missed": sorted(key for key, flags in found.items() if not flags),
                "flagged_series": flagged,
            }
        )
    return figures


def unlabelled(series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """How often each detector says something, for 1,000 points of each kind of history."""
    kinds: dict[str, list[Series]] = defaultdict(list)
    for name, one in series.items():
        kinds[name.split("_")[0]].append(one)
    figures = []
    for kind, members in sorted(kinds.items()):
        points = sum(len(one.values) for one in members)
        for name, detector in DETECTORS.items():
            said = [flag for one in members for flag in detector(one)]
            worse = sum(flag.worse for flag in said)
            rates = {"worse_per_1000": round(1000 * worse / points, 2), "better_per_1000": round(1000 * (len(said) - worse) / points, 2)}
            figures.append({"kind": kind, "series": len(members), "points": points, "detector": name, **rates})
    return figures


def cost() -> list[dict[str, Any]]:
    """Microseconds that the next points of a history take, by how many it has had; and the bytes that are kept of it."""
    figures, history, chance = [], History(), random.Random(1)
    for length in _LENGTHS:
        while history.count < length:
            _grow(history, chance)
        times = []
        for _ in range(_TIMED):
            began = time.perf_counter()
            _grow(history, chance)
            times.append(time.perf_counter() - began)
        kept = len(json.dumps(history.as_json()))
        figures.append({"points": length, "median_us": round(median(times) * 1e6, 1), "kept_bytes": kept})
    return figures


def _grow(history: History, chance: random.Random) -> None:
    history.add(Point(float(history.count), str(history.count)), (None, 10 * exp(chance.gauss(0, 0.02)), None), _SMALLEST)


# -- showing --------------------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench regressions", description=__doc__)
    parser.add_argument("--series", help="Parquet: series_id, index, value, commit")
    parser.add_argument("--annotations", help="CSV: series_id, index, kind; what people said of series")
    parser.add_argument("--meta", help="CSV: series_id, direction")
    parser.add_argument("--h100", help="CSV: histories with changes made on purpose")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.series and not (options.annotations and options.meta):
        parser.error("--series needs --annotations and --meta")
    figures: dict[str, Any] = {"cost": cost()}
    if options.h100:
        series, truths, sizes = read_made(options.h100)
        figures["made"] = {"changes": sizes, "detectors": compared(series, truths)}
    if options.series:
        meta = duckdb.execute(f"SELECT series_id, direction FROM read_csv('{_quoted(options.meta)}')").fetchall()
        every = read(options.series, dict(meta))
        marks = duckdb.execute(
            f"SELECT series_id, index FROM read_csv('{_quoted(options.annotations)}') WHERE kind = 'change_point_regression'"
        )
        truths = {name: Truth(int(index), True) for name, index in marks.fetchall()}
        labelled = {name: one for name, one in every.items() if name.startswith("sap_")}
        figures["labelled"] = compared(labelled, truths)
        figures["unlabelled"] = unlabelled(
            {name: one for name, one in every.items() if name not in labelled and not name.startswith("tcpd_")}
        )
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        _show(figures)


def _show(figures: Mapping[str, Any]) -> None:
    if "labelled" in figures:
        print("SAP HANA, labelled by engineers: a regression is found in time when said at its first point + 5 at the latest\n")
        _show_compared(figures["labelled"])
    if "made" in figures:
        print("\nH100, changes made on purpose:\n")
        for name, size in figures["made"]["changes"].items():
            print(f"  {name}: {size}")
        print()
        _show_compared(figures["made"]["detectors"])
    if "unlabelled" in figures:
        print("\nHistories that nobody labelled\n")
        print(table(list(figures["unlabelled"][0]), [list(row.values()) for row in figures["unlabelled"]]))
    print("\nA new point, by how many its history has had\n")
    print(table(list(figures["cost"][0]), [list(row.values()) for row in figures["cost"]]))


def _show_compared(rows: Sequence[Mapping[str, Any]]) -> None:
    heads = ["detector", "found in time", "steady flagged", "better only", "besides"]
    lines = [
        [
            row["detector"],
            f"{row['found']} of {row['changes']}",
            f"{row['flagged']} of {row['steady']}",
            row["called_better_only"],
            row["flags_besides"],
        ]
        for row in rows
    ]
    print(table(heads, lines))
    for name, points in rows[0]["points_until_found"].items():
        print(f"  {name}: said {points} points after the first changed one")
    for name in rows[0]["missed"]:
        print(f"  {name}: missed")
    for name in rows[0]["flagged_series"]:
        print(f"  {name}: flagged without a cause")


if __name__ == "__main__":
    main()
