"""Several thousands at a time: more while that makes the server faster, fewer when it slows down, and each answer beside its rows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchbridge_plugin.errors import SinkDenied, SinkUnreachable
from benchbridge_plugin.model import Fate, Receipt
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.sinks.pace import Pace
from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL, WSGIAdapter
from tests.conftest import FullServer, MakeSink, go_on, make_batch
from tests.kit.base_contract import BASE
from tests.liar import Liar

BULK, SINGLE = f"{BASE}/record-measurements", f"{BASE}/record-measurement"


class Server:
    """A server by a clock of its own: `rate(allowed)` rows a second, however many requests it is given at a time."""

    def __init__(self, rate: Callable[[int], float], most: int = 4) -> None:
        self.rate = rate
        self.time = 0.0
        self.pace = Pace(most, clock=lambda: self.time)

    def answer(self, times: int) -> list[int]:
        """How many were allowed after each of so many answers."""
        seen = []
        for _ in range(times):
            self.time += 1_000 / self.rate(self.pace.allowed)
            self.pace.answered(1_000)
            seen.append(self.pace.allowed)
        return seen


def steps(seen: Sequence[int]) -> list[int]:
    return [now for before, now in zip([0, *seen], seen, strict=False) if now != before]


def test_it_begins_with_one_and_adds_one_as_long_as_that_pays() -> None:
    """Never more than the most."""
    server = Server(lambda allowed: 1_000.0 * allowed)
    assert steps(server.answer(100)) == [1, 2, 3, 4]
    assert steps(Server(lambda allowed: 1_000.0 * allowed, most=2).answer(100)) == [1, 2]


def test_one_that_brings_nothing_is_taken_back_and_tried_again_much_later() -> None:
    """The server may have changed meanwhile."""
    server = Server(lambda allowed: 1_000.0 * min(allowed, 2))
    seen = server.answer(400)
    assert steps(seen)[:5] == [1, 2, 3, 2, 3]
    assert max(seen) == 3
    assert seen.count(2) > 10 * seen.count(3)


def test_a_server_that_slows_down_gets_half() -> None:
    """And half of that, down to one."""
    server = Server(lambda allowed: 1_000.0 * allowed)
    assert server.answer(100)[-1] == 4
    server.rate = lambda allowed: 100.0
    assert steps([4, *server.answer(30)]) == [4, 2, 1]


def test_a_failure_halves_at_once() -> None:
    """One is the least."""
    server = Server(lambda allowed: 1_000.0 * allowed)
    server.answer(100)
    for expected in (2, 1, 1):
        server.pace.failed()
        assert server.pace.allowed == expected
    assert set(server.answer(20)) == {1}, "it is not tried again at once"


def test_the_time_between_two_batches_is_not_the_servers() -> None:
    """It did not slow down because nobody asked it."""
    server = Server(lambda allowed: 1_000.0 * allowed)
    server.answer(100)
    server.time += 3_600
    server.pace.start()
    assert set(server.answer(50)) == {4}


# -- in the sink ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two rows, and as many at a time as there may be."""
    monkeypatch.setattr("benchbridge_plugin.sinks.bulk.PART_ROWS", 2)
    monkeypatch.setattr(Pace, "answered", lambda self, rows: setattr(self, "allowed", self._most))


class Counted:
    """Answers parts; knows how many it has at the same time. From the second on four wait for each other."""

    def __init__(self, liar: Liar, answer: Callable[[int], tuple[int, Any] | None] = lambda number: None) -> None:
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(4)
        self._answer = answer
        self._now = self.most = self.all = 0
        self.got: Counter[str] = Counter()
        liar.answers[BULK] = self._take

    def _take(self, body: Any) -> tuple[int, Any]:
        keys = [row["idempotency_key"] for row in body["measurements"]]
        with self._lock:
            self._now += 1
            self.all += 1
            number = self.all
            self.most = max(self.most, self._now)
            self.got.update(keys)
        if 2 <= number <= 5:
            self._meeting.wait(10)
        with self._lock:
            self._now -= 1
        return self._answer(number) or (200, {"results": [{"status": "created", "measurement_id": key} for key in keys]})


def fates(receipt: Receipt) -> Counter[Fate | None]:
    return Counter(receipt.exceptions[row].fate if row in receipt.exceptions else None for row in range(len(receipt.measurement_ids)))


@pytest.mark.usefixtures("fast")
def test_several_parts_are_under_way_and_each_answer_is_put_beside_its_rows(liar: Liar, http_sink: MakeSink) -> None:
    """In whatever order they end; never more than four."""
    counted = Counted(liar)
    sink = http_sink(liar.url)
    sink.profile()
    batch = make_batch(*[{}] * 41)
    receipt = sink.send(batch, stopping=go_on)
    assert (counted.most, counted.all) == (4, 21)
    assert list(receipt.measurement_ids) == batch.column("idempotency_key").to_pylist()
    assert set(counted.got.values()) == {1}


@pytest.mark.usefixtures("fast")
def test_parts_under_way_when_one_fails_are_judged_by_their_own_answers_and_nothing_follows(liar: Liar, http_sink: MakeSink) -> None:
    """Three of four are delivered, the fourth may come again."""
    counted = Counted(liar, lambda number: (503, {"detail": "no"}) if number == 3 else None)
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 200), stopping=go_on)
    said = fates(receipt)
    assert isinstance(receipt.stop, SinkUnreachable)
    assert said[Fate.FAILED] == 2
    assert said[None] == sum(counted.got.values()) - 2
    assert said[Fate.NOT_SENT] == 200 - sum(counted.got.values())
    assert counted.all <= 8


@pytest.mark.usefixtures("fast")
def test_of_parts_that_were_refused_as_a_whole_none_is_tried_once_the_server_is_not_usable(liar: Liar, http_sink: MakeSink) -> None:
    """The first row of the first of them meets a server that does not let us in: neither it nor the other part was sent."""
    counted = Counted(liar, lambda number: (422, {"detail": "one is wrong"}) if number in (2, 3) else None)
    liar.answers[SINGLE] = (401, {"detail": "no"})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 200), stopping=go_on)
    assert isinstance(receipt.stop, SinkDenied)
    assert len(liar.asked("record-measurement")) == counted.all + 1
    assert fates(receipt) == {None: 2 * (counted.all - 2), Fate.NOT_SENT: 200 - 2 * (counted.all - 2)}


@pytest.mark.usefixtures("fast")
def test_a_server_without_keys_gets_one_part_at_a_time(liar: Liar, http_sink: MakeSink) -> None:
    """A part without an answer is in doubt there, and the fewer of those the better."""
    liar.can("bulk", "lookup")
    counted = Counted(liar)
    counted._meeting = threading.Barrier(1)
    sink = http_sink(liar.url)
    sink.profile()
    assert fates(sink.send(make_batch(*[{}] * 40), stopping=go_on)) == {None: 40}
    assert counted.most == 1


@pytest.mark.usefixtures("fast")
def test_stopping_with_parts_under_way_delivers_them_and_sends_no_more(liar: Liar, http_sink: MakeSink) -> None:
    """Asked before each part, by the calling thread alone."""
    counted = Counted(liar)
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(threading.get_ident())
        return len(asked) == 9

    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 200), stopping=stopping)
    assert set(asked) == {threading.get_ident()}
    assert (fates(receipt), receipt.stop) == ({None: 16, Fate.NOT_SENT: 184}, None)
    assert counted.all == 8


def test_a_row_that_json_cannot_say_is_not_sent_and_neither_is_what_follows(full_server: FullServer, http_sink: MakeSink) -> None:
    """No byte of it leaves; the mapping never makes one."""
    sink = http_sink(full_server.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {"throughput": float("nan")}, {}), stopping=go_on)
    assert {row: outcome.fate for row, outcome in receipt.exceptions.items()} == {1: Fate.NOT_SENT, 2: Fate.NOT_SENT}
    assert len(full_server.stored()) == 1


# -- compressed -------------------------------------------------------------------------------------------------------------------------


def encodings(full_server: FullServer, *, near: bool) -> list[str | None]:
    """How the parts came that were sent to a full server, all of whose rows were stored."""
    seen: list[str | None] = []

    def looking(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == BULK:
            seen.append(environ.get("HTTP_CONTENT_ENCODING"))
        return full_server.app(environ, start_response)

    exchange = Exchange(IN_PROCESS_URL, api_key=None, timeout_s=5.0, adapter=WSGIAdapter(looking))
    exchange.is_near = near
    sink = HttpSink(exchange)
    sink.profile()
    assert sink.send(make_batch(*[{}] * 1_500), stopping=go_on).exceptions == {}
    sink.close()
    assert len(full_server.stored()) == 1_500
    return seen


@pytest.mark.parametrize(("near", "encoding"), [(True, None), (False, "gzip")])
def test_a_part_is_compressed_where_a_network_lies_in_between(full_server: FullServer, near: bool, encoding: str | None) -> None:
    """If the server says that it takes that: on a loopback it costs more than it saves."""
    assert encodings(full_server, near=near) == [encoding] * 2


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1", False),
        ("https://api.example.org", False),
        ("http://localhost.example.org", False),
        ("http://[::1", False),
    ],
)
def test_only_this_machine_is_near(url: str, near: bool) -> None:
    """By what the URL says, without asking anybody."""
    assert Exchange(url, api_key=None, timeout_s=1.0).is_near is near
