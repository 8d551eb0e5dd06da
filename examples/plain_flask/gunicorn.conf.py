"""Read by gunicorn when it is started in this directory."""

from typing import Any

import duckdb

from benchbridge_plugin.plugin import start, stop

workers = 2
worker_class = "gthread"
threads = 4
graceful_timeout = 15  # longer than shutdown_timeout_s


def pre_fork(_server: Any, _worker: Any) -> None:
    """In the master. duckdb 1.5 starts a thread when it is imported, and a worker forked with it would hang at its end."""
    duckdb.close()


def post_worker_init(worker: Any) -> None:
    """In the worker, after the fork: open the ledger and start the timer."""
    start(worker.wsgi)


def worker_exit(_server: Any, worker: Any) -> None:
    """Finish the batch in hand; a worker that failed to load has no application."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        stop(app)
