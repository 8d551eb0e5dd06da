"""Published benchmark rows as the measurements that the bridge would deliver of them: figures on the wire, the rest in ``metadata``."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
from unified_server.predictive.measurement import TABLE_SCHEMA

_LONG = """
SELECT split_part(source, '@', 1) AS repository, model_name, model_family, hardware_type AS hardware_platform,
    coalesce(CAST(batch_size AS BIGINT), 1) AS batch_size, coalesce(CAST(sequence_length AS BIGINT), 128) AS sequence_length, precision, mode,
    throughput_items_per_second AS throughput, average_latency_ms AS latency, memory_peak_mb AS memory_usage,
    json_object('device_name', device_name,
        'assumed', CASE WHEN sequence_length IS NULL THEN ['sequence_length'] ELSE [] END,
        'extras', json_merge_patch('{{}}', json_object('parameters_million', parameters_million, 'gmacs', gmacs, 'macts_million', macts_million,
            'img_size', img_size, 'num_devices', num_devices, 'framework', framework, 'modality', modality, 'compile_mode', compile_mode,
            'memory_layout', memory_layout, 'software', software, 'input_resolution', json_extract_string(extra, '$.input_resolution')))
        )::VARCHAR AS metadata
FROM read_{form}(?)
ORDER BY row_id
"""
_H100 = """
SELECT 'h100' AS repository, model_name, model_family, hardware_type AS hardware_platform,
    CAST(batch_size AS BIGINT) AS batch_size, coalesce(CAST(sequence_length AS BIGINT), 128) AS sequence_length, precision, mode,
    throughput_items_per_second AS throughput, average_latency_ms AS latency, memory_peak_mb AS memory_usage,
    json_object('device_name', device_name,
        'assumed', CASE WHEN sequence_length IS NULL THEN ['sequence_length'] ELSE [] END,
        'extras', json_merge_patch('{}', json_object('parameters_million', parameters_million, 'image_size', image_size, 'attention', attention,
            'software', software, 'modality', modality)))::VARCHAR AS metadata
FROM read_csv(?, sample_size = -1)
"""


def read_rows(path: Path) -> tuple[pa.Table, list[str]]:
    """The long table of published rows (Parquet or CSV) as measurements, and the repository of each."""
    form = "parquet" if path.suffix == ".parquet" else "csv_auto"
    return _measurements(_LONG.format(form=form), path)


def read_h100(path: Path) -> pa.Table:
    """h100_results.csv as measurements."""
    return _measurements(_H100, path)[0]


def _measurements(query: str, path: Path) -> tuple[pa.Table, list[str]]:
    with duckdb.connect() as connection:
        cursor = connection.execute(query, [str(path)])
        names = [column[0] for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    table = pa.Table.from_pylist([{field.name: row.get(field.name) for field in TABLE_SCHEMA} for row in rows], schema=TABLE_SCHEMA)
    return table, [row["repository"] for row in rows]
