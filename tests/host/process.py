"""A server in a process of its own, with the plugins a test puts on its path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# What the bridge answers at the addresses the demo reads, and a note of each hook in hooks.log.
FAKE_BRIDGE = """
import os, pluggy
hookimpl = pluggy.HookimplMarker("unified_api_server")
asked = []

def note(what):
    with open("hooks.log", "a") as log:
        log.write(f"{what} {os.getpid()}\\n")

@hookimpl
def unified_server_register_routes(app):
    section = app.config["UNIFIED_SERVER"].get("benchmark_predictive_performance", {})
    state = os.environ.get("FAKE_STATE", "succeeded")

    def status():
        asked.append(1)
        if state == "error":
            return {"error": "the benchmark database is a directory", "last_run": None}
        if len(asked) < 3:
            return {"last_run": {"state": "running"} if len(asked) == 2 else None}
        return {"last_run": {"state": state}}

    app.add_url_rule("/api/bridge/status", "fake_status", status)
    app.add_url_rule("/api/bridge/report", "fake_report", lambda: f"REPORT on {section['benchmark_db_path']}")
    app.add_url_rule("/pid", "pid", lambda: str(os.getpid()))

@hookimpl
def unified_server_startup(app):
    note("startup")

@hookimpl
def unified_server_shutdown(app):
    note("shutdown")
"""


def install_plugin(directory: Path, name: str, source: str) -> None:
    """Leave a distribution with a plugin in a directory, as an installer would."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[unified_api_server]\n{name} = {name}_module\n")
    (directory / f"{name}_module.py").write_text(source)


@contextmanager
def running(words: Sequence[str], directory: Path, *, path: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m <words>`` in a directory, stopped at the end whatever happens. Its output is one pipe of text."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    if path is not None:
        variables["PYTHONPATH"] = str(path)
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=directory,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The first line of output that holds the text. Raises AssertionError with all output when it ends before."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came:\n{''.join(seen)}")


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ask it to stop; its exit code and the rest of its output."""
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    return process.returncode, rest
