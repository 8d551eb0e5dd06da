"""Every fault of the base-contract server at a rate of 30 %: all results arrive exactly once; in how many cycles, with how many requests."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.report import table
from tests.kit.base_contract import RECORD, BaseContractServer
from tests.kit.faults import Fault
from tests.kit.layouts import build

_MOST_CYCLES = 400


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument("--results", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--faults", help="labels, by comma; default: all")
    options = parser.parse_args()
    logging.getLogger("benchbridge_plugin").setLevel(logging.CRITICAL)  # every run that ends early says so, and here most do
    labels = [fault.label for fault in Fault]
    asked_for = labels if options.faults is None else options.faults.split(",")
    if unknown := [label for label in asked_for if label not in labels]:
        parser.error(f"there is no fault {', '.join(unknown)}; there are: {', '.join(labels)}")
    chosen = [fault for fault in Fault if fault.label in asked_for]
    rows: list[list[object]] = []
    bad = False
    for fault in chosen:
        with tempfile.TemporaryDirectory() as directory, BaseContractServer() as server:
            file = Path(directory) / "benchmark_db.duckdb"
            build("V7", file, limit=options.results)
            server.faults.rate(options.rate, fault, seed=3)
            began = time.monotonic()
            cycles = 0
            with BenchmarkPredictivePerformanceBridge(
                file,
                server.url,
                default_precision="fp32",
                request_timeout_s=0.5,
                acknowledge_timeout_s=1.0,
                settle_after_s=0.3,
                retry_base_s=0.02,
                retry_max_s=0.05,
            ) as bridge:
                while cycles < _MOST_CYCLES:
                    cycles += 1
                    answer = bridge.sync_recent_results(limit=0, days=0)
                    if not answer["total"]:
                        time.sleep(0.25)  # what failed is not due yet: the server asked to wait
                    accounting = bridge.accounting()
                    if not accounting["balanced"]:
                        bad = True
                    if accounting["delivered"] == options.results:
                        break
            counts = Counter(row["measurement_source"] for row in server.rows)
            doubled = sum(1 for count in counts.values() if count > 1)
            lost = options.results - len(counts)
            asked = server.requests
            posts = asked[RECORD]
            others = sum(asked.values()) - posts
            bad = bad or bool(doubled or lost or accounting["delivered"] != options.results)
            rows.append(
                [
                    fault.label,
                    cycles,
                    server.faults.struck[fault],
                    posts,
                    others,
                    round((posts + others) / options.results, 2),
                    lost,
                    doubled,
                ]
            )
            rows[-1].append(round(time.monotonic() - began, 1))
            print(*rows[-1], file=sys.stderr, flush=True)
    print(table(["fault", "cycles", "struck", "POSTs", "other requests", "requests per result", "lost", "doubled", "s"], rows))
    print("The minimum is one POST for each result and one listing for each 500 of them.")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
