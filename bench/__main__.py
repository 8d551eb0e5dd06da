"""`python -m bench NAME [arguments]` runs one benchmark."""

from __future__ import annotations

import runpy
import sys

BENCHMARKS = {
    "table": "the promises about speed in one table, medians of three runs each (half an hour)",
    "backfill": "sync a whole benchmark file in process, against DuckDB copying the same rows; peak memory, how long the file was held",
    "cycles": "a scheduled cycle with nothing new, and with a hundred new results among many",
    "growth": "speed and memory by the number of results, 10,000 to 3 million, kept in a file; and the picture of it",
    "competitors": "beside dlt (DuckDB to DuckDB) and drt-core (DuckDB to a REST API): how fast, and what is lost or doubled",
    "memory": "peak memory of a backfill by the number of results",
    "status": "how long the status takes during a backfill, against when nothing happens",
    "pages": "how long each page of the dashboard takes and how much it sends",
    "busy_writer": "sync every second beside a process that inserts 200 results a second: all arrive, and the writer is not kept waiting",
    "crash": "kill syncs at random and at named points, on each sink: nothing lost, nothing doubled",
    "workers": "gunicorn workers share one schedule while one of them is killed again and again",
    "hosts": "hosts that share a ledger on PostgreSQL: one run with one of them and with more",
    "http": "delivery over HTTP, one by one and in bulk, beside what the same servers take at all",
    "regressions": "what the detector of regressions finds in labelled histories, beside simple baselines; what a new point costs",
    "accuracy": "how far predictions are from held-out measurements, beside simple ways of predicting; needs published rows",
    "prequential": "the predictor's error as it learns from results that the bridge carries over, each predicted before it is recorded",
    "plan": "whether what the plan chooses to measure teaches the predictor more than a random choice; needs published rows or the sample",
    "scoring": "what it costs to ask for a prediction of each result before it is delivered",
    "faults": "every fault of a bad server at a rate of 30 %: nothing lost, nothing doubled; cycles and requests it took",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        print("python -m bench NAME [arguments]\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:<12}  {what}")
        sys.exit(0 if len(sys.argv) < 2 else 2)
    name = sys.argv.pop(1)
    runpy.run_module(f"bench.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
