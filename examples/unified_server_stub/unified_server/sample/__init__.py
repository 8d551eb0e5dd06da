"""Real measurements to try things with: 1,212 results of 20 models on one H100 and the Xeon cores beside it (see
h100_results.csv).
"""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv

from unified_server.benchmark.layout import create_layout

_TEXTS = (
    *("model_name", "model_family", "modality", "hardware_type", "device_name"),
    *("precision", "mode", "attention", "software"),
)
_WHOLE = ("batch_size", "sequence_length", "image_size", "iterations", "warmup_iterations")

# Ids follow the first appearance in the file, so that the database is the same each time it is built.
# json_merge_patch drops what is null.
_FILL = """
CREATE TEMP TABLE firsts AS
SELECT *,
    min(position) OVER (PARTITION BY model_name) AS model_first,
    min(position) OVER (PARTITION BY hardware_type, device_name) AS hardware_first,
    min(position) OVER (PARTITION BY model_name, mode) AS run_first
FROM rows;

CREATE TEMP TABLE numbered AS
SELECT *,
    dense_rank() OVER (ORDER BY model_first) AS model_id,
    dense_rank() OVER (ORDER BY hardware_first) AS hardware_id,
    dense_rank() OVER (ORDER BY run_first) AS run_id
FROM firsts;

INSERT INTO models (model_id, model_name, model_family, modality, parameters_million, created_at)
SELECT model_id, model_name, any_value(model_family), any_value(modality), any_value(parameters_million),
    min(started_at)
FROM numbered
GROUP BY model_id, model_name
ORDER BY model_id;

INSERT INTO hardware_platforms (hardware_id, hardware_type, device_name, created_at)
SELECT hardware_id, hardware_type, device_name, min(started_at)
FROM numbered
GROUP BY hardware_id, hardware_type, device_name
ORDER BY hardware_id;

INSERT INTO test_runs (run_id, test_name, test_type, started_at, completed_at, execution_time_seconds, success,
    created_at)
SELECT run_id, model_name || ' ' || mode, mode, min(started_at), max(started_at), sum(total_time_seconds), true,
    min(started_at)
FROM numbered
GROUP BY run_id, model_name, mode
ORDER BY run_id;

INSERT INTO performance_results (result_id, run_id, model_id, hardware_id, test_case, batch_size, precision,
    total_time_seconds, average_latency_ms, throughput_items_per_second, memory_peak_mb, iterations,
    warmup_iterations, metrics, created_at)
SELECT position, run_id, model_id, hardware_id, mode, batch_size, precision,
    total_time_seconds, average_latency_ms, throughput_items_per_second, memory_peak_mb, iterations,
    warmup_iterations,
    json_merge_patch('{}', json_object(
        'sequence_length', sequence_length, 'image_size', image_size,
        'p50_latency_ms', p50_latency_ms, 'p90_latency_ms', p90_latency_ms, 'p99_latency_ms', p99_latency_ms,
        'attention', attention, 'software', software)),
    started_at
FROM numbered
ORDER BY position;
"""


def load_sample(path: str | Path) -> int:
    """Make a benchmark database (layout V1) of the sample and return the number of its results, 1,212.

    The file appears whole or not at all. Times are naive UTC. Raises FileExistsError if there is a file already.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
    unfinished.unlink(missing_ok=True)
    connection = duckdb.connect(str(unfinished))
    try:
        create_layout(connection)
        connection.register("rows", _read())
        connection.execute(_FILL)
        count = connection.execute("SELECT count(*) FROM performance_results").fetchone()
    except BaseException:
        connection.close()
        unfinished.unlink(missing_ok=True)
        raise
    connection.close()  # checkpoints, so that the file is complete without a .wal
    os.link(unfinished, target)  # unlike rename, this refuses to replace a file that has appeared meanwhile
    unfinished.unlink()
    return int(count[0]) if count else 0


def _read() -> pa.Table:
    """The file with a ``position`` from 1, and started_at as naive UTC."""
    types: dict[str, pa.DataType] = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_WHOLE, pa.int64())
    types["started_at"] = pa.timestamp("us", "UTC")
    options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    with as_file(files(__package__) / "h100_results.csv") as file:
        table = pyarrow.csv.read_csv(file, convert_options=options)
    started_at = table.schema.get_field_index("started_at")
    table = table.set_column(started_at, "started_at", table.column("started_at").cast(pa.timestamp("us")))
    return table.append_column("position", pa.array(range(1, table.num_rows + 1), pa.int64()))
