"""Predictions over HTTP: given from measurements, recorded, and compared with what is measured later."""

from __future__ import annotations

import pytest

from .calls import API, done, record
from .conftest import Client


def test_predictions_are_recorded_and_compared_with_what_is_measured_later(client: Client) -> None:
    base = {"model_name": "m", "hardware_platform": "cuda", "precision": "fp16"}
    for batch_size in (1, 2, 4, 16):
        record(client, {**base, "batch_size": batch_size, "throughput": 100.0 * batch_size, "latency": 10})
    asked = {"model_name": "m", "hardware": ["cuda", "cpu"], "batch_size": 8, "precision": "fp16"}
    predictions = done(client, client.post(f"{API}/predict-performance", json=asked))["predictions"]
    assert predictions["cuda"]["source"] == "interpolated"
    assert predictions["cuda"]["throughput"] == pytest.approx(800, rel=0.01)
    assert predictions["cuda"]["memory_usage"] is None
    assert predictions["cpu"]["source"] == "insufficient_measurements"
    assert "prediction_id" not in predictions["cpu"]

    prediction_id = predictions["cuda"]["prediction_id"]
    listed = client.get(f"{API}/predictions?limit=5").json
    assert [row["prediction_id"] for row in listed["predictions"]] == [prediction_id]
    result = record(client, {**base, "batch_size": 8, "throughput": 1000, "prediction_id": prediction_id})
    assert result["errors"]["throughput"] == pytest.approx(-0.2, abs=0.01)
    assert result["prediction"]["prediction_id"] == prediction_id
    analysis = done(client, client.post(f"{API}/analyze-predictions", json={"metric": "throughput", "days": 1}))
    assert analysis["count"] == 1
    assert analysis["mean_absolute_error"] == pytest.approx(0.2, abs=0.01)
    nothing = done(client, client.post(f"{API}/analyze-predictions", json={"model_name": "other"}))
    assert (nothing["count"], nothing["bias"]) == (0, None)


def test_only_hardware_with_measurements_is_recommended(client: Client) -> None:
    asked = {"model_name": "m", "batch_size": 1, "predict_performance": True}
    nothing = done(client, client.post(f"{API}/predict-hardware", json=asked))
    assert nothing["primary_recommendation"] is None
    assert nothing["prediction_source"] == "insufficient_measurements"
    for platform, throughput in (("cpu", 20), ("cuda", 500)):
        for _ in range(3):
            record(client, {"model_name": "m", "hardware_platform": platform, "throughput": throughput})
    answer = done(client, client.post(f"{API}/predict-hardware", json=asked))
    assert answer["primary_recommendation"] == "cuda"
    assert answer["fallback_options"] == ["cpu"]
    assert answer["compatible_hardware"] == ["cuda", "cpu"]
    assert answer["performance"]["throughput"] == 500
    assert answer["performance"]["source"] == "measured"
    asked = {"model_name": "m", "available_hardware": "cpu"}
    only_cpu = done(client, client.post(f"{API}/predict-hardware", json=asked))
    assert only_cpu["primary_recommendation"] == "cpu"
    assert "performance" not in only_cpu
