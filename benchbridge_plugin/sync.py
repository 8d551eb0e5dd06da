"""The only code that moves results. Schedule, route, command line and retry all come through `SyncEngine.run`.

One run, under one lease: settle what is in doubt, compare the file with the ledger, then batch by batch: read, map, claim in the ledger, send,
acknowledge in the ledger. Each step is durable before the next one begins, so that a process that dies anywhere leaves every result in a state from
which the next run goes on: not claimed (it is pending), claimed (it is in doubt, and the sink is asked), or acknowledged.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.clocks import elapsed_s
from benchbridge_plugin.comparison import Plan, compare
from benchbridge_plugin.errors import BridgeError, LedgerError, SinkUnclear
from benchbridge_plugin.heartbeat import Heartbeat
from benchbridge_plugin.ledger import Holder, Lease, Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import (
    Accounting,
    Fate,
    Outcome,
    Progress,
    Receipt,
    RunSummary,
    SinkProfile,
    SyncRequest,
    quality_names,
)
from benchbridge_plugin.settling import Settler, given_up
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.tally import Reporter, Tally

_logger = logging.getLogger(__name__)

_READ_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Policy:
    """How the engine behaves where a request does not say."""

    days: int = 30
    limit: int = 100
    batch_size: int | None = None
    retry_base_s: float = 30.0
    retry_max_s: float = 3600.0
    max_attempts: int = 10  # 0: never give up
    settle_after_s: float = 5.0
    lease_s: float = 60.0


class SyncEngine:
    """Moves results of one source to one sink. One instance may be asked from several threads; the lease lets one run at a time."""

    def __init__(
        self,
        source: BenchmarkSource,
        mapper: Mapper,
        ledger: Ledger,
        sink: Callable[[], Sink],
        *,
        source_name: str,
        owner: str,
        policy: Policy,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = elapsed_s,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._source = source
        self._mapper = mapper
        self._ledger = ledger
        self._sink = sink
        self._source_name = source_name
        self._owner = owner
        self._policy = policy
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._settler = Settler(source, mapper, ledger, settle_after_s=policy.settle_after_s, max_attempts=policy.max_attempts, sleep=sleep)

    @property
    def source_id(self) -> int:
        return self._ledger.runs.source_id(self._source_name)

    def refresh(self, *, wait: bool = False) -> Accounting:
        """The accounting, after a comparison if the file changed since the last one and nobody else is at it. Moves nothing.

        Raises SourceError when the file has to be looked at and cannot be (with `wait=False`: also when it is busy just now).
        """
        source_id = self.source_id
        if str(self._source.signature()) != self._ledger.accounts.compared(source_id).signature:
            with suppress(LedgerError):  # somebody is syncing and will compare
                lease = self._ledger.leases.acquire(self._source_name, self._owner, self._policy.lease_s)
                try:
                    holder = Holder(lease, self._policy.lease_s, 0)
                    request = SyncRequest(days=self._policy.days)
                    self._record(holder, source_id, self._compare(source_id, request, lambda progress: None, wait=wait))
                finally:
                    self._ledger.leases.release(lease)
        return self._ledger.accounts.accounting(source_id)

    def run(
        self,
        request: SyncRequest,
        *,
        progress: Callable[[Progress], object] = lambda progress: None,
        stopping: Callable[[], bool] = lambda: False,
        started: Callable[[int], object] = lambda run_id: None,
    ) -> RunSummary:
        """Carry out one run and say what it did.

        Raises LeaseBusy (another run has the lease) and LedgerError. An error of source or sink ends the run: it is in the summary (`state` is
        "failed", `error_code`, `message`, `guidance`) together with what had been done before it. `started` is called with the run's number; a
        scheduled run that finds nothing new has none, and writes nothing.
        `stopping` is asked between rows, and what was not sent by then stays pending. A dry run reads, compares and maps, and writes nothing.
        """
        if request.dry_run:
            return self._dry_run(request, progress)
        source_id = self.source_id
        if request.kind == "schedule" and self._is_idle(source_id, request):
            now = self._ledger.now()
            return RunSummary(None, "succeeded", request.kind, False, now, now, message="Nothing new.", request=asdict(request))
        lease = self._ledger.leases.acquire(self._source_name, self._owner, self._policy.lease_s)
        try:
            summary = self._ledger.runs.begin(lease, source_id, request, self._policy.lease_s)
            assert summary.run_id is not None
            started(summary.run_id)
            _logger.info("sync run %d started", summary.run_id, extra={"kind": request.kind})
            tally = Tally()
            self._source.forget_holds()
            holder = Holder(lease, self._policy.lease_s, summary.run_id)
            beat = Heartbeat(self._ledger, holder, self._clock, stopping)
            try:
                self._move(holder, source_id, request, tally, progress, beat)
                beat.check()
                state = "stopped" if stopping() else "partial" if tally.failed else "succeeded"
                ended = self._summarise(summary, tally, state=state)
            except BridgeError as error:
                _logger.warning("sync run %d ended early: %s", summary.run_id, error.message)
                ended = self._summarise(summary, tally, state="failed", error=error)
            except BaseException as error:
                self._ledger.runs.finish(
                    replace(summary, state="failed", error_code="internal_error", message=f"{type(error).__name__}: {error}")
                )
                raise
            ended = self._ledger.runs.finish(ended)
            _logger.info("sync run %d %s: %s", summary.run_id, ended.state, ended.message)
            return ended
        finally:
            self._release(lease)

    # -- the steps ----------------------------------------------------------------------------------------------------------------------

    def _move(
        self,
        holder: Holder,
        source_id: int,
        request: SyncRequest,
        tally: Tally,
        progress: Callable[[Progress], object],
        beat: Heartbeat,
    ) -> None:
        if self._nothing_new(source_id, request):
            return
        sink = self._sink()
        profile = sink.profile()
        self._ledger.deliveries.abandoned(holder, source_id)
        self._settle(holder, source_id, sink, profile, tally, beat, patient=True)
        if request.adopt or self._may_be_there(holder, source_id, sink, profile):
            self._adopt(holder, source_id, request, sink, profile, tally, progress, beat)
            if request.adopt:
                return
        plan = self._compare(source_id, request, progress, wait=True, beat=beat)
        self._record(holder, source_id, plan)
        shown = Reporter(self._ledger, holder, progress, self._clock, len(plan.candidates), tally)
        try:
            self._send_all(holder, source_id, request, plan, sink, profile, tally, shown, beat)
        finally:
            shown.show(final=True)
        if tally.doubts and not beat.stopping():
            self._settle(holder, source_id, sink, profile, tally, beat, patient=False)

    def _send_all(
        self,
        holder: Holder,
        source_id: int,
        request: SyncRequest,
        plan: Plan,
        sink: Sink,
        profile: SinkProfile,
        tally: Tally,
        shown: Reporter,
        beat: Heartbeat,
    ) -> None:
        """Batch by batch, until nothing is left, the limit of sent results is reached, or the sink is down. Rejections do not use up the limit."""
        limit = self._limit(request)
        batch_rows = self._policy.batch_size or sink.batch_rows
        position = sent = 0
        while position < len(plan.candidates) and not beat.stopping():
            left = limit - sent if limit else len(plan.candidates)
            if left <= 0:
                return
            chunk = plan.candidates.slice(position, min(max(batch_rows, _READ_ROWS), left))
            position += len(chunk)
            measured = self._measure(plan, chunk, profile)
            for start in range(0, len(measured), batch_rows):
                if beat.stopping():
                    return
                batch = measured.slice(start, batch_rows)
                sent += self._send(holder, source_id, batch, sink, tally, beat)
                shown.show()

    def _send(self, holder: Holder, source_id: int, batch: pa.Table, sink: Sink, tally: Tally, beat: Heartbeat) -> int:
        """Claim, send, acknowledge one batch. Returns how many results were handed to the sink."""
        self._ledger.deliveries.claim(holder, source_id, batch, batch.column("is_new").to_pylist())
        for code in batch.column("reason_code").drop_null().to_pylist():
            tally.rejected += 1
            tally.reasons[code] += 1
        measurements = batch.filter(pc.is_null(batch.column("reason_code")))
        if not len(measurements):
            return 0
        attempts, flags, ids, hashes = (
            measurements.column(name).to_pylist() for name in ("attempts", "quality", "result_id", "content_hash")
        )

        def acknowledge(receipt: Receipt) -> None:
            self._ledger.deliveries.acknowledge(
                holder, source_id, measurements, receipt, retry_at=lambda row, outcome: self._retry_at(attempts[row] + 1, outcome)
            )

        try:
            receipt = sink.send(measurements, stopping=beat.stopping)
        except BaseException as error:
            # An interrupt, or a fault of ours. From now on all of it is in doubt, and `settle_after_s` counts from here, not from the claim.
            doubt = Outcome(Fate.IN_DOUBT, "interrupted", f"The sync was interrupted while it sent this result ({type(error).__name__}).")
            with suppress(LedgerError):
                acknowledge(Receipt([None] * len(measurements), dict.fromkeys(range(len(measurements)), doubt), RuntimeError(doubt.code)))
            raise
        receipt = self._give_up(receipt, attempts)
        acknowledge(receipt)
        for row, quality in enumerate(flags):
            if quality and row not in receipt.exceptions:
                tally.quality.update(quality_names(quality))
        not_sent = 0
        for row, outcome in receipt.exceptions.items():
            if outcome.fate is Fate.NOT_SENT:
                not_sent += 1
                continue
            tally.reasons[outcome.code] += 1
            if outcome.fate is Fate.REJECTED:
                tally.rejected += 1
            else:
                tally.failed += 1
            if outcome.fate is Fate.IN_DOUBT:
                tally.doubts[ids[row], hashes[row]] = outcome.code
        tally.synced += len(measurements) - len(receipt.exceptions)
        if receipt.stop is not None:
            raise receipt.stop
        return len(measurements) - not_sent

    def _measure(self, plan: Plan, chunk: pa.Table, profile: SinkProfile) -> pa.Table:
        """The chunk read and mapped, in the chunk's order. A row that is gone or changed since the comparison is left for the next one."""
        rows = self._source.read(plan.layout, chunk.column("result_id").combine_chunks())
        measured = self._mapper.measure(rows, profile)
        place = {
            pair: row
            for row, pair in enumerate(zip(*(measured.column(name).to_pylist() for name in ("result_id", "content_hash")), strict=True))
        }
        wanted = list(zip(*(chunk.column(name).to_pylist() for name in ("result_id", "content_hash")), strict=True))
        here = [row for row, pair in enumerate(wanted) if pair in place]
        ordered = measured.take(pa.array([place[wanted[row]] for row in here], pa.int64()))
        kept = chunk.take(pa.array(here, pa.int64()))
        return ordered.append_column("is_new", kept.column("is_new")).append_column("attempts", kept.column("attempts"))

    def _settle(
        self, holder: Holder, source_id: int, sink: Sink, profile: SinkProfile, tally: Tally, beat: Heartbeat, *, patient: bool
    ) -> None:
        self._settler.settle(holder, source_id, sink, profile, patient=patient, stopping=beat.stopping, settled=tally.settle)

    def _adopt(
        self,
        holder: Holder,
        source_id: int,
        request: SyncRequest,
        sink: Sink,
        profile: SinkProfile,
        tally: Tally,
        progress: Callable[[Progress], object],
        beat: Heartbeat,
    ) -> None:
        """Record as delivered what the sink has and the ledger does not know, of all results, whatever look-back and model this run is about.

        Until that has been done to its end nothing new is sent. Raises SinkUnclear when it has to be done and the sink cannot say it all.
        """
        everything = SyncRequest(days=0)
        plan = self._compare(source_id, everything, progress, wait=True, beat=beat)
        self._record(holder, source_id, plan)
        tally.adopted, tally.unknown = self._settler.adopt(
            holder,
            source_id,
            plan,
            lambda chunk: self._measure(plan, chunk, profile),
            sink,
            stopping=beat.stopping,
            progress=lambda done, total: progress(Progress("adopting", done, total)),
        )
        if tally.adopted:
            _logger.info("%d results were at the predictive API already", tally.adopted)
        if beat.stopping():
            return
        if not tally.unknown or request.assume_absent:
            self._ledger.deliveries.mark_adopted(holder, source_id)
        elif not request.adopt:
            raise SinkUnclear(
                f"{sink.name} cannot say of {tally.unknown} results whether it has them already, and this ledger is new. Nothing was sent.",
                guidance="Make its listing work (one NaN in it breaks it), or, if it cannot have them: benchbridge adopt --assume-absent.",
            )

    def _give_up(self, receipt: Receipt, attempts: Sequence[int]) -> Receipt:
        """The receipt in which a row that failed as often as is allowed ends as given up. What fails while the sink is down does not count."""
        most = self._policy.max_attempts
        if not most or receipt.stop is not None:
            return receipt
        ended = {
            row: given_up(attempts[row] + 1, outcome.reason)
            for row, outcome in receipt.exceptions.items()
            if outcome.fate is Fate.FAILED and attempts[row] + 1 >= most
        }
        return replace(receipt, exceptions={**receipt.exceptions, **ended}) if ended else receipt

    # -- deciding -----------------------------------------------------------------------------------------------------------------------

    def _nothing_new(self, source_id: int, request: SyncRequest) -> bool:
        """The quick way out: the file is as it was compared, all of it was taken up, and nothing waits."""
        if request.adopt:
            return False
        compared = self._ledger.accounts.compared(source_id)
        if compared.signature != str(self._source.signature()) or compared.scope != self._scope(request):
            return False
        return not compared.untouched and not self._ledger.accounts.waiting(source_id, self._ledger.now())

    def _is_idle(self, source_id: int, request: SyncRequest) -> bool:
        """`_nothing_new` for a run that has not begun. What goes wrong is for the run to say."""
        with suppress(BridgeError):
            return self._nothing_new(source_id, request)
        return False

    def _compare(
        self, source_id: int, request: SyncRequest, progress: Callable[[Progress], object], *, wait: bool, beat: Heartbeat | None = None
    ) -> Plan:
        days = self._days(request)

        def show(done: int, total: int) -> None:
            if beat is not None:
                beat.stopping()
            progress(Progress("comparing", done, total))

        return compare(
            self._source,
            self._mapper,
            self._ledger,
            source_id,
            cutoff_us=int((self._ledger.now() - days * 86_400) * 1e6) if days else None,
            scope=self._scope(request),
            model=request.model,
            wait=wait,
            progress=show,
        )

    def _record(self, holder: Holder, source_id: int, plan: Plan) -> None:
        self._ledger.deliveries.compared(
            holder, source_id, plan.comparison, superseded=plan.superseded, returned=plan.returned, withdrawn=plan.withdrawn
        )

    def _retry_at(self, attempts: int, outcome: Outcome) -> float:
        """Exponential back-off with full jitter in its upper half; never earlier than the server asked for."""
        wait = min(self._policy.retry_base_s * 2.0 ** min(attempts - 1, 30), self._policy.retry_max_s)
        return self._ledger.now() + max(self._jitter(wait / 2, wait), outcome.retry_after_s or 0.0)

    def _days(self, request: SyncRequest) -> int:
        return self._policy.days if request.days is None else request.days

    def _limit(self, request: SyncRequest) -> int:
        return self._policy.limit if request.limit is None else request.limit

    def _may_be_there(self, holder: Holder, source_id: int, sink: Sink, profile: SinkProfile) -> bool:
        """Whether results that this ledger does not know may have been delivered under another one: it was lost, or it is a copy.

        A sink with idempotency is not asked: it answers a second sending with the first one's id.
        """
        if "idempotency" in profile.capabilities or self._ledger.deliveries.is_adopted(source_id):
            return False
        if self._settler.may_hold_ours(sink):
            return True
        self._ledger.deliveries.mark_adopted(holder, source_id)
        return False

    def _scope(self, request: SyncRequest) -> str:
        return f"days={self._days(request)}"

    # -- ending -------------------------------------------------------------------------------------------------------------------------

    def _dry_run(self, request: SyncRequest, progress: Callable[[Progress], object]) -> RunSummary:
        began = self._ledger.now()
        source_id = self.source_id
        tally = Tally()
        plan = self._compare(source_id, request, progress, wait=True)
        limit = self._limit(request)
        profile = self._sink().profile()
        position = 0
        while position < len(plan.candidates) and (not limit or tally.synced < limit):
            chunk = plan.candidates.slice(position, _READ_ROWS)
            position += len(chunk)
            for code, quality in zip(
                *(self._measure(plan, chunk, profile).column(name).to_pylist() for name in ("reason_code", "quality")), strict=True
            ):
                if code is not None:
                    tally.rejected += 1
                    tally.reasons[code] += 1
                elif not limit or tally.synced < limit:
                    tally.synced += 1
                    tally.quality.update(quality_names(quality))
            progress(Progress("mapping", position, len(plan.candidates)))
        return RunSummary(
            None,
            "succeeded",
            request.kind,
            True,
            began,
            self._ledger.now(),
            considered=tally.considered,
            synced=tally.synced,
            rejected=tally.rejected,
            skipped=sum(plan.comparison.skipped.values()),
            reasons={**tally.reasons, **plan.comparison.skipped},
            quality=tally.quality,
            held=self._source.holds(),
            message=f"Dry run: {tally.synced} would be sent, {tally.rejected} refused. No result was sent or recorded.",
            request=asdict(request),
        )

    def _summarise(self, summary: RunSummary, tally: Tally, *, state: str, error: BridgeError | None = None) -> RunSummary:
        skipped: dict[str, int] = {}
        with suppress(LedgerError):
            skipped = dict(self._ledger.accounts.accounting(self.source_id).skipped_by_reason)
        return tally.summary(summary, state=state, skipped=skipped, held=self._source.holds(), error=error)

    def _release(self, lease: Lease) -> None:
        try:
            self._ledger.leases.release(lease)
        except LedgerError as error:  # the lease runs out by itself
            _logger.warning("the lease could not be given back: %s", error.message)
