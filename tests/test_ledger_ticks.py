"""Which process runs a scheduled cycle, and when: decided in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.model import SyncRequest
from tests.conftest import Book, Clock
from tests.kit import ledgers


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(ledgers.new_url(tmp_path / "ledger.sqlite"), now=clock)
    yield made
    made.close()


class Timer:
    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.runs, self.clock, self.source_id = ledger.runs, clock, ledger.runs.source_id("bench")

    def tick(self, interval_s: float = 3600.0, *, at_once: bool = False) -> bool:
        return self.runs.claim_tick(self.source_id, interval_s, at_once=at_once)


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


def test_a_run_of_nothing_is_a_request_all_the_same(ledger: Ledger, clock: Clock) -> None:
    """What was asked for is kept with the run."""
    book = Book(ledger, clock)
    run = ledger.runs.get(book.source_id, book.holder.run_id)
    assert run is not None
    assert run["request"] == asdict(SyncRequest())
