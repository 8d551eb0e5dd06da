"""Benchmark databases in the layouts of SCHEMAS.md, filled with results that were measured.

build("V9", tmp_path / "bench.duckdb", limit=50)      # -> 50
database = BenchmarkDatabase(tmp_path / "own.duckdb")  # V1, row by row
database.insert(model="gpt2", throughput=float("nan"))
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import duckdb

from tests.kit.database import BenchmarkDatabase
from tests.kit.schemas import SCHEMAS

__all__ = [
    "LAYOUTS",
    "SAMPLE_CSV",
    "BenchmarkDatabase",
    "build",
    "build_in",
]

SAMPLE_CSV = Path(__file__).parents[2] / "examples/unified_server_stub/unified_server/sample/h100_results.csv"

LAYOUTS = tuple(SCHEMAS)

#: Results of one run; with `failed_runs` the second of every five runs has failed: results 11-20, 61-70 and so on.
RESULTS_PER_RUN = 10

#: In V4 and V9 the last of every so many results says that it is simulated.
SIMULATED_EVERY = 10


def build(
    layout: str,
    path: Path,
    limit: int | None = None,
    start_id: int = 1,
    *,
    failed_runs: bool = False,
    text_ids: bool = False,
    newest: datetime | None = None,
) -> int:
    """A new benchmark database in `layout` ("V1", "V4", "V7", "V9", "V12") at `path`; returns the results written.

    The results are rows of SAMPLE_CSV in the order they were measured (V7, V9 and V12: inference only, they have no
    column that tells it from training), at most `limit`; a limit beyond the sample goes through it again, each time a
    minute earlier. Ids count up from `start_id`; `text_ids` makes them VARCHAR in V7, V9 and V12: "r-000001". Times are
    as in the sample, or moved so that the sample's last is `newest`. Raises FileExistsError when the file exists.
    """
    if path.exists():
        raise FileExistsError(path)
    connection = duckdb.connect(str(path))
    try:
        return build_in(connection, layout, limit, start_id, failed_runs=failed_runs, text_ids=text_ids, newest=newest)
    finally:
        connection.close()


def build_in(
    connection: duckdb.DuckDBPyConnection,
    layout: str,
    limit: int | None = None,
    start_id: int = 1,
    *,
    failed_runs: bool = False,
    text_ids: bool = False,
    newest: datetime | None = None,
) -> int:
    """As `build`, into the empty database of a connection."""
    schema = SCHEMAS[layout]
    if text_ids and not any("{id_type}" in table for table in schema.tables):
        raise ValueError(f"{layout} has INTEGER ids")
    id_type, id_value = ("VARCHAR", "printf('r-%06d', id)") if text_ids else ("INTEGER", "id")
    for table in schema.tables:
        connection.execute(table.format(id_type=id_type))
    connection.execute(_SAMPLE, {"path": str(SAMPLE_CSV), "any_case": schema.has_case})
    if newest is not None and newest.tzinfo is not None:
        newest = newest.astimezone(UTC).replace(tzinfo=None)
    connection.execute(
        _PICKED,
        {
            "limit": limit,
            "start_id": start_id,
            "failed_runs": failed_runs,
            "newest": newest,
            "per_run": RESULTS_PER_RUN,
            "simulated_every": SIMULATED_EVERY,
        },
    )
    for fill in schema.fills:
        connection.execute(fill.format(id=id_value))
    found = connection.execute("SELECT count(*) FROM performance_results").fetchone()
    connection.execute("DROP TABLE picked")
    connection.execute("DROP TABLE sample")
    assert found is not None
    return int(found[0])


_SAMPLE = """
CREATE TEMP TABLE sample AS
SELECT
    row_number() OVER (ORDER BY started_at, model_name) - 1 AS place,
    model_name, model_family, modality, hardware_type, device_name, precision, mode,
    CAST(batch_size AS INTEGER) AS batch_size,
    CAST(sequence_length AS INTEGER) AS sequence_length,
    CAST(image_size AS INTEGER) AS image_size,
    CAST(iterations AS INTEGER) AS iterations,
    CAST(warmup_iterations AS INTEGER) AS warmup_iterations,
    CAST(total_time_seconds AS DOUBLE) AS total_time_seconds,
    CAST(average_latency_ms AS DOUBLE) AS average_latency_ms,
    CAST(p50_latency_ms AS DOUBLE) AS p50_latency_ms,
    CAST(p90_latency_ms AS DOUBLE) AS p90_latency_ms,
    CAST(p99_latency_ms AS DOUBLE) AS p99_latency_ms,
    CAST(throughput_items_per_second AS DOUBLE) AS throughput_items_per_second,
    CAST(memory_peak_mb AS DOUBLE) AS memory_peak_mb,
    CAST(parameters_million AS DOUBLE) AS parameters_million,
    software,
    CAST(replace(started_at, '+00:00', '') AS TIMESTAMP) AS measured_at
FROM read_csv($path, header = true, all_varchar = true)
WHERE $any_case OR mode = 'inference'
"""

_PICKED = """
CREATE TEMP TABLE picked AS
WITH total AS (
    SELECT count(*) AS rows, max(measured_at) AS last FROM sample
), wanted AS (
    SELECT unnest(range(coalesce($limit, rows))) AS n FROM total
)
SELECT
    sample.*,
    n,
    n + $start_id AS id,
    n // $per_run + 1 AS run,
    $failed_runs AND n // $per_run % 5 = 1 AS run_failed,
    n % $simulated_every = $simulated_every - 1 AS simulated,
    measured_at - to_minutes(n // rows) + (coalesce(CAST($newest AS TIMESTAMP), last) - last) AS moment,
    dense_rank() OVER (ORDER BY model_name) AS model_id,
    dense_rank() OVER (ORDER BY hardware_type, device_name) AS hardware_id,
    json_merge_patch(CAST('{}' AS JSON), json_object(
        'sequence_length', sequence_length, 'image_size', image_size, 'p50_latency_ms', p50_latency_ms,
        'p90_latency_ms', p90_latency_ms, 'p99_latency_ms', p99_latency_ms, 'software', software)) AS extras
FROM wanted
CROSS JOIN total
JOIN sample ON place = n % rows
"""
