"""The only code that moves results. Schedule, route, command line and retry all come through `SyncEngine.run`.

One run, under one lease: settle what is in doubt, compare the file with the ledger, then batch by batch: read, map, claim in the ledger, send,
acknowledge in the ledger. Each step is durable before the next one begins, so that a process that dies anywhere leaves every result in a state from
which the next run goes on: not claimed (it is pending), claimed (it is in doubt, and the sink is asked), or acknowledged.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from benchbridge_plugin.carrier import Carrier
from benchbridge_plugin.clocks import elapsed_s
from benchbridge_plugin.comparison import Found, Plan, begin_census, compare, first_pass, look
from benchbridge_plugin.conveyor import Write
from benchbridge_plugin.errors import BridgeError, LedgerError, SinkUnclear
from benchbridge_plugin.heartbeat import Heartbeat
from benchbridge_plugin.ledger import Compared, Holder, Lease, Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import Accounting, Progress, RunSummary, SinkProfile, SyncRequest
from benchbridge_plugin.rehearsal import rehearse
from benchbridge_plugin.settling import Settler
from benchbridge_plugin.sharing import Helper, Sharing, is_carried, take_over
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.tally import Reporter, Tally

_logger = logging.getLogger(__name__)

_READ_ROWS = 5_000
_SCHEDULED = ("schedule", "service")
_MOST_LOOKED_AT = 50_000  # more than that is compared as a whole
_QUICK_ROWS = 1_000  # a sink that wants batches of that many is done in minutes, whatever the order


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
    compare_every_s: float = 3600.0  # scheduled runs in between look for new ids only
    score_sample: float | None = 0.0  # the part of the results of which the API is asked for a prediction; None: see scoring.Scorer
    share_work: bool = False  # offer parts of a large run to the other processes that use the ledger, and carry parts of theirs


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
        self._carrier = Carrier(
            source,
            mapper,
            ledger,
            retry_base_s=policy.retry_base_s,
            retry_max_s=policy.retry_max_s,
            max_attempts=policy.max_attempts,
            jitter=jitter,
            score_sample=policy.score_sample,
        )
        self._helper = Helper(
            source,
            ledger,
            self._carrier,
            sink,
            source_name=source_name,
            owner=owner,
            lease_s=policy.lease_s,
            batch_size=policy.batch_size,
            sleep=sleep,
            clock=clock,
        )
        self._settler = Settler(source, mapper, ledger, settle_after_s=policy.settle_after_s, max_attempts=policy.max_attempts, sleep=sleep)

    @property
    def source_id(self) -> int:
        return self._ledger.runs.source_id(self._source_name)

    def refresh(self, *, wait: bool = False) -> Accounting:
        """The accounting, after a comparison if the file changed since the last one and nobody else is at it. Moves nothing.

        Raises SourceError when the file has to be looked at and cannot be (with `wait=False`: also when it is busy just now).
        """
        source_id = self.source_id
        changed = str(self._source.signature()) != self._ledger.accounts.compared(source_id).signature
        if changed and not is_carried(self._ledger, source_id):  # to take the lease would stop who carries on what an earlier run began
            with suppress(LedgerError):  # somebody is syncing and will compare
                lease = self._ledger.leases.acquire(self._source_name, self._owner, self._policy.lease_s)
                try:
                    holder = Holder(lease, self._policy.lease_s, 0)
                    if take_over(self._ledger, holder, source_id, stopping=lambda: True, sleep=self._sleep):
                        self._ledger.doubts.abandoned(holder, source_id)
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
                _logger.warning("sync run %d ended early: %s", summary.run_id, f"{error.message} {error.guidance}".strip())
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

    def help(self, *, stopping: Callable[[], bool] = lambda: False) -> int:
        """Carry parts of a run that another process offers, until it has ended. Returns how many results that delivered; 0 also where work is not
        shared. Raises SourceError, SinkError and LedgerError; what was not done goes back to that run."""
        return self._helper.help(self.source_id, stopping=stopping) if self._policy.share_work else 0

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
        if not take_over(self._ledger, holder, source_id, stopping=beat.stopping, sleep=self._sleep):
            return
        self._ledger.doubts.abandoned(holder, source_id)
        self._settle(holder, source_id, sink, profile, tally, beat, patient=True)
        if request.adopt or self._may_be_there(holder, source_id, sink, profile):
            self._adopt(holder, source_id, request, sink, profile, tally, progress, beat)
            if request.adopt:
                return
        batch_rows = self._policy.batch_size or sink.batch_rows
        if sink.batch_rows >= _QUICK_ROWS and not self._limit(request) and not self._ledger.comparisons.has_rows(source_id):
            self._send_as_read(holder, source_id, request, sink, profile, batch_rows, tally, progress, beat)
            return
        plan: Plan | Found | None = self._look(source_id, request, profile)
        if isinstance(plan, Found):
            self._ledger.comparisons.found(holder, source_id, plan.more, plan.ids)
        else:
            plan = self._compare(source_id, request, progress, wait=True, beat=beat, profile=profile)
            self._record(holder, source_id, plan)
        shown = Reporter(self._ledger, holder, progress, self._clock, len(plan.candidates), tally)
        sharing = Sharing(self._ledger, holder, source_id, batch_rows=batch_rows, sleep=self._sleep) if self._policy.share_work else None

        def batches(stopping: Callable[[], bool]) -> Iterator[pa.Table]:
            return self._batches(request, plan, profile, batch_rows, sharing, tally, stopping)

        def show(write: Write | None = None) -> None:
            for ended in sharing.ended() if sharing is not None else ():
                tally.add(ended)
            shown.show(write)

        try:
            self._carrier.carry(holder, source_id, batches, sink, tally, show, beat)
        finally:
            if sharing is not None:
                sharing.close()
            show()
        if tally.doubts and not beat.stopping():
            self._settle(holder, source_id, sink, profile, tally, beat, patient=False)

    def _send_as_read(
        self,
        holder: Holder,
        source_id: int,
        request: SyncRequest,
        sink: Sink,
        profile: SinkProfile,
        batch_rows: int,
        tally: Tally,
        progress: Callable[[Progress], object],
        beat: Heartbeat,
    ) -> None:
        """A ledger that knows nothing has nothing to compare with: one pass reads, maps, counts and sends. Until its end all results count as pending."""
        census = begin_census(self._source, self._scope(request))
        nothing: dict[str, Any] = {"superseded": (), "returned": (), "withdrawn": ()}
        self._ledger.comparisons.compared(holder, source_id, census.provisional, **nothing)
        shown = Reporter(self._ledger, holder, progress, self._clock, len(census.ids), tally)

        def batches(stopping: Callable[[], bool]) -> Iterator[pa.Table]:
            return first_pass(
                self._source,
                self._mapper,
                profile,
                census,
                cutoff_us=self._cutoff_us(request),
                model=request.model,
                batch_rows=batch_rows,
                stopping=stopping,
            )

        try:
            self._carrier.carry(holder, source_id, batches, sink, tally, shown.show, beat)
        finally:
            shown.show()
        if census.complete:
            self._ledger.comparisons.compared(holder, source_id, census.comparison(), **nothing, provisional=census.provisional.untouched)
        if tally.doubts and not beat.stopping():
            self._settle(holder, source_id, sink, profile, tally, beat, patient=False)

    def _batches(
        self,
        request: SyncRequest,
        plan: Plan | Found,
        profile: SinkProfile,
        batch_rows: int,
        sharing: Sharing | None,
        tally: Tally,
        stopping: Callable[[], bool],
    ) -> Iterator[pa.Table]:
        """The plan's results, measured, batch by batch, until the limit of results to send is reached. Refused ones do not use it up."""
        limit = self._limit(request)
        position = sent = 0
        while not stopping():
            left = limit - sent if limit else len(plan.candidates)
            if sharing is not None:
                given = sharing.offer(plan.candidates.slice(position, max(left, 0)))
                position, sent, left = position + given, sent + given, left - given
            rows = min(batch_rows if sharing is not None else max(batch_rows, _READ_ROWS), max(left, 0))
            chunk = plan.candidates.slice(position, rows)
            position += len(chunk)
            if not len(chunk):
                back = sharing.back(stopping) if sharing is not None else None
                if back is None:
                    tally.cut = position < len(plan.candidates)
                    return
                sent -= back.not_sent
                chunk = back.results
            measured = self._carrier.measure(plan.layout, chunk, profile, plan.batch)
            sent += measured.column("reason_code").null_count
            for start in range(0, len(measured), batch_rows):
                yield measured.slice(start, batch_rows)

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
        plan = self._compare(source_id, everything, progress, wait=True, beat=beat, profile=profile)
        self._record(holder, source_id, plan)
        tally.adopted, tally.unknown = self._settler.adopt(
            holder,
            source_id,
            plan,
            lambda chunk: self._carrier.measure(plan.layout, chunk, profile, plan.batch),
            sink,
            stopping=beat.stopping,
            progress=lambda done, total: progress(Progress("adopting", done, total)),
        )
        if tally.adopted:
            _logger.info("%d results were at the predictive API already", tally.adopted)
        if beat.stopping():
            return
        if not tally.unknown or request.assume_absent:
            self._ledger.doubts.mark_adopted(holder, source_id)
        elif not request.adopt:
            raise SinkUnclear(
                f"{sink.name} cannot say of {tally.unknown} results whether it has them already, and this ledger is new. Nothing was sent.",
                guidance="Make its listing work (one NaN in it breaks it), or, if it cannot have them: benchbridge adopt --assume-absent.",
            )

    # -- deciding -----------------------------------------------------------------------------------------------------------------------

    def _nothing_new(self, source_id: int, request: SyncRequest) -> bool:
        """The quick way out: the file is as it was compared, all of it was taken up, and nothing waits."""
        if request.adopt:
            return False
        compared = self._ledger.accounts.compared(source_id)
        known = compared.looked if self._looks_only(request, compared) else compared.signature
        if known != str(self._source.signature()) or compared.scope != self._scope(request):
            return False
        return not compared.untouched and not self._ledger.accounts.waiting(source_id, self._ledger.now())

    def _looks_only(self, request: SyncRequest, compared: Compared) -> bool:
        """Whether a look for new ids is enough this time: in a scheduled run, as long as the last whole comparison is not too long ago."""
        now = self._ledger.now()
        age_s = now - compared.compared_at if compared.compared_at is not None else -1.0
        return request.kind in _SCHEDULED and 0 <= age_s < self._policy.compare_every_s

    def _look(self, source_id: int, request: SyncRequest, profile: SinkProfile) -> Found | None:
        """What is new by id, where that is enough; None where the whole file has to be compared."""
        compared = self._ledger.accounts.compared(source_id)
        if not self._looks_only(request, compared) or compared.untouched or compared.scope != self._scope(request):
            return None
        return look(
            self._source,
            self._mapper,
            self._ledger,
            source_id,
            **self._terms(request),
            profile=profile,
            most=_MOST_LOOKED_AT,
        )

    def _is_idle(self, source_id: int, request: SyncRequest) -> bool:
        """`_nothing_new` for a run that has not begun. What goes wrong is for the run to say."""
        with suppress(BridgeError):
            return self._nothing_new(source_id, request)
        return False

    def _compare(
        self,
        source_id: int,
        request: SyncRequest,
        progress: Callable[[Progress], object],
        *,
        wait: bool,
        beat: Heartbeat | None = None,
        profile: SinkProfile | None = None,
    ) -> Plan:
        def show(done: int, total: int) -> None:
            if beat is not None:
                beat.stopping()
            progress(Progress("comparing", done, total))

        return compare(
            self._source,
            self._mapper,
            self._ledger,
            source_id,
            **self._terms(request),
            profile=profile,
            wait=wait,
            progress=show,
        )

    def _record(self, holder: Holder, source_id: int, plan: Plan) -> None:
        self._ledger.comparisons.compared(
            holder, source_id, plan.comparison, superseded=plan.superseded, returned=plan.returned, withdrawn=plan.withdrawn
        )

    def _days(self, request: SyncRequest) -> int:
        return self._policy.days if request.days is None else request.days

    def _terms(self, request: SyncRequest) -> dict[str, Any]:
        """What a request asks a comparison or a look for."""
        return {"cutoff_us": self._cutoff_us(request), "scope": self._scope(request), "model": request.model}

    def _cutoff_us(self, request: SyncRequest) -> int | None:
        """What is older is not sent: microseconds since 1970 UTC, or None for no look-back limit."""
        days = self._days(request)
        return int((self._ledger.now() - days * 86_400) * 1e6) if days else None

    def _limit(self, request: SyncRequest) -> int:
        return self._policy.limit if request.limit is None else request.limit

    def _may_be_there(self, holder: Holder, source_id: int, sink: Sink, profile: SinkProfile) -> bool:
        """Whether results that this ledger does not know may have been delivered under another one: it was lost, or it is a copy.

        A sink with idempotency is not asked: it answers a second sending with the first one's id.
        """
        if "idempotency" in profile.capabilities or self._ledger.doubts.is_adopted(source_id):
            return False
        if self._settler.may_hold_ours(sink):
            return True
        self._ledger.doubts.mark_adopted(holder, source_id)
        return False

    def _scope(self, request: SyncRequest) -> str:
        return f"days={self._days(request)}"

    # -- ending -------------------------------------------------------------------------------------------------------------------------

    def _dry_run(self, request: SyncRequest, progress: Callable[[Progress], object]) -> RunSummary:
        began = self._ledger.now()
        plan = self._compare(self.source_id, request, progress, wait=True)
        profile = self._sink().profile()
        return rehearse(
            plan,
            request,
            profile,
            source=self._source,
            mapper=self._mapper,
            ledger=self._ledger,
            source_id=self.source_id,
            measure=lambda chunk: self._carrier.measure(plan.layout, chunk, profile),
            limit=self._limit(request),
            read_rows=_READ_ROWS,
            began=began,
            progress=progress,
        )

    def _summarise(self, summary: RunSummary, tally: Tally, *, state: str, error: BridgeError | None = None) -> RunSummary:
        skipped: dict[str, int] = {}
        backlog, pending = None, 0
        with suppress(LedgerError):
            accounting = self._ledger.accounts.accounting(self.source_id)
            skipped = dict(accounting.skipped_by_reason)
            backlog, pending = accounting.backlog, accounting.pending
        held = self._source.holds()
        return tally.summary(summary, state=state, skipped=skipped, backlog=backlog, pending=pending, held=held, error=error)

    def _release(self, lease: Lease) -> None:
        try:
            self._ledger.leases.release(lease)
        except LedgerError as error:  # the lease runs out by itself
            _logger.warning("the lease could not be given back: %s", error.message)
