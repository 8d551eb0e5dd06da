"""The timer: one cycle for each tick, whichever process takes it, and a stop that is bounded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.scheduler import SyncScheduler
from tests.conftest import Clock
from tests.kit import ledgers

LOOK_S = 0.02
SOON_S = 10.0


class Cycles:
    """Cycles that can be waited for and held up."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.ran = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()
        self.at_work = threading.Event()

    def __call__(self, kind: str) -> None:
        self.at_work.set()
        self.may_end.wait(SOON_S)
        self.kinds.append(kind)
        self.at_work.clear()
        self.ran.release()

    def wait(self) -> None:
        assert self.ran.acquire(timeout=SOON_S), "no cycle ran"


MakeScheduler = Callable[..., SyncScheduler]


@pytest.fixture
def make() -> Iterator[MakeScheduler]:
    made: list[SyncScheduler] = []

    def one(claim: Callable[[bool], bool], cycle: Callable[[str], object]) -> SyncScheduler:
        made.append(SyncScheduler(claim=claim, cycle=cycle, look_every_s=LOOK_S))
        return made[-1]

    yield one
    for scheduler in made:
        scheduler.stop(SOON_S)


class Looks:
    """Counts how often the timer looked, and can be waited for."""

    def __init__(self, answer: Callable[[bool], bool]) -> None:
        self._answer = answer
        self._looked = threading.Condition()
        self.count = 0

    def __call__(self, at_once: bool) -> bool:
        answer = self._answer(at_once)
        with self._looked:
            self.count += 1
            self._looked.notify_all()
        return answer

    def wait(self, more: int = 2) -> None:
        with self._looked:
            wanted = self.count + more
            assert self._looked.wait_for(lambda: self.count >= wanted, SOON_S), "nobody looked"


def test_a_start_up_cycle_runs_at_once_when_asked_for(make: MakeScheduler) -> None:
    """And is called what it is."""
    cycles = Cycles()
    make(lambda at_once: at_once, cycles).start(run_now=True)
    cycles.wait()
    assert cycles.kinds == ["start-up"]


def test_without_it_the_first_cycle_is_the_first_tick(make: MakeScheduler) -> None:
    """Nobody asks for a start-up cycle."""
    cycles, asked = Cycles(), []

    def claim(at_once: bool) -> bool:
        asked.append(at_once)
        return len(asked) == 3

    make(claim, cycles).start(run_now=False)
    cycles.wait()
    assert cycles.kinds == ["schedule"]
    assert not any(asked)


def test_of_several_timers_on_one_ledger_one_runs_each_tick(tmp_path: Path, clock: Clock, make: MakeScheduler) -> None:
    """Three processes of a server, each with its own timer and its own hold on the ledger."""
    cycles, looks = Cycles(), []
    url = ledgers.new_url(tmp_path / "ledger.sqlite")
    processes = [Ledger(url, now=clock) for _ in range(3)]
    source_id = processes[0].runs.source_id("bench")
    schedulers = []
    for ledger in processes:
        look = Looks(lambda at_once, ledger=ledger: ledger.runs.claim_tick(source_id, 3600.0, at_once=at_once))  # type: ignore[misc]
        looks.append(look)
        schedulers.append(make(look, cycles))
        schedulers[-1].start(run_now=True)
    cycles.wait()
    for expected in (2, 3):
        for look in looks:
            look.wait()
        clock.advance(3600)
        cycles.wait()
        for look in looks:
            look.wait()
        assert len(cycles.kinds) == expected
    assert sorted(cycles.kinds) == ["schedule", "schedule", "start-up"]
    for scheduler in schedulers:
        assert scheduler.stop(SOON_S)
    for ledger in processes:
        ledger.close()


def test_pause_resume_and_a_new_interval_reach_a_running_timer(tmp_path: Path, clock: Clock, make: MakeScheduler) -> None:
    """They are set in the ledger, by whichever process was asked."""
    url = ledgers.new_url(tmp_path / "ledger.sqlite")
    ledger, operator = Ledger(url, now=clock), Ledger(url, now=clock)
    source_id = ledger.runs.source_id("bench")
    cycles = Cycles()

    def claim(at_once: bool) -> bool:
        minutes = ledger.runs.schedule(source_id).interval_minutes or 60.0
        return ledger.runs.claim_tick(source_id, minutes * 60, at_once=at_once)

    look = Looks(claim)
    scheduler = make(look, cycles)
    scheduler.start(run_now=False)
    look.wait()
    operator.runs.set_schedule(source_id, paused=True)
    clock.advance(3601)
    look.wait()
    assert cycles.kinds == []
    operator.runs.set_schedule(source_id, paused=False)
    cycles.wait()
    operator.runs.set_schedule(source_id, interval_minutes=5)
    clock.advance(299)
    look.wait()
    assert len(cycles.kinds) == 1
    clock.advance(2)
    cycles.wait()
    assert scheduler.stop(SOON_S)
    ledger.close()
    operator.close()


def test_a_cycle_that_raises_does_not_end_the_timer(make: MakeScheduler, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback, and the next tick comes."""
    ran = threading.Semaphore(0)

    def fail(kind: str) -> None:
        ran.release()
        raise RuntimeError("broken")

    scheduler = make(lambda at_once: True, fail)
    scheduler.start(run_now=False)
    for _ in range(3):
        assert ran.acquire(timeout=SOON_S)
    assert scheduler.stop(SOON_S)
    assert any(record.exc_info and record.name == "benchbridge_plugin.scheduler" for record in caplog.records)


def test_a_ledger_that_cannot_be_used_is_a_line_and_no_traceback(make: MakeScheduler, caplog: pytest.LogCaptureFixture) -> None:
    """What can be done about it stands in the line, and the next look comes."""
    looked = threading.Semaphore(0)

    def refuse(at_once: bool) -> bool:
        looked.release()
        raise LedgerError("The ledger cannot be used: it may not be written.", guidance="Make it writable.")

    scheduler = make(refuse, lambda kind: None)
    scheduler.start(run_now=False)
    for _ in range(2):
        assert looked.acquire(timeout=SOON_S)
    assert scheduler.stop(SOON_S)
    told = [record for record in caplog.records if record.name == "benchbridge_plugin.scheduler"]
    assert told
    assert all(record.levelno == logging.ERROR and record.exc_info is None for record in told)
    assert "Make it writable." in told[0].getMessage()


def test_a_long_cycle_is_not_doubled(make: MakeScheduler) -> None:
    """Ticks that come meanwhile wait for it."""
    cycles = Cycles()
    cycles.may_end.clear()
    calls: list[bool] = []

    def claim(at_once: bool) -> bool:
        calls.append(cycles.at_work.is_set())
        return True

    make(claim, cycles).start(run_now=False)
    assert cycles.at_work.wait(SOON_S)
    assert not threading.Event().wait(LOOK_S * 5)
    cycles.may_end.set()
    cycles.wait()
    assert not any(calls)


def test_stop_waits_for_a_cycle_under_way_no_longer_than_it_may(make: MakeScheduler) -> None:
    """It says whether the cycle ended in time."""
    cycles = Cycles()
    cycles.may_end.clear()
    scheduler = make(lambda at_once: True, cycles)
    scheduler.start(run_now=False)
    assert cycles.at_work.wait(SOON_S)
    assert scheduler.stop(0.05) is False
    assert not scheduler.running
    cycles.may_end.set()
    assert scheduler.stop(SOON_S) is True
    assert len(cycles.kinds) == 1


def test_after_a_stop_nothing_is_looked_at_and_it_can_start_again(make: MakeScheduler) -> None:
    """Starting and stopping may both be repeated."""
    look, cycles = Looks(lambda at_once: False), Cycles()
    scheduler = make(look, cycles)
    scheduler.start(run_now=False)
    scheduler.start(run_now=False)
    assert scheduler.running
    look.wait()
    assert scheduler.stop(SOON_S)
    assert scheduler.stop(SOON_S)
    before = look.count
    assert not threading.Event().wait(LOOK_S * 5)
    assert look.count == before
    scheduler.start(run_now=False)
    look.wait()


def test_the_timer_says_nothing_for_a_look(make: MakeScheduler, caplog: pytest.LogCaptureFixture) -> None:
    """A line every five seconds would be all that a log holds."""
    caplog.set_level(logging.DEBUG)
    look = Looks(lambda at_once: False)
    scheduler = make(look, Cycles())
    scheduler.start(run_now=False)
    look.wait(3)
    assert scheduler.stop(SOON_S)
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == []
