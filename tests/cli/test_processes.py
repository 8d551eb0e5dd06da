"""The command line as processes: signals, the service, pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.base_contract import BaseContractServer, Fault

from .conftest import RESULTS, Run

pytestmark = pytest.mark.e2e

SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Gate:
    """For `when=`: no fault, but the request waits until the test opens the gate."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, body: object) -> bool:
        self.reached.set()
        self.open.wait(20)
        return False


@contextmanager
def started(*words: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`benchbridge <words>` in the current directory; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchbridge_plugin.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_sync_that_is_asked_to_stop_ends_cleanly(run: Run, to_api: list[str], api: BaseContractServer, number: signal.Signals) -> None:
    """Exit code 1, a sentence, what was sent is acknowledged, the rest is pending, and the next sync goes on."""
    gate = Gate()
    api.faults.skip(3)
    api.faults.add(Fault.ERROR_500, None, when=gate)
    with started("sync", *to_api) as process:
        assert gate.reached.wait(20)
        process.send_signal(number)
        gate.open.set()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "Stopped as asked" in out
    assert "Traceback" not in err
    report = run("report", *to_api[:2], "--json").json
    assert report["accounting"]["balanced"] is True
    assert report["accounting"]["delivered"] == len(api.rows) < 22
    assert report["accounting"]["pending"] > 0
    assert report["sync_history"][0]["state"] == "stopped"
    assert run("sync", *to_api).code == 0
    assert len({row["measurement_source"] for row in api.rows}) == len(api.rows) == 22


def test_a_second_ctrl_c_ends_it_at_once(to_api: list[str], api: BaseContractServer) -> None:
    """An API that hangs cannot hold the user."""
    gate = Gate()
    api.faults.add(Fault.ERROR_500, None, when=gate)
    with started("sync", *to_api) as process:
        assert gate.reached.wait(20)
        process.send_signal(signal.SIGINT)
        threading.Event().wait(0.5)  # two signals of one kind that come together are one
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        gate.open.set()
    assert process.returncode == 1
    assert "Aborted!" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", SIGNALS)
def test_the_service_syncs_writes_a_report_and_ends_with_0(
    workplace: Path, database: Path, api: BaseContractServer, number: signal.Signals
) -> None:
    """One cycle at the start, its report in report_output_dir, a log of what it does, and a clean end on SIGTERM and on Ctrl-C."""
    section: dict[str, Any] = {"benchmark_db_path": "bench.duckdb", "predictive_api_url": api.url, "report_output_dir": "own reports"}
    (workplace / "service.json").write_text(json.dumps({"benchmark_predictive_performance": section}))
    with started("service", "--config", "service.json") as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if "sync run 1 succeeded" in line:
                break
        assert wait_for_report(workplace / "own reports")
        process.send_signal(number)
        out, rest = process.communicate(timeout=30)
    log += rest
    assert process.returncode == 0, log
    assert out == ""
    for sentence in ("service started: bench.duckdb to http://127.0.0.1", "every 60 minutes", "service stopping", "service stopped"):
        assert sentence in log
    assert "Traceback" not in log
    (report,) = (workplace / "own reports").glob("benchbridge-report-*.json")
    assert json.loads(report.read_text())["total_results"] == RESULTS
    assert len(api.rows) == 22


def wait_for_report(directory: Path) -> bool:
    pause = threading.Event()
    for _ in range(500):
        if list(directory.glob("benchbridge-report-*.json")):
            return True
        pause.wait(0.02)
    return False


def test_the_service_logs_to_a_file_when_asked(workplace: Path, to_api: list[str]) -> None:
    """And then leaves the terminal alone."""
    with started("service", *to_api, "--log-file", "service.log") as process:
        assert wait_for_report(workplace / "reports")
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert "service stopped" in (workplace / "service.log").read_text()


def test_the_service_does_not_start_on_a_mistyped_path_or_config(workplace: Path) -> None:
    """It would wait for ever for a file that never comes."""
    with started("service", "--benchmark-db", "none.duckdb") as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, "none.duckdb" in err) == (3, True)
    with started("service", "--config", "none.json") as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, "none.json" in err) == (2, True)
    assert list(workplace.iterdir()) == []


def test_a_reader_that_goes_away_is_no_stack_trace(to_api: list[str], run: Run) -> None:
    """`benchbridge results --json | head -1`."""
    run("sync", *to_api)
    with started("results", *to_api[:2], "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_names_that_the_terminal_cannot_show_do_not_end_the_command(run: Run, to_api: list[str], database: Path) -> None:
    """A terminal with an old encoding gets escapes."""
    from tests.kit.layouts import BenchmarkDatabase

    BenchmarkDatabase(database).insert(model="модель 🦙")
    run("sync", *to_api)
    with started("results", *to_api[:2], PYTHONIOENCODING="latin-1") as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "\\u043c\\u043e\\u0434\\u0435\\u043b\\u044c" in out


def test_on_a_terminal_the_summary_follows_the_bar(to_api: list[str], workplace: Path) -> None:
    """The bar is on standard error, so that a redirected answer is whole."""
    from .test_console import on_terminal

    shown, out = on_terminal([sys.executable, "-m", "benchbridge_plugin.cli", "sync", *to_api], workplace)
    assert out.startswith("22 synced, 18 refused")
    assert re.search(r"comparing|sending", shown)


# -- several at once ------------------------------------------------------------------------------------------------------------------------


def test_a_process_that_was_frozen_past_its_lease_has_lost_it(
    run: Run, to_api: list[str], api: BaseContractServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another takes over and finishes; the first one, awake again, sends nothing more, writes nothing and says why."""
    for name, value in {"LEASE_S": "4.5", "REQUEST_TIMEOUT_S": "1", "SETTLE_AFTER_S": "0.3"}.items():
        monkeypatch.setenv(f"BENCHBRIDGE_{name}", value)
    gate = Gate()
    api.faults.skip(3)
    api.faults.add(Fault.ERROR_500, None, when=gate)
    with started("sync", *to_api) as frozen:
        assert gate.reached.wait(20)
        frozen.send_signal(signal.SIGSTOP)
        gate.open.set()
        deadline = time.monotonic() + 30
        while (done := run("sync", *to_api)).code == 1 and time.monotonic() < deadline:
            assert "Another sync" in done.err
            time.sleep(0.2)
        assert done.code == 0, done.err
        assert len(api.rows) == 22
        frozen.send_signal(signal.SIGCONT)
        _, err = frozen.communicate(timeout=30)
    assert (frozen.returncode, "lost the lease" in err) == (1, True), err
    assert "Traceback" not in err
    assert len({row["measurement_source"] for row in api.rows}) == len(api.rows) == 22
    assert run("report", *to_api[:2], "--json").json["accounting"]["delivered"] == 22
    assert run("verify", *to_api).code == 0


def test_two_syncs_at_once_deliver_everything_once(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """One of them does it; the other one either says that a sync is running or finds nothing left."""
    with started("sync", *to_api) as first, started("sync", *to_api) as second:
        ends = [(process.communicate(timeout=60)[1], process.returncode) for process in (first, second)]
    assert sorted(code for _, code in ends) in ([0, 0], [0, 1]), ends
    assert all("Another sync" in err for err, code in ends if code)
    assert len({row["measurement_source"] for row in api.rows}) == len(api.rows) == 22
    assert run("report", *to_api[:2], "--json").json["accounting"]["delivered"] == 22
