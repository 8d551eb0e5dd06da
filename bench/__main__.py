"""`python -m bench NAME [arguments]` runs one benchmark."""

from __future__ import annotations

import runpy
import sys

BENCHMARKS = {
    "backfill": "sync a whole benchmark file in process, against DuckDB copying the same rows; peak memory, how long the file was held",
    "busy_writer": "sync every second beside a process that inserts 200 results a second: all arrive, and the writer is not kept waiting",
    "crash": "kill syncs at random and at named points, on each sink: nothing lost, nothing doubled",
    "workers": "gunicorn workers share one schedule while one of them is killed again and again",
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
