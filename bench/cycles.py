"""What a scheduled cycle costs when nothing is new, and when a hundred of many results are, in process with the whole accounting on."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from bench.dataset import make
from bench.figures import show
from bench.host import bridged
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.model import SyncRequest

_MORE = """
INSERT INTO performance_results
SELECT p.* REPLACE (
           CAST((SELECT max(result_id) FROM performance_results) + row_number() OVER (ORDER BY p.result_id) AS INTEGER) AS result_id,
           CAST(now() AS TIMESTAMP) AS created_at)
  FROM (SELECT * FROM performance_results ORDER BY result_id LIMIT ?) AS p
"""


def cycles(bridge: BenchmarkPredictivePerformanceBridge, file: Path, *, new: int, times: int) -> dict[str, Any]:
    """Medians of so many cycles with nothing new, and as many with `new` results. The bridge has no limit, and has delivered the file."""

    def cycle() -> tuple[float, int, float]:
        began = time.perf_counter()
        run = bridge.sync(SyncRequest(kind="schedule"))
        return (time.perf_counter() - began) * 1000, run.synced, float(run.held.get("max_ms", 0.0))

    cycle()
    idle = [cycle() for _ in range(times)]
    found = []
    for _ in range(times):
        with duckdb.connect(str(file)) as connection:
            connection.execute(_MORE, [new])
        found.append(cycle())
    return {
        "idle_ms": round(statistics.median(took for took, _, _ in idle), 2),
        "new": new,
        "new_ms": round(statistics.median(took for took, _, _ in found), 1),
        "new_held_max_ms": max(held for _, _, held in found),
        "sent": [sent for _, sent, _ in found],
    }


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
        with bridged(file, place, sync_limit=0, sync_days_lookback=0) as bridge:
            bridge.sync(SyncRequest())
            figures = cycles(bridge, file, new=options.new, times=options.cycles)
            accounting = bridge.accounting()
    last = {"balanced": accounting["balanced"], "delivered": accounting["delivered"]}
    show({"results": options.results, **figures, **last}, as_json=options.json)


if __name__ == "__main__":
    main()
