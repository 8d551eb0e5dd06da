"""One DuckDB file, held open or opened for each operation.

DuckDB lets one process at a time write to a file, and within a process all connections to it must agree on read-only
or not. So a file that others use is opened late and closed early, and a conflict is waited out.

Never ``open()``, copy or hash the database file from a process that may hold it: POSIX drops all of a process's locks
on a file as soon as the process closes any descriptor of it, and DuckDB's lock would be gone without a word.
``os.stat`` is safe. That is also why the lock between processes is on a file of its own.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from unified_server.errors import DatabaseBusy

Schema = Callable[[duckdb.DuckDBPyConnection], None]


def waits(limit_seconds: float, *, longest: float = 0.2, clock: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """Jittered waits that grow from 5 ms to ``longest`` seconds, for about ``limit_seconds`` in all."""
    until = clock() + limit_seconds
    wait = 0.005
    while clock() < until:
        yield wait * random.uniform(0.5, 1.5)
        wait = min(wait * 2, longest)


@contextmanager
def whole(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """A transaction on the connection: committed at the end, rolled back if anything is raised."""
    cursor.begin()
    try:
        yield
        cursor.commit()
    except BaseException:
        with suppress(duckdb.Error):  # a failed COMMIT has ended the transaction already
            cursor.rollback()
        raise


class DatabaseFile:
    """A DuckDB file.

    ``shared=False``: one read-write connection from the first operation until ``close``; no other process can use the
    file meanwhile.
    ``shared=True``: open only during an operation, so that other processes can read and write in between.
    ``queue=True`` (only with ``shared``): operations of all processes that say so take turns on ``<file>.lock``,
    instead of meeting in DuckDB's own lock, which makes the loser wait a random time.

    ``schema`` is called with each new read-write connection. Safe for threads; do not use an object across a fork.
    Every operation raises DatabaseBusy after about ``patience_seconds``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shared: bool,
        queue: bool = False,
        schema: Schema | None = None,
        patience_seconds: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = Path(path).absolute()
        self.shared = shared
        self._queue = queue
        self._schema = schema
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        self._mutex = threading.Lock()
        self._schema_mutex = threading.Lock()
        self._held: duckdb.DuckDBPyConnection | None = None

    def exists(self) -> bool:
        return self.path.exists()

    def hold(self) -> duckdb.DuckDBPyConnection:
        """The connection that is held open (``shared=False``). Threads take a ``cursor()`` each and close it."""
        with self._mutex:
            if self._held is None:
                self._held = self._connect(read_only=False)
            return self._held

    def close(self) -> None:
        """Close a held connection, and with it all cursors. A later operation opens the file again."""
        with self._mutex:
            held, self._held = self._held, None
        if held is not None:
            held.close()

    @contextmanager
    def cursor(self, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one operation, closed afterwards. ``read_only`` matters for a shared file that must exist
        then.

        Nothing is committed or rolled back: DuckDB commits each statement unless a transaction was begun (see
        ``transaction``).
        """
        if not self.shared:
            cursor = self.hold().cursor()
            try:
                yield cursor
            finally:
                cursor.close()
            return
        with self._turn():
            connection = self._connect(read_only=read_only and not self._queue)
            try:
                yield connection
            finally:
                connection.close()

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with a transaction: committed at the end, rolled back if anything is raised."""
        with self.cursor() as cursor, whole(cursor):
            yield cursor

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        pauses = waits(self._patience_seconds)
        while True:
            try:
                connection = duckdb.connect(str(self.path), read_only=read_only)
                break
            except duckdb.Error as error:
                if not _is_conflict(error):
                    raise
                pause = next(pauses, None)
                if pause is None:
                    raise DatabaseBusy(f"{self.path.name} is in use: {error}") from error
                self._sleep(pause)
        try:
            if self._schema is not None and not read_only:
                with self._schema_mutex:  # two threads creating one table at once is a conflict for the later
                    self._schema(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._queue:
            yield
            return
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            pauses = waits(self._patience_seconds, longest=0.02)
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pause = next(pauses, None)
                    if pause is None:
                        raise DatabaseBusy(f"{self.path.name} is in use by another worker") from None
                    self._sleep(pause)
            yield
        finally:
            os.close(lock)


# What duckdb says when another process has the file, when this process has it in the other mode, and when another thread
# of this process is opening or closing it at this moment (ResourceInUseException in 2.0, BinderException in 1.5).
_CONFLICTS = ("Could not set lock", "different configuration", "Unique file handle conflict")


def _is_conflict(error: duckdb.Error) -> bool:
    """Someone else has the file right now. There is no class of errors for it, only these words."""
    return any(words in str(error) for words in _CONFLICTS)
