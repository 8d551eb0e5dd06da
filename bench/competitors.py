"""benchbridge beside other tools at the same work, in one run: dlt (DuckDB file to DuckDB store) and drt-core (DuckDB file to a REST API).

Each runs in a process of its own, into a store or a server of its own. `s` is the work alone, from the end of the imports until all files are
closed; `process s` the whole process, start and imports included. Afterwards the destination is compared with the source: results that are missing
(`lost`) and that are there too often (`doubled`); and once more after the same run was asked for a second time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import requests

from bench.alone import alone, answer
from bench.backfill import BARE_ROWS, SAME_ROWS
from bench.dataset import make
from bench.host import STORE
from bench.http import base_server
from benchbridge_plugin.report import table
from tests.kit.base_contract import BASE
from tests.kit.layouts import build

INSTALL = "python3 -m venv VENV && VENV/bin/pip install 'dlt[duckdb]==1.31.0' drt-core==1.2.1 pyarrow, then: --python VENV/bin/python"
_RIVALS = Path(__file__).with_name("rivals")
_NAME = "benchmark_db"  # of the file, and so of the source
_DLTS_STORE = "dlt.duckdb"  # a file may not have the name of the dataset in it

#: Ways to use dlt: how the rows are handed over, the strategy of the merge, which columns. The first is what its documentation says is quickest.
WAYS = (
    ("arrow", "delete-insert", "same"),
    ("arrow", "upsert", "same"),
    ("arrow", "delete-insert", "bare"),
    ("dictionaries", "delete-insert", "same"),
)

# What a result is told by on both sides, figures as they are.
_IN_FILE = """
SELECT result_id, model_name, batch_size, throughput_items_per_second, average_latency_ms, memory_peak_mb
  FROM performance_results
  JOIN models USING (model_id)
"""
_IN_OURS = (
    "SELECT CAST(split_part(source_ref, '/', 2) AS BIGINT), model_name, batch_size, throughput, latency, memory_usage FROM measurements"
)
_IN_DLTS = "SELECT id, model_name, batch_size, throughput, latency, memory_usage FROM store.measurements"

# A row is the body of a POST. The server drops the id, which is what drt goes by.
_BODIES = """
SELECT r.id, m.model_name, m.model_family, lower(h.type) AS hardware_platform, r.batch_size,
       coalesce(r.sequence_length, 128) AS sequence_length, 'fp32' AS precision, 'inference' AS mode,
       r.throughput_items_per_second AS throughput, r.average_latency_ms AS latency, r.memory_peak_mb AS memory_usage,
       'benchmark:' || r.id AS source
  FROM performance_results AS r
  JOIN models AS m ON m.id = r.model_id
  JOIN hardware_platforms AS h ON h.id = r.hardware_id
"""
_FIELDS = "model_name, hardware_platform, batch_size, sequence_length, throughput, latency, memory_usage"

GUARANTEES = {
    "benchbridge": "Exactly once: a ledger row for each result; what is in doubt is asked for before it is sent again.",
    "dlt": "Each key once in the store, by a merge in one transaction. What is asked for again is read and written again.",
    "drt-core": "None for each row: one cursor for each sync. A POST whose answer is lost is sent again; a row that failed is passed over.",
}

_HEADERS = (
    *("work", "tool", "way", "results", "s", "process s", "results/s", "times ours", "process", "again s"),
    *("lost", "doubled", "lost again", "doubled again"),
)

Rows = Counter[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One tool at one work. `times`: as long as benchbridge's; above 1 benchbridge is the faster one."""

    work: str
    tool: str
    way: str
    results: int
    seconds: float
    process_seconds: float
    per_second: float
    times: float
    process_times: float
    again_seconds: float
    lost: int  # and the other three: after the first run, and after the second
    doubled: int
    lost_again: int
    doubled_again: int


def race(
    work: str, tool: str, way: str, run: Callable[[], dict[str, Any]], there: Callable[[], Rows], expected: Rows, ours: Figure | None = None
) -> Figure:
    """Run it, look at the destination, run it again, look again."""
    said = run()
    first = there()
    again = run()
    second = there()
    results, seconds, whole = expected.total(), said["seconds"], said["process_seconds"]
    figure = Figure(
        work=work,
        tool=f"{tool} {said['version']}" if "version" in said else tool,
        way=way,
        results=results,
        seconds=round(seconds, 3),
        process_seconds=round(whole, 3),
        per_second=round(results / seconds, 1),
        times=round(seconds / ours.seconds, 2) if ours else 1.0,
        process_times=round(whole / ours.process_seconds, 2) if ours else 1.0,
        again_seconds=round(again["seconds"], 3),
        lost=(expected - first).total(),
        doubled=(first - expected).total(),
        lost_again=(expected - second).total(),
        doubled_again=(second - expected).total(),
    )
    print(*asdict(figure).values(), file=sys.stderr, flush=True)
    return figure


def rival(python: str, script: str, place: Path, **task: object) -> dict[str, Any]:
    """Run a script of rivals/ with another environment's Python, with `place` for its home."""
    place.mkdir(exist_ok=True)
    return answer([python, str(_RIVALS / f"{script}.py"), json.dumps({**task, "place": str(place)})], cwd=place, HOME=str(place))


def _stored(path: Path, query: str) -> Rows:
    with duckdb.connect(str(path), read_only=True) as connection:
        return Counter(connection.execute(query).fetchall())


def stores(python: str, results: int, ways: Sequence[tuple[str, str, str]], place: Path) -> list[Figure]:
    """A benchmark file into a DuckDB store. What a sync works out for a row, SQL works out for dlt (`same`), or the columns go as they are (`bare`)."""
    file = make(place / f"{_NAME}.duckdb", results)
    expected = _stored(file, _IN_FILE)
    own = place / "benchbridge"
    own.mkdir()
    ours = race("store", "benchbridge", "in process", lambda: alone(file, own), lambda: _stored(own / STORE, _IN_OURS), expected)

    def merged(rows: str, strategy: str, columns: str) -> Figure:
        there = place / f"dlt-{rows}-{strategy}-{columns}"
        query = (SAME_ROWS if columns == "same" else BARE_ROWS).replace("$source_name", f"'{_NAME}'")
        query = f"SELECT * REPLACE (CAST(key AS VARCHAR) AS key, CAST(metadata AS VARCHAR) AS metadata) FROM ({query})"
        task = {"file": str(file), "store": str(there / _DLTS_STORE), "query": query, "key": "id"}
        handed = {"strategy": strategy, "rows": rows, "batch": 50_000 if rows == "arrow" else 5_000}
        way = f"{rows}, {strategy}, {columns} columns"
        return race(
            "store",
            "dlt",
            way,
            lambda: rival(python, "dlt_merge", there, **task, **handed),
            lambda: _stored(there / _DLTS_STORE, _IN_DLTS),
            expected,
            ours,
        )

    return [ours, *(merged(*way) for way in ways)]


def posts(
    python: str, work: str, results: int, place: Path, *options: str, paced: bool = False, settings: Sequence[str] = ()
) -> list[Figure]:
    """A benchmark file to servers of the base contract with those options, one for each tool. `paced`: drt at its own rate of 10 requests a second."""
    place.mkdir()
    file = place / f"{_NAME}.duckdb"
    build("V7", file, limit=results)
    expected = _stored(file, f"SELECT {_FIELDS} FROM ({_BODIES})")

    def listed(url: str) -> Rows:
        answer = requests.get(f"{url}{BASE}/measurements", params={"limit": 10 * results}, timeout=60).json()
        return Counter(tuple(row[name] for name in _FIELDS.split(", ")) for row in answer["measurements"])

    with base_server(*options) as url:
        own = ['default_precision="fp32"', *settings]
        ours = race(work, "benchbridge", "HTTP", lambda: alone(file, place, url, *own), lambda: listed(url), expected)
    with base_server(*options) as url:
        task = {"file": str(file), "url": f"{url}{BASE}/record-measurement", "query": _BODIES, "cursor": "id", "paced": paced}
        way = "as installed, 10 requests/s" if paced else "pacing off"
        theirs = race(work, "drt-core", way, lambda: rival(python, "drt_post", place / "drt", **task), lambda: listed(url), expected, ours)
    return [ours, theirs]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench competitors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help=f"of an environment that has them: {INSTALL}")
    parser.add_argument("--results", type=int, default=100_000, help="into the store; 0: none")
    parser.add_argument("--rows", type=int, default=2_000, help="over HTTP; 0: none")
    parser.add_argument("--latency-ms", type=float, nargs="*", default=[0.0, 5.0], help="before each answer of the server")
    parser.add_argument("--paced", type=int, default=100, help="rows over HTTP at drt's own pace, 10 a second; 0: none")
    parser.add_argument("--faulty", type=int, default=200, help="rows to a server that loses one answer in ten after it stored; 0: none")
    parser.add_argument("--ways", type=int, default=len(WAYS), help="how many ways to use dlt, of: " + "; ".join(map(", ".join, WAYS)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.python is None or not _has_rivals(options.python):
        parser.error(f"dlt and drt-core are not there; they have to be in an environment of their own. {INSTALL}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        if options.results:
            figures += stores(options.python, options.results, WAYS[: options.ways], place)
        for latency_ms in options.latency_ms if options.rows else ():
            work = f"POST, answers after {latency_ms:g} ms"
            figures += posts(options.python, work, options.rows, place / f"post-{latency_ms}", "--latency", str(latency_ms / 1000))
        if options.paced:
            figures += posts(options.python, "POST", options.paced, place / "paced", paced=True)
        if options.faulty:
            faults = ("--fault", "reset-after-store", "--rate", "0.1", "--seed", "3")
            quick = ("settle_after_s=0.3", "retry_base_s=0.02", "retry_max_s=0.05")
            figures += posts(options.python, "POST, one answer in ten lost", options.faulty, place / "faulty", *faults, settings=quick)
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
    else:
        print(table(_HEADERS, [list(asdict(figure).values()) for figure in figures]))
        print("\n" + "\n".join(f"{tool}: {words}" for tool, words in GUARANTEES.items()))
    if any(figure.lost_again or figure.doubled_again for figure in figures if figure.tool == "benchbridge"):
        sys.exit("benchbridge lost or doubled results")


def _has_rivals(python: str) -> bool:
    looked = [
        python,
        "-c",
        "from importlib.util import find_spec; raise SystemExit(not all(map(find_spec, ('dlt', 'drt', 'duckdb', 'pyarrow'))))",
    ]
    try:
        return subprocess.run(looked, check=False, env={}).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    main()
