"""The tables of a benchmark database, layout V1. Benchmark runners and readers know them by these names."""

from __future__ import annotations

import duckdb

LAYOUT_V1 = """
CREATE TABLE IF NOT EXISTS models (
    model_id INTEGER PRIMARY KEY,
    model_name VARCHAR NOT NULL,
    model_family VARCHAR,
    modality VARCHAR,
    source VARCHAR,
    version VARCHAR,
    parameters_million FLOAT,
    metadata JSON,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);

CREATE TABLE IF NOT EXISTS hardware_platforms (
    hardware_id INTEGER PRIMARY KEY,
    hardware_type VARCHAR NOT NULL,
    device_name VARCHAR,
    platform VARCHAR,
    platform_version VARCHAR,
    driver_version VARCHAR,
    memory_gb FLOAT,
    compute_units INTEGER,
    metadata JSON,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);

CREATE TABLE IF NOT EXISTS test_runs (
    run_id INTEGER PRIMARY KEY,
    test_name VARCHAR NOT NULL,
    test_type VARCHAR,
    started_at TIMESTAMP,
    completed_at TIMESTAMP,
    execution_time_seconds FLOAT,
    success BOOLEAN,
    git_commit VARCHAR,
    git_branch VARCHAR,
    command_line VARCHAR,
    metadata JSON,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);

CREATE TABLE IF NOT EXISTS performance_results (
    result_id INTEGER PRIMARY KEY,
    run_id INTEGER,
    model_id INTEGER NOT NULL,
    hardware_id INTEGER NOT NULL,
    test_case VARCHAR NOT NULL,
    batch_size INTEGER DEFAULT 1,
    precision VARCHAR,
    total_time_seconds FLOAT,
    average_latency_ms FLOAT,
    throughput_items_per_second FLOAT,
    memory_peak_mb FLOAT,
    iterations INTEGER,
    warmup_iterations INTEGER,
    metrics JSON,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    FOREIGN KEY (run_id) REFERENCES test_runs (run_id),
    FOREIGN KEY (model_id) REFERENCES models (model_id),
    FOREIGN KEY (hardware_id) REFERENCES hardware_platforms (hardware_id));

CREATE TABLE IF NOT EXISTS performance_batch_results (
    batch_id INTEGER PRIMARY KEY,
    result_id INTEGER NOT NULL,
    batch_index INTEGER NOT NULL,
    batch_size INTEGER,
    latency_ms FLOAT,
    throughput_items_per_second FLOAT,
    memory_peak_mb FLOAT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    FOREIGN KEY (result_id) REFERENCES performance_results (result_id));
"""


def create_layout(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the tables in a file that has no results yet. A file with results of any layout is left as it is."""
    found = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'performance_results'").fetchone()
    if found is None:
        connection.execute(LAYOUT_V1)
