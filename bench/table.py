"""The promises about speed in one table: medians of several runs of the benchmarks behind them, each a ratio or a time measured in that run."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchbridge_plugin.report import table


@dataclass(frozen=True, slots=True)
class Measure:
    """What is promised: `at_least` for a ratio that should be high, `at_most` for a time or a ratio that should be low."""

    name: str
    command: tuple[str, ...]  # of `python -m bench`, answered in JSON
    value: Callable[[Any], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""


def measures(results: int) -> tuple[Measure, ...]:
    """`results`: of the large runs; the promises are for 1,000,000."""
    backfill = ("backfill", "--results", str(results))
    cycles = ("cycles", "--results", str(results))
    status = ("status", "--results", str(results // 5))
    memory = ("memory", "--results", f"{results // 10},{results * 3}")
    http = ("http", "--results", "1000", "--insert-ms", "5", "--bulk", "0")
    return (
        Measure("backfill in process, of DuckDB's own INSERT..SELECT of the same rows", backfill, lambda said: said["ratio"], 0.45),
        Measure("the same, of a bare copy", backfill, lambda said: said["ratio_to_bare_copy"]),
        Measure("HTTP base contract, exactly once, of the POST ceiling", http, lambda said: _way(said, "our sync"), 0.9),
        Measure("nothing new: one cycle", cycles, lambda said: said["idle_ms"], at_most=5, unit="ms"),
        Measure("100 new results: whole cycle", cycles, lambda said: said["new_ms"], at_most=400, unit="ms"),
        Measure("100 new results: file held", cycles, lambda said: said["new_held_max_ms"], at_most=100, unit="ms"),
        Measure(f"peak memory, {results * 3} against {results // 10} results", memory, lambda said: said[-1]["ratio"], at_most=1.3),
        Measure("p99 of /status during a backfill", status, lambda said: said["during_p99_ms"], at_most=100, unit="ms"),
        Measure("p99 of /status during a backfill against idle", status, lambda said: said["ratio"], at_most=3),
    )


def _way(figures: list[dict[str, Any]], words: str) -> float:
    return next(float(figure["ratio"]) for figure in figures if words in figure["way"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench table", description=__doc__)
    parser.add_argument("--results", type=int, default=1_000_000, help="of the large runs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="names of benchmarks, by comma")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [one for one in measures(options.results) if options.only is None or one.command[0] in options.only.split(",")]
    answers: dict[tuple[str, ...], list[Any]] = {}
    for command in dict.fromkeys(measure.command for measure in chosen):
        for run in range(options.runs):
            print(f"bench {' '.join(command)} ({run + 1} of {options.runs})", file=sys.stderr, flush=True)
            ran = subprocess.run([sys.executable, "-m", "bench", *command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
            answers.setdefault(command, []).append(json.loads(ran.stdout))
    rows: list[dict[str, Any]] = []
    for measure in chosen:
        values = [measure.value(answer) for answer in answers[measure.command]]
        middle = statistics.median(values)
        kept = not (
            (measure.at_least is not None and middle < measure.at_least) or (measure.at_most is not None and middle > measure.at_most)
        )
        limits = {name: value for name, value in asdict(measure).items() if name in ("at_least", "at_most") and value is not None}
        promised = " ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in limits.items()) or "for comparison"
        rows.append({"measure": measure.name, "median": middle, "unit": measure.unit, "promised": promised, "kept": kept, "runs": values})
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        headers = ("measure", "median", "", "promised", "kept", "runs")
        print(table(headers, [[*list(row.values())[:5], ", ".join(f"{value:g}" for value in row["runs"])] for row in rows]))


if __name__ == "__main__":
    main()
