"""How long the pages of the dashboard take, and how much they send, with many results in the ledger, two in a hundred of them refused."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
import requests

from bench.dataset import make
from bench.host import KEY, served
from benchbridge_plugin.report import table

_ASKED = {**KEY, "Accept": "text/html"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench pages", description=__doc__)
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--loads", type=int, default=50, help="of each page")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, served(_file(Path(directory), options.results), Path(directory)) as bridge:
        asked = {"limit": 0, "days": 0, "wait": True}
        run = requests.post(f"{bridge}/sync", headers=_ASKED, json=asked, timeout=600).json()
        while run["state"] == "running":
            run = requests.get(f"{bridge}/runs/{run['run_id']}", headers=_ASKED, timeout=10).json()
        for thread in threading.enumerate():
            if thread.name == "benchbridge-sync":
                thread.join()  # the run has ended, and its thread goes on with the histories: pages are loaded alone
        figures = {name: _loaded(f"{bridge}{address}", options.loads) for name, address in _addresses(bridge, run["run_id"]).items()}
    if options.json:
        print(json.dumps({"results": options.results, "delivered": run["synced"], "refused": run["rejected"], "pages": figures}))
        return
    print(f"{run['synced']:,} delivered, {run['rejected']:,} refused; {options.loads} loads of each page, alone\n")
    print(table(["page", "median ms", "p95 ms", "kB"], [[name, *page.values()] for name, page in figures.items()]))


def _file(place: Path, results: int) -> Path:
    file = make(place / "benchmark_db.duckdb", results)
    with duckdb.connect(str(file)) as connection:
        connection.execute("UPDATE performance_results SET average_latency_ms = -1 WHERE hash(result_id) % 50 = 0")
    return file


def _addresses(bridge: str, run_id: int) -> dict[str, str]:
    """What is loaded: each page, and of the results the first, a late one, the refused ones and one model's."""

    def listed(**wanted: str) -> dict[str, str]:
        rows: list[dict[str, str]] = requests.get(f"{bridge}/results", headers=_ASKED, params=wanted, timeout=60).json()["results"]
        return rows[-1] if rows else sys.exit(f"no result is {wanted}")

    delivered, refused = listed(state="delivered"), listed(state="rejected", limit="500")
    late = f"{refused['content_hash']}.{refused['result_id']}"
    return {
        "overview": "/",
        "coverage": "/view/coverage",
        "refusals": "/view/refusals",
        "results": "/view/results",
        "results, from the middle": f"/view/results?cursor={late}",
        "results, refused": "/view/results?state=rejected",
        "results, of a model": f"/view/results?model={delivered['model']}&hardware={delivered['hardware']}",
        "a result": f"/view/result?id={delivered['result_id']}",
        "predictions": "/view/predictions",
        "regressions": "/view/regressions",
        "suggestions": "/view/suggestions",
        "runs": "/view/runs",
        "a run": f"/view/runs/{run_id}",
        "report (html)": "/report?format=html",
        "metrics": "/metrics",
    }


def _loaded(address: str, loads: int) -> dict[str, float]:
    times: list[float] = []
    for _ in range(loads):
        began = time.perf_counter()
        answer = requests.get(address, headers=_ASKED, timeout=60)
        times.append((time.perf_counter() - began) * 1000)
        answer.raise_for_status()
    times.sort()
    return {
        "median_ms": round(times[len(times) // 2], 1),
        "p95_ms": round(times[min(len(times) - 1, int(0.95 * len(times)))], 1),
        "kb": round(len(answer.content) / 1000, 1),
    }


if __name__ == "__main__":
    main()
