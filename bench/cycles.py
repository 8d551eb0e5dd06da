"""What a scheduled cycle costs when nothing is new, and when a hundred of many results are, in process with the whole accounting on."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import duckdb
from unified_server import create_app

from bench.dataset import make
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices
from benchbridge_plugin.model import SyncRequest

_MORE = """
INSERT INTO performance_results
SELECT p.* REPLACE (
           CAST((SELECT max(result_id) FROM performance_results) + row_number() OVER (ORDER BY p.result_id) AS INTEGER) AS result_id,
           CAST(now() AS TIMESTAMP) AS created_at)
  FROM (SELECT * FROM performance_results ORDER BY result_id LIMIT ?) AS p
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench cycles", description=__doc__)
    parser.add_argument("--results", type=int, default=100_000, help="that the ledger knows before")
    parser.add_argument("--new", type=int, default=100, help="results that arrive before each cycle")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        file = make(place / "benchmark_db.duckdb", options.results)
        app = create_app(
            {"benchmark_db": {"path": str(place / "unused.duckdb")}, "predictive_performance": {"path": str(place / "predictive.duckdb")}}
        )
        host = HostServices(services=lambda: app.extensions["unified_server.services"])
        with BenchmarkPredictivePerformanceBridge(
            file, host=host, sync_limit=0, sync_days_lookback=0, report_output_dir=str(place / "reports")
        ) as bridge:

            def cycle() -> tuple[float, int, float]:
                began = time.perf_counter()
                run = bridge.sync(SyncRequest(kind="schedule"))
                return (time.perf_counter() - began) * 1000, run.synced, float(run.held.get("max_ms", 0.0))

            bridge.sync(SyncRequest())
            cycle()
            idle = [cycle() for _ in range(options.cycles)]
            new = []
            for _ in range(options.cycles):
                with duckdb.connect(str(file)) as connection:
                    connection.execute(_MORE, [options.new])
                new.append(cycle())
            accounting = bridge.accounting()
    figures = {
        "results": options.results,
        "idle_ms": round(statistics.median(took for took, _, _ in idle), 2),
        "new": options.new,
        "new_ms": round(statistics.median(took for took, _, _ in new), 1),
        "new_held_max_ms": max(held for _, _, held in new),
        "sent": [sent for _, sent, _ in new],
        "balanced": accounting["balanced"],
        "delivered": accounting["delivered"],
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:<16}  {value}")


if __name__ == "__main__":
    main()
