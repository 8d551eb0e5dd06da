"""The benchmark database, read and never written, and held open only while a query runs.

The file belongs to the benchmark writer: DuckDB lets one process write or several read, so every moment we hold it is a moment in which the writer
is refused. Each read therefore opens the file, fetches one slice into Arrow and closes it again before anything else happens. In a server that
already has the file open, its own connection is used (`host_connection`), one cursor for each read. In this process nothing but `os.stat` may touch
the file by other means: opening it would drop DuckDB's lock (see docs/decisions/source.md).
"""

from __future__ import annotations

import logging
import os
import random
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from benchbridge_plugin.errors import SourceBusy, SourceError, SourceInvalid, SourceLayoutError, SourceMissing
from benchbridge_plugin.files import located
from benchbridge_plugin.layout import Layout, catalogue_of, detect
from benchbridge_plugin.snapshot import fetch, snapshot

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger(__name__)

_FIRST_SLICE = 5_000
_SLICE_TARGET_S = 0.02  # opening and closing the file take as long again, and other threads want the processor too
LARGEST_SLICE = 200_000
_WORTH_A_COPY = 20_000  # rows; fewer are read in one or two slices
_COPY_SLICE = 60_000  # rows, since a copy may be held for long
_KEPT_HOLDS = 10_000
_HALF_MADE_OPENS = 20  # in a row, before we give up
_BUSY = ("Could not set lock on file", "different configuration than existing connections", "Unique file handle conflict")

# The functions are qualified, because a macro in the file can replace an unqualified one. A connection of the host can have other databases attached.
_DATABASE_SQL = "SELECT system.main.current_database()"
_READ_ONLY_SQL = "SELECT readonly FROM system.main.duckdb_databases() WHERE database_name = system.main.current_database()"
_CATALOGUE_SQL = """
    SELECT c.table_name, c.column_name, c.data_type, c.column_default, t.sql
      FROM system.main.duckdb_columns() AS c
      JOIN system.main.duckdb_tables() AS t ON t.table_oid = c.table_oid AND t.database_oid = c.database_oid AND t.schema_oid = c.schema_oid
     WHERE NOT t.internal
       AND NOT t.temporary
       AND t.database_name = $1
       AND t.schema_name = 'main'
     ORDER BY c.table_name, c.column_index
"""
_UNIQUE_SQL = """
    SELECT table_name, constraint_column_names
      FROM system.main.duckdb_constraints()
     WHERE database_name = $1
       AND schema_name = 'main'
       AND constraint_type IN ('PRIMARY KEY', 'UNIQUE')
"""


@dataclass(frozen=True, slots=True)
class Signature:
    """When nothing in here changed, nothing was committed: (mtime in ns, size in bytes) of the file and of its write-ahead log."""

    file: tuple[int, int]
    wal: tuple[int, int]

    def __str__(self) -> str:
        return ":".join(str(part) for part in (*self.file, *self.wal))


class BenchmarkSource:
    """Reads results of one benchmark database by role (see layout.ROLES).

    Every method opens and closes the file on its own and raises a SourceError: SourceMissing, SourceBusy (after `busy_timeout_s` of jittered
    waiting), SourceInvalid or SourceLayoutError. Safe to use from several threads.
    """

    kind = "DuckDB"
    _contents, _file = "DuckDB database", "DuckDB database file"
    _other_kinds: tuple[str, ...] = (".parquet", ".csv", ".json")

    def __init__(
        self,
        path: str,
        *,
        busy_timeout_s: float = 30.0,
        host_connection: Callable[[], DuckDBPyConnection | None] = lambda: None,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._host_connection = host_connection
        self._sleep = sleep
        self._jitter = jitter
        self._holds: deque[float] = deque(maxlen=_KEPT_HOLDS)
        self._hold_count = 0
        self._lock = threading.Lock()
        self._slice = _FIRST_SLICE
        self._least_s = 0.0  # that a slice takes, however small it is

    # -- what the file is ---------------------------------------------------------------------------------------------------------------

    def signature(self) -> Signature:
        """The file's signature, by `os.stat` alone. Raises SourceMissing."""

        def look(path: str) -> tuple[int, int]:
            found = os.stat(path)
            return found.st_mtime_ns, found.st_size

        self._check_path()
        try:
            wal = look(self.path + ".wal")
        except OSError:
            wal = (0, 0)
        return Signature(look(self.path), wal)

    def layout(self, *, wait: bool = True) -> Layout:
        """How the database is laid out now. With `wait=False` a busy file raises SourceBusy at once."""
        with self._session(wait=wait) as connection:
            return self._detect(connection)

    # -- reading ------------------------------------------------------------------------------------------------------------------------

    def ids(self, *, wait: bool = True) -> tuple[Layout, pa.ChunkedArray]:
        """The layout and the result id of every row, in no order, as `slices` takes them: null where it is null, repeated where it is repeated."""
        return self.ids_and_few(0, wait=wait)[:2]

    def ids_and_few(self, most: int, *, wait: bool = True) -> tuple[Layout, pa.ChunkedArray, pa.Table | None]:
        """What `ids` gives, and by the same opening all rows that have an id, if there are at most `most`; None if there are more."""
        rows = None
        with self._session(wait=wait) as connection:
            layout = self._detect(connection)
            table = connection.sql(f"SELECT {layout.id_column} AS id FROM {layout.results_table} AS r").to_arrow_table()
            if len(table) <= most:
                sql = f"SELECT {layout.columns}\nFROM {layout.tables}\nWHERE {layout.id_column} IS NOT NULL"
                rows = connection.sql(sql).to_arrow_table()
        return layout, table.column("id"), rows

    def slices(
        self, layout: Layout, ids: pa.Array, *, wait: bool = True, columns: str | None = None, most: int | None = None
    ) -> Iterator[pa.Table]:
        """All rows with these ids, a slice at a time; the slices are sized so that each holds the file for about 50 ms, opening and closing included.

        Many of them are read from a copy of the file, which is held once for that (see snapshot.py).

        `ids` must be sorted and unique. A row that appears meanwhile between two of the ids is returned too; it is new, and that is no harm.
        `columns`: other ones than those of the roles. `most`: ids of a slice, on a copy exactly; None leaves that to the source.
        """
        where = f"{layout.id_column} >= CAST($1 AS {layout.id_type}) AND {layout.id_column} <= CAST($2 AS {layout.id_type})"
        sql = f"SELECT {columns or layout.columns}\nFROM {layout.tables}\nWHERE {where}"
        with self._copied(wait=wait) if self._worth_a_copy(len(ids)) else nullcontext() as copy:
            start = 0
            while start < len(ids):
                size = self._slice_of(most) if copy is None else most or _COPY_SLICE
                # As text, which every type reads as it writes it; a Python value could arrive as another type.
                ends = [str(ids[place].as_py()) for place in (start, min(start + size, len(ids)) - 1)]
                with self._session(wait=wait) if copy is None else self._explaining(copy) as connection:
                    if start == 0 and copy is None and size < len(ids):
                        began = time.monotonic()
                        connection.sql(sql, params=ends[:1] * 2).fetchall()
                        self._least_s = time.monotonic() - began
                    began = time.monotonic()
                    table = connection.sql(sql, params=ends).to_arrow_table() if copy is None else fetch(copy, sql, ends)
                    took = max(time.monotonic() - began, 1e-4)
                if copy is None:
                    self._slice = self._next_slice(size, took)
                start += size
                yield table
                del table  # or it would be held while the next one is read

    def read(self, layout: Layout, result_ids: pa.Array, *, wait: bool = True, columns: str | None = None) -> pa.Table:
        """The rows with these result ids (text), in no order. Ids that are gone are left out. `columns`: other ones than those of the roles."""
        return self._rows(lambda connection: layout, result_ids, wait=wait, columns=columns)[1]

    def look_up(self, result_ids: pa.Array, *, wait: bool = True) -> tuple[Layout, pa.Table]:
        """The layout as it is now, and what `read` gives, by opening the file once."""
        return self._rows(self._detect, result_ids, wait=wait)

    def _rows(
        self, layout_of: Callable[[DuckDBPyConnection], Layout], result_ids: pa.Array, *, wait: bool, columns: str | None = None
    ) -> tuple[Layout, pa.Table]:
        wanted = pa.table({"id": result_ids})
        for _ in range(_HALF_MADE_OPENS):
            with self._session(wait=wait) as connection:
                layout = layout_of(connection)
                sql = (
                    f"SELECT {columns or layout.columns}\nFROM {layout.tables}\n"
                    f"SEMI JOIN temp.main.benchbridge_wanted AS w ON {layout.id_column} = TRY_CAST(w.id AS {layout.id_type})"
                )
                try:
                    connection.register("benchbridge_wanted", wanted)
                except duckdb.CatalogException as error:
                    if "python_arrow_scan" not in str(error):
                        raise
                    continue  # somebody else in this process was just opening the file, and our connection joined theirs half made: open it again
                try:
                    return layout, connection.sql(sql).to_arrow_table()
                finally:
                    connection.unregister("benchbridge_wanted")
        raise SourceBusy(
            f"The benchmark database {self.path} is being opened and closed all the time in this process.",
            guidance="Nothing is lost: try again.",
            path=self.path,
        )

    def _slice_of(self, most: int | None) -> int:
        return min(self._slice, most or self._slice)

    def _next_slice(self, size: int, took_s: float) -> int:
        """Smaller at once, larger in steps: a slice that was quick by chance must not be followed by one that holds the file for long."""
        target_s = max(_SLICE_TARGET_S, 2 * self._least_s)  # on a busy machine smaller ones would only open the file more often
        return int(min(max(size * min(target_s / took_s, 1.5), 1_000), LARGEST_SLICE))

    def _worth_a_copy(self, rows: int) -> bool:
        return rows >= _WORTH_A_COPY

    # -- how long the file was held -----------------------------------------------------------------------------------------------------

    def holds(self) -> Mapping[str, float]:
        """How long each open lasted, in milliseconds, over the last 10,000: `{"count", "p95_ms", "max_ms"}`."""
        with self._lock:
            ordered = sorted(self._holds)
            count = self._hold_count
        if not ordered:
            return {"count": 0, "p95_ms": 0.0, "max_ms": 0.0}
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        return {"count": count, "p95_ms": round(p95 * 1000, 2), "max_ms": round(ordered[-1] * 1000, 2)}

    def forget_holds(self) -> None:
        """Start the measurement anew, as a run does."""
        with self._lock:
            self._holds.clear()
            self._hold_count = 0

    # -- opening and closing ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _copied(self, *, wait: bool) -> Iterator[DuckDBPyConnection | None]:
        """A connection to a copy of the file, or None. Not where this process has the file open for writing: nobody would keep it from doing so."""

        @contextmanager
        def held() -> Iterator[bool]:
            with self._session(wait=wait) as connection:
                yield connection.execute(_READ_ONLY_SQL).fetchall() == [(True,)]

        if self._host_connection() is not None:
            yield None
            return
        self._check_path()
        with snapshot(Path(self.path).absolute(), held) as copy:
            yield copy

    @contextmanager
    def _explaining(self, connection: DuckDBPyConnection) -> Iterator[DuckDBPyConnection]:
        try:
            yield connection
        except duckdb.Error as error:
            raise self._explain(error) from error

    @contextmanager
    def _session(self, *, wait: bool) -> Iterator[DuckDBPyConnection]:
        host = self._host_connection()
        began = None
        if host is not None:
            try:
                connection = host.cursor()
            except duckdb.Error as error:
                raise self._explain_host(error) from error
        else:
            self._check_path()
            connection, began = self._open(wait=wait)
        try:
            connection.execute("SET TimeZone = 'UTC'")  # for this connection only: a time with a zone is read as UTC text
            yield connection
        except duckdb.Error as error:
            if host is not None and isinstance(error, (duckdb.ConnectionException, duckdb.InterruptException)):
                raise self._explain_host(error) from error
            raise self._explain(error) from error
        finally:
            connection.close()
            if began is not None:
                with self._lock:
                    self._holds.append(time.monotonic() - began)
                    self._hold_count += 1

    def _open(self, *, wait: bool) -> tuple[DuckDBPyConnection, float]:
        """Connect read-only; wait with growing jittered pauses (20 to 500 ms) while a writer has the file. The time is when holding it began."""
        deadline = time.monotonic() + (self._busy_timeout_s if wait else 0.0)
        pause = 0.02
        while True:
            try:
                began = time.monotonic()
                return self._connect(), began
            except duckdb.Error as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise self._explain(error) from error
            self._sleep(self._jitter(pause / 2, pause))
            pause = min(pause * 1.6, 0.5)

    def _connect(self) -> DuckDBPyConnection:
        path = os.path.abspath(self.path)  # noqa: PTH100 - DuckDB takes a relative "md:x" or ":memory:x" for something else than a file
        try:
            return duckdb.connect(path, read_only=True)
        except duckdb.ConnectionException as error:
            if "different configuration" not in str(error):
                raise
        return duckdb.connect(path)  # this process has it open read-write: share that instance

    def _check_path(self) -> None:
        """DuckDB takes '' and '*.parquet' for an in-memory database and a missing file for a new one: look first."""
        guidance = f"Set benchmark_db_path (--benchmark-db) to the {self.kind} file of the benchmark results."
        if not self.path:
            raise SourceMissing("There is no benchmark database: its path is empty.", guidance=guidance, path=self.path)
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise SourceMissing(f"There is no benchmark database at {located(self.path)}.", guidance=guidance, path=self.path) from None
        except (OSError, ValueError) as error:
            raise SourceInvalid(f"Cannot look at the benchmark database {self.path}: {error}.", guidance=guidance, path=self.path) from None
        if stat.S_ISDIR(found.st_mode):
            raise SourceInvalid(f"{self.path} is a directory, not a {self.kind} file.", guidance=guidance, path=self.path)
        if found.st_size == 0:
            raise SourceInvalid(
                f"{self.path} is empty, not a {self._contents}.",
                guidance=guidance,
                path=self.path,
            )
        if not stat.S_ISREG(found.st_mode) or self.path.lower().endswith(self._other_kinds):
            raise SourceInvalid(
                f"{self.path} is not a {self._file}.",
                guidance=guidance,
                path=self.path,
            )

    def _detect(self, connection: DuckDBPyConnection) -> Layout:
        ((database,),) = connection.execute(_DATABASE_SQL).fetchall()
        catalogue = catalogue_of(connection.execute(_CATALOGUE_SQL, [database]).fetchall())
        unique = frozenset(
            (table.lower(), columns[0].lower())
            for table, columns in connection.execute(_UNIQUE_SQL, [database]).fetchall()
            if len(columns) == 1
        )
        return detect(catalogue, unique, self.path, database)

    def _explain(self, error: duckdb.Error) -> SourceError:
        """The error of DuckDB as one of ours: what, where, what to do."""
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        lower = text.replace(self.path, "").lower()  # the path is no part of what DuckDB says
        if _is_busy(error):
            holder = re.search(r"held in (.+?) \(PID (\d+)\)", str(error))
            who = f"process {holder[2]} ({holder[1]})" if holder else "another connection"
            return SourceBusy(
                f"The benchmark database {self.path} is held for writing by {who}.",
                guidance="Nothing is lost: try again when the benchmark run has closed it, or raise source_busy_timeout_s. "
                "A server that keeps it open must pass its connection to the plugin.",
                path=self.path,
                pid=int(holder[2]) if holder else None,
            )
        if "storage version" in lower or "can only read version" in lower:
            what, todo = "was written by a newer DuckDB", f"Upgrade duckdb here (this is {duckdb.__version__}): pip install -U duckdb."
        elif "sqlite" in lower and "extension" in lower:
            what, todo = "is an SQLite database, not a DuckDB one", "Set benchmark_db_path to the DuckDB file."
        elif "not a valid duckdb database" in lower:
            what, todo = "is not a DuckDB database", "Set benchmark_db_path to the DuckDB file."
        elif "permission denied" in lower:
            what, todo = "may not be read by this user", f"Allow it, for example: chmod a+r {self.path}."
        elif "does not exist" in lower and isinstance(error, duckdb.IOException):
            return SourceMissing(
                f"There is no benchmark database at {located(self.path)}.", guidance="Check benchmark_db_path.", path=self.path
            )
        elif isinstance(error, (duckdb.BinderException, duckdb.CatalogException, duckdb.ConversionException)):
            return SourceLayoutError(
                f"The tables of {self.path} cannot be read: {text}", guidance="docs/layouts.md says which columns are read.", path=self.path
            )
        elif isinstance(error, duckdb.OutOfMemoryException):
            what = f"cannot be read with the memory there is: {text}"
            todo = "Nothing is lost: give this process more memory, or declare the primary keys of the tables in the file."
        else:
            what, todo = f"cannot be read: {text}", "The file seems damaged; check it with the duckdb shell, or restore it from a backup."
        return SourceInvalid(f"The benchmark database {self.path} {what}.", guidance=todo, path=self.path)

    def _explain_host(self, error: duckdb.Error) -> SourceError:
        return SourceError(
            f"The server's own connection to the benchmark database {self.path} cannot be used: {str(error).strip()}",
            guidance="The server must keep the connection it offers open for as long as it serves.",
            path=self.path,
        )


def _is_busy(error: duckdb.Error) -> bool:
    # The words of DuckDB, not just "lock": the path stands in the message too.
    # The third is this process itself, opening or closing the file in another mode at this very moment.
    return any(words in str(error) for words in _BUSY)
