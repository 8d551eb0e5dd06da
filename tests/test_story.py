"""What is told of one result."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, story
from benchbridge_plugin.bridge import HostServices
from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.story import Field, Story
from tests.kit.base_contract import BaseContractServer, Fault
from tests.kit.layouts import BenchmarkDatabase


@pytest.fixture
def database(tmp_path: Path) -> BenchmarkDatabase:
    return BenchmarkDatabase(tmp_path / "bench.duckdb")


def bridge_to(database: BenchmarkDatabase, server: BaseContractServer, **settings: Any) -> BenchmarkPredictivePerformanceBridge:
    return BenchmarkPredictivePerformanceBridge(str(database.path), server.url, sync_days_lookback=0, settle_after_s=0, **settings)


def field(told: Story, name: str) -> Field:
    return next(item for item in told.fields if item.name == name)


def test_each_field_says_what_it_was_made_of(database: BenchmarkDatabase) -> None:
    """Columns, aliases of both kinds, assumptions, what stands in the extras, and units."""
    number = database.insert(hardware=" GPU ", precision="Half", metrics='{"other": 1}', test_case="pre-training", memory=float("nan"))
    other = database.insert(hardware="h100", precision=None, sequence_length=77)
    with BaseContractServer() as server, bridge_to(database, server, hardware_aliases={"H100": "cuda"}, default_precision="fp16") as bridge:
        bridge.sync_recent_results()
        told = bridge.story(str(number))
        assert (field(told, "hardware_platform").value, field(told, "hardware_platform").said) == ("cuda", " GPU ")
        assert field(told, "hardware_platform").why == "By an alias known to benchbridge: gpu means cuda."
        assert field(told, "precision").why == "By an alias known to benchbridge: half means fp16."
        assert field(told, "sequence_length").why == "Assumed: the row does not say, so it is default_sequence_length."
        assert field(told, "mode").why == "The test case names training."
        assert field(told, "memory_usage").why == "It is no finite number and was left out."
        assert (field(told, "latency").unit, field(told, "latency").why) == ("ms", "As it stands in the column.")
        assert field(told, "measured_at").why == "As the row says, read in source_timezone."
        told = bridge.story(str(other))
        assert field(told, "hardware_platform").why == "By an alias of the configuration: h100 means cuda."
        assert field(told, "precision").why == "Assumed: the row does not say, so it is default_precision."
        assert (field(told, "sequence_length").value, "metrics" in field(told, "sequence_length").why) == (77, True)


def test_a_delivered_result_is_found_at_the_sink_and_one_that_went_missing_is_told(database: BenchmarkDatabase) -> None:
    """The ledger says delivered; whether the API agrees is asked anew."""
    number = database.insert()
    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        bridge.sync_recent_results()
        told = bridge.story(str(number))
        (content,), (said,) = told.contents, told.sink_says
        assert (content["state"], content["attempts"], said["answer"], said["agrees"]) == ("delivered", 1, "stored", True)
        assert content["content_hash"] == told.content_hash
    with BaseContractServer() as another, bridge_to(database, another) as bridge:
        (said,) = bridge.story(str(number)).sink_says
        assert (said["answer"], said["agrees"]) == ("absent", False)


def test_every_content_of_a_changed_result_is_told(database: BenchmarkDatabase) -> None:
    """The old one is superseded and stays at the sink; the one of the row as it is now comes first."""
    number = database.insert(throughput=800.0, latency=10.0)
    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        bridge.sync_recent_results()
        database.execute(f"UPDATE performance_results SET throughput_items_per_second = 799 WHERE result_id = {number}")
        bridge.sync_recent_results()
        told = bridge.story(str(number))
        assert [(content["state"], content["prior_state"]) for content in told.contents] == [
            ("delivered", None),
            ("superseded", "delivered"),
        ]
        assert [said["agrees"] for said in told.sink_says] == [True, True]


def test_a_refused_result_was_not_sent_and_nobody_is_asked(database: BenchmarkDatabase) -> None:
    """Its reason is in the ledger."""
    number = database.insert(hardware="tpu")
    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        bridge.sync_recent_results()
        asked = sum(server.requests.values())
        told = bridge.story(str(number))
        assert (told.contents[0]["state"], told.contents[0]["reason_code"], told.sink_says) == ("rejected", "hardware_unsupported", ())
        assert sum(server.requests.values()) == asked


def test_what_nobody_knows_is_not_found(database: BenchmarkDatabase) -> None:
    """An id that is no number of the file is no error either."""
    database.insert()
    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        bridge.sync_recent_results()
        assert [bridge.story(unknown).found for unknown in ("999", "no such", "", "1")] == [False, False, False, True]


def test_a_row_that_is_gone_and_a_sink_that_is_away_are_told(database: BenchmarkDatabase) -> None:
    """The rest of the story is there."""
    number = database.insert()
    database.insert()
    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        bridge.sync_recent_results()
        database.execute(f"DELETE FROM performance_results WHERE result_id = {number}")
        server.stop()
        told = bridge.story(str(number))
        assert told.problem == "The result is not in the benchmark file any more."
        assert told.contents[0]["state"] == "delivered"
        assert told.sink_problem
        database.path.unlink()
        assert "There is no benchmark database" in bridge.story(str(number)).problem


def test_a_sink_that_hangs_is_waited_for_no_longer_than_said(database: BenchmarkDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has its answer, and questions that hang do not pile up."""
    number = database.insert()
    gate = threading.Event()
    monkeypatch.setattr(story, "FILE_PATIENCE_S", 30.0)
    monkeypatch.setattr(story, "SINK_PATIENCE_S", 0.1)
    monkeypatch.setattr(story, "_room", threading.BoundedSemaphore(2))

    def hanging() -> Sink:
        assert gate.wait(30)
        raise SinkUnreachable("It was gone.")

    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        bridge.sync_recent_results()
        monkeypatch.setattr(bridge._workshop.ends(), "sink", hanging)
        told = bridge.story(str(number))
        assert told.sink_problem == "The predictive API has not answered within 0.1 s. Reload the page to ask again."
        assert told.fields
        bridge.story(str(number))
        assert "Earlier questions" in bridge.story(str(number)).problem
        gate.set()
        for thread in threading.enumerate():
            if thread.name == "benchbridge-story":
                thread.join(30)


def test_a_result_that_failed_for_now_is_not_at_the_sink(database: BenchmarkDatabase) -> None:
    """The ledger is to retry it, and the API does not have it: they agree."""
    number = database.insert()
    with BaseContractServer() as server, bridge_to(database, server) as bridge:
        server.faults.add(Fault.TASK_FAILED, None)
        bridge.sync_recent_results()
        told = bridge.story(str(number))
        assert told.contents[0]["state"] == "retrying"
        assert told.contents[0]["reason_code"]
        assert [(said["answer"], said["agrees"]) for said in told.sink_says] == [("absent", True)]


def test_what_had_been_predicted_is_told_beside_what_was_measured(tmp_path: Path, database: BenchmarkDatabase) -> None:
    """Figure by figure; of a result that was not scored there is nothing."""
    number = database.insert()

    class Predicting(PredictivePerformance):
        def predict_measurements(self, asked: pa.Table) -> pa.Table:
            return pa.table({"throughput": [50.0] * len(asked), "throughput_lo": [40.0] * len(asked), "throughput_hi": [60.0] * len(asked)})

    service = Predicting(str(tmp_path / "predictive.duckdb"))
    host = HostServices(services=lambda: {"predictive_performance": service})
    with BenchmarkPredictivePerformanceBridge(str(database.path), host=host, sync_days_lookback=0) as bridge:
        bridge.sync_recent_results()
        forecast = bridge.story(str(number)).contents[0]["forecast"]
        said = {figure["figure"]: figure for figure in forecast["figures"]}
        assert (said["throughput"]["predicted"], said["throughput"]["low"], said["latency"]["predicted"]) == (50.0, 40.0, None)
        assert said["throughput"]["error"] == pytest.approx(50.0 / said["throughput"]["measured"] - 1)
    service.close()
