"""The benchmark layouts of SCHEMAS.md as SQL: the tables of each, and how rows of the sample become rows of it.

`{id_type}` and `{id}` are filled in by layouts.build. The fills read the temp table `picked`: one row for each result,
with the columns of the sample, `n` (from 0), `id`, `moment` (naive UTC), `run` (from 1), `run_failed`, `simulated`,
`model_id`, `hardware_id` and `extras` (JSON).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MODELS = """
CREATE TABLE models (
    model_id INTEGER PRIMARY KEY, model_name VARCHAR, model_family VARCHAR, modality VARCHAR, source VARCHAR,
    version VARCHAR, parameters_million FLOAT, metadata JSON, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)
"""

HARDWARE = """
CREATE TABLE hardware_platforms (
    hardware_id INTEGER PRIMARY KEY, hardware_type VARCHAR, device_name VARCHAR, platform VARCHAR,
    platform_version VARCHAR, driver_version VARCHAR, memory_gb FLOAT, compute_units INTEGER, metadata JSON,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)
"""

RUNS = """
CREATE TABLE test_runs (
    run_id INTEGER PRIMARY KEY, test_name VARCHAR, test_type VARCHAR, started_at TIMESTAMP, completed_at TIMESTAMP,
    execution_time_seconds FLOAT, success BOOLEAN, git_commit VARCHAR, git_branch VARCHAR, command_line VARCHAR,
    metadata JSON, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)
"""

_FOREIGN_KEYS = """
    FOREIGN KEY (run_id) REFERENCES test_runs(run_id),
    FOREIGN KEY (model_id) REFERENCES models(model_id),
    FOREIGN KEY (hardware_id) REFERENCES hardware_platforms(hardware_id))
"""

V1_RESULTS = (
    """
CREATE TABLE performance_results (
    result_id INTEGER PRIMARY KEY, run_id INTEGER, model_id INTEGER NOT NULL, hardware_id INTEGER NOT NULL,
    test_case VARCHAR NOT NULL, batch_size INTEGER DEFAULT 1, precision VARCHAR, total_time_seconds FLOAT,
    average_latency_ms FLOAT, throughput_items_per_second FLOAT, memory_peak_mb FLOAT, iterations INTEGER,
    warmup_iterations INTEGER, metrics JSON, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,"""
    + _FOREIGN_KEYS
)

#: SCHEMAS.md names this table and what it refers to; its other columns are ours. It stays empty.
V1_BATCH_RESULTS = """
CREATE TABLE performance_batch_results (
    batch_id INTEGER PRIMARY KEY, result_id INTEGER NOT NULL, batch_index INTEGER, batch_size INTEGER,
    latency_ms FLOAT, memory_usage_mb FLOAT, FOREIGN KEY (result_id) REFERENCES performance_results(result_id))
"""

V4_RESULTS = (
    """
CREATE TABLE performance_results (
    result_id INTEGER PRIMARY KEY, run_id INTEGER, model_id INTEGER NOT NULL, hardware_id INTEGER NOT NULL,
    test_case VARCHAR NOT NULL, batch_size INTEGER DEFAULT 1, precision VARCHAR, average_latency_ms FLOAT,
    throughput_items_per_second FLOAT, memory_peak_mb FLOAT, metrics VARCHAR,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, simulation_mode BOOLEAN DEFAULT FALSE,
    simulation_details VARCHAR,"""
    + _FOREIGN_KEYS
)

V7_RESULTS = """
CREATE TABLE performance_results (
    id {id_type} PRIMARY KEY, model_id INTEGER, hardware_id INTEGER, batch_size INTEGER, sequence_length INTEGER,
    average_latency_ms FLOAT, p50_latency_ms FLOAT, p90_latency_ms FLOAT, p99_latency_ms FLOAT,
    throughput_items_per_second FLOAT, memory_peak_mb FLOAT, power_watts FLOAT,
    energy_efficiency_items_per_joule FLOAT, test_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP)
"""

V9_RESULTS = """
CREATE TABLE performance_results (
    id {id_type} PRIMARY KEY, run_id VARCHAR, model_id INTEGER, hardware_id INTEGER, batch_size INTEGER,
    average_latency_ms FLOAT, throughput_items_per_second FLOAT, memory_peak_mb FLOAT,
    is_simulated BOOLEAN DEFAULT FALSE, simulation_reason VARCHAR, test_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    metadata JSON)
"""

V12_RESULTS = """
CREATE TABLE performance_results (
    id {id_type} PRIMARY KEY, model_id INTEGER, hardware_id INTEGER, batch_size INTEGER, sequence_length INTEGER,
    precision VARCHAR, throughput_items_per_second FLOAT, latency_ms FLOAT, memory_mb FLOAT, power_watts FLOAT,
    timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, version_tag VARCHAR, git_commit_hash VARCHAR,
    environment_hash VARCHAR, run_group_id VARCHAR)
"""

FILL_MODELS = """
INSERT INTO models
SELECT model_id, any_value(model_name), any_value(model_family), any_value(modality), 'h100_results', NULL,
    any_value(parameters_million), NULL, min(moment)
FROM picked
GROUP BY model_id
ORDER BY model_id
"""

FILL_HARDWARE = """
INSERT INTO hardware_platforms
SELECT hardware_id, any_value(hardware_type), any_value(device_name), NULL, NULL, NULL,
    CASE WHEN any_value(device_name) LIKE '%80GB%' THEN 80 END, NULL, NULL, min(moment)
FROM picked
GROUP BY hardware_id
ORDER BY hardware_id
"""

FILL_RUNS = """
INSERT INTO test_runs
SELECT {run}, 'h100-' || run, 'performance', min(moment), max(moment), sum(total_time_seconds),
    NOT any_value(run_failed), NULL, NULL, NULL, NULL, min(moment)
FROM picked
GROUP BY run
ORDER BY run
"""

V1_FILL = """
INSERT INTO performance_results
SELECT id, run, model_id, hardware_id, mode, batch_size, precision, total_time_seconds, average_latency_ms,
    throughput_items_per_second, memory_peak_mb, iterations, warmup_iterations, extras, moment
FROM picked
ORDER BY n
"""

V4_FILL = """
INSERT INTO performance_results
SELECT id, run, model_id, hardware_id, mode, batch_size, precision, average_latency_ms, throughput_items_per_second,
    memory_peak_mb, CAST(extras AS VARCHAR), moment, simulated, CASE WHEN simulated THEN 'no device present' END
FROM picked
ORDER BY n
"""

V7_FILL = """
INSERT INTO performance_results
SELECT {id}, model_id, hardware_id, batch_size, sequence_length, average_latency_ms, p50_latency_ms, p90_latency_ms,
    p99_latency_ms, throughput_items_per_second, memory_peak_mb, NULL, NULL, moment
FROM picked
ORDER BY n
"""

V9_FILL = """
INSERT INTO performance_results
SELECT {id}, 'run-' || run, model_id, hardware_id, batch_size, average_latency_ms, throughput_items_per_second,
    memory_peak_mb, simulated, CASE WHEN simulated THEN 'no device present' END, moment, extras
FROM picked
ORDER BY n
"""

V12_FILL = """
INSERT INTO performance_results
SELECT {id}, model_id, hardware_id, batch_size, sequence_length, precision, throughput_items_per_second,
    average_latency_ms, memory_peak_mb, NULL, moment, 'v1.0', NULL, NULL, 'group-' || run
FROM picked
ORDER BY n
"""


@dataclass(frozen=True, slots=True)
class Schema:
    """One layout.

    `has_case` is false where nothing says whether a result is of training: then only inference goes in.
    """

    tables: tuple[str, ...]
    fills: tuple[str, ...]
    has_case: bool = True


_RUNS_FILL = FILL_RUNS.format(run="run")

SCHEMAS: Mapping[str, Schema] = {
    "V1": Schema(
        (MODELS, HARDWARE, RUNS, V1_RESULTS, V1_BATCH_RESULTS),
        (FILL_MODELS, FILL_HARDWARE, _RUNS_FILL, V1_FILL),
    ),
    "V4": Schema(
        (
            MODELS,
            HARDWARE.replace("metadata JSON,", "metadata JSON, simulation_mode BOOLEAN DEFAULT FALSE,"),
            RUNS,
            V4_RESULTS,
        ),
        (FILL_MODELS, FILL_HARDWARE.replace("NULL, min(moment)", "NULL, FALSE, min(moment)"), _RUNS_FILL, V4_FILL),
    ),
    # Keys called id, and type for hardware_type.
    "V7": Schema(
        (
            MODELS.replace("model_id", "id"),
            HARDWARE.replace("hardware_id", "id").replace("hardware_type", "type"),
            V7_RESULTS,
        ),
        (FILL_MODELS, FILL_HARDWARE, V7_FILL),
        has_case=False,
    ),
    # Runs under VARCHAR ids.
    "V9": Schema(
        (MODELS, HARDWARE, RUNS.replace("run_id INTEGER", "run_id VARCHAR"), V9_RESULTS),
        (FILL_MODELS, FILL_HARDWARE, FILL_RUNS.format(run="'run-' || run"), V9_FILL),
        has_case=False,
    ),
    # model_type for model_family, hardware_name for device_name, and no runs: run_group_id refers to nothing.
    "V12": Schema(
        (
            MODELS.replace("model_family", "model_type"),
            HARDWARE.replace("device_name", "hardware_name"),
            V12_RESULTS,
        ),
        (FILL_MODELS, FILL_HARDWARE, V12_FILL),
        has_case=False,
    ),
}
