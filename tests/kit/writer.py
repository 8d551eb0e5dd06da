"""Somebody else's benchmark runner: a process that writes into a V1 file, or holds it.

`python -m tests.kit.writer FILE --rate 200 --seconds 60` inserts rate x seconds results in small bursts (open, one
transaction, close), then prints {"inserted", "refused", "longest_refusal_s", "first_id", "last_id"} as a line of JSON.
SIGTERM ends it early, with the same line.

`python -m tests.kit.writer FILE --hold` opens the file read-write, prints "holding" and keeps it until stdin is closed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import duckdb

from tests.kit.database import BenchmarkDatabase, find_or_add, open_for_writing
from tests.kit.layouts import build_in

#: How often the writer writes, and the largest transaction it makes to catch up after a refusal.
_BURST_EVERY_S = 0.05
_BURST_AT_MOST = 500

#: A writer that is refused for longer than this gives up with duckdb's error.
_PATIENCE_S = 60.0

_COLUMNS = (
    "result_id, run_id, model_id, hardware_id, test_case, batch_size, precision, total_time_seconds, "
    "average_latency_ms, throughput_items_per_second, memory_peak_mb, iterations, warmup_iterations, metrics, "
    "created_at"
)


@dataclass(slots=True)
class Written:
    """What the writer did.

    `refused` counts refused attempts; first_id and last_id are null when nothing was written.
    """

    inserted: int = 0
    refused: int = 0
    longest_refusal_s: float = 0.0
    first_id: int | None = None
    last_id: int | None = None


def write(path: Path, rate: float, seconds: float, first_id: int | None, stopped: Callable[[], bool]) -> Written:
    """Inserts `rate * seconds` results at the rate, ids counting up from `first_id`.

    Without first_id they begin one above the largest. Makes the file when it is missing. After a refusal it catches up,
    so the number is reached whatever the readers do.
    """
    BenchmarkDatabase(path)
    done, draws = Written(), random.Random()

    def transaction(work: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        opened = open_for_writing(path, _PATIENCE_S, give_up=stopped, draws=draws)
        done.refused += opened.refusals
        if opened.refusals:
            done.longest_refusal_s = max(done.longest_refusal_s, round(opened.waited_s, 4))
        try:
            opened.connection.execute("BEGIN TRANSACTION")
            work(opened.connection)
            opened.connection.execute("COMMIT")
        finally:
            opened.connection.close()

    prepared: list[list[Any]] = []
    next_id = first_id or 1

    def prepare(connection: duckdb.DuckDBPyConnection) -> None:
        nonlocal next_id
        prepared.extend(_sample(connection))
        if first_id is None:
            found = connection.execute("SELECT coalesce(max(result_id), 0) + 1 FROM performance_results").fetchone()
            next_id = int(found[0]) if found else 1

    transaction(prepare)
    supply = cycle(prepared)
    total, began = round(rate * seconds), time.monotonic()
    while done.inserted < total and not stopped():
        due = min(total, int((time.monotonic() - began) * rate) + 1) - done.inserted
        if due > 0:
            now = datetime.now(UTC).replace(tzinfo=None)
            taken = list(islice(supply, min(due, _BURST_AT_MOST)))
            rows = [[next_id + place, *row, now] for place, row in enumerate(taken)]
            try:
                transaction(partial(_insert, rows=rows))
            except duckdb.Error:
                if stopped():
                    break
                raise
            done.inserted += len(rows)
            done.first_id = rows[0][0] if done.first_id is None else done.first_id
            done.last_id = rows[-1][0]
            next_id += len(rows)
        time.sleep(_BURST_EVERY_S)
    return done


def hold(path: Path) -> None:
    """Holds the file read-write until stdin ends."""
    connection = duckdb.connect(str(path))
    try:
        print("holding", flush=True)
        sys.stdin.read()
    finally:
        connection.close()


def _sample(connection: duckdb.DuckDBPyConnection) -> list[list[Any]]:
    """The sample as rows of performance_results, but for result_id and created_at.

    Models and hardware are found in the file, or added.
    """
    with duckdb.connect(":memory:") as memory:
        build_in(memory, "V1")
        rows = memory.execute(_JOINED).fetchall()
    run = find_or_add(connection, "test_runs", "run_id", {"test_name": "kit writer"}, success=True)
    ids: dict[tuple[str, Any, Any], int] = {}
    prepared: list[list[Any]] = []
    for model_name, model_family, hardware_type, device_name, *figures in rows:
        model, hardware = ("models", model_name, model_family), ("hardware_platforms", hardware_type, device_name)
        if model not in ids:
            identity = {"model_name": model_name, "model_family": model_family}
            ids[model] = find_or_add(connection, "models", "model_id", identity)
        if hardware not in ids:
            identity = {"hardware_type": hardware_type, "device_name": device_name}
            ids[hardware] = find_or_add(connection, "hardware_platforms", "hardware_id", identity)
        prepared.append([run, ids[model], ids[hardware], *figures])
    return prepared


def _insert(connection: duckdb.DuckDBPyConnection, rows: Sequence[Sequence[object]]) -> None:
    """One statement for all rows: executemany would hold the file ten times as long."""
    places = ", ".join(["(" + ", ".join("?" * len(rows[0])) + ")"] * len(rows))
    values = [value for row in rows for value in row]
    connection.execute(f"INSERT INTO performance_results ({_COLUMNS}) VALUES {places}", values)


_JOINED = """
SELECT model_name, model_family, hardware_type, device_name, test_case, batch_size, precision, total_time_seconds,
    average_latency_ms, throughput_items_per_second, memory_peak_mb, iterations, warmup_iterations, metrics
FROM performance_results
JOIN models USING (model_id)
JOIN hardware_platforms USING (hardware_id)
ORDER BY result_id
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kit.writer", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, default=200.0, help="results a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first-id", type=int)
    parser.add_argument("--hold", action="store_true", help="hold the file until stdin is closed")
    options = parser.parse_args()
    if options.hold:
        return hold(options.file)
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    done = write(options.file, options.rate, options.seconds, options.first_id, lambda: bool(terminated))
    print(json.dumps(asdict(done)), flush=True)
    return None


if __name__ == "__main__":
    main()
