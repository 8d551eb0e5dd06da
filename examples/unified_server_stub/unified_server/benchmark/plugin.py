"""The Benchmark API as a plugin of the host: routes, the connection it holds open if it is told to, numbers."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, request

from unified_server.api import api_blueprint
from unified_server.benchmark.layout import create_layout
from unified_server.benchmark.result import LIST_RESULTS, read_results
from unified_server.benchmark.store import BenchmarkStore
from unified_server.body import read_json
from unified_server.config import BenchmarkDbConfig
from unified_server.database import DatabaseFile
from unified_server.hookspecs import hookimpl
from unified_server.reading import read_query

PREFIX = "/api/benchmark"
SERVICE = "benchmark_db"


class BenchmarkPlugin:
    """The host's own plugin "benchmark"."""

    def __init__(self, config: BenchmarkDbConfig, api_key: str | None) -> None:
        self._api_key = api_key
        self._file = DatabaseFile(config.path, shared=not config.hold_open, schema=create_layout)
        self._store = BenchmarkStore(self._file)

    @hookimpl
    def unified_server_register_routes(self, app: Flask) -> None:
        app.register_blueprint(benchmark_blueprint(self._store, self._api_key))

    @hookimpl
    def unified_server_startup(self, app: Flask) -> None:
        # Not earlier: a DuckDB connection does not survive a fork, and `flask <command>` must not lock the file.
        if not self._file.shared:
            app.extensions["unified_server.services"][SERVICE] = self._file.hold()

    @hookimpl
    def unified_server_shutdown(self, app: Flask) -> None:
        app.extensions["unified_server.services"].pop(SERVICE, None)
        self._file.close()

    @hookimpl
    def unified_server_health(self, app: Flask) -> dict[str, dict[str, object]]:
        # Only os.stat: opening the file would get in a benchmark runner's way.
        return {"benchmark": {"file_exists": self._file.exists(), "held_open": not self._file.shared}}


def benchmark_blueprint(store: BenchmarkStore, api_key: str | None) -> Blueprint:
    """POST and GET /api/benchmark/results."""
    blueprint = api_blueprint("benchmark", PREFIX, api_key=api_key)

    @blueprint.post("/results")
    def add_results() -> tuple[dict[str, Any], int]:
        body = read_json(request)
        results = store.add(read_results(body))
        return {"count": len(results), "results": results} if "results" in body else dict(results[0]), 201

    @blueprint.get("/results")
    def list_results() -> dict[str, Any]:
        rows = store.page(**read_query(LIST_RESULTS, request.args))
        return {"count": len(rows), "results": rows}

    return blueprint
