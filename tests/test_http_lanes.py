"""Several POSTs at a time over HTTP: never more than that, nothing after the end, and what was under way is known to have been."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from socketserver import BaseServer
from typing import Any

import pytest

from benchbridge_plugin.errors import SinkDenied, SinkUnreachable
from benchbridge_plugin.model import Answer, Fate, Receipt
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.lanes import Lanes
from benchbridge_plugin.sinks.listing import Listing
from benchbridge_plugin.sinks.singly import CONNECTIONS, Singly
from benchbridge_plugin.sinks.tasks import Tasks
from tests.conftest import MEASUREMENT, Clock, MakeSink, World, doubts_of, fill, go_on, make_batch
from tests.kit.base_contract import BASE, HEALTH, LISTING, RECORD, TASK, BaseContractServer, Fault
from tests.liar import Liar

SINGLE = f"{BASE}/record-measurement"


def fates(receipt: Receipt) -> Counter[Fate | None]:
    return Counter(receipt.exceptions[row].fate if row in receipt.exceptions else None for row in range(len(receipt.measurement_ids)))


class Counted:
    """A server that takes everything and whose tasks are all completed. It knows how many POSTs it has at the same time."""

    def __init__(self, liar: Liar, meet: Callable[[int], object] = lambda number: None) -> None:
        self._lock = threading.Lock()
        self._now = self.most = self.all = 0
        self._meet = meet
        liar.can()
        liar.answers[SINGLE] = self._take
        liar.answers["/health"] = (200, {})
        liar.answers[f"{BASE}/task/t"] = (200, {"status": "completed", "result": {"measurement_id": "m"}})

    def _take(self, body: Any) -> tuple[int, Any]:
        with self._lock:
            self._now += 1
            self.all += 1
            number = self.all
            self.most = max(self.most, self._now)
        self._meet(number)
        with self._lock:
            self._now -= 1
        return 200, {"task_id": "t"}


def growing() -> Callable[[], float]:
    """A clock by which everything goes quicker and quicker, so that another connection always pays."""
    times = itertools.count(1)
    return lambda: math.log(next(times))


# -- how many ---------------------------------------------------------------------------------------------------------------------------


def test_a_few_requests_are_under_way_at_a_time_and_never_more(liar: Liar, http_sink: MakeSink) -> None:
    """Four of them wait for each other, which they could not if there were fewer at a time."""
    meeting = threading.Barrier(CONNECTIONS)
    counted = Counted(liar, lambda number: meeting.wait(10) if 61 <= number <= 60 + CONNECTIONS else None)
    sink = http_sink(liar.url, clock=growing())
    receipt = sink.send(make_batch(*[{}] * 120), stopping=go_on)
    assert (counted.all, counted.most) == (120, CONNECTIONS)
    assert (receipt.exceptions, receipt.stop) == ({}, None)
    assert not [thread for thread in threading.enumerate() if thread.name == "benchbridge-lane"], "a thread was left behind"


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_there_are_no_more_connections_than_are_allowed(liar: Liar, http_sink: MakeSink, connections: int) -> None:
    """With one everything goes in the order of the rows."""
    counted = Counted(liar)
    batch = make_batch(*[{}] * 60)
    http_sink(liar.url, connections=connections, clock=growing()).send(batch, stopping=go_on)
    assert counted.most <= connections
    sent = [body["source"] for body, path in zip(liar.bodies, liar.requests, strict=True) if path == SINGLE]
    assert sorted(sent) == sorted(batch.column("source").to_pylist())
    assert connections > 1 or sent == batch.column("source").to_pylist()


def test_a_server_that_serves_one_connection_after_the_other_gets_one(
    liar: Liar, http_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A POST that waits behind another connection would be stored when that one is closed, long after it was given up."""
    monkeypatch.setattr("benchbridge_plugin.sinks.singly._PROOF_S", 0.05)
    closing = threading.Event()
    counted = Counted(liar)
    liar.answers["/health"] = lambda body: (200, {}) if closing.wait(20) else (500, None)
    sink = http_sink(liar.url, clock=growing())
    for _ in range(2):
        assert sink.send(make_batch(*[{}] * 60), stopping=go_on).exceptions == {}
    closing.set()
    assert counted.most == 1
    assert liar.requests.count("/health") == 1


def test_whether_another_connection_is_served_is_asked_on_that_one(
    liar: Liar, http_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps to one connection until it is closed answers every question on it."""
    monkeypatch.setattr("benchbridge_plugin.sinks.singly._PROOF_S", 0.05)
    monkeypatch.setattr(liar._listener, "process_request", partial(BaseServer.process_request, liar._listener))
    counted = Counted(liar)
    sink = http_sink(liar.url, clock=growing())
    receipt = sink.send(make_batch(*[{}] * 30), stopping=go_on)
    assert (receipt.exceptions, counted.all) == ({}, 30)


def test_a_connection_carries_a_row_once_it_has_been_answered(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Each but the first begins with a harmless question, once; few rows are not worth another one."""
    sink = http_sink(server.url, clock=growing())
    sink.send(make_batch(*[{}] * 8), stopping=go_on)
    assert server.requests[HEALTH] == 0
    for first in (100, 300):
        sink.send(make_batch(*[{}] * 80, first=first), stopping=go_on)
        assert server.requests[HEALTH] == CONNECTIONS - 1


# -- the end ----------------------------------------------------------------------------------------------------------------------------


def test_five_failures_in_a_row_end_the_batch_with_what_was_under_way(server: BaseContractServer, http_sink: MakeSink) -> None:
    """After a first failure the others go alone: what fails beyond the fifth was under way already."""
    server.faults.skip(40)
    server.faults.add(Fault.ERROR_500, None)
    receipt = http_sink(server.url, clock=growing()).send(make_batch(*[{}] * 120), stopping=go_on)
    assert isinstance(receipt.stop, SinkUnreachable)
    said = fates(receipt)
    assert said[None] == len(server.rows) == 40
    assert 5 <= said[Fate.IN_DOUBT] <= 5 + CONNECTIONS - 1
    assert server.requests[RECORD] == 40 + said[Fate.IN_DOUBT]
    assert said[Fate.NOT_SENT] == 80 - said[Fate.IN_DOUBT]


def test_nothing_is_sent_after_the_key_was_refused(http_sink: MakeSink) -> None:
    """Rows that were refused with it were not sent either; those that were taken before it are in doubt, as nobody answers for them."""
    with BaseContractServer(api_key="right") as server:
        sink = http_sink(server.url, api_key="right", clock=growing())
        asked = 0

        def withdraw_later() -> bool:
            nonlocal asked
            asked += 1
            if asked == 50:
                server.api_key = "another"
            return False

        receipt = sink.send(make_batch(*[{}] * 120), stopping=withdraw_later)
        said = fates(receipt)
        assert isinstance(receipt.stop, SinkDenied)
        assert said[Fate.IN_DOUBT] == len(server.rows)
        assert said[Fate.NOT_SENT] == 120 - len(server.rows)
        assert 50 - CONNECTIONS <= len(server.rows) <= 50
        assert server.requests[RECORD] <= 50 + CONNECTIONS


def test_stopping_is_asked_before_each_row_by_the_calling_thread_alone(server: BaseContractServer, http_sink: MakeSink) -> None:
    """It renews a lease, which is nobody else's business; what had its turn is acknowledged, and nothing has one after it."""
    threads: list[int] = []

    def stopping() -> bool:
        threads.append(threading.get_ident())
        return len(threads) == 61

    receipt = http_sink(server.url, clock=growing()).send(make_batch(*[{}] * 120), stopping=stopping)
    assert set(threads) == {threading.get_ident()}
    assert (fates(receipt), receipt.stop) == ({None: 60, Fate.NOT_SENT: 60}, None)
    assert set(receipt.exceptions) == set(range(60, 120))
    assert (len(server.rows), server.requests[RECORD]) == (60, 60)


def test_a_row_whose_permission_went_stale_in_its_lane_is_asked_for_again_and_sent_once(liar: Liar) -> None:
    """A process that was frozen between the look at the lease and the send may have lost the lease meanwhile."""
    counted = Counted(liar)
    exchange = Exchange(liar.url, api_key=None, timeout_s=5.0)
    listing = Listing(exchange, lambda: "a server")
    times = iter([0.0, 0.1, 0.2, 5.0, 5.1, 5.2])  # asked and begun: the first, the second, and the second again
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return False

    singly = Singly(exchange, listing, Tasks(exchange, listing), lambda: "a server", connections=1, now=lambda: next(times))
    receipt = singly.send(make_batch({}, {}).select([*MEASUREMENT, "source", "idempotency_key"]).to_pylist(), stopping)
    exchange.close()
    assert (receipt.exceptions, counted.all) == ({}, 2)
    assert asked == 3 + 2  # and once for each task


def test_rows_under_way_when_the_server_dies_are_in_doubt_and_what_is_said_of_them_later_is_true(
    server: BaseContractServer, http_sink: MakeSink
) -> None:
    """It dies while several POSTs are at it: some of them are stored, and no answer tells which."""
    sink = http_sink(server.url, timeout_s=2.0, clock=growing())
    asked = 0

    def dying() -> bool:
        nonlocal asked
        asked += 1
        if asked == 50:
            server.latency_s = 0.05  # for those that arrive from now on
        if asked == 52:
            server.down()
        return False

    batch = make_batch(*[{}] * 120)
    receipt = sink.send(batch, stopping=dying)
    said = fates(receipt)
    assert said[Fate.NOT_SENT] + said[Fate.IN_DOUBT] == 120
    assert isinstance(receipt.stop, SinkUnreachable)
    server.latency_s = 0.0
    server.up()
    stored = {row["measurement_source"] for row in server.rows}
    settled = sink.settle(doubts_of(batch))
    for row, source in enumerate(batch.column("source").to_pylist()):
        assert settled[row].answer is (Answer.STORED if source in stored else Answer.ABSENT)
        assert receipt.exceptions[row].fate is Fate.IN_DOUBT or source not in stored


def test_a_server_that_dies_again_and_again_under_several_requests_gets_everything_once(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """Run after run."""
    fill(world, 150)
    sink = http_sink(server.url, timeout_s=2.0, clock=growing())
    for number in range(4):
        server.faults.skip(20 * number)
        server.faults.add(list(Fault)[3 + number % 2], None)  # resets before and after the store
        world.sync(sink)
        server.faults.clear()
        clock.advance(600)
    for _ in range(3):
        world.sync(sink)
        clock.advance(600)
    assert world.states() == {"delivered": 150}
    assert Counter(row["throughput"] for row in server.rows) == {800.0 + number: 1 for number in range(150)}


def test_what_goes_wrong_in_a_lane_is_raised_where_it_is_taken() -> None:
    """In the thread of whoever began it, once."""

    def work(number: int) -> int:
        return 10 // number

    lanes: Lanes[int, int] = Lanes(work, most=2)
    with lanes:
        lanes.begin(0)
        with pytest.raises(ZeroDivisionError):
            lanes.take()
        lanes.begin(5)
        assert lanes.take() == (5, 2)
        assert lanes.in_flight == 0


def test_who_leaves_by_an_error_does_not_wait_for_what_is_under_way() -> None:
    """An interrupt takes effect at once, however long the server takes."""
    begun, free = threading.Event(), threading.Event()

    def work(number: int) -> bool:
        begun.set()
        return free.wait(30)

    lanes: Lanes[int, bool] = Lanes(work, most=2)

    def leave() -> None:
        with lanes:
            lanes.begin(1)
            assert begun.wait(30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert lanes._ended.empty()
    assert [thread.daemon for thread in lanes._threads] == [True], "the process does not wait for it either when it ends"
    free.set()
    assert lanes.take() == (1, True)


# -- the window -------------------------------------------------------------------------------------------------------------------------


def others_write(server: BaseContractServer, count: int, *, at: int) -> Callable[[], bool]:
    """At the `at`-th row somebody else's measurements arrive, after those of ours that came before."""
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        if asked == at:
            for _ in range(count):
                server.store.insert()
        return False

    return stopping


def test_the_window_grows_over_what_others_wrote_meanwhile(server: BaseContractServer, http_sink: MakeSink) -> None:
    """One larger listing instead of a task for each row; the next batch begins with a window of that size."""
    sink = http_sink(server.url, clock=growing())
    sink.profile()
    before = server.requests[LISTING]
    receipt = sink.send(make_batch(*[{}] * 60), stopping=others_write(server, 300, at=60))
    assert receipt.exceptions == {}
    assert (server.requests[LISTING] - before, server.requests[TASK]) == (2, 0)
    assert sink.send(make_batch(*[{}] * 60, first=100), stopping=others_write(server, 300, at=60)).exceptions == {}
    assert (server.requests[LISTING] - before, server.requests[TASK]) == (3, 0)
    assert len({*receipt.measurement_ids}) == 60


def test_a_window_that_shows_what_was_there_before_does_not_grow(server: BaseContractServer, http_sink: MakeSink) -> None:
    """What it does not show is not stored: it is asked for."""
    for _ in range(200):
        server.store.insert()
    server.faults.add(Fault.TASK_FAILED, 20)
    sink = http_sink(server.url, clock=growing())
    sink.profile()
    before = server.requests[LISTING]
    receipt = sink.send(make_batch(*[{}] * 60), stopping=go_on)
    assert fates(receipt) == {None: 40, Fate.FAILED: 20}
    assert (server.requests[LISTING] - before, server.requests[TASK]) == (1, 20)


def test_a_listing_that_is_cut_short_without_a_word_is_not_asked_for_more_for_ever(liar: Liar, http_sink: MakeSink) -> None:
    """However large the window, it shows as much: the tasks are asked then."""
    Counted(liar)
    rows = [{"id": 1_000 - number, "measurement_source": "somebody else"} for number in range(110)]
    liar.answers[f"{BASE}/measurements"] = (200, {"measurements": rows})
    receipt = http_sink(liar.url, connections=1).send(make_batch(*[{}] * 60), stopping=go_on)
    assert receipt.exceptions == {}
    assert (len(liar.asked("measurements")), len(liar.asked("task/"))) == (2, 60)
