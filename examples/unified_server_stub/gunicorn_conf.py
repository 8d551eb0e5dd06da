"""gunicorn -c gunicorn_conf.py unified_server.wsgi:app, with UNIFIED_SERVER_CONFIG naming the configuration file.

Works with and without --preload: plugins start in each worker, after the fork, and stop before it exits. With more than
one worker set "predictive_performance": {"shared": true} (otherwise the first worker keeps the file to itself and the
others answer 503), and leave "benchmark_db": {"hold_open": false}. A task's state is kept by the worker that ran it:
with several workers, record with an Idempotency-Key and ask POST /measurements/lookup instead of GET /task.
"""

from typing import Any

import duckdb
from unified_server import shutdown, startup

bind = "127.0.0.1:8080"
workers = 1
worker_class = "gthread"
threads = 8
timeout = 120
graceful_timeout = 15


def pre_fork(_server: Any, _worker: Any) -> None:
    """In the master. duckdb 1.5 starts a thread when it is imported; a worker forked with it would hang at its end, waiting for it."""
    duckdb.close()  # the default connection, which nobody here uses; it comes back when somebody does


def post_worker_init(worker: Any) -> None:
    """In the worker, after the application is loaded and before the first request."""
    startup(worker.wsgi)


def worker_exit(_server: Any, worker: Any) -> None:
    """In the worker, on its way out; one that failed to load has no application."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        shutdown(app, timeout_seconds=10)
