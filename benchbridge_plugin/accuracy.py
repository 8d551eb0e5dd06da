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
#: Column of a scored result -> column of what a predictive API answers. What it leaves out is null.
FORECAST: Mapping[str, str] = {
    **{f"predicted_{figure}{end}": f"{figure}{end}" for figure in FIGURES for end in ("", "_lo", "_hi")},
    **{f"{baseline}_{figure}": f"{baseline}_{figure}" for baseline in PREDICTORS[1:] for figure in FIGURES},
}
#: All that an API may answer of a row.
FORECAST_ANSWER = (*FORECAST.values(), "predictor_version", "model_seen", "hardware_seen")
#: By what the predictor's own errors are counted beside all together; the column of a scored result that says it.
VIEWS: Mapping[str, str] = {"seen": "seen", "family": "family", "hardware": "hardware", "version": "version"}
#: The view of all together.
OVERALL = "overall"
#: The bucket of figures that were measured and for which there was no prediction.
UNANSWERED = 9_999

_STEP = math.log(1.05)
_LEAST = 1e-4
_MOST = 1e6
_WILDEST = math.log(_MOST)
_ENOUGH_NOW, _ENOUGH_BEFORE = 40, 100
_WORSE, _POINTS = 2.0, 0.05


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """What errors are counted together: those of a figure and a predictor, seen from one side. `label` is one of the things the view tells apart."""

    view: str
    label: str
    figure: str
    predictor: str


@dataclass(slots=True)
class Errors:
    """Counts of one group. `bounded`: predictions with an interval; `inside`: those whose interval held the measured figure."""

    buckets: dict[int, int] = field(default_factory=dict)
    log_ratio: float = 0.0  # the sum of ln(p / m)
    bounded: int = 0
    inside: int = 0

    def add(self, other: Errors) -> None:
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.log_ratio += other.log_ratio
        self.bounded += other.bounded
        self.inside += other.inside

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


def count(scored: pa.Table) -> dict[Group, Errors]:
    """The errors of scored results, by group.

    `scored`: for each figure `measured_<figure>`, and of each predictor `<predictor>_<figure>`, of the own one `_lo` and `_hi` as well (null: none), with
    the columns of VIEWS as texts. A figure that was not measured, or is not above zero, is not counted; a baseline that said nothing is not either.
    """
    compared = _compared(pa.concat_tables([_beside(scored, figure, predictor) for figure in FIGURES for predictor in PREDICTORS]))
    own = compared.filter(pc.equal(compared.column("predictor"), PREDICTORS[0]))
    found = _grouped(compared, OVERALL, None)
    for view, column in VIEWS.items():
        found |= _grouped(own, view, column)
    return found


def _beside(scored: pa.Table, figure: str, predictor: str) -> pa.Table:
    """What was measured beside what was said: `figure`, `predictor`, `measured`, `said`, `low`, `high`, and the columns of VIEWS."""
    said = scored.column(f"{predictor}_{figure}").cast(pa.float64())
    own = predictor == PREDICTORS[0]
    low, high = (scored.column(f"{predictor}_{figure}{end}") if own else pa.nulls(len(scored)) for end in ("_lo", "_hi"))
    return pa.table(
        {
            **{name: scored.column(name) for name in VIEWS.values()},
            "figure": pa.repeat(figure, len(scored)),
            "predictor": pa.repeat(predictor, len(scored)),
            "measured": scored.column(f"measured_{figure}"),
            "said": said,
            "low": low.cast(pa.float64()),
            "high": high.cast(pa.float64()),
        }
    )


def _compared(beside: pa.Table) -> pa.Table:
    """One row for each comparison: `bucket`, `log_ratio`, `bounded`, `inside`, and what is not a figure. All at once: a step over few rows costs as
    much as over a thousand."""
    measured, said, low, high = (beside.column(name) for name in ("measured", "said", "low", "high"))
    usable, answered = _is_positive(measured), _is_positive(said)
    both = pc.and_(usable, answered)
    ratio = pc.divide(pc.if_else(both, said, 1.0), pc.if_else(both, measured, 1.0))
    error = pc.min_element_wise(pc.max_element_wise(pc.abs(pc.subtract(ratio, 1.0)), _LEAST), _MOST)
    bounded = pc.and_(both, pc.and_(pc.is_valid(low), pc.is_valid(high)))
    inside = pc.and_(bounded, pc.fill_null(pc.and_(pc.less_equal(low, measured), pc.less_equal(measured, high)), False))
    columns = {
        **{name: beside.column(name) for name in ("figure", "predictor", *VIEWS.values())},
        "bucket": pc.if_else(answered, pc.floor(pc.divide(pc.ln(error), _STEP)).cast(pa.int64()), UNANSWERED),
        "log_ratio": pc.max_element_wise(pc.min_element_wise(pc.ln(ratio), _WILDEST), -_WILDEST),
        "bounded": bounded.cast(pa.int64()),
        "inside": inside.cast(pa.int64()),
    }
    counted = pc.and_(usable, pc.or_(answered, pc.equal(beside.column("predictor"), PREDICTORS[0])))
    return pa.table(columns).filter(counted)


def _is_positive(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.and_(pc.greater(values, 0.0), pc.is_finite(values)), False)


def _grouped(rows: pa.Table, view: str, column: str | None) -> dict[Group, Errors]:
    """The errors of compared rows in a view, by the texts of a column; without one all are under ""."""
    keys = ["figure", "predictor", *([column] if column else []), "bucket"]
    sums = rows.group_by(keys).aggregate([([], "count_all"), ("log_ratio", "sum"), ("bounded", "sum"), ("inside", "sum")])
    return summed(
        (
            Group(view, row[column] if column else "", row["figure"], row["predictor"]),
            Errors({row["bucket"]: row["count_all"]}, row["log_ratio_sum"], row["bounded_sum"], row["inside_sum"]),
        )
        for row in sums.to_pylist()
    )


def is_lost(now: Errors, before: Errors) -> bool:
    """Whether predictions have suddenly become much worse: half of them are off twice as far as half were before, by five points more, and further than
    three quarters were. Of fewer than 40 now, where that is chance once in a thousand times, and of fewer than 100 before nothing is said."""
    if now.predicted < _ENOUGH_NOW or before.predicted < _ENOUGH_BEFORE:
        return False
    median, usual, most = (errors.quantile(share) or 0.0 for errors, share in ((now, 0.5), (before, 0.5), (before, 0.75)))
    return median >= max(_WORSE * usual, usual + _POINTS, most)


def silence(overall: Iterable[Mapping[str, Any]]) -> str:
    """A sentence where the predictor was asked and never answered, as before its first training; else empty. `overall`: groups as Errors.as_dict has them,
    with `predictor`."""
    own = [group for group in overall if group["predictor"] == "predicted"]
    if not own or any(group["results"] for group in own):
        return ""
    asked = sum(group["unanswered"] for group in own)
    return f"The predictor has not answered anything yet: it was asked for {asked:,} figures that were measured. It may still have to be trained."


def summed(counted: Iterable[tuple[Group, Errors]]) -> dict[Group, Errors]:
    """The same groups put together."""
    sums: dict[Group, Errors] = {}
    for group, errors in counted:
        sums.setdefault(group, Errors()).add(errors)
    return sums
