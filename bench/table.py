"""The promises about speed in one table: medians of several runs of the benchmarks behind them, each a ratio or a time measured in that run.

Every finished run is kept in a file at once, so that an interrupted table goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import keep, kept
from benchbridge_plugin.report import table

Command = tuple[str, ...]  # of `python -m bench`, answered in JSON


@dataclass(frozen=True, slots=True)
class Measure:
    """What is promised: `at_least` for a ratio that should be high, `at_most` for a time or a ratio that should be low.

    `value` takes one answer of each command.
    """

    name: str
    commands: tuple[Command, ...]
    value: Callable[..., float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def promised(self) -> str:
        limits = {"at least": self.at_least, "at most": self.at_most}
        return " ".join(f"{words} {limit:g}" for words, limit in limits.items() if limit is not None) or "for comparison"

    def keeps(self, value: float) -> bool | None:
        """None where nothing is promised."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def measures(results: int, posts: int, python: str | None) -> tuple[Measure, ...]:
    """`results`: of the large runs; the promises are for 1,000,000. `posts`: of the runs with a request for each result."""
    backfill = ("backfill", "--results", str(results))
    cycles = ("cycles", "--results", str(results))
    status = ("status", "--results", str(results // 5))
    memory = ("memory", "--results", f"{results // 10},{results * 3}")
    singly = ("http", "--results", str(posts), "--insert-ms", "5", "--bulk", "0")
    bulk = ("http", "--results", str(posts), "--insert-ms", "--bulk", str(results // 20))
    found = (
        Measure("backfill in process, of DuckDB storing the same rows", (backfill,), lambda said: said["ratio"], 0.45),
        Measure("the same, of a bare copy", (backfill,), lambda said: said["ratio_to_bare_copy"]),
        Measure("file held during a backfill, p95", (backfill,), lambda said: said["source_held"]["p95_ms"], at_most=100, unit="ms"),
        Measure("file held during a backfill, longest", (backfill,), lambda said: said["source_held"]["max_ms"], unit="ms"),
        Measure("HTTP base contract, exactly once, of the best POST loop", (singly,), lambda said: _ours(said)["ratio"], 0.9),
        Measure("the same, of POST and task", (singly,), lambda said: _ours(said)["per_second"] / _way(said, "task")["per_second"], 1.1),
        Measure("full contract in bulk", (bulk,), lambda said: _ours(said)["per_second"], unit="results/s"),
        Measure("the same, of what the server takes", (bulk,), lambda said: _ours(said)["ratio"]),
        Measure("the same, of in process", (bulk, backfill), lambda said, own: _ours(said)["per_second"] / own["results_per_second"], 0.3),
        Measure("nothing new: one cycle", (cycles,), lambda said: said["idle_ms"], at_most=5, unit="ms"),
        Measure("100 new results: whole cycle", (cycles,), lambda said: said["new_ms"], at_most=400, unit="ms"),
        Measure("100 new results: file held", (cycles,), lambda said: said["new_held_max_ms"], at_most=100, unit="ms"),
        Measure(f"peak memory, {results * 3} against {results // 10} results", (memory,), lambda said: said[-1]["ratio"], at_most=1.3),
        Measure("p99 of /status during a backfill", (status,), lambda said: said["during_p99_ms"], at_most=100, unit="ms"),
        Measure("p99 of /status during a backfill, of idle", (status,), lambda said: said["ratio"], at_most=3),
    )
    if python is None:
        return found
    stores = (
        "competitors",
        "--python",
        python,
        "--results",
        str(results // 10),
        "--rows",
        "0",
        "--paced",
        "0",
        "--faulty",
        "0",
        "--ways",
        "3",
    )
    rest = ("competitors", "--python", python, "--results", "0", "--rows", str(posts * 2), "--paced", str(posts // 10), "--faulty", "0")
    return (
        *found,
        Measure("dlt, Arrow, same rows: times as long as ours", (stores,), lambda said: _least(said, "same columns"), 2),
        Measure("dlt, Arrow, bare columns: the same", (stores,), lambda said: _least(said, "bare columns")),
        Measure("drt-core, pacing off: times as long as ours", (rest,), lambda said: _least(said, "pacing off", "after 0 ms"), 5),
        Measure("the same, answers after 5 ms", (rest,), lambda said: _least(said, "pacing off", "after 5 ms")),
        Measure("drt-core as installed: the same", (rest,), lambda said: _least(said, "as installed")),
    )


def _way(figures: Sequence[dict[str, Any]], words: str) -> dict[str, Any]:
    return next(figure for figure in figures if words in figure["way"])


def _ours(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return _way(figures, "our sync")


def _least(figures: Sequence[dict[str, Any]], way: str, work: str = "") -> float:
    """Of the quickest of the ways."""
    return min(float(figure["times"]) for figure in figures if way in figure["way"] and work in figure["work"])


def answers(commands: Sequence[Command], runs: int, lines: Path) -> dict[Command, list[Any]]:
    """So many answers of each command: those in the file, and new ones, which are added to it. One run of all comes before the next of any."""
    found: dict[Command, list[Any]] = {command: [] for command in commands}
    for line in kept(lines):
        found.get(tuple(line["command"]), []).append(line["answer"])
    for run in range(runs):
        for command in commands:
            if len(found[command]) <= run:
                print(f"bench {' '.join(command)} ({run + 1} of {runs})", file=sys.stderr, flush=True)
                ran = subprocess.run([sys.executable, "-m", "bench", *command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
                found[command].append(json.loads(ran.stdout))
                keep(lines, {"command": command, "answer": found[command][-1]})
    return {command: all_of_it[:runs] for command, all_of_it in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench table", description=__doc__)
    parser.add_argument("--results", type=int, default=1_000_000, help="of the large runs")
    parser.add_argument("--posts", type=int, default=1_000, help="of the runs with one request for each result")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="names of benchmarks, by comma")
    parser.add_argument("--python", help="of an environment with dlt and drt-core, to compare with them: see competitors")
    parser.add_argument("--out", type=Path, default=Path("bench-table.jsonl"), help="gets a line for each run")
    parser.add_argument("--resume", action="store_true", help="take the runs that are in that file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.out.exists() and not options.resume:
        parser.error(f"{options.out} is there: --resume goes on from it; for new figures remove it or name another with --out")
    every = measures(options.results, options.posts, options.python)
    chosen = [one for one in every if options.only is None or {command[0] for command in one.commands} <= set(options.only.split(","))]
    if not chosen:
        parser.error(f"--only: choose among {', '.join(sorted({command[0] for one in every for command in one.commands}))}")
    commands = list(dict.fromkeys(command for measure in chosen for command in measure.commands))
    try:
        answered = answers(commands, options.runs, options.out)
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
        sys.exit(f"{str(error) or 'interrupted'}; what is finished is in {options.out}, and --resume goes on from it")
    rows: list[dict[str, Any]] = []
    for measure in chosen:
        values = [round(float(measure.value(*run)), 3) for run in zip(*(answered[command] for command in measure.commands), strict=True)]
        middle = round(statistics.median(values), 3)
        row = {"measure": measure.name, "median": middle, "unit": measure.unit, "promised": measure.promised}
        rows.append({**row, "kept": measure.keeps(middle), "runs": values})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    verdict = {True: "yes", False: "no", None: ""}
    shown = [[*list(row.values())[:4], verdict[row["kept"]], ", ".join(f"{value:g}" for value in row["runs"])] for row in rows]
    print(table(("measure", "median", "", "promised", "kept", "runs, in order"), shown, markdown=options.markdown))


if __name__ == "__main__":
    main()
