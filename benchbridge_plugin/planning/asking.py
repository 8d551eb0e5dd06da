"""What the predictor says of candidates, as many as there is time for. Pieces grow: how long one takes is known from the one before it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa

from benchbridge_plugin.forecasting import NoForecast, ask
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.sinks.base import Forecaster

_FIRST = 200  # candidates
_GROWTH = 10
_SHORTEST_S = 0.5  # that an answer may take, however little time there is


def forecast(
    sink: Forecaster,
    profile: SinkProfile,
    candidates: pa.Table,
    *,
    default_length: int,
    within_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> pa.Table:
    """Answers (see forecasting.ask) for the first candidates, in order; those behind were not asked for. Raises NoForecast when there are none."""
    deadline = clock() + within_s
    answers: list[pa.Table] = []
    place, size = 0, _FIRST
    while place < len(candidates):
        piece = _as_asked(candidates.slice(place, size), profile, default_length)
        began = clock()
        try:
            answers.append(ask(sink, piece, patience_s=max(deadline - began, _SHORTEST_S)))
        except NoForecast:
            if not answers:
                raise
            break
        place += len(piece)
        took = max(clock() - began, 1e-6)
        size = min(size * _GROWTH, int((deadline - clock()) / took * len(piece)))
        if size < 1:
            break
    return pa.concat_tables(answers) if answers else pa.table({})


def _as_asked(candidates: pa.Table, profile: SinkProfile, default_length: int) -> pa.Table:
    """The columns of model.FORECAST_FIELDS as if a result were delivered now: with what results of its model say beside their figures."""
    rows = candidates.to_pylist()
    lengths = pa.array([default_length if row["sequence_length"] is None else row["sequence_length"] for row in rows], pa.int64())
    metadata = [_metadata(**row) if "measured_at" in profile.capabilities else None for row in rows]
    return pa.table(
        {
            **{
                name: candidates.column(name)
                for name in ("model_name", "model_family", "hardware_platform", "batch_size", "precision", "mode")
            },
            "sequence_length": lengths,
            "measured_at": pa.array([datetime.now(UTC)] * len(rows), pa.timestamp("us", "UTC")),
            "metadata": pa.array(metadata, pa.string()),
        }
    )


def _metadata(*, device_name: str | None, test_case: str | None, sequence_length: int | None, said: str | None, **_: object) -> str:
    assumed = [] if sequence_length is not None else ["sequence_length"]
    head = json.dumps({"device_name": device_name, "test_case": test_case, "assumed": assumed})
    return f'{head[:-1]}, "extras": {said or "null"}}}'
