"""A process that dies at any durable step, and the one that comes after it: exactly one measurement each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger import Lease, Ledger
from benchbridge_plugin.model import Receipt, SyncRequest
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.service import ServiceSink
from tests.conftest import FullServer, MakeSink, World, fill
from tests.kit.base_contract import BaseContractServer, Fault

ROWS = 6


class Killed(BaseException):
    """The process is gone: nothing it would still do takes place."""


class Mortal:
    """A ledger and a sink of one process. Once `dead`, neither does anything any more."""

    def __init__(self, world: World, sink: Sink) -> None:
        self.ledger = world.open_ledger()
        self.sink = sink
        self.dead = False
        store = self.ledger._store
        writing = store.writing

        @contextmanager
        def while_alive() -> Any:
            if self.dead:
                raise Killed
            with writing() as connection:
                yield connection

        store.writing = while_alive  # type: ignore[method-assign]

    def die(self) -> NoReturn:
        self.dead = True
        raise Killed

    def before(self, owner: object, name: str, turn: int = 1) -> None:
        """Die when `owner.name` is called for the `turn`-th time."""
        self._wrap(owner, name, turn, works=False)

    def after(self, owner: object, name: str, turn: int = 1) -> None:
        """Die when it has done its work."""
        self._wrap(owner, name, turn, works=True)

    def _wrap(self, owner: object, name: str, turn: int, *, works: bool) -> None:
        method, turns = getattr(owner, name), iter(range(1, 1_000))

        def wrapped(*arguments: Any, **options: Any) -> Any:
            last = next(turns) == turn
            if last and not works:
                self.die()
            answer = method(*arguments, **options)
            if last:
                self.die()
            return answer

        setattr(owner, name, wrapped)

    # the sink, as the engine sees it

    @property
    def name(self) -> str:
        return self.sink.name

    @property
    def batch_rows(self) -> int:
        return self.sink.batch_rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        return self.sink.send(batch, stopping=stopping)


POINTS: Mapping[str, Callable[[Mortal], None]] = {
    "before the run is recorded": lambda mortal: mortal.before(mortal.ledger.runs, "begin"),
    "before the comparison is recorded": lambda mortal: mortal.before(mortal.ledger.comparisons, "compared"),
    "after the comparison": lambda mortal: mortal.after(mortal.ledger.comparisons, "compared"),
    "before the first claim": lambda mortal: mortal.before(mortal.ledger.deliveries, "claim"),
    "after the first claim": lambda mortal: mortal.after(mortal.ledger.deliveries, "claim"),
    "after the second claim": lambda mortal: mortal.after(mortal.ledger.deliveries, "claim", 2),
    "after sending": lambda mortal: mortal.after(mortal, "send"),
    "before the acknowledgement": lambda mortal: mortal.before(mortal.ledger.deliveries, "acknowledge", 2),
    "after the acknowledgement": lambda mortal: mortal.after(mortal.ledger.deliveries, "acknowledge"),
    "before the run is finished": lambda mortal: mortal.before(mortal.ledger.runs, "finish"),
    "before the lease is given back": lambda mortal: mortal.before(mortal.ledger.leases, "release"),
}


@pytest.fixture(params=["base", "full", "service"])
def sink(request: pytest.FixtureRequest) -> tuple[Sink, Callable[[], Sequence[Mapping[str, Any]]]]:
    """A sink, and past it what is stored."""
    if request.param == "service":
        service: PredictivePerformance = request.getfixturevalue("service")
        return ServiceSink(service), lambda: service.list_measurements(limit=1_000)
    make: MakeSink = request.getfixturevalue("http_sink")
    if request.param == "base":
        base: BaseContractServer = request.getfixturevalue("server")
        return make(base.url), lambda: base.rows
    full: FullServer = request.getfixturevalue("full_server")
    return make(full.url), full.stored


Target = tuple[Sink, Callable[[], Sequence[Mapping[str, Any]]]]


def run_until_killed(world: World, mortal: Mortal, **options: Any) -> None:
    with pytest.raises(Killed):
        world.engine(mortal, ledger=mortal.ledger, batch_size=2).run(SyncRequest(), **options)
    mortal.ledger.close()
    world.clock.advance(61)  # its lease runs out


def finish(world: World, target: Target) -> None:
    """The process after it, with parts of its own; then everything is there once, and both sides know it."""
    sink, stored = target
    world.sync(sink, policy={"batch_size": 2})
    assert world.states() == {"delivered": ROWS}
    assert Counter(row["throughput"] for row in stored()) == Counter(800.0 + number for number in range(ROWS))
    names = {row["measurement_source"] for row in stored()}
    assert len(names) == ROWS


@pytest.mark.sampled(4)
@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_dies_at_any_step_is_followed_by_one_that_finishes(world: World, sink: Target, point: str) -> None:
    """Nothing is lost, nothing is sent twice, and the accounts are right at every moment."""
    fill(world, ROWS)
    mortal = Mortal(world, sink[0])
    POINTS[point](mortal)
    run_until_killed(world, mortal)
    world.ledger.runs.source_id(world.name)
    assert world.accounting.balanced
    finish(world, sink)


def check_what_is_in_doubt(world: World, sent: int, batch: int = 2) -> None:
    """After a death while the batch that ends with the `sent`-th row was sent: that one is in doubt, and the one before it if it was not written down
    yet, and the one after it if it was claimed already. What is not in the ledger is pending."""
    states = world.states()
    assert set(states) <= {"delivered", "sending"}
    assert sent <= states.total() <= sent + batch
    assert states["delivered"] in (max(sent - 2 * batch, 0), sent - batch)
    known = {int(row["result_id"]) for row in world.rows()}
    assert known == set(range(1, len(known) + 1)), "the oldest ones are sent first"
    assert world.accounting.in_doubt == states["sending"]
    assert world.accounting.pending == ROWS - states.total()
    assert world.accounting.balanced


def test_a_process_that_dies_between_two_rows_of_a_batch_leaves_both_in_doubt(
    world: World, server: BaseContractServer, http_sink: MakeSink
) -> None:
    """Some were stored and some were not; the server is asked which."""
    fill(world, ROWS)
    mortal = Mortal(world, http_sink(server.url))
    run_until_killed(world, mortal, stopping=lambda: len(server.rows) == 3 and mortal.die())
    check_what_is_in_doubt(world, sent=4)
    finish(world, (http_sink(server.url), lambda: server.rows))


def test_a_server_that_is_still_storing_when_the_sender_dies_is_given_time(
    world: World, server: BaseContractServer, http_sink: MakeSink
) -> None:
    """The next process may take over in the same second; what it does not find yet is not absent."""
    fill(world, ROWS)
    mortal = Mortal(world, http_sink(server.url))
    late: list[dict[str, Any]] = []

    def die_long_after_the_claim() -> bool:
        if len(server.rows) == 3:
            world.clock.advance(30)  # the lease is still held, and the row's claim is older than settle_after_s
            late.append(server.store._rows.pop())  # this one the server is about to store
            mortal.die()
        return False

    with pytest.raises(Killed):
        world.engine(mortal, ledger=mortal.ledger, batch_size=2).run(SyncRequest(), stopping=die_long_after_the_claim)
    mortal.ledger.close()
    world.ledger.leases.release(Lease(world.name, "test", 1))  # as when its neighbours see that the process is gone
    sleep = world.clock.sleep

    def store_meanwhile(seconds: float) -> None:
        sleep(seconds)
        while late:
            server.store._rows.append(late.pop())

    world.clock.sleep = store_meanwhile  # type: ignore[method-assign]
    finish(world, (http_sink(server.url), lambda: server.rows))
    assert sum(world.clock.slept) == pytest.approx(5.0)


def test_a_process_that_dies_while_it_settles_is_followed_by_one_that_settles(world: World, sink: Target) -> None:
    """A death on top of a death."""
    fill(world, ROWS)
    first = Mortal(world, sink[0])
    first.after(first, "send")
    run_until_killed(world, first)
    check_what_is_in_doubt(world, sent=2)
    before = world.states()
    for of_sink in (True, False):
        again = Mortal(world, sink[0])
        again.before(again if of_sink else again.ledger.doubts, "settle")
        run_until_killed(world, again)
        assert world.states() == before
    finish(world, sink)


def test_an_interrupt_leaves_the_batch_in_doubt_from_that_moment(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """Ctrl-C gives the lease back at once; a server that is still storing the last row has the whole waiting time for it."""
    fill(world, ROWS)
    sink = http_sink(server.url)

    def interrupt() -> bool:
        if len(server.rows) == 1:
            world.clock.advance(30)  # long after the claim
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        world.engine(sink).run(SyncRequest(), stopping=interrupt)
    assert world.states() == {"sending": ROWS}
    assert {row["code"] for row in world.rows()} == {"interrupted"}
    assert world.ledger.leases.holder(world.name) is None
    run = world.ledger.runs.history(1)[0]
    assert (run["state"], run["error_code"], run["message"]) == ("failed", "internal_error", "KeyboardInterrupt: ")
    world.sync(sink)
    assert sum(world.clock.slept) == pytest.approx(5.0)
    assert world.states() == {"delivered": ROWS}
    assert len(server.rows) == ROWS


def test_a_full_ledger_after_the_send_leaves_the_batch_in_doubt(world: World, sink: Target) -> None:
    """The sink has the rows and the ledger cannot say so: they are asked for once it can."""
    fill(world, ROWS)
    ledger: Ledger = world.open_ledger()

    def full(*arguments: Any, **options: Any) -> None:
        raise LedgerError("The ledger cannot be used: database or disk is full.")

    ledger.deliveries.acknowledge = full  # type: ignore[method-assign]
    summary = world.engine(sink[0], ledger=ledger).run(SyncRequest())
    ledger.close()
    assert (summary.state, summary.error_code) == ("failed", "ledger_error")
    assert world.states() == {"sending": ROWS}
    finish(world, sink)


def test_a_server_that_restarts_after_each_batch_costs_nothing(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """Its tasks are forgotten, its rows are not."""
    fill(world, ROWS)
    server.faults.add(Fault.RESET_AFTER_STORE, None, when=lambda body: body["throughput"] in (801.0, 803.0))
    sink = http_sink(server.url)
    world.sync(sink, policy={"batch_size": 2})
    server.restart()
    world.clock.advance(60)
    finish(world, (sink, lambda: server.rows))
