"""How speed and memory change with the number of results, a line of figures for each number; and the picture of such a file.

Every number is measured in a process of its own. What the file has already is not measured again: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb

from bench.backfill import backfill, beside_copies
from bench.cycles import cycles
from bench.dataset import make
from bench.figures import keep, kept, peak_mb
from bench.host import bridged
from bench.picture import draw
from benchbridge_plugin.model import SyncRequest
from benchbridge_plugin.report import table

_SHOWN = ("results", "results_per_second", "ratio", "idle_ms", "new_ms", "peak_mb", "comparison_s", "accounting_p95_ms", "balanced")


def measure(file: Path, place: Path, *, times: int, readings: int) -> dict[str, Any]:
    """All figures of one file. The memory is that of the backfill: nothing else has run in this process by then."""
    before = peak_mb()
    with bridged(file, place, sync_limit=0, sync_days_lookback=0) as bridge:
        sent = backfill(bridge)
        memory = {"peak_mb": round(peak_mb()), "before_mb": round(before)}
        copies = beside_copies(sent["seconds"], file, place)
        held = {"held_p95_ms": sent["source_held"]["p95_ms"], "held_max_ms": sent["source_held"]["max_ms"]}
        cycle = cycles(bridge, file, new=100, times=times)
        os.utime(file)  # as if it had been written to: nothing but reading it tells that nothing changed
        began = time.perf_counter()
        unchanged = bridge.sync(SyncRequest())
        comparison = {"comparison_s": round(time.perf_counter() - began, 3), "comparison_sent": unchanged.synced}
        took = []
        for _ in range(readings):
            began = time.perf_counter()
            accounting = bridge.accounting()
            took.append((time.perf_counter() - began) * 1000)
    reading = {"accounting_p95_ms": round(sorted(took)[math.ceil(0.95 * readings) - 1], 3)}
    last = {"balanced": accounting["balanced"], "delivered": accounting["delivered"], "rejected": accounting["rejected"]}
    sent = {name: sent[name] for name in ("results", "seconds", "results_per_second")}
    return {**sent, **copies, **memory, **held, **cycle, **comparison, **reading, **last}


def _measured_alone(results: int, times: int, readings: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory) / "benchmark_db.duckdb", results)
        command = [sys.executable, "-m", "bench.growth", "--child", directory, "--cycles", str(times), "--readings", str(readings)]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**json.loads(ran.stdout), "duckdb": duckdb.__version__, "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench growth", description=__doc__)
    parser.add_argument("--sizes", default="10000,30000,100000,300000,1000000,3000000", help="numbers of results, by comma")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-growth.jsonl"), help="gets a line for each measurement; sizes in it are skipped"
    )
    parser.add_argument("--runs", type=int, default=1, help="measurements of each size; the picture shows their medians")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--readings", type=int, default=200, help="of the accounting")
    parser.add_argument("--picture", type=Path, help="measure nothing, draw this SVG")
    parser.add_argument("--from", type=Path, dest="source", help="what to draw it from; else --out")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child / "benchmark_db.duckdb", options.child, times=options.cycles, readings=options.readings)))
        return
    if options.picture:
        figures = kept(options.source or options.out)
        if not figures:
            parser.error(f"{options.source or options.out} has no figures")
        options.picture.write_text(draw(figures), encoding="utf-8")
        return
    for run in range(options.runs):
        for results in map(int, options.sizes.split(",")):
            if Counter(figure["results"] for figure in kept(options.out))[results] <= run:
                print(f"{results} results ({run + 1} of {options.runs})", file=sys.stderr, flush=True)
                keep(options.out, _measured_alone(results, options.cycles, options.readings))
    figures = sorted(kept(options.out), key=lambda figure: int(figure["results"]))
    print(table(_SHOWN, [[figure[name] for name in _SHOWN] for figure in figures]))


if __name__ == "__main__":
    main()
