"""Every new result is a test of the predictor: it is asked just before the result is recorded, and what it said is kept beside what was measured.

Delivery comes first. The predictor is asked for a random part of each batch, as large as a tenth of the time of delivery allows; one that fails, or does
not answer in time, is left alone. What it said is written by the transaction that acknowledges the batch, so each result is scored once or not at all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin import accuracy
from benchbridge_plugin.accuracy import FIGURES
from benchbridge_plugin.forecasting import CannotForecast, NoForecast, ask, short
from benchbridge_plugin.model import FORECAST_FIELDS, Receipt
from benchbridge_plugin.sinks.base import Forecaster

_logger = logging.getLogger(__name__)

_SHARE_OF_TIME = 0.1
_SHARE_OVER_HTTP = 0.1
_AT_LEAST = 200  # rows of a batch that a sample has
_FIRST = 20  # rows, as long as nothing is known of how long they take; a run's later questions are about as many at least
_GROWTH = 4  # times as many as were asked for lately, at most
_REMEMBERED = 8  # answers
_ASTRAY = 1.5  # times as long for each row: such an answer waited for something else
_ALLOWANCE_S = 0.25  # of a run where a tenth is less: so a small cycle is scored whole
_PATIENCE_S = 5.0
_IDENTITY = ("result_id", "content_hash")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was predicted of some rows of a batch: `rows` are their places in it."""

    rows: pa.Array
    said: pa.Table


@dataclass(frozen=True, slots=True)
class Scored:
    """Delivered results with what was predicted of them, and how far that was off. `results` begins with result_id and content_hash."""

    results: pa.Table
    errors: Mapping[accuracy.Group, accuracy.Errors]


class Cost:
    """What asking a predictor takes, as its last answers had it: so much for being asked at all, and so much for each row. Outlives a run."""

    def __init__(self) -> None:
        self._answers: tuple[tuple[int, float], ...] = ()  # replaced, never changed: several threads may look at it

    def learn(self, rows: int, seconds: float) -> None:
        self._answers = (*self._answers, (rows, max(seconds, 1e-6)))[-_REMEMBERED:]

    @property
    def fixed_s(self) -> float:
        """No more than this is due for being asked. 0 as long as answers about one number of rows alone say nothing of it."""
        telling = self._telling()
        several = len({rows for rows, _ in telling}) > 1
        return min(seconds for _, seconds in telling) if several else 0.0

    def rows_within(self, seconds: float) -> int:
        """How many rows it answers in so much time; at least one."""
        if not self._answers:
            return _FIRST
        most, took = max(self._telling())
        each = max(took - self.fixed_s, 0.0) / most
        affordable = (seconds - self.fixed_s) / each if each else math.inf
        return max(int(min(affordable, _GROWTH * most)), 1)

    def _telling(self) -> list[tuple[int, float]]:
        """The answers without those that took far longer for each row than one about no more rows did."""
        answers = self._answers
        return [
            (rows, seconds)
            for rows, seconds in answers
            if not any(fewer <= rows and _ASTRAY * quicker / fewer < seconds / rows for fewer, quicker in answers)
        ]


class Scorer:
    """Asks one sink. `sample`: the part of the results that is asked for; None: all in the same process, a tenth over HTTP; 0: none.

    `cost`: what is known of it from earlier runs; `patience_s`: how long one answer may take. For one run; `begin` and `end` are called in turns, and
    neither raises what a predictor causes.
    """

    def __init__(
        self,
        sink: Forecaster,
        sample: float | None,
        *,
        cost: Cost | None = None,
        patience_s: float = _PATIENCE_S,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._share = sample if sample is not None else 1.0 if sink.is_near else _SHARE_OVER_HTTP
        self._patience_s = min(patience_s, _PATIENCE_S)
        self._stopping = stopping
        self._clock = clock
        self._delivering_s = self._asking_s = 0.0
        self._cost = Cost() if cost is None else cost
        self._asked = False
        self._began = 0.0

    def begin(self, batch: pa.Table) -> Forecast | None:
        """Before the batch is sent. None: nothing is scored of it."""
        forecast = self._ask(batch) if self._share > 0 else None
        self._began = self._clock()
        return forecast

    def end(self, forecast: Forecast | None, batch: pa.Table, receipt: Receipt) -> Scored | None:
        """After it was sent: what was predicted of the rows that were delivered. None: there is none."""
        now = self._clock()
        self._delivering_s += now - self._began
        if forecast is None:
            return None
        try:
            scored = _score(forecast, batch, receipt)
        except Exception:  # delivery does not depend on it
            _logger.exception("a batch could not be scored")
            self._share = 0.0
            return None
        self._asking_s += self._clock() - now
        return scored

    @property
    def _left_s(self) -> float:
        """Of the time that asking may take."""
        return max(_ALLOWANCE_S, _SHARE_OF_TIME * self._delivering_s) - self._asking_s

    def _ask(self, batch: pa.Table) -> Forecast | None:
        """In pieces: as much as the time that is left allows, and none as long as half of it would go into being asked at all."""
        if not self._worth_asking():
            return None
        waiting = self._sample_of(batch)
        rows: list[pa.Array] = []
        said: list[pa.Table] = []
        while len(waiting) and self._worth_asking() and not self._stopping():
            piece = waiting[: self._cost.rows_within(max(self._left_s, 2 * self._cost.fixed_s))]
            if self._asked and len(piece) < min(len(waiting), _FIRST):
                break  # being asked may be all that it costs: better later, for more of them
            self._asked = True
            began = self._clock()
            answer = self._answer(batch.select([*FORECAST_FIELDS]).take(piece))
            took = self._clock() - began
            self._asking_s += took
            if answer is None:
                self._share = 0.0
                return None
            self._cost.learn(len(piece), took)
            rows.append(piece)
            said.append(answer)
            waiting = waiting[len(piece) :]
        return Forecast(pa.concat_arrays(rows), pa.concat_tables(said)) if rows else None

    def _worth_asking(self) -> bool:
        """Once in each run it is, so that small ones are scored, too."""
        return self._left_s > 0 and (not self._asked or self._left_s >= 2 * self._cost.fixed_s)

    def _answer(self, asked: pa.Table) -> pa.Table | None:
        """None: it cannot, failed, or took too long."""
        try:
            return ask(self._sink, asked, patience_s=self._patience_s, stopping=self._stopping)
        except NoForecast as problem:
            if not self._stopping() and not isinstance(problem, CannotForecast):
                _logger.warning("the predictor is not asked any more in this run: %s", problem)
            return None

    def _sample_of(self, batch: pa.Table) -> pa.Array:
        """The places of a random part of the rows that were never sent before: the keys are hashes, so their order is as random as any, and the same
        each time."""
        new = pc.indices_nonzero(batch.column("is_new")) if "is_new" in batch.column_names else pa.array(range(len(batch)), pa.uint64())
        wanted = max(round(self._share * len(new)), min(len(new), _AT_LEAST))
        order = pc.array_sort_indices(_numbers(pa.concat_arrays(batch.column("key").chunks)).take(new))
        return new.take(order[:wanted])


def _numbers(keys: pa.Array) -> pa.Array:
    """The first eight bytes of each key: to sort them takes a tenth of the time that the keys take."""
    keys = keys.cast(pa.binary(16))
    halves = pa.Array.from_buffers(pa.uint64(), 2 * (keys.offset + len(keys)), [None, keys.buffers()[1]])
    return halves.take(pa.array(range(2 * keys.offset, len(halves), 2), pa.int64()))


def _score(forecast: Forecast, batch: pa.Table, receipt: Receipt) -> Scored | None:
    failed = pa.array(sorted(receipt.exceptions), pa.uint64())
    delivered = pc.invert(pc.is_in(forecast.rows, value_set=failed))
    wanted = [*_IDENTITY, "model_family", "hardware_platform", *FIGURES]
    rows, said = batch.select(wanted).take(forecast.rows.filter(delivered)), forecast.said.filter(delivered)
    if not len(rows):
        return None
    seen = pc.binary_join_element_wise(
        *(said.column(name).cast(pa.int8()).cast(pa.string()) for name in ("model_seen", "hardware_seen")), ""
    )
    columns = {
        **{name: rows.column(name) for name in _IDENTITY},
        **{f"measured_{figure}": rows.column(figure).cast(pa.float64()) for figure in FIGURES},
        **{name: said.column(name) for name in said.column_names},
    }
    views = {"seen": seen, "family": short(rows.column("model_family")), "hardware": short(rows.column("hardware_platform"))}
    errors = accuracy.count(pa.table({**columns, **views}))
    return Scored(pa.table({name: values for name, values in columns.items() if values.null_count < len(rows)}), errors)
