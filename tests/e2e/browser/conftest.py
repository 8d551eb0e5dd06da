"""One Chromium and one server for all flows. The server is in this process, so that a test can hold back what it delivers to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from unified_server import create_app, shutdown, startup
from werkzeug.serving import make_server

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, plugin
from tests.e2e.browser.chromium import missing
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import build

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

KEY = "key-of-the-tests"
RESULTS = 240


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A served bridge. `api` is where it delivers to."""

    url: str
    bridge: BenchmarkPredictivePerformanceBridge
    api: BaseContractServer


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """The first results of the sample. The base contract does not take those in bf16."""
    directory = tmp_path_factory.mktemp("browser")
    database = directory / "bench.duckdb"
    assert build("V1", database, limit=RESULTS) == RESULTS
    with BaseContractServer() as api:
        section = {
            "enabled": True,
            "benchmark_db_path": str(database),
            "predictive_mode": "http",
            "predictive_api_url": api.url,
            "bridge_api_key": KEY,
            "sync_limit": 0,
            "batch_size": 20,
            "sync_days_lookback": 0,
            "report_output_dir": str(directory / "reports"),
        }
        app = create_app(
            {"benchmark_db": {"path": str(database)}, "benchmark_predictive_performance": section}, plugins={"benchbridge": plugin}
        )
        startup(app)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, name="dashboard")
        thread.start()
        yield Dashboard(f"http://127.0.0.1:{server.server_port}/api/bridge", app.extensions["benchbridge"], api)
        api.latency_s = 0.0
        server.shutdown()
        thread.join()
        server.server_close()
        shutdown(app)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Chrome]:
    """Chromium without a window. It can reach nothing but this machine."""
    if lacking := missing():
        say = pytest.fail if os.environ.get("CI", "").lower() in ("true", "1") else pytest.skip
        say(f"there is no {' and no '.join(lacking)}: the dashboard is NOT tested in a browser")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",  # CI is root in a container
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": False})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()
