"""Delivery over HTTP beside what the same servers take at all: one POST for each result, exactly once, and a thousand at a time."""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import requests

from bench.dataset import make
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.report import table
from benchbridge_plugin.sinks.payload import Payloads, body_of
from benchbridge_plugin.source import BenchmarkSource
from tests.crash.harness import _await as wait_for
from tests.kit.base_contract import BASE, free_port
from tests.kit.layouts import build

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Figure:
    """How many results a second went one way to one server; `ratio`: of the best that the same server takes."""

    server: str
    way: str
    results: int
    seconds: float
    per_second: float
    ratio: float


def payload(number: int) -> dict[str, Any]:
    return {
        "model_name": "bert-base-uncased",
        "model_family": "bert",
        "hardware_platform": "cuda",
        "batch_size": 8,
        "sequence_length": 128,
        "precision": "fp16",
        "mode": "inference",
        "throughput": 1000.5 + number,
        "latency": 7.25,
        "memory_usage": 512.0,
        "source": f"ceiling:{number:032x}",
    }


def bare(
    url: str, path: str, bodies: Sequence[bytes], connections: int, *, then: Callable[[Any, http.client.HTTPConnection], object]
) -> float:
    """Seconds that http.client takes for the bodies, on so many connections, each from a thread of its own."""

    def post(mine: Sequence[bytes]) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        for body in mine:
            connection.request("POST", path, body, _JSON)
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            then(answer, connection)
        connection.close()

    threads = [threading.Thread(target=post, args=(bodies[lane::connections],)) for lane in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def with_requests(url: str, bodies: Sequence[bytes]) -> float:
    with requests.Session() as session:
        began = time.perf_counter()
        for body in bodies:
            session.post(url + f"{BASE}/record-measurement", data=body, headers=_JSON, timeout=60).json()
        return time.perf_counter() - began


def ask_nothing(answer: Any, connection: http.client.HTTPConnection) -> None:
    """The answer to the POST is all there is."""


def ask_for_the_task(answer: Any, connection: http.client.HTTPConnection) -> None:
    """One request more for each result, which is what an acknowledgement costs without the listing."""
    while True:
        connection.request("GET", f"{BASE}/task/{answer['task_id']}")
        if json.loads(connection.getresponse().read())["status"] not in ("pending", "running"):
            return


def synced(url: str, file: Path, place: Path) -> tuple[float, int]:
    """Seconds and results of a whole sync of the file, ledger and mapping included."""
    with BenchmarkPredictivePerformanceBridge(
        file, url, ledger_url=f"sqlite:///{place}", predictive_mode="http", default_precision="fp32"
    ) as bridge:
        began = time.perf_counter()
        answer = bridge.sync_recent_results(limit=0, days=0)
        took = time.perf_counter() - began
        accounting = bridge.accounting()
    assert accounting["balanced"], accounting
    assert accounting["delivered"] == answer["synced"], accounting
    return took, answer["synced"]


@contextmanager
def base_server(*options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.kit.base_contract", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


@contextmanager
def full_server(place: Path) -> Iterator[str]:
    port = free_port()
    config = place / "server.json"
    files = {"benchmark_db": {"path": str(place / "unused.duckdb")}, "predictive_performance": {"path": str(place / "predictive.duckdb")}}
    config.write_text(json.dumps(files))
    command = [sys.executable, "-m", "unified_server", "--config", str(config), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(url)
            yield url
        finally:
            process.terminate()


def base_figures(name: str, results: int, *options: str) -> list[Figure]:
    """Each way to a server of its own, in the same minute, since two cores are seldom ours alone."""
    bodies = [json.dumps(payload(number)).encode() for number in range(results)]
    path = f"{BASE}/record-measurement"
    took: dict[str, float] = {}
    ways: Sequence[tuple[str, Callable[[str], float]]] = (
        ("http.client, 1 connection", lambda url: bare(url, path, bodies, 1, then=ask_nothing)),
        ("http.client, 4 connections", lambda url: bare(url, path, bodies, 4, then=ask_nothing)),
        ("requests, 1 connection", lambda url: with_requests(url, bodies)),
        ("POST and task, 1 connection", lambda url: bare(url, path, bodies, 1, then=ask_for_the_task)),
    )
    for way, ceiling in ways:
        with base_server(*options) as url:
            took[way] = ceiling(url)
    with tempfile.TemporaryDirectory() as directory, base_server(*options) as url:
        place = Path(directory)
        build("V7", place / "benchmark_db.duckdb", limit=results)
        seconds, delivered = synced(url, place / "benchmark_db.duckdb", place / "ledger.sqlite")
        took["our sync, exactly once"] = seconds * results / delivered
        stored = requests.get(f"{url}{BASE}/measurements?limit=100000", timeout=60).json()["measurements"]
        assert len({row["measurement_source"] for row in stored}) == len(stored) == delivered
    best = min(seconds for way, seconds in took.items() if "," in way and "task" not in way and "our" not in way)
    return [Figure(name, way, results, round(s, 2), round(results / s, 1), round(best / s, 3)) for way, s in took.items()]


def bulk_bodies(file: Path) -> list[bytes]:
    """What a sync sends of the file, a thousand results a body."""
    source, mapper, payloads = BenchmarkSource(str(file)), Mapper(Rules(file.stem)), Payloads()
    layout, ids = source.ids()
    profile = SinkProfile(capabilities=frozenset({"measured_at", "bulk", "idempotency"}))
    measured = pa.concat_tables(mapper.measure(rows, profile) for rows in source.slices(layout, ids.combine_chunks().sort()))
    sent = measured.filter(pc.is_null(measured.column("reason_code")))
    return [body_of(payloads.texts(sent.slice(start, 1_000), with_extras=True)) for start in range(0, len(sent), 1_000)]


def bulk_figures(results: int) -> list[Figure]:
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        file = make(place / "benchmark_db.duckdb", results)
        bodies = bulk_bodies(file)
        for connections in (1, 2, 4):
            with tempfile.TemporaryDirectory() as other, full_server(Path(other)) as url:
                took[f"http.client, {connections} connections"] = bare(
                    url, f"{BASE}/record-measurements", bodies, connections, then=ask_nothing
                )
        with full_server(place) as url:
            seconds, delivered = synced(url, file, place / "ledger.sqlite")
        took["our sync, exactly once"] = seconds * results / delivered
    best = min(seconds for way, seconds in took.items() if "our" not in way)
    return [Figure("stub, bulk", way, results, round(s, 2), round(results / s, 1), round(best / s, 3)) for way, s in took.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench http", description=__doc__)
    parser.add_argument("--results", type=int, default=2_000, help="one by one")
    parser.add_argument(
        "--insert-ms", type=float, nargs="*", default=[0.0, 5.0, 8.0], help="what a measurement costs an event loop; 0: none"
    )
    parser.add_argument("--bulk", type=int, default=50_000, help="results in thousands; 0: none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("benchbridge_plugin").setLevel(logging.ERROR)
    figures: list[Figure] = []
    for insert_ms in options.insert_ms:
        name = f"one event loop, {insert_ms:g} ms an insert" if insert_ms else "threads, no delay"
        figures += base_figures(name, options.results, "--insert", str(insert_ms / 1000))
    if options.bulk:
        figures += bulk_figures(options.bulk)
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
        return
    names = ("server", "way", "results", "s", "results/s", "of the ceiling")
    print(table(names, [list(asdict(figure).values()) for figure in figures]))


if __name__ == "__main__":
    main()
