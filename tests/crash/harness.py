"""Kills syncs, over and over, and counts what was lost or doubled.

Each scene is one benchmark file, one ledger and one sink. Victims are forked from a server that has everything imported, so that a thousand kills take
minutes. New results arrive between the kills. At the end one sync is left alone, and the sink's rows are compared with what the file says should be
there: an expectation computed from the file alone, without the ledger.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests

from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.source import BenchmarkSource
from tests.crash.victim import Scene, open_bridge, sync_and_die
from tests.kit import ledgers
from tests.kit.base_contract import free_port
from tests.kit.database import open_for_writing
from tests.kit.layouts import build

SINKS = ("service", "base", "full")
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a crash run came to."""

    sink: str
    kills: int
    victims: int
    results: int
    lost: int
    doubled: int
    in_doubt: int
    balanced: bool
    seconds: float


@contextmanager
def sink_process(kind: str, directory: Path) -> Iterator[str | None]:
    """A server for the scene, in a process of its own that outlives the victims; None for the service inside the victim."""
    if kind == "service":
        yield None
        return
    port = free_port()
    if kind == "base":
        command = ["-m", "tests.kit.base_contract", "--port", str(port), "--store", str(directory / "base.jsonl")]
    else:
        config = directory / "server.json"
        config.write_text(
            json.dumps(
                {
                    "benchmark_db": {"path": str(directory / "unused.duckdb")},
                    "predictive_performance": {"path": str(directory / "predictive.duckdb")},
                }
            )
        )
        command = ["-m", "unified_server", "--config", str(config), "--port", str(port)]
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def crash(
    kind: str,
    directory: Path,
    *,
    kills: int,
    point: str | None = None,
    seed: int = 0,
    batch: int = 300,
    plant: str | None = None,
    longest_s: float = 0.6,
    ledger: str = "sqlite",
) -> Verdict:
    """Kill `kills` victims, at random moments or at the named point, then let one finish. `batch`: results that arrive before each victim.

    With `ledger="postgresql"` every fourth victim of the random ones lives, and the ledger's server is killed under it instead.
    """
    began = time.monotonic()
    draws = random.Random(seed)
    with sink_process(kind, directory) as url:
        scene = Scene(directory, url, 100, plant=plant, ledger_url=ledgers.postgres().new_url() if ledger == "postgresql" else None)
        context = _context()
        killed = victims = 0
        written = _add_results(scene, 0, batch * 2)
        while killed < kills and victims < kills * 6:
            victims += 1
            here = "claimed" if point == "settled" and victims % 2 else point  # a doubt has to be made before it can be settled
            if point == "adopted" and victims % 2:  # the others go on with what is left of an adoption
                ledgers.lose(scene.ledger_url or f"sqlite:///{scene.ledger}")
            many = kind == "base" and here in ("before_request", "after_request")  # one for each result, and else one for each batch
            victim = context.Process(target=sync_and_die, args=(scene, here, draws.randint(1, 120 if many else 3)))
            victim.start()
            if point is None:
                victim.join(draws.uniform(0.05, longest_s))
                if scene.ledger_url is not None and victims % 4 == 0:
                    killed += victim.is_alive()
                    ledgers.postgres().restart()
                elif victim.is_alive() and victim.pid is not None:
                    os.kill(victim.pid, signal.SIGKILL)
            victim.join(60)
            killed += victim.exitcode == -signal.SIGKILL
            written = _add_results(scene, written, draws.randint(1, batch))
        stored = _finish(scene)
        accounting, sources = stored
        expected = _expected(scene, kind)
        counts = Counter(sources)
        return Verdict(
            sink=kind,
            kills=killed,
            victims=victims,
            results=len(expected),
            lost=sum(1 for key in expected if not counts[key]),
            doubled=sum(1 for key, count in counts.items() if count > 1) + sum(1 for key in counts if key not in expected),
            in_doubt=int(accounting["in_doubt"]),
            balanced=bool(accounting["balanced"]) and not accounting["pending"] and not accounting["retrying"],
            seconds=round(time.monotonic() - began, 1),
        )


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.crash.victim", "unified_server", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql", "requests"]
    )
    return context


def _add_results(scene: Scene, first: int, count: int) -> int:
    """Real rows of the sample, as a runner would write them: built once, later measured again under new ids. Returns the highest id."""
    if first == 0:
        return build("V1", scene.benchmark_db, limit=count)
    with open_for_writing(scene.benchmark_db, 20.0).connection as connection:
        connection.execute(
            """
            INSERT INTO performance_results
            SELECT * REPLACE (result_id + $first AS result_id)
              FROM performance_results
             WHERE result_id <= $count
            """,
            {"first": first, "count": count},
        )
    return first + count


def _finish(scene: Scene) -> tuple[dict[str, Any], list[str]]:
    """Undisturbed syncs until nothing is open; then what the sink holds."""
    healthy = replace(scene, plant=None)
    with open_bridge(healthy) as bridge:
        for _ in range(20):
            time.sleep(0.2)  # real time has to pass: leases run out and retries fall due
            answer = bridge.sync_recent_results(limit=0, days=0)
            accounting = bridge.accounting()
            if answer["success"] and not (accounting["pending"] or accounting["retrying"] or accounting["in_doubt"]):
                break
        if scene.url is None:
            service: Any = bridge._workshop._host.services()["predictive_performance"]
            rows = service.list_measurements(limit=100_000)
        else:
            rows = requests.get(f"{scene.url}/api/predictive-performance/measurements?limit=100000", timeout=60).json()["measurements"]
        return accounting, [row["measurement_source"].removeprefix("benchmark:") for row in rows]


def _expected(scene: Scene, kind: str) -> set[str]:
    """The keys that the file's deliverable results have, worked out from the file alone."""
    source = BenchmarkSource(str(scene.benchmark_db))
    layout, ids = source.ids()
    mapper = Mapper(Rules(scene.benchmark_db.stem))
    profile = SinkProfile() if kind == "base" else SinkProfile(precisions=_PRECISIONS)
    measured = mapper.measure(source.read(layout, ids.cast("string").combine_chunks()), profile)
    pairs = zip(measured.column("reason_code").to_pylist(), measured.column("idempotency_key").to_pylist(), strict=True)
    mapper.close()
    return {key for code, key in pairs if code is None}


def _await(url: str) -> None:
    for _ in range(300):
        try:
            requests.get(f"{url}/health", timeout=1)
            return
        except requests.RequestException:
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not come up")
