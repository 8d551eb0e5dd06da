"""Whether measuring what the plan says teaches the predictor more than measuring at random.

A part of published rows is what was measured, a fixed part is the test, and all others could be measured: the plan chooses some of those, a random
choice takes as many, and the predictor is trained with either. Same start, same test, several seeds; errors are of throughput. Half are within so much
of what was measured; logarithms weigh too high and too low alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits
from unified_server.predictive.learned.features import Ints
from unified_server.predictive.learned.predictor import Predictor

from bench.accuracy import TIMM
from bench.rows import read_h100, read_rows
from benchbridge_plugin.planning.choice import Subject, choose
from benchbridge_plugin.report import table as as_text

_FIGURE = "throughput"
_START = "the start"
_NAMES = ("half within %", "mean of logarithms %", "90 % within a factor of", "not answered %")


def usable(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.fill_null(pc.greater(rows.column(_FIGURE), 0), False))


def published(path: Path) -> pa.Table:
    """timm's rows of inference."""
    table, repositories = read_rows(path)
    timm = pa.array(np.array(repositories, object) == TIMM)
    return usable(table.filter(pc.and_(timm, pc.equal(table.column("mode"), "inference"))))


def devices_of(rows: pa.Table) -> list[str]:
    return [json.loads(text)["device_name"] or "" for text in rows.column("metadata").to_pylist()]


def subjects_of(rows: pa.Table) -> list[Subject]:
    """The rows as the bridge would see them."""
    names = ("model_name", "model_family", "precision", "mode", "batch_size")
    columns = [rows.column(name).to_pylist() for name in names]
    return [
        Subject(model, family or model, device, precision, mode, batch_size)
        for device, model, family, precision, mode, batch_size in zip(devices_of(rows), *columns, strict=True)
    ]


def planned(known: pa.Table, pool: pa.Table, count: int, predictor: Predictor) -> Ints:
    """The places in the pool that the plan chooses."""
    middle, low, high = predictor.forecast(pool).figures[_FIGURE]
    widths = [None if np.isnan(one) else float(width) for one, width in zip(middle, high - low, strict=True)]
    return np.array([one.place for one in choose(subjects_of(pool), widths, subjects_of(known), count)], int)


def compared(predictors: Mapping[str, Predictor], test: pa.Table) -> dict[str, dict[str, float]]:
    """The errors of each, over the test rows that all of them but the start answer: one that dares more must not look worse for it."""
    truth = np.log(test.column(_FIGURE).to_numpy())
    off = {name: predictor.forecast(test).figures[_FIGURE][0] - truth for name, predictor in predictors.items()}
    common = np.all([np.isfinite(one) for name, one in off.items() if name != _START], axis=0)
    found = {}
    for name, one in off.items():
        mine = one[common & np.isfinite(one)]
        figures = (100 * np.median(np.abs(np.expm1(mine))), 100 * np.mean(np.abs(mine)), np.exp(np.quantile(np.abs(mine), 0.9)))
        found[name] = dict(zip(_NAMES, (*map(float, figures), 100 * float(1 - np.isfinite(one).mean())), strict=True))
    return found


def learned(rows: pa.Table) -> Predictor:
    return Predictor.fit(rows, only=("time",))


def parts_of(rows: pa.Table, seed: int, *, start: int, pool: int, test: int, one_device: bool) -> tuple[pa.Table, pa.Table, pa.Table]:
    """What was measured, what could be, and the test: random rows, none of them twice. `one_device`: measured was only on one, another for each seed."""
    order = np.random.default_rng(seed).permutation(rows.num_rows)
    tested, rest = order[:test], order[test:]
    if one_device:
        device = np.array(devices_of(rows), object)[rest]
        names = sorted(set(device))
        begun = rest[device == names[seed % len(names)]][:start]
        rest = rest[~np.isin(rest, begun)]
    else:
        begun, rest = rest[:start], rest[start:]
    return rows.take(pa.array(begun)), rows.take(pa.array(rest[:pool])), rows.take(pa.array(tested))


def compare(rows: pa.Table, seed: int, *, add: int, rounds: int, **sizes: Any) -> list[dict[str, Any]]:
    """The errors with the start alone, with what the plan chose, and with a random choice of as many."""
    known, waiting, tests = parts_of(rows, seed, **sizes)
    first = learned(known)
    predictor, taken, left = first, known, waiting
    for _ in range(rounds):
        chosen = planned(taken, left, add // rounds, predictor)
        taken = pa.concat_tables([taken, left.take(pa.array(chosen))])
        left = left.take(pa.array(np.setdiff1d(np.arange(left.num_rows), chosen)))
        predictor = learned(taken)
    random = learned(pa.concat_tables([known, waiting.slice(0, add)]))
    found = compared({_START: first, "the plan": predictor, "at random": random}, tests)
    return [{"seed": seed, "measured": name, **errors} for name, errors in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench plan", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="published rows as Parquet, or the sample's CSV file")
    parser.add_argument("--start", type=int, default=300, help="rows that were measured before; default: %(default)s")
    parser.add_argument("--add", type=int, default=100, help="rows to choose; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="trainings in between; default: %(default)s")
    parser.add_argument("--pool", type=int, default=4_000, help="rows to choose from; default: %(default)s")
    parser.add_argument("--test", type=int, default=2_000, help="rows of the test; default: %(default)s")
    parser.add_argument("--one-device", action="store_true", help="what was measured before is of one device, another for each seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = usable(read_h100(options.rows)) if options.rows.suffix == ".csv" else published(options.rows)
    sizes = {name: getattr(options, name) for name in ("start", "add", "rounds", "pool", "test", "one_device")}
    began = time.process_time()
    with threadpool_limits(1):  # more of them wait for each other on so few rows
        found = [row for seed in range(options.first_seed, options.first_seed + options.seeds) for row in compare(rows, seed, **sizes)]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    shown = [[row["seed"], row["measured"], *(f"{row[name]:.3g}" for name in _NAMES)] for row in found]
    for measured in (_START, "the plan", "at random"):
        mine = [row for row in found if row["measured"] == measured]
        shown.append(["mean", measured, *(f"{np.nanmean([row[name] for row in mine]):.3g}" for name in _NAMES)])
    print(as_text(["seed", "measured", *_NAMES], shown))
    print(f"{rows.num_rows} rows, {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
