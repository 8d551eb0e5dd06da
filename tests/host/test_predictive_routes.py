"""The Predictive Performance API over HTTP: the base contract and what our server adds."""

from __future__ import annotations

import gzip
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from .calls import API, Measurement, done, record
from .conftest import Client, MakeApp


def test_a_recorded_measurement_is_listed_with_everything_that_was_sent(client: Client, measurement: Measurement) -> None:
    result = record(client, {**measurement, "no_such_field": 1})
    listed = client.get(f"{API}/measurements").json
    assert listed == {"count": 1, "measurements": [result["measurement"]]}
    row = listed["measurements"][0]
    sent = {name: measurement[name] for name in measurement if name not in ("source", "measured_at")}
    assert {name: row[name] for name in sent} == sent
    assert row["measurement_source"] == "benchmark"
    assert row["measured_at"] == "2026-11-23T07:00:00+00:00"
    assert row["measurement_id"] == result["measurement_id"]
    assert row["id"] == 1
    assert datetime.now(UTC) - datetime.fromisoformat(row["timestamp"]) < timedelta(minutes=1)


def test_what_is_not_sent_gets_the_defaults_of_the_contract(client: Client) -> None:
    row = record(client, {"model_name": "m", "hardware_platform": "cpu", "throughput": None})["measurement"]
    assert (row["batch_size"], row["sequence_length"], row["precision"], row["mode"]) == (1, 128, "fp32", "inference")
    assert row["throughput"] is None
    assert row["metadata"] is None


def test_the_same_measurement_without_a_key_is_stored_as_often_as_it_is_sent(client: Client, measurement: Measurement) -> None:
    first, second = record(client, measurement), record(client, measurement)
    assert first["measurement_id"] != second["measurement_id"]
    assert client.get(f"{API}/measurements").json["count"] == 2


def test_the_same_idempotency_key_stores_once_and_answers_with_the_first(client: Client, measurement: Measurement) -> None:
    headers = {"Idempotency-Key": "any text: \u00e4"}
    first = record(client, measurement, **headers)
    second = record(client, {**measurement, "throughput": 1}, **headers)
    assert (first["status"], second["status"]) == ("created", "existing")
    assert first["measurement"] == second["measurement"]
    assert client.get(f"{API}/measurements").json["count"] == 1


def test_two_threads_with_one_key_store_one_measurement(make_app: MakeApp, measurement: Measurement) -> None:
    app = make_app()
    barrier = threading.Barrier(2)
    ids: list[str] = []

    def send() -> None:
        client = app.test_client()
        barrier.wait()
        ids.extend(record(client, measurement, **{"Idempotency-Key": f"k{key}"})["measurement_id"] for key in range(10))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 20
    assert len(set(ids)) == 10
    assert app.test_client().get(f"{API}/measurements?limit=100").json["count"] == 10


def test_bulk_answers_for_each_row_in_order_and_a_bad_row_holds_up_no_other(client: Client, measurement: Measurement) -> None:
    rows = [
        {**measurement, "idempotency_key": "a"},
        {**measurement, "hardware_platform": "tpu"},
        {**measurement, "idempotency_key": "a"},
        "not an object",
        measurement,
    ]
    results = client.post(f"{API}/record-measurements", json={"measurements": rows}).json["results"]
    assert [row["status"] for row in results] == ["created", "rejected", "existing", "rejected", "created"]
    assert results[0]["measurement_id"] == results[2]["measurement_id"] != results[4]["measurement_id"]
    assert results[1]["error"].startswith("hardware_platform: Input should be 'cpu', ")
    assert [row["error"] is None for row in results] == [True, False, True, False, True]


def test_lookup_finds_exactly_the_keys_that_are_stored(client: Client, measurement: Measurement) -> None:
    stored = record(client, {**measurement, "idempotency_key": "a"})["measurement_id"]
    answer = client.post(f"{API}/measurements/lookup", json={"idempotency_keys": ["a", "A", "b"]})
    assert answer.json == {"found": {"a": stored}}


def test_health_names_the_capabilities_and_needs_no_key(make_app: MakeApp) -> None:
    health = make_app(api_key="secret").test_client().get(f"{API}/health")
    assert health.status_code == 200
    assert health.json["status"] == "ok"
    assert health.json["capabilities"] == ["idempotency", "bulk", "lookup", "measured_at", "predict_bulk", "gzip"]
    assert "bf16" in health.json["precisions"]


def test_the_listing_is_newest_first_filtered_and_limited(client: Client, measurement: Measurement) -> None:
    for batch_size in (1, 2, 4):
        record(client, {**measurement, "batch_size": batch_size})
    record(client, {"model_name": "gpt2", "model_family": "gpt", "hardware_platform": "cpu"})

    def ids(query: str) -> list[int]:
        return [row["id"] for row in client.get(f"{API}/measurements?{query}").json["measurements"]]

    assert ids("") == [4, 3, 2, 1]
    assert ids("limit=2") == [4, 3]
    assert ids("model_name=gpt2") == ids("model_family=gpt") == ids("hardware=cpu") == [4]
    assert ids("batch_size=2&hardware=cuda&days=1") == [2]
    assert ids("hardware=tpu") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=100001", "limit=x", "limit=1e3", "days=0", "days=x"])
def test_a_wrong_argument_of_the_listing_is_a_422_that_names_it(client: Client, query: str) -> None:
    answer = client.get(f"{API}/measurements?{query}")
    assert answer.status_code == 422
    assert answer.json["detail"][0]["loc"] == ["query", query.split("=")[0]]


@pytest.mark.parametrize(
    ("field", "text", "kind"),
    [
        ("model_name", "null", "missing"),
        ("model_name", '""', "string_too_short"),
        ("model_name", "7", "string_type"),
        ("model_name", '"\\ud800"', "string_unicode"),
        ("hardware_platform", '"tpu"', "enum"),
        ("hardware_platform", '["cpu"]', "enum"),
        ("precision", '"fp8"', "enum"),
        ("mode", '"train"', "enum"),
        ("batch_size", '"8"', "int_type"),
        ("batch_size", "true", "int_type"),
        ("batch_size", "1.5", "int_from_float"),
        ("batch_size", "1e999", "int_from_float"),
        ("batch_size", "0", "greater_than_equal"),
        ("batch_size", "1" + "0" * 30, "less_than_equal"),
        ("throughput", "NaN", "finite_number"),
        ("throughput", "-Infinity", "finite_number"),
        ("latency", "1e999", "finite_number"),
        ("latency", "1" + "0" * 400, "finite_number"),
        ("latency", "-0.5", "greater_than_equal"),
        ("memory_usage", '"9"', "float_type"),
        ("measured_at", '"yesterday"', "datetime_parsing"),
        ("measured_at", "1700000000", "datetime_type"),
        ("metadata", '"text"', "json_invalid"),
        ("metadata", "[1]", "dict_type"),
        ("metadata", '{"a": NaN}', "json_invalid"),
    ],
)
def test_a_wrong_value_is_a_422_that_names_its_field(client: Client, measurement: Measurement, field: str, text: str, kind: str) -> None:
    others = {name: value for name, value in measurement.items() if name != field}
    body = json.dumps(others)[:-1] + f', "{field}": {text}}}'
    answer = client.post(f"{API}/record-measurement", data=body, content_type="application/json")
    assert answer.status_code == 422
    (found,) = answer.json["detail"]
    assert (found["type"], found["loc"]) == (kind, ["body", field])
    assert set(found) == {"type", "loc", "msg", "input"}
    assert client.get(f"{API}/measurements").json["count"] == 0
    json.dumps(answer.json, allow_nan=False)


def test_everything_that_is_wrong_is_named_at_once(client: Client) -> None:
    answer = client.post(f"{API}/record-measurement", json={"batch_size": "x", "hardware_platform": "tpu"})
    assert [found["loc"][1] for found in answer.json["detail"]] == ["model_name", "hardware_platform", "batch_size"]
    assert answer.json["detail"][1]["input"] == "tpu"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"null", b"1" * 5000])
def test_a_body_that_is_no_json_object_is_a_422(client: Client, body: bytes) -> None:
    for path in ("record-measurement", "record-measurements", "measurements/lookup", "predict-performance"):
        answer = client.post(f"{API}/{path}", data=body)
        assert answer.status_code == 422, path
        assert answer.json["detail"][0]["loc"] == ["body"]


@pytest.mark.parametrize("rows", [None, {}, "x", [{}] * 1001])
def test_a_bulk_body_without_a_list_of_at_most_1000_is_a_422(client: Client, rows: object) -> None:
    answer = client.post(f"{API}/record-measurements", json={"measurements": rows})
    assert answer.status_code == 422
    assert answer.json["detail"][0]["loc"] == ["body", "measurements"]


def test_a_gzip_body_is_read_and_its_expanded_size_is_bounded(client: Client, measurement: Measurement) -> None:
    def send(data: bytes, encoding: str = "gzip") -> Any:
        return client.post(f"{API}/record-measurement", data=data, headers={"Content-Encoding": encoding})

    done(client, send(gzip.compress(json.dumps(measurement).encode())))
    assert send(gzip.compress(b" " * (16 * 1024 * 1024 + 1))).status_code == 413
    assert send(b"not gzip").status_code == 400
    assert send(gzip.compress(b"{}")[:-4]).status_code == 400
    assert send(b"{}", "br").status_code == 415
    assert send(b" " * (16 * 1024 * 1024 + 1), "identity").status_code == 413


def test_an_unknown_task_is_a_404_and_so_is_an_unknown_route(client: Client) -> None:
    answer = client.get(f"{API}/task/measurement-0")
    assert (answer.status_code, answer.json) == (404, {"detail": "Task not found"})
    assert client.get(f"{API}/nothing").json["detail"]
    assert client.delete(f"{API}/measurements").status_code == 405


def test_a_task_that_cannot_be_done_is_failed_with_a_message_and_without_an_error_key(
    make_app: MakeApp, measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    service = app.extensions["unified_server.services"]["predictive_performance"]

    def fail(*_: object) -> None:
        raise OSError("disk full: /secret/place")

    monkeypatch.setattr(service, "record_measurements", fail)
    client = app.test_client()
    answer = client.post(f"{API}/record-measurement", json=measurement)
    task = client.get(f"{API}/task/{answer.json['task_id']}").json
    assert task["status"] == "failed"
    assert "OSError" in task["message"]
    assert "secret" not in task["message"]
    assert "error" not in task
    assert "result" not in task


def test_disabled_means_no_route_no_service_and_nothing_in_openapi(make_app: MakeApp) -> None:
    app = make_app(predictive_performance={"enabled": False})
    client = app.test_client()
    assert client.get(f"{API}/measurements").status_code == 404
    assert "predictive_performance" not in app.extensions["unified_server.services"]
    assert not any(path.startswith(API) for path in client.get("/openapi.json").json["paths"])
