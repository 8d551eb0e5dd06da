"""How long GET /api/bridge/status takes while nothing happens and while a backfill runs in the same process."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import requests

from bench.dataset import make
from bench.figures import show
from bench.host import KEY, served


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench status", description=__doc__)
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--idle", type=int, default=200, help="requests while nothing happens")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        file = make(place / "benchmark_db.duckdb", options.results)
        with served(file, place) as bridge:

            def asked() -> float:
                began = time.perf_counter()
                requests.get(f"{bridge}/status", headers=KEY, timeout=10).raise_for_status()
                return (time.perf_counter() - began) * 1000

            asked()
            idle = sorted(asked() for _ in range(options.idle))
            begun = requests.post(f"{bridge}/sync", headers=KEY, json={"limit": 0, "days": 0}, timeout=10).json()
            during: list[float] = []
            while requests.get(f"{bridge}/runs/{begun['run_id']}", headers=KEY, timeout=10).json()["state"] == "running":
                during += [asked() for _ in range(5)]
            accounting = requests.get(f"{bridge}/status", headers=KEY, timeout=10).json()["accounting"]
    during.sort()
    figures = {
        "results": options.results,
        "idle_p99_ms": round(_p99(idle), 1),
        "during_p99_ms": round(_p99(during), 1),
        "ratio": round(_p99(during) / _p99(idle), 2),
        "asked_during": len(during),
        "delivered": accounting["delivered"],
    }
    show(figures, as_json=options.json)


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    main()
