"""Peak memory of a backfill by the number of results: over HTTP in bulk, so that the server's own store is in a process of its own and not counted."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.alone import alone
from bench.dataset import make
from benchbridge_plugin.report import table
from tests.crash.harness import sink_process


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__)
    parser.add_argument(
        "--results", default="100000,300000", help="numbers of results, by comma; the first is what the others are compared with"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: list[dict[str, Any]] = []
    for results in map(int, options.results.split(",")):
        with tempfile.TemporaryDirectory() as directory, sink_process("full", Path(directory)) as url:
            file = make(Path(directory) / "benchmark_db.duckdb", results)
            said = alone(file, Path(directory), str(url))
            ratio = round(said["peak_mb"] / figures[0]["peak_mb"], 2) if figures else 1.0
            kept = {name: said[name] for name in ("synced", "balanced", "peak_mb")}
            figures.append({"results": results, **kept, "ratio": ratio})
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(table(list(figures[0]), [list(figure.values()) for figure in figures]))


if __name__ == "__main__":
    main()
