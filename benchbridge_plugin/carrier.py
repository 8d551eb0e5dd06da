"""From what is to be sent to what became of it: results read and mapped a chunk at a time, and carried to the sink batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.comparison import identity
from benchbridge_plugin.conveyor import Conveyor, Shown
from benchbridge_plugin.heartbeat import Heartbeat
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Holder, Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import Outcome, SinkProfile
from benchbridge_plugin.scoring import Cost, Scorer
from benchbridge_plugin.sinks.base import Forecaster, Sink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.tally import Tally


class Carrier:
    """Carries results of one source. `retry_base_s`, `retry_max_s`, `max_attempts` and `score_sample`: see docs/configuration.md."""

    def __init__(
        self,
        source: BenchmarkSource,
        mapper: Mapper,
        ledger: Ledger,
        *,
        retry_base_s: float,
        retry_max_s: float,
        max_attempts: int,
        jitter: Callable[[float, float], float],
        score_sample: float | None = 0.0,
    ) -> None:
        self._source = source
        self._mapper = mapper
        self._ledger = ledger
        self._retry_base_s = retry_base_s
        self._retry_max_s = retry_max_s
        self._max_attempts = max_attempts
        self._jitter = jitter
        self._score_sample = score_sample
        self._cost = Cost()

    def measure(self, layout: Layout, chunk: pa.Table, profile: SinkProfile, batch: pa.Table | None = None) -> pa.Table:
        """The chunk read and mapped, in the chunk's order; or taken from a batch that it was mapped to when it was compared. A row that is gone or changed
        since the comparison is left for the next one."""
        measured = batch
        if measured is None:
            measured = self._mapper.measure(self._source.read(layout, chunk.column("result_id").combine_chunks()), profile)
        place = pc.index_in(identity(chunk), value_set=identity(measured))
        here = pc.is_valid(place)
        kept = chunk.filter(here)
        ordered = measured.take(place.drop_null())
        return ordered.append_column("is_new", kept.column("is_new")).append_column("attempts", kept.column("attempts"))

    def carry(
        self,
        holder: Holder,
        source_id: int,
        batches: Callable[[Callable[[], bool]], Iterable[pa.Table]],
        sink: Sink,
        tally: Tally,
        shown: Shown,
        beat: Heartbeat,
    ) -> None:
        """Deliver the batches, which are made by a thread of their own and told when to stop. Raises what Conveyor.carry raises."""
        conveyor = Conveyor(
            self._ledger,
            holder,
            source_id,
            sink,
            tally=tally,
            beat=beat,
            retry_at=self._retry_at,
            max_attempts=self._max_attempts,
            shown=shown,
            scorer=self._scorer(sink, holder, beat),
        )
        conveyor.carry(batches(conveyor.stopping))

    def _scorer(self, sink: Sink, holder: Holder, beat: Heartbeat) -> Scorer | None:
        """An answer must not take so long that the lease is lost meanwhile."""
        if self._score_sample == 0 or not isinstance(sink, Forecaster):
            return None
        return Scorer(sink, self._score_sample, cost=self._cost, patience_s=holder.duration_s / 4, stopping=beat.stopping)

    def _retry_at(self, attempts: int, outcome: Outcome) -> float:
        """Exponential back-off with full jitter in its upper half; never earlier than the server asked for."""
        wait = min(self._retry_base_s * 2.0 ** min(attempts - 1, 30), self._retry_max_s)
        return self._ledger.now() + max(self._jitter(wait / 2, wait), outcome.retry_after_s or 0.0)
