"""Gunicorn workers share one schedule while one of them is killed again and again: ticks done and missed, cycles run twice, measurements doubled."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import requests
from unified_server import create_app

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.report import table
from tests.kit.base_contract import free_port
from tests.kit.database import BenchmarkDatabase
from tests.kit.layouts import build

_GUNICORN = Path(__file__).resolve().parents[1] / "examples" / "unified_server_stub" / "gunicorn_conf.py"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench workers", description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between ticks")
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds between kills of a worker")
    options = parser.parse_args()
    rows = [_watch(options, preload) for preload in (False, True)]
    headers = [
        "preload",
        "ticks due",
        "ticks done",
        "longest gap s",
        "overlapping runs",
        "kills",
        "results",
        "stored",
        "doubled",
        "balanced",
    ]
    print(table(headers, rows))
    sys.exit(1 if any(row[4] or row[8] or row[6] != row[7] or not row[9] for row in rows) else 0)


def _watch(options: argparse.Namespace, preload: bool) -> list[object]:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        file = place / "benchmark_db.duckdb"
        written = build("V1", file, limit=400)
        config = place / "server.json"
        config.write_text(
            json.dumps(
                {
                    "benchmark_db": {"path": str(file)},
                    "predictive_performance": {"path": str(place / "predictive.duckdb"), "shared": True},
                    "benchmark_predictive_performance": {
                        "enabled": True,
                        "benchmark_db_path": str(file),
                        "auto_sync_enabled": True,
                        "sync_interval_minutes": options.interval / 60,
                        "sync_limit": 0,
                        "sync_days_lookback": 0,
                        "bridge_api_key": "key",
                        "report_output_dir": str(place / "reports"),
                    },
                }
            )
        )
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", "-c", str(_GUNICORN), "-w", str(options.workers), "-b", f"127.0.0.1:{port}"]
        command += ["--preload"] if preload else []
        environment = {**os.environ, "UNIFIED_SERVER_CONFIG": str(config)}
        log = (place / "log").open("w")
        server = subprocess.Popen([*command, "unified_server.wsgi:app"], env=environment, stdout=log, stderr=log)
        try:
            _await(f"http://127.0.0.1:{port}/health")
            began = time.time()
            kills, next_kill = 0, began + options.kill_every
            database = BenchmarkDatabase(file)
            while time.time() < began + options.seconds:
                time.sleep(0.5)
                database.insert()
                written += 1
                if time.time() >= next_kill:
                    next_kill += options.kill_every
                    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
                    os.kill(int(random.choice(children)), signal.SIGKILL)
                    kills += 1
            ended = time.time()
        finally:
            server.terminate()
            server.wait(30)
            log.close()
        with BenchmarkPredictivePerformanceBridge(config=_settings(file)) as bridge:
            runs = [run for run in bridge._workshop.parts().ledger.runs.history(1, limit=10_000) if run["kind"] in ("schedule", "start-up")]
        spans = sorted((float(str(run["started_at"])), float(str(run["finished_at"] or 0))) for run in runs)
        during = [start for start, _ in spans if began <= start <= ended]
        overlapping = sum(1 for one, two in itertools.pairwise(spans) if two[0] < one[1])
        app = create_app(
            {"benchmark_db": {"path": str(place / "x.duckdb")}, "predictive_performance": {"path": str(place / "predictive.duckdb")}}
        )
        services = app.extensions["unified_server.services"]
        with BenchmarkPredictivePerformanceBridge(config=_settings(file), host=HostServices(services=lambda: services)) as bridge:
            bridge.sync_recent_results(limit=0, days=0)
            accounting = bridge.accounting()
        sources = Counter(row["measurement_source"] for row in services["predictive_performance"].list_measurements(limit=100_000))
        gaps = [two - one for one, two in itertools.pairwise(during)]
        return [
            preload,
            int(options.seconds / options.interval),
            len(during),
            round(max(gaps, default=0.0), 2),
            overlapping,
            kills,
            written,
            sum(sources.values()),
            sum(1 for count in sources.values() if count > 1),
            accounting["balanced"],
        ]


def _settings(file: Path) -> BridgeConfig:

    return BridgeConfig(benchmark_db_path=str(file), predictive_mode="auto")


def _await(url: str) -> None:
    for _ in range(400):
        try:
            requests.get(url, timeout=2)
            return
        except requests.RequestException:
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not come up")


if __name__ == "__main__":
    main()
