"""What the base-contract server remembers: measurements, and the tasks that put them there.

Rows live as long as the store (and its file); tasks are forgotten by a restart, as in the servers in use.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.kit.contract import LISTED

#: A stored measurement: the columns of LISTED and prediction_id.
Row = dict[str, Any]

#: How long a reader of the rows waits for measurements that were answered for and are about to be stored.
_SETTLE_S = 2.0


@dataclass(slots=True)
class _Task:
    measurement: dict[str, Any]
    status: str = "pending"
    polls_left: int | None = None  # not None: stores when this many polls have been answered "pending"
    stored: Row | None = None


class MeasurementStore:
    """Rows and tasks of one server. Thread-safe; every row handed out is a copy.

    With a file, each row is appended to it as one line of JSON in one write before anybody can see it, and read back by
    the next store.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Condition()  # of an RLock: complete() is called under it
        self._rows: list[Row] = []
        self._tasks: dict[str, _Task] = {}
        self._on_the_way = 0
        self._path = path
        if path is not None and path.exists():
            self._rows = [json.loads(line) for line in path.read_text().splitlines()]

    def rows(self) -> list[Row]:
        """All rows in the order they were stored, once those that were already answered for are in."""
        with self._lock:
            self._lock.wait_for(lambda: not self._on_the_way, timeout=_SETTLE_S)
            return [dict(row) for row in self._rows]

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        """While it is open, `rows()` waits: a measurement is being answered for and stored after the answer."""
        with self._lock:
            self._on_the_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._on_the_way -= 1
                self._lock.notify_all()

    def new_task(self, measurement: dict[str, Any], *, polls: int | None = None) -> str:
        """The id of a new pending task; with `polls` it completes by itself after that many."""
        task_id = f"measurement-{uuid.uuid4()}"
        with self._lock:
            self._tasks[task_id] = _Task(measurement, polls_left=polls)
        return task_id

    def complete(self, task_id: str) -> None:
        """Stores the task's measurement, once, and completes the task; does nothing for a task forgotten meanwhile."""
        with self._lock:
            task = self._tasks.get(task_id)
            if task is not None and task.stored is None:
                task.stored = self._store(task.measurement)
                task.status = "completed"

    def fail(self, task_id: str) -> None:
        """The task fails; nothing is stored."""
        with self._lock:
            self._tasks[task_id].status = "failed"

    def forget(self, task_id: str | None = None) -> None:
        """Forgets one task, or all of them. What they stored stays."""
        with self._lock:
            if task_id is None:
                self._tasks.clear()
            else:
                self._tasks.pop(task_id, None)

    def poll(self, task_id: str) -> dict[str, Any] | None:
        """The answer to `GET /task/{id}`; None for an id that is not known."""
        with self._lock:
            task = self._tasks.get(task_id)
            if task is None:
                return None
            if task.polls_left is not None and task.stored is None:
                if task.polls_left <= 0:
                    self.complete(task_id)
                task.polls_left -= 1
            now = task.status
            if now == "pending" and task.polls_left is not None:
                task.status = "running"  # what the next poll is told
            answer: dict[str, Any] = {
                "status": now,
                "progress": _PROGRESS[now],
                "message": _MESSAGES[now],
                "timestamp": _now().isoformat(),
            }
            if task.stored is not None:
                answer["result"] = {
                    "measurement_id": task.stored["measurement_id"],
                    "prediction_id": task.stored["prediction_id"],
                    "measurement": listed(task.stored),
                }
            return answer

    def page(self, filters: Mapping[str, Any], days: int | None, limit: int) -> list[Row]:
        """The newest `limit` rows that agree with the filters and are not older than `days`, newest first."""
        if limit < 0:
            raise ValueError("LIMIT must not be negative")
        since = "" if not days else (_now() - timedelta(days=days)).isoformat()
        page: list[Row] = []
        with self._lock:
            for row in reversed(self._rows):
                if len(page) == limit:
                    break
                if row["timestamp"] >= since and all(row[column] == value for column, value in filters.items()):
                    page.append(listed(row))
        return page

    def insert(self, **values: Any) -> Row:
        """Stores a row past the API, as if another sender's: columns of a row, with defaults for those not given."""
        with self._lock:
            measurement = {
                "model_name": "bert-base-uncased",
                "model_family": None,
                "hardware_platform": "cuda",
                "batch_size": 1,
                "sequence_length": 128,
                "precision": "fp32",
                "mode": "inference",
                "throughput": None,
                "latency": None,
                "memory_usage": None,
                "prediction_id": None,
                "source": values.pop("measurement_source", "somebody else"),
            }
            overrides: Row = {name: values.pop(name) for name in ("timestamp", "measurement_id") if name in values}
            unknown = values.keys() - measurement.keys()
            if unknown:
                raise TypeError(f"not a column of a measurement: {', '.join(sorted(unknown))}")
            return dict(self._store(measurement | values, overrides))

    def _store(self, measurement: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Row:
        values = dict(measurement)
        source = values.pop("source")
        row: Row = {
            "id": len(self._rows) + 1,
            "timestamp": _now().isoformat(),
            **values,
            "measurement_source": source,
            "measurement_id": _measurement_id(values["model_name"], values["hardware_platform"]),
            "metadata": {},
            **(overrides or {}),
        }
        if self._path is not None:
            with self._path.open("ab", buffering=0) as file:
                file.write(json.dumps(row).encode() + b"\n")
        self._rows.append(row)
        return row


def listed(row: Row) -> Row:
    """The row as the listing shows it."""
    return {column: row[column] for column in LISTED}


def has_non_finite(rows: list[Row]) -> bool:
    """Whether a row has a figure that JSON cannot say (the listing breaks on it)."""
    return any(isinstance(value, float) and not math.isfinite(value) for row in rows for value in row.values())


def _measurement_id(model_name: str, hardware_platform: str) -> str:
    """Made of seconds and hashes, so two measurements of one model and hardware within a second share it."""
    digests = [zlib.crc32(name.encode()) % 10_000 for name in (model_name, hardware_platform)]
    return f"measurement-{int(time.time())}-{digests[0]:04d}-{digests[1]:04d}"


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


_PROGRESS = {"pending": 0.0, "running": 0.5, "completed": 1.0, "failed": 1.0}

_MESSAGES = {
    "pending": "Task is pending",
    "running": "Recording measurement",
    "completed": "Measurement recorded successfully",
    "failed": "Error recording measurement: the database is locked",
}
