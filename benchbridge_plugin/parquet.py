"""Benchmark results in a Parquet file: one flat table, read as a benchmark database is.

The file is read through a private in-memory DuckDB that may open this one file and nothing else. Nobody is kept from writing: a Parquet file knows no
locks, and whoever writes a new one puts it in the place of the old one. While a query runs it reads the file that it opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb

from benchbridge_plugin.errors import SourceError, SourceInvalid, SourceMissing
from benchbridge_plugin.files import located
from benchbridge_plugin.layout import FLAT, Layout, detect
from benchbridge_plugin.source import LARGEST_SLICE, BenchmarkSource

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SUFFIX = ".parquet"
_TABLE = "performance_results"  # what the layout calls the table of the results
_COLUMNS_SQL = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? AND NOT internal ORDER BY column_index"


def open_source(path: str, **options: Any) -> BenchmarkSource:
    """The source for a benchmark file of that name. `options`: see BenchmarkSource."""
    return ParquetSource(path, **options) if path.lower().endswith(SUFFIX) else BenchmarkSource(path, **options)


class ParquetSource(BenchmarkSource):
    """Reads results of one Parquet file by role. Nothing is ever waited for, and no moment counts as holding the file."""

    kind = "Parquet"
    _contents = _file = "Parquet file"
    _other_kinds = ()

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._slice = LARGEST_SLICE  # nobody waits, and every slice looks through the whole file

    def _worth_a_copy(self, rows: int) -> bool:
        return False  # nobody is kept from it

    def _slice_of(self, most: int | None) -> int:
        return self._slice

    def _next_slice(self, size: int, took_s: float) -> int:
        return LARGEST_SLICE

    @contextmanager
    def _session(self, *, wait: bool) -> Iterator[DuckDBPyConnection]:
        self._check_path()
        path = os.path.abspath(self.path)  # noqa: PTH100 - as DuckDB is to see it, with nothing that a prefix could mean
        pattern = _as_pattern(path)
        connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET allowed_paths = ?", [[path, pattern]])
            connection.execute("SET enable_external_access = false")
            # A view takes no parameters. Folders called "x=1" must not become columns.
            literal = "'" + pattern.replace("'", "''") + "'"
            connection.execute(f"CREATE VIEW {_TABLE} AS SELECT * FROM read_parquet({literal}, hive_partitioning = false)")
            yield connection
        except duckdb.Error as error:
            raise self._explain(error) from error
        finally:
            connection.close()

    def _detect(self, connection: DuckDBPyConnection) -> Layout:
        columns = dict(connection.execute(_COLUMNS_SQL, [_TABLE]).fetchall())
        return detect({_TABLE: columns}, frozenset(), self.path, None, FLAT)

    def _explain(self, error: duckdb.Error) -> SourceError:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if not os.path.exists(self.path):  # noqa: PTH110 - gone since it was looked at
            return SourceMissing(
                f"There is no benchmark file at {located(self.path)}.", guidance="Check benchmark_db_path.", path=self.path
            )
        if not os.access(self.path, os.R_OK):
            what, todo = "may not be read by this user", f"Allow it, for example: chmod a+r {self.path}."
        elif "magic bytes" in text or "too small" in text:
            what = "is not a Parquet file, or not written to its end"
            todo = "Nothing is lost: the next sync looks again. Write it under another name and rename it when it is whole."
        else:
            what, todo = f"cannot be read: {text}", "The file seems damaged; write it anew."
        return SourceInvalid(f"The benchmark file {self.path} {what}.", guidance=todo, path=self.path)


def _as_pattern(path: str) -> str:
    """The pattern that stands for this path alone: DuckDB takes every path for a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)
