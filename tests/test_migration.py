"""What the original bridge delivered is taken over and not sent again: docs/tasks/migrate.md."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from benchbridge_plugin.config import BridgeConfig, from_document
from benchbridge_plugin.model import MEASUREMENT_FIELDS, SinkProfile
from tests.benchmark_files import sorted_ids
from tests.conftest import MakeSink, World, fill
from tests.kit.base_contract import BaseContractServer

PAGE = Path(__file__).parents[1] / "docs/tasks/migrate.md"


def delivered_by_the_original(world: World, server: BaseContractServer, count: int) -> None:
    """The first results stand at the API as the original posted them, without a key; the file says so in a column of its own."""
    layout, ids = world.source.ids()
    (rows,) = world.source.slices(layout, sorted_ids(ids)[:count])
    for sent in world.mapper.measure(rows, SinkProfile()).select(list(MEASUREMENT_FIELDS)).to_pylist():
        names = (
            "model_name",
            "hardware_platform",
            "batch_size",
            "sequence_length",
            "precision",
            "mode",
            "throughput",
            "latency",
            "memory_usage",
        )
        server.store.insert(**{name: sent[name] for name in names}, measurement_source="benchmark")
    world.database.execute("ALTER TABLE performance_results ADD COLUMN sync_id VARCHAR")
    world.database.execute("UPDATE performance_results SET sync_id = 'measurement-' || result_id WHERE result_id <= ?", [count])


def test_what_the_original_delivered_is_adopted_and_the_rest_is_sent(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """By all that was sent, although we send with a key; in the first sync also without being asked to."""
    fill(world, 6)
    delivered_by_the_original(world, server, 4)
    asked = world.sync(http_sink(server.url), adopt=True)
    assert (asked.adopted, asked.synced, asked.unknown) == (4, 0, 0)
    assert world.sync(http_sink(server.url)).synced == 2
    assert len(server.rows) == 6


def test_a_mark_in_the_file_is_not_believed(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """A result with a sync_id that the API does not have is sent: nothing is lost because somebody wrote a mark."""
    fill(world, 3)
    world.database.execute("ALTER TABLE performance_results ADD COLUMN sync_id VARCHAR DEFAULT 'measurement-1'")
    assert world.sync(http_sink(server.url), adopt=True).adopted == 0
    assert world.sync(http_sink(server.url)).synced == 3


def test_a_column_with_marks_changes_no_result(world: World, server: BaseContractServer, http_sink: MakeSink) -> None:
    """What the original writes into the file later makes nothing look new."""
    fill(world, 3)
    world.sync(http_sink(server.url))
    world.database.execute("ALTER TABLE performance_results ADD COLUMN sync_id VARCHAR DEFAULT 'measurement-1'")
    assert world.sync(http_sink(server.url)).considered == 0
    assert len(server.rows) == 3


def test_the_config_file_of_the_original_works_as_it_is() -> None:
    """The one that the page shows, with every key of it."""
    document = json.loads(re.findall(r"<<'JSON'\n(.*?)\nJSON", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0])
    config = from_document(document, where="the original's")
    section = document["benchmark_predictive_performance"]
    assert set(section) <= {item.name for item in fields(BridgeConfig)}
    assert (config.sync_limit, config.benchmark_db_path, config.logging.level) == (100, section["benchmark_db_path"], "INFO")
