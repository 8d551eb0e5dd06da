"""Where predictions hold and where they lack measurements: from what was predicted of results before they were delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices
from tests.suggestions.conftest import Bench
from tests.test_scoring import Predicting

MakePredicted = Callable[[float], Bench]


def off_by(share: float) -> Callable[[pa.Table], pa.Table]:
    """The predictor knows that 8 items take 10 ms, as they do in these tests, and is off by so much of it."""

    def predict(asked: pa.Table) -> pa.Table:
        return pa.table({"throughput": pc.multiply(pa.array([800.0] * len(asked)), 1 + share)})

    return predict


@pytest.fixture
def predicted(tmp_path: Path) -> Iterator[MakePredicted]:
    """A bench whose bridge delivers to a service with a predictor that is off by a share."""
    services: list[Predicting] = []
    benches: list[Bench] = []

    def make(share: float) -> Bench:
        service = Predicting(tmp_path / "predictive.duckdb", off_by(share))
        services.append(service)
        host = HostServices(services=lambda: {"predictive_performance": service})
        bridge = BenchmarkPredictivePerformanceBridge(tmp_path / "bench.duckdb", host=host)
        benches.append(Bench(tmp_path / "bench.duckdb", bridge))
        return benches[-1]

    yield make
    for bench in benches:
        bench.bridge.close()
    for service in services:
        service.close()


def deliver(bench: Bench) -> None:
    assert bench.bridge.sync_recent_results(limit=0, days=0)["success"]


def test_what_was_predicted_well_ten_times_is_told(predicted: MakePredicted) -> None:
    """With how well, and the results that it was tested with; nine are too few."""
    bench = predicted(0.05)
    ids = bench.measure(*[800.0] * 9)
    deliver(bench)
    assert bench.suggest() == []
    ids += bench.measure(800)
    deliver(bench)
    (one,) = bench.suggest()
    assert one["code"] == "predicted_well"
    assert one["sentence"] == (
        "bert-base-uncased on NVIDIA H100 80GB HBM3: predicted throughput was within 5 % at the median of 10 results that the predictor had not been "
        "shown, and within 5 % for nine of ten."
    )
    assert one["size"] == pytest.approx(0.05, rel=1e-5)
    assert (sorted(one["rests_on"]), one["results"]) == (sorted(ids), 10)


def test_predictions_that_are_far_off_now_and_then_are_not_called_good(predicted: MakePredicted) -> None:
    """Within 5 % at the median, and twice as much as was measured for two of twelve."""
    bench = predicted(0.05)
    bench.measure(*[800.0] * 10, 400, 400)
    deliver(bench)
    assert bench.suggest("predicted_well") == []


def test_what_was_predicted_badly_and_seldom_measured_needs_more(predicted: MakePredicted) -> None:
    """As many as make ten; two results that were predicted say nothing."""
    bench = predicted(0.5)
    bench.measure(800, 800)
    deliver(bench)
    assert bench.suggest() == []
    bench.measure(800, 800, 800, 800, 800)
    deliver(bench)
    (one,) = bench.suggest("needs_measurements")
    assert one["says"] == (
        "predicted throughput was 50 % off at the median of 7 results, and no more than 7 are measured here: it needs 3 more measurements, to "
        "make 10."
    )
    assert one["figures"] == {"scored": 7, "measured": 7, "more": 3, "median_error": pytest.approx(0.5)}


def test_what_is_predicted_badly_though_it_was_measured_often_is_not_told_to_measure(predicted: MakePredicted) -> None:
    """More of the same would not help."""
    bench = predicted(0.5)
    bench.measure(*[800.0] * 12)
    deliver(bench)
    assert bench.suggest() == []


def test_a_result_that_was_predicted_and_is_gone_from_the_file_does_not_count(predicted: MakePredicted) -> None:
    """The rows are what it rests on."""
    bench = predicted(0.05)
    ids = bench.measure(*[800.0] * 10)
    deliver(bench)
    bench.database.delete(int(ids[0]))
    assert bench.suggest() == []
