"""A benchmark writer inserts results at a steady rate while syncs run every second: everything arrives once, and the writer is hardly refused."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.host import hosted
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from tests.kit.layouts import build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench busy_writer", description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="results a second")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        file = place / "benchmark_db.duckdb"
        there = build("V1", file, limit=1212)
        command = [sys.executable, "-m", "tests.kit.writer", str(file), "--rate", str(options.rate), "--seconds", str(options.seconds)]
        writer = subprocess.Popen([*command, "--first-id", "100000"], stdout=subprocess.PIPE, text=True)
        syncs, failures, holds = 0, Counter[str](), [0.0]
        with hosted(place) as host, BenchmarkPredictivePerformanceBridge(file, host=host) as bridge:
            while writer.poll() is None:
                began = time.monotonic()
                answer = bridge.sync_recent_results(limit=0, days=0)
                syncs += 1
                holds.append(answer["details"]["held"].get("max_ms", 0.0))
                if not answer["success"]:
                    failures[answer["message"]] += 1
                time.sleep(max(0.0, began + 1.0 - time.monotonic()))
            said = json.loads(writer.communicate()[0].strip().splitlines()[-1])
            bridge.sync_recent_results(limit=0, days=0)
            accounting = bridge.accounting()
            service: Any = host.services()["predictive_performance"]
            sources = Counter(row["measurement_source"] for row in service.list_measurements(limit=100_000))
    expected = there + said["inserted"]
    figures = {
        "writer": said,
        "syncs": syncs,
        "failed_syncs": dict(failures),
        "expected": expected,
        "delivered": accounting["delivered"],
        "balanced": accounting["balanced"],
        "stored": sum(sources.values()),
        "doubled": sum(1 for count in sources.values() if count > 1),
        "longest_hold_ms": max(holds),
    }
    print(json.dumps(figures, indent=2))
    if figures["stored"] != expected or figures["doubled"] or said["longest_refusal_s"] > 1.0:
        sys.exit("not every result arrived exactly once, or the writer was refused for longer than a second")


if __name__ == "__main__":
    main()
