"""Which process runs a scheduled cycle, and when: decided in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.ledger import Ledger, Schedule
from benchbridge_plugin.model import SyncRequest
from tests.conftest import Book, Clock
from tests.kit import ledgers


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(ledgers.new_url(tmp_path / "ledger.sqlite"), now=clock)
    yield made
    made.close()


class Timer:
    def __init__(self, ledger: Ledger, clock: Clock, name: str = "bench") -> None:
        self.runs, self.clock, self.source_id = ledger.runs, clock, ledger.runs.source_id(name)

    def tick(self, interval_s: float = 3600.0, *, at_once: bool = False) -> bool:
        return self.runs.claim_tick(self.source_id, interval_s, at_once=at_once)

    @property
    def schedule(self) -> Schedule:
        return self.runs.schedule(self.source_id)


@pytest.fixture
def timer(ledger: Ledger, clock: Clock) -> Timer:
    return Timer(ledger, clock)


def test_the_first_tick_comes_after_one_interval_and_then_every_interval(timer: Timer) -> None:
    """However often it is looked."""
    taken: list[float] = []
    began = timer.clock()
    while timer.clock() < began + 3 * 3600:
        if timer.tick():
            taken.append(timer.clock() - began)
        timer.clock.advance(300)
    assert taken == [3600, 7200]


def test_the_start_up_cycle_is_due_at_once_and_only_for_one_of_those_that_start_together(timer: Timer) -> None:
    """Workers of one server start within seconds; a restart later has its own start-up cycle."""
    assert timer.tick(at_once=True)
    timer.clock.advance(3)
    assert not timer.tick(at_once=True)
    timer.clock.advance(-4)  # another host, whose clock is a little behind
    assert not timer.tick(at_once=True)
    timer.clock.advance(60)
    assert timer.tick(at_once=True)
    assert not timer.tick()


def test_paused_means_no_tick_and_resuming_does_not_lose_the_next(timer: Timer) -> None:
    """Neither by the timer nor at a start."""
    timer.tick()
    timer.runs.set_schedule(timer.source_id, paused=True)
    timer.clock.advance(4000)
    assert not timer.tick()
    assert not timer.tick(at_once=True)
    timer.runs.set_schedule(timer.source_id, paused=False)
    assert timer.tick()


def test_a_new_interval_counts_from_now(timer: Timer) -> None:
    """Shorter or longer."""
    timer.tick()
    assert timer.runs.set_schedule(timer.source_id, interval_minutes=5).next_tick_at == timer.clock() + 300
    timer.clock.advance(299)
    assert not timer.tick(300)
    timer.clock.advance(1)
    assert timer.tick(300)


def test_a_tick_set_by_a_clock_that_was_wrong_does_not_stop_the_schedule(timer: Timer) -> None:
    """A host was a year ahead; the right time must not wait for it."""
    timer.clock.advance(365 * 86_400)
    timer.tick(at_once=True)
    timer.clock.advance(-365 * 86_400)
    assert timer.tick()
    timer.clock.advance(365 * 86_400)
    timer.tick(at_once=True)
    timer.clock.advance(-365 * 86_400)
    assert timer.tick(at_once=True)


def test_the_clock_is_read_under_the_lock(ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for the lock while another took the tick must not compare with the time at which it began to wait."""
    timer = Timer(ledger, clock)
    store = ledger._store
    writing = store.writing
    others: list[bool] = []

    def slow_writing() -> Any:
        monkeypatch.setattr(store, "writing", writing)
        clock.advance(0.5)
        others.append(timer.tick(at_once=True))
        return writing()

    monkeypatch.setattr(store, "writing", slow_writing)
    assert timer.tick(at_once=True) is False
    assert others == [True]


HOUR = 3600.0


@pytest.mark.parametrize(
    ("to_go_s", "taken"),
    [(5_400, False), (3_600, False), (3_000, False), (0.5, False), (0, True), (-1, True), (-3_599, True)],
)
def test_a_tick_is_taken_at_its_time_or_a_little_late_and_keeps_the_beat(timer: Timer, to_go_s: float, taken: bool) -> None:
    """`to_go_s` until the planned time: before it nothing moves, and after it the next one is one interval from the planned time, not from now."""
    timer.tick(HOUR)
    planned = timer.clock() + HOUR
    timer.clock.time = planned - to_go_s
    assert timer.tick(HOUR) is taken
    assert timer.schedule == Schedule(False, None, planned + HOUR if taken else planned, timer.clock() if taken else None)
    assert not timer.tick(HOUR)


@pytest.mark.parametrize("to_go_s", [-3_600, -3_601, -9_000, 5_401, 7_200, 86_400])
def test_a_tick_that_is_late_by_an_interval_or_planned_by_a_wrong_clock_counts_from_now(timer: Timer, to_go_s: float) -> None:
    """There is no beat to keep: cycles that nobody ran are not made up for."""
    timer.tick(HOUR)
    timer.clock.advance(HOUR - to_go_s)
    assert timer.tick(HOUR)
    assert timer.schedule == Schedule(False, None, timer.clock() + HOUR, timer.clock())
    assert not timer.tick(HOUR)


@pytest.mark.parametrize(
    ("interval_s", "after_s", "taken"),
    [
        (3_600.0, 9.5, False),
        (3_600.0, 10.0, True),
        (12.0, 5.0, False),
        (12.0, 6.0, True),
        (12.0, 9.0, True),
        (3_600.0, -3_600.0, False),
        (3_600.0, -3_601.0, True),
    ],
)
def test_start_up_cycles_are_ten_seconds_or_half_an_interval_apart(timer: Timer, interval_s: float, after_s: float, taken: bool) -> None:
    """One that is further in the future than an interval was made by a wrong clock and stops nobody."""
    assert timer.tick(interval_s, at_once=True)
    timer.clock.advance(after_s)
    assert timer.tick(interval_s, at_once=True) is taken


def test_the_cycle_after_a_start_comes_one_interval_after_it(timer: Timer) -> None:
    """Also when one was just due: the start took its place."""
    timer.tick(HOUR)
    timer.clock.advance(HOUR + 100)
    assert timer.tick(HOUR, at_once=True)
    assert timer.schedule == Schedule(False, None, timer.clock() + HOUR, timer.clock())


def test_each_source_has_its_own_schedule(ledger: Ledger, clock: Clock) -> None:
    """A tick, a pause and an interval of one leave the other as it was, whether that one has begun or not."""
    mine, other = Timer(ledger, clock), Timer(ledger, clock, "other")
    mine.tick(HOUR)
    assert other.schedule == Schedule(False, None, None, None)
    other.tick(HOUR)
    before = other.schedule
    clock.advance(HOUR)
    assert mine.tick(HOUR)
    mine.runs.set_schedule(mine.source_id, paused=True, interval_minutes=7)
    assert other.schedule == before
    assert mine.schedule == Schedule(True, 7.0, clock() + 420, clock())
    assert other.tick(HOUR)


@pytest.mark.parametrize(("paused", "to_go_s"), [(False, 1), (False, 3_000), (False, 5_400), (True, 1), (True, -1), (True, 90_000)])
def test_looking_whether_a_tick_is_due_waits_for_no_writer(timer: Timer, ledger: Ledger, paused: bool, to_go_s: float) -> None:
    """Every process looks every few seconds, and most of the time nothing is due."""
    timer.tick(HOUR)
    timer.runs.set_schedule(timer.source_id, paused=paused)
    timer.clock.advance(HOUR - to_go_s)
    with ledger._store.writing():
        assert not timer.tick(HOUR)


def test_a_run_of_nothing_is_a_request_all_the_same(ledger: Ledger, clock: Clock) -> None:
    """What was asked for is kept with the run."""
    book = Book(ledger, clock)
    run = ledger.runs.get(book.source_id, book.holder.run_id)
    assert run is not None
    assert run["request"] == asdict(SyncRequest())
