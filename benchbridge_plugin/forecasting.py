"""Asking a predictor that belongs to somebody else: it may take forever, fail, or answer about other rows, and nothing here may depend on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.accuracy import FORECAST
from benchbridge_plugin.model import FORECAST_FIELDS
from benchbridge_plugin.sinks.base import Forecaster

_LOOK_S = 0.05  # between two looks at whether to stop, while the predictor is asked
_LONGEST_TEXT = 100  # characters of a version or a family
_MOST_VERSIONS = 16  # of a batch; a predictor that names one for each row names none
_FLOATS = pa.float32()


class NoForecast(Exception):
    """It failed, or took too long; says which."""


class CannotForecast(NoForecast):
    """The API has no predictor that can be asked for many rows."""


def ask(sink: Forecaster, rows: pa.Table, *, patience_s: float, stopping: Callable[[], bool] = lambda: False) -> pa.Table:
    """What the predictor says of rows (model.BATCH_FIELDS, of which it is shown FORECAST_FIELDS): `version`, `model_seen`, `hardware_seen` and the columns
    of accuracy.FORECAST, in order, each of its type and null where it said nothing that a figure can be.

    From a thread of its own: neither a host's predictor nor a server can be told to hurry. Raises NoForecast, also when `stopping` says so.
    """
    found: list[pa.Table | None] = []
    problem = "it did not answer in time"
    done = threading.Event()

    def work() -> None:
        nonlocal problem
        try:
            answer = sink.forecast(rows.select([*FORECAST_FIELDS]))
            found.append(None if answer is None else _read(answer, len(rows)))
        except Exception as error:  # the host's predictor, or anything over HTTP
            problem = f"{type(error).__name__}: {error}"[:500]
        done.set()

    threading.Thread(target=work, name="benchbridge-forecast", daemon=True).start()
    deadline = time.monotonic() + patience_s
    while not done.wait(_LOOK_S) and time.monotonic() < deadline and not stopping():
        pass
    if not (done.is_set() and found):
        raise NoForecast(problem)
    if found[0] is None:
        raise CannotForecast("the predictive API cannot predict in bulk")
    return found[0]


def short(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts as labels: none is null, and none is long."""
    return pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, _LONGEST_TEXT)


def _read(answer: pa.Table, rows: int) -> pa.Table:
    """The answer with the columns that are kept, each of its type. Raises ValueError when it is about other rows, ArrowInvalid for wrong types."""
    if len(answer) != rows:
        raise ValueError(f"it answered {len(answer)} rows for {rows}")

    def column(name: str, kind: pa.DataType, *, safe: bool = True) -> pa.ChunkedArray:
        return answer.column(name).cast(kind, safe=safe) if name in answer.column_names else pa.chunked_array([pa.nulls(rows, kind)])

    def figure(name: str, *, positive: bool) -> pa.ChunkedArray:
        values = column(name, _FLOATS, safe=False)
        good = pc.and_(pc.is_finite(values), pc.greater(values, 0.0)) if positive else pc.is_finite(values)
        return pc.if_else(pc.fill_null(good, False), values, pa.scalar(None, _FLOATS))

    version = short(column("predictor_version", pa.string()))
    if len(pc.unique(version)) > _MOST_VERSIONS:
        version = pa.chunked_array([pa.repeat("", rows)])
    return pa.table(
        {
            "version": version,
            "model_seen": pc.fill_null(column("model_seen", pa.bool_()), False),
            "hardware_seen": pc.fill_null(column("hardware_seen", pa.bool_()), False),
            **{kept: figure(said, positive=not said.endswith(("_lo", "_hi"))) for kept, said in FORECAST.items()},
        }
    )
