"""Beside each prediction of a table stand two simple guesses: they need no training and no scikit-learn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from unified_server.predictive import newest
from unified_server.predictive.measurement import TABLE_SCHEMA
from unified_server.predictive.service import PredictivePerformance

from .calls import API
from .conftest import MakeApp

FIGURES = ("throughput", "latency", "memory_usage")
RTX = "NVIDIA GeForce RTX 4090"


def measured(model: str = "net", batch_size: int = 8, throughput: float | None = 100.0, **more: Any) -> dict[str, Any]:
    """A measurement on an RTX 4090 of a model of 2 GMACs and 10 million parameters; what is not of the wire goes into its metadata."""
    row = {
        "model_name": model,
        "model_family": "nets",
        "hardware_platform": "cuda",
        "batch_size": batch_size,
        "precision": "fp16",
        "throughput": throughput,
        "latency": None if throughput is None else 1000 * batch_size / throughput,
        "memory_usage": 500.0,
    }
    said = {"gmacs": 2.0, "macts_million": 4.0, "parameters_million": 10.0}
    extras = {name: more.pop(name, value) for name, value in said.items()}
    metadata = {"device_name": more.pop("device_name", RTX), "assumed": ["sequence_length"], "extras": {"metrics": extras}}
    return {**row, "metadata": json.dumps(metadata), **more}


def ask(service: PredictivePerformance, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = service.predict_measurements(pa.Table.from_pylist(list(rows), schema=TABLE_SCHEMA)).to_pylist()
    assert len(answer) == len(rows)
    return answer


@pytest.fixture
def known(service: PredictivePerformance) -> PredictivePerformance:
    """Two batch sizes on one hardware, one of them measured three times, another hardware, and another model of the family."""
    rows = [
        *(measured(batch_size=4, throughput=value) for value in (90.0, 100.0, 300.0)),
        measured(batch_size=32, throughput=400.0),
        measured(batch_size=8, throughput=7.0, hardware_platform="cpu", device_name="Intel Core i9-10940X"),
        measured("large", batch_size=8, throughput=50.0, parameters_million=80.0),
    ]
    service.record_measurements(rows)
    return service


def test_the_nearest_is_a_median_of_the_same_model_on_the_same_hardware(known: PredictivePerformance) -> None:
    """Batch size 5 is nearer to 4 than to 32; the cpu's 8 is no neighbour. Latency is that of five items."""
    (row,) = ask(known, measured(batch_size=5))
    assert (row["nearest_throughput"], row["nearest_memory_usage"]) == (100.0, 500.0)
    assert row["nearest_latency"] == pytest.approx(40.0 * 5 / 4)


def test_where_the_hardware_has_nothing_of_the_model_another_hardware_is_nearest(known: PredictivePerformance) -> None:
    """And the nearest batch size on it."""
    (row,) = ask(known, measured(batch_size=30, hardware_platform="rocm"))
    assert row["nearest_throughput"] == 400.0


@pytest.mark.parametrize(("parameters", "throughput"), [(9.0, 100.0), (90.0, 50.0)])
def test_a_model_that_was_never_measured_has_the_nearest_of_its_family(
    known: PredictivePerformance, parameters: float, throughput: float
) -> None:
    """The one of about its size."""
    (row,) = ask(known, measured("new", batch_size=4, parameters_million=parameters))
    assert row["nearest_throughput"] == throughput


def test_nothing_is_near_a_model_of_another_mode_or_family(known: PredictivePerformance) -> None:
    """Null, not a guess."""
    found = ask(known, measured(mode="training"), measured("new", model_family="others"), measured("new", hardware_platform="mps"))
    assert [row[f"nearest_{figure}"] for row in found for figure in FIGURES] == [None] * 9


def test_a_figure_that_the_nearest_does_not_state_is_that_of_the_next(known: PredictivePerformance) -> None:
    """Each figure has a nearest of its own."""
    known.record_measurements([measured(batch_size=16, throughput=None, memory_usage=640.0)])
    (row,) = ask(known, measured(batch_size=16))
    assert (row["nearest_throughput"], row["nearest_memory_usage"]) == (400.0, 640.0)


def test_the_roofline_is_the_longer_of_computing_and_moving(service: PredictivePerformance) -> None:
    """By the published figures of an RTX 4090: 82.6 TFLOP/s and 1008 GB/s. Nothing was measured, so nothing says what part of it a model reaches."""
    bound_by_rate, bound_by_memory = ask(service, measured(batch_size=4), measured(batch_size=4, macts_million=400.0))
    assert bound_by_rate["roofline_throughput"] == pytest.approx(1000 / (2 * 2.0 / 82.6), rel=0.01)
    assert bound_by_memory["roofline_throughput"] == pytest.approx(1000 / (4 * 400 / 1008), rel=0.01)
    assert bound_by_memory["roofline_latency"] == pytest.approx(4 * 4 * 400 / 1008, rel=0.01)
    assert bound_by_memory["roofline_memory_usage"] == 40.0


def test_the_roofline_is_as_far_above_as_measurements_usually_are(service: PredictivePerformance) -> None:
    """A tenth of the roof is reached on this hardware in this precision; in another nobody knows."""
    roof = 1000 / (2 * 2.0 / 82.6)
    service.record_measurements([measured(f"net{number}", throughput=part * roof) for number, part in enumerate((0.05, 0.1, 0.2))])
    same, other = ask(service, measured("new", gmacs=4.0), measured("new", precision="int8"))
    assert same["roofline_throughput"] == pytest.approx(0.1 * roof / 2, rel=0.01)
    assert other["roofline_throughput"] == pytest.approx(roof, rel=0.01)


def test_the_roofline_needs_the_device_and_the_size(known: PredictivePerformance) -> None:
    """Without either it says nothing; metadata that is no JSON says nothing either."""
    unsized = measured(gmacs=None, macts_million=None, parameters_million=None)
    found = ask(known, measured(device_name="Unheard Of 9"), unsized, {**measured(), "metadata": "{bad"}, {**measured(), "metadata": None})
    assert [row[f"roofline_{figure}"] for row in found for figure in FIGURES] == [None] * 12
    assert [row["nearest_throughput"] for row in found] == [100.0] * 4


def test_the_own_figures_of_a_row_are_no_part_of_its_guesses(known: PredictivePerformance) -> None:
    """Else a wrong result would vouch for itself."""
    right, wrong = ask(known, measured(), measured(throughput=1e9))
    assert right == wrong


def test_guesses_are_in_the_order_of_the_rows(known: PredictivePerformance) -> None:
    """Also of more rows than a thread takes at once."""
    found = ask(known, *(measured(batch_size=4 if number % 3 else 32) for number in range(5_000)))
    assert [row["nearest_throughput"] for row in found] == [100.0 if number % 3 else 400.0 for number in range(5_000)]


def test_what_is_recorded_between_two_questions_is_known_to_the_second(known: PredictivePerformance) -> None:
    """Only what is new is read then; what was read before still counts."""
    assert ask(known, measured(batch_size=64))[0]["nearest_throughput"] == 400.0
    known.record_measurements([measured(batch_size=64, throughput=700.0)])
    found = ask(known, measured(batch_size=64), measured(batch_size=32))
    assert [row["nearest_throughput"] for row in found] == [700.0, 400.0]


def test_a_model_that_is_asked_for_later_than_another_is_known_as_well(known: PredictivePerformance) -> None:
    """What was asked for first says nothing of what there is of the second; its own rows are not counted twice either."""
    first = ask(known, measured())
    assert ask(known, measured("large"))[0]["nearest_throughput"] == 50.0
    known.record_measurements([measured("large", throughput=70.0), measured("large", throughput=90.0)])
    assert ask(known, measured("large"))[0]["nearest_throughput"] == 70.0
    assert ask(known, measured()) == first


@pytest.mark.parametrize("times", [1, 30])
def test_the_oldest_measurements_are_forgotten(service: PredictivePerformance, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """However often it was asked meanwhile: of a hundred that were recorded the newest eight to ten are known."""
    monkeypatch.setattr(newest, "_MOST", 8)
    monkeypatch.setattr(newest, "_MOST_TIMES", 20)
    rows = [measured(f"net{number}", throughput=100.0 + number, model_family=f"family{number}") for number in range(100)]
    for number in range(times):
        service.record_measurements(rows[number * len(rows) // times : (number + 1) * len(rows) // times])
        ask(service, rows[0])
    found = [row["nearest_throughput"] for row in ask(service, *rows)]
    assert found[:90] == [None] * 90
    assert found[92:] == [192.0 + number for number in range(8)]


def test_another_file_in_the_same_place_is_read_anew(known: PredictivePerformance) -> None:
    """As when somebody empties the database of a server that runs."""
    ask(known, measured())
    with known.file.cursor() as cursor:
        cursor.execute("DELETE FROM measurements")
    known.record_measurements([measured(throughput=3.0)])
    assert ask(known, measured())[0]["nearest_throughput"] == 3.0


def test_an_empty_table_is_answered_by_an_empty_one(known: PredictivePerformance) -> None:
    """With the same columns."""
    assert ask(known) == []


def test_over_http_the_guesses_stand_beside_the_prediction_that_there_is_not(make_app: MakeApp) -> None:
    """The predictor was never trained: it has no figure and no version, and the guesses are there."""
    client = make_app().test_client()
    rows = [{**measured(), "metadata": json.loads(measured()["metadata"])}]
    assert client.post(f"{API}/record-measurements", json={"measurements": rows}).status_code == 200
    (row,) = client.post(f"{API}/predict-measurements", json={"measurements": rows}).json["predictions"]
    assert (row["throughput"], row["predictor_version"], row["source"]) == (None, None, "insufficient_measurements")
    assert (row["nearest_throughput"], row["roofline_throughput"]) == (100.0, pytest.approx(100.0))


def test_a_database_that_cannot_be_read_leaves_the_guesses_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why; the prediction is answered all the same."""
    service = PredictivePerformance(str(tmp_path / "nowhere" / "p.duckdb"))
    with caplog.at_level(logging.WARNING):
        (row,) = ask(service, measured())
    assert row["nearest_throughput"] is None
    assert "there are no baselines" in caplog.text
    service.close()
