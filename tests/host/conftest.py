"""Hosts on databases of their own, without the plugins that happen to be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from unified_server import create_app, shutdown, startup
from unified_server.predictive.service import PredictivePerformance

# A Flask and a FlaskClient. To mypy an answer's `.json` may be None, which every line of every test would have to rule out.
MakeApp = Callable[..., Any]
Client = Any


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Make a started host; keyword arguments are sections of its config, ``plugins`` its plugins."""
    apps: list[Flask] = []

    def make(plugins: Mapping[str, object] | None = None, **config: Any) -> Flask:
        benchmark = {"path": str(tmp_path / "benchmark.duckdb"), **config.pop("benchmark_db", {})}
        predictive = {"path": str(tmp_path / "predictive.duckdb"), **config.pop("predictive_performance", {})}
        sections = {"benchmark_db": benchmark, "predictive_performance": predictive, **config}
        app = create_app(sections, plugins=plugins or {})
        apps.append(app)
        startup(app)
        return app

    yield make
    for app in apps:
        shutdown(app)


@pytest.fixture
def client(make_app: MakeApp) -> Client:
    return make_app().test_client()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PredictivePerformance]:
    made = PredictivePerformance(str(tmp_path / "service.duckdb"))
    yield made
    made.close()


@pytest.fixture
def measurement() -> dict[str, Any]:
    """A measurement with everything in it, as it is sent."""
    return {
        "model_name": "bert-base-uncased",
        "model_family": "bert",
        "hardware_platform": "cuda",
        "batch_size": 8,
        "sequence_length": 128,
        "precision": "fp16",
        "mode": "inference",
        "throughput": 1168.5,
        "latency": 6.85,
        "memory_usage": 905.9,
        "source": "benchmark",
        "measured_at": "2026-11-23T08:00:00+01:00",
        "source_ref": "bench:1",
        "metadata": {"device": "NVIDIA H100", "p99": 7.5},
    }
