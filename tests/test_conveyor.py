"""Three threads that carry batches: what is claimed when, what is written when, and how it ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from benchbridge_plugin.conveyor import Conveyor, Shown
from benchbridge_plugin.errors import LeaseLost, LedgerError, SinkUnreachable, SourceInvalid
from benchbridge_plugin.heartbeat import Heartbeat
from benchbridge_plugin.ledger import Claim
from benchbridge_plugin.model import Fate, Outcome, Receipt, SyncRequest
from benchbridge_plugin.scoring import Forecast, Scorer
from benchbridge_plugin.tally import Reporter, Tally
from tests.conftest import LEASE_S, REFUSED, Book, Clock, make_batch
from tests.scripted import FAILED, IN_DOUBT, Scripted

PATIENCE_S = 30.0
SIZE = 3


def batch_of(*rows: dict[str, Any], number: int, new: bool = True) -> pa.Table:
    """The `number`-th batch, as the engine makes them."""
    batch = make_batch(*(rows or [{}] * SIZE), first=number * 10)
    batch = batch.append_column("is_new", pa.array([new] * len(batch), pa.bool_()))
    return batch.append_column("attempts", pa.array([0 if new else 1] * len(batch), pa.int64()))


def ids_of(number: int) -> list[str]:
    return [str(number * 10 + row) for row in range(SIZE)]


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "it did not come to that"


class Watched(Scripted):
    """A sink that remembers its batches, sends all of them to the end, and does what a test says while the n-th is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.during: Callable[[int], object] = lambda number: None
        self.stop: Exception | None = None

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        self.batches.append(batch.column("result_id").to_pylist())
        self.during(len(self.batches))
        receipt = super().send(batch, stopping=lambda: False)
        return Receipt(receipt.measurement_ids, receipt.exceptions, self.stop)


class Line:
    """A conveyor between a list of batches, a sink and a ledger in which 100 results are untouched."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.sink = Watched()
        self.tally = Tally()
        self.log: list[tuple[str, int]] = []  # what the ledger did with which batch
        self.claimed = {number: threading.Event() for number in range(1, 10)}
        self.stop = threading.Event()
        self.shown: Shown = lambda submit: None
        book.compared(100)
        self._watch("claim", lambda batch: int(batch.column("result_id")[0].as_py()) // 10, self.claimed)
        self._watch("acknowledge", lambda claim: int(claim.batch.column("result_id")[0].as_py()) // 10, {})

    def _watch(self, name: str, number_of: Callable[[Any], int], done: dict[int, threading.Event]) -> None:
        method = getattr(self.book.ledger.deliveries, name)

        def watched(holder: object, source_id: int, what: Any, *arguments: Any, **options: Any) -> Any:
            number = number_of(what)
            answer = method(holder, source_id, what, *arguments, **options)
            self.log.append((name, number))
            if number in done:
                done[number].set()
            return answer

        setattr(self.book.ledger.deliveries, name, watched)

    def conveyor(self, *, max_attempts: int = 0, scorer: Scorer | None = None) -> Conveyor:
        book = self.book
        return Conveyor(
            book.ledger,
            book.holder,
            book.source_id,
            self.sink,
            tally=self.tally,
            beat=Heartbeat(book.ledger, book.holder, book.clock, self.stop.is_set),
            retry_at=lambda attempts, outcome: book.clock() + 100.0 * attempts,
            max_attempts=max_attempts,
            shown=lambda submit: self.shown(submit),
            scorer=scorer,
        )

    def carry(self, batches: Iterable[pa.Table], **options: Any) -> None:
        self.conveyor(**options).carry(batches)

    def state_of(self, number: int) -> set[object]:
        """The states that the results of a batch have in the ledger."""
        return {row["state"] for row in self.book.rows() if row["result_id"] in ids_of(number)}

    def on_their_way(self) -> int:
        with self.book.ledger._store.reading() as connection:
            return len(connection.exec_driver_sql("SELECT claim_id FROM claims").fetchall())


@pytest.fixture
def line(book: Book) -> Iterator[Line]:
    yield Line(book)
    assert book.accounting.balanced
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("benchbridge-")], "a thread was left behind"


# -- all goes well ----------------------------------------------------------------------------------------------------------------------


def test_batches_are_sent_in_their_order_and_each_is_written_once(line: Line) -> None:
    """With the sink's ids, and counted."""
    line.carry(batch_of(number=number) for number in range(1, 6))
    assert line.sink.batches == [ids_of(number) for number in range(1, 6)]
    assert line.book.states() == ["delivered"] * 15
    assert {row["measurement_id"] for row in line.book.rows()} == {f"m-{result_id}" for result_id in line.sink.sent}
    assert [number for step, number in line.log if step == "acknowledge"] == [1, 2, 3, 4, 5]
    assert (line.tally.synced, line.tally.considered) == (15, 15)
    assert (line.book.accounting.delivered, line.book.accounting.pending, line.on_their_way()) == (15, 85, 0)


def test_no_batches_at_all_is_no_work(line: Line) -> None:
    """Nothing is claimed and nothing is sent."""
    line.carry([])
    assert (line.log, line.sink.batches) == ([], [])


def test_what_the_mapping_refused_is_counted_and_a_batch_of_nothing_else_is_not_sent(line: Line) -> None:
    """The batches behind it are."""
    line.carry([batch_of({**REFUSED}, {**REFUSED}, number=1), batch_of({}, {**REFUSED}, number=2), batch_of(number=3)])
    assert line.sink.batches == [["20"], ids_of(3)]
    assert (line.tally.synced, line.tally.rejected, line.tally.reasons) == (4, 3, {"hardware_unsupported": 3})
    assert (line.book.accounting.delivered, line.book.accounting.rejected) == (4, 3)


def test_each_outcome_is_written_and_counted_in_its_batch(line: Line, clock: Clock) -> None:
    """One that failed as often as is allowed is given up."""
    fates = {"10": FAILED, "11": IN_DOUBT, "20": FAILED}
    line.sink.fate = fates.get
    known = batch_of(number=2)
    line.book.claim(known)
    line.book.acknowledge(known, dict.fromkeys(range(SIZE), FAILED))
    clock.advance(200)
    line.carry([batch_of(number=1), batch_of(number=2, new=False)], max_attempts=2)
    rows = {row["result_id"]: (row["state"], row["reason_code"], row["attempts"]) for row in line.book.rows()}
    assert rows == {
        "10": ("retrying", "try_later", 1),
        "11": ("in_doubt", "no_answer", 1),
        "12": ("delivered", None, 1),
        "20": ("rejected", "given_up", 2),
        "21": ("delivered", None, 2),
        "22": ("delivered", None, 2),
    }
    assert (line.tally.synced, line.tally.failed, line.tally.rejected) == (3, 2, 1)
    assert list(line.tally.doubts.values()) == ["no_answer"]


# -- one ahead --------------------------------------------------------------------------------------------------------------------------


def test_one_batch_is_claimed_ahead_of_the_one_that_is_being_sent_and_no_more(line: Line) -> None:
    """What is claimed is in doubt after a crash. The next one is read meanwhile, and waits."""
    conveyor = line.conveyor()
    in_vain = threading.Event()
    acquire = conveyor._room.acquire

    def watched(*arguments: Any, **options: Any) -> bool:
        got = acquire(*arguments, **options)
        if not got:
            in_vain.set()
        return got

    conveyor._room.acquire = watched  # type: ignore[method-assign]
    in_doubt: list[int] = []

    def look(number: int) -> None:
        line.log.append(("send", number))
        if number == 1:
            wait_for(line.claimed[2])
            wait_for(in_vain)
            assert not line.claimed[3].is_set()
        in_doubt.append(line.book.accounting.in_doubt)

    line.sink.during = look
    conveyor.carry(batch_of(number=number) for number in range(1, 8))
    assert in_doubt[0] == 2 * SIZE
    assert max(in_doubt) <= 4 * SIZE, "one that is sent, one ahead, and two that are being written"
    for number in range(3, 8):
        assert line.log.index(("claim", number)) > line.log.index(("send", number - 2))
        assert line.log.index(("claim", number)) > line.log.index(("acknowledge", number - 2))


def test_each_kind_of_work_has_its_thread(line: Line, clock: Clock) -> None:
    """Batches are made by the reader, sent by the caller, and all that a run writes, the progress included, is written by one thread in its turn."""
    seen: dict[str, set[str]] = {}

    def note(kind: str) -> None:
        seen.setdefault(kind, set()).add(threading.current_thread().name.rstrip("_0123456789"))

    def batches() -> Iterator[pa.Table]:
        for number in (1, 2, 3):
            note("read")
            yield batch_of(number=number)

    deliveries, runs = line.book.ledger.deliveries, line.book.ledger.runs

    def watch(owner: object, name: str) -> None:
        method = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            note(name)
            return method(*arguments, **options)

        setattr(owner, name, watched)

    watch(deliveries, "claim")
    watch(deliveries, "acknowledge")
    watch(runs, "progress")
    time = iter(range(1_000))
    shown: list[int] = []
    reporter = Reporter(line.book.ledger, line.book.holder, lambda step: shown.append(step.done), lambda: float(next(time)), 9, line.tally)
    line.shown = reporter.show
    line.sink.during = lambda number: note("send")
    line.carry(batches())
    ledger, caller = "benchbridge-ledger", threading.current_thread().name.rstrip("_0123456789")
    assert seen == {"read": {"benchbridge-reader"}, "claim": {ledger}, "acknowledge": {ledger}, "progress": {ledger}, "send": {caller}}
    run = runs.get(line.book.source_id, line.book.holder.run_id)
    assert run is not None
    assert run["planned"] == 9
    assert shown == sorted(shown)


# -- how it ends ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [0, 1, 2, 3])
def test_what_came_before_a_readers_error_is_delivered_and_written_before_it_is_raised(line: Line, whole: int) -> None:
    """However many batches that were."""

    def batches() -> Iterator[pa.Table]:
        for number in range(1, whole + 1):
            yield batch_of(number=number)
        raise SourceInvalid("The file is damaged.")

    with pytest.raises(SourceInvalid):
        line.carry(batches())
    assert line.book.states() == ["delivered"] * SIZE * whole
    assert (line.tally.synced, line.on_their_way(), line.book.accounting.pending) == (SIZE * whole, 0, 100 - SIZE * whole)


def test_of_a_readers_error_and_a_failed_acknowledgement_the_ledgers_is_raised(line: Line) -> None:
    """What could not be written matters more than what could not be read: it is in doubt."""
    read_to_its_end = threading.Event()

    def batches() -> Iterator[pa.Table]:
        yield batch_of(number=1)
        read_to_its_end.set()
        raise SourceInvalid("The file is damaged.")

    def full(*arguments: Any, **options: Any) -> None:
        wait_for(read_to_its_end)
        raise LedgerError("The ledger cannot be used: database or disk is full.")

    line.book.ledger.deliveries.acknowledge = full  # type: ignore[method-assign]
    with pytest.raises(LedgerError, match="full"):
        line.carry(batches())
    assert (line.state_of(1), line.tally.synced) == ({"in_doubt"}, 0)


def test_a_batch_that_the_ledger_does_not_take_ends_it_after_those_before_it(line: Line) -> None:
    """A row of it is known already: the comparison was wrong."""
    with pytest.raises(LedgerError, match="while a batch was being claimed"):
        line.carry([batch_of(number=1), batch_of(number=2), batch_of(number=1), batch_of(number=3)])
    assert line.sink.batches == [ids_of(1), ids_of(2)]
    assert line.book.states() == ["delivered"] * SIZE * 2


def test_after_an_acknowledgement_that_failed_no_further_batch_is_sent(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Only the one that was claimed already when it failed; what was claimed after that is given back, and the one it was about is in doubt."""
    acknowledge = line.book.ledger.deliveries.acknowledge
    second_is_sent = threading.Event()

    def full(holder: Any, source_id: int, claim: Claim, *arguments: Any, **options: Any) -> None:
        if claim.batch.column("result_id")[0].as_py() == "10":
            wait_for(second_is_sent)
            raise LedgerError("The ledger cannot be used: database or disk is full.")
        acknowledge(holder, source_id, claim, *arguments, **options)

    line.book.ledger.deliveries.acknowledge = full  # type: ignore[method-assign]
    line.shown = lambda submit: second_is_sent.set() if len(line.sink.batches) == 2 else None
    line.sink.during = lambda number: wait_for(line.claimed[2])
    with pytest.raises(LedgerError, match="full"):
        line.carry(batch_of(number=number) for number in range(1, 7))
    assert line.sink.batches == [ids_of(1), ids_of(2)]
    assert [line.state_of(number) for number in (1, 2, 3, 4)] == [{"in_doubt"}, {"delivered"}, set(), set()]
    assert line.on_their_way() == 1
    assert line.tally.synced <= SIZE, "what is not written is not counted"


def test_who_lost_the_lease_sends_nothing_further_and_all_it_claimed_is_in_doubt(
    line: Line, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The other asks the sink. What could not be given back is logged."""
    caplog.set_level(logging.WARNING)

    def lose(number: int) -> None:
        if number == 1:
            wait_for(line.claimed[2])
            clock.advance(LEASE_S + 1)
            lease = line.book.ledger.leases.acquire(line.book.name, "other", LEASE_S)
            line.book.ledger.runs.begin(lease, line.book.source_id, SyncRequest(), LEASE_S)

    line.sink.during = lose
    with pytest.raises(LeaseLost):
        line.carry(batch_of(number=number) for number in range(1, 5))
    assert len(line.sink.batches) <= 2
    assert [line.state_of(number) for number in (1, 2, 3)] == [{"in_doubt"}, {"in_doubt"}, set()]
    assert line.tally.synced == 0
    if len(line.sink.batches) == 1:
        assert "could not be given back" in caplog.text


@pytest.mark.parametrize("new", [True, False], ids=["new", "known"])
def test_when_the_run_has_to_stop_what_was_claimed_ahead_is_given_back(line: Line, clock: Clock, new: bool) -> None:
    """As if it had never been touched; a row that the ledger has keeps its attempts. What was sent is written."""
    if not new:
        known = batch_of(number=2)
        line.book.claim(known)
        line.book.acknowledge(known, dict.fromkeys(range(SIZE), FAILED))
        clock.advance(200)
        line.claimed[2].clear()
    untouched = line.book.ledger.accounts.compared(line.book.source_id).untouched

    def stop(number: int) -> None:
        wait_for(line.claimed[2])
        line.stop.set()

    line.sink.during = stop
    line.carry([batch_of(number=1), batch_of(number=2, new=new), batch_of(number=3)])
    assert line.sink.batches == [ids_of(1)]
    assert [line.state_of(number) for number in (1, 2, 3)] == [{"delivered"}, set() if new else {"pending"}, set()]
    assert (line.tally.synced, line.tally.considered, line.on_their_way(), line.book.accounting.in_doubt) == (SIZE, SIZE, 0, 0)
    assert line.book.ledger.accounts.compared(line.book.source_id).untouched == untouched - SIZE
    if not new:
        assert {row["attempts"] for row in line.book.rows() if row["result_id"] in ids_of(2)} == {1}


def test_refusals_that_were_claimed_ahead_stand_when_the_run_has_to_stop(line: Line) -> None:
    """There is nothing to give back of a batch that the mapping refused as a whole, and its refusals are counted."""

    def stop(number: int) -> None:
        wait_for(line.claimed[2])
        line.stop.set()

    line.sink.during = stop
    line.carry([batch_of(number=1), batch_of(*[REFUSED] * SIZE, number=2)])
    assert line.sink.batches == [ids_of(1)]
    assert [line.state_of(number) for number in (1, 2)] == [{"delivered"}, {"rejected"}]
    assert (line.tally.synced, line.tally.rejected, line.tally.reasons) == (SIZE, SIZE, {"hardware_unsupported": SIZE})


def test_a_run_that_has_to_stop_before_its_first_batch_sends_nothing(line: Line) -> None:
    """Whoever makes the batches is told."""
    conveyor = line.conveyor()
    line.stop.set()
    asked: list[bool] = []

    def batches() -> Iterator[pa.Table]:
        number = 0
        while not conveyor.stopping():
            number += 1
            asked.append(True)
            yield batch_of(number=number)

    conveyor.carry(batches())
    assert line.sink.batches == []
    assert len(asked) <= 3
    assert (line.book.rows(), line.on_their_way(), line.book.accounting.pending) == ([], 0, 100)


def test_a_run_that_has_to_stop_does_not_wait_for_a_batch_that_is_being_read(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the file takes: while there is nothing to send it looks again and again, which keeps the lease as well."""
    shown, waiting = threading.Event(), threading.Event()
    is_set = line.stop.is_set

    def stopping() -> bool:
        now = is_set()
        if shown.is_set():
            waiting.set()
        return now

    monkeypatch.setattr(line.stop, "is_set", stopping)
    line.shown = lambda submit: shown.set()
    conveyor = line.conveyor()

    def batches() -> Iterator[pa.Table]:
        yield batch_of(number=1)
        wait_for(waiting)
        line.stop.set()
        wait_for(conveyor._stop)

    conveyor.carry(batches())
    assert line.sink.batches == [ids_of(1)]


def test_the_sinks_stop_ends_it_and_is_raised_once_its_batch_is_written(line: Line) -> None:
    """What was claimed ahead is given back."""

    def down(number: int) -> None:
        if number == 2:
            wait_for(line.claimed[3])
            line.sink.stop = SinkUnreachable("The predictive API is down.")
            line.sink.fate = lambda result_id: Outcome(Fate.NOT_SENT, "not_sent", "x") if result_id == "22" else None

    line.sink.during = down
    with pytest.raises(SinkUnreachable):
        line.carry(batch_of(number=number) for number in range(1, 6))
    assert line.sink.batches == [ids_of(1), ids_of(2)]
    assert line.book.states() == ["delivered"] * (2 * SIZE - 1)
    assert (line.tally.synced, line.on_their_way(), line.book.accounting.pending) == (2 * SIZE - 1, 0, 100 - 2 * SIZE + 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_a_batch_is_sent_leaves_all_of_it_in_doubt_and_gives_back_the_next(
    line: Line, clock: Clock, error: type[BaseException]
) -> None:
    """From that moment, not from the claim."""

    def interrupt(number: int) -> None:
        if number == 2:
            wait_for(line.claimed[3])
            clock.advance(30)
            raise error

    line.sink.during = interrupt
    with pytest.raises(error):
        line.carry(batch_of(number=number) for number in range(1, 6))
    assert [line.state_of(number) for number in (1, 2, 3, 4)] == [{"delivered"}, {"in_doubt"}, set(), set()]
    doubts = [row for row in line.book.rows() if row["state"] == "in_doubt"]
    assert {(row["reason_code"], row["updated_at"]) for row in doubts} == {("interrupted", clock())}
    assert line.on_their_way() == 0


class Interrupted(Scorer):
    """A predictor that is interrupted when it is asked, after the last batch was claimed."""

    def __init__(self) -> None:
        pass

    def begin(self, batch: pa.Table) -> Forecast | None:
        for thread in threading.enumerate():
            if thread.name == "benchbridge-reader":
                thread.join(PATIENCE_S)
        raise KeyboardInterrupt


@pytest.mark.parametrize("refused", [0, SIZE], ids=["nothing behind it", "a batch of refusals behind it"])
def test_an_interrupt_while_a_batch_is_predicted_gives_it_back(line: Line, refused: int) -> None:
    """Not a byte of it has left. Whatever was claimed behind it, it is not overlooked, and it is as if it had never been touched."""
    behind = [batch_of(*[REFUSED] * refused, number=2)] if refused else []
    with pytest.raises(KeyboardInterrupt):
        line.carry([batch_of(number=1), *behind], scorer=Interrupted())
    assert line.sink.batches == []
    assert (line.state_of(1), line.on_their_way()) == (set(), 0)
    assert (line.book.accounting.rejected, line.book.accounting.pending, line.tally.considered) == (refused, 100 - refused, refused)
