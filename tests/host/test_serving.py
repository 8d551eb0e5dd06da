"""Servers in processes of their own: they start, answer, stop cleanly, and say in one sentence what is wrong."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .process import FAKE_BRIDGE, install_plugin, read_until, running, stop

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "unified_server_stub"


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.loads(answer.read())


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def address_in(line: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return found.group()


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unified_server", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture
def plugin_path(tmp_path: Path) -> Path:
    # Under the real one's name, which hides the real one where it is installed: the first on the path counts.
    install_plugin(tmp_path / "plugins", "benchbridge", FAKE_BRIDGE)
    return tmp_path / "plugins"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    config = {
        "benchmark_predictive_performance": {"benchmark_db_path": "x"},
        "predictive_performance": {"shared": True},
    }
    (tmp_path / "work" / "config.json").write_text(json.dumps(config))
    return tmp_path / "work"


def test_waitress_serves_and_stops_cleanly_on_sigterm(work: Path, plugin_path: Path) -> None:
    with running(["unified_server", "--config", "config.json", "--port", "0"], work, path=plugin_path) as server:
        address = address_in(read_until(server, "Unified API Server on"))
        assert get(f"{address}/health")["plugins"]["benchmark"]["file_exists"] is False
        sent = {"model_name": "m", "hardware_platform": "cpu", "idempotency_key": "k"}
        post(f"{address}/api/predictive-performance/record-measurement", sent)
        code, output = stop(server)
    assert code == 0, output
    assert "Traceback" not in output
    assert [line.split()[0] for line in (work / "hooks.log").read_text().splitlines()] == ["startup", "shutdown"]


def test_a_port_in_use_is_one_sentence_and_exit_code_1(work: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("--config", "config.json", "--port", str(taken.getsockname()[1]), cwd=work)
    assert result.returncode == 1
    assert re.fullmatch(r"Port \d+ on 127\.0\.0\.1 is in use by another program; .*\n", result.stderr)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"api_key": 5}', "api_key must be"),
        ('{"logging": {"level": "LOUD"}}', "logging"),
    ],
)
def test_a_wrong_configuration_is_one_sentence_and_exit_code_2(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "wrong.json").write_text(text)
    result = run("--config", "wrong.json", cwd=tmp_path)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_nothing_to_do_is_a_usage_error(tmp_path: Path) -> None:
    assert run(cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_gunicorn_starts_plugins_in_each_worker_and_no_measurement_is_lost(work: Path, plugin_path: Path, preload: list[str]) -> None:
    pytest.importorskip("gunicorn")
    words = ["gunicorn", "-c", str(EXAMPLE / "gunicorn_conf.py"), "-b", "127.0.0.1:0", "-w", "2", *preload]
    config = {"UNIFIED_SERVER_CONFIG": "config.json"}
    with running([*words, "unified_server.wsgi:app"], work, path=plugin_path, **config) as server:
        address = address_in(read_until(server, "Listening at"))
        url = f"{address}/api/predictive-performance"
        for number in range(20):
            sent = {"model_name": "m", "hardware_platform": "cpu", "idempotency_key": f"k{number % 10}"}
            post(f"{url}/record-measurements", {"measurements": [sent]})
        assert get(f"{url}/measurements?limit=100")["count"] == 10
        code, output = stop(server)
    assert code == 0, output
    notes = [line.split() for line in (work / "hooks.log").read_text().splitlines()]
    started = [pid for what, pid in notes if what == "startup"]
    assert len(set(started)) == len(started) == 2
    assert sorted(started) == sorted(pid for what, pid in notes if what == "shutdown")
    assert str(server.pid) not in started


@pytest.mark.parametrize(("state", "expected"), [("succeeded", 0), ("failed", 1)])
def test_the_demo_shows_the_report_of_the_first_run_and_where_to_look(tmp_path: Path, plugin_path: Path, state: str, expected: int) -> None:
    words = ["unified_server", "--demo", "--exit-after-sync", "--port", "0"]
    with running(words, tmp_path, path=plugin_path, FAKE_STATE=state) as demo:
        output, _ = demo.communicate(timeout=60)
    assert demo.returncode == expected, output
    assert "1212 benchmark results" in output
    assert f"REPORT on {Path('demo') / 'benchmark_db.duckdb'}" in output
    for path in ("/health", "/api/bridge/report?format=text", "/api/predictive-performance/measurements?limit=5"):
        assert re.search(rf"http://127\.0\.0\.1:\d+{re.escape(path)}$", output, re.MULTILINE)
    assert (tmp_path / "demo" / "benchmark_db.duckdb").exists()
    assert "shutdown" in (tmp_path / "hooks.log").read_text()


def test_the_demo_keeps_its_directory_and_shows_an_error_of_the_bridge(tmp_path: Path, plugin_path: Path) -> None:
    words = ["unified_server", "--demo", "--exit-after-sync", "--port", "0", "--directory", "there"]
    for attempt in range(2):
        with running(words, tmp_path, path=plugin_path, FAKE_STATE="error") as demo:
            output, _ = demo.communicate(timeout=60)
        assert ("1212" in output) is (attempt == 0)
        assert "The bridge reports an error: the benchmark database is a directory" in output
        assert demo.returncode == 1


def test_the_demo_goes_on_until_it_is_stopped(tmp_path: Path, plugin_path: Path) -> None:
    with running(["unified_server", "--demo", "--port", "0"], tmp_path, path=plugin_path) as demo:
        address = address_in(read_until(demo, "/openapi.json"))
        assert get(f"{address}/health")["status"] in ("ok", "degraded")
        code, output = stop(demo)
    assert code == 0, output


def test_the_demo_says_what_to_do_when_the_bridge_is_not_installed(tmp_path: Path) -> None:
    install_plugin(tmp_path / "plugins", "benchbridge", "")
    words = ["unified_server", "--demo", "--exit-after-sync", "--port", "0"]
    with running(words, tmp_path, path=tmp_path / "plugins") as demo:
        output, _ = demo.communicate(timeout=60)
    assert "The bridge plugin is not installed: run `pip install .` in a clone of benchbridge" in output
    assert demo.returncode == 1
