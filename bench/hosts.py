"""Hosts that share a ledger on PostgreSQL: how fast one run gets done with one of them and with more, over an API that takes its time; and what is left
of that when they are killed again and again."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from bench.dataset import make
from bench.http import base_server
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.report import table
from tests.kit import ledgers
from tests.kit.base_contract import BASE

_PATIENCE_S = 600.0
_OPEN = ("pending", "retrying", "in_doubt")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench hosts", description=__doc__)
    parser.add_argument("--results", type=int, default=4_000)
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of each answer of the API")
    parser.add_argument("--hosts", type=int, nargs="*", default=[1, 2], help="how many share the work")
    parser.add_argument("--kills", type=int, default=0, help="then: kill -9 one of three hosts that often, whichever, and start it again")
    options = parser.parse_args()
    measured = [_measure(hosts, options) for hosts in options.hosts]
    rates = [row[3] for row in measured]
    shown = [[*row, round(rate / rates[0], 2)] for row, rate in zip(measured, rates, strict=True)]
    print(table(["hosts", "results", "s", "results/s", "lost", "doubled", "balanced", "of the first"], shown))
    ends = [row[4:7] for row in measured]
    if options.kills:
        killed = _kill(options)
        print()
        print(table(["kills", "runs", "results", "s", "lost", "doubled", "balanced"], [killed]))
        ends.append(killed[4:7])
    sys.exit(1 if any(lost or doubled or not balanced for lost, doubled, balanced in ends) else 0)


def _measure(hosts: int, options: argparse.Namespace) -> list[Any]:
    with _scene(options, sync_on_startup=False) as (bridge, config, url):
        bridge.set_schedule(paused=True)  # the others begin nothing themselves
        with _services(hosts - 1, config):
            began = time.perf_counter()
            answer = bridge.sync_recent_results(limit=0, days=0)
            seconds = time.perf_counter() - began
        synced = answer["synced"]
        return [hosts, synced, round(seconds, 2), round(synced / seconds, 1), *_ends(bridge, url)]


def _kill(options: argparse.Namespace) -> list[Any]:
    """Three hosts with a schedule, of which one is killed every few seconds, whether it leads a run, helps one or waits."""
    dice = random.Random(7)
    settings = {"sync_limit": 0, "sync_days_lookback": 0, "sync_interval_minutes": 2 / 60, "lease_s": 46.0}
    with _scene(options, **settings) as (bridge, config, url), _services(3, config) as processes:
        began = time.perf_counter()
        for number in range(options.kills):
            time.sleep(dice.uniform(0.5, 4.0))
            victim = dice.randrange(len(processes))
            processes[victim].kill()
            processes[victim].wait()
            processes[victim] = _service(config, f"{victim}-{number}")
        while any(bridge.accounting()[name] for name in _OPEN) or not bridge.accounting()["total"]:
            assert time.perf_counter() - began < _PATIENCE_S + 10 * options.kills, bridge.accounting()
            time.sleep(0.5)
        seconds = round(time.perf_counter() - began, 1)
        return [options.kills, bridge.runs(limit=1)[0]["run_id"], bridge.accounting()["delivered"], seconds, *_ends(bridge, url)]


def _ends(bridge: BenchmarkPredictivePerformanceBridge, url: str) -> list[Any]:
    """Lost, doubled, balanced."""
    accounting = bridge.accounting()
    stored = requests.get(f"{url}{BASE}/measurements?limit=1000000", timeout=60).json()["measurements"]
    once = len({row["measurement_source"] for row in stored})
    return [accounting["delivered"] - once, len(stored) - once, accounting["balanced"]]


@contextmanager
def _scene(options: argparse.Namespace, **changes: Any) -> Iterator[tuple[BenchmarkPredictivePerformanceBridge, Path, str]]:
    """A benchmark file, an empty ledger on PostgreSQL and an API, as a bridge of this process and as a config file for others."""
    with tempfile.TemporaryDirectory() as directory, base_server("--latency", str(options.latency_ms / 1000)) as url:
        place = Path(directory)
        settings: dict[str, Any] = {
            "benchmark_db_path": str(make(place / "benchmark_db.duckdb", options.results)),
            "predictive_api_url": url,
            "ledger_url": ledgers.postgres().new_url(),
            "predictive_mode": "http",
            "default_precision": "fp32",
            "report_output_dir": str(place / "reports"),
            **changes,
        }
        config = place / "benchbridge.json"
        config.write_text(json.dumps({"benchmark_predictive_performance": settings}))
        with BenchmarkPredictivePerformanceBridge(**settings) as bridge:
            yield bridge, config, url


@contextmanager
def _services(count: int, config: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many `benchbridge service` that have started."""
    processes = [_service(config, str(number)) for number in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _service(config: Path, name: str) -> subprocess.Popen[bytes]:
    log = config.with_name(f"host-{name}.log")
    command = [sys.executable, "-m", "benchbridge_plugin.cli", "service", "--config", str(config), "--log-file", str(log)]
    process = subprocess.Popen(command)
    while not (log.exists() and "service started" in log.read_text()):
        assert process.poll() is None, "a host did not start"
        time.sleep(0.05)
    return process


if __name__ == "__main__":
    main()
