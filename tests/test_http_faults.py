"""What the HTTP sink says when the server or the network fails, and that what it says is true of the server's rows."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.model import Answer, Fate, Receipt
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, Reply
from tests.conftest import Clock, MakeSink, doubts_of, go_on, make_batch
from tests.kit.base_contract import LISTING, PLUGIN_HEALTH, RECORD, TASK, BaseContractServer, Fault

#: fault -> what is said about its row, and whether the server has the row
OUTCOMES: Mapping[Fault, tuple[Fate | None, bool]] = {
    Fault.ERROR_500: (Fate.IN_DOUBT, False),
    Fault.UNAVAILABLE_503: (Fate.IN_DOUBT, False),
    Fault.TOO_MANY_429: (Fate.FAILED, False),
    Fault.RESET_BEFORE_STORE: (Fate.IN_DOUBT, False),
    Fault.RESET_AFTER_STORE: (Fate.IN_DOUBT, True),
    Fault.SILENCE_BEFORE_STORE: (Fate.IN_DOUBT, False),
    Fault.SILENCE_AFTER_STORE: (Fate.IN_DOUBT, True),
    Fault.TASK_FAILED: (Fate.FAILED, False),
    Fault.TASK_SLOW: (None, True),
    Fault.TASK_FORGOTTEN_STORED: (None, True),  # the listing shows it
    Fault.TASK_FORGOTTEN_LOST: (Fate.IN_DOUBT, False),
    Fault.HALF_BODY_STORED: (Fate.IN_DOUBT, True),
    Fault.HALF_BODY_LOST: (Fate.IN_DOUBT, False),
    Fault.GARBAGE_STORED: (Fate.IN_DOUBT, True),
    Fault.GARBAGE_LOST: (Fate.IN_DOUBT, False),
    Fault.SLOW_BYTES: (None, True),
    Fault.REDIRECT: (Fate.FAILED, False),
}


@pytest.mark.parametrize("fault", OUTCOMES, ids=lambda fault: fault.label)
def test_a_fault_concerns_its_row_alone_and_what_is_said_of_it_is_true(
    server: BaseContractServer, http_sink: MakeSink, fault: Fault
) -> None:
    """One row of three is struck: the others are delivered, and settling finds out about the struck one what the server's rows show."""
    fate, stored = OUTCOMES[fault]
    sink = http_sink(server.url, timeout_s=0.5)
    sink.profile()
    server.faults.skip()
    server.faults.add(fault, delay_s=0.001)
    batch = make_batch({}, {}, {})
    receipt = sink.send(batch, stopping=go_on)
    assert server.faults.struck[fault] == 1
    assert receipt.stop is None
    assert {row: outcome.fate for row, outcome in receipt.exceptions.items()} == ({} if fate is None else {1: fate})
    assert len(server.rows) == 2 + stored
    answers = [settlement.answer for settlement in sink.settle(doubts_of(batch))]
    assert answers == [Answer.STORED, Answer.STORED if stored else Answer.ABSENT, Answer.STORED]


def send_one(sink: Any, receipt_of: Mapping[str, Any] | None = None) -> Receipt:
    receipt: Receipt = sink.send(make_batch(receipt_of or {}), stopping=go_on)
    return receipt


def test_every_fault_of_the_kit_has_its_test() -> None:
    """A fault that the kit learns must get an outcome here."""
    assert set(OUTCOMES) == set(Fault)


def test_a_forgotten_task_is_in_doubt_where_no_listing_can_tell(server: BaseContractServer, http_sink: MakeSink) -> None:
    """A 404 for a task that was just given out says nothing about the row."""
    server.faults.add(Fault.TASK_FORGOTTEN_STORED)
    outcome = send_one(http_sink(server.url)).exceptions[0]
    assert (outcome.fate, outcome.code) == (Fate.IN_DOUBT, "task_forgotten")


def test_pending_is_not_an_acknowledgement(server: BaseContractServer, http_sink: MakeSink) -> None:
    """A task that is pending and then running is asked until it has ended."""
    server.faults.add(Fault.TASK_SLOW, polls=4)
    pauses: list[float] = []
    receipt = send_one(http_sink(server.url, sleep=pauses.append))
    assert receipt.exceptions == {}
    assert receipt.measurement_ids == [str(server.rows[0]["id"])]
    assert server.requests[TASK] == 5
    assert pauses == sorted(pauses)
    assert len(pauses) >= 3


def test_a_failed_task_is_not_taken_for_done(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Its answer has a message and no "error" key."""
    server.faults.add(Fault.TASK_FAILED)
    outcome = send_one(http_sink(server.url)).exceptions[0]
    assert outcome.code == "task_failed"
    assert "the database is locked" in outcome.reason


def test_a_task_that_never_ends_is_in_doubt_and_is_not_taken_for_absent(server: BaseContractServer, http_sink: MakeSink) -> None:
    """The listing does not show it because it is still on its way: sending it again would double it."""
    clock = Clock(0.0, step_s=1.0)
    server.faults.add(Fault.TASK_SLOW, polls=12)
    sink = http_sink(server.url, acknowledge_timeout_s=5.0, sleep=clock.sleep, clock=clock)
    batch = make_batch({})
    receipt = sink.send(batch, stopping=go_on)
    assert (receipt.exceptions[0].fate, receipt.exceptions[0].code) == (Fate.IN_DOUBT, "task_pending")
    (doubt,) = (replace(doubt, task_id=receipt.exceptions[0].task_id) for doubt in doubts_of(batch))
    assert sink.settle([doubt])[0].answer is Answer.UNKNOWN
    assert server.rows == []
    while not server.rows:
        settlement = sink.settle([doubt])[0]
    assert settlement.answer is Answer.STORED
    assert len(server.rows) == 1


def test_one_listing_acknowledges_a_whole_batch(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Two hundred rows cost two hundred requests and one, not four hundred."""
    receipt = http_sink(server.url).send(make_batch(*[{}] * 200), stopping=go_on)
    assert receipt.exceptions == {}
    assert len(set(receipt.measurement_ids)) == 200
    assert server.requests[RECORD] == 200
    assert server.requests[LISTING] == 1
    assert server.requests[TASK] <= 1  # the last one may be stored just after the listing was read


def test_rows_pushed_out_of_the_listing_are_acknowledged_by_their_tasks(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Other senders write at the same time; what the listing no longer shows is asked for one by one."""
    sent = 0

    def others_write() -> bool:
        nonlocal sent
        sent += 1
        if sent == 5:
            assert len(server.rows) == 4  # also those that are stored after their answer
            for _ in range(80):
                server.store.insert()
        return False

    receipt = http_sink(server.url).send(make_batch(*[{}] * 5), stopping=others_write)
    assert receipt.exceptions == {}
    assert server.requests[TASK] >= 4
    assert len(server.rows) == 85


def test_a_listing_broken_by_somebodys_nan_does_not_stop_delivery(server: BaseContractServer, http_sink: MakeSink) -> None:
    """The tasks acknowledge then."""
    server.store.insert(throughput=float("nan"))
    sink = http_sink(server.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}), stopping=go_on)
    assert receipt.exceptions == {}
    assert server.requests[TASK] == 2


def test_settling_sees_what_is_newer_than_somebodys_nan_and_concludes_nothing_about_the_rest(
    server: BaseContractServer, http_sink: MakeSink
) -> None:
    """A page that breaks shrinks until it ends before the NaN. What it does not show may be older: unknown, and no reason to end the run."""
    sink = http_sink(server.url)
    older, newer, never = make_batch({}), make_batch({}, first=2), make_batch({}, first=3)
    sink.send(older, stopping=go_on)
    server.store.insert(model_name="gpt2", throughput=float("nan"))
    sink.send(newer, stopping=go_on)
    answers = [sink.settle(doubts_of(batch))[0].answer for batch in (older, newer, never)]
    assert answers == [Answer.UNKNOWN, Answer.STORED, Answer.UNKNOWN]


def test_settling_looks_at_more_than_the_first_page(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Thousands of newer measurements of the same model lie over ours."""
    sink = http_sink(server.url)
    batch = make_batch({})
    sink.send(batch, stopping=go_on)
    for _ in range(1_500):
        server.store.insert(model_name="gpt2")
    assert sink.settle([*doubts_of(batch), *doubts_of(make_batch({}, first=2))])[0].answer is Answer.STORED
    assert sink.settle(doubts_of(make_batch({}, first=2)))[0].answer is Answer.ABSENT


def test_plain_rows_in_doubt_stay_unknown_without_keys(server: BaseContractServer, http_sink: MakeSink) -> None:
    """`measurement_source: plain` cannot tell one of our rows from another: nothing is guessed, and nothing is listed as ours."""
    sink = http_sink(server.url, keyed=False)
    batch = make_batch({"source": "benchmark"})
    assert sink.send(batch, stopping=go_on).exceptions == {}
    assert sink.settle(doubts_of(batch))[0].answer is Answer.UNKNOWN
    with pytest.raises(Exception, match="plain"):
        list(sink.listing())


# -- when to come back ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.TOO_MANY_429, Fault.UNAVAILABLE_503])
@pytest.mark.parametrize(
    ("header", "wait_s"), [("7", 7.0), ("1e9", 86_400.0), ("-3", 0.0), ("nan", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), (None, None)]
)
def test_retry_after_is_read(
    server: BaseContractServer, http_sink: MakeSink, fault: Fault, header: str | None, wait_s: float | None
) -> None:
    """In seconds, within a day; a date needs two clocks that agree and is not believed."""
    server.faults.add(fault, retry_after=header)
    assert send_one(http_sink(server.url)).exceptions[0].retry_after_s == wait_s


# -- a server that is down --------------------------------------------------------------------------------------------------------------


def test_a_refused_connection_means_not_sent(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Nothing left this process, so nothing is in doubt, and the error names the address."""
    sink = http_sink(server.url)
    sink.profile()
    server.down()
    receipt = sink.send(make_batch({}, {}), stopping=go_on)
    assert [receipt.exceptions[row].fate for row in (0, 1)] == [Fate.NOT_SENT] * 2
    assert isinstance(receipt.stop, SinkUnreachable)
    assert server.url in receipt.stop.message
    with pytest.raises(SinkUnreachable):
        sink.profile()


def test_a_server_that_goes_down_in_a_batch_splits_it_where_it_went(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Rows before it was gone are in doubt, since nobody answers for them; rows after it were not sent."""
    asked = iter(range(100))

    def down_before_the_third() -> bool:
        if next(asked) == 2:
            server.down()
        return False

    receipt = http_sink(server.url).send(make_batch(*[{}] * 4), stopping=down_before_the_third)
    assert [receipt.exceptions[row].fate for row in range(4)] == [Fate.IN_DOUBT] * 2 + [Fate.NOT_SENT] * 2
    assert len(server.rows) == 2


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.TOO_MANY_429, Fault.RESET_BEFORE_STORE])
def test_five_failures_in_a_row_stop_the_batch(server: BaseContractServer, http_sink: MakeSink, fault: Fault) -> None:
    """A server in trouble is left alone: the sixth row is not sent."""
    server.faults.add(fault, None)
    receipt = http_sink(server.url).send(make_batch(*[{}] * 8), stopping=go_on)
    assert server.requests[RECORD] == 5
    assert isinstance(receipt.stop, SinkUnreachable)
    assert [receipt.exceptions[row].fate for row in (5, 6, 7)] == [Fate.NOT_SENT] * 3
    assert Fate.NOT_SENT not in {receipt.exceptions[row].fate for row in range(5)}


def test_failures_that_are_not_in_a_row_stop_nothing(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Every second row fails, all have their turn."""
    server.faults.add(Fault.ERROR_500, None, when=lambda body: body["batch_size"] == 7)
    receipt = http_sink(server.url).send(make_batch(*[{}, {"batch_size": 7}] * 6), stopping=go_on)
    assert receipt.stop is None
    assert len(receipt.exceptions) == 6


def test_a_server_that_stops_answering_about_tasks_does_not_hold_the_batch(server: BaseContractServer, http_sink: MakeSink) -> None:
    """A silent task route costs five time limits, not one for each row."""
    server.faults.add(Fault.SILENCE_BEFORE_STORE, None, on=TASK)
    server.faults.add(Fault.ERROR_500, None, on=LISTING)
    receipt = http_sink(server.url, timeout_s=0.1).send(make_batch(*[{}] * 20), stopping=go_on)
    assert server.requests[TASK] == 5
    assert {outcome.fate for outcome in receipt.exceptions.values()} == {Fate.IN_DOUBT}
    assert len(receipt.exceptions) == 20


def test_a_server_that_falls_silent_while_its_tasks_are_asked_for_is_asked_no_more(server: BaseContractServer, http_sink: MakeSink) -> None:
    """After a question without an answer a short one about something else tells."""
    for route in (TASK, LISTING):
        server.faults.add(Fault.SILENCE_BEFORE_STORE, None, on=route)
    receipt = http_sink(server.url, timeout_s=0.1).send(make_batch(*[{}] * 20), stopping=go_on)
    assert (server.requests[TASK], server.requests[LISTING]) == (1, 2)
    assert {outcome.fate for outcome in receipt.exceptions.values()} == {Fate.IN_DOUBT}
    assert len(receipt.exceptions) == 20


def test_acknowledging_asks_whether_to_stop(server: BaseContractServer, http_sink: MakeSink) -> None:
    """The question keeps the lease alive; and when the answer is yes, what is left is in doubt and asked for later."""
    server.faults.add(Fault.TASK_SLOW, None, polls=1_000_000)
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return asked > 10

    receipt = http_sink(server.url, sleep=lambda seconds: None).send(make_batch({}, {}), stopping=stopping)
    assert asked == 11
    assert [receipt.exceptions[row].fate for row in (0, 1)] == [Fate.IN_DOUBT] * 2


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE_503, Fault.TOO_MANY_429, Fault.GARBAGE_LOST, Fault.SILENCE_BEFORE_STORE])
def test_a_server_that_cannot_list_is_not_sent_anything(server: BaseContractServer, http_sink: MakeSink, fault: Fault) -> None:
    """A gateway in front of a dead server answers too: the first question finds that out before a row is touched."""
    server.faults.add(fault, on=LISTING)
    with pytest.raises(SinkUnreachable):
        http_sink(server.url, timeout_s=0.2).profile()


def test_a_health_route_that_fails_means_no_capabilities(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Capabilities are what the server says of itself; a 404 or a failure says nothing."""
    server.faults.add(Fault.GARBAGE_LOST, on=PLUGIN_HEALTH)
    assert http_sink(server.url).profile().capabilities == frozenset()


# -- redirects and time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_goes_nowhere(http_sink: MakeSink, status: int) -> None:
    """Whoever can answer a request cannot make us send the key to somebody else."""
    with BaseContractServer(api_key="secret") as server, BaseContractServer() as elsewhere:
        server.redirect_target = f"{elsewhere.url}/api/predictive-performance/record-measurement?token=private"
        sink = http_sink(server.url, api_key="secret")
        sink.profile()
        server.faults.add(Fault.REDIRECT, None, status=status)
        receipt = sink.send(make_batch(*[{}] * 7), stopping=go_on)
        fate = Fate.IN_DOUBT if status == 303 else Fate.FAILED  # 303 is what a server answers that has acted
        assert [receipt.exceptions[row].fate for row in range(7)] == [fate] * 5 + [Fate.NOT_SENT] * 2
        assert {receipt.exceptions[row].code for row in range(5)} == {"redirected"}
        assert isinstance(receipt.stop, SinkUnreachable)
        assert elsewhere.url.removeprefix("http://").partition(":")[0] in str(receipt.stop)
        assert "private" not in str(receipt.stop)
        assert elsewhere.requests.total() == 0
        assert server.rows == []


def test_bytes_that_drip_are_bounded_by_the_time_limit(server: BaseContractServer) -> None:
    """The limit is for the whole answer, headers included: each byte comes in time and the answer does not."""
    server.faults.add(Fault.SLOW_BYTES, on=LISTING, delay_s=0.05)
    exchange = Exchange(server.url, api_key=None, timeout_s=0.4)
    began = time.monotonic()
    answer = exchange.call("GET", "/api/predictive-performance/measurements?limit=1")
    took_s = time.monotonic() - began
    exchange.close()
    assert isinstance(answer, NoAnswer)
    assert 0.3 < took_s < 2.0


def test_a_body_that_drips_is_bounded_too_and_the_next_request_has_its_own_limit(server: BaseContractServer) -> None:
    """Headers in time, body not; a slow answer leaves no short limit behind on the connection."""
    for _ in range(50):
        server.store.insert()
    server.faults.add(Fault.SLOW_BYTES, on=LISTING, delay_s=0.001)
    exchange = Exchange(server.url, api_key=None, timeout_s=0.6)
    assert isinstance(exchange.call("GET", "/api/predictive-performance/measurements?limit=50"), NoAnswer)
    server.latency_s = 0.4
    assert isinstance(exchange.call("GET", "/health"), Reply)
    assert isinstance(exchange.call("GET", "/health"), Reply)
    exchange.close()


@contextlib.contextmanager
def by_hand(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """The URL of a server that does with its one connection what a test says."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def accept() -> None:
        with listener, listener.accept()[0] as connection:
            serve(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(30)


def head_of(connection: socket.socket) -> None:
    """Take a request without a body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1_000)


def test_a_server_that_stops_reading_is_not_waited_for() -> None:
    """Nor on a connection that has been answered before: what does not fit into the network has its time, too."""
    over = threading.Event()

    def answer_and_freeze(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        over.wait(10)

    with by_hand(answer_and_freeze) as url:
        exchange = Exchange(url, api_key=None, timeout_s=0.3)
        assert isinstance(exchange.call("GET", "/health"), Reply)
        began = time.monotonic()
        answer = exchange.call("POST", "/bulk", body=b"x" * 32_000_000)
        took_s = time.monotonic() - began
        over.set()
        exchange.close()
    assert isinstance(answer, NoAnswer)
    assert took_s < 5


def test_an_answer_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have to be kept in memory meanwhile."""
    monkeypatch.setattr("benchbridge_plugin.sinks.exchange._LARGEST_ANSWER", 100_000)
    size, taken = 64_000_000, 0

    def pour(connection: socket.socket) -> None:
        nonlocal taken
        head_of(connection)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            while taken < size:
                taken += connection.send(b" " * 100_000)

    with by_hand(pour) as url:
        exchange = Exchange(url, api_key=None, timeout_s=20.0)
        assert isinstance(exchange.call("GET", "/measurements"), NoAnswer)
        exchange.close()
    assert taken < size
