"""One backfill in a process of its own, so that its memory, its start-up and its work can be told apart."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.figures import peak_mb
from bench.host import bridged
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge


def alone(file: Path, place: Path, url: str | None = None, *settings: str) -> dict[str, Any]:
    """Sync the whole file from a fresh process: to the service in that process, or to `url`. `settings`: NAME=JSON of the configuration."""
    command = [sys.executable, "-m", "bench.alone", str(file), str(place), *(f"--set={setting}" for setting in settings)]
    command += [] if url is None else ["--url", url]
    return answer(command)


def answer(command: Sequence[str], cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    """The last line that a command prints, which has to be JSON, and the time of the whole process. Raises CalledProcessError.

    With `cwd` it is a program of others: it is not shown our PYTHONPATH or environment.
    """
    ours = {name: value for name, value in os.environ.items() if cwd is None or not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    began = time.perf_counter()
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd, env={**ours, **environment})
    return {**json.loads(ran.stdout.splitlines()[-1]), "process_seconds": time.perf_counter() - began}


def _bridge(
    file: Path, place: Path, url: str | None, settings: dict[str, Any], learning: dict[str, Any] | None
) -> AbstractContextManager[BenchmarkPredictivePerformanceBridge]:
    if url is None:
        return bridged(file, place, learning=learning, **settings)
    ledger = str(place / "ledger.sqlite")
    return BenchmarkPredictivePerformanceBridge(file, url, ledger_url=ledger, predictive_mode="http", **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("place", type=Path, help="where the ledger and, without a URL, the measurements are kept")
    parser.add_argument("--url")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--learn", type=json.loads, metavar="JSON", help="the host's section learning")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, _, value in (setting.partition("=") for setting in options.set)}
    began = time.perf_counter()
    with _bridge(options.file, options.place, options.url, settings, options.learn) as bridge:
        sent = bridge.sync_recent_results(limit=0, days=0)
        accounting = bridge.accounting()
        scored = sum(group["results"] for group in bridge.accuracy()["overall"] if group["figure"] == "throughput")
    seconds = time.perf_counter() - began
    said = {name: sent[name] for name in ("total", "synced", "rejected", "failed")}
    print(json.dumps({**said, "balanced": accounting["balanced"], "seconds": seconds, "scored": scored, "peak_mb": round(peak_mb())}))


if __name__ == "__main__":
    main()
