"""The file against the ledger: what is new, changed, gone or back, and in which order it is sent. Through whole syncs into a real service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin.comparison import Plan, compare, rows
from benchbridge_plugin.model import State, SyncRequest
from benchbridge_plugin.sinks.service import ServiceSink
from tests.conftest import Clock, World
from tests.kit.layouts import build

DAY_S = 86_400


@pytest.fixture
def world(world: World, service: PredictivePerformance, clock: Clock) -> World:
    world.sink = ServiceSink(service)
    clock.time = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
    world.database  # noqa: B018 - makes the file
    return world


def insert(world: World, result_id: int, *, days_ago: float = 1.0, **values: Any) -> None:
    when = datetime.fromtimestamp(world.clock(), UTC) - timedelta(days=days_ago)
    world.database.insert(result_id=result_id, created_at=when, **values)


def plan(world: World, **options: Any) -> Plan:
    source_id = world.ledger.runs.source_id(world.name)
    return compare(world.source, world.mapper, world.ledger, source_id, **{"cutoff_us": None, "scope": "days=0", **options})


def order(world: World, **options: Any) -> list[str]:
    return list(plan(world, **options).candidates.column("result_id").to_pylist())


# -- new, changed, gone, back -----------------------------------------------------------------------------------------------------------


def test_new_results_are_found_and_known_ones_are_not_sent_again(world: World, service: PredictivePerformance) -> None:
    """Also when only one of many is new."""
    for result_id in (1, 2, 3):
        insert(world, result_id)
    assert world.sync().synced == 3
    insert(world, 4)
    assert world.sync().synced == 1
    assert service.recorded == 4
    assert world.accounting.delivered == world.accounting.total == 4


def test_a_result_committed_late_with_a_lower_id_is_found(world: World) -> None:
    """Ids do not tell what is new: a transaction that began earlier may commit later."""
    insert(world, 10)
    world.sync()
    insert(world, 5)
    insert(world, 1)
    assert world.sync().synced == 2
    assert order(world) == []


def test_a_changed_result_is_sent_as_it_is_now_and_the_old_content_stays_on_record(world: World, service: PredictivePerformance) -> None:
    """Two measurements of one result: each content was true at its time, and only the new one counts."""
    insert(world, 1)
    world.sync()
    world.database.update(1, throughput_items_per_second=900.0)
    assert world.sync().synced == 1
    assert world.state_of(1) == ["delivered", "superseded"]
    assert (world.accounting.delivered, world.accounting.superseded) == (1, 1)
    assert sorted(row["throughput"] for row in service.list_measurements()) == [800.0, 900.0]


def test_a_result_that_changes_back_is_not_sent_a_third_time(world: World, service: PredictivePerformance) -> None:
    """A, B, A, B: two contents, two measurements."""
    insert(world, 1)
    world.sync()
    for figure in (900.0, 800.0, 900.0):
        world.database.update(1, throughput_items_per_second=figure)
        world.sync()
    assert service.recorded == 2
    assert sorted(world.states().items()) == [("delivered", 1), ("superseded", 1)]


def test_a_deleted_result_is_withdrawn_and_counts_again_when_it_is_back(world: World, service: PredictivePerformance) -> None:
    """Its measurement stays where it is, and coming back sends nothing."""
    for result_id in (1, 2):
        insert(world, result_id)
    world.sync()
    removed = world.database.execute("SELECT * FROM performance_results WHERE result_id = 2")[0]
    world.database.delete(2)
    world.sync()
    assert (world.accounting.total, world.accounting.delivered, world.accounting.withdrawn) == (1, 1, 1)
    world.database.execute(f"INSERT INTO performance_results VALUES ({', '.join('?' * len(removed))})", removed)
    world.sync()
    assert (world.accounting.total, world.accounting.delivered, world.accounting.withdrawn) == (2, 2, 0)
    assert service.recorded == 2


def test_a_result_that_waited_and_comes_back_is_sent_in_the_same_run(world: World, service: PredictivePerformance) -> None:
    """Brought back with `retry`, then gone, then there again."""
    insert(world, 1, hardware="tpu")
    insert(world, 2)
    world.sync()
    removed = world.database.execute("SELECT * FROM performance_results WHERE result_id = 1")[0]
    assert world.ledger.deliveries.retry(1, rejected=True) == 1
    world.database.delete(1)
    world.sync()
    assert world.state_of(1) == ["withdrawn"]
    world.database.execute(f"INSERT INTO performance_results VALUES ({', '.join('?' * len(removed))})", removed)
    assert world.sync().rejected == 1  # it was taken up at once, and refused as before
    assert world.state_of(1) == ["rejected"]


def test_an_emptied_file_withdraws_everything_and_a_new_file_of_the_same_name_starts_anew(
    world: World, service: PredictivePerformance
) -> None:
    """Ids that are used again for other results are other contents."""
    for result_id in (1, 2):
        insert(world, result_id)
    world.sync()
    world.path.unlink()
    world.database  # noqa: B018
    world.sync()
    assert (world.accounting.total, world.accounting.withdrawn) == (0, 2)
    insert(world, 1, model="vit")
    world.sync()
    assert world.state_of(1) == ["delivered", "withdrawn"]
    assert service.recorded == 3


# -- ids that are no keys ---------------------------------------------------------------------------------------------------------------


def without_key(world: World, id_type: str, ids: list[object]) -> None:
    with duckdb.connect(str(world.path)) as connection:
        connection.execute("DROP TABLE IF EXISTS performance_batch_results")
        connection.execute("DROP TABLE IF EXISTS performance_results")
        connection.execute(
            f"CREATE TABLE performance_results (result_id {id_type}, model_name VARCHAR, hardware_type VARCHAR, precision VARCHAR, "
            "batch_size INTEGER, throughput_items_per_second DOUBLE)"
        )
        for place, result_id in enumerate(ids):
            connection.execute("INSERT INTO performance_results VALUES (?, 'gpt2', 'cuda', 'fp16', 8, ?)", [result_id, 100.0 + place])


def test_repeated_and_missing_ids_are_skipped_counted_and_hold_up_nobody(world: World, service: PredictivePerformance) -> None:
    """A table without a primary key may hold anything; which of two rows is meant cannot be told."""
    without_key(world, "INTEGER", [1, 2, 2, None, 3, None, 2])
    assert world.sync().synced == 2
    assert world.accounting.skipped_by_reason == {"result_id_missing": 2, "result_id_repeated": 3}
    assert world.accounting.total == 7
    assert service.recorded == 2


def test_texts_that_no_database_keeps_hold_up_nobody(world: World, service: PredictivePerformance) -> None:
    """PostgreSQL takes no null character: such an id counts as missing, such a name is refused, and the others are sent."""
    without_key(world, "VARCHAR", ["a", "b\0", "c"])
    world.database.execute("UPDATE performance_results SET model_name = 'gpt' || chr(0) WHERE result_id = 'c'")
    for _ in range(2):
        world.sync()
        assert world.accounting.skipped_by_reason == {"result_id_missing": 1}
        assert [(row["result_id"], row["code"]) for row in world.rows()] == [("a", None), ("c", "model_invalid")]
    assert service.recorded == 1


def test_a_delivered_result_whose_id_is_repeated_later_is_withdrawn_until_it_is_alone_again(
    world: World, service: PredictivePerformance
) -> None:
    """It can no longer be said which row was delivered."""
    without_key(world, "INTEGER", [1, 2])
    world.sync()
    world.database.execute("INSERT INTO performance_results VALUES (2, 'gpt2', 'cuda', 'fp16', 8, 999.0)")
    world.sync()
    assert world.accounting.skipped_by_reason == {"result_id_repeated": 2}
    assert world.state_of(2) == ["withdrawn"]
    world.database.execute("DELETE FROM performance_results WHERE throughput_items_per_second = 999.0")
    world.sync()
    assert world.state_of(2) == ["delivered"]
    assert service.recorded == 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        ("DOUBLE", [1.0, 2.0, 2.0, 10.0, 1e20]),
        ("VARCHAR", ["b", "a", "a", "ä", "10"]),
        ("BIGINT", [2**62, -5, -5, 0, 7]),
        ("DECIMAL(10, 2)", [1, 2, 2, 3, 4]),
        ("DATE", ["2026-01-01", "2026-01-02", "2026-01-02", "2026-01-03", "2026-01-04"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ids_of_any_type_are_compared_as_the_file_spells_them(
    world: World, service: PredictivePerformance, id_type: str, ids: list[object]
) -> None:
    """A table made from a data frame often has floating ids: known ones are recognised, gone ones are found, repeated ones are skipped."""
    without_key(world, id_type, ids)
    assert world.sync().synced == 3
    world.database.execute("INSERT INTO performance_results SELECT * FROM performance_results WHERE throughput_items_per_second = 101.0")
    assert world.sync().synced == 0
    world.database.execute("DELETE FROM performance_results WHERE throughput_items_per_second = 100.0")
    assert world.sync().synced == 0
    assert (world.accounting.delivered, world.accounting.withdrawn, world.accounting.skipped) == (2, 1, 3)
    assert service.recorded == 3


def test_a_result_that_is_written_between_two_reads_of_a_comparison_is_no_harm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids are read first and the rows after; a row that repeats an id just then is seen and skipped."""
    without_key(world, "INTEGER", [1, 2, 4])
    ids = type(world.source).ids_and_few

    def then_write(source: Any, *arguments: Any, **options: Any) -> Any:
        found = ids(source, *arguments, **options)
        world.database.execute(
            "INSERT INTO performance_results VALUES (2, 'gpt2', 'cuda', 'fp16', 8, 1.0), (3, 'gpt2', 'cuda', 'fp16', 8, 1.0)"
        )
        monkeypatch.undo()
        return found

    monkeypatch.setattr(rows, "FEW", 0)
    monkeypatch.setattr(type(world.source), "ids_and_few", then_write)
    assert world.sync().synced == 3
    assert world.accounting.skipped_by_reason == {"result_id_repeated": 2}


# -- not sent on purpose ----------------------------------------------------------------------------------------------------------------


def test_simulated_and_failed_results_are_skipped_by_reason(world: World) -> None:
    """Each is counted and none has a row in the ledger."""
    insert(world, 1)
    insert(world, 2, metrics='{"is_simulated": true}')
    insert(world, 3, run="bad", success=False)
    assert world.sync().synced == 1
    assert world.accounting.skipped_by_reason == {"simulated": 1, "failed_run": 1}
    assert len(world.rows()) == 1


def test_a_skipped_result_is_sent_once_its_reason_is_gone(world: World) -> None:
    """A run that is marked as successful after all."""
    insert(world, 1, run="bad", success=False)
    world.sync()
    world.database.execute("UPDATE test_runs SET success = true")
    assert world.sync().synced == 1
    assert world.accounting.skipped == 0


def test_a_delivered_result_whose_run_fails_later_stays_delivered(world: World) -> None:
    """It is there; nothing can be taken back, and nothing is hidden."""
    insert(world, 1)
    world.sync()
    world.database.execute("UPDATE test_runs SET success = false")
    world.sync()
    assert world.state_of(1) == ["delivered"]
    assert (world.accounting.delivered, world.accounting.skipped) == (1, 0)


def test_a_refused_result_whose_run_fails_later_is_skipped_and_comes_back_with_it(world: World) -> None:
    """What was not delivered is not going to be."""
    insert(world, 1, hardware="tpu")
    world.sync()
    world.database.execute("UPDATE test_runs SET success = false")
    world.sync()
    assert world.accounting.skipped_by_reason == {"failed_run": 1}
    assert world.accounting.rejected == 0
    world.database.execute("UPDATE test_runs SET success = true")
    world.sync()
    assert world.state_of(1) == ["rejected"]


def test_the_look_back_skips_what_is_older_and_what_becomes_older(world: World, clock: Clock) -> None:
    """It moves with the clock, and widening it takes older results up."""
    insert(world, 1, days_ago=40)
    insert(world, 2, days_ago=29)
    insert(world, 3, days_ago=1)
    assert world.sync(days=30, limit=1).synced == 1
    assert world.accounting.skipped_by_reason == {"older_than_lookback": 1}
    assert world.state_of(2) == ["delivered"]  # the oldest within the look-back comes first
    clock.advance(35 * DAY_S)
    assert world.sync(days=30).synced == 0
    assert world.accounting.skipped_by_reason == {"older_than_lookback": 2}
    assert world.sync(days=0).synced == 2
    assert world.accounting.skipped == 0


def test_a_result_without_a_time_is_never_too_old(world: World) -> None:
    """Nobody said when it was measured."""
    world.database.insert(result_id=1, created_at=None)
    assert world.sync(days=1).synced == 1


def test_a_result_taken_up_before_it_became_too_old_is_finished(world: World, clock: Clock) -> None:
    """A retry is not lost to the look-back."""
    insert(world, 1, hardware="tpu", days_ago=20)
    world.sync(days=30)
    clock.advance(20 * DAY_S)
    world.ledger.deliveries.retry(1, rejected=True)
    assert world.sync(days=30).rejected == 1


# -- which, and in which order ----------------------------------------------------------------------------------------------------------


def test_priority_models_come_first_then_the_oldest(world: World) -> None:
    """And what has no time comes last."""
    world.follow(priority_models=("vit", "t5"))
    insert(world, 1, days_ago=1)
    insert(world, 2, days_ago=5)
    insert(world, 3, days_ago=2, model="vit")
    insert(world, 4, days_ago=3, model="t5")
    world.database.insert(result_id=5, created_at=None)
    assert order(world) == ["4", "3", "2", "1", "5"]


def test_a_model_filter_limits_what_is_sent_and_not_what_is_counted(world: World) -> None:
    """The others are pending."""
    for result_id in range(6):
        insert(world, result_id, model="vit" if result_id % 2 else "gpt2")
    assert world.sync(model="vit").synced == 3
    assert (world.accounting.delivered, world.accounting.pending, world.accounting.total) == (3, 3, 6)
    assert world.sync(model="no such model").synced == 0
    assert world.sync().synced == 3


def test_comparing_changes_nothing(world: World) -> None:
    """It may be done at any time, by anybody."""
    for result_id in range(3):
        insert(world, result_id)
    world.sync()
    world.database.delete(1)
    world.database.update(2, batch_size=16)
    before = (world.rows(), world.accounting)
    found = plan(world)
    assert (found.withdrawn, len(found.superseded), order(world)) == (["1"], 1, ["2"])
    assert (world.rows(), world.accounting) == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layout", ["V1", "V4", "V7", "V9", "V12"])
def test_every_layout_is_compared_in_slices_and_found_unchanged_afterwards(
    world: World, service: PredictivePerformance, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is recognised by its content, slice by slice."""
    world.path.unlink()
    world.follow(default_precision="fp16")  # V7 and V9 state none
    world.id_column = {"V1": "result_id", "V4": "result_id"}.get(layout, "id")
    count = build(layout, world.path, limit=2_300)
    monkeypatch.setattr(world.source, "_slice", 700)
    first = world.sync()
    assert first.synced + first.rejected + world.accounting.skipped == count
    assert service.recorded == first.synced > 0
    world.database.execute("CREATE TABLE touched (x INTEGER)")  # the signature changes, the results do not
    again = plan(world)
    assert (again.candidates.num_rows, again.superseded, again.withdrawn, again.returned) == (0, [], [], [])
    assert again.comparison.total == count


def test_the_request_says_how_far_back_and_the_plan_remembers(world: World) -> None:
    """The scope is part of what the next run checks before it does nothing."""
    insert(world, 1)
    world.engine().run(SyncRequest(days=7))
    assert world.ledger.accounts.compared(1).scope == "days=7"
    assert world.rows()[0]["state"] == State.DELIVERED
