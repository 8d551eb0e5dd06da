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
