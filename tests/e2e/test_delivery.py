"""All the results of the sample, through every way there is, each of them once and unchanged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
import requests
from unified_server import create_app, shutdown, startup

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, plugin
from tests.host.process import read_until, running, stop
from tests.kit.layouts import build

from .conftest import KEY, MEASUREMENTS, Serve, Server, _address, base_contract, bridge_section, multiset, until

GUNICORN = Path(__file__).parents[2] / "examples" / "unified_server_stub" / "gunicorn_conf.py"


def sha256(path: Path) -> str:
    """By another process, for this one may have the file open in DuckDB."""
    return subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]


def test_in_process_and_over_http_deliver_the_same(sample: Path, tmp_path: Path, serve: Serve) -> None:
    """Through the service in the same process, and with a new ledger through a socket to another server: equal multisets of measurements."""
    config = {
        "benchmark_db": {"path": str(sample)},
        "predictive_performance": {"path": str(tmp_path / "predictive.duckdb")},
        "benchmark_predictive_performance": bridge_section(benchmark_db_path=str(sample), report_output_dir=str(tmp_path / "reports")),
    }
    app = create_app(config, plugins={"benchbridge": plugin})
    startup(app)
    try:
        client: Any = app.test_client()
        client.environ_base["HTTP_X_API_KEY"] = KEY
        first = client.post("/api/bridge/sync", json={"wait": True}).json
        assert (first["state"], first["synced"], first["rejected"]) == ("succeeded", 1212, 0)
        assert client.post("/api/bridge/sync", json={"wait": True}).json["synced"] == 0
        report = client.get("/api/bridge/report").json
        assert (report["synced_results"], report["accounting"]["balanced"]) == (1212, True)
        in_process = multiset(client.get(f"{MEASUREMENTS}?limit=100000").json["measurements"])
    finally:
        shutdown(app)
    assert in_process.total() == len(in_process) == 1212

    other = serve(tmp_path / "other")
    with BenchmarkPredictivePerformanceBridge(sample, other.url, ledger_url=str(tmp_path / "new.sqlite"), sync_days_lookback=0) as bridge:
        assert bridge.sync_recent_results(limit=0)["synced"] == 1212
        assert other.measurements() == in_process
        assert bridge.sync_recent_results(limit=0)["synced"] == 0
        assert bridge.generate_report()["accounting"]["balanced"] is True
        assert bridge.verify().clean
    assert other.measurements() == in_process


def test_on_the_base_contract_what_is_not_taken_is_refused_and_nothing_is_relabelled(sample: Path, tmp_path: Path) -> None:
    """bf16 is not in its enums: 438 results are refused with the reason, the others arrive as they are, and the coverage says so."""
    with duckdb.connect(str(sample), read_only=True) as connection:
        rows = connection.execute("SELECT precision, count(*) FROM performance_results GROUP BY precision").fetchall()
    measured = Counter(dict(rows))
    assert measured.pop("bf16") == 438
    with base_contract(tmp_path) as url, BenchmarkPredictivePerformanceBridge(sample, url, sync_days_lookback=0) as bridge:
        answer = bridge.sync_recent_results(limit=0)
        assert (answer["success"], answer["synced"], answer["rejected"]) == (True, 774, 438)
        assert bridge.sync_recent_results(limit=0)["synced"] == 0
        report = bridge.generate_report()
        assert bridge.verify().clean
    stored = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert Counter(row["precision"] for row in stored) == measured
    assert len({row["measurement_source"] for row in stored}) == len(stored) == 774
    assert report["accounting"]["balanced"] is True
    assert sum(cell["rejected"] for cell in report["model_coverage"].values()) == 438
    assert sum(cell["rejected"] for cell in report["hardware_coverage"].values()) == 438
    (refusal,) = report["refusals"]
    assert (refusal["code"], refusal["count"]) == ("precision_unsupported", 438)
    assert "bf16" in refusal["reason"]


def test_a_new_result_arrives_by_itself(tmp_path: Path, serve: Serve) -> None:
    """Posted to the Benchmark API, seen in the predictive API and in the report, without another call."""
    server = serve(tmp_path / "server", auto_sync_enabled=True, sync_interval_minutes=0.02)
    posted = {"model_name": "new-one", "hardware_type": "cuda", "batch_size": 4, "precision": "fp16", "average_latency_ms": 4.0}
    server.post("/api/benchmark/results", posted)

    def arrived() -> list[Any]:
        found: list[Any] = server.get(f"{MEASUREMENTS}?model_name=new-one")["measurements"]
        return found

    (measurement,) = until(arrived)
    assert (measurement["hardware_platform"], measurement["precision"], measurement["latency"]) == ("cuda", "fp16", 4.0)
    report = until(lambda: found if (found := server.get("/api/bridge/report"))["synced_results"] == 1 else None)
    assert (report["total_results"], report["accounting"]["balanced"]) == (1, True)
    code, output = stop(server.process)
    assert code == 0, output
    assert "Traceback" not in output


def test_a_server_that_is_killed_in_the_middle_loses_and_doubles_nothing(tmp_path: Path, serve: Serve) -> None:
    """kill -9 while 20,000 results are on their way; the next server sends the rest, and each one is there once."""
    directory = tmp_path / "server"
    directory.mkdir()
    assert build("V1", directory / "bench.duckdb", limit=20_000) == 20_000
    server = serve(directory, batch_size=250)
    run_id = server.post("/api/bridge/sync")["run_id"]
    until(lambda: server.get("/api/bridge/health")["delivered"] > 1_000)
    server.process.kill()
    server.process.wait(30)

    again = serve(directory, batch_size=5_000)
    interrupted = again.get(f"/api/bridge/runs/{run_id}")
    assert interrupted["state"] == "interrupted"
    before = again.get("/api/bridge/health")
    assert (1_000 < before["delivered"] < 20_000, before["balanced"]) == (True, True)
    summary = again.post("/api/bridge/sync", {"wait": True})
    assert summary["state"] == "succeeded", summary
    after = again.get("/api/bridge/report")["accounting"]
    assert (after["delivered"], after["total"], after["balanced"]) == (20_000, 20_000, True)
    stored = again.get(f"{MEASUREMENTS}?limit=100000")["measurements"]
    assert len({row["measurement_source"] for row in stored}) == len(stored) == 20_000
    assert again.post("/api/bridge/sync", {"wait": True})["synced"] == 0
    assert again.post("/api/bridge/verify")["clean"] is True


def test_the_benchmark_file_is_never_changed(sample: Path, tmp_path: Path) -> None:
    """Not a byte of it, by sync, report and doctor; and nothing is left beside it but the ledger."""
    before = sha256(sample)
    with base_contract(tmp_path) as url:
        for words in (["sync", "--all", "--days", "0"], ["report"], ["doctor"]):
            options = ["--benchmark-db", str(sample), *(["--api-url", url] if words[0] != "report" else [])]
            done = subprocess.run(
                [sys.executable, "-m", "benchbridge_plugin.cli", *words, *options], capture_output=True, text=True, timeout=60, cwd=tmp_path
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert sha256(sample) == before
    assert {path.name for path in sample.parent.iterdir()} <= {
        sample.name,
        *(f"{sample.name}.bridge.sqlite{ending}" for ending in ("", "-wal", "-shm")),
    }


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_gunicorn_workers_share_one_bridge(tmp_path: Path, preload: list[str]) -> None:
    """Two workers, with and without --preload: one key, one sync at a time whoever is asked, every result once, and a clean end."""
    pytest.importorskip("gunicorn")
    build("V1", tmp_path / "bench.duckdb", limit=300, newest=datetime.now(UTC))
    config = {
        "benchmark_db": {"path": "bench.duckdb"},
        "predictive_performance": {"path": "predictive.duckdb", "shared": True},
        "benchmark_predictive_performance": bridge_section(
            bridge_api_key=None, batch_size=20, auto_sync_enabled=True, sync_on_startup=False
        ),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["gunicorn", "-c", str(GUNICORN), "-b", "127.0.0.1:0", "-w", "2", *preload, "unified_server.wsgi:app"]
    with running(words, tmp_path, UNIFIED_SERVER_CONFIG="config.json") as process:
        server = Server(_address(read_until(process, "Listening at")), process)
        key = until(lambda: path.read_text().strip() if (path := tmp_path / "bench.duckdb.bridge.sqlite.key").exists() else None)
        server = _with_key(server, key)
        gate = threading.Barrier(6)

        def sync(_: int) -> Any:
            gate.wait(20)
            return server.post("/api/bridge/sync", {"wait": True})

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(sync, range(6)))
        runs = server.get("/api/bridge/runs")["runs"]
        report = server.get("/api/bridge/report")
        stored = server.get(f"{MEASUREMENTS}?limit=1000")["measurements"]
        code, output = stop(process)
    assert {answer["state"] for answer in answers} == {"succeeded"}
    assert sum(run["synced"] for run in runs) == 300
    assert len({row["measurement_source"] for row in stored}) == len(stored) == 300
    assert report["accounting"]["balanced"] is True
    assert code == 0, output
    assert output.count("made an API key") <= 1  # it may have been read before
    assert "Traceback" not in output


def _with_key(server: Server, key: str) -> Server:
    class Keyed(Server):
        def ask(self, method: str, path: str, body: object = None) -> Any:
            import requests

            answer = requests.request(method, self.url + path, json=body, headers={"X-API-Key": key}, timeout=60)
            assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
            return answer.json()

    return Keyed(server.url, server.process)


def test_every_worker_exposes_the_figures_of_the_report(tmp_path: Path) -> None:
    """Four workers, of which one has done the sync: whoever answers, at rest the metrics are the report's, and no counter falls while a sync goes on."""
    pytest.importorskip("gunicorn")
    build("V1", tmp_path / "bench.duckdb", limit=300, newest=datetime.now(UTC))
    config = {
        "benchmark_db": {"path": "bench.duckdb"},
        "predictive_performance": {"path": "predictive.duckdb", "shared": True},
        "benchmark_predictive_performance": bridge_section(batch_size=20),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["gunicorn", "-c", str(GUNICORN), "-b", "127.0.0.1:0", "-w", "4", "unified_server.wsgi:app"]
    with running(words, tmp_path, UNIFIED_SERVER_CONFIG="config.json") as process:
        server = Server(_address(read_until(process, "Listening at")), process)

        def scrape() -> dict[str, float]:
            answer = requests.get(f"{server.url}/api/bridge/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
            assert answer.ok, answer.text
            return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", answer.text, re.MULTILINE)}

        server.post("/api/bridge/sync", {"wait": False})
        during = [scrape()['benchbridge_deliveries_total{source="bench"}'] for _ in range(10)]
        assert during == sorted(during)
        server.post("/api/bridge/sync", {"wait": True})
        until(lambda: server.get("/api/bridge/status")["lease"] is None)
        report = server.get("/api/bridge/report")
        scrapes = [scrape() for _ in range(20)]
        code, output = stop(process)
    accounting = report["accounting"]
    assert accounting["delivered"] == 300
    for figures in scrapes:
        for state in ("delivered", "pending", "retrying", "in_doubt", "rejected", "skipped"):
            assert figures[f'benchbridge_results{{source="bench",state="{state}"}}'] == accounting[state]
        assert figures['benchbridge_results_on_disk{source="bench"}'] == report["total_results"]
        assert figures['benchbridge_deliveries_total{source="bench"}'] == sum(run["synced"] for run in report["sync_history"])
    assert all(figures == scrapes[0] for figures in scrapes)
    assert code == 0, output


def test_strict_keeps_gunicorn_from_starting(tmp_path: Path) -> None:
    """With a config that is wrong the master gives up, instead of starting workers for ever."""
    pytest.importorskip("gunicorn")
    config = {"benchmark_predictive_performance": {"enabled": True, "strict": True, "sync_limitt": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["gunicorn", "-c", str(GUNICORN), "-b", "127.0.0.1:0", "-w", "1", "unified_server.wsgi:app"]
    with running(words, tmp_path, UNIFIED_SERVER_CONFIG="config.json") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Did you mean sync_limit?" in output


EXAMPLE = """
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge

bridge = BenchmarkPredictivePerformanceBridge(benchmark_db_path="benchmark_db.duckdb", predictive_api_url="http://localhost:8080")
print(json.dumps(bridge.check_connections()))
print(json.dumps(bridge.sync_recent_results(limit=50)))
print(json.dumps(bridge.sync_by_model("gpt2", days=30, limit=100)))
print(json.dumps(bridge.generate_report()))
bridge.close()
"""


def test_the_example_of_the_python_interface_runs_as_printed(tmp_path: Path, serve: Serve) -> None:
    """In the directory of the file, against a server; the keys are the documented ones."""
    server = serve(tmp_path / "server")
    build("V1", tmp_path / "benchmark_db.duckdb", newest=datetime.now(UTC))
    program = "import json" + EXAMPLE.replace("http://localhost:8080", server.url)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    connections, recent, by_model, report = map(json.loads, done.stdout.splitlines())
    assert connections == {"benchmark_db": True, "predictive_api": True}
    keys = ["success", "message", "total", "synced", "failed", "rejected", "skipped", "run_id", "details"]
    assert list(recent) == list(by_model) == keys
    assert (recent["success"], recent["total"], recent["synced"]) == (True, 50, 50)
    assert (by_model["success"], by_model["details"]["request"]["model"]) == (True, "gpt2")
    documented = ["generated_at", "total_results", "synced_results", "unsynced_results", "sync_percentage"]
    documented += ["model_coverage", "hardware_coverage", "sync_history", "accounting"]
    assert set(documented) <= set(report)
    assert report["total_results"] == 1212
    assert report["synced_results"] == recent["synced"] + by_model["synced"]


def test_the_file_and_its_ledger_move_together(sample: Path, tmp_path: Path) -> None:
    """In another directory nothing looks new."""
    with base_contract(tmp_path) as url:
        with BenchmarkPredictivePerformanceBridge(sample, url, sync_days_lookback=0) as bridge:
            assert bridge.sync_recent_results(limit=20)["synced"] == 20
        shutil.move(sample.parent, tmp_path / "elsewhere")
        with BenchmarkPredictivePerformanceBridge(tmp_path / "elsewhere" / sample.name, url, sync_days_lookback=0) as bridge:
            assert bridge.accounting()["delivered"] == 20
            assert bridge.sync_recent_results(limit=10)["synced"] == 10
    stored = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["measurement_source"] for row in stored}) == len(stored) == 30
