"""Servers in processes of their own, each in a directory of its own, and how to talk to them."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from unified_server import load_sample

from tests.host.process import read_until, running

KEY = "key-of-the-tests"
MEASUREMENTS = "/api/predictive-performance/measurements"
#: What differs from one server to another, or from one delivery to the next.
OF_THE_SERVER = ("id", "timestamp", "measurement_id", "task_id", "prediction_id")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `ask` raises for an answer that is not a success."""

    url: str
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = requests.request(method, self.url + path, json=body, headers={"X-API-Key": KEY}, timeout=60)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def post(self, path: str, body: object = None) -> Any:
        return self.ask("POST", path, body if body is not None else {})

    def measurements(self) -> Counter[str]:
        """All of them, without what is the server's own, to be compared with those of another server."""
        return multiset(self.get(f"{MEASUREMENTS}?limit=100000")["measurements"])


def multiset(rows: list[Mapping[str, Any]]) -> Counter[str]:
    return Counter(json.dumps({name: value for name, value in row.items() if name not in OF_THE_SERVER}, sort_keys=True) for row in rows)


def until(condition: Callable[[], Any], patience_s: float = 30.0) -> Any:
    """What the condition comes to, once it is something; asked every 20 ms."""
    pause = threading.Event()
    for _ in range(int(patience_s / 0.02)):
        if found := condition():
            return found
        pause.wait(0.02)
    raise AssertionError("it never came")


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start the stub in a directory: `serve(directory, **settings of the bridge)`; without settings there is no bridge in it."""
    with ExitStack() as stack:

        def start(directory: Path, *, benchmark: Mapping[str, Any] | None = None, **settings: Any) -> Server:
            directory.mkdir(exist_ok=True)
            config: dict[str, Any] = {"benchmark_db": {"path": "bench.duckdb"}, "predictive_performance": {"path": "predictive.duckdb"}}
            if settings:
                config["benchmark_predictive_performance"] = bridge_section(**settings)
            (directory / "config.json").write_text(json.dumps(config | dict(benchmark or {})))
            process = stack.enter_context(running(["unified_server", "--config", "config.json", "--port", "0"], directory))
            line = read_until(process, "Unified API Server on")
            return Server(_address(line), process)

        yield start


def bridge_section(**settings: Any) -> dict[str, Any]:
    return {
        "enabled": True,
        "benchmark_db_path": "bench.duckdb",
        "bridge_api_key": KEY,
        "sync_limit": 0,
        "sync_days_lookback": 0,
        **settings,
    }


@contextmanager
def base_contract(directory: Path) -> Iterator[str]:
    """The base contract as a process; the rows are in rows.jsonl."""
    words = ["tests.kit.base_contract", "--store", str(directory / "rows.jsonl")]
    with running(words, Path(__file__).parents[2]) as process:
        yield _address(read_until(process, "ready"))


def _address(line: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return found.group()


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """The 1,212 results of the stub."""
    (tmp_path / "sample").mkdir()
    assert load_sample(tmp_path / "sample" / "bench.duckdb") == 1212
    return tmp_path / "sample" / "bench.duckdb"
