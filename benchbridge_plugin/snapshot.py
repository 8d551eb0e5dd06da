"""A copy of a benchmark file, for as long as it is read.

Reading a large file slice by slice opens it again and again, and each opening keeps its writer out for some tens of milliseconds. A file that can be
copied in that time is held once, for the copy, and read at leisure from there. The copy is made by another process (`cp`): to open the file in this one
would drop DuckDB's lock (see docs/decisions/source.md).
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger(__name__)

_LARGEST_BYTES = 256 * 2**20
_LONGEST_S = 0.05  # that a copy may take
_FAR_TOO_LONG = 4  # times as long: not tried again
_MEMORY = "64MB"  # that the copy's pages may take, as long as no query needs more


@contextmanager
def snapshot(file: Path, held: Callable[[], AbstractContextManager[bool]]) -> Iterator[DuckDBPyConnection | None]:
    """A read-only connection to a copy of the DuckDB file and its write-ahead log, or None where slices are the better way: the file is large, or
    the disk slow or full.

    `held()` opens the file so that nobody can write it, and says whether that is so. Raises what that raises. The copy has the file's name, for that is
    what its database is called, and is gone from the disk as soon as it is open.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix="benchbridge-", ignore_cleanup_errors=True)
    except OSError:  # there is no place that this process may write
        yield None
        return
    with directory as place:
        connection = None
        if _size(file) <= _LARGEST_BYTES and _is_quick(file, place):
            with held() as is_held:
                copied = is_held and _copy(file, place) > 0
            if copied:
                connection = _open(Path(place, file.name))
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def fetch(copy: DuckDBPyConnection, sql: str, params: Sequence[str]) -> pa.Table:
    """The rows of a query of the copy; with as much memory as DuckDB takes by itself, where the limit of the pages is too little.

    So it is where a table without a declared key is put in order as a whole, to be joined once. Raises duckdb.Error.
    """
    try:
        return copy.sql(sql, params=params).to_arrow_table()
    except (duckdb.OutOfMemoryException, duckdb.IOException):  # the latter where DuckDB looks for the copy's directory, to spill
        copy.execute("RESET memory_limit")
        ((usual,),) = copy.execute("SELECT system.main.current_setting('memory_limit')").fetchall()
        copy.execute(f"SET memory_limit = '{usual}'")  # DuckDB 1.5 resets the setting, and not what it goes by
        return copy.sql(sql, params=params).to_arrow_table()


def _is_quick(file: Path, place: str) -> bool:
    """Whether the file can be copied in the time; tried without keeping anybody out. What that copied may be torn.

    Twice, for the first time the disk may have to be waited for, and slices would keep the writer out for longer in all than many copies.
    """
    took = _trial(file, place)
    if _LONGEST_S < took <= _FAR_TOO_LONG * _LONGEST_S:
        took = _trial(file, place)
    return 0 < took <= _LONGEST_S


def _trial(file: Path, place: str) -> float:
    """How long a copy takes, which is gone then: to write over it takes twice as long as to make another."""
    took = _copy(file, place)
    with suppress(OSError):
        for part in Path(place).iterdir():
            part.unlink()
    return took


def _open(copy: Path) -> DuckDBPyConnection | None:
    try:
        connection = duckdb.connect(str(copy), read_only=True, config={"memory_limit": _MEMORY})
        connection.execute("SET TimeZone = 'UTC'")
    except duckdb.Error as error:  # it was read a moment ago, so something is wrong with the copy: the file itself can still be read
        _logger.warning("the copy of a benchmark file cannot be read: %s", error)
        return None
    return connection


def _parts(file: Path) -> list[Path]:
    return [part for part in (file, file.with_name(f"{file.name}.wal")) if part.exists()]


def _size(file: Path) -> int:
    return sum(part.stat().st_size for part in _parts(file))


def _copy(file: Path, place: str) -> float:
    """Copy file and log into the directory. Seconds that took; 0 if it could not be done."""
    command = shutil.which("cp")
    if command is None:
        return 0.0
    began = time.monotonic()
    try:
        done = subprocess.run([command, "--", *_parts(file), place], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return 0.0
    return max(time.monotonic() - began, 1e-6) if done.returncode == 0 else 0.0
