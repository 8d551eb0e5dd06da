"""The examples of hosts, for real: the timer starts with the server, carries results, and stops with it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests

from tests.e2e.conftest import until
from tests.host.process import read_until, running, stop
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import build

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "key-of-the-tests"
RESULTS = 6


@pytest.fixture
def api() -> Iterator[BaseContractServer]:
    with BaseContractServer() as server:
        yield server


@pytest.fixture
def variables(tmp_path: Path, api: BaseContractServer) -> dict[str, str]:
    """What the READMEs of the examples set."""
    assert build("V1", tmp_path / "bench.duckdb", limit=RESULTS) == RESULTS
    return {
        "BENCHBRIDGE_BENCHMARK_DB_PATH": str(tmp_path / "bench.duckdb"),
        "BENCHBRIDGE_PREDICTIVE_API_URL": api.url,
        "BENCHBRIDGE_BRIDGE_API_KEY": KEY,
        "BENCHBRIDGE_SYNC_DAYS_LOOKBACK": "0",
        "BENCHBRIDGE_REPORT_OUTPUT_DIR": str(tmp_path / "reports"),
    }


def status(address: str) -> Any:
    answer = requests.get(f"{address}/api/bridge/status", headers={"X-API-Key": KEY}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check(words: list[str], name: str, ready: str, tmp_path: Path, variables: dict[str, str], api: BaseContractServer) -> None:
    """Started, asked with and without the key, and stopped as a process manager does."""
    place = tmp_path / name
    shutil.copytree(EXAMPLES / name, place)
    paths = [place, *(Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path), EXAMPLES.parent]
    variables = {**variables, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    with running(words, place, path=None, **variables) as process:
        found = re.search(r"http://127\.0\.0\.1:\d+", read_until(process, ready))
        assert found
        address = found.group()
        until(lambda: (status(address)["last_run"] or {}).get("state") == "succeeded")
        assert status(address)["accounting"]["delivered"] == RESULTS
        assert requests.get(f"{address}/api/bridge/status", timeout=30).status_code == 401
        assert requests.get(address, timeout=30).json() == {"bridge": "/api/bridge/status"}
        code, output = stop(process)
    assert code in (0, -signal.SIGTERM), output  # uvicorn ends itself by the signal once all is done
    assert "Traceback" not in output
    assert len(api.rows) == RESULTS


def test_fastapi_carries_results_as_long_as_uvicorn_serves(tmp_path: Path, variables: dict[str, str], api: BaseContractServer) -> None:
    """The mounted routes answer beside the gateway's own, and SIGTERM ends it cleanly."""
    pytest.importorskip("uvicorn")
    words = ["uvicorn", "app:app", "--host", "127.0.0.1", "--port", "0"]
    check(words, "fastapi_gateway", "Uvicorn running on", tmp_path, variables, api)


def test_plain_flask_carries_results_as_long_as_gunicorn_serves(tmp_path: Path, variables: dict[str, str], api: BaseContractServer) -> None:
    """Two workers, one delivery of each result."""
    pytest.importorskip("gunicorn")
    check(["gunicorn", "app:app", "--bind", "127.0.0.1:0"], "plain_flask", "Listening at", tmp_path, variables, api)


def test_the_lifespan_starts_and_stops_the_timer(
    tmp_path: Path, variables: dict[str, str], api: BaseContractServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is opened before it, and nothing of ours is left after it; a server that is started again goes on."""
    pytest.importorskip("fastapi")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    app = load("fastapi_gateway")
    ledger = Path(f"{variables['BENCHBRIDGE_BENCHMARK_DB_PATH']}.bridge.sqlite")

    def timers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "APScheduler"]

    async def live() -> None:
        async with app.app.router.lifespan_context(app.app):
            assert len(timers()) == 1

    assert not ledger.exists()
    for _ in range(2):
        assert timers() == []
        asyncio.run(live())
        assert ledger.exists()
        assert not Path(f"{ledger}-wal").exists()  # SQLite removes it when the last connection is closed
    assert timers() == []


def load(name: str) -> ModuleType:
    """The module of an example, as its server would import it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
