"""The small host with its service in this process: where benchmarks deliver to without a network."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_server import create_app, shutdown, startup
from werkzeug.serving import make_server

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices

KEY = {"X-API-Key": "key"}
STORE = "predictive.duckdb"  # within the place


@contextmanager
def hosted(place: Path, learning: Mapping[str, Any] | None = None) -> Iterator[HostServices]:
    """The host's services, stored in `place`; at the end its files are closed. `learning`: the host's section of that name."""
    predictive = {"path": str(place / STORE), **({"learning": dict(learning)} if learning else {})}
    app = create_app({"benchmark_db": {"path": str(place / "unused.duckdb")}, "predictive_performance": predictive})
    try:
        yield HostServices(services=lambda: app.extensions["unified_server.services"])
    finally:
        shutdown(app)


@contextmanager
def served(file: Path, place: Path) -> Iterator[str]:
    """The address of a bridge over HTTP, in a host that has the service, too. Requests need KEY."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    app = create_app(
        {
            "benchmark_db": {"path": str(file)},
            "predictive_performance": {"path": str(place / STORE)},
            "benchmark_predictive_performance": {
                "enabled": True,
                "benchmark_db_path": str(file),
                "bridge_api_key": KEY["X-API-Key"],
                "report_output_dir": str(place / "reports"),
            },
        }
    )
    startup(app)
    listener = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/api/bridge"
    finally:
        listener.shutdown()
        listener.server_close()
        shutdown(app)


@contextmanager
def bridged(
    file: Path, place: Path, *, learning: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[BenchmarkPredictivePerformanceBridge]:
    """A bridge from the file to the service of a host of its own, ledger and reports in `place`."""
    defaults = {"ledger_url": str(place / "ledger.sqlite"), "report_output_dir": str(place / "reports")}
    with hosted(place, learning) as host, BenchmarkPredictivePerformanceBridge(file, host=host, **{**defaults, **settings}) as bridge:
        yield bridge
