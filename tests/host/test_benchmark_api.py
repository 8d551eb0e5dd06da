"""The Benchmark API: results with their models, hardware and runs, in a file that others write too."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest

from .conftest import Client, MakeApp

URL = "/api/benchmark/results"
RUN = {"test_name": "nightly", "started_at": "2026-11-23T07:00:00Z", "git_commit": "abc", "success": True}
RESULT: dict[str, Any] = {
    "model_name": "bert-base-uncased",
    "model_family": "bert",
    "modality": "text",
    "hardware_type": "cuda",
    "device_name": "H100",
    "batch_size": 8,
    "precision": "fp16",
    "sequence_length": 128,
    "average_latency_ms": 6.5,
    "throughput_items_per_second": 1230.5,
    "memory_peak_mb": 905,
    "total_time_seconds": 1.5,
    "iterations": 20,
    "warmup_iterations": 5,
    "metrics": {"p99_latency_ms": 7.5},
    "run": RUN,
}


def add(client: Client, **more: Any) -> Any:
    answer = client.post(URL, json={**RESULT, **more})
    assert answer.status_code == 201, answer.json
    return answer.json


def read(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_a_result_makes_its_model_hardware_and_run_and_is_given_back(client: Client, tmp_path: Path) -> None:
    assert client.get(URL).json == {"count": 0, "results": []}
    assert not (tmp_path / "benchmark.duckdb").exists()
    assert add(client) == {"result_id": 1, "model_id": 1, "hardware_id": 1, "run_id": 1}
    (row,) = client.get(URL).json["results"]
    for name in ("model_name", "device_name", "batch_size", "precision", "average_latency_ms", "iterations"):
        assert row[name] == RESULT[name]
    assert row["test_case"] == "inference"
    assert row["metrics"] == {"p99_latency_ms": 7.5, "sequence_length": 128}
    assert (row["test_name"], row["started_at"]) == ("nightly", "2026-11-23T07:00:00+00:00")
    path = tmp_path / "benchmark.duckdb"
    assert read(path, "SELECT started_at::VARCHAR, success, git_commit FROM test_runs") == [("2026-11-23 07:00:00", True, "abc")]
    keys = "SELECT count(*) FROM duckdb_constraints() WHERE constraint_type = 'FOREIGN KEY'"
    assert read(path, f"{keys} AND table_name = 'performance_results'") == [(3,)]
    assert read(path, f"{keys} AND table_name = 'performance_batch_results'") == [(1,)]


def test_models_hardware_and_runs_are_made_once(client: Client) -> None:
    add(client)
    assert add(client) == {"result_id": 2, "model_id": 1, "hardware_id": 1, "run_id": 1}
    other = add(client, model_name="gpt2", device_name=None, run={**RUN, "test_name": "weekly"})
    assert other == {"result_id": 3, "model_id": 2, "hardware_id": 2, "run_id": 2}
    assert add(client, device_name=None, run=None, run_id=2)["run_id"] == 2
    assert add(client, device_name=None, run=None) == {"result_id": 5, "model_id": 1, "hardware_id": 2, "run_id": None}


def test_many_results_are_stored_together_or_not_at_all(client: Client) -> None:
    answer = client.post(URL, json={"results": [RESULT, {**RESULT, "model_name": "gpt2"}]})
    assert answer.status_code == 201
    assert [row["result_id"] for row in answer.json["results"]] == [1, 2]
    answer = client.post(URL, json={"results": [RESULT, {**RESULT, "run": None, "run_id": 99}]})
    assert answer.status_code == 422
    assert answer.json["detail"][0]["loc"] == ["body", "results", 1, "run_id"]
    assert client.get(URL).json["count"] == 2


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("model_name", "null"),
        ("hardware_type", '""'),
        ("batch_size", '"8"'),
        ("average_latency_ms", "NaN"),
        ("throughput_items_per_second", "-1"),
        ("memory_peak_mb", "1e300"),
        ("iterations", "1.5"),
        ("metrics", '{"a": Infinity}'),
        ("created_at", '"soon"'),
    ],
)
def test_a_wrong_value_is_a_422_that_names_its_field(client: Client, field: str, text: str) -> None:
    others = {name: value for name, value in RESULT.items() if name != field}
    one = json.dumps(others)[:-1] + f', "{field}": {text}}}'
    answer = client.post(URL, data=one)
    assert answer.status_code == 422
    assert [found["loc"] for found in answer.json["detail"]] == [["body", field]]
    assert set(answer.json["detail"][0]) == {"type", "loc", "msg", "input"}
    answer = client.post(URL, data=f'{{"results": [{one}]}}')
    assert [found["loc"] for found in answer.json["detail"]] == [["body", "results", 0, field]]
    assert client.get(URL).json["count"] == 0


def test_a_result_without_any_figure_and_a_run_without_a_name_are_refused(client: Client) -> None:
    answer = client.post(URL, json={"model_name": "m", "hardware_type": "cpu"})
    assert answer.json["detail"][0]["loc"] == ["body", "average_latency_ms"]
    answer = client.post(URL, json={**RESULT, "run": {"success": "yes"}})
    assert [found["loc"] for found in answer.json["detail"]] == [
        ["body", "run", "test_name"],
        ["body", "run", "success"],
    ]
    bodies: list[Any] = [{"results": []}, {"results": 1}, [], 7]
    for body in bodies:
        assert client.post(URL, json=body).status_code == 422


def test_results_are_filtered_and_paged_newest_first(client: Client) -> None:
    for name, hardware in (("a", "cpu"), ("a", "cuda"), ("b", "cuda")):
        add(client, model_name=name, hardware_type=hardware)

    def ids(query: str) -> list[int]:
        return [row["result_id"] for row in client.get(f"{URL}?{query}").json["results"]]

    assert ids("") == [3, 2, 1]
    assert ids("model_name=a") == [2, 1]
    assert ids("hardware=cuda&model_name=a") == [2]
    assert ids("limit=1&offset=1") == [2]
    assert client.get(f"{URL}?offset=-1").status_code == 422


def test_not_a_number_in_the_file_is_null_in_the_answer(client: Client, tmp_path: Path) -> None:
    add(client)
    with duckdb.connect(str(tmp_path / "benchmark.duckdb")) as runner:
        runner.execute("UPDATE performance_results SET average_latency_ms = 'nan', metrics = '{\"a\": NaN}'")
    (row,) = json.loads(client.get(URL).data, parse_constant=pytest.fail)["results"]
    assert row["average_latency_ms"] is None
    assert row["metrics"] == {"a": None}


def test_threads_that_add_at_once_lose_nothing(make_app: MakeApp) -> None:
    app = make_app()

    def work() -> None:
        for _ in range(5):
            add(app.test_client())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = app.test_client().get(URL).json["results"]
    assert [row["result_id"] for row in rows] == list(range(20, 0, -1))
    assert {(row["model_name"], row["run_id"]) for row in rows} == {("bert-base-uncased", 1)}


HOLDER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""


def test_a_runner_that_writes_the_file_is_waited_for_and_can_write_in_between(make_app: MakeApp, tmp_path: Path) -> None:
    client = make_app().test_client()
    add(client)
    path = str(tmp_path / "benchmark.duckdb")
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdin is not None
        assert runner.stdout.readline() == "held\n"
        let_go = threading.Timer(0.3, runner.stdin.close)  # the end of its input is a line to it
        let_go.start()
        assert add(client)["result_id"] == 2
        let_go.join()


def test_a_reader_in_the_same_process_is_waited_for(make_app: MakeApp, tmp_path: Path) -> None:
    client = make_app().test_client()
    add(client)
    reader = duckdb.connect(str(tmp_path / "benchmark.duckdb"), read_only=True)
    assert client.get(URL).json["count"] == 1
    threading.Timer(0.2, reader.close).start()
    assert add(client)["result_id"] == 2


def test_a_file_that_is_held_open_is_offered_as_a_service(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(benchmark_db={"hold_open": True})
    connection = app.extensions["unified_server.services"]["benchmark_db"]
    add(app.test_client())
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM performance_results").fetchall() == [(1,)]
    assert app.test_client().get("/health").json["plugins"]["benchmark"]["held_open"] is True
    assert app.test_client().get(URL).json["count"] == 1


def test_a_file_of_another_layout_gets_no_tables(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.duckdb"
    with duckdb.connect(str(path)) as runner:
        runner.execute("CREATE TABLE performance_results (id INTEGER)")
    client.application.testing = False
    assert client.post(URL, json=RESULT).status_code == 500
    assert read(path, "SELECT table_name FROM duckdb_tables()") == [("performance_results",)]
