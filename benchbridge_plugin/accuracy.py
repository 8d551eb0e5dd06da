"""How far predictions were from what was measured, kept as counts: any number of results takes the same room, and counts of parts add up to the whole.

**The formulas.** For a prediction p of a measured figure m > 0 the absolute percentage error is |p - m| / m. It is counted in the bucket

    floor(ln(max(error, 1e-4)) / ln(1.05))

so each bucket is 5 % wide, and a quantile read from the buckets (with a geometric step inside the bucket) is within 5 % of itself. The bias is the
geometric mean of p / m, less 1: half as much and twice as much cancel, and one wild prediction does not drown the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: The figures of a measurement that are predicted: items/s, ms, MB.
FIGURES = ("throughput", "latency", "memory_usage")
#: Whose predictions are compared: the predictor's own, and those of baselines that a server adds for the comparison.
PREDICTORS = ("predicted", "nearest", "roofline")
#: The bucket of figures that were measured and for which there was no prediction.
UNANSWERED = 9_999
#: What counts are kept apart by.
DIMENSIONS = ("version", "predictor", "figure", "family", "hardware", "model_seen", "hardware_seen")

#: Column of a scored result -> column of what a predictive API answers. What it leaves out is null.
FORECAST: Mapping[str, str] = {
    **{f"predicted_{figure}{end}": f"{figure}{end}" for figure in FIGURES for end in ("", "_lo", "_hi")},
    **{f"{baseline}_{figure}": f"{baseline}_{figure}" for baseline in PREDICTORS[1:] for figure in FIGURES},
}

_STEP = math.log(1.05)
_LEAST = 1e-4
_MOST = 1e6


@dataclass(slots=True)
class Errors:
    """Counts of one group. `bounded`: predictions with an interval; `inside`: those whose interval held the measured figure."""

    buckets: dict[int, int] = field(default_factory=dict)
    log_ratio: float = 0.0  # the sum of ln(p / m)
    bounded: int = 0
    inside: int = 0

    def add(self, bucket: int, results: int, log_ratio: float, bounded: int, inside: int) -> None:
        self.buckets[bucket] = self.buckets.get(bucket, 0) + results
        self.log_ratio += log_ratio
        self.bounded += bounded
        self.inside += inside

    @property
    def predicted(self) -> int:
        return sum(count for bucket, count in self.buckets.items() if bucket != UNANSWERED)

    def quantile(self, share: float) -> float | None:
        """The absolute percentage error (as a fraction) that so large a share of the predictions did not exceed. None: there are none."""
        rank, before = share * self.predicted, 0
        for bucket in sorted(self.buckets.keys() - {UNANSWERED}):
            count = self.buckets[bucket]
            if before + count >= rank:
                return math.exp((bucket + (rank - before) / count) * _STEP)
            before += count
        return None

    def as_dict(self) -> dict[str, Any]:
        """`median_error`, `p90_error` and `bias` are fractions: 0.07 is 7 %. None where nothing was predicted."""
        predicted = self.predicted
        return {
            "results": predicted,
            "unanswered": self.buckets.get(UNANSWERED, 0),
            "median_error": self.quantile(0.5),
            "p90_error": self.quantile(0.9),
            "bias": math.expm1(self.log_ratio / predicted) if predicted else None,
            "interval_held": self.inside / self.bounded if self.bounded else None,
        }


def count(scored: pa.Table) -> pa.Table:
    """The counts of scored results: DIMENSIONS, `bucket`, `results`, `log_ratio`, `bounded`, `inside`, one row for each group and bucket.

    `scored`: for each figure `measured_<figure>`, and of each predictor `<predictor>_<figure>`, of the own one `_lo` and `_hi` as well (null: none), with
    `version`, `family`, `hardware`, `model_seen` and `hardware_seen`. A figure that was not measured, or is not above zero, is not counted; a
    baseline that said nothing is not either.
    """
    parts: list[pa.Table] = []
    for figure in FIGURES:
        measured = scored.column(f"measured_{figure}")
        for predictor in PREDICTORS:
            name = f"{predictor}_{figure}"
            if name in scored.column_names:
                parts.append(_counted(scored, figure, predictor, measured, scored.column(name)))
    return pa.concat_tables(parts)


def _counted(scored: pa.Table, figure: str, predictor: str, measured: pa.ChunkedArray, said: pa.ChunkedArray) -> pa.Table:
    rows = len(scored)
    usable = pc.fill_null(pc.and_(pc.greater(measured, 0.0), pc.is_finite(measured)), False)
    answered = pc.fill_null(pc.and_(pc.greater(said, 0.0), pc.is_finite(said)), False)
    if predictor != "predicted":
        usable = pc.and_(usable, answered)
    ratio = pc.if_else(pc.and_(usable, answered), pc.divide(said, pc.if_else(usable, measured, 1.0)), 1.0)
    error = pc.min_element_wise(pc.max_element_wise(pc.abs(pc.subtract(ratio, 1.0)), _LEAST), _MOST)
    bucket = pc.if_else(answered, pc.floor(pc.divide(pc.ln(error), _STEP)).cast(pa.int64()), UNANSWERED)
    if predictor == "predicted":
        low, high = scored.column(f"{predictor}_{figure}_lo"), scored.column(f"{predictor}_{figure}_hi")
        bounded = pc.and_(answered, pc.and_(pc.is_valid(low), pc.is_valid(high)))
        inside = pc.and_(bounded, pc.fill_null(pc.and_(pc.less_equal(low, measured), pc.less_equal(measured, high)), False))
    else:
        bounded = inside = pa.chunked_array([pa.repeat(pa.scalar(False), rows)])
    columns = {
        "version": scored.column("version"),
        "predictor": pa.repeat(predictor, rows),
        "figure": pa.repeat(figure, rows),
        **{name: scored.column(name) for name in ("family", "hardware", "model_seen", "hardware_seen")},
        "bucket": bucket,
        "log_ratio": pc.ln(ratio),
        "bounded": bounded.cast(pa.int64()),
        "inside": inside.cast(pa.int64()),
    }
    keys = [*DIMENSIONS, "bucket"]
    grouped = (
        pa.table(columns)
        .filter(usable)
        .group_by(keys)
        .aggregate([([], "count_all"), ("log_ratio", "sum"), ("bounded", "sum"), ("inside", "sum")])
    )
    return grouped.select([*keys, "count_all", "log_ratio_sum", "bounded_sum", "inside_sum"]).rename_columns(
        [*keys, "results", "log_ratio", "bounded", "inside"]
    )


def summarise(rows: Iterable[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The groups of counted rows by `names`, each with its figures (see Errors.as_dict), in the order of the names."""
    groups: dict[tuple[Any, ...], Errors] = {}
    for row in rows:
        errors = groups.setdefault(tuple(row[name] for name in names), Errors())
        errors.add(row["bucket"], row["results"], row["log_ratio"], row["bounded"], row["inside"])
    return [{**dict(zip(names, group, strict=True)), **groups[group].as_dict()} for group in sorted(groups)]
