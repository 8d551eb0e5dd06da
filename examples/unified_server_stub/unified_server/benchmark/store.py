"""Writing and reading results in layout V1."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

from unified_server.database import DatabaseFile, waits
from unified_server.errors import DatabaseBusy, InvalidInput
from unified_server.reading import detail
from unified_server.rows import fetch_rows

_INSERT_RESULT = """
INSERT INTO performance_results (result_id, run_id, model_id, hardware_id, test_case, batch_size, precision,
    total_time_seconds, average_latency_ms, throughput_items_per_second, memory_peak_mb, iterations,
    warmup_iterations, metrics, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_LIST = """
SELECT r.result_id, r.run_id, m.model_name, m.model_family, m.modality, h.hardware_type, h.device_name, r.test_case,
    r.batch_size, r.precision,
    CASE WHEN isfinite(r.total_time_seconds) THEN r.total_time_seconds END AS total_time_seconds,
    CASE WHEN isfinite(r.average_latency_ms) THEN r.average_latency_ms END AS average_latency_ms,
    CASE WHEN isfinite(r.throughput_items_per_second) THEN r.throughput_items_per_second END
        AS throughput_items_per_second,
    CASE WHEN isfinite(r.memory_peak_mb) THEN r.memory_peak_mb END AS memory_peak_mb,
    r.iterations, r.warmup_iterations, r.metrics, r.created_at,
    t.test_name, t.started_at, t.success, t.git_commit, t.git_branch
FROM performance_results r
LEFT JOIN models m USING (model_id)
LEFT JOIN hardware_platforms h USING (hardware_id)
LEFT JOIN test_runs t ON t.run_id = r.run_id
WHERE ($model_name IS NULL OR m.model_name = $model_name)
    AND ($hardware IS NULL OR h.hardware_type = $hardware)
ORDER BY r.result_id DESC
LIMIT $limit
OFFSET $offset
"""


class BenchmarkStore:
    """Results in a benchmark database. Thread-safe; other processes may write to the file in between."""

    def __init__(
        self,
        file: DatabaseFile,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file = file
        self._now = now
        self._sleep = sleep

    def add(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, int | None]]:
        """Store results in one transaction and return {"result_id", "model_id", "hardware_id", "run_id"} of each, in
        order.

        Models (by name), hardware (by type and device) and runs (by name, start and commit) are found or created. An
        id is the highest plus one, as every writer of these files does it; two writers with one id is a conflict, and
        the later starts over. Raises InvalidInput for a run_id that does not exist, DatabaseBusy after about 10 s;
        then nothing is stored.
        """
        pauses = waits(10)
        while True:
            try:
                with self._file.transaction() as cursor:
                    writer = _Writer(cursor, self._now().astimezone(UTC).replace(tzinfo=None))
                    return [writer.add(position, result) for position, result in enumerate(results)]
            except (duckdb.TransactionException, duckdb.ConstraintException) as error:
                pause = next(pauses, None)
                if pause is None:
                    raise DatabaseBusy(f"{self._file.path.name}: {error}") from error
                self._sleep(pause)

    def page(self, *, model_name: str | None, hardware: str | None, limit: int, offset: int) -> list[dict[str, Any]]:
        """Results with the names of their model, hardware and run, highest result_id first. Empty while there is no
        file.
        """
        if self._file.shared and not self._file.exists():
            return []
        chosen = {"model_name": model_name, "hardware": hardware, "limit": limit, "offset": offset}
        with self._file.cursor(read_only=True) as cursor:
            return fetch_rows(cursor, _LIST, chosen)


class _Writer:
    """One transaction's view: ids that were found or made are remembered until it ends."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, now: datetime) -> None:
        self._cursor = cursor
        self._now = now
        self._next: dict[str, int] = {}
        self._known: dict[tuple[object, ...], int] = {}

    def add(self, position: int, result: Mapping[str, Any]) -> dict[str, int | None]:
        model = {"model_name": result["model_name"]}
        more_of_model = {"model_family": result["model_family"], "modality": result["modality"]}
        hardware = {"hardware_type": result["hardware_type"], "device_name": result["device_name"]}
        ids: dict[str, int | None] = {
            "result_id": self._next_id("performance_results", "result_id"),
            "model_id": self._find_or_create("models", "model_id", model, more_of_model),
            "hardware_id": self._find_or_create("hardware_platforms", "hardware_id", hardware, {}),
            "run_id": self._run_id(position, result),
        }
        metrics = json.loads(result["metrics"]) if result["metrics"] is not None else {}
        if result["sequence_length"] is not None:
            metrics["sequence_length"] = result["sequence_length"]
        figures = ("total_time_seconds", "average_latency_ms", "throughput_items_per_second", "memory_peak_mb")
        self._cursor.execute(
            _INSERT_RESULT,
            [
                *(ids[name] for name in ("result_id", "run_id", "model_id", "hardware_id")),
                *(result[name] for name in ("test_case", "batch_size", "precision", *figures)),
                *(result[name] for name in ("iterations", "warmup_iterations")),
                json.dumps(metrics) if metrics else None,
                result["created_at"] or self._now,
            ],
        )
        return ids

    def _run_id(self, position: int, result: Mapping[str, Any]) -> int | None:
        if result["run"] is not None:
            run = dict(result["run"])
            found_by = {name: run.pop(name) for name in ("test_name", "started_at", "git_commit")}
            return self._find_or_create("test_runs", "run_id", found_by, run)
        run_id: int | None = result["run_id"]
        if run_id is not None and not self._cursor.execute("FROM test_runs WHERE run_id = ?", [run_id]).fetchall():
            raise InvalidInput([detail("unknown_run", ["body", "results", position, "run_id"], "No such run", run_id)])
        return run_id

    def _find_or_create(self, table: str, id_column: str, found_by: dict[str, Any], more: dict[str, Any]) -> int:
        """The lowest id whose columns match, NULL matching NULL; else that of a new row. Names are our own, values are
        parameters.
        """
        known = (table, *found_by.values())
        if known not in self._known:
            matches = " AND ".join(f"{name} IS NOT DISTINCT FROM ?" for name in found_by)
            found = self._cursor.execute(f"SELECT min({id_column}) FROM {table} WHERE {matches}", list(found_by.values())).fetchone()
            if found and found[0] is not None:
                self._known[known] = found[0]
            else:
                row = {id_column: self._next_id(table, id_column), **found_by, **more, "created_at": self._now}
                self._cursor.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
                self._known[known] = row[id_column]
        return self._known[known]

    def _next_id(self, table: str, id_column: str) -> int:
        if table not in self._next:
            highest = self._cursor.execute(f"SELECT coalesce(max({id_column}), 0) FROM {table}").fetchone()
            self._next[table] = highest[0] if highest else 0
        self._next[table] += 1
        return self._next[table]
