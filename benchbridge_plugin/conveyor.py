"""Batches on their way to the sink: the next one is read, mapped and claimed while one is being sent and the last one is written down.

Three threads, each with one kind of work: a reader, which asks for the next batch and is at most one ahead of what is claimed; the ledger, whose steps
are taken one after the other in the order in which they were asked for; and the caller's, which sends. What is durable before what stays as it is without
them: a batch is claimed before its first byte leaves, and what was claimed and not sent is given back.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, Queue

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.heartbeat import Heartbeat
from benchbridge_plugin.ledger import Claim, Holder, Ledger
from benchbridge_plugin.model import Fate, Outcome, Receipt
from benchbridge_plugin.scoring import Forecast, Scored, Scorer
from benchbridge_plugin.settling import given_up
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.tally import Tally

_logger = logging.getLogger(__name__)
_LOOK_S = 0.1  # between two looks at whether to stop, while there is nothing to send
_UNWRITTEN = 2  # batches that were sent and are being written down: the memory that a slow disk may cost

#: Receives how far the run is, and how to have it written into the ledger in its turn.
Write = Callable[[Callable[[], object]], object]
Shown = Callable[[Write], object]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A claimed batch. `refused`: how many of its rows the mapping refused, by reason; they are in the ledger already."""

    claim: Claim
    refused: Mapping[str, int]


class Conveyor:
    """Carries the batches of one run. `retry_at(attempts, outcome)`: when a row that failed is due again; `max_attempts`: 0 never gives up."""

    def __init__(
        self,
        ledger: Ledger,
        holder: Holder,
        source_id: int,
        sink: Sink,
        *,
        tally: Tally,
        beat: Heartbeat,
        retry_at: Callable[[int, Outcome], float],
        max_attempts: int,
        shown: Shown,
        scorer: Scorer | None = None,
    ) -> None:
        self._ledger = ledger
        self._holder = holder
        self._source_id = source_id
        self._sink = sink
        self._tally = tally
        self._beat = beat
        self._retry_at = retry_at
        self._max_attempts = max_attempts
        self._shown = shown
        self._scorer = scorer
        self._stop = threading.Event()
        self._room = threading.Semaphore(1)  # one batch is claimed ahead, for what is claimed is in doubt after a crash
        self._ready: Queue[Future[_Prepared | None]] = Queue()  # None: there is no further batch
        self._unwritten: deque[tuple[Future[None], Claim, Receipt]] = deque()

    def stopping(self) -> bool:
        """For whoever makes the batches: whether no further one is wanted. May be asked from any thread."""
        return self._stop.is_set()

    def carry(self, batches: Iterable[pa.Table]) -> None:
        """Deliver the batches (model.BATCH_FIELDS with `is_new` and `attempts`) until there is none left, the run has to stop or the sink is down.

        Raises what the batches raise, once those before it are delivered; the sink's error when it is down; LedgerError.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="benchbridge-ledger") as book:
            reader = threading.Thread(target=self._prepare, args=(batches, book), name="benchbridge-reader", daemon=True)
            reader.start()
            try:
                while (prepared := self._next()) is not None:
                    self._send(prepared, book)
                self._written(most=0)
            finally:
                self._stop.set()
                reader.join()
                self._give_back(book)
                with suppress(LedgerError):  # what there was to say about it has been raised already
                    self._written(most=0)

    # -- the reader's thread ------------------------------------------------------------------------------------------------------------

    def _prepare(self, batches: Iterable[pa.Table], book: ThreadPoolExecutor) -> None:
        try:
            for batch in batches:
                while not self._room.acquire(timeout=_LOOK_S):
                    if self.stopping():
                        return
                if self.stopping():
                    return
                self._ready.put(book.submit(self._claim, batch))  # while it waits for its turn, the next one is read
                del batch
            self._ready.put(_settled(None))
        except BaseException as error:  # the edge of a thread: it is raised in the caller's
            failed: Future[_Prepared | None] = Future()
            failed.set_exception(error)
            self._ready.put(failed)

    def _claim(self, batch: pa.Table) -> _Prepared | None:
        is_new = pa.concat_arrays(batch.column("is_new").chunks) if len(batch) else pa.array([], pa.bool_())
        claim = self._ledger.deliveries.claim(self._holder, self._source_id, batch, is_new)
        refused = {pair["values"]: pair["counts"] for pair in pc.value_counts(batch.column("reason_code").drop_null()).to_pylist()}
        return _Prepared(claim, refused)

    # -- the caller's thread ------------------------------------------------------------------------------------------------------------

    def _next(self) -> _Prepared | None:
        while not self._beat.stopping():
            with suppress(Empty):
                item = self._ready.get(timeout=_LOOK_S)
                try:  # it is claimed after the batch before the last is written down: whether that went well is known by now
                    error = item.exception()
                    self._written(most=_UNWRITTEN if error is None else 0)
                except BaseException:
                    self._ready.put(item)  # to be given back
                    raise
                if error is not None:
                    raise error
                self._room.release()
                return item.result()
        return None

    def _send(self, prepared: _Prepared, book: ThreadPoolExecutor) -> None:
        claim = prepared.claim
        forecast = self._forecast(prepared)
        self._tally.refuse(prepared.refused)
        receipt = None
        if len(claim.batch):
            try:
                receipt = self._sink.send(claim.batch, stopping=self._beat.stopping)
            except BaseException as error:
                # An interrupt, or a fault of ours. From now on all of it is in doubt, and `settle_after_s` counts from here, not from the claim.
                doubt = Outcome(
                    Fate.IN_DOUBT, "interrupted", f"The sync was interrupted while it sent this result ({type(error).__name__})."
                )
                with suppress(LedgerError):
                    whole = Receipt([None] * len(claim.batch), dict.fromkeys(range(len(claim.batch)), doubt), RuntimeError(doubt.code))
                    book.submit(self._acknowledge, claim, whole).result()
                raise
            receipt = self._give_up(receipt, claim.batch.column("attempts"))
            scored = self._scorer.end(forecast, claim.batch, receipt) if self._scorer is not None else None
            self._unwritten.append((book.submit(self._acknowledge, claim, receipt, scored), claim, receipt))
        self._written(most=0 if receipt is not None and receipt.stop is not None else _UNWRITTEN)
        self._shown(book.submit)
        if receipt is not None and receipt.stop is not None:
            raise receipt.stop

    def _forecast(self, prepared: _Prepared) -> Forecast | None:
        if self._scorer is None or not len(prepared.claim.batch):
            return None
        try:
            return self._scorer.begin(prepared.claim.batch)
        except BaseException:
            self._ready.put(_settled(prepared))  # an interrupt: not a byte of it has left, so it is given back
            raise

    def _acknowledge(self, claim: Claim, receipt: Receipt, scored: Scored | None = None) -> None:
        attempts = claim.batch.column("attempts")
        self._ledger.deliveries.acknowledge(
            self._holder,
            self._source_id,
            claim,
            receipt,
            retry_at=lambda row, outcome: self._retry_at(attempts[row].as_py() + 1, outcome),
            scored=None if scored is None else (scored.results, scored.errors),
        )

    def _written(self, *, most: int) -> None:
        """Wait until at most that many batches are not written down yet. What is written down is counted. Raises LedgerError."""
        while self._unwritten and (len(self._unwritten) > most or self._unwritten[0][0].done()):
            future, claim, receipt = self._unwritten.popleft()
            future.result()
            self._tally.count(claim.batch, receipt)

    def _give_back(self, book: ThreadPoolExecutor) -> None:
        """What was claimed and will not be sent is as if it had never been touched. The reader has ended."""
        while not self._ready.empty():
            item = self._ready.get_nowait()
            prepared = item.result() if item.exception() is None else None
            if prepared is None:
                continue
            self._tally.refuse(prepared.refused)
            if not len(prepared.claim.batch):
                continue
            unsent = Outcome(Fate.NOT_SENT, "not_sent", "It was not sent.")
            rows = range(len(prepared.claim.batch))
            try:
                book.submit(self._acknowledge, prepared.claim, Receipt([None] * len(rows), dict.fromkeys(rows, unsent))).result()
            except LedgerError as error:
                _logger.warning("a batch that was not sent could not be given back: %s", error.message)

    def _give_up(self, receipt: Receipt, attempts: pa.ChunkedArray) -> Receipt:
        """The receipt in which a row that failed as often as is allowed ends as given up. What fails while the sink is down does not count."""
        if not self._max_attempts or receipt.stop is not None:
            return receipt
        ended = {
            row: given_up(tried, outcome.reason)
            for row, outcome in receipt.exceptions.items()
            if outcome.fate is Fate.FAILED and (tried := attempts[row].as_py() + 1) >= self._max_attempts
        }
        return replace(receipt, exceptions={**receipt.exceptions, **ended}) if ended else receipt


def _settled(prepared: _Prepared | None) -> Future[_Prepared | None]:
    """As if it had just been claimed."""
    settled: Future[_Prepared | None] = Future()
    settled.set_result(prepared)
    return settled
