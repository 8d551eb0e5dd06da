"""The small host with its service in this process: where benchmarks deliver to without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_server import create_app, shutdown

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices

STORE = "predictive.duckdb"  # within the place


@contextmanager
def hosted(place: Path) -> Iterator[HostServices]:
    """The host's services, stored in `place`; at the end its files are closed."""
    app = create_app({"benchmark_db": {"path": str(place / "unused.duckdb")}, "predictive_performance": {"path": str(place / STORE)}})
    try:
        yield HostServices(services=lambda: app.extensions["unified_server.services"])
    finally:
        shutdown(app)


@contextmanager
def bridged(file: Path, place: Path, **settings: Any) -> Iterator[BenchmarkPredictivePerformanceBridge]:
    """A bridge from the file to the service of a host of its own, ledger and reports in `place`."""
    defaults = {"ledger_url": str(place / "ledger.sqlite"), "report_output_dir": str(place / "reports")}
    with hosted(place) as host, BenchmarkPredictivePerformanceBridge(file, host=host, **{**defaults, **settings}) as bridge:
        yield bridge
