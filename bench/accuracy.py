"""How far predictions are from what was measured, on rows that were held out: the learned predictor beside simple ones, on the same rows.

What each split means: `random`: a fifth of the rows held out, five times; the same model is usually known from other settings, also from the same
setting under another version of torch. `family`: all models of a family held out. `device`: all rows of a device held out; `device, ten rows`: all but
ten. Only the rows of the source named in the split train. Errors are in percent of what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.ensemble import HistGradientBoostingRegressor
from unified_server.predictive.learned.features import NUMBERS, Cards, Floats, Ints, Rows
from unified_server.predictive.learned.features import read_rows as read_features
from unified_server.predictive.learned.predictor import Predictor
from unified_server.predictive.learned.specs import DeviceSpec, published_specs, read_specs

from bench.rows import read_h100, read_rows
from benchbridge_plugin.report import table as as_text

Specs = Mapping[str, DeviceSpec]
Split = list[tuple[Ints, Ints]]
_SETTING = ("platform", "device", "precision", "mode", "compile", "layout")
TIMM, AI_HUB = "huggingface/pytorch-image-models", "quic/ai-hub-models"


@dataclass(frozen=True, slots=True)
class Guess:
    """Logarithms for the held-out rows; bounds where the method has any."""

    middle: Floats
    low: Floats | None = None
    high: Floats | None = None


def learned(train: pa.Table, test: pa.Table, figure: str, specs: Specs) -> Guess:
    """What the server does."""
    return Guess(
        *Predictor.fit(train, specs, only=("memory" if figure == "memory_usage" else "time",)).forecast(test, specs).figures[figure]
    )


def boosting(train: pa.Table, test: pa.Table, figure: str, specs: Specs) -> Guess:
    """Gradient boosting as it comes, on the raw features; words as numbers."""
    fit, ask = read_features(train, specs), read_features(test, specs)
    codes = {
        kind: {word: i for i, word in enumerate(sorted(set(fit.words[kind])))} for kind in fit.words if kind not in ("model", "family")
    }

    def columns(rows: Rows) -> Floats:
        words = [[float(of.get(word, math.nan)) for word in rows.words[kind]] for kind, of in codes.items()]
        return np.column_stack([np.nan_to_num(rows.numbers, nan=-1.0), *np.nan_to_num(words, nan=-1.0)])

    grown = HistGradientBoostingRegressor(random_state=0).fit(columns(fit), _logs(train, figure))
    return Guess(grown.predict(columns(ask)))


def nearest(train: pa.Table, test: pa.Table, figure: str, specs: Specs) -> Guess:
    """The figure of the measured configuration that is nearest in size, shape, device and setting."""
    fit, ask = read_features(train, specs), read_features(test, specs)
    cards = Cards.of(fit)
    known, asked = (np.nan_to_num(cards.fill(rows).numbers, nan=0.0) for rows in (fit, ask))
    known, asked = known - known.mean(axis=0), asked - known.mean(axis=0)
    target = _logs(train, figure)
    coded = [np.array([rows.words[kind] for kind in _SETTING], object).T for rows in (fit, ask)]
    codes = {word: i for i, word in enumerate(sorted({*coded[0].ravel(), *coded[1].ravel()}))}
    coded = [np.vectorize(codes.__getitem__, otypes=[np.int32])(words) for words in coded]
    model = [np.array(rows.words["model"], object) for rows in (fit, ask)]
    found = np.zeros(len(ask))
    everything = np.arange(len(target))
    of_model = {name: np.flatnonzero(model[0] == name) for name in set(model[1])}
    for i in range(len(ask)):  # among rows of the same model, if there are any
        near = of_model[model[1][i]] if len(of_model[model[1][i]]) else everything
        distance = np.abs(known[near] - asked[i]).sum(axis=1) + (coded[0][near] != coded[1][i]).sum(axis=1)
        found[i] = target[near[int(np.argmin(distance))]]
    return Guess(found)


def roofline(train: pa.Table, test: pa.Table, figure: str, specs: Specs) -> Guess:
    """The longer of computing and moving, times one factor for each platform and mode that fits best; memory: parameters times one factor."""
    fit, ask = read_features(train, specs), read_features(test, specs)
    cards = Cards.of(fit)
    target = _logs(train, figure)

    def time_of(rows: Rows) -> Floats:
        rows = cards.fill(rows)
        at = {name: np.nan_to_num(rows.column(name), nan=_mean(fit.column(name))) for name in NUMBERS}
        if figure == "memory_usage":
            return at["parameters"]
        length = np.where(np.isnan(rows.column("length")), 0, at["length"])
        work = np.where(np.isnan(rows.column("gmacs")), at["parameters"] - math.log(1000) + length, at["gmacs"]) + math.log(2e-3)
        moved = np.where(np.isnan(rows.column("macts")), at["parameters"] - at["batch"], at["macts"]) + math.log(4e-3)
        each = np.maximum(work - at["rate"], moved - at["bandwidth"])
        return -each if figure == "throughput" else each + at["batch"]

    known, asked = time_of(fit), time_of(ask)
    keys = [[f"{p}|{m}" for p, m in zip(rows.words["platform"], rows.words["mode"], strict=True)] for rows in (fit, ask)]
    left = target - known
    factors = {key: float(np.median(left[np.array(keys[0]) == key])) for key in set(keys[0])}
    overall = float(np.median(left))
    return Guess(asked + np.array([factors.get(key, overall) for key in keys[1]]))


METHODS: Mapping[str, Callable[[pa.Table, pa.Table, str, Specs], Guess]] = {
    "learned": learned,
    "boosting": boosting,
    "nearest": nearest,
    "roofline": roofline,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench accuracy", description=__doc__)
    parser.add_argument("--rows", type=Path, help="published rows, Parquet or CSV")
    parser.add_argument("--specs", type=Path, help="specifications of devices, CSV; else the server's own table")
    parser.add_argument("--h100", type=Path, help="h100_results.csv")
    parser.add_argument("--only", help="splits whose name contains this")
    parser.add_argument("--methods", default=",".join(METHODS), help="by comma; default: %(default)s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    specs = {**published_specs(), **read_specs(options.specs)} if options.specs else published_specs()
    found: list[dict[str, Any]] = []
    for name, figure, rows, split in _splits(options.rows, options.h100):
        if options.only and options.only not in name:
            continue
        for method in options.methods.split(","):
            began = time.process_time()
            found.append(_judged(name, figure, method, rows, split, specs) | {"cpu_s": round(time.process_time() - began, 1)})
            _tell(found[-1])
    ranked: list[dict[str, Any]] = []
    if options.rows:
        for row in _ranking(options.rows, specs, options.only or ""):
            ranked.append(row)
            _tell(row)
    if options.json:
        print(json.dumps([*found, *ranked], indent=2))
        return
    for rows_of in filter(None, (found, ranked)):
        print(as_text(list(rows_of[0]), [[_shown(value) for value in row.values()] for row in rows_of]))


def _tell(row: Mapping[str, Any]) -> None:
    """As soon as it is known: all of it takes an hour."""
    print(", ".join(f"{name} {_shown(value)}" for name, value in row.items()), file=sys.stderr, flush=True)


def _splits(path: Path | None, h100: Path | None) -> Iterator[tuple[str, str, pa.Table, Split]]:
    if path is not None:
        table, repositories = read_rows(path)
        of = np.array(repositories, object)
        timm = _usable(table.filter(pc.and_(pa.array(of == TIMM), pc.equal(table.column("mode"), "inference"))), "throughput")
        if timm.num_rows:
            yield "timm inference, random", "throughput", timm, _random(timm.num_rows)
            yield "timm inference, family", "throughput", timm, _by(timm.column("model_family").to_pylist(), 5)
            devices = _device(timm)
            yield "timm inference, device, ten rows", "throughput", timm, [_with_ten(train, test) for train, test in _by(devices, None)]
            yield "timm inference, device", "throughput", timm, _by(devices, None)
        hub = _usable(table.filter(pa.array(of == AI_HUB)), "memory_usage")
        if hub.num_rows:
            yield "AI Hub memory, family", "memory_usage", hub, _by(hub.column("model_family").to_pylist(), 5)
    if h100 is not None:
        rows = read_h100(h100)
        for figure in ("throughput", "memory_usage"):
            usable = _usable(rows, figure)
            yield f"H100 {figure}, random", figure, usable, _random(usable.num_rows)


def _judged(name: str, figure: str, method: str, rows: pa.Table, split: Split, specs: Specs) -> dict[str, Any]:
    middles, lows, highs, measured = [], [], [], []
    bounded = True
    for train, test in split:
        guess = METHODS[method](rows.take(pa.array(train)), rows.take(pa.array(test)), figure, specs)
        middles.append(guess.middle)
        bounded = bounded and guess.low is not None
        if guess.low is not None and guess.high is not None:
            lows.append(guess.low)
            highs.append(guess.high)
        measured.append(_logs(rows.take(pa.array(test)), figure))
    middle, truth = np.concatenate(middles), np.concatenate(measured)
    answered = np.isfinite(middle)
    relative = np.expm1((middle - truth)[answered])
    row: dict[str, Any] = {
        "split": name,
        "figure": figure,
        "method": method,
        "rows": len(truth),
        "answered_percent": 100 * float(answered.mean()),
        "median_ape": 100 * float(np.median(np.abs(relative))),
        "p90_ape": 100 * float(np.quantile(np.abs(relative), 0.9)),
        "bias": 100 * float(np.median(relative)),
        "covered_percent": None,
        "width_factor": None,
    }
    if bounded:
        low, high = np.concatenate(lows)[answered], np.concatenate(highs)[answered]
        row["covered_percent"] = 100 * float(np.mean((low <= truth[answered]) & (truth[answered] <= high)))
        row["width_factor"] = float(np.exp(np.median(high - low)))
    return row


def _ranking(path: Path, specs: Specs, only: str) -> Iterator[dict[str, Any]]:
    """Recommendations: of models measured on two devices or more, in one precision and image size each, at the batch sizes that each device was
    measured with; with a fifth of all rows held out, or a fifth of all models."""
    table, repositories = read_rows(path)
    of = np.array(repositories, object)
    rows = _usable(
        table.filter(pc.and_(pa.array((of == TIMM) | (of == AI_HUB)), pc.equal(table.column("mode"), "inference"))), "throughput"
    )
    for name, split in (
        ("ranking, row held out", _random(rows.num_rows)),
        ("ranking, model held out", _by(rows.column("model_name").to_pylist(), 5)),
    ):
        if only not in name:
            continue
        predicted = np.full(rows.num_rows, np.nan)
        for train, test in split:
            predicted[test] = learned(rows.take(pa.array(train)), rows.take(pa.array(test)), "throughput", specs).middle
        yield {"split": name, **_ranked(rows, predicted)}


def _ranked(rows: pa.Table, predicted: Floats) -> dict[str, Any]:
    truth, devices = _logs(rows, "throughput"), _device(rows)
    cases: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    sizes = [json.loads(text).get("extras", {}).get("img_size") for text in rows.column("metadata").to_pylist()]
    for i, said in enumerate(zip(rows.column("model_name").to_pylist(), rows.column("precision").to_pylist(), sizes, strict=True)):
        if np.isfinite(predicted[i]):
            cases.setdefault(said, {}).setdefault(devices[i], []).append(i)
    first = second = count = 0
    for found in cases.values():
        if len(found) < 2:
            continue
        actual = {device: float(np.median(truth[index])) for device, index in found.items()}
        guess = {device: float(np.median(predicted[index])) for device, index in found.items()}
        best = max(actual, key=actual.__getitem__)
        order = sorted(guess, key=guess.__getitem__, reverse=True)
        count += 1
        first += order[0] == best
        second += best in order[:2]
    return {"cases": count, "first_percent": 100 * first / max(count, 1), "first_two_percent": 100 * second / max(count, 1)}


def _logs(rows: pa.Table, figure: str) -> Floats:
    logs: Floats = np.log(rows.column(figure).to_numpy())
    return logs


def _mean(column: Floats) -> float:
    return 0.0 if np.isnan(column).all() else float(np.nanmean(column))


def _usable(rows: pa.Table, figure: str) -> pa.Table:
    return rows.filter(pc.fill_null(pc.greater(rows.column(figure), 0), False))


def _device(rows: pa.Table) -> list[str]:
    return [json.loads(text)["device_name"] for text in rows.column("metadata").to_pylist()]


def _random(count: int, folds: int = 5) -> Split:
    parts = np.array_split(np.random.default_rng(0).permutation(count), folds)
    return [(np.sort(np.concatenate(parts[:k] + parts[k + 1 :])), np.sort(parts[k])) for k in range(folds)]


def _by(names: list[Any], folds: int | None) -> Split:
    """Groups held out whole: in so many folds of about the same size, or one by one."""
    words = np.array([str(name) for name in names], object)
    groups, counts = np.unique(words.astype(str), return_counts=True)
    sizes = [0] * (folds or len(groups))
    fold = {}
    for i in np.argsort(-counts, kind="stable"):
        k = sizes.index(min(sizes))
        fold[groups[i]] = k
        sizes[k] += int(counts[i])
    of = np.array([fold[word] for word in words])
    return [(np.flatnonzero(of != k), np.flatnonzero(of == k)) for k in range(len(sizes))]


def _with_ten(train: Ints, test: Ints) -> tuple[Ints, Ints]:
    mixed = np.random.default_rng(0).permutation(test)
    return np.sort(np.concatenate([train, mixed[:10]])), np.sort(mixed[10:])


def _shown(value: Any) -> Any:
    return round(value, 1) if isinstance(value, float) else ("-" if value is None else value)


if __name__ == "__main__":
    main()
