"""Whole runs over a real file, a real ledger and real sinks: what is sent, what is recorded, what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from benchbridge_plugin.comparison import rows
from benchbridge_plugin.errors import LeaseBusy, LedgerError, SourceBusy, SourceError, SourceMissing
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import Answer, Fate, Outcome, Progress, Settlement, SyncRequest
from benchbridge_plugin.source import BenchmarkSource
from tests.benchmark_files import held_elsewhere, let_go
from tests.conftest import Clock, MakeSink, World, fill
from tests.kit import ledgers
from tests.kit.base_contract import BaseContractServer
from tests.scripted import FAILED, IN_DOUBT, REFUSED, Scripted


@pytest.fixture
def scripted(world: World) -> Scripted:
    world.sink = sink = Scripted()
    return sink


# -- a run ------------------------------------------------------------------------------------------------------------------------------


def test_a_second_sync_sends_nothing_and_touches_neither_source_nor_sink(
    world: World, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's signature and the ledger say that there is nothing to do."""
    fill(world, 5)
    assert world.sync().synced == 5
    monkeypatch.setattr(type(world.source), "_open", lambda *arguments, **options: pytest.fail("the file was opened"))
    summary = world.engine().run(SyncRequest())
    assert (summary.state, summary.considered) == ("succeeded", 0)
    assert scripted.profiles == 1
    assert len(scripted.sent) == 5


def test_the_limit_counts_what_was_handed_over_and_not_what_was_refused_before(world: World, scripted: Scripted) -> None:
    """A file full of refusals must not keep the good ones from their turn."""
    fill(world, 12)
    world.database.execute("UPDATE performance_results SET precision = 'int2' WHERE result_id <= 6")
    summary = world.sync(limit=4)
    assert (summary.synced, summary.rejected) == (4, 6)
    assert summary.message == "4 synced, 6 refused, 0 to be retried. 2 wait for the next runs: the limit was reached (0: no limit)."
    assert world.sync(limit=1).message.endswith(" 1 waits for the next runs: the limit was reached (0: no limit).")
    assert world.sync(limit=1).message == "1 synced, 0 refused, 0 to be retried.", "the limit was met, and left nothing"
    assert Counter(scripted.sent) == Counter(str(number) for number in range(7, 13))


def test_a_dry_run_writes_nothing_and_says_what_a_run_would_do(world: World, scripted: Scripted) -> None:
    """The same figures come out of the run that follows."""
    fill(world, 6)
    world.database.update(2, precision="int2")
    world.ledger.runs.source_id(world.name)
    before = (world.rows(), world.accounting, world.ledger.runs.history(1), world.ledger.leases.holder(world.name))
    dry = world.engine().run(SyncRequest(dry_run=True, limit=3))
    assert (dry.run_id, dry.synced, dry.rejected, dry.dry_run) == (None, 3, 1, True)
    assert (world.rows(), world.accounting, world.ledger.runs.history(1), world.ledger.leases.holder(world.name)) == before
    assert scripted.sent == []
    wet = world.sync(limit=3)
    assert (wet.synced, wet.rejected) == (3, 1)


@pytest.mark.parametrize("read_rows", [3, 5_000])
def test_a_dry_run_has_the_figures_of_the_run_that_follows(
    world: World, scripted: Scripted, clock: Clock, monkeypatch: pytest.MonkeyPatch, read_rows: int
) -> None:
    """All of them: refusals by reason, what is skipped, the quality of what would be sent."""
    monkeypatch.setattr("benchbridge_plugin.sync._READ_ROWS", read_rows)
    fill(world, 12)
    world.database.execute("UPDATE performance_results SET precision = 'int2' WHERE result_id IN (2, 5, 9)")
    world.database.execute("UPDATE performance_results SET throughput_items_per_second = -1 WHERE result_id IN (4, 7)")
    world.database.execute("UPDATE performance_results SET metrics = NULL WHERE result_id IN (1, 12)")
    world.database.update(3, metrics='{"sequence_length": 128, "is_simulated": true}')
    shown: list[Progress] = []
    began = clock()
    world.mapper.measure = advancing(world.mapper.measure, clock)  # type: ignore[method-assign]
    request = SyncRequest(kind="cli", dry_run=True)
    dry = world.engine().run(request, progress=shown.append)
    finished = clock()
    wet = world.sync()
    names = ("state", "considered", "synced", "rejected", "skipped", "reasons", "quality")
    assert [getattr(dry, name) for name in names] == [getattr(wet, name) for name in names]
    assert (dry.synced, dry.rejected, dry.skipped, sum(dry.reasons.values()), dry.considered) == (6, 5, 1, 6, 11)
    assert dry.quality == {"sequence_length_assumed": 2}
    assert (dry.started_at, dry.finished_at) == (began, finished)
    assert (dry.kind, dry.request) == ("cli", asdict(request))
    assert "6 would be sent, 5 refused" in dry.message
    assert dry.held["count"] > 0
    mapped = [(step.done, step.planned) for step in shown if step.phase == "mapping"]
    assert mapped == ([(3, 11), (6, 11), (9, 11), (11, 11)] if read_rows == 3 else [(11, 11)])


def advancing(measure: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    """The same, taking a second."""

    def slow(*arguments: Any) -> Any:
        clock.advance(1)
        return measure(*arguments)

    return slow


def test_a_dry_run_reads_no_more_than_its_limit_needs(world: World, scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes behind the last one that would be sent is not looked at."""
    monkeypatch.setattr("benchbridge_plugin.sync._READ_ROWS", 3)
    fill(world, 9)
    world.database.execute("UPDATE performance_results SET precision = 'int2' WHERE result_id > 3")
    shown: list[Progress] = []
    dry = world.engine().run(SyncRequest(dry_run=True, limit=3), progress=shown.append)
    assert (dry.synced, dry.rejected, dry.reasons) == (3, 0, {})
    assert [step.done for step in shown if step.phase == "mapping"] == [3]
    assert world.engine().run(SyncRequest(dry_run=True, limit=2)).synced == 2


@pytest.mark.parametrize("request_", [SyncRequest(), SyncRequest(dry_run=True), SyncRequest(adopt=True)], ids=["sync", "dry run", "adopt"])
def test_a_run_waits_for_a_file_that_somebody_writes(world: World, scripted: Scripted, request_: SyncRequest) -> None:
    """It goes on as soon as the file is free."""
    fill(world, 3)
    scripted.settlement = lambda doubt: Settlement(Answer.ABSENT)
    with held_elsewhere(world.path) as process:
        world.source = BenchmarkSource(str(world.path), sleep=lambda seconds: let_go(process))
        summary = world.engine().run(request_)
    assert (summary.state, summary.error_code) == ("succeeded", None)


def test_refused_and_failing_rows_do_not_hold_up_those_behind_them(world: World, scripted: Scripted) -> None:
    """The oldest ones fail, the newest are delivered in the same run."""
    fill(world, 9)
    scripted.fate = lambda result_id: {"1": FAILED, "2": REFUSED, "3": IN_DOUBT}.get(result_id)
    summary = world.sync(policy={"batch_size": 2})
    assert (summary.state, summary.synced, summary.rejected, summary.failed, summary.in_doubt) == ("partial", 6, 1, 2, 1)
    assert summary.reasons == {"try_later": 1, "refused_by_api": 1, "no_answer": 1}
    assert summary.considered == 9
    assert (summary.backlog, summary.guidance) == (world.accounting.backlog, "")
    assert summary.held["count"] > 0


def test_the_wait_grows_with_jitter_and_is_capped(world: World, scripted: Scripted, clock: Clock) -> None:
    """Doubled for each attempt, up to the longest; a server that asks for more time gets it."""
    fill(world, 1)
    waits: list[float] = []
    scripted.fate = lambda result_id: FAILED
    for _ in range(7):
        world.sync(policy={"retry_base_s": 30.0, "retry_max_s": 600.0})
        waits.append(world.rows()[0]["next_attempt_at"] - clock())
        clock.advance(waits[-1])
    assert waits == [30, 60, 120, 240, 480, 600, 600]
    scripted.fate = lambda result_id: Outcome(Fate.FAILED, "try_later", "later", retry_after_s=5_000)
    world.sync(policy={"retry_max_s": 600.0})
    assert world.rows()[0]["next_attempt_at"] == clock() + 5_000
    assert [row["attempts"] for row in world.rows()] == [8]


def test_a_short_wait_is_as_short_as_it_was_set(world: World, scripted: Scripted, clock: Clock) -> None:
    """A server that asks for no time gets none added."""
    fill(world, 1)
    scripted.fate = lambda result_id: FAILED
    world.sync(policy={"retry_base_s": 0.25})
    assert world.rows()[0]["next_attempt_at"] == clock() + 0.25


def test_the_jitter_takes_the_upper_half(world: World, scripted: Scripted, clock: Clock) -> None:
    """So that many rows that failed together do not come back together, and none comes at once."""
    fill(world, 1)
    asked: list[tuple[float, float]] = []
    engine = world.engine()
    engine._carrier._jitter = lambda low, high: (asked.append((low, high)), low)[1]  # type: ignore[func-returns-value]
    scripted.fate = lambda result_id: FAILED
    engine.run(SyncRequest())
    assert asked == [(15, 30)]
    assert world.rows()[0]["next_attempt_at"] == clock() + 15


def test_a_row_is_not_tried_before_its_time(world: World, scripted: Scripted, clock: Clock) -> None:
    """A run in between leaves it alone, also when other rows are new."""
    fill(world, 1)
    scripted.fate = lambda result_id: FAILED if result_id == "1" else None
    world.sync()
    world.database.insert(result_id=2)
    world.sync()
    assert scripted.sent == ["1", "2"]
    clock.advance(31)
    scripted.fate = lambda result_id: None
    assert world.sync().synced == 1
    assert scripted.sent == ["1", "2", "1"]


def test_retry_brings_refused_rows_back(world: World, scripted: Scripted) -> None:
    """After the server has learnt to take them."""
    fill(world, 3)
    scripted.fate = lambda result_id: REFUSED
    world.sync()
    assert world.sync().considered == 0
    assert world.ledger.deliveries.retry(1, rejected=True) == 3
    assert world.check_accounts().pending == 3
    scripted.fate = lambda result_id: None
    assert world.sync().synced == 3


def before_the_next(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]) -> None:
    """Something happens right before that method is called next, and only then."""
    original = getattr(owner, name)

    def first(self: Any, *arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        act()
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, first)


def test_a_result_that_changes_between_comparison_and_reading_is_left_for_the_next_run(
    world: World, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compared is what is claimed: never one content under the key of another."""
    fill(world, 3)

    def change() -> None:
        world.database.update(2, batch_size=99)
        world.database.delete(3)

    monkeypatch.setattr(rows, "FEW", 0)
    before_the_next(monkeypatch, BenchmarkSource, "read", change)
    assert world.engine().run(SyncRequest()).synced == 1
    assert world.accounting.balanced
    assert world.sync().synced == 1
    assert scripted.sent == ["1", "2"]


def test_a_small_file_is_opened_once_and_what_is_sent_is_what_was_compared(
    world: World, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that changes meanwhile goes as it was, under the key of what it was; the next run sends the new content."""
    fill(world, 3)
    before_the_next(monkeypatch, Mapper, "survey", lambda: world.database.update(2, batch_size=99))
    assert world.engine().run(SyncRequest()).synced == 3
    assert world.source.holds()["count"] == 1
    assert world.accounting.balanced
    assert world.sync().synced == 1
    assert scripted.sent == ["1", "2", "3", "2"]
    assert (world.accounting.delivered, world.accounting.superseded) == (3, 1)


def test_the_progress_is_shown_to_the_caller_and_kept_in_the_ledger(world: World, scripted: Scripted) -> None:
    """Whoever looks at the run from another process sees how far it is."""
    fill(world, 14)
    shown: list[Progress] = []
    time = iter(range(1_000))
    engine = world.engine(batch_size=2)
    engine._clock = lambda: float(next(time))
    kept: list[object] = []
    scripted.before = lambda: kept.append(world.ledger.runs.history(1)[0].get("done"))
    engine.run(SyncRequest(), progress=shown.append)
    assert {step.phase for step in shown} == {"comparing", "sending"}
    assert (shown[-1].done, shown[-1].planned, shown[-1].synced) == (14, 14, 14)
    found = [int(str(done)) for done in kept if done]
    assert found == sorted(found) != [], "it is written behind the batches, in its turn"


# -- who may ----------------------------------------------------------------------------------------------------------------------------


def test_a_run_is_refused_while_another_one_runs(world: World, scripted: Scripted) -> None:
    """The second learns which run it is; a report does not wait for it."""
    fill(world, 2)
    seen: list[object] = []

    def second() -> None:
        with pytest.raises(LeaseBusy) as busy:
            world.engine().run(SyncRequest())
        seen.append(busy.value.fields["run_id"])
        world.engine().refresh()

    scripted.before = second
    first = world.sync()
    assert seen == [first.run_id] * 2
    assert first.synced == 2


def test_a_run_that_loses_its_lease_stops_and_says_so(world: World, scripted: Scripted, clock: Clock) -> None:
    """Another took over: nothing more is sent, and what was under way is in doubt for the other to ask about."""
    fill(world, 10)
    turns = iter(range(100))

    def lose() -> None:
        if next(turns) == 2:
            clock.advance(61)
            lease = world.ledger.leases.acquire(world.name, "other", 60)
            world.ledger.runs.begin(lease, 1, SyncRequest(), 60)

    scripted.before = lose
    engine = world.engine()
    time = iter(range(0, 1_000_000, 20))
    engine._clock = lambda: float(next(time))
    summary = engine.run(SyncRequest())
    assert (summary.state, summary.error_code) == ("failed", "lease_lost")
    assert len(scripted.sent) < 10
    assert world.states() == {"sending": 10}
    assert world.check_accounts().in_doubt == 10
    runs = world.ledger.runs.history(1)
    assert [run["state"] for run in runs] == ["running", "failed"]


def test_a_lease_lost_between_two_batches_is_no_success(world: World, scripted: Scripted, clock: Clock) -> None:
    """The run ends without another write, and must not look as if all had been done."""
    fill(world, 4)
    engine = world.engine(batch_size=2)

    def fail(lease: object, duration_s: float) -> None:
        raise LedgerError("The ledger is away.")

    time = iter(range(0, 1_000_000, 20))
    engine._clock = lambda: float(next(time))
    world.ledger.leases.prolong = fail  # type: ignore[method-assign]
    assert engine.run(SyncRequest()).state == "failed"
    assert scripted.sent == []


def test_stopping_leaves_the_rest_pending(world: World, scripted: Scripted) -> None:
    """In the middle of a batch: what had its turn is acknowledged, the rest is as before, and the next run goes on."""
    fill(world, 10)
    turns = iter(range(1_000))
    summary = world.engine(batch_size=4).run(SyncRequest(), stopping=lambda: len(scripted.sent) >= 6 or next(turns) < 0)
    assert (summary.state, summary.synced) == ("stopped", 6)
    assert world.check_accounts().pending == 4
    assert world.sync().synced == 4
    assert len(scripted.sent) == len(set(scripted.sent)) == 10


def test_a_source_that_is_gone_ends_the_run_with_its_error_and_frees_the_lease(world: World, scripted: Scripted) -> None:
    """The summary has the code and what to do; the next run can begin."""
    summary = world.engine().run(SyncRequest())
    assert (summary.state, summary.error_code) == ("failed", SourceMissing.code)
    assert summary.guidance
    assert world.ledger.leases.holder(world.name) is None
    fill(world, 1)
    assert world.sync().synced == 1


def test_a_sink_that_is_down_touches_no_row(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """And goes on from there once it is up."""
    fill(world, 3)
    server.down()
    sink = http_sink(server.url)
    summary = world.engine(sink).run(SyncRequest())
    assert (summary.state, summary.error_code) == ("failed", "predictive_api_unreachable")
    assert world.rows() == []
    server.up()
    assert world.sync(sink).synced == 3


# -- when there is nothing to do ------------------------------------------------------------------------------------------------------------


def test_a_scheduled_run_that_finds_nothing_new_leaves_no_trace(world: World, scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads neither the file nor the sink, takes no lease and writes nothing: there may be thousands of them a day."""
    fill(world, 2)
    world.sync(kind="schedule")
    before = [ledgers.read_rows(world.ledger_url, f"SELECT * FROM {table}") for table in ("runs", "leases", "sources", "ledger_meta")]
    monkeypatch.setattr(type(world.source), "_open", lambda *arguments, **options: pytest.fail("the file was opened"))
    summary = world.engine().run(SyncRequest(kind="schedule"), started=lambda run_id: pytest.fail("a run began"))
    assert (summary.run_id, summary.state, summary.considered) == (None, "succeeded", 0)
    assert scripted.profiles == 1
    after = [ledgers.read_rows(world.ledger_url, f"SELECT * FROM {table}") for table in ("runs", "leases", "sources", "ledger_meta")]
    assert after == before


@pytest.mark.parametrize("event", ["new", "not all sent", "retry is due", "look-back", "missing"])
def test_a_scheduled_run_that_has_something_to_do_is_a_run(event: str, world: World, scripted: Scripted, clock: Clock) -> None:
    """Also when the file is gone: somebody has to be told."""
    fill(world, 2)
    if event == "retry is due":
        scripted.fate = lambda result_id: FAILED
    world.sync(kind="schedule", limit=1 if event == "not all sent" else None)
    clock.advance(3600)
    if event == "new":
        world.database.insert(result_id=9)
    elif event == "missing":
        world.path.unlink()
    summary = world.engine().run(SyncRequest(kind="schedule", days=3 if event == "look-back" else None))
    assert summary.run_id == 2
    assert summary.state == {"missing": "failed", "retry is due": "partial"}.get(event, "succeeded")


# -- looking without moving -------------------------------------------------------------------------------------------------------------


def test_a_refresh_compares_a_file_that_changed_and_no_other(world: World, scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves nothing, asks no sink, and gives the lease back."""
    fill(world, 3)
    assert (world.engine().refresh().total, world.accounting.pending) == (3, 3)
    assert world.ledger.leases.holder(world.name) is None
    world.database.insert(result_id=4)
    assert world.engine().refresh().total == 4
    assert world.ledger.runs.history(1) == []
    assert (scripted.sent, scripted.profiles) == ([], 0)
    monkeypatch.setattr(type(world.source), "_open", lambda *arguments, **options: pytest.fail("the file was opened"))
    assert world.engine().refresh().total == 4


def test_a_refresh_looks_as_far_back_as_a_sync_does(world: World, scripted: Scripted) -> None:
    """As configured, so that the sync that follows finds nothing to compare anew."""
    fill(world, 3)
    assert world.engine(days=1).refresh().skipped_by_reason == {"older_than_lookback": 3}
    assert world.engine().refresh().skipped == 3, "the file is as it was compared"


def test_a_refresh_that_fails_gives_the_lease_back(world: World, scripted: Scripted) -> None:
    """The file went away between the look at it and the reading."""
    fill(world, 3)
    world.path.write_bytes(b"no database")
    with pytest.raises(SourceError):
        world.engine().refresh()
    assert world.ledger.leases.holder(world.name) is None


def test_a_refresh_waits_for_a_writer_only_when_told_to(world: World, scripted: Scripted) -> None:
    """A status page is not to hang."""
    fill(world, 3)
    pauses: list[float] = []
    with held_elsewhere(world.path) as process:
        world.source = BenchmarkSource(str(world.path), sleep=pauses.append)
        with pytest.raises(SourceBusy):
            world.engine().refresh()
        assert pauses == []
        world.source = BenchmarkSource(str(world.path), sleep=lambda seconds: let_go(process))
        assert world.engine().refresh(wait=True).total == 3


def test_a_lease_that_cannot_be_given_back_spoils_no_run(
    world: World, scripted: Scripted, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the lease runs out by itself."""
    fill(world, 2)

    def fail(lease: object) -> None:
        raise LedgerError("The ledger cannot be used: disk I/O error.")

    with monkeypatch.context() as patch:
        patch.setattr(world.ledger.leases, "release", fail)
        assert world.sync().state == "succeeded"
    assert "the lease could not be given back: The ledger cannot be used" in caplog.text
    with pytest.raises(LeaseBusy):
        world.sync()
    clock.advance(60)
    assert world.sync().state == "succeeded"
