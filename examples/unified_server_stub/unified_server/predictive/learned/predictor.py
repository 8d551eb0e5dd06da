"""All figures of a measurement, with intervals, and whether enough is known to give them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa

from unified_server.predictive.learned.conformal import Intervals, group_of
from unified_server.predictive.learned.features import NUMBERS, Cards, Floats, Ints, Rows, read_rows
from unified_server.predictive.learned.regressor import Regressor, calibrated, restored, state
from unified_server.predictive.learned.specs import DeviceSpec

FIGURES = ("throughput", "latency", "memory_usage")
_FARTHEST = math.log(8)
_WIDEST = math.log(100)  # an interval over a factor of a hundred says nothing
_LEAST = 20  # rows with a figure
_OFTEN = ("device", "compile", "layout", "framework")
_OF_DEVICE = ("bandwidth", "rate", "memory", "units", "version")


@dataclass(frozen=True, slots=True)
class Figure:
    """One learned figure: milliseconds a step, or megabytes."""

    regressor: Regressor
    intervals: Intervals
    ranges: Mapping[str, tuple[float, float]]
    device_rows: Mapping[str, int]
    errors: Mapping[str, float]
    rows: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """For each row the logarithm of each figure, its bounds, and what was seen. NaN: not known."""

    figures: Mapping[str, tuple[Floats, Floats, Floats]]
    model_seen: list[bool]
    hardware_seen: list[bool]
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class Predictor:
    """What was learned of a set of measurements."""

    cards: Cards
    usual: Mapping[str, tuple[dict[str, str], list[float]]]
    figures: Mapping[str, Figure]
    gaps: Mapping[str, float]
    wordless: frozenset[str]  # models whose rows never state a sequence length: the wire's default means nothing for them

    @classmethod
    def fit(cls, table: pa.Table, specs: Mapping[str, DeviceSpec] | None = None, only: Sequence[str] = ("time", "memory")) -> Predictor:
        """Learn from measurements (``measurement.TABLE_SCHEMA``)."""
        bare = read_rows(table, specs)
        cards = Cards.of(bare)
        usual = _usual(bare)
        lengths = bare.column("length")
        worded = {model for model, length in zip(bare.words["model"], lengths, strict=True) if not math.isnan(length)}
        wordless = frozenset(bare.words["model"]) - worded
        rows = cards.fill(_completed(bare, usual, wordless))
        targets, gaps = _targets(table, rows)
        figures = {}
        for name, target in targets.items():
            index = np.flatnonzero(np.isfinite(target))
            if name in only and len(index) >= _LEAST:
                figures[name] = _figure(rows.take(index), target[index], timed=name == "time")
        return cls(cards, usual, figures, gaps, wordless)

    def forecast(self, table: pa.Table, specs: Mapping[str, DeviceSpec] | None = None) -> Forecast:
        """The figures of each row from what it says of itself; its own figures are not looked at. Rows tell each other what they say of a model."""
        bare = read_rows(table, specs)
        known = Cards({**Cards.of(bare).known, **self.cards.known})
        rows = known.fill(_completed(bare, self.usual, self.wordless))
        found: dict[str, tuple[Floats, Floats, Floats]] = {}
        reasons = [""] * len(rows)
        seen, hardware = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        for name, figure in self.figures.items():
            models = np.array([model in figure.regressor.rough.blocks for model in rows.words["model"]], bool)
            counts = [figure.device_rows.get(device, 0) for device in rows.words["device"]]
            low, high = figure.intervals.bounds([group_of(bool(m), n) for m, n in zip(models, counts, strict=True)])
            why = _doubts(figure, rows, models, counts, high - low)
            middle = figure.regressor.predict(rows)
            middle[np.array([bool(reason) for reason in why], bool)] = np.nan
            found[name] = (middle, middle + low, middle + high)
            reasons = [one or other for one, other in zip(reasons, why, strict=True)]
            seen |= models
            hardware |= np.array(counts) > 0
        return Forecast(self._wire(rows, found), seen.tolist(), hardware.tolist(), reasons)

    def _wire(self, rows: Rows, found: Mapping[str, tuple[Floats, Floats, Floats]]) -> dict[str, tuple[Floats, Floats, Floats]]:
        """From time a step to throughput and latency."""
        unknown = np.full(len(rows), np.nan)
        middle, low, high = found.get("time", (unknown, unknown, unknown))
        items = math.log(1000) + rows.column("batch")
        gap = np.array([self.gaps.get(_engine(rows, i), 0.0) for i in range(len(rows))])
        return {
            "throughput": (items - middle, items - high, items - low),
            "latency": (middle + gap, low + gap, high + gap),
            "memory_usage": found.get("memory", (unknown, unknown, unknown)),
        }

    def summary(self) -> dict[str, Any]:
        """For people: rows and errors (median absolute, percent) of each learned figure."""
        return {name: {"rows": figure.rows, **figure.errors} for name, figure in self.figures.items()}

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything as arrays and JSON; ``restore`` is the reverse."""
        arrays: dict[str, Any] = {}
        figures: dict[str, Any] = {}
        for name, figure in self.figures.items():
            found, facts = state(figure.regressor)
            arrays |= {f"{name}/{key}": value for key, value in found.items()}
            figures[name] = {
                "regressor": facts,
                "intervals": dict(figure.intervals.errors),
                "ranges": dict(figure.ranges),
                "device_rows": dict(figure.device_rows),
                "errors": dict(figure.errors),
                "rows": figure.rows,
            }
        cards = {name: [None if math.isnan(value) else value for value in card] for name, card in self.cards.known.items()}
        facts = {"cards": cards, "usual": dict(self.usual), "figures": figures, "gaps": dict(self.gaps), "wordless": sorted(self.wordless)}
        return arrays, json.loads(json.dumps(facts))

    @classmethod
    def restore(cls, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> Predictor:
        figures = {}
        for name, one in facts["figures"].items():
            own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
            intervals = Intervals({group: (low, high, count) for group, (low, high, count) in one["intervals"].items()})
            ranges = {axis: (low, high) for axis, (low, high) in one["ranges"].items()}
            figures[name] = Figure(restored(own, one["regressor"]), intervals, ranges, one["device_rows"], one["errors"], one["rows"])
        cards = Cards({name: [math.nan if value is None else value for value in card] for name, card in facts["cards"].items()})
        usual = {name: (words, numbers) for name, (words, numbers) in facts["usual"].items()}
        return cls(cards, usual, figures, facts["gaps"], frozenset(facts["wordless"]))


def _targets(table: pa.Table, rows: Rows) -> tuple[dict[str, Floats], dict[str, float]]:
    """The logarithms to learn, and by engine how far published latency is from 1000 x batch / throughput."""
    values = [np.array([x if x is not None and x > 0 else np.nan for x in table.column(name).to_pylist()], float) for name in FIGURES]
    throughput, latency, memory = (np.log(figure) for figure in values)
    time = math.log(1000) + rows.column("batch") - throughput
    gap = latency - time
    engines: dict[str, list[float]] = {}
    for i in np.flatnonzero(np.isfinite(gap)):
        engines.setdefault(_engine(rows, int(i)), []).append(float(gap[i]))
    gaps = {engine: float(np.median(found)) for engine, found in engines.items()}
    told = latency - np.array([gaps.get(_engine(rows, i), 0.0) for i in range(len(rows))])
    return {"time": np.where(np.isnan(time), told, time), "memory": memory}, gaps


def _engine(rows: Rows, i: int) -> str:
    return f"{rows.words['framework'][i]}|{rows.words['platform'][i]}"


def _figure(rows: Rows, target: Floats, *, timed: bool) -> Figure:
    regressor, left = Regressor.fit(rows, target, timed=timed)
    few, new = _new_devices(rows, target, regressor)
    groups = {"seen/known": left.seen, "unseen/known": left.unseen, "few": few, "new": np.concatenate([np.zeros(0), *new])}
    errors = {f"{name}_error_percent": _percent(found) for name, found in groups.items() if len(found)}
    groups["new"] = _of_a_new_device(new)
    ranges = {}
    for axis in ("batch", "length", "image", "gmacs", "parameters"):
        column = rows.column(axis)
        if not np.isnan(column).all():
            ranges[axis] = (float(np.nanmin(column)), float(np.nanmax(column)))
    return Figure(regressor, Intervals.of(groups), ranges, dict(Counter(rows.words["device"])), errors, len(rows))


def _percent(residuals: Floats) -> float:
    return round(100 * float(np.median(np.abs(np.expm1(-residuals)))), 2)


def _new_devices(rows: Rows, target: Floats, whole: Regressor, most: int = 5000) -> tuple[Floats, list[Floats]]:
    """What is left of rows of devices that were left out: with ten rows of the device, and with none, each by itself.

    Small fits on at most ``most`` rows.
    """
    random = np.random.default_rng(0)
    index: Ints = np.sort(random.permutation(len(rows))[:most])
    rows, target = rows.take(index), target[index]
    devices = np.array(rows.words["device"], object).astype(str)
    names, counts = np.unique(devices, return_counts=True)
    few, new = [np.zeros(0)], []
    for device in names[np.argsort(-counts)][:4]:
        out, rest = np.flatnonzero(devices == device), np.flatnonzero(devices != device)
        if len(rest) < _LEAST or len(out) < _LEAST:
            continue
        regressor, _ = Regressor.fit(rows.take(rest), target[rest], timed=whole.timed, rounds=40, like=whole)
        left = target[out] - regressor.predict(rows.take(out))
        ten, others = np.split(random.permutation(len(out)), [10])
        few.append(_thinned(calibrated(rows.take(out), left, ten)[others]))
        new.append(_thinned(left))
    return np.concatenate(few), new


def _of_a_new_device(left: Sequence[Floats]) -> Floats:
    """What to expect to be left of the rows of one device more, from what was left of each device that was left out.

    All rows of a device are off together, so a handful of devices are a handful of draws, however many rows they have: what they are off by is taken
    for a normal distribution with their mean and spread, and the rows for spread around it alike.
    """
    if not left:
        return np.zeros(0)
    off = np.array([np.median(rows) for rows in left])
    around = _thinned(np.concatenate([rows - middle for rows, middle in zip(left, off, strict=True)]))
    normal = NormalDist(float(off.mean()), max(float(off.std(ddof=1)) if len(off) > 1 else 0.0, 1e-9))
    drawn = np.array([normal.inv_cdf(percent / 100) for percent in range(1, 100)])
    return _thinned((drawn[:, None] + around).ravel())


def _thinned(residuals: Floats) -> Floats:
    """At most 300 of them, evenly, so that no device outweighs the others."""
    return np.sort(residuals)[:: max(1, len(residuals) // 300)]


def _usual(rows: Rows) -> dict[str, tuple[dict[str, str], list[float]]]:
    """For each platform its most measured device and setting: what a question that names only the platform is about."""
    found: dict[str, Counter[tuple[str, ...]]] = {}
    example: dict[tuple[str, ...], int] = {}
    for i, platform in enumerate(rows.words["platform"]):
        setting = tuple(rows.words[kind][i] for kind in _OFTEN)
        found.setdefault(platform, Counter())[setting] += 1
        example[platform, *setting] = i
    columns = [NUMBERS.index(name) for name in _OF_DEVICE]
    usual = {}
    for platform, settings in found.items():
        setting = settings.most_common(1)[0][0]
        numbers = rows.numbers[example[platform, *setting]][columns]
        usual[platform] = (dict(zip(_OFTEN, setting, strict=True)), [float(x) if np.isfinite(x) else -1.0 for x in numbers])
    return usual


def _completed(rows: Rows, usual: Mapping[str, tuple[dict[str, str], list[float]]], wordless: frozenset[str]) -> Rows:
    """Rows that name no device are about the usual one of their platform; models without words have no length."""
    numbers, words = rows.numbers.copy(), {kind: list(found) for kind, found in rows.words.items()}
    columns = [NUMBERS.index(name) for name in _OF_DEVICE]
    for i, (platform, device) in enumerate(zip(words["platform"], words["device"], strict=True)):
        if device == platform and platform in usual:
            setting, figures = usual[platform]
            for kind, word in setting.items():
                words[kind][i] = word if kind == "device" or not words[kind][i] else words[kind][i]
            numbers[i, columns] = [np.nan if value == -1.0 else value for value in figures]
    numbers[[model in wordless for model in words["model"]], NUMBERS.index("length")] = np.nan
    return Rows(numbers, words)


def _doubts(figure: Figure, rows: Rows, models: Any, counts: list[int], width: Floats) -> list[str]:
    """Why a row gets no figure; empty where it gets one."""
    platforms = {name.removeprefix("platform:") for name in figure.regressor.lines[-1].words if name.startswith("platform:")}
    why = []
    outside = np.zeros(len(rows), bool)
    for axis, (low, high) in figure.ranges.items():
        with np.errstate(invalid="ignore"):
            outside |= (rows.column(axis) < low - _FARTHEST) | (rows.column(axis) > high + _FARTHEST)
    sized = np.isfinite(rows.column("parameters")) | np.isfinite(rows.column("gmacs"))
    rated = np.isfinite(rows.column("bandwidth"))
    for i in range(len(rows)):
        if rows.words["platform"][i] not in platforms:
            why.append("nothing was measured on this platform")
        elif not models[i] and not sized[i]:
            why.append("the model was never measured and its size is not known")
        elif not counts[i] and not rated[i]:
            why.append("the device was never measured and its specification is not known")
        elif outside[i]:
            why.append("the nearest measurement is more than 8 times away")
        elif not width[i] < _WIDEST:
            why.append("too few measurements to say how far off a prediction would be")
        else:
            why.append("")
    return why
