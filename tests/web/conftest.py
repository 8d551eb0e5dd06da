"""A host with the bridge in it, on a small benchmark file, and a client that has the key."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from unified_server import create_app, shutdown, startup

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, plugin
from tests.kit.layouts import BenchmarkDatabase, build

KEY = "key-of-the-tests"
RESULTS = 20

#: To mypy an answer's `.json` may be None, which every line of every test would have to rule out.
Client = Any


@dataclass(frozen=True, slots=True)
class Host:
    """`client` sends the key, `stranger` does not."""

    app: Flask
    database: Path

    @property
    def bridge(self) -> BenchmarkPredictivePerformanceBridge:
        bridge: BenchmarkPredictivePerformanceBridge = self.app.extensions["benchbridge"]
        return bridge

    @property
    def client(self) -> Client:
        client = self.stranger
        client.environ_base["HTTP_X_API_KEY"] = KEY
        return client

    @property
    def stranger(self) -> Client:
        return self.app.test_client()

    def insert(self, **values: Any) -> int:
        return self.insert_all(values)[0]

    def insert_all(self, *results: dict[str, Any]) -> list[int]:
        database = BenchmarkDatabase(self.database)
        with database.kept_open():
            return [database.insert(**values) for values in results]


MakeHost = Callable[..., Host]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first results of the sample, as if measured just now. To be copied."""
    path = tmp_path_factory.mktemp("web") / "bench.duckdb"
    assert build("V1", path, limit=RESULTS, newest=datetime.now(UTC)) == RESULTS
    return path


@contextmanager
def hosting(directory: Path, sample: Path) -> Iterator[MakeHost]:
    """Make started hosts in a directory, on a copy of the sample; keyword arguments are settings of the bridge."""
    apps: list[Flask] = []
    database = directory / "bench.duckdb"
    shutil.copy(sample, database)

    def make(**settings: Any) -> Host:
        section = {
            "enabled": True,
            "benchmark_db_path": str(database),
            "predictive_api_url": "http://127.0.0.1:1",
            "bridge_api_key": KEY,
            "report_output_dir": str(directory / "reports"),
            **settings,
        }
        config = {
            "benchmark_db": {"path": str(database)},
            "predictive_performance": {"path": str(directory / "predictive.duckdb")},
            "benchmark_predictive_performance": section,
        }
        app = create_app(config, plugins={"benchbridge": plugin})
        apps.append(app)
        startup(app)
        return Host(app, database)

    yield make
    for app in apps:
        shutdown(app)


@pytest.fixture
def make_host(tmp_path: Path, sample: Path) -> Iterator[MakeHost]:
    with hosting(tmp_path, sample) as make:
        yield make


@pytest.fixture
def host(make_host: MakeHost) -> Host:
    return make_host()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Iterator[Host]:
    """One host for all tests of a module: for what must change nothing."""
    with hosting(tmp_path_factory.mktemp("lasting"), sample) as make:
        yield make()


def assert_problem(answer: Any, status: int, code: str | None = None) -> None:
    """The answer is an RFC 9457 document with this status, and says something that a person can read."""
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json"), answer.text
    document = answer.json
    assert document["status"] == status
    assert document["title"] != "Error"
    assert document["detail"].endswith((".", "?"))
    assert code is None or document["code"] == code, document
    assert "Traceback" not in answer.text
