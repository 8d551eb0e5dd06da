"""Opening the ledger, its transactions, and its version.

On one machine the ledger is an SQLite file in WAL mode: readers never wait for the writer, and a writer begins with BEGIN IMMEDIATE, because a
transaction that turns from reading to writing fails at once when somebody else wrote in between. More machines share a PostgreSQL database.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from benchbridge_plugin.errors import LedgerError, LedgerNewer
from benchbridge_plugin.ledger import schema, upgrades

_logger = logging.getLogger(__name__)
#: What to do where SQLAlchemy finds no driver for a URL.
NO_DRIVER = "Install the driver with pip install 'benchbridge[postgres]', and begin the URL with postgresql+psycopg://."
_BUSY_TIMEOUT_S = 30
_SQLITE_OPTIONS: Mapping[str, Any] = {"connect_args": {"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False}}
#: What libpq does by itself would leave us waiting for minutes on a host that is gone. Seconds, and milliseconds for the last.
_SERVER_LIMITS = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
#: Pools that a forked child has from its parent. They are kept, since forgetting a connection would close it under the parent.
_inherited: list[object] = []


class Store:
    """The database behind the ledger. Connects on first use, in whichever process that is."""

    def __init__(self, url: str, *, before_writing: Callable[[Connection], object] = lambda connection: None) -> None:
        self._before_writing = before_writing
        try:
            self.url = make_url(url)
            self._engine: Engine = create_engine(self.url, **(_SQLITE_OPTIONS if self.is_sqlite else self._server_options()))
        except ImportError as error:
            raise LedgerError(f"The ledger URL cannot be used: {error}.", guidance=NO_DRIVER) from None
        except (ArgumentError, NoSuchModuleError) as error:
            raise LedgerError(
                f"The ledger URL cannot be used: {error}.",
                guidance="Use a file path, sqlite:///path or postgresql+psycopg://... (which needs benchbridge[postgres]).",
            ) from None
        if self.is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
            event.listen(self._engine, "before_cursor_execute", _use_index, retval=True)
        else:
            event.listen(self._engine, "connect", _prepare_server)
        self._ready_in: int | None = None

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path | None:
        """The SQLite file, if it is one."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @property
    def place(self) -> str:
        """Where the ledger is, without a password."""
        return str(self.path) if self.path else self.url.render_as_string(hide_password=True)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One durable transaction: all of it or nothing. Raises LedgerError."""
        self.prepare()
        with self._translated(), self._engine.begin() as connection:
            if self.is_sqlite:  # one machine, one clock
                self._before_writing(connection)
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent snapshot that never waits for a writer. Raises LedgerError."""
        self.prepare()
        with self._translated(), self._engine.connect() as connection:
            # On a server every statement would see a snapshot of its own, and an accounting made of two of them need not add up.
            isolation = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
            connection.execution_options(benchbridge_reading=True, **isolation)
            with connection.begin():
                yield connection

    def prepare(self) -> None:
        """Create or upgrade the tables, once for each process. Raises LedgerNewer for a ledger of a later version."""
        if self._ready_in == os.getpid():
            return
        if self._ready_in is not None:  # forked: the parent's connections are not ours to use or to close
            _inherited.append(self._engine.pool)
            self._engine.dispose(close=False)
        if self.path is not None and not self.path.parent.is_dir():
            raise LedgerError(
                f"There is no directory {self.path.parent} for the ledger.", guidance="Create it, or set ledger_url (--ledger)."
            )
        with self._translated():
            with self._engine.connect() as connection:
                connection.execution_options(benchbridge_reading=True)
                with connection.begin():
                    version = self._version(connection)
            if version > upgrades.VERSION:
                raise LedgerNewer(
                    f"The ledger {self.place} has version {version}, and this benchbridge knows versions up to {upgrades.VERSION}.",
                    guidance="Upgrade benchbridge: pip install -U benchbridge. Nothing was changed.",
                    version=version,
                )
            if version < upgrades.VERSION:
                self._upgrade()
        self._ready_in = os.getpid()

    def dispose(self) -> None:
        self._engine.dispose()

    def _server_options(self) -> dict[str, Any]:
        """A connection that the server has closed meanwhile is replaced before it is used. What the URL says comes first."""
        return {
            "pool_pre_ping": True,
            "connect_args": {name: value for name, value in _SERVER_LIMITS.items() if name not in self.url.query},
        }

    def _upgrade(self) -> None:
        with self._engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(7264312)"))
            version = self._version(connection)  # another process may have been here first
            if version >= upgrades.VERSION:
                return
            if version > 0 and self.path is not None:
                self._back_up(self.path, version)  # under the write lock: what is copied is what is upgraded
            for step in upgrades.UPGRADES[version:]:
                step(connection)
            connection.execute(schema.ledger_meta.delete().where(schema.ledger_meta.c.name == "version"))
            connection.execute(schema.ledger_meta.insert().values(name="version", value=str(upgrades.VERSION)))
        _logger.info("ledger %s is now version %d", self.place, upgrades.VERSION)

    def _back_up(self, path: Path, version: int) -> None:
        target = path.with_name(f"{path.name}.v{version}.backup")
        try:
            with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as old, closing(sqlite3.connect(target)) as copy:
                old.backup(copy)
        except sqlite3.Error as error:
            raise LedgerError(
                f"The ledger {self.place} cannot be backed up to {target} before its upgrade: {error}.",
                guidance="Make room and the directory writable. Nothing was changed.",
                place=self.place,
            ) from error
        _logger.info("ledger backed up to %s before its upgrade", target)

    @staticmethod
    def _version(connection: Connection) -> int:
        if not inspect(connection).has_table(schema.ledger_meta.name):
            return 0
        found = connection.execute(select(schema.ledger_meta.c.value).where(schema.ledger_meta.c.name == "version")).scalar_one_or_none()
        return int(found or 0)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._explain(error) from error

    def _explain(self, error: SQLAlchemyError) -> LedgerError:
        said = str(error.orig if isinstance(error, DBAPIError) else error).strip() or type(error).__name__
        cause = said.splitlines()[0].rstrip(".")
        lower = cause.lower()
        if "not a database" in lower or "malformed" in lower:
            todo = "Restore it from a backup. If there is none, move it away and rebuild it from the predictive API: benchbridge adopt."
        elif "readonly" in lower or "unable to open" in lower or "permission" in lower:
            todo = "Make the file and its directory writable for this user, or set ledger_url (--ledger) to another place."
        elif "full" in lower:
            todo = "Free some disk space; nothing was half-written."
        elif "locked" in lower:
            todo = "Another process is writing it for long; try again."
        else:
            todo = "Nothing was half-written; try again once it can be reached."
        return LedgerError(f"The ledger {self.place} cannot be used: {cause}.", guidance=todo, place=self.place)


def insert_many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Run one statement written with `?` for many rows, and say how many rows it changed.

    Plain tuples through the driver: five times as fast as lists of dictionaries.
    """
    if not rows:
        return 0
    if connection.dialect.paramstyle not in ("qmark", "numeric"):
        sql = sql.replace("%", "%%").replace("?", "%s")
    return connection.exec_driver_sql(sql, list(rows)).rowcount


def _prepare_sqlite(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000}")
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _prepare_server(dbapi_connection: Any, _record: object) -> None:
    """A commit is on disk before anything is sent because of it, also where the server is set not to wait for that."""
    cursor = dbapi_connection.cursor()
    cursor.execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
    cursor.close()
    dbapi_connection.commit()


def _use_wal(cursor: Any) -> None:
    """Turn to WAL mode, once in the life of the file. SQLite does not wait for others here, whatever busy_timeout says."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("benchbridge_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _use_index(
    _connection: Connection, _cursor: object, statement: str, parameters: Any, context: Any, _executemany: bool
) -> tuple[str, Any]:
    """Name the index that a query asks for (schema.among_open); SQLAlchemy has no hints for SQLite."""
    table, index = context.execution_options.get("benchbridge_index", ("", "")) if context is not None else ("", "")
    return (statement.replace(f"FROM {table}", f"FROM {table} INDEXED BY {index}", 1) if index else statement), parameters
