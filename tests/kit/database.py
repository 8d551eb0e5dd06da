"""A V1 benchmark database that a test writes row by row, as a benchmark runner would: open, write, close."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

import duckdb

from tests.kit.schemas import SCHEMAS


class ResultValues(TypedDict, total=False):
    """What a test may say about a result; what it leaves out is in DEFAULTS.

    None is NULL; NaN and inf are stored as they are.
    V1 refuses NULL for test_case. `run` None: no run. `metrics` is stored as given, in place of the JSON that has
    sequence_length in it. An aware datetime is stored as naive UTC; a naive one as it is.
    """

    result_id: int  # default: one more than the largest
    model: str | None
    model_family: str | None
    hardware: str | None
    device: str | None
    run: str | None
    precision: str | None
    batch_size: int | None
    sequence_length: int | None  # goes into metrics
    throughput: float | None
    latency: float | None
    memory: float | None
    test_case: str | None
    created_at: datetime | None  # of the result; default: now
    started_at: datetime | None  # of the run; default: NULL, so that created_at says when
    success: bool | None  # of the run
    metrics: str | None


#: A plausible result whose figures agree with each other: 8 items in 10 ms.
DEFAULTS: ResultValues = {
    "model": "bert-base-uncased",
    "model_family": "bert",
    "hardware": "cuda",
    "device": "NVIDIA H100 80GB HBM3",
    "run": "kit",
    "precision": "fp16",
    "batch_size": 8,
    "sequence_length": 128,
    "throughput": 800.0,
    "latency": 10.0,
    "memory": 512.0,
    "test_case": "inference",
    "started_at": None,
    "success": True,
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A read-write connection and what it took to get it."""

    connection: duckdb.DuckDBPyConnection
    refusals: int
    waited_s: float


def open_for_writing(
    path: Path,
    patience_s: float = 10.0,
    *,
    give_up: Callable[[], bool] = lambda: False,
    draws: random.Random | None = None,
) -> Opened:
    """Opens the file read-write, trying again 5-20 ms after each refusal by a lock.

    Tries for `patience_s` or until `give_up()`.
    A connection of this process with another configuration (the bridge's read-only one) counts as a refusal too. Then
    raises duckdb's error.
    """
    draws = draws or random.Random()
    began, refusals = time.monotonic(), 0
    while True:
        try:
            return Opened(duckdb.connect(str(path)), refusals, time.monotonic() - began)
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            text = str(error)
            if "set lock" not in text and "different configuration" not in text:
                raise
            if time.monotonic() - began > patience_s or give_up():
                raise
            refusals += 1
            time.sleep(draws.uniform(0.005, 0.020))


#: The V1 file without rows, as bytes: writing them is quicker than making it again.
_EMPTY: list[bytes] = []


class BenchmarkDatabase:
    """The V1 file at `path`, made empty when it is missing. Every call opens it read-write and closes it again, but for those within `kept_open()`.

    Calls wait up to 10 s for another process that holds the file. Not for use from several threads at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: duckdb.DuckDBPyConnection | None = None
        if path.exists():
            return
        if not _EMPTY:
            with self._open() as connection:
                for table in SCHEMAS["V1"].tables:
                    connection.execute(table)
            _EMPTY.append(path.read_bytes())
        path.write_bytes(_EMPTY[0])

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """For many calls in a row, with nobody else at the file: opening it takes longer than all else."""
        with self._open() as connection:
            self._kept = connection
            try:
                yield
            finally:
                self._kept = None

    def insert(self, **values: Unpack[ResultValues]) -> int:
        """Adds a result, and the model, hardware and run it names unless they are there; returns its result_id."""
        chosen: ResultValues = {**DEFAULTS, **values}
        created_at = values["created_at"] if "created_at" in values else datetime.now(UTC)
        with self._open() as connection:
            connection.execute("BEGIN TRANSACTION")
            result_id = values["result_id"] if "result_id" in values else _next_result_id(connection)
            model = {"model_name": chosen["model"], "model_family": chosen["model_family"]}
            hardware = {"hardware_type": chosen["hardware"], "device_name": chosen["device"]}
            run = None
            if chosen["run"] is not None:
                about = {"started_at": _naive(chosen["started_at"]), "success": chosen["success"]}
                run = find_or_add(connection, "test_runs", "run_id", {"test_name": chosen["run"], **about})
            columns = {
                "result_id": result_id,
                "run_id": run,
                "model_id": find_or_add(connection, "models", "model_id", model),
                "hardware_id": find_or_add(connection, "hardware_platforms", "hardware_id", hardware),
                "test_case": chosen["test_case"],
                "batch_size": chosen["batch_size"],
                "precision": chosen["precision"],
                "average_latency_ms": chosen["latency"],
                "throughput_items_per_second": chosen["throughput"],
                "memory_peak_mb": chosen["memory"],
                "metrics": chosen["metrics"] if "metrics" in chosen else _metrics(chosen["sequence_length"]),
                "created_at": _naive(created_at),
            }
            _insert(connection, "performance_results", columns)
            connection.execute("COMMIT")
        return result_id

    def update(self, result_id: int, **columns: object) -> None:
        """Sets columns of performance_results, by their own names."""
        settings = ", ".join(f'"{name}" = ?' for name in columns)
        self.execute(f"UPDATE performance_results SET {settings} WHERE result_id = ?", [*columns.values(), result_id])

    def delete(self, result_id: int) -> None:
        """Deletes one result; its run, model and hardware stay."""
        self.execute("DELETE FROM performance_results WHERE result_id = ?", [result_id])

    def execute(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows."""
        with self._open() as connection:
            return connection.execute(sql, list(params)).fetchall()

    @contextmanager
    def _open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._kept is not None:
            yield self._kept
            return
        connection = open_for_writing(self.path).connection
        try:
            yield connection
        finally:
            connection.close()


def find_or_add(connection: duckdb.DuckDBPyConnection, table: str, key: str, identity: Mapping[str, object], **more: object) -> int:
    """The key of the row whose columns are all as in `identity` (NULL is NULL); if there is none, it is added.

    `more` are columns for a row that is added.
    """
    same = " AND ".join(f"{column} IS NOT DISTINCT FROM ?" for column in identity)
    found = connection.execute(f"SELECT min({key}) FROM {table} WHERE {same}", list(identity.values())).fetchone()
    if found is not None and found[0] is not None:
        return int(found[0])
    added = _next(connection, table, key)
    _insert(connection, table, {key: added, **identity, **more})
    return added


def _next_result_id(connection: duckdb.DuckDBPyConnection) -> int:
    return _next(connection, "performance_results", "result_id")


def _next(connection: duckdb.DuckDBPyConnection, table: str, key: str) -> int:
    found = connection.execute(f"SELECT coalesce(max({key}), 0) + 1 FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


def _insert(connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, object]) -> None:
    places = ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", list(columns.values()))


def _metrics(sequence_length: int | None) -> str | None:
    return None if sequence_length is None else json.dumps({"sequence_length": sequence_length})


def _naive(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
