"""One run's work, carried by several processes that use the same ledger: each result by one of them, whoever dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest

from benchbridge_plugin.errors import LeaseBusy, LeaseLost, LedgerError, SinkUnreachable
from benchbridge_plugin.ledger import SHARE_SCHEMA, Ledger
from benchbridge_plugin.model import Answer, Fate, Outcome, Receipt, Settlement, State, SyncRequest
from benchbridge_plugin.sharing import end
from benchbridge_plugin.sync import SyncEngine
from tests.conftest import LEASE_S, Book, Clock, World, fill, make_batch
from tests.kit import ledgers
from tests.scripted import FAILED, IN_DOUBT, Scripted
from tests.test_sync_crashes import Killed, Mortal

PATIENCE_S = 30.0
BATCH = 20
ROWS = 160  # eight batches: each costs a look into the file
POLICY: Mapping[str, Any] = {"share_work": True, "batch_size": BATCH}


def nap(seconds: float) -> None:
    """For processes that really run side by side: the product's pauses, shortened."""
    time.sleep(seconds / 50)


def ids(count: int) -> list[str]:
    return sorted(str(number) for number in range(1, count + 1))


class Hosts:
    """A host that runs the sync, and others that help. All send to what one API would store."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stored: list[str] = []
        self.leader_sink = self.sink()
        self.helper_sink = self.sink()
        self.ledgers: list[Ledger] = []

    def sink(self) -> Scripted:
        made = Scripted()
        made.sent = self.stored
        made.batch_rows = BATCH
        made.settlement = lambda doubt: Settlement(Answer.STORED, "m") if doubt.result_id in self.stored else Settlement(Answer.ABSENT)
        return made

    def leader(self, **options: Any) -> SyncEngine:
        return self.world.engine(self.leader_sink, owner="leader", **{**POLICY, **options})

    def helper(self, owner: str = "helper", sink: Any = None, **options: Any) -> SyncEngine:
        self.ledgers.append(self.world.open_ledger())
        return self.world.engine(sink or self.helper_sink, ledger=self.ledgers[-1], owner=owner, **{**POLICY, **options})

    def shares(self) -> int:
        """How many parts the ledger still has, read past it."""
        return len(ledgers.read_rows(self.world.ledger_url, "SELECT share_id FROM shares"))

    def finished(self, count: int) -> None:
        """Everything was stored once, and nothing of the sharing is left."""
        assert sorted(self.stored) == ids(count)
        assert self.world.check_accounts().delivered == count
        assert self.shares() == 0
        assert not ledgers.read_rows(self.world.ledger_url, "SELECT name FROM leases WHERE name LIKE 'share%'")

    def close(self) -> None:
        for ledger in self.ledgers:
            ledger.close()


@pytest.fixture
def hosts(world: World) -> Iterator[Hosts]:
    made = Hosts(world)
    yield made
    made.close()


def once(action: Callable[[], object]) -> Callable[[], None]:
    """The action, for the first time that it is called."""
    left = [action]

    def call() -> None:
        if left:
            left.pop()()

    return call


def start_and_wait(thread: threading.Thread, event: threading.Event) -> None:
    thread.start()
    assert event.wait(PATIENCE_S), "it did not come to that"


def test_a_helper_carries_a_part_and_the_run_adds_it_up(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    ended: list[int] = []

    def help_a_while() -> None:
        carried = len(hosts.stored)
        ended.append(hosts.helper().help(stopping=lambda: len(hosts.stored) > carried + 20))

    hosts.leader_sink.before = once(help_a_while)
    summary = hosts.leader().run(SyncRequest())
    hosts.finished(ROWS)
    assert ended[0] > 20
    assert (summary.state, summary.synced, summary.failed) == ("succeeded", ROWS, 0)


def test_two_processes_at_once_share_all_of_it(world: World, hosts: Hosts) -> None:
    """Each in its own thread, with its own connections: the run waits at its first batch until somebody helps."""
    fill(world, 400)
    helping, over = threading.Event(), threading.Event()
    delivered: list[int] = []
    hosts.helper_sink.before = helping.set
    hosts.leader_sink.before = once(lambda: helping.wait(PATIENCE_S))

    def help_until_over() -> None:
        engine = hosts.helper(sleep=nap)
        while not over.is_set():
            delivered.append(engine.help(stopping=over.is_set))

    thread = threading.Thread(target=help_until_over)
    thread.start()
    try:
        summary = hosts.leader(sleep=nap).run(SyncRequest())
    finally:
        over.set()
        thread.join(PATIENCE_S)
    hosts.finished(400)
    assert summary.synced == 400
    assert 0 < sum(delivered) < 400


def test_a_run_that_nobody_helps_does_everything_itself(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    summary = hosts.leader().run(SyncRequest())
    assert summary.synced == ROWS
    hosts.finished(ROWS)


def test_a_process_does_not_help_its_own_run(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    helped: list[int] = []
    hosts.leader_sink.before = once(lambda: helped.append(hosts.helper(owner="leader").help()))
    hosts.leader().run(SyncRequest())
    assert helped == [0]
    hosts.finished(ROWS)


def test_without_sharing_nothing_is_offered_and_nobody_helps(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    seen: list[int] = []
    hosts.leader_sink.before = once(lambda: seen.append(hosts.shares() + hosts.helper().help()))
    hosts.leader(share_work=False).run(SyncRequest())
    assert seen == [0]
    assert hosts.helper(share_work=False).help() == 0


def test_two_parts_are_on_offer_at_a_time_and_none_when_the_run_has_ended(world: World, hosts: Hosts) -> None:
    """Also when it was told to stop: nobody carries on what an operator has stopped."""
    fill(world, ROWS)
    seen: list[int] = []
    hosts.leader_sink.before = lambda: seen.append(hosts.shares())
    summary = hosts.leader().run(SyncRequest(), stopping=lambda: len(hosts.stored) >= BATCH)
    assert (summary.state, summary.synced) == ("stopped", BATCH)
    assert set(seen) == {2}
    assert hosts.shares() == 0
    assert hosts.helper().help() == 0
    assert world.check_accounts().pending == ROWS - BATCH


def test_a_helper_stays_until_the_run_has_ended(world: World, hosts: Hosts) -> None:
    """While nothing is offered it looks again and again."""
    fill(world, ROWS)
    helped: list[int] = []

    def help_and_wait() -> None:
        looks: list[float] = []

        def look(seconds: float) -> None:
            looks.append(seconds)
            world.clock.sleep(seconds)

        helped.append(hosts.helper(sleep=look).help(stopping=lambda: len(looks) == 3))
        assert len(looks) == 3

    hosts.leader_sink.before = once(help_and_wait)
    summary = hosts.leader().run(SyncRequest())
    assert helped[0] > 0
    assert summary.synced == ROWS
    hosts.finished(ROWS)


def test_a_helper_sends_batches_of_the_configured_size(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    sizes: list[int] = []

    class Measured(Scripted):
        batch_rows = BATCH

        def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
            sizes.append(len(batch))
            return super().send(batch, stopping=stopping)

    sink = Measured()
    sink.sent = hosts.stored
    hosts.leader_sink.before = once(lambda: hosts.helper(sink=sink, batch_size=5).help(stopping=lambda: len(sizes) >= 4))
    assert hosts.leader().run(SyncRequest()).synced == ROWS
    assert max(sizes) == 5
    hosts.finished(ROWS)


def test_a_small_run_is_not_worth_sharing(world: World, hosts: Hosts) -> None:
    fill(world, 30)
    seen: list[int] = []
    hosts.leader_sink.before = once(lambda: seen.append(hosts.shares()))
    hosts.leader().run(SyncRequest())
    assert seen == [0]


def test_the_limit_counts_what_helpers_send_too(world: World, hosts: Hosts) -> None:
    """What they could not send does not use it up."""
    fill(world, ROWS)
    hosts.leader_sink.before = once(lambda: hosts.helper().help(stopping=lambda: len(hosts.stored) > 40))
    summary = hosts.leader().run(SyncRequest(limit=100))
    assert (len(hosts.stored), summary.synced) == (100, 100)
    assert world.check_accounts().pending == ROWS - 100


def test_what_the_helpers_file_does_not_have_is_sent_by_the_run(world: World, hosts: Hosts) -> None:
    """Its copy may be older."""
    fill(world, ROWS)
    engine = hosts.helper()
    measure = engine._carrier.measure
    engine._carrier.measure = lambda *arguments: measure(*arguments).slice(5)  # type: ignore[method-assign]
    hosts.leader_sink.before = once(lambda: engine.help(stopping=lambda: len(hosts.stored) > 30))
    summary = hosts.leader().run(SyncRequest())
    assert summary.synced == ROWS
    hosts.finished(ROWS)


def test_what_a_helper_gives_back_unsent_is_sent_by_the_run_also_when_it_was_tried_before(world: World, hosts: Hosts) -> None:
    """A run that says it has succeeded leaves nothing that was due."""
    fill(world, ROWS)
    hosts.leader_sink.fate = lambda result_id: FAILED
    assert hosts.leader(share_work=False).run(SyncRequest()).failed == ROWS
    hosts.stored.clear()
    hosts.leader_sink.fate = lambda result_id: None
    world.clock.advance(3_600)
    hosts.leader_sink.before = once(lambda: hosts.helper().help(stopping=lambda: len(hosts.stored) > 7))
    summary = hosts.leader().run(SyncRequest())
    assert (summary.state, summary.synced) == ("succeeded", ROWS)
    hosts.finished(ROWS)


def test_what_fails_at_the_helper_is_the_runs_failure(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    refused = Outcome(Fate.REJECTED, "refused_by_api", "no")
    ends = iter([FAILED, refused, IN_DOUBT])
    hosts.helper_sink.fate = lambda result_id: next(ends, None)
    hosts.leader_sink.settlement = lambda doubt: Settlement(Answer.UNKNOWN)
    hosts.leader_sink.before = once(lambda: hosts.helper().help(stopping=lambda: len(hosts.stored) > 30))
    summary = hosts.leader().run(SyncRequest())
    assert (summary.synced, summary.failed, summary.in_doubt, summary.rejected) == (ROWS - 3, 2, 1, 1)
    assert summary.state == "partial"
    assert summary.reasons == {"try_later": 1, "refused_by_api": 1, "no_answer": 1}
    assert world.check_accounts().in_doubt == 1


def test_a_part_whose_helper_cannot_reach_the_api_goes_back(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)
    down = SinkUnreachable("The predictive API does not answer.")

    class Down(Scripted):
        batch_rows = BATCH

        def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
            unsent = Outcome(Fate.NOT_SENT, "not_sent", "")
            return Receipt([None] * len(batch), dict.fromkeys(range(len(batch)), unsent), down)

    def fail() -> None:
        helper = hosts.helper(sink=Down())
        with pytest.raises(SinkUnreachable):
            helper.help()
        assert hosts.shares()
        assert helper.help() == 0, "what it cannot carry it must not take from those who can"

    hosts.leader_sink.before = once(fail)
    assert hosts.leader().run(SyncRequest()).synced == ROWS
    hosts.finished(ROWS)


POINTS: dict[str, Callable[[Mortal], None]] = {
    "before it takes the part": lambda mortal: mortal.before(mortal.ledger.shares, "take"),
    "after it took the part": lambda mortal: mortal.after(mortal.ledger.shares, "take"),
    "before its first claim": lambda mortal: mortal.before(mortal.ledger.deliveries, "claim"),
    "after its first claim": lambda mortal: mortal.after(mortal.ledger.deliveries, "claim"),
    "after its second claim": lambda mortal: mortal.after(mortal.ledger.deliveries, "claim", 2),
    "after sending": lambda mortal: mortal.after(mortal, "send"),
    "before its second acknowledgement": lambda mortal: mortal.before(mortal.ledger.deliveries, "acknowledge", 2),
    "after its acknowledgement": lambda mortal: mortal.after(mortal.ledger.deliveries, "acknowledge"),
    "before it gives the part back": lambda mortal: mortal.before(mortal.ledger.shares, "finish"),
    "after it gave the part back": lambda mortal: mortal.after(mortal.ledger.shares, "finish"),
}


#: Results that were tried before are marked in place when they are claimed, so these are the points at which they differ.
OF_KNOWN = ["after its first claim", "after its second claim", "after sending", "before it gives the part back"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("point", "known"),
    [
        *(pytest.param(point, False, id=point) for point in POINTS),
        *(pytest.param(point, True, id=f"tried before, {point}") for point in OF_KNOWN),
    ],
)
def test_a_helper_that_dies_anywhere_loses_and_doubles_nothing(world: World, hosts: Hosts, point: str, known: bool) -> None:
    """The run waits until the helper's lease is over and asks about what was under way; what is absent is due for the next run."""
    fill(world, ROWS)
    if known:
        hosts.leader_sink.fate = lambda result_id: FAILED
        hosts.leader(retry_base_s=1.0).run(SyncRequest())
        world.clock.advance(10)
        hosts.leader_sink.fate = lambda result_id: None
        hosts.stored.clear()
    mortal = Mortal(world, hosts.helper_sink)
    hosts.ledgers.append(mortal.ledger)
    POINTS[point](mortal)

    def die() -> None:
        with pytest.raises(Killed):
            world.engine(mortal, ledger=mortal.ledger, owner="helper", **POLICY).help()

    hosts.leader_sink.before = once(die)
    hosts.leader().run(SyncRequest())
    world.check_accounts()
    world.clock.advance(10)
    hosts.leader().run(SyncRequest())
    hosts.finished(ROWS)


@pytest.mark.parametrize("turn", [1, 3])
def test_a_run_that_dies_while_others_help_is_taken_over(world: World, hosts: Hosts, turn: int) -> None:
    """Its helpers go on with what they have; the next run waits for them, and what nobody took is its own again."""
    fill(world, ROWS)
    mortal = Mortal(world, hosts.leader_sink)
    hosts.ledgers.append(mortal.ledger)
    mortal.after(mortal, "send", turn)
    with pytest.raises(Killed):
        world.engine(mortal, ledger=mortal.ledger, owner="leader", **POLICY).run(SyncRequest())
    assert hosts.shares()
    sent = len(hosts.stored)
    assert hosts.helper().help(stopping=lambda: len(hosts.stored) > sent) > 0
    world.clock.advance(LEASE_S + 1)
    hosts.leader().run(SyncRequest())
    world.clock.advance(10)
    hosts.leader().run(SyncRequest())
    hosts.finished(ROWS)


def test_the_helper_of_a_run_that_was_taken_over_stops_and_the_new_run_waits_for_it(world: World, hosts: Hosts) -> None:
    """What it had sent it still writes down; it takes up nothing more."""
    fill(world, ROWS)
    mortal = Mortal(world, hosts.leader_sink)
    hosts.ledgers.append(mortal.ledger)
    mortal.after(mortal, "send")
    with pytest.raises(Killed):
        world.engine(mortal, ledger=mortal.ledger, owner="leader", **POLICY).run(SyncRequest())
    world.clock.advance(LEASE_S + 1)
    waits = threading.Event()
    summaries: list[Any] = []

    def sleep(seconds: float) -> None:
        waits.set()
        nap(seconds)

    successor = threading.Thread(target=lambda: summaries.append(hosts.leader(sleep=sleep).run(SyncRequest())))
    hosts.helper_sink.before = once(lambda: start_and_wait(successor, waits))
    with pytest.raises(LeaseLost, match="another has taken over bench"):
        hosts.helper().help()
    successor.join(PATIENCE_S)
    assert summaries[0].state in ("succeeded", "partial")
    world.clock.advance(10)
    hosts.leader().run(SyncRequest())
    hosts.finished(ROWS)


def test_a_run_that_has_to_stop_leaves_to_a_helper_what_that_is_sending(world: World, hosts: Hosts) -> None:
    """It must not be taken for lost while its process is alive and waited for."""
    fill(world, ROWS)
    mortal = Mortal(world, hosts.leader_sink)
    hosts.ledgers.append(mortal.ledger)
    mortal.after(mortal, "send")
    with pytest.raises(Killed):
        world.engine(mortal, ledger=mortal.ledger, owner="leader", **POLICY).run(SyncRequest())
    world.clock.advance(LEASE_S + 1)
    ended: list[str] = []

    def take_over_and_stop() -> None:
        ended.append(hosts.leader().run(SyncRequest(), stopping=lambda: len(world.clock.slept) > 3).state)

    hosts.helper_sink.before = once(take_over_and_stop)
    with pytest.raises(LeaseLost, match="another has taken over bench"):
        hosts.helper().help()
    assert ended == ["stopped"]
    assert [world.state_of(result_id) for result_id in hosts.stored[BATCH:]] == [["delivered"]] * BATCH


def test_a_helper_that_was_frozen_past_its_lease_cannot_write(world: World, hosts: Hosts) -> None:
    """What it had sent is found at the API."""
    fill(world, ROWS)
    lost: list[BaseException] = []
    frozen = threading.Event()
    go_on = threading.Event()

    class Freezes(Scripted):
        batch_rows = BATCH

        def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
            hosts.stored.extend(batch.column("result_id").to_pylist())
            frozen.set()
            assert go_on.wait(PATIENCE_S)
            return Receipt(["m"] * len(batch))

    def help_and_freeze() -> None:
        try:
            hosts.helper(sink=Freezes()).help()
        except LedgerError as error:
            lost.append(error)

    thread = threading.Thread(target=help_and_freeze)
    hosts.leader_sink.before = once(lambda: start_and_wait(thread, frozen))
    summary = hosts.leader().run(SyncRequest())  # its waiting lets the helper's lease run out
    go_on.set()
    thread.join(PATIENCE_S)
    assert [type(error) for error in lost] == [LeaseLost]
    # In doubt is the batch that it may have claimed ahead: its absence does not count yet.
    assert summary.synced + summary.in_doubt == ROWS
    assert summary.in_doubt in (0, ROWS // 6 - BATCH)
    world.clock.advance(10)
    hosts.leader().run(SyncRequest())
    hosts.finished(ROWS)


def test_a_report_does_not_disturb_who_carries_on(world: World, hosts: Hosts) -> None:
    """After the death of a run its helper is still at work: the figures are shown as they are."""
    fill(world, ROWS)
    mortal = Mortal(world, hosts.leader_sink)
    hosts.ledgers.append(mortal.ledger)
    mortal.after(mortal, "send")
    with pytest.raises(Killed):
        world.engine(mortal, ledger=mortal.ledger, owner="leader", **POLICY).run(SyncRequest())
    seen: list[int] = []

    def look() -> None:
        world.clock.advance(LEASE_S + 1)
        world.database.insert(result_id=1_000)
        with world.ledger._store.writing() as connection:  # the helper renews while it works; a clock that was moved does not
            connection.exec_driver_sql("UPDATE leases SET expires_at = expires_at + 100 WHERE name <> 'bench'")
        seen.append(world.engine(hosts.leader_sink, owner="reporter", **POLICY).refresh().in_doubt)

    hosts.helper_sink.before = once(look)
    hosts.helper().help(stopping=lambda: bool(seen) and len(hosts.stored) > 2 * BATCH)
    assert seen[0] >= BATCH
    assert world.accounting.balanced


def test_a_run_that_has_to_stop_does_not_wait_for_who_carries_a_part_of_it(world: World, hosts: Hosts, clock: Clock) -> None:
    """The part stays with who has it; a later run waits for that, and sends what was left of it."""
    fill(world, ROWS)
    taken: list[Any] = []
    hosts.leader_sink.before = once(lambda: taken.append(world.ledger.shares.take(world.name, "helper", 10 * LEASE_S)))
    # It looks again and again at who carries the part, while its own last batches are still being sent.
    summary = hosts.leader().run(SyncRequest(), stopping=lambda: len(clock.slept) > 3 and len(hosts.stored) == ROWS - len(taken[0].results))
    (share,) = taken
    assert (summary.state, summary.synced) == ("stopped", ROWS - len(share.results))
    assert world.check_accounts().pending == len(share.results)
    assert [offer.carried for offer in world.ledger.shares.offers(1)] == [True]
    clock.slept.clear()
    summary = hosts.leader().run(SyncRequest(), stopping=lambda: len(clock.slept) > 3)
    assert (summary.state, summary.considered) == ("stopped", 0)
    assert len(hosts.stored) == ROWS - len(share.results)
    world.ledger.shares.finish(share, done=False)
    assert hosts.leader().run(SyncRequest()).synced == len(share.results)
    hosts.finished(ROWS)


# -- the ledger's side ------------------------------------------------------------------------------------------------------------------


def part(*numbers: int) -> pa.Table:
    batch = make_batch(*({} for _ in numbers))
    table = batch.select(["result_id", "content_hash"])
    table = table.append_column("is_new", pa.array([True] * len(table), pa.bool_()))
    return table.append_column("attempts", pa.array([0] * len(table), pa.int64()))


def test_parts_are_taken_in_their_order_each_by_one_process(book: Book) -> None:
    book.compared(10)
    first = book.ledger.shares.offer(book.holder, book.source_id, part(1, 2))
    second = book.ledger.shares.offer(book.holder, book.source_id, part(1, 2, 3))
    taken = [book.ledger.shares.take("bench", owner, LEASE_S) for owner in ("a", "b", "c")]
    assert [share and share.holder.share for share in taken] == [first, second, None]
    assert taken[1] is not None
    assert taken[1].results.schema == SHARE_SCHEMA
    assert taken[1].results.column("result_id").to_pylist() == ["1", "2", "3"]


def test_a_part_that_was_taken_cannot_be_withdrawn_and_one_that_was_not_can(book: Book) -> None:
    number = book.ledger.shares.offer(book.holder, book.source_id, part(1))
    book.ledger.shares.take("bench", "a", LEASE_S)
    other = book.ledger.shares.offer(book.holder, book.source_id, part(1))
    assert not book.ledger.shares.withdraw(book.holder, book.source_id, number)
    assert book.ledger.shares.withdraw(book.holder, book.source_id, other)
    assert book.ledger.shares.take("bench", "b", LEASE_S) is None


def test_the_parts_of_a_run_that_lost_its_lease_are_not_taken(book: Book, clock: Clock) -> None:
    book.ledger.shares.offer(book.holder, book.source_id, part(1))
    clock.advance(LEASE_S + 1)
    book.take("somebody else")
    assert book.ledger.shares.take("bench", "a", LEASE_S) is None
    with pytest.raises(LeaseLost):
        book.ledger.shares.offer(book.holder, book.source_id, part(1))


def test_a_part_of_one_source_is_no_part_of_another(book: Book) -> None:
    other = Book(book.ledger, book.clock, "other")
    book.ledger.shares.offer(book.holder, book.source_id, part(1))
    assert book.ledger.shares.take("other", "a", LEASE_S) is None
    assert book.ledger.shares.offers(other.source_id) == []


def test_a_part_given_back_with_claims_left_is_not_taken_for_carried_out(book: Book) -> None:
    """Somebody may have sent them: the run has to ask."""
    book.compared(10)
    number = book.ledger.shares.offer(book.holder, book.source_id, part(1))
    share = book.ledger.shares.take("bench", "a", LEASE_S)
    assert share is not None
    book.claim(make_batch({}), holder=share.holder)
    book.ledger.shares.finish(share, done=True)
    other = book.ledger.shares.offer(book.holder, book.source_id, part(2))
    offer, free = book.ledger.shares.offers(book.source_id)
    assert (offer.number, offer.taken, offer.carried) == (number, True, False)
    assert (free.number, free.taken) == (other, False)
    book.ledger.shares.revoke(book.holder, book.source_id, number)
    assert book.ledger.shares.offers(book.source_id) == [free], "the end of one part is not that of another"
    book.ledger.doubts.abandoned(book.holder, book.source_id, share=number, of=["1"])
    assert book.states() == ["in_doubt"]
    assert book.accounting.balanced


def test_the_end_of_a_part_touches_no_claim_of_the_run_itself(book: Book) -> None:
    book.compared(10)
    mine, theirs = make_batch({}, {}, first=1), make_batch({}, {}, first=5)
    number = book.ledger.shares.offer(book.holder, book.source_id, part(1))
    share = book.ledger.shares.take("bench", "a", LEASE_S)
    assert share is not None
    book.claim(mine)
    book.claim(theirs, holder=share.holder)
    book.ledger.shares.revoke(book.holder, book.source_id, number)
    book.ledger.doubts.abandoned(book.holder, book.source_id, share=number, of=["5", "6"])
    book.acknowledge(mine)
    assert [(row["result_id"], row["state"]) for row in book.rows()] == [
        ("1", "delivered"),
        ("2", "delivered"),
        ("5", "in_doubt"),
        ("6", "in_doubt"),
    ]
    with pytest.raises(LeaseLost, match="share 1"):
        book.acknowledge(theirs, holder=share.holder)
    assert book.accounting.balanced


def test_the_end_of_a_part_touches_no_known_row_that_the_run_is_sending(book: Book) -> None:
    """Rows that were tried before are marked in place; those of the run and those of the part look alike but for the part's list."""
    book.compared(10)
    rows = make_batch({}, {}, {}, {})
    book.claim(rows)
    book.acknowledge(rows, dict.fromkeys(range(4), FAILED))
    number = book.ledger.shares.offer(book.holder, book.source_id, part(1, 2))
    share = book.ledger.shares.take("bench", "a", LEASE_S)
    assert share is not None
    book.claim(rows.slice(0, 2), new=False, holder=share.holder)
    mine = rows.slice(2)
    book.claim(mine, new=False)
    end(book.ledger, book.holder, book.source_id, number, part(1, 2))
    book.acknowledge(mine)
    assert [(row["result_id"], row["state"], row["attempts"]) for row in book.rows()] == [
        ("1", "in_doubt", 1),
        ("2", "in_doubt", 1),
        ("3", "delivered", 2),
        ("4", "delivered", 2),
    ]


def test_nobody_else_can_run_while_the_run_that_shares_holds_the_lease(world: World, hosts: Hosts) -> None:
    fill(world, ROWS)

    def try_to_run() -> None:
        with pytest.raises(LeaseBusy):
            hosts.helper().run(SyncRequest())

    hosts.leader_sink.before = once(try_to_run)
    assert hosts.leader().run(SyncRequest()).synced == ROWS


def test_what_became_of_a_part_is_told_of_its_own_contents_and_its_own_run(book: Book, clock: Clock) -> None:
    """A content from before is another result; what another run has ended is neither left to do nor this run's; what waits is left, as it was."""
    book.compared(10)
    older = make_batch({"content_hash": b"0" * 16}, first=1)
    book.claim(older)
    book.acknowledge(older)
    ended, failed, mine = (make_batch({}, first=number) for number in (2, 3, 4))
    for batch in (ended, failed):
        book.claim(batch)
    book.acknowledge(ended)
    book.acknowledge(failed, {0: FAILED})
    clock.advance(LEASE_S + 200)
    book.holder = book.take("another run")
    book.claim(mine)
    book.acknowledge(mine)
    told, left = book.ledger.shares.outcome(book.holder, book.source_id, part(1, 2, 3, 4))
    assert [(result.result_id, result.state) for result in told] == [("4", State.DELIVERED)]
    assert left.select(["result_id", "is_new", "attempts"]).to_pylist() == [
        {"result_id": "1", "is_new": True, "attempts": 0},
        {"result_id": "3", "is_new": False, "attempts": 1},
    ]
