"""A whole benchmark file synced in process: wall time, peak memory, how long the file was held open, rejections by reason."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from unified_server import create_app

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench backfill", description=__doc__)
    parser.add_argument("file", type=Path, help="a benchmark database; it is only read")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        app = create_app(
            {
                "benchmark_db": {"path": str(place / "unused.duckdb")},
                "predictive_performance": {"path": str(place / "predictive.duckdb")},
            }
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with BenchmarkPredictivePerformanceBridge(
            options.file,
            ledger_url=str(place / "ledger.sqlite"),
            host=HostServices(services=lambda: app.extensions["unified_server.services"]),
        ) as bridge:
            began = time.perf_counter()
            first = bridge.sync_recent_results(limit=0, days=0)
            took = time.perf_counter() - began
            began = time.perf_counter()
            second = bridge.sync_recent_results(limit=0, days=0)
            again = time.perf_counter() - began
            accounting = bridge.accounting()
    figures = {
        "results": first["total"],
        "synced": first["synced"],
        "rejected": first["rejected"],
        "seconds": round(took, 2),
        "results_per_second": round(first["total"] / took),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "memory_before_mb": round(before),
        "source_held": first["details"]["held"],
        "reasons": first["details"]["reasons"],
        "balanced": accounting["balanced"],
        "second_sync": {"sent": second["total"], "seconds": round(again, 4)},
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:<20}  {value}")


if __name__ == "__main__":
    main()
