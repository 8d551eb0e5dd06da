"""The dry run tells by examples what a sync would do, and keeps no more than it shows."""

from __future__ import annotations

import json

import pytest

from benchbridge_plugin.mapping import REASONS
from benchbridge_plugin.model import MEASUREMENT_FIELDS, RunSummary, SyncRequest
from benchbridge_plugin.provenance import FIELD_ROLES, REASON_FIELDS
from benchbridge_plugin.rehearsal import Changed, Rehearsal
from tests.conftest import World, fill
from tests.scripted import Scripted


@pytest.fixture(autouse=True)
def scripted(world: World) -> Scripted:
    world.sink = sink = Scripted()
    return sink


def rehearsed(world: World, **request: object) -> Rehearsal:
    found: RunSummary = world.engine().run(SyncRequest(dry_run=True, **request))  # type: ignore[arg-type]
    assert isinstance(found, Rehearsal)
    return found


def rewrite(world: World, results: str) -> None:
    """The table of results made anew from this statement, without its constraints."""
    for statement in (
        f"CREATE TABLE kept AS {results}",
        "DROP TABLE IF EXISTS performance_batch_results",
        "DROP TABLE performance_results",
        "ALTER TABLE kept RENAME TO performance_results",
    ):
        world.database.execute(statement)


def test_an_example_shows_from_which_column_each_field_comes(world: World) -> None:
    """With what stands there and what would be sent; a length that only the extras state comes from them."""
    fill(world, 5)
    world.database.update(1, metrics='{"sequence_length": 77}', precision="half")
    found = rehearsed(world)
    assert [example.result_id for example in found.examples] == ["1", "2", "3"]
    lines = {line["field"]: line for line in found.examples[0].mapping}
    assert list(lines) == list(FIELD_ROLES)
    assert (lines["precision"]["column"], lines["precision"]["value"], lines["precision"]["sent"]) == (
        "performance_results.precision",
        "half",
        "fp16",
    )
    assert (lines["sequence_length"]["column"], lines["sequence_length"]["sent"]) == ("performance_results.metrics", 77)
    assert lines["latency"]["column"] == "performance_results.average_latency_ms"


def test_each_reason_of_refusal_has_one_example_with_the_offending_value(world: World) -> None:
    """However many results it refuses."""
    fill(world, 9)
    world.database.execute("UPDATE performance_results SET precision = 'int2' WHERE result_id IN (2, 5, 9)")
    world.database.execute("UPDATE performance_results SET throughput_items_per_second = -1 WHERE result_id = 4")
    world.database.execute("UPDATE performance_results SET batch_size = 0 WHERE result_id = 6")
    found = {one.reason_code: one for one in rehearsed(world).refused_examples}
    assert set(found) == {"precision_unsupported", "figure_negative", "batch_size_invalid"}
    assert found["precision_unsupported"].values == {"performance_results.precision": "int2"}
    assert found["figure_negative"].values["performance_results.throughput_items_per_second"] == -1
    assert (found["batch_size_invalid"].result_id, found["batch_size_invalid"].values) == ("6", {"performance_results.batch_size": 0})


def test_a_figure_that_is_no_number_is_shown_as_it_stands_there(world: World) -> None:
    """It is read as NaN, which stands nowhere; a NaN of the file is one."""
    fill(world, 3)
    words = {
        "throughput_items_per_second": "CASE result_id WHEN 2 THEN 'n/a' ELSE throughput_items_per_second::VARCHAR END",
        "average_latency_ms": "CASE result_id WHEN 2 THEN '12 ms' ELSE average_latency_ms::VARCHAR END",
        "memory_peak_mb": "CASE result_id WHEN 2 THEN 'nan'::DOUBLE ELSE memory_peak_mb END",
    }
    rewrite(world, f"SELECT * REPLACE ({', '.join(f'{sql} AS {column}' for column, sql in words.items())}) FROM performance_results")
    (refused,) = rehearsed(world).refused_examples
    assert (refused.reason_code, refused.result_id) == ("figure_missing", "2")
    assert refused.values == {
        "performance_results.throughput_items_per_second": "n/a",
        "performance_results.average_latency_ms": "12 ms",
        "performance_results.memory_peak_mb": "nan",
    }
    (kept, _) = rehearsed(world).examples
    assert {line["field"]: line["value"] for line in kept.mapping}["latency"] == pytest.approx(kept.mapping[8]["sent"])


@pytest.mark.parametrize("reference", ["NULL", "77"])
def test_a_name_that_is_not_found_is_shown_with_what_refers_to_it(world: World, reference: str) -> None:
    """Whether nothing does, or it leads nowhere."""
    fill(world, 2)
    rewrite(
        world,
        f"SELECT * REPLACE (CASE result_id WHEN 1 THEN {reference} ELSE model_id END AS model_id, "
        f"CASE result_id WHEN 2 THEN {reference} ELSE hardware_id END AS hardware_id) FROM performance_results",
    )
    found = {one.reason_code: one.values for one in rehearsed(world).refused_examples}
    said = None if reference == "NULL" else reference
    assert found == {
        "model_missing": {"models.model_name": None, "performance_results.model_id": said},
        "hardware_missing": {"hardware_platforms.hardware_type": None, "performance_results.hardware_id": said},
    }


def test_what_changed_since_it_was_delivered_is_told(world: World) -> None:
    """It would be sent anew; a result that stayed as it was would not."""
    fill(world, 4)
    world.sync()
    world.database.execute("UPDATE performance_results SET average_latency_ms = 9.5 WHERE result_id = 3")
    found = rehearsed(world)
    assert (found.synced, found.changed, found.changed_examples) == (1, 1, [Changed("3", "delivered")])
    assert "1 changed" in found.message


def test_a_limit_bounds_the_examples_too(world: World) -> None:
    """What would not be sent is no example."""
    fill(world, 5)
    assert [example.result_id for example in rehearsed(world, limit=1).examples] == ["1"]


def test_the_examples_are_json(world: World) -> None:
    """Also where a figure is NaN, which JSON does not have."""
    fill(world, 2)
    world.database.execute("UPDATE performance_results SET memory_peak_mb = 'nan' WHERE result_id = 1")
    shown = json.loads(json.dumps(rehearsed(world).as_dict(), allow_nan=False))
    assert shown["examples"][0]["mapping"][9] == {
        "field": "memory_usage",
        "column": "performance_results.memory_peak_mb",
        "value": "nan",
        "sent": None,
    }


def test_every_reason_and_every_field_can_be_shown() -> None:
    """A new reason needs the fields that it is about, and a new field the roles that it is made of."""
    assert set(REASON_FIELDS) == set(REASONS)
    made_here = {"source", "source_ref", "metadata", "idempotency_key"}
    assert set(FIELD_ROLES) == set(MEASUREMENT_FIELDS) - made_here
