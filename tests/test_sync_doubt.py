"""What a run does about results that may or may not be stored, until each is there exactly once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin.model import Answer, Doubt, Outcome, Settlement, SyncRequest
from benchbridge_plugin.sinks.service import ServiceSink
from benchbridge_plugin.source import BenchmarkSource
from tests.benchmark_files import held_elsewhere, let_go
from tests.conftest import Clock, MakeSink, World, fill
from tests.kit.base_contract import LISTING, RECORD, BaseContractServer, Fault
from tests.kit.layouts import build
from tests.scripted import FAILED, IN_DOUBT, Scripted


@pytest.fixture
def scripted(world: World) -> Scripted:
    world.sink = sink = Scripted()
    return sink


def test_doubts_that_end_within_the_run_are_counted_where_they_ended(world: World, scripted: Scripted, clock: Clock) -> None:
    """Found after all: synced. Still unknown: in doubt. Of an earlier run: settled, and in no other figure."""
    fill(world, 4)
    scripted.fate = lambda result_id: IN_DOUBT
    first = world.sync(limit=1)
    assert (first.synced, first.failed, first.in_doubt) == (0, 1, 1)
    scripted.fate = lambda result_id: {"2": IN_DOUBT, "3": IN_DOUBT, "4": FAILED}.get(result_id)
    asked: Counter[str] = Counter()

    def settlement(doubt: Doubt) -> Settlement:
        asked[doubt.result_id] += 1
        found = {"1": asked["1"] > 1, "2": True, "3": False}[doubt.result_id]
        return Settlement(Answer.STORED, "m-late") if found else Settlement(Answer.UNKNOWN)

    scripted.settlement = settlement
    second = world.sync()
    assert (second.synced, second.failed, second.in_doubt, second.settled, second.rejected) == (1, 2, 1, 1, 0)
    assert second.reasons == {"no_answer": 1, "try_later": 1}
    assert second.considered == 3
    assert world.states() == {"delivered": 2, "sending": 1, "retrying": 1}


def test_many_doubts_of_this_run_and_of_an_earlier_one_are_each_counted_once(world: World, scripted: Scripted) -> None:
    """Earlier ones that ended are settled, whichever way; this run's that were stored are synced, and the others stay failed."""
    fill(world, 13)
    scripted.fate = lambda result_id: IN_DOUBT
    assert world.sync(limit=5).failed == 5
    scripted.fate = lambda result_id: IN_DOUBT if result_id != "13" else None
    said = {**dict.fromkeys("12", Answer.STORED), **dict.fromkeys("34", Answer.ABSENT)}
    said |= {**dict.fromkeys("678", Answer.STORED), **dict.fromkeys(("9", "10", "11"), Answer.ABSENT)}
    scripted.settlement = lambda doubt: Settlement(said.get(doubt.result_id, Answer.UNKNOWN))
    second = world.sync(policy={"settle_after_s": 0.0})
    assert (second.settled, second.synced, second.failed, second.in_doubt, second.rejected) == (4, 4, 4, 1, 0)
    assert second.reasons == {"no_answer": 4}
    assert second.considered == 8
    assert world.states() == {"delivered": 6, "retrying": 5, "sending": 2}


def test_doubts_that_are_given_up_are_refused_and_not_failed(world: World, scripted: Scripted) -> None:
    """Those of an earlier run are settled as well; each of them is in the reasons once."""
    fill(world, 6)
    scripted.fate = lambda result_id: IN_DOUBT
    assert world.sync(limit=2).reasons == {"no_answer": 2}
    scripted.settlement = lambda doubt: Settlement(Answer.ABSENT)
    second = world.sync(limit=3, policy={"settle_after_s": 0.0, "max_attempts": 1})
    assert (second.settled, second.rejected, second.failed, second.in_doubt, second.synced) == (2, 5, 0, 0, 0)
    assert second.reasons == {"given_up": 5}
    assert second.considered == 5
    third = world.sync(limit=1, policy={"settle_after_s": 0.0, "max_attempts": 1})
    assert (third.settled, third.rejected, third.reasons) == (0, 1, {"given_up": 1})
    assert world.states() == {"rejected": 6}


def test_a_doubt_that_has_to_be_compared_waits_for_the_file(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """What was sent is read anew, and somebody is writing just now."""
    fill(world, 2)
    world.follow(keyed=False)
    server.faults.add(Fault.RESET_BEFORE_STORE)
    sink = http_sink(server.url, keyed=False, timeout_s=0.3)
    assert world.sync(sink, limit=1).in_doubt == 1
    clock.advance(600)
    with held_elsewhere(world.path) as process:
        world.source = BenchmarkSource(str(world.path), sleep=lambda seconds: let_go(process))
        summary = world.engine(sink).run(SyncRequest())
    assert (summary.state, summary.error_code) == ("succeeded", None)
    assert world.states() == {"delivered": 2}
    assert len(server.rows) == 2


@pytest.mark.parametrize("passed_s", [0.0, 4.5])
def test_an_absence_counts_only_some_time_after_the_send(world: World, scripted: Scripted, clock: Clock, passed_s: float) -> None:
    """A slow server may still be about to store it: the next run waits until it is ripe, and only then sends it again."""
    fill(world, 1)
    scripted.fate = lambda result_id: IN_DOUBT
    scripted.settlement = lambda doubt: Settlement(Answer.ABSENT)
    assert world.sync().in_doubt == 1
    assert world.states() == {"sending": 1}
    scripted.fate = lambda result_id: None
    clock.advance(passed_s)
    assert world.sync(policy={"settle_after_s": 5.0}).synced == 0
    assert sum(clock.slept) == pytest.approx(5.0 - passed_s)
    assert world.states() == {"retrying": 1}, "it failed by itself, and so it waits as after any failure"
    clock.advance(30)
    assert world.sync().synced == 1
    assert scripted.sent == ["1", "1"]


def test_a_run_that_has_to_stop_does_not_wait_until_absences_count(world: World, scripted: Scripted, clock: Clock) -> None:
    """The doubts stay as they are, and nobody is asked."""
    fill(world, 2)
    scripted.fate = lambda result_id: IN_DOUBT
    world.sync()
    scripted.settlement = lambda doubt: pytest.fail("the sink was asked")
    summary = world.engine(settle_after_s=5.0).run(SyncRequest(), stopping=lambda: len(clock.slept) > 3)
    assert (summary.state, summary.considered, summary.settled) == ("stopped", 0, 0)
    assert sum(clock.slept) < 5.0
    assert world.states() == {"sending": 2}
    world.check_accounts()


def test_a_doubt_that_cannot_be_settled_stays_visible_and_is_not_sent(world: World, scripted: Scripted) -> None:
    """Run after run, and each of them asks about it once."""
    fill(world, 2)
    asked: list[str] = []

    def settlement(doubt: Doubt) -> Settlement:
        asked.append(doubt.result_id)
        return Settlement(Answer.UNKNOWN)

    scripted.fate = lambda result_id: IN_DOUBT if result_id == "1" else None
    scripted.settlement = settlement
    for _ in range(3):
        world.sync()
    assert asked == ["1"] * 3
    assert scripted.sent == ["1", "2"]
    assert world.accounting.in_doubt == 1


def test_a_retry_after_holds_for_a_row_that_was_in_doubt(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """A 503 is settled as absent and comes back when the server asked for it, not before."""
    fill(world, 1)
    server.faults.add(Fault.UNAVAILABLE_503, retry_after="900")
    sink = http_sink(server.url)
    world.sync(sink)
    clock.advance(60)
    world.sync(sink)
    assert world.states() == {"retrying": 1}
    clock.advance(840)
    assert world.sync(sink).synced == 1
    assert server.requests[RECORD] == 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.label)
def test_every_fault_ends_with_exactly_one_measurement(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock, fault: Fault
) -> None:
    """Whatever happens to one of three POSTs, the runs that follow find out and finish."""
    fill(world, 3)
    sink = http_sink(server.url, timeout_s=0.3)
    server.faults.skip()
    server.faults.add(fault, delay_s=0.0005)
    for _ in range(3):
        world.sync(sink)
        clock.advance(600)
    assert world.states() == {"delivered": 3}
    assert sorted(row["throughput"] for row in server.rows) == [800.0, 801.0, 802.0]


def test_many_faults_at_random_end_with_exactly_one_measurement_each(
    world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock
) -> None:
    """A third of the POSTs fail in one of all ways, run after run."""
    fill(world, 60)
    server.faults.rate(0.33, seed=11, delay_s=0.0002)
    sink = http_sink(server.url, timeout_s=0.3)
    for _ in range(40):
        world.sync(sink)
        clock.advance(4_000)
        if world.accounting.delivered == 60:
            break
    assert world.states() == {"delivered": 60}
    assert sorted(row["throughput"] for row in server.rows) == [800.0 + number for number in range(60)]


def test_a_service_takes_everything_in_one_batch(world: World, service: PredictivePerformance, clock: Clock) -> None:
    """All of the sample, with the quality of what was assumed."""
    clock.time = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
    count = build("V1", world.path, limit=1_500)
    summary = world.sync(ServiceSink(service))
    assert summary.synced + summary.rejected == count
    assert service.recorded == summary.synced
    assert summary.held["count"] <= 6


# -- giving up ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [FAILED, IN_DOUBT], ids=["failed", "in doubt"])
def test_a_result_that_fails_again_and_again_is_given_up_visibly(world: World, scripted: Scripted, clock: Clock, outcome: Outcome) -> None:
    """After the configured number of attempts; the others go on, and `retry` brings it back through the same path."""
    fill(world, 3)
    scripted.fate = lambda result_id: outcome if result_id == "2" else None
    scripted.settlement = lambda doubt: Settlement(Answer.ABSENT)
    for _ in range(6):
        world.sync(policy={"max_attempts": 3})
        clock.advance(4_000)
    assert scripted.sent.count("2") == 3
    assert world.states() == {"delivered": 2, "rejected": 1}
    (dead,) = (row for row in world.rows() if row["result_id"] == "2")
    assert (dead["code"], dead["attempts"]) == ("given_up", 3)
    scripted.fate = lambda result_id: None
    assert world.ledger.deliveries.retry(world.ledger.runs.source_id(world.name), rejected=False) == 1
    assert world.sync(policy={"max_attempts": 3}).synced == 1
    assert world.states() == {"delivered": 3}


def test_nothing_is_given_up_for_an_api_that_is_down(world: World, server: BaseContractServer, http_sink: MakeSink, clock: Clock) -> None:
    """However often it was tried meanwhile."""
    fill(world, 12)
    sink = http_sink(server.url)
    server.faults.add(Fault.ERROR_500, times=None)
    for _ in range(8):
        assert world.sync(sink, policy={"max_attempts": 3}).error_code == "predictive_api_unreachable"
        clock.advance(4_000)
    server.faults.clear()
    world.sync(sink, policy={"max_attempts": 3})
    clock.advance(4_000)
    world.sync(sink, policy={"max_attempts": 3})
    assert world.states() == {"delivered": 12}
    assert len(server.rows) == 12


@pytest.mark.parametrize(("outcome", "state"), [(FAILED, "retrying"), (IN_DOUBT, "sending")], ids=["failed", "in doubt"])
def test_never_giving_up_can_be_chosen(world: World, scripted: Scripted, clock: Clock, outcome: Outcome, state: str) -> None:
    """With 0 attempts."""
    fill(world, 1)
    scripted.fate = lambda result_id: outcome
    scripted.settlement = lambda doubt: Settlement(Answer.ABSENT)
    for _ in range(12):
        world.sync(policy={"max_attempts": 0})
        clock.advance(4_000)
    assert (len(scripted.sent), world.states()) == (12, {state: 1})


def test_a_server_that_falls_silent_is_not_waited_for_row_by_row(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """One request on each connection without an answer, one short question whether it is there, and the run ends and says so."""
    fill(world, 200)
    sink = http_sink(server.url, timeout_s=0.5)
    server.faults.skip(20)
    server.faults.add(Fault.SILENCE_BEFORE_STORE, times=None)
    server.faults.skip(2, on=LISTING)
    server.faults.add(Fault.SILENCE_BEFORE_STORE, times=None, on=LISTING)
    summary = world.sync(sink)
    assert summary.error_code == "predictive_api_unreachable"
    assert 21 <= server.requests[RECORD] <= 24
    server.faults.clear()
    assert world.sync(sink).error_code is None
    assert world.states() == {"delivered": 200}
    assert len(server.rows) == 200
