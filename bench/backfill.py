"""A whole benchmark file synced in process, beside what DuckDB itself needs to copy the same rows under the same kind of key: the limit.

`ratio` is to a copy that stores the very same values in each row (source, metadata and all); `ratio_to_bare_copy` to one that takes the columns as
they are. Sync and copies write into files of their own and are timed without closing them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
from unified_server.predictive.store import prepare

from bench.dataset import make
from bench.figures import peak_mb, show
from bench.host import bridged
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge

_ROWS = """
SELECT r.result_id AS id, r.key, CAST(now() AS TIMESTAMP) AS recorded_at, m.model_name, m.model_family, h.hardware_type AS hardware_platform,
       r.batch_size, {sequence_length} AS sequence_length, r.precision, r.test_case AS mode, r.throughput_items_per_second AS throughput,
       r.average_latency_ms AS latency, r.memory_peak_mb AS memory_usage, {source} AS source, {measured_at} AS measured_at,
       $source_name || '/' || r.result_id AS source_ref, {metadata} AS metadata
  FROM (SELECT *, CAST(md5($source_name || '/' || result_id) AS UUID) AS key FROM source.performance_results) AS r
  LEFT JOIN source.models AS m USING (model_id)
  LEFT JOIN source.hardware_platforms AS h USING (hardware_id)
  LEFT JOIN source.test_runs AS t ON t.run_id = r.run_id
 WHERE m.model_name IS NOT NULL AND h.hardware_type IS NOT NULL AND r.batch_size IS NOT NULL AND r.precision IS NOT NULL
"""
_LENGTH = "TRY_CAST(json_extract_string(r.metrics, '$.sequence_length') AS BIGINT)"
SAME_ROWS = _ROWS.format(
    sequence_length=f"coalesce({_LENGTH}, 128)",
    source="'benchmark:' || r.key",
    measured_at="coalesce(t.started_at, r.created_at)",
    metadata=f"""json_object('device_name', h.device_name, 'test_case', r.test_case,
                             'assumed', CASE WHEN {_LENGTH} IS NULL THEN ['sequence_length'] ELSE [] END, 'extras', CAST(r.metrics AS JSON))""",
)
BARE_ROWS = _ROWS.format(sequence_length="128", source="'benchmark'", measured_at="r.created_at", metadata="r.metrics")


def copy_seconds(file: Path, target: Path, rows: str = SAME_ROWS) -> float:
    """How long DuckDB takes to insert the joined results (layout V1) into the measurements table of our host, unique key included.

    `SAME_ROWS` has in each row what a sync stores there; `BARE_ROWS` takes the columns as they are. The target is a new file; it is not closed
    within the time.
    """
    with duckdb.connect(str(target)) as connection:
        prepare(connection)
        connection.execute(f"ATTACH '{file}' AS source (READ_ONLY)")
        began = time.perf_counter()
        connection.execute(f"INSERT INTO measurements BY NAME {rows}", {"source_name": file.stem})
        return time.perf_counter() - began


def backfill(bridge: BenchmarkPredictivePerformanceBridge) -> dict[str, Any]:
    """Everything sent in one sync."""
    began = time.perf_counter()
    sent = bridge.sync_recent_results(limit=0, days=0)
    took = time.perf_counter() - began
    return {
        "results": sent["total"],
        "synced": sent["synced"],
        "rejected": sent["rejected"],
        "seconds": round(took, 3),
        "results_per_second": round(sent["total"] / took),
        "source_held": sent["details"]["held"],
        "reasons": sent["details"]["reasons"],
    }


def beside_copies(seconds: float, file: Path, place: Path) -> dict[str, float]:
    """What DuckDB takes for the same results, and the ratios of a backfill that took so many seconds to that."""
    same_s = copy_seconds(file, place / "same_rows.duckdb")
    bare_s = copy_seconds(file, place / "bare_rows.duckdb", BARE_ROWS)
    return {
        "duckdb_copy_seconds": round(same_s, 3),
        "ratio": round(same_s / seconds, 3),
        "duckdb_bare_copy_seconds": round(bare_s, 3),
        "ratio_to_bare_copy": round(bare_s / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench backfill", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="a benchmark database; it is only read")
    parser.add_argument("--results", type=int, default=100_000, help="without a file: how many results, copied from the measured sample")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        file = options.file or make(place / "benchmark_db.duckdb", options.results)
        before = peak_mb()
        with bridged(file, place) as bridge:
            figures = backfill(bridge)
            began = time.perf_counter()
            second = bridge.sync_recent_results(limit=0, days=0)
            again = time.perf_counter() - began
            accounting = bridge.accounting()
        memory = {"peak_memory_mb": round(peak_mb()), "memory_before_mb": round(before)}  # before the copy, which has its own
        copies = beside_copies(figures["seconds"], file, place)
    last = {"balanced": accounting["balanced"], "second_sync": {"sent": second["total"], "seconds": round(again, 4)}}
    show({**figures, **copies, **memory, **last}, as_json=options.json)


if __name__ == "__main__":
    main()
