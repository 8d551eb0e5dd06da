"""A ledger that was lost is rebuilt from what the sink has, and nothing is sent twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.errors import LeaseBusy
from benchbridge_plugin.model import MEASUREMENT_FIELDS, Answer, Doubt, Progress, Settlement, SyncRequest
from benchbridge_plugin.sinks.matching import match
from tests.conftest import Clock, FullServer, MakeSink, World, doubts_of, fill, make_batch
from tests.kit import ledgers
from tests.kit.base_contract import RECORD, BaseContractServer, Fault
from tests.scripted import Scripted


def lose_ledger(world: World) -> None:
    world.ledger.close()
    ledgers.lose(world.ledger_url)
    world.ledger = world.open_ledger()


def test_a_new_ledger_takes_over_what_a_server_without_idempotency_has(
    world: World, server: BaseContractServer, http_sink: MakeSink
) -> None:
    """Without being asked to: such a server would store all of it twice. What it does not have is sent in the same run."""
    fill(world, 8)
    sink = http_sink(server.url)
    world.sync(sink, limit=5)
    lose_ledger(world)
    summary = world.sync(sink)
    assert (summary.adopted, summary.synced) == (5, 3)
    assert "5 adopted" in summary.message
    assert world.states() == {"delivered": 8}
    assert len(server.rows) == server.requests[RECORD] == 8
    assert {row["measurement_id"] for row in world.rows()} == {str(row["id"]) for row in server.rows}


def test_adopting_first_waits_for_requests_of_whoever_lost_the_ledger(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """They may be under way still: the process can have died a moment ago. The wait is longer than a lease, and keeps it."""
    fill(world, 4)
    sink = http_sink(server.url)
    world.sync(sink, limit=3)
    lose_ledger(world)
    under_way = [server.store._rows.pop()]
    sleep = clock.sleep

    def arrive(seconds: float) -> None:
        sleep(seconds)
        if sum(clock.slept) > 290:
            server.store._rows.extend(under_way)
            under_way.clear()

    clock.sleep = arrive  # type: ignore[method-assign]
    summary = world.sync(sink, policy={"settle_after_s": 300.0})
    assert (summary.adopted, summary.synced) == (3, 1)
    assert len(server.rows) == 4


def test_the_wait_before_adopting_ends_when_the_run_has_to_stop(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """However long `settle_after_s` is. Nothing was asked and nothing is sent."""
    fill(world, 4)
    sink = http_sink(server.url)
    world.sync(sink, limit=3)
    lose_ledger(world)
    engine = world.engine(sink, settle_after_s=3600.0)
    summary = engine.run(SyncRequest(), stopping=lambda: sum(clock.slept) >= 1.0)
    assert summary.state == "stopped"
    assert sum(clock.slept) < 2.0
    assert (summary.adopted, summary.synced) == (0, 0)
    assert world.sync(sink).adopted == 3


@pytest.mark.parametrize(("already_s", "waits_s"), [(0.0, 5.0), (3.0, 2.0), (60.0, 0.0), (-60.0, 5.0)])
def test_the_wait_before_adopting_counts_from_the_start_of_the_process(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock, already_s: float, waits_s: float
) -> None:
    """What passed since then is not waited for again, and a clock that was put back lengthens nothing."""
    fill(world, 2)
    sink = http_sink(server.url)
    world.sync(sink, limit=1)
    lose_ledger(world)
    engine = world.engine(sink, settle_after_s=5.0)
    clock.advance(already_s)
    assert engine.run(SyncRequest()).adopted == 1
    assert sum(clock.slept) == pytest.approx(waits_s)


def test_adopting_looks_at_everything_whatever_the_run_is_about(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """A result that is older than the look-back now may be asked for later, and must not be sent again then."""
    fill(world, 4)
    sink = http_sink(server.url)
    world.sync(sink)
    lose_ledger(world)
    assert world.sync(sink, days=1, model="another").adopted == 4
    assert world.sync(sink).synced == 0
    assert len(server.rows) == 4


def test_an_empty_server_costs_one_look(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """The first sync of all is not slowed down."""
    fill(world, 4)
    world.sync(http_sink(server.url))
    assert server.requests["GET /api/predictive-performance/measurements"] == 3  # is it one, is there anything, did all arrive


def test_a_server_with_idempotency_is_not_asked(world: World, full_server: FullServer, http_sink: MakeSink) -> None:
    """It answers a second sending with the first one's id."""
    fill(world, 4)
    world.sync(http_sink(full_server.url))
    lose_ledger(world)
    summary = world.sync(http_sink(full_server.url))
    assert (summary.adopted, summary.synced) == (0, 4)
    assert len(full_server.stored()) == 4


def test_adopt_sends_nothing(world: World, full_server: FullServer, http_sink: MakeSink) -> None:
    """By lookup, too; what the server does not have stays pending."""
    fill(world, 4)
    world.sync(http_sink(full_server.url), limit=3)
    lose_ledger(world)
    summary = world.sync(http_sink(full_server.url), adopt=True)
    assert (summary.adopted, summary.synced, summary.unknown) == (3, 0, 0)
    assert (world.accounting.delivered, world.accounting.pending) == (3, 1)
    assert len(full_server.stored()) == 3
    assert world.sync(http_sink(full_server.url), adopt=True).adopted == 0


def test_what_the_sink_cannot_say_is_counted_and_stays_pending(world: World) -> None:
    """And the message says so."""
    fill(world, 2)
    world.sink = sink = Scripted()
    sink.settlement = lambda doubt: Settlement(Answer.STORED, "m") if doubt.result_id == "1" else Settlement(Answer.UNKNOWN)
    summary = world.sync(adopt=True)
    assert (summary.adopted, summary.unknown) == (1, 1)
    assert "cannot say of 1" in summary.message
    assert (sink.sent, world.states()) == ([], {"delivered": 1})


def test_an_interrupted_adoption_is_gone_on_with(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """Between the two steps the rows are in doubt, and doubts are asked for."""
    fill(world, 3)
    sink = http_sink(server.url)
    world.sync(sink)
    lose_ledger(world)
    acknowledge = world.ledger.deliveries.acknowledge

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    world.ledger.deliveries.acknowledge = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.sync(sink)
    world.ledger.deliveries.acknowledge = acknowledge  # type: ignore[method-assign]
    assert world.states() == {"sending": 3}
    assert world.sync(sink).settled == 3
    assert (world.states(), len(server.rows)) == ({"delivered": 3}, 3)


def test_an_adoption_that_was_cut_short_is_done_to_the_end_before_anything_is_sent(
    world: World, server: BaseContractServer, http_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is in the new ledger, and the ledger does not take that for all."""
    monkeypatch.setattr("benchbridge_plugin.settling._PAGE", 2)
    fill(world, 7)
    sink = http_sink(server.url)
    world.sync(sink)
    lose_ledger(world)
    acknowledge = world.ledger.deliveries.acknowledge
    passes = 0

    def die_at_the_second(*arguments: Any, **options: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            raise KeyboardInterrupt
        acknowledge(*arguments, **options)

    world.ledger.deliveries.acknowledge = die_at_the_second  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.sync(sink)
    world.ledger.deliveries.acknowledge = acknowledge  # type: ignore[method-assign]
    summary = world.sync(sink)
    assert (summary.settled, summary.adopted, summary.synced) == (2, 3, 0)
    assert (world.states(), len(server.rows)) == ({"delivered": 7}, 7)


def test_a_new_ledger_sends_nothing_while_the_api_cannot_say_what_it_has(
    world: World, server: BaseContractServer, http_sink: MakeSink
) -> None:
    """Somebody's NaN hides the listing. When it is mended, or somebody decides, the sync goes on."""
    fill(world, 3)
    sink = http_sink(server.url)
    world.sync(sink, limit=2)
    lose_ledger(world)
    server.store.insert(model_name="bert-base-uncased", throughput=float("nan"))
    for _ in range(2):
        summary = world.sync(sink)
        assert (summary.error_code, summary.synced) == ("predictive_api_unclear", 0)
        assert "adopt --assume-absent" in summary.guidance
    assert len(server.rows) == 3
    assert world.sync(sink, adopt=True).unknown == 3
    assert world.sync(sink, adopt=True, assume_absent=True).unknown == 3
    assert world.sync(sink).error_code is None
    assert len(server.rows) == 6, "that was the decision"


def test_adopting_goes_page_by_page_and_shows_how_far_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is adopted and what is unknown is counted over all pages."""
    monkeypatch.setattr("benchbridge_plugin.settling._PAGE", 2)
    fill(world, 9)
    world.sink = sink = Scripted()
    sink.settlement = lambda doubt: Settlement(Answer.STORED, "m") if int(doubt.result_id) % 2 else Settlement(Answer.UNKNOWN)
    shown: list[Progress] = []
    summary = world.engine().run(SyncRequest(adopt=True), progress=shown.append)
    assert (summary.adopted, summary.unknown) == (5, 4)
    assert [(step.done, step.planned) for step in shown if step.phase == "adopting"] == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    assert world.states() == {"delivered": 5}


def test_adopting_looks_further_back_than_is_configured(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """The look-back may be longer one day."""
    fill(world, 4)
    sink = http_sink(server.url)
    world.sync(sink)
    lose_ledger(world)
    assert world.sync(sink, policy={"days": 1}).adopted == 4


def test_the_lease_is_kept_while_an_adoption_compares(world: World, clock: Clock) -> None:
    """A large file takes longer than a lease lasts, and nobody may begin to send meanwhile."""
    fill(world, 6_000)
    world.sink = Scripted()
    busy = 0

    def look(step: Progress) -> None:
        nonlocal busy
        if step.phase == "comparing":
            clock.advance(40)
            with pytest.raises(LeaseBusy):
                world.ledger.leases.acquire(world.name, "other", 60)
            busy += 1

    engine = world.engine()
    engine._clock = clock
    assert engine.run(SyncRequest(adopt=True), progress=look).unknown == 6_000
    assert busy == 2


# -- without keys in the listing ------------------------------------------------------------------------------------------------------------


def test_in_plain_mode_doubts_are_settled_by_comparing_and_counting(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """Of three results with the same figures two were stored: one is sent again, whichever it is."""
    fill(world, 3)
    world.database.execute("UPDATE performance_results SET throughput_items_per_second = 800")
    world.follow(keyed=False)
    sink = http_sink(server.url, keyed=False, timeout_s=0.3)
    server.faults.add(Fault.RESET_AFTER_STORE)
    server.faults.add(Fault.RESET_BEFORE_STORE)
    world.sync(sink)
    clock.advance(600)
    world.sync(sink)
    clock.advance(600)
    world.sync(sink)
    assert world.states() == {"delivered": 3}
    assert [row["measurement_source"] for row in server.rows] == ["benchmark"] * 3
    assert {row["measurement_id"] for row in world.rows()} == {"1", "2", "3"}


def test_in_plain_mode_a_new_ledger_takes_over_by_comparing(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """All that was sent is compared, and what is not there is sent."""
    fill(world, 5)
    world.follow(keyed=False)
    sink = http_sink(server.url, keyed=False)
    world.sync(sink, limit=3)
    lose_ledger(world)
    summary = world.sync(sink)
    assert (summary.adopted, summary.unknown, summary.synced) == (3, 0, 2)
    assert len(server.rows) == 5


def test_in_plain_mode_a_new_source_does_not_take_over_what_another_one_sent(
    tmp_path: Path, clock: Clock, world: World, server: BaseContractServer, http_sink: MakeSink
) -> None:
    """Two files with the same figures share a ledger and a server: each result has a measurement of its own."""
    sink = http_sink(server.url, keyed=False)
    other = World(tmp_path, clock, name="other")
    for each in (world, other):
        fill(each, 3)
        each.follow(keyed=False)
        assert each.engine(sink, ledger=world.ledger).run(SyncRequest()).synced == 3
    other.mapper.close()
    other.ledger.close()
    assert {row["measurement_id"] for row in world.rows()} == {str(row["id"]) for row in server.rows}
    assert len(server.rows) == 6


def test_in_plain_mode_another_results_measurement_is_not_taken_for_this_one(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """Somebody else's rows and rows that differ in one figure say nothing; a result that changed since it was sent stays in doubt."""
    fill(world, 2)
    world.follow(keyed=False)
    sink = http_sink(server.url, keyed=False)
    server.faults.add(Fault.RESET_BEFORE_STORE, times=2)
    world.sync(sink, limit=2)
    server.store.insert(model_name="bert-base-uncased", measurement_source="another tool", throughput=800.0)
    server.store.insert(model_name="bert-base-uncased", measurement_source="benchmark", throughput=123.0)
    clock.advance(600)
    assert world.sync(sink).synced == 2
    assert len(server.rows) == 4


@pytest.mark.parametrize("keyed", [True, False], ids=["plain, then keyed", "keyed, then plain"])
def test_a_doubt_is_found_however_it_was_sent(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock, keyed: bool
) -> None:
    """The configuration may have changed since then."""
    fill(world, 3)
    world.follow(keyed=not keyed)
    server.faults.add(Fault.RESET_AFTER_STORE, times=2)
    world.sync(http_sink(server.url, keyed=not keyed), limit=2, policy={"settle_after_s": 60.0})
    world.follow(keyed=keyed)
    clock.advance(600)
    world.sync(http_sink(server.url, keyed=keyed))
    assert world.states() == {"delivered": 3}
    assert len(server.rows) == 3


def test_a_measurement_that_may_be_another_results_settles_nothing() -> None:
    """The ledger has its repeated measurement_id, and no numeric id to tell it by."""
    batch = make_batch({})
    fields = batch.select(list(MEASUREMENT_FIELDS)).to_pylist()[0]
    (doubt,) = (replace(doubt, fields=fields) for doubt in doubts_of(batch))
    row = {**fields, "measurement_source": "benchmark", "id": 7, "measurement_id": "measurement-1"}

    def answer(row: dict[str, Any], *known: str, doubt: Doubt = doubt, complete: bool = True) -> Settlement:
        return match([doubt], [row], lambda ids: frozenset(ids) & frozenset(known), complete=complete)[0]

    assert answer(row) == Settlement(Answer.STORED, "7")
    assert answer(row, "7") == Settlement(Answer.ABSENT)
    assert answer(row, "7", complete=False) == Settlement(Answer.UNKNOWN)
    assert answer(row, "measurement-1") == Settlement(Answer.UNKNOWN)
    assert answer({**row, "id": None}) == Settlement(Answer.UNKNOWN)
    assert answer(row, doubt=replace(doubt, fields=None)) == Settlement(Answer.UNKNOWN)
    assert answer({**row, "latency": 10.25000001}) == Settlement(Answer.STORED, "7")
    for changed in ({"latency": 10.26}, {"latency": None}, {"memory_usage": True}, {"batch_size": 9}, {"measurement_source": "x"}):
        assert answer({**row, **changed}) == Settlement(Answer.ABSENT)


def test_only_what_could_have_been_sent_is_asked_for(world: World) -> None:
    """A refused result is not."""
    fill(world, 2)
    world.database.execute("UPDATE performance_results SET throughput_items_per_second = -1 WHERE result_id = 2")
    asked: list[str] = []
    world.sink = sink = Scripted()

    def settlement(doubt: Doubt) -> Settlement:
        asked.append(doubt.result_id)
        return Settlement(Answer.ABSENT)

    sink.settlement = settlement
    world.sync(adopt=True)
    assert asked == ["1"]
