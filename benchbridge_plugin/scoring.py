"""Every new result is a test of the predictor: it is asked just before the result is recorded, and what it said is kept beside what was measured.

Delivery comes first. The predictor is asked for a random part of each batch, as large as a tenth of the time of delivery allows; when it fails, the
batch goes on without. What it said is written by the transaction that acknowledges the batch, so each result is scored once or not at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.accuracy import FIGURES, FORECAST
from benchbridge_plugin.model import Receipt
from benchbridge_plugin.sinks.base import Forecaster

_logger = logging.getLogger(__name__)

_SHARE_OF_TIME = 0.1
_SHARE_OVER_HTTP = 0.1
_AT_LEAST = 200  # rows of a batch, whatever that takes: a small cycle is scored whole
_FIRST = 2_000  # rows, as long as nothing is known of how long either takes
_FLOATS = pa.float32()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was predicted of some rows of a batch: `rows` are their places in it, in order."""

    rows: pa.Array
    said: pa.Table


class Scorer:
    """Asks one sink. `sample`: the part of the results that is asked for; None: all in the same process, a tenth over HTTP; 0: none.

    For one run; `begin` and `end` are called in turns.
    """

    def __init__(self, sink: Forecaster, sample: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._share = sample if sample is not None else 1.0 if sink.is_near else _SHARE_OVER_HTTP
        self._clock = clock
        self._asking_s = self._sending_s = 0.0
        self._asked = self._sent = 0
        self._began = 0.0

    def begin(self, batch: pa.Table) -> Forecast | None:
        """Before the batch is sent. None: nothing is scored of it."""
        forecast = self._ask(batch) if self._share > 0 and len(batch) else None
        self._began = self._clock()
        return forecast

    def end(self, forecast: Forecast | None, batch: pa.Table, receipt: Receipt) -> pa.Table | None:
        """After it was sent: the delivered rows of the forecast as accuracy.count takes them, with `result_id` and `content_hash`. None: there is none."""
        self._sending_s += self._clock() - self._began
        self._sent += len(batch)
        if forecast is None:
            return None
        failed = pa.array(sorted(receipt.exceptions), pa.int64())
        delivered = pc.invert(pc.is_in(forecast.rows, value_set=failed))
        rows, said = batch.take(forecast.rows.filter(delivered)), forecast.said.filter(delivered)
        if not len(rows):
            return None
        return pa.table(
            {
                "result_id": rows.column("result_id"),
                "content_hash": rows.column("content_hash"),
                "family": pc.fill_null(rows.column("model_family"), ""),
                "hardware": rows.column("hardware_platform"),
                **{f"measured_{figure}": rows.column(figure).cast(pa.float64()) for figure in FIGURES},
                **{name: said.column(name) for name in said.column_names},
            }
        )

    def _ask(self, batch: pa.Table) -> Forecast | None:
        rows = self._some_of(batch)
        began = self._clock()
        try:
            answer = self._sink.forecast(batch.take(rows))
            said = None if answer is None else _read(answer, len(rows))
        except Exception as error:  # the host's predictor, or anything over HTTP: delivery does not depend on it
            _logger.warning("the predictor failed, so this run scores no more results: %s", error)
            said = None
        if said is None:
            self._share = 0.0
            return None
        self._asking_s += self._clock() - began
        self._asked += len(rows)
        return Forecast(rows, said)

    def _some_of(self, batch: pa.Table) -> pa.Array:
        """The places of a random part: the keys are hashes, so those below a bound are as random as any, and the same each time."""
        wanted = self._share * len(batch)
        if self._asked and self._sent:
            a_row = self._sending_s / self._sent
            affordable = _SHARE_OF_TIME * a_row * len(batch) * self._asked / max(self._asking_s, 1e-9)
        else:
            affordable = float(_FIRST)
        wanted = min(wanted, max(affordable, float(_AT_LEAST)))
        if wanted >= len(batch):
            return pa.array(range(len(batch)), pa.int64())
        first = pc.binary_slice(pc.cast(batch.column("key"), pa.binary()), 0, 4)
        bound = int(wanted / len(batch) * 0xFFFFFFFF).to_bytes(4, "big")
        return pc.indices_nonzero(pc.less(first, pa.scalar(bound, pa.binary()))).cast(pa.int64())


def _read(answer: pa.Table, rows: int) -> pa.Table:
    """The answer with the columns that are kept, each of its type. Raises ValueError when it is about other rows, ArrowInvalid for wrong types."""
    if len(answer) != rows:
        raise ValueError(f"it answered {len(answer)} rows for {rows}")

    def column(name: str, kind: pa.DataType) -> pa.ChunkedArray:
        return answer.column(name).cast(kind, safe=False) if name in answer.column_names else pa.chunked_array([pa.nulls(rows, kind)])

    return pa.table(
        {
            "version": pc.fill_null(column("predictor_version", pa.string()), ""),
            "model_seen": pc.fill_null(column("model_seen", pa.bool_()), False).cast(pa.int16()),
            "hardware_seen": pc.fill_null(column("hardware_seen", pa.bool_()), False).cast(pa.int16()),
            **{kept: column(said, _FLOATS) for kept, said in FORECAST.items()},
        }
    )
