"""Each delivered result is a test of the predictor, once, and delivery does not depend on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin.model import Fate, Outcome, Receipt, SyncRequest
from benchbridge_plugin.scoring import Scorer
from benchbridge_plugin.sinks.service import ServiceSink
from tests.conftest import Clock, World, fill, make_batch

Predict = Callable[[pa.Table], pa.Table]


def of_figures(**figures: float) -> Predict:
    """The same prediction for each row."""

    def predict(asked: pa.Table) -> pa.Table:
        rows = len(asked)
        return pa.table(
            {
                **{name: pa.array([value] * rows) for name, value in figures.items()},
                "predictor_version": pa.array(["v1"] * rows),
                "model_seen": pa.array([True] * rows),
                "hardware_seen": pa.array([False] * rows),
            }
        )

    return predict


class Predicting(PredictivePerformance):
    """The stub's service with a predictor that a test says."""

    def __init__(self, path: Path, predict: Predict) -> None:
        super().__init__(str(path))
        self._predict = predict
        self.asked: list[pa.Table] = []

    def predict_measurements(self, measurements: pa.Table) -> pa.Table:
        self.asked.append(measurements)
        return self._predict(measurements)


@pytest.fixture
def service(tmp_path: Path) -> Any:
    made: list[Predicting] = []

    def make(predict: Predict) -> Predicting:
        made.append(Predicting(tmp_path / f"predictive{len(made)}.duckdb", predict))
        return made[-1]

    yield make
    for one in made:
        one.close()


def source_id(world: World) -> int:
    return world.ledger.runs.source_id(world.name)


def overall(world: World, predictor: str = "predicted") -> dict[str, dict[str, Any]]:
    found = world.ledger.scores.report([source_id(world)])["overall"]
    return {group["figure"]: group for group in found if group["predictor"] == predictor}


def test_each_delivered_result_is_scored_once(world: World, service: Callable[[Predict], Predicting]) -> None:
    """A second sync has nothing to score; the predictor was shown no figure."""
    fill(world, 20)
    there = service(of_figures(throughput=100.0, latency=10.0, memory_usage=1.0))
    engine = world.engine(ServiceSink(there), score_sample=None)
    assert engine.run(SyncRequest(limit=0, days=0)).synced == 20
    engine.run(SyncRequest(limit=0, days=0))
    assert overall(world)["throughput"]["results"] == 20
    assert sum(len(asked) for asked in there.asked) == 20
    shown = {name for asked in there.asked for name in asked.column_names}
    assert not shown & {"throughput", "latency", "memory_usage", "source", "source_ref", "idempotency_key"}


def test_what_was_predicted_of_a_result_is_kept(world: World, service: Callable[[Predict], Predicting]) -> None:
    """With what was measured and who predicted it."""
    fill(world, 3)
    world.engine(ServiceSink(service(of_figures(throughput=123.0))), score_sample=1.0).run(SyncRequest(limit=0, days=0))
    row = next(iter(world.ledger.accounts.results(source_id(world), limit=1).rows))
    kept = world.ledger.scores.of(source_id(world), str(row["result_id"]), bytes.fromhex(str(row["content_hash"])))
    assert kept is not None
    assert (kept["predicted_throughput"], kept["version"], kept["model_seen"], kept["hardware_seen"]) == (123.0, "v1", 1, 0)
    assert kept["measured_throughput"] > 0
    assert world.ledger.scores.of(source_id(world), "none", b"0" * 16) is None


def test_results_are_split_by_what_had_been_seen(world: World, service: Callable[[Predict], Predicting]) -> None:
    """And by day, family, hardware and version."""
    fill(world, 5)
    world.engine(ServiceSink(service(of_figures(throughput=50.0, nearest_throughput=60.0))), score_sample=1.0).run(
        SyncRequest(limit=0, days=0)
    )
    said = world.ledger.scores.report([source_id(world)])
    assert {(group["model_seen"], group["hardware_seen"]) for group in said["by_seen"]} == {(True, False)}
    assert [group["version"] for group in said["by_version"] if group["figure"] == "throughput"] == ["v1"]
    assert {group["day"] for group in said["by_day"]} == {"2027-01-15"}
    assert overall(world, "nearest")["throughput"]["results"] == 5
    assert world.ledger.scores.report([source_id(world)], since_day=int(world.clock.time // 86_400) + 1)["overall"] == []


@pytest.mark.parametrize(
    "predict",
    [
        lambda asked: 1 / 0,
        lambda asked: of_figures(throughput=1.0)(asked.slice(0, 1)),
        lambda asked: pa.table({"throughput": ["much"] * len(asked)}),
        lambda asked: None,
    ],
    ids=["raises", "of other rows", "no numbers", "no answer"],
)
def test_a_predictor_that_fails_holds_nothing_up(
    world: World, service: Callable[[Predict], Predicting], predict: Predict, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, and said once."""
    fill(world, 30)
    there = service(predict)
    with caplog.at_level(logging.WARNING):
        summary = world.engine(ServiceSink(there), score_sample=1.0, batch_size=10).run(SyncRequest(limit=0, days=0))
    assert (summary.synced, summary.state, len(there.asked)) == (30, "succeeded", 1)
    assert overall(world) == {}
    assert sum("predictor failed" in record.message for record in caplog.records) <= 1


def test_no_sample_asks_nothing(world: World, service: Callable[[Predict], Predicting]) -> None:
    """And neither does a service without a predictor."""
    fill(world, 3)
    there = service(of_figures(throughput=1.0))
    world.engine(ServiceSink(there), score_sample=0.0).run(SyncRequest(limit=0, days=0))
    assert there.asked == []


class Timed:
    """A sink that takes a millisecond for each row of a prediction."""

    is_near = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[int] = []

    def forecast(self, batch: pa.Table) -> pa.Table:
        self.asked.append(len(batch))
        self._clock.advance(0.001 * len(batch))
        return of_figures(throughput=800.5)(batch)


def test_a_slow_predictor_is_asked_for_as_much_as_a_tenth_of_the_time_allows() -> None:
    """A first batch tells how long it takes; then 10,000 rows that are delivered in a second leave it 100 ms. A small batch is scored whole."""
    clock = Clock()
    sink = Timed(clock)
    scorer = Scorer(sink, None, clock=clock)
    batch = pa.concat_tables([make_batch(*[{}] * 10_000)])
    for _ in range(3):
        forecast = scorer.begin(batch)
        clock.advance(1.0)
        assert scorer.end(forecast, batch, Receipt([None] * len(batch))) is not None
    assert 1_800 < sink.asked[0] < 2_200
    assert all(150 < asked < 250 for asked in sink.asked[1:])
    small = make_batch(*[{}] * 150)
    scorer.begin(small)
    assert sink.asked[-1] == 150


def test_only_what_was_delivered_is_scored() -> None:
    """A row that was refused, or may not have arrived, has its test another time, or never."""
    clock = Clock()
    scorer = Scorer(Timed(clock), 1.0, clock=clock)
    batch = make_batch(*[{"throughput": 800.5 + row} for row in range(4)])
    forecast = scorer.begin(batch)
    scored = scorer.end(forecast, batch, Receipt([None] * 4, {1: Outcome(Fate.REJECTED, "no", ""), 2: Outcome(Fate.IN_DOUBT, "no", "")}))
    assert scored is not None
    assert scored.column("result_id").to_pylist() == ["1", "4"]
    assert scored.column("measured_throughput").to_pylist() == [800.5, 803.5]
    nothing = scorer.begin(batch)
    gone = Receipt([None] * 4, dict.fromkeys(range(4), Outcome(Fate.FAILED, "no", "")))
    assert scorer.end(nothing, batch, gone) is None
