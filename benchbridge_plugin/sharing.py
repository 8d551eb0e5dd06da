"""The work of a large run, shared by the processes that use one ledger: the run's side, and the helper's.

See ledger/shares.py for what makes it safe. A run offers parts while it works, so that it never waits for anybody who is not there, and takes back at
its end what nobody wanted. Parts get smaller as less is left, so that all are done at about the same time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from benchbridge_plugin.carrier import Carrier
from benchbridge_plugin.errors import LeaseLost, LedgerError
from benchbridge_plugin.heartbeat import Heartbeat
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Ended, Holder, Ledger, Share
from benchbridge_plugin.model import SinkProfile, State
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.tally import Tally

_logger = logging.getLogger(__name__)

_OFFERED = 2  # at a time: one may be taken while the run is between two batches
_PART = 6  # of what is left
_LEAST = 20  # results; less is not worth a transaction
_LOOK_S = 0.2  # between two looks at the others
_REST_S = 30.0  # after a part that could not be carried: it would be taken from those who can


@dataclass(frozen=True, slots=True)
class Returned:
    """What comes back of a part: what the run has to send itself (SHARE_SCHEMA), and how many of the part were refused or are in here."""

    results: pa.Table
    not_sent: int


class Sharing:
    """The parts of one run that are offered to others. Used by one thread, the one that makes the run's batches, but for `ended`."""

    def __init__(self, ledger: Ledger, holder: Holder, source_id: int, *, batch_rows: int, sleep: Callable[[float], object]) -> None:
        self._ledger = ledger
        self._holder = holder
        self._source_id = source_id
        self._least = max(batch_rows // 10, _LEAST)
        self._sleep = sleep
        self._out: dict[int, pa.Table] = {}
        self._returned: deque[Returned] = deque()
        self._ended: deque[Sequence[Ended]] = deque()

    def offer(self, rest: pa.Table) -> int:
        """Offer parts of what is left, from its beginning, up to two at a time. Returns how many results that are."""
        given = 0
        if len(rest) >= 2 * self._least:
            free = _OFFERED - self._look()
            while free > 0 and len(rest) - given >= 2 * self._least:
                size = max((len(rest) - given) // _PART, self._least)
                part = rest.slice(given, size)
                self._out[self._ledger.shares.offer(self._holder, self._source_id, part)] = part
                given += size
                free -= 1
        return given

    def back(self, stopping: Callable[[], bool]) -> Returned | None:
        """What the run has to do itself, once it has nothing else: a part that nobody took, or what is left of one that is over. Waits for those
        that are being carried; None when all are done, or when it is time to stop."""
        while not stopping():
            untaken = self._look()
            if untaken:
                for number in reversed(self._out):  # the last one: the first is the likeliest to be taken at this moment
                    if self._ledger.shares.withdraw(self._holder, self._source_id, number):
                        part = self._out.pop(number)
                        return Returned(part, len(part))
            if self._returned:
                return self._returned.popleft()
            if not self._out:
                return None
            self._sleep(_LOOK_S)
        return None

    def ended(self) -> Iterator[Sequence[Ended]]:
        """What became of the results of parts that others carried, each part once. For the thread that keeps the tally."""
        while self._ended:
            yield self._ended.popleft()

    def close(self) -> None:
        """Offer nothing any more. What is being carried is carried to its end; the next run waits for it."""
        with suppress(LedgerError):
            for number in self._out:
                self._ledger.shares.withdraw(self._holder, self._source_id, number)

    def _look(self) -> int:
        """Take note of the parts that are over. Returns how many nobody has taken."""
        if not self._out:
            return 0
        offers = {offer.number: offer for offer in self._ledger.shares.offers(self._source_id)}
        for number in list(self._out):
            found = offers.get(number)
            if found is not None and (not found.taken or found.carried):
                continue
            part = self._out.pop(number)
            if found is not None:
                _logger.warning("a process that carried a part of this run is gone; what it was sending is in doubt")
                end(self._ledger, self._holder, self._source_id, number, part)
            ended, left = self._ledger.shares.outcome(self._holder, self._source_id, part)
            self._ended.append(ended)
            refused = sum(result.state is State.REJECTED for result in ended)
            self._returned.append(Returned(left, len(left) + refused))
        return sum(not offers[number].taken for number in self._out)


def end(ledger: Ledger, holder: Holder, source_id: int, number: int, part: pa.Table | None = None) -> None:
    """End a part whose process is gone; what that was sending is in doubt (with `part` at once, otherwise with the claims of the whole source)."""
    ledger.shares.revoke(holder, source_id, number)
    if part is not None:
        ledger.doubts.abandoned(holder, source_id, share=number, of=part.column("result_id").to_pylist())


def is_carried(ledger: Ledger, source_id: int) -> bool:
    """Whether some process is carrying a part of the source's work."""
    return any(offer.carried for offer in ledger.shares.offers(source_id))


def take_over(ledger: Ledger, holder: Holder, source_id: int, *, stopping: Callable[[], bool], sleep: Callable[[float], object]) -> bool:
    """End what earlier runs of the source have offered, and wait for what is still being carried: its process stops at its next batch, now that the
    lease is ours, or its own lease runs out. False: it is time to stop."""
    while offers := ledger.shares.offers(source_id):
        for offer in offers:
            if not offer.taken:
                ledger.shares.withdraw(holder, source_id, offer.number)
            elif not offer.carried:
                end(ledger, holder, source_id, offer.number)
        if any(offer.carried for offer in offers):
            if stopping():
                return False
            sleep(_LOOK_S)
    return True


class Helper:
    """Carries parts of runs of other processes. `sink`: as for the engine; `lease_s`: how long this process may be silent."""

    def __init__(
        self,
        source: BenchmarkSource,
        ledger: Ledger,
        carrier: Carrier,
        sink: Callable[[], Sink],
        *,
        source_name: str,
        owner: str,
        lease_s: float,
        batch_size: int | None,
        sleep: Callable[[float], object],
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._ledger = ledger
        self._carrier = carrier
        self._sink = sink
        self._source_name = source_name
        self._owner = owner
        self._lease_s = lease_s
        self._batch_size = batch_size
        self._sleep = sleep
        self._clock = clock
        self._failed: float | None = None

    def help(self, source_id: int, *, stopping: Callable[[], bool]) -> int:
        """Carry what is offered, one part after the other, until the run that offers has ended. Returns how many results this process delivered.

        Raises what ended it early: SourceError, SinkError, LedgerError. What it had taken then goes back to the run.
        """
        tally = Tally()
        run_id = None
        ends: tuple[Sink, SinkProfile, Layout] | None = None  # looked at once for each run, as the run itself does
        while not stopping() and (self._failed is None or self._clock() - self._failed >= _REST_S):
            share = self._ledger.shares.take(self._source_name, self._owner, self._lease_s)
            if share is not None:
                run_id = share.holder.run_id
                ends = self._carry(source_id, share, ends, tally, stopping)
                continue
            holder = self._ledger.leases.holder(self._source_name) if run_id is not None else None
            if holder is None or holder.run_id != run_id:
                break
            self._sleep(_LOOK_S)
        if run_id is not None:
            _logger.info("helped sync run %d: %d synced, %d refused, %d to be retried", run_id, tally.synced, tally.rejected, tally.failed)
        return tally.synced

    def _carry(
        self,
        source_id: int,
        share: Share,
        ends: tuple[Sink, SinkProfile, Layout] | None,
        tally: Tally,
        stopping: Callable[[], bool],
    ) -> tuple[Sink, SinkProfile, Layout]:
        beat = Heartbeat(self._ledger, share.holder, self._clock, stopping)
        done = False
        try:
            sink, profile, layout = ends or (found := self._sink(), found.profile(), self._source.layout())
            rows = self._batch_size or sink.batch_rows

            def batches(stop: Callable[[], bool]) -> Iterator[pa.Table]:
                for start in range(0, len(share.results), rows):
                    if stop():
                        return
                    yield self._carrier.measure(layout, share.results.slice(start, rows), profile)

            self._carrier.carry(share.holder, source_id, batches, sink, tally, lambda write: None, beat)
            beat.check()
            done = True
            self._failed = None
            return sink, profile, layout
        except LeaseLost:  # the run is over: that is no failure of ours
            raise
        except BaseException:
            self._failed = self._clock()
            raise
        finally:
            with suppress(LedgerError):
                self._ledger.shares.finish(share, done=done)
