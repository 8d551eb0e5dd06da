"""Kills syncs at random moments and at named points, on each sink, and counts what was lost or doubled (it has to be 0 and 0)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchbridge_plugin.report import table
from tests.crash.harness import SINKS, Verdict, crash
from tests.crash.victim import POINTS
from tests.kit import ledgers

_ONLY = {"stored": ("service",), "before_request": ("base", "full"), "after_request": ("base", "full"), "sent": ("base", "full")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="random kills, shared among the sinks")
    parser.add_argument("--at-points", type=int, default=20, help="kills at each named point, for each sink")
    parser.add_argument("--sinks", default=",".join(SINKS), help="of: " + ",".join(SINKS))
    parser.add_argument("--ledger", choices=ledgers.KINDS, default="sqlite", help="with postgresql, its server is killed too")
    parser.add_argument("--plant", choices=["early", "resend"], help="plant a bug that has to be found")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen = {"seed": options.seed, "plant": options.plant, "ledger": options.ledger}
    sinks = options.sinks.split(",")
    rows: list[list[object]] = []
    bad = 0

    def note(point: str, verdict: Verdict, asked: int) -> None:
        nonlocal bad
        failed = verdict.kills < asked or verdict.lost or verdict.doubled or verdict.in_doubt or not verdict.balanced
        bad += bool(failed)
        row = [verdict.sink, point, verdict.kills, verdict.results, verdict.lost, verdict.doubled, verdict.in_doubt, verdict.balanced]
        rows.append([*row, verdict.seconds])
        print(*row, verdict.seconds, file=sys.stderr, flush=True)

    for sink in sinks:
        for point in POINTS if options.at_points else ():
            if sink in _ONLY.get(point, SINKS):
                with tempfile.TemporaryDirectory() as directory:
                    verdict = crash(sink, Path(directory), kills=options.at_points, point=point, **chosen)
                    note(point, verdict, options.at_points)
        if options.kills:
            with tempfile.TemporaryDirectory() as directory:
                share = -(-options.kills // len(sinks))
                note("random", crash(sink, Path(directory), kills=share, batch=60, **chosen), share)
    print(table(["sink", "point", "kills", "results", "lost", "doubled", "in doubt", "balanced", "s"], rows))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
