"""Scheduled cycles between two whole comparisons: what is new is found by its id alone, and everything else is left for the comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import text

from benchbridge_plugin.comparison import grown, rows
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Holder
from benchbridge_plugin.model import State
from tests.conftest import World, fill
from tests.scripted import FAILED, REFUSED, Scripted

ROWS = 12
HOUR_S = 3_600


@pytest.fixture
def sink() -> Scripted:
    return Scripted()


@pytest.fixture
def world(world: World, sink: Scripted) -> World:
    """A file that was compared as a whole and delivered just now."""
    world.sink = sink
    fill(world, ROWS)
    world.sync()
    sink.sent.clear()
    return world


class Slices:
    """Counts how often the whole file is read."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(rows, "FEW", 0)
        original = world.source.slices

        def slices(layout: Layout, ids: pa.Array, **options: Any) -> Iterator[pa.Table]:
            self.count += 1
            return original(layout, ids, **options)

        monkeypatch.setattr(world.source, "slices", slices)


@pytest.fixture
def slices(world: World, monkeypatch: pytest.MonkeyPatch) -> Slices:
    return Slices(world, monkeypatch)


def test_a_new_result_is_sent_without_reading_the_others(world: World, sink: Scripted, slices: Slices) -> None:
    """However many there are; and what was found is seen from then on."""
    for result_id in (100, 5_000, 50):
        world.database.insert(result_id=result_id)
        assert world.sync(kind="schedule").synced == 1
    assert sink.sent == ["100", "5000", "50"]
    assert slices.count == 0
    assert world.sync(kind="schedule").run_id is None, "nothing is new"
    assert world.accounting.delivered == world.accounting.total == ROWS + 3


def test_a_sync_that_somebody_asks_for_compares_the_whole_file(world: World, sink: Scripted, slices: Slices) -> None:
    """Also after a look at the same file: a look sees no changes in place."""
    world.database.insert(result_id=100)
    world.database.update(3, throughput_items_per_second=1.0)
    world.sync(kind="schedule")
    assert sink.sent == ["100"]
    assert slices.count == 0
    assert world.sync().synced == 1
    assert sink.sent == ["100", "3"]
    assert slices.count == 1


def test_a_change_in_place_is_found_by_the_next_comparison(world: World, sink: Scripted, slices: Slices) -> None:
    """Which is due after an hour, even if the file did not change meanwhile."""
    world.database.update(3, throughput_items_per_second=1.0)
    assert world.sync(kind="schedule").synced == 0
    world.clock.advance(HOUR_S - 1)
    assert world.sync(kind="schedule").run_id is None
    world.clock.advance(1)
    assert world.sync(kind="schedule").synced == 1
    assert world.state_of(3) == ["delivered", "superseded"]
    assert slices.count == 1


def test_every_cycle_compares_where_that_is_configured(world: World, slices: Slices) -> None:
    """`full_comparison_minutes: 0`."""
    world.database.insert(result_id=100)
    assert world.sync(kind="schedule", policy={"compare_every_s": 0.0}).synced == 1
    assert slices.count == 1


def test_a_result_that_is_gone_makes_it_a_comparison(world: World, slices: Slices) -> None:
    """Also when as many came as went."""
    world.database.delete(3)
    world.database.insert(result_id=100)
    world.sync(kind="schedule")
    assert slices.count == 1
    assert (world.accounting.total, world.accounting.withdrawn, world.accounting.delivered) == (ROWS, 1, ROWS)


def test_a_result_that_comes_back_makes_it_a_comparison(world: World, sink: Scripted, slices: Slices) -> None:
    """It was delivered once, and is not sent again."""
    removed = world.database.execute("SELECT * FROM performance_results WHERE result_id = 3")[0]
    world.database.delete(3)
    world.sync(kind="schedule")
    world.database.execute(f"INSERT INTO performance_results VALUES ({', '.join('?' * len(removed))})", removed)
    world.sync(kind="schedule")
    assert slices.count == 2
    assert sink.sent == []
    assert (world.accounting.withdrawn, world.accounting.delivered) == (0, ROWS)


def test_what_is_not_sent_on_purpose_is_counted_once(world: World, sink: Scripted, slices: Slices) -> None:
    """And not looked at again."""
    world.database.insert(result_id=100, metrics='{"is_simulated": true}')
    world.database.insert(result_id=101)
    world.sync(kind="schedule")
    world.database.insert(result_id=102)
    world.sync(kind="schedule")
    assert sink.sent == ["101", "102"]
    assert world.accounting.skipped_by_reason == {"simulated": 1}
    assert slices.count == 0
    found, coverage = world.accounting, world.ledger.accounts.coverage(1)
    world.sync()
    assert world.accounting == replace(found, compared_at=world.accounting.compared_at), "a comparison counts the same"
    assert world.ledger.accounts.coverage(1) == coverage


def test_what_is_due_again_is_sent_with_what_is_new(world: World, sink: Scripted, slices: Slices) -> None:
    """Oldest first; what is not due yet waits."""
    sink.fate = lambda result_id: FAILED if result_id == "100" else None
    world.database.insert(result_id=100)
    assert world.sync(kind="schedule").failed == 1
    sink.fate = lambda result_id: None
    world.database.insert(result_id=101)
    assert world.sync(kind="schedule").synced == 1
    world.clock.advance(60)
    assert world.sync(kind="schedule").synced == 1
    assert sink.sent == ["100", "101", "100"]
    assert slices.count == 0
    assert world.states() == {"delivered": ROWS + 2}


def test_what_was_refused_comes_back_by_retry(world: World, sink: Scripted, slices: Slices) -> None:
    """And one that changed meanwhile is left for the comparison."""
    sink.fate = lambda result_id: REFUSED
    for result_id in (100, 101):
        world.database.insert(result_id=result_id)
    assert world.sync(kind="schedule").rejected == 2
    sink.fate = lambda result_id: None
    world.ledger.deliveries.retry(1, rejected=True)
    world.database.update(101, throughput_items_per_second=1.0)
    assert world.sync(kind="schedule").synced == 1
    assert world.state_of(100) == ["delivered"]
    assert world.state_of(101) == ["pending"]
    assert slices.count == 0
    world.sync()
    assert world.state_of(101) == ["delivered", "superseded"]


def test_a_limit_that_left_something_makes_it_a_comparison(world: World, sink: Scripted, slices: Slices) -> None:
    """What was left has no row, so its id does not tell that it waits."""
    for result_id in (100, 101, 102):
        world.database.insert(result_id=result_id)
    assert world.sync(kind="schedule", limit=2).synced == 2
    assert slices.count == 0
    assert world.accounting.pending == 1
    assert world.sync(kind="schedule", limit=2).synced == 1
    assert slices.count == 1


def test_another_look_back_makes_it_a_comparison(world: World, slices: Slices) -> None:
    """What it counts depends on it."""
    world.database.insert(result_id=100)
    world.sync(kind="schedule", days=30)
    assert slices.count == 1


@pytest.mark.parametrize("why", ["ids of another type", "nobody knows what was seen", "more is due than is looked at"])
def test_where_ids_do_not_tell_it_is_a_comparison(
    world: World, sink: Scripted, slices: Slices, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """And nothing is sent twice for it."""
    if why == "ids of another type":
        wider = "SELECT * REPLACE (CAST(result_id AS BIGINT) AS result_id) FROM performance_results"
        world.database.execute("DROP TABLE performance_batch_results")
        world.database.execute(f"CREATE OR REPLACE TABLE performance_results AS {wider}")
    elif why == "nobody knows what was seen":
        with world.ledger._store.writing() as connection:
            connection.execute(text("DELETE FROM seen_ids"))  # as in a ledger of before there were any
    else:
        monkeypatch.setattr("benchbridge_plugin.sync._MOST_LOOKED_AT", 2)
        world.ledger.deliveries.reopen(Holder(world.ledger.leases.acquire(world.name, "test", 60.0), 60.0, 1), 1, ["1", "2"])
        world.clock.advance(61)
    world.database.insert(result_id=100)
    world.sync(kind="schedule")
    assert slices.count == 1
    assert sorted(sink.sent) == (["1", "100", "2"] if why.startswith("more") else ["100"])
    assert world.accounting.delivered == ROWS + 1


def test_counts_that_are_out_of_step_are_noticed_and_corrected(world: World, sink: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """An accounting reads counts that are kept; each comparison counts the rows, and says nothing where they agree."""
    sink.fate = lambda result_id: {"50": REFUSED, "51": FAILED}.get(result_id)
    for result_id in (50, 51):
        world.database.insert(result_id=result_id, metrics="{}")  # of another quality
    world.sync()
    world.database.insert(result_id=99)
    world.sync()
    assert "out of step" not in caplog.text
    with world.ledger._store.writing() as connection:
        connection.execute(text(f"UPDATE standings SET results = results - 1 WHERE state = {int(State.DELIVERED)}"))
    assert not world.accounting.balanced
    world.database.insert(result_id=100)
    with caplog.at_level(logging.ERROR):
        world.sync()
    assert "out of step" in caplog.text
    assert world.accounting.delivered == ROWS + 2


@pytest.mark.parametrize("known", [[1, 2, 3], [3, 1, 2], [2], []], ids=str)
@pytest.mark.parametrize(
    "found", [[1, 2, 3], [1, 2, 3, 4, 5], [3, 1, 2, 9], [9, 1, 2, 3], [1, 2], [1, 2, 3, 3], [1, 1, 2, 3], [2, 7, 2], [4]], ids=str
)
def test_what_is_new_is_told_the_same_in_whatever_order_the_file_has_it(known: list[int], found: list[int]) -> None:
    """By the plain definition: new is what was not seen, and everything seen is there once."""
    new = [number for number in found if number not in known]
    told = new if sorted(set(found) & set(known)) == sorted(number for number in found if number in known) == sorted(known) else None
    answer = grown._new_among(pa.chunked_array([pa.array(found[:1]), pa.array(found[1:], pa.int64())]), pa.array(known, pa.int64()))
    assert (None if answer is None else answer.to_pylist()) == told


def test_what_waits_is_sent_at_its_time_and_not_before(world: World, sink: Scripted, slices: Slices) -> None:
    sink.fate = lambda result_id: FAILED if result_id == "100" else None
    world.database.insert(result_id=100)
    policy = {"retry_base_s": 30.0}
    assert world.sync(kind="schedule", policy=policy).failed == 1
    sink.fate = lambda result_id: None
    world.clock.advance(29.9)
    world.database.insert(result_id=101)
    assert world.sync(kind="schedule", policy=policy).synced == 1
    assert sink.sent == ["100", "101"]
    (waiting,) = (row for row in world.rows() if row["result_id"] == "100")
    world.clock.time = waiting["next_attempt_at"]
    world.database.insert(result_id=102)
    assert world.sync(kind="schedule", policy=policy).synced == 2
    assert sorted(sink.sent[2:]) == ["100", "102"]
    assert slices.count == 0


def test_what_was_written_by_a_clock_far_ahead_does_not_wait_for_it(world: World, sink: Scripted, slices: Slices) -> None:
    """The clock was put right; nobody knows when the time would be."""
    sink.fate = lambda result_id: FAILED if result_id == "100" else None
    world.database.insert(result_id=100)
    world.clock.advance(86_400)
    assert world.sync(kind="schedule", policy={"compare_every_s": 1e9}).failed == 1
    sink.fate = lambda result_id: None
    world.clock.advance(-80_000)
    world.database.insert(result_id=101)
    assert world.sync(kind="schedule", policy={"compare_every_s": 1e9}).synced == 2
    assert slices.count == 0
