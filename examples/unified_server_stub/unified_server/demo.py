"""``python -m unified_server --demo``: the sample, the server and the bridge, and then what the bridge has done."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unified_server.app import create_app
from unified_server.sample import load_sample
from unified_server.serving import serve

logger = logging.getLogger(__name__)

ADDRESSES = (
    "/api/bridge/",
    "/",
    "/health",
    "/api/bridge/report?format=text",
    "/api/bridge/status",
    "/api/bridge/results",
    "/api/predictive-performance/measurements?limit=5",
    "/openapi.json",
)
NO_BRIDGE = "The bridge plugin is not installed: run `pip install .` in a clone of benchbridge."


def demo_config(directory: Path) -> dict[str, Any]:
    """The configuration of the demo: everything in one directory, the bridge at work as soon as the server is up."""
    return {
        "benchmark_db": {"path": str(directory / "benchmark_db.duckdb")},
        "predictive_performance": {"path": str(directory / "predictive.duckdb")},
        "benchmark_predictive_performance": {
            "enabled": True,
            "benchmark_db_path": str(directory / "benchmark_db.duckdb"),
            "auto_sync_enabled": True,
            "sync_on_startup": True,
            "sync_interval_minutes": 1,
            "sync_limit": 0,
            "sync_days_lookback": 0,
            "read_access": "open",
            "report_output_dir": str(directory / "reports"),
        },
    }


def run_demo(directory: Path, host: str, port: int, *, exit_after_sync: bool) -> int:
    """Serve the demo until it is stopped, or with ``exit_after_sync`` until the first run of the bridge is over.

    0; with ``exit_after_sync`` 1 when that run did not succeed; 1 when the port is in use. The directory is kept
    between runs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    database = directory / "benchmark_db.duckdb"
    if not database.exists():
        print(f"{load_sample(database)} benchmark results (20 models, H100 and Xeon) written to {database}", flush=True)
    app = create_app(demo_config(directory))
    outcome: list[bool] = []

    def tell(address: str) -> None:
        try:
            outcome.append(show_first_run(address, print))
        except Exception:
            logger.exception("the demo could not show the first run")
            print("The demo could not show the first run; the log says why.", file=sys.stderr)
        if exit_after_sync:
            os.kill(os.getpid(), signal.SIGTERM)

    def watch(address: str) -> None:
        threading.Thread(target=tell, args=(address,), name="demo", daemon=True).start()

    code = serve(app, host, port, when_listening=watch)
    return code if not exit_after_sync or outcome == [True] else 1


def show_first_run(
    address: str,
    show: Callable[[str], object],
    *,
    patience_seconds: float = 120.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Wait for the bridge's first run, show its report and where to look next. True when the run succeeded."""
    succeeded = _wait_for_run(address, show, clock() + patience_seconds, sleep, clock)
    if succeeded is not None:
        show(_get(f"{address}/api/bridge/report?format=text")[1])
    show("\nOpen:\n" + "\n".join(f"  {address}{path}" for path in ADDRESSES) + "\nStop with Ctrl-C.")
    sys.stdout.flush()
    return bool(succeeded)


def _wait_for_run(
    address: str,
    show: Callable[[str], object],
    until: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> bool | None:
    """Whether the last run succeeded; None when there is no report to show: no plugin, or an error in its
    configuration.
    """
    while clock() < until:
        code, text = _get(f"{address}/api/bridge/status")
        if code == 404:
            show(NO_BRIDGE)
            return None
        status = json.loads(text) if code == 200 else {"error": f"/api/bridge/status answered {code}: {text:.300}"}
        if status.get("error"):
            show(f"The bridge reports an error: {status['error']}")
            return None
        run = status.get("last_run")
        if isinstance(run, dict) and run.get("state") not in (None, "running"):
            return bool(run["state"] == "succeeded")
        sleep(0.2)
    show("The bridge's first run is not over yet; /api/bridge/status says how far it is.")
    return None


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
