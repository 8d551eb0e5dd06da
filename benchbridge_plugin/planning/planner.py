"""The plan: what to measure next, in order, with a reason for each. Reads the benchmark files, asks the predictor, and changes nothing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from benchbridge_plugin.accuracy import FIGURES
from benchbridge_plugin.as_json import iso
from benchbridge_plugin.errors import SinkError
from benchbridge_plugin.forecasting import NoForecast
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.planning.asking import forecast
from benchbridge_plugin.planning.candidates import candidates
from benchbridge_plugin.planning.choice import Subject, choose
from benchbridge_plugin.planning.configurations import KEY, Known, merged
from benchbridge_plugin.sinks.base import Forecaster, Sink
from benchbridge_plugin.source import BenchmarkSource

#: The most that a plan can have, and how long the predictor may be asked for it.
MOST, ASKING_S = 200, 4.0
INTERVALS, COVERAGE = "intervals", "coverage"
_UNITS = {"throughput": "items/s", "latency": "ms", "memory_usage": "MB"}
_LONGEST_LIST = 100  # characters of what a model was measured on
_KEPT = 20  # plans
_OF_SUBJECT = [*KEY, "model_family"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `model` and `hardware` (the file's name of it, the sink's, or a device) narrow it."""

    limit: int
    model: str | None = None
    hardware: str | None = None


@dataclass(slots=True)
class Planner:
    """Makes plans. What it read of a file is kept until the file changes. Safe to use from several threads."""

    default_length: int
    now: Callable[[], float]
    _known: Known = field(default_factory=Known)
    _made: dict[tuple[object, ...], tuple[float, dict[str, Any]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(
        self,
        files: Sequence[tuple[BenchmarkSource, Mapper]],
        sink: Callable[[], Sink],
        wish: Wish,
        *,
        within_s: float = ASKING_S,
        recent_s: float = 0.0,
    ) -> dict[str, Any]:
        """The plan as JSON values (docs/plan.md). With `recent_s` one that is no older is given again, while no file has changed.

        Of `within_s` the predictor is asked for as many candidates as it answers. An API that cannot be asked is in `note`, and the plan is one of
        coverage. Raises SourceError.
        """
        asked = (wish, *((source.path, str(source.signature())) for source, _ in files))
        with self._lock:
            made_at, made = self._made.get(asked, (0.0, None))
        if made is not None and time.monotonic() - made_at < recent_s:
            return made
        try:
            there = sink()
            profile = there.profile()
            note = ""
        except SinkError as error:
            there, profile, note = None, SinkProfile(), error.message
        configurations = merged([self._known.of(source, mapper, profile) for source, mapper in files])
        made = self._of(configurations, there, profile, wish, note, within_s)
        with self._lock:
            self._made = {**dict(list(self._made.items())[1 - _KEPT :]), asked: (time.monotonic(), made)}
        return made

    def _of(
        self, configurations: pa.Table, sink: Sink | None, profile: SinkProfile, wish: Wish, note: str, within_s: float
    ) -> dict[str, Any]:
        found = candidates(configurations, model=wish.model, hardware=wish.hardware)
        said: list[Mapping[str, Any]] = []
        if isinstance(sink, Forecaster):
            try:
                said = forecast(sink, profile, found, default_length=self.default_length, within_s=within_s).to_pylist()
            except NoForecast as problem:
                note = f"The predictor could not be asked: {problem}."
        rows = found.to_pylist()
        widths = [_width(one) for one in said]
        if any(width is not None for width in widths):
            basis, rows = INTERVALS, rows[: len(said)]
        else:
            basis, rows = COVERAGE, [row for row in rows if not row["measured_here"]]
            note = note or ("The predictor has not answered for any of them." if said else "")
            said, widths = [{}] * len(rows), [None] * len(rows)
        measured = [_subject(row) for row in configurations.filter(configurations.column("deliverable")).select(_OF_SUBJECT).to_pylist()]
        chosen = choose([_subject(row) for row in rows], widths, measured, wish.limit)
        return {
            "generated_at": iso(self.now()),
            "basis": basis,
            "note": note,
            "predictor_version": next((one["version"] for one in said if one.get("version")), None),
            "candidates": len(rows),
            "plan": [_item(rows[one.place], said[one.place], basis, one.gain, one.stands_for) for one in chosen],
        }


def _subject(row: Mapping[str, Any]) -> Subject:
    device = f"{row['hardware_platform']}/{row['device_name'] or ''}"
    return Subject(row["model_name"], row["model_family"] or row["model_name"], device, row["precision"], row["mode"], row["batch_size"])


def _interval(said: Mapping[str, Any], figure: str) -> tuple[float, float] | None:
    low, high = said.get(f"predicted_{figure}_lo"), said.get(f"predicted_{figure}_hi")
    return (low, high) if low is not None and high is not None and 0 < low <= high else None


def _width(said: Mapping[str, Any]) -> float | None:
    """The logarithm of the upper over the lower bound, of throughput before the others."""
    found = next((interval for figure in FIGURES if (interval := _interval(said, figure)) is not None), None)
    return None if found is None else math.log(found[1] / found[0])


def _item(row: Mapping[str, Any], said: Mapping[str, Any], basis: str, gain: float, stands_for: int) -> dict[str, Any]:
    predicted = {
        figure: {"value": said[f"predicted_{figure}"], "low": bounds[0] if bounds else None, "high": bounds[1] if bounds else None}
        for figure in FIGURES
        if said.get(f"predicted_{figure}") is not None
        for bounds in [_interval(said, figure)]
    }
    return {
        "model_name": row["model_name"],
        "hardware": row["hardware"],
        "device_name": row["device_name"],
        "precision": row["precision_named"],
        "mode": row["mode"],
        "batch_size": row["batch_size"],
        "sequence_length": row["sequence_length"],
        "reason": _reason(row, predicted, basis, stands_for),
        "gain": float(f"{gain:.4g}"),
        "predicted": predicted or None,
    }


def _reason(row: Mapping[str, Any], predicted: Mapping[str, Mapping[str, Any]], basis: str, stands_for: int) -> str:
    """Why it is worth measuring, in a sentence or two."""
    here = row["device_name"] or row["hardware"]
    on = row["measured_on"] if len(row["measured_on"]) <= _LONGEST_LIST else f"{row['measured_on'][:_LONGEST_LIST]}..."
    if not row["measured_here"]:
        what = f"{row['model_name']} was measured on {on} and not on {here}"
    elif row["nearest_batch_size"] == row["batch_size"]:
        what = f"{row['model_name']} was measured on {here} with other settings only"
    else:
        what = f"{row['model_name']} was measured on {here}, at the nearest with batch size {row['nearest_batch_size']}"
    if basis == COVERAGE:
        return f"{what}."
    bounded = next(((figure, one) for figure, one in predicted.items() if one["low"] is not None), None)
    if bounded is None:
        doubt = "the predictor has no answer"
    else:
        figure, one = bounded
        doubt = f"the predictor expects {one['low']:,.4g} to {one['high']:,.4g} {_UNITS[figure]}"
    others = f" It says something of {stands_for:,} other configurations of the model." if stands_for else ""
    return f"{what}; {doubt}.{others}"
