"""What to measure next: a list for a benchmark runner, made of what the benchmark file has, with a reason for each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices
from benchbridge_plugin.cli import bridge as command
from benchbridge_plugin.errors import ConfigError, SourceMissing
from tests.kit.database import BenchmarkDatabase, open_for_writing

Predict = Callable[[pa.Table], pa.Table]
MakeBridge = Callable[..., BenchmarkPredictivePerformanceBridge]
ITEM = ["model_name", "hardware", "device_name", "precision", "mode", "batch_size", "sequence_length", "reason", "gain", "predicted"]
H100, RTX = "NVIDIA H100", "RTX 4090"


class Predicting(PredictivePerformance):
    """The stub's service with a predictor that a test says; it remembers what it was asked."""

    def __init__(self, path: Path, predict: Predict) -> None:
        super().__init__(str(path))
        self._predict = predict
        self.asked: list[dict[str, Any]] = []

    def predict_measurements(self, measurements: pa.Table) -> pa.Table:
        self.asked += measurements.to_pylist()
        return self._predict(measurements)


def within(factor: Callable[[dict[str, Any]], float | None]) -> Predict:
    """A predictor of 100 items/s with bounds so many times apart; no answer where that is None."""

    def predict(asked: pa.Table) -> pa.Table:
        factors = [factor(row) for row in asked.to_pylist()]
        columns = {
            "throughput": [None if one is None else 100.0 for one in factors],
            "throughput_lo": [None if one is None else 100.0 / math.sqrt(one) for one in factors],
            "throughput_hi": [None if one is None else 100.0 * math.sqrt(one) for one in factors],
        }
        return pa.table(
            {**{name: pa.array(values, pa.float64()) for name, values in columns.items()}, "predictor_version": [7] * len(asked)}
        )

    return predict


@pytest.fixture
def database(tmp_path: Path) -> BenchmarkDatabase:
    """Two models on an H100 at two batch sizes, and one of them on an RTX 4090."""
    made = BenchmarkDatabase(tmp_path / "bench.duckdb")
    same: dict[str, Any] = {"precision": "fp16", "sequence_length": 128}
    with made.kept_open():
        for model in ("bert", "gpt2"):
            for batch_size in (1, 8):
                made.insert(model=model, model_family=model, hardware="cuda", device=H100, batch_size=batch_size, **same)
        made.insert(model="bert", model_family="bert", hardware="gpu", device=RTX, batch_size=8, **same)
    return made


@pytest.fixture
def make_bridge(tmp_path: Path, database: BenchmarkDatabase) -> Iterator[MakeBridge]:
    opened: list[Any] = []

    def make(predict: Predict | None = None, **settings: Any) -> BenchmarkPredictivePerformanceBridge:
        path = tmp_path / f"predictive{len(opened)}.duckdb"
        service = PredictivePerformance(str(path)) if predict is None else Predicting(path, predict)
        paths = settings.pop("paths", database.path)
        host = HostServices(services=lambda: {"predictive_performance": service})
        bridge = BenchmarkPredictivePerformanceBridge(paths, host=host, **settings)
        opened.extend((bridge, service))
        return bridge

    yield make
    for one in opened:
        one.close()


def configurations(plan: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(item["model_name"], item["device_name"], item["batch_size"]) for item in plan["plan"]]


# -- what is suggested ----------------------------------------------------------------------------------------------------------------------


def test_only_what_was_not_measured_is_suggested_and_of_values_that_were_seen(make_bridge: MakeBridge) -> None:
    """gpt2 on the RTX 4090 at the batch size that is usual there: all else that could be made was measured."""
    plan = make_bridge(within(lambda row: 2.0)).plan()
    assert configurations(plan) == [("gpt2", RTX, 8)]
    (item,) = plan["plan"]
    assert list(item) == ITEM
    assert (item["hardware"], item["precision"], item["mode"], item["sequence_length"]) == ("gpu", "fp16", "inference", 128)
    assert item["reason"] == f"gpt2 was measured on {H100} and not on {RTX}; the predictor expects 70.71 to 141.4 items/s."
    assert item["predicted"]["throughput"] == {"value": 100.0, "low": pytest.approx(70.71, 1e-3), "high": pytest.approx(141.42, 1e-3)}
    assert (plan["basis"], plan["predictor_version"], plan["candidates"], plan["note"]) == ("intervals", "7", 1, "")
    assert plan["generated_at"].endswith("Z")


def test_what_could_not_be_delivered_or_was_tried_in_vain_is_not_suggested(make_bridge: MakeBridge, database: BenchmarkDatabase) -> None:
    """A device that the API does not take, a precision that it does not take, a run that failed, a simulation."""
    database.insert(model="gpt2", model_family="gpt2", hardware="tpu", device="TPU v5", batch_size=8, precision="fp16", sequence_length=128)
    database.insert(model="gpt2", model_family="gpt2", hardware="cuda", device=H100, batch_size=8, precision="fp8", sequence_length=128)
    database.insert(
        model="gpt2",
        model_family="gpt2",
        hardware="gpu",
        device=RTX,
        batch_size=8,
        precision="fp16",
        sequence_length=128,
        run="r",
        success=False,
    )
    assert make_bridge(within(lambda row: 2.0)).plan()["plan"] == []


def test_a_batch_size_lies_within_what_the_model_was_measured_at(make_bridge: MakeBridge, database: BenchmarkDatabase) -> None:
    """64 is usual on the RTX 4090, and neither model was ever measured at it: the nearest is taken where nothing else is there."""
    for _ in range(3):
        database.insert(model="tiny", model_family="tiny", hardware="gpu", device=RTX, batch_size=64, precision="fp16", sequence_length=128)
    plan = make_bridge(within(lambda row: 2.0)).plan()
    assert ("gpt2", RTX, 64) not in configurations(plan)
    assert ("tiny", H100, 8) in configurations(plan)  # the nearest to 64 of those that are usual there


def test_model_and_hardware_narrow_the_list(make_bridge: MakeBridge, database: BenchmarkDatabase) -> None:
    """Hardware by the file's name, by that of the API, and by the device."""
    database.insert(model="t5", model_family="t5", hardware="cpu", device="Xeon", batch_size=1, precision="fp16", sequence_length=128)
    bridge = make_bridge(within(lambda row: 2.0))
    everything = configurations(bridge.plan())
    assert set(configurations(bridge.plan(model="gpt2"))) == {one for one in everything if one[0] == "gpt2"}
    for hardware, devices in (("gpu", {RTX}), ("cuda", {RTX, H100}), (RTX, {RTX}), ("cpu", {"Xeon"}), ("none", set())):
        assert {device for _, device, _ in configurations(bridge.plan(hardware=hardware))} == devices
    assert len(bridge.plan(limit=1)["plan"]) == 1


def test_what_is_measured_and_added_to_the_file_is_not_suggested_again(make_bridge: MakeBridge, database: BenchmarkDatabase) -> None:
    """The next plan reads the file anew; one that may be old does so too, once the file has changed."""
    bridge = make_bridge(within(lambda row: 2.0))
    assert configurations(bridge.plan(recent_s=600)) == [("gpt2", RTX, 8)]
    database.insert(model="gpt2", model_family="gpt2", hardware="gpu", device=RTX, batch_size=8, precision="fp16", sequence_length=128)
    assert bridge.plan(recent_s=600)["plan"] == []


# -- by the predictor -----------------------------------------------------------------------------------------------------------------------


def test_the_predictor_is_asked_as_with_a_result_of_that_configuration(make_bridge: MakeBridge) -> None:
    """By the names of the API, with what results of the model say beside their figures, and with no figure."""
    bridge = make_bridge(within(lambda row: 2.0))
    bridge.plan()
    service = bridge._workshop.ends()._host.services()["predictive_performance"]
    assert isinstance(service, Predicting)
    (row,) = service.asked
    assert (row["hardware_platform"], row["precision"], row["batch_size"], row["sequence_length"]) == ("cuda", "fp16", 8, 128)
    said = json.loads(row["metadata"])
    assert (said["device_name"], said["assumed"], said["extras"]) == (RTX, [], {"sequence_length": 128})
    assert not {"throughput", "latency", "memory_usage"} & set(row)


def test_where_the_predictor_knows_least_is_measured_first(make_bridge: MakeBridge, database: BenchmarkDatabase) -> None:
    """No answer, then the widest interval."""
    for number, model in enumerate(("a", "b", "c")):
        database.insert(model=model, model_family=model, hardware="cuda", device=H100, batch_size=8, precision="fp16", sequence_length=128)
        assert number < 3
    factors = {"a": 1.1, "b": None, "c": 20.0, "gpt2": 1.5}
    plan = make_bridge(within(lambda row: factors.get(row["model_name"], 1.2))).plan(hardware=RTX)
    assert [item["model_name"] for item in plan["plan"]] == ["b", "c", "gpt2", "a"]
    assert "the predictor has no answer" in plan["plan"][0]["reason"]
    assert plan["plan"][0]["predicted"] is None
    gains = [item["gain"] for item in plan["plan"]]
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize(
    ("predict", "note"),
    [
        (None, "The predictor has not answered for any of them."),
        (lambda asked: pa.table({"throughput": [1.0] * len(asked)}), "The predictor has not answered for any of them."),
        (lambda asked: 1 / 0, "The predictor could not be asked: ZeroDivisionError"),
        (lambda asked: None, "cannot predict in bulk"),
    ],
    ids=["never trained", "without intervals", "fails", "cannot"],
)
def test_without_intervals_it_is_coverage(make_bridge: MakeBridge, predict: Predict | None, note: str) -> None:
    """Models that were measured on one device and not on another, and the note says why it is no more than that."""
    plan = make_bridge(predict).plan()
    assert (plan["basis"], configurations(plan)) == ("coverage", [("gpt2", RTX, 8)])
    assert plan["plan"][0]["reason"] == f"gpt2 was measured on {H100} and not on {RTX}."
    assert plan["plan"][0]["predicted"] is None
    assert note in plan["note"]


def test_an_api_that_cannot_be_reached_leaves_coverage(database: BenchmarkDatabase) -> None:
    """A runner gets a list all the same, and the note what is wrong."""
    with BenchmarkPredictivePerformanceBridge(database.path, "http://127.0.0.1:1") as bridge:
        plan = bridge.plan()
    assert (plan["basis"], configurations(plan)) == ("coverage", [("gpt2", RTX, 8)])
    assert "does not answer" in plan["note"]


# -- files ----------------------------------------------------------------------------------------------------------------------------------


def test_several_files_are_planned_together_or_one_by_its_name(
    make_bridge: MakeBridge, database: BenchmarkDatabase, tmp_path: Path
) -> None:
    """What one file has measured, another need not; alone it has nothing to combine."""
    other = BenchmarkDatabase(tmp_path / "other.duckdb")
    other.insert(model="gpt2", model_family="gpt2", hardware="gpu", device=RTX, batch_size=8, precision="fp16", sequence_length=128)
    bridge = make_bridge(within(lambda row: 2.0), paths=[database.path, other.path])
    assert bridge.plan()["plan"] == []
    assert configurations(bridge.plan(source="bench")) == [("gpt2", RTX, 8)]
    assert bridge.plan(source="other")["plan"] == []


def test_while_a_writer_has_the_file_the_plan_goes_by_what_was_read_before(make_bridge: MakeBridge, database: BenchmarkDatabase) -> None:
    """It waits for nobody."""
    bridge = make_bridge(within(lambda row: 2.0))
    before = bridge.plan()["plan"]
    with open_for_writing(database.path).connection as writer:
        writer.execute("CREATE TABLE more (n INTEGER)")
        assert bridge.plan()["plan"] == before


def test_a_file_that_is_not_there_is_an_error_and_so_is_a_limit_that_is_none(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """As everywhere."""
    with pytest.raises(SourceMissing):
        make_bridge(paths=tmp_path / "none.duckdb").plan()
    for limit in (0, 201, True, "5"):
        with pytest.raises(ConfigError, match="limit"):
            make_bridge().plan(limit=limit)  # type: ignore[arg-type]


# -- the command ----------------------------------------------------------------------------------------------------------------------------


def test_the_command_shows_a_table_and_leaves_no_ledger(database: BenchmarkDatabase) -> None:
    """With --json the list that a runner takes, with the same keys."""
    given = ["plan", "--benchmark-db", str(database.path), "--api-url", "http://127.0.0.1:1"]
    shown = CliRunner().invoke(command, given)
    assert shown.exit_code == 0, shown.output
    for words in ("gpt2", RTX, "fp16", "was measured on", "Of 1 configuration not measured yet, by coverage alone."):
        assert words in shown.output
    plan = json.loads(CliRunner().invoke(command, [*given, "--json"]).stdout)
    assert [list(item) for item in plan["plan"]] == [ITEM]
    assert "Nothing is left to measure" in CliRunner().invoke(command, [*given, "--model", "none"]).output
    assert sorted(path.name for path in database.path.parent.iterdir()) == ["bench.duckdb"]
