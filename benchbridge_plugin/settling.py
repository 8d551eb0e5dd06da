"""Ends doubt by asking the sink, never by guessing: what became of results that were handed over and never acknowledged, and which ones a sink has
that this ledger knows nothing of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.comparison import Plan
from benchbridge_plugin.errors import SinkError
from benchbridge_plugin.ledger import Holder, Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import GIVEN_UP, MEASUREMENT_FIELDS, Answer, Doubt, Fate, Outcome, Receipt, SinkProfile
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.source import BenchmarkSource

_logger = logging.getLogger(__name__)
_PAGE = 1_000
_STEP_S = 0.2  # between two looks at whether to stop


@dataclass(frozen=True, slots=True)
class Settled:
    """How doubts ended. What is in none of the three is still in doubt."""

    stored: Sequence[Doubt]
    absent: Sequence[Doubt]
    given_up: Sequence[Doubt]


def given_up(attempts: int, last: str) -> Outcome:
    """The end of a result that failed `attempts` times."""
    return Outcome(Fate.REJECTED, GIVEN_UP, f"Given up after {attempts} attempts, until `retry`. The last: {last}"[:500])


class Settler:
    """Settles doubts and adopts deliveries of one source. `settle_after_s` and `max_attempts`: see docs/configuration.md."""

    def __init__(
        self,
        source: BenchmarkSource,
        mapper: Mapper,
        ledger: Ledger,
        *,
        settle_after_s: float,
        max_attempts: int,
        sleep: Callable[[float], object],
    ) -> None:
        self._source = source
        self._mapper = mapper
        self._ledger = ledger
        self._settle_after_s = settle_after_s
        self._max_attempts = max_attempts
        self._sleep = sleep
        self._began = ledger.now()  # with us the wait for others began: once, however many files are taken up one after the other

    def settle(
        self,
        holder: Holder,
        source_id: int,
        sink: Sink,
        profile: SinkProfile,
        *,
        patient: bool,
        stopping: Callable[[], bool],
        settled: Callable[[Settled], object],
    ) -> None:
        """Ask the sink about everything in doubt, a page at a time; `settled` is told of each page once it is durable.

        An absence counts only `settle_after_s` after the send: until then a slow server may still be about to store it. `patient` waits for that.
        """
        after = ""
        while (doubts := self._ledger.doubts.page(source_id, after=after, limit=_PAGE)) and not stopping():
            after = doubts[-1].result_id
            young = max((doubt.sent_at for doubt in doubts), default=0.0) + self._settle_after_s - self._ledger.now()
            if patient and 0 < young <= self._settle_after_s and not self._wait(young, stopping):
                return
            asked = self._with_fields(doubts, profile) if sink.compares_fields else doubts
            settlements = sink.settle(asked, taken=self._ledger.doubts.ids_taken)
            ripe = self._ledger.now() - self._settle_after_s
            stored: list[tuple[Doubt, str | None]] = []
            absent: list[Doubt] = []
            dead: list[tuple[Doubt, Outcome]] = []
            for doubt, settlement in zip(doubts, settlements, strict=True):
                if settlement.answer is Answer.STORED:
                    stored.append((doubt, settlement.measurement_id))
                elif settlement.answer is Answer.ABSENT and doubt.sent_at <= ripe:
                    if 0 < self._max_attempts <= doubt.attempts:
                        dead.append((doubt, given_up(doubt.attempts, "the predictive API did not store it and did not say why.")))
                    else:
                        absent.append(doubt)
            self._ledger.doubts.settle(holder, source_id, stored, absent, dead)
            settled(Settled([doubt for doubt, _ in stored], absent, [doubt for doubt, _ in dead]))

    def adopt(
        self,
        holder: Holder,
        source_id: int,
        plan: Plan,
        measured: Callable[[pa.Table], pa.Table],
        sink: Sink,
        *,
        stopping: Callable[[], bool],
        progress: Callable[[int, int], object],
    ) -> tuple[int, int]:
        """Record as delivered what the sink already has of the plan's new results. Returns how many that are, and about how many it cannot say.

        `measured` reads and maps a part of the plan. What is adopted takes the same two steps as what is sent, so that a process that dies between
        them leaves doubts, which the sink is asked about.
        """
        new = plan.candidates.filter(plan.candidates.column("is_new"))
        if len(new):  # whoever had the lost ledger may have died just now, with requests under way
            self._wait(min(self._began + self._settle_after_s - self._ledger.now(), self._settle_after_s), stopping)
        adopted = unknown = 0
        for start in range(0, len(new), _PAGE):
            if stopping():
                break
            batch = measured(new.slice(start, _PAGE))
            batch = batch.filter(pc.is_null(batch.column("reason_code")))
            settlements = sink.settle(_as_doubts(batch), taken=self._ledger.doubts.ids_taken) if len(batch) else []
            unknown += sum(settlement.answer is Answer.UNKNOWN for settlement in settlements)
            rows = [row for row, settlement in enumerate(settlements) if settlement.answer is Answer.STORED]
            if rows:
                found = batch.take(pa.array(rows, pa.int64()))
                claim = self._ledger.deliveries.claim(holder, source_id, found, pa.array([True] * len(rows), pa.bool_()))
                receipt = Receipt([settlements[row].measurement_id for row in rows])
                self._ledger.deliveries.acknowledge(holder, source_id, claim, receipt, retry_at=lambda row, outcome: 0.0)
                adopted += len(rows)
            progress(min(start + _PAGE, len(new)), len(new))
        return adopted, unknown

    def _wait(self, seconds: float, stopping: Callable[[], bool]) -> bool:
        """Wait, and go on asking `stopping`, which ends it and keeps the lease alive. Returns whether the time has passed."""
        while seconds > 0 and not stopping():
            self._sleep(min(seconds, _STEP_S))
            seconds -= _STEP_S
        return seconds <= 0

    def may_hold_ours(self, sink: Sink) -> bool:
        """Whether the sink can have measurements of this source although the ledger is new. One look at the listing, where that is enough to say no."""
        try:
            return next(iter(sink.listing()), None) is not None
        except SinkError:
            return True  # the listing does not say; model by model it may

    def _with_fields(self, doubts: Sequence[Doubt], profile: SinkProfile) -> list[Doubt]:
        """The doubts with what was sent, read anew. A result that changed or went since then has no fields, and stays in doubt."""
        layout = self._source.layout(wait=True)
        rows = self._source.read(layout, pa.array([doubt.result_id for doubt in doubts], pa.string()))
        batch = self._mapper.measure(rows, profile)
        keys = zip(batch.column("result_id").to_pylist(), batch.column("content_hash").to_pylist(), strict=True)
        fields = dict(zip(keys, batch.select(list(MEASUREMENT_FIELDS)).to_pylist(), strict=True))
        return [replace(doubt, fields=fields.get((doubt.result_id, doubt.content_hash))) for doubt in doubts]


def _as_doubts(batch: pa.Table) -> list[Doubt]:
    """Measurements as questions to the sink, with their fields."""
    identities = zip(*(batch.column(name).to_pylist() for name in ("result_id", "content_hash", "key")), strict=True)
    fields = batch.select(list(MEASUREMENT_FIELDS)).to_pylist()
    return [
        Doubt(result_id, content, UUID(bytes=key), str(sent["model_name"]), 0.0, fields=sent)
        for (result_id, content, key), sent in zip(identities, fields, strict=True)
    ]
