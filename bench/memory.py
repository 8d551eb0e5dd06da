"""Peak memory of a backfill by the number of results: over HTTP in bulk, so that the server's own store is in a process of its own and not counted."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.dataset import make
from benchbridge_plugin.report import table
from tests.crash.harness import sink_process


def backfill(file: Path, url: str, ledger: Path) -> None:
    """One sync of everything, in this process; prints what it came to."""
    from benchbridge_plugin import BenchmarkPredictivePerformanceBridge

    with BenchmarkPredictivePerformanceBridge(file, url, ledger_url=str(ledger)) as bridge:
        answer = bridge.sync_recent_results(limit=0, days=0)
        report = bridge.generate_report()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"synced": answer["synced"], "balanced": report["accounting"]["balanced"], "peak_mb": round(peak_mb)}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__)
    parser.add_argument(
        "--results", default="100000,300000", help="numbers of results, by comma; the first is what the others are compared with"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("FILE", "URL", "LEDGER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        backfill(Path(options.child[0]), options.child[1], Path(options.child[2]))
        return
    figures: list[dict[str, Any]] = []
    for results in map(int, options.results.split(",")):
        with tempfile.TemporaryDirectory() as directory, sink_process("full", Path(directory)) as url:
            file = make(Path(directory) / "benchmark_db.duckdb", results)
            command = [sys.executable, "-m", "bench.memory", "--child", str(file), str(url), str(Path(directory) / "ledger.sqlite")]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ratio = round(said["peak_mb"] / figures[0]["peak_mb"], 2) if figures else 1.0
            figures.append({"results": results, **said, "ratio": ratio})
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(table(list(figures[0]), [list(figure.values()) for figure in figures]))


if __name__ == "__main__":
    main()
