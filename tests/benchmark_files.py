"""What the tests of layout and source share: small benchmark files by hand, all their rows, and processes that hold them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.source import BenchmarkSource

ROOT = Path(__file__).parents[1]

MODELS = "CREATE TABLE models (model_id INTEGER PRIMARY KEY, model_name VARCHAR)"
HARDWARE = "CREATE TABLE hardware_platforms (hardware_id INTEGER PRIMARY KEY, hardware_type VARCHAR)"
RESULTS = "CREATE TABLE performance_results (id INTEGER PRIMARY KEY, model_id INTEGER, hardware_id INTEGER, latency_ms DOUBLE)"
ONE_OF_EACH = (
    "INSERT INTO models VALUES (1, 'gpt2')",
    "INSERT INTO hardware_platforms VALUES (1, 'cuda')",
    "INSERT INTO performance_results VALUES (7, 1, 1, 12.5)",
)
#: The smallest file that can be read, with one result.
SMALLEST = (MODELS, HARDWARE, RESULTS, *ONE_OF_EACH)


def create(path: Path, *statements: str) -> Path:
    """A DuckDB file at `path` in which the statements ran."""
    connection = duckdb.connect(str(path))
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()
    return path


def sorted_ids(ids: pa.ChunkedArray) -> pa.Array:
    """The ids as `slices` wants them, made as a comparison makes them."""
    found = pc.unique(ids.drop_null())
    return found.take(pc.array_sort_indices(found))


def read_all(source: BenchmarkSource) -> list[dict[str, Any]]:
    """All rows of the file with an id, through `ids` and `slices`."""
    layout, ids = source.ids()
    return [row for table in source.slices(layout, sorted_ids(ids)) for row in table.to_pylist()]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """All rows of the file with an id, by id as text."""
    return sorted(read_all(BenchmarkSource(str(path), busy_timeout_s=5)), key=lambda row: str(row["result_id"]))


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the file read-write until its stdin is closed, at the latest at the end of the block."""
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.writer", str(path), "--hold"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        yield holder
    finally:
        holder.communicate()


def let_go(process: subprocess.Popen[str]) -> None:
    """Ends the hold of `held_elsewhere`, and waits until the file is free."""
    process.communicate()
