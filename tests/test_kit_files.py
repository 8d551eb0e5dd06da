"""The kit's benchmark files are as SCHEMAS.md describes them, and its writer writes."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.kit.layouts import LAYOUTS, SAMPLE_CSV, BenchmarkDatabase, build

ROOT = Path(__file__).parents[1]

V1 = (
    "result_id run_id model_id hardware_id test_case batch_size precision total_time_seconds average_latency_ms "
    "throughput_items_per_second memory_peak_mb iterations warmup_iterations metrics created_at"
)
COLUMNS = {
    "V1": V1,
    "V4": V1.replace("total_time_seconds ", "").replace("iterations warmup_iterations ", "") + " simulation_mode simulation_details",
    "V7": "id model_id hardware_id batch_size sequence_length average_latency_ms p50_latency_ms p90_latency_ms "
    "p99_latency_ms throughput_items_per_second memory_peak_mb power_watts energy_efficiency_items_per_joule "
    "test_timestamp",
    "V9": "id run_id model_id hardware_id batch_size average_latency_ms throughput_items_per_second memory_peak_mb "
    "is_simulated simulation_reason test_timestamp metadata",
    "V12": "id model_id hardware_id batch_size sequence_length precision throughput_items_per_second latency_ms "
    "memory_mb power_watts timestamp version_tag git_commit_hash environment_hash run_group_id",
}


def read(path: Path, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    connection = duckdb.connect(str(path), read_only=True)
    try:
        return connection.execute(sql, list(params)).fetchall()
    finally:
        connection.close()


def types(path: Path, table: str) -> dict[str, str]:
    sql = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    return dict(read(path, sql, [table]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_has_the_columns_of_its_page_and_real_figures(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.duckdb"
    assert build(layout, path, limit=30, start_id=500) == 30
    columns = types(path, "performance_results")
    assert list(columns) == COLUMNS[layout].split()
    key = next(iter(columns))
    ids = read(path, f"SELECT min({key}), max({key}), count(*) FROM performance_results")
    assert ids == [(500, 529, 30)]
    with SAMPLE_CSV.open() as file:
        sample = list(csv.DictReader(file))
    first = min(sample, key=lambda row: row["started_at"])
    latency = "latency_ms" if layout == "V12" else "average_latency_ms"
    (found,) = read(path, f"SELECT {latency} FROM performance_results WHERE {key} = 500")
    assert found[0] == pytest.approx(float(first["average_latency_ms"]), rel=1e-6)


def test_the_whole_sample_goes_in_without_training_where_nothing_would_say_so(tmp_path: Path) -> None:
    with SAMPLE_CSV.open() as file:
        modes = [row["mode"] for row in csv.DictReader(file)]
    for layout in LAYOUTS:
        wanted = len(modes) if layout in {"V1", "V4"} else modes.count("inference")
        assert build(layout, tmp_path / f"{layout}.duckdb") == wanted


def test_v1_has_its_types_defaults_and_foreign_keys(tmp_path: Path) -> None:
    path = tmp_path / "bench.duckdb"
    build("V1", path, limit=20)
    columns = types(path, "performance_results")
    assert (columns["metrics"], columns["average_latency_ms"], columns["created_at"]) == ("JSON", "FLOAT", "TIMESTAMP")
    for table in ("models", "hardware_platforms", "test_runs"):
        assert types(path, table)["metadata"] == "JSON"
    sql = "SELECT constraint_type FROM duckdb_constraints() WHERE table_name = 'performance_results'"
    constraints = [kind for (kind,) in read(path, sql)]
    assert constraints.count("FOREIGN KEY") == 3
    assert constraints.count("PRIMARY KEY") == 1
    database = BenchmarkDatabase(path)
    with pytest.raises(duckdb.ConstraintException):
        database.execute("UPDATE performance_results SET run_id = 99 WHERE result_id = 1")
    with pytest.raises(duckdb.ConstraintException, match="NOT NULL"):
        database.insert(test_case=None)
    assert "performance_batch_results" in {name for (name,) in read(path, "SELECT table_name FROM duckdb_tables()")}


def test_layouts_differ_where_the_page_says_they_differ(tmp_path: Path) -> None:
    paths = {layout: tmp_path / f"{layout}.duckdb" for layout in LAYOUTS}
    for layout, path in paths.items():
        build(layout, path, limit=30)
    assert types(paths["V4"], "performance_results")["metrics"] == "VARCHAR"
    assert "simulation_mode" in types(paths["V4"], "hardware_platforms")
    assert types(paths["V9"], "performance_results")["metadata"] == "JSON"
    assert types(paths["V9"], "test_runs")["run_id"] == "VARCHAR"
    assert {"id", "type"} <= types(paths["V7"], "hardware_platforms").keys()
    assert "model_type" in types(paths["V12"], "models")
    assert "hardware_name" in types(paths["V12"], "hardware_platforms")
    for layout, column in (("V4", "simulation_mode"), ("V9", "is_simulated")):
        assert read(paths[layout], f"SELECT count(*) FROM performance_results WHERE {column}") == [(3,)]


def test_ids_can_be_text_where_the_layout_leaves_it_open(tmp_path: Path) -> None:
    build("V12", tmp_path / "v12.duckdb", limit=2, text_ids=True)
    assert read(tmp_path / "v12.duckdb", "SELECT id FROM performance_results ORDER BY id") == [
        ("r-000001",),
        ("r-000002",),
    ]
    with pytest.raises(ValueError, match="INTEGER"):
        build("V1", tmp_path / "v1.duckdb", text_ids=True)


def test_failed_runs_long_files_and_new_dates_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bench.duckdb"
    assert build("V1", path, limit=3000, failed_runs=True, newest=datetime(2030, 1, 1, tzinfo=UTC)) == 3000
    failed = "SELECT min(result_id), max(result_id) FROM performance_results JOIN test_runs USING (run_id) WHERE NOT success"
    assert read(path, failed + " AND result_id < 50") == [(11, 20)]
    assert read(path, "SELECT max(created_at) FROM performance_results") == [(datetime(2030, 1, 1),)]
    with pytest.raises(FileExistsError):
        build("V1", path)


def test_a_result_is_inserted_with_what_it_names(tmp_path: Path) -> None:
    database = BenchmarkDatabase(tmp_path / "own.duckdb")
    when = datetime(2026, 5, 1, 12, tzinfo=UTC)
    first = database.insert(model="gpt2", hardware="rocm", batch_size=None, created_at=when, started_at=when)
    second = database.insert(model="gpt2", hardware=None, throughput=math.nan, latency=math.inf, success=False)
    third = database.insert(result_id=50, run=None, metrics='{"a": 1}', model=None)
    assert (first, second, third) == (1, 2, 50)
    assert database.execute("SELECT count(*) FROM models") == [(2,)]
    joined = """
        SELECT hardware_type, batch_size, throughput_items_per_second, average_latency_ms, success, metrics
        FROM performance_results LEFT JOIN hardware_platforms USING (hardware_id) LEFT JOIN test_runs USING (run_id)
        ORDER BY result_id"""
    rows = database.execute(joined)
    assert rows[0] == ("rocm", None, 800.0, 10.0, True, '{"sequence_length": 128}')
    assert rows[1][0] is None
    assert math.isnan(rows[1][2])
    assert rows[1][3:5] == (math.inf, False)
    assert rows[2][4:] == (None, '{"a": 1}')
    assert database.execute("SELECT started_at FROM test_runs WHERE success") == [(datetime(2026, 5, 1, 12),)]


def test_a_result_is_updated_and_deleted(tmp_path: Path) -> None:
    database = BenchmarkDatabase(tmp_path / "own.duckdb")
    result_id = database.insert()
    database.update(result_id, precision="int8", average_latency_ms=None)
    assert database.execute("SELECT precision, average_latency_ms FROM performance_results") == [("int8", None)]
    database.delete(result_id)
    assert database.execute("SELECT count(*) FROM performance_results") == [(0,)]


def writer(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.kit.writer", str(path), *options]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_writer_reaches_its_number_although_readers_are_in_its_way(tmp_path: Path) -> None:
    path = tmp_path / "bench.duckdb"
    BenchmarkDatabase(path).insert()
    reads = 0
    with writer(path, "--rate", "300", "--seconds", "1.5", "--first-id", "1000") as process:
        while process.poll() is None:
            try:
                connection = duckdb.connect(str(path), read_only=True)
            except duckdb.IOException:
                continue
            reads += process.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
            connection.close()
        assert process.stdout is not None
        done = json.loads(process.stdout.read())
    assert (done["inserted"], done["first_id"], done["last_id"]) == (450, 1000, 1449)
    assert reads > 0
    assert done["refused"] > 0
    assert done["longest_refusal_s"] > 0
    assert read(path, "SELECT count(*), count(DISTINCT result_id) FROM performance_results") == [(451, 451)]


def test_a_terminated_writer_says_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "bench.duckdb"
    with writer(path, "--rate", "100", "--seconds", "60") as process:
        while not path.exists() or not _count(path):
            pass
        process.send_signal(signal.SIGTERM)
        done = json.loads(process.communicate()[0])
    assert done["inserted"] == _count(path) == done["last_id"]


def test_a_holder_keeps_everybody_out_until_its_stdin_closes(tmp_path: Path) -> None:
    path = tmp_path / "bench.duckdb"
    BenchmarkDatabase(path)
    with writer(path, "--hold") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(duckdb.IOException, match=rf"lock.*PID {process.pid}"):
            duckdb.connect(str(path), read_only=True)
        process.stdin.close()
        process.wait(5)
    assert _count(path) == 0


def _count(path: Path) -> int:
    try:
        return int(read(path, "SELECT count(*) FROM performance_results")[0][0])
    except duckdb.Error:  # held by the writer, or not yet a database with tables
        return 0
