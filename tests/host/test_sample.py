"""The sample database holds every row of the file, in its order, as benchmark runners would have written it."""

from __future__ import annotations

import csv
import json
import math
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pytest
from unified_server import load_sample
from unified_server.__main__ import main

QUERY = """
SELECT r.*, m.model_name, m.model_family, m.modality, m.parameters_million, h.hardware_type, h.device_name,
    t.test_name, t.test_type, t.started_at
FROM performance_results r
JOIN models m USING (model_id)
JOIN hardware_platforms h USING (hardware_id)
JOIN test_runs t ON t.run_id = r.run_id
ORDER BY result_id
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "benchmark.duckdb"
    assert load_sample(path) == 1212
    return path


@pytest.fixture(scope="module")
def rows(built: Path) -> list[dict[str, Any]]:
    with duckdb.connect(str(built), read_only=True) as connection:
        found: list[dict[str, Any]] = connection.sql(QUERY).to_arrow_table().to_pylist()
    return found


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    with (files("unified_server.sample") / "h100_results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_column_of_every_row_is_the_files(rows: list[dict[str, Any]], lines: list[dict[str, str]]) -> None:
    assert len(rows) == len(lines) == 1212
    texts = ("model_name", "model_family", "modality", "hardware_type", "device_name", "precision")
    whole = ("batch_size", "iterations", "warmup_iterations")
    floats = ("total_time_seconds", "average_latency_ms", "throughput_items_per_second", "memory_peak_mb")
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), start=1):
        assert row["result_id"] == number
        assert {name: row[name] for name in texts} == {name: line[name] for name in texts}
        assert {name: row[name] for name in whole} == {name: int(line[name]) for name in whole}
        assert row["test_case"] == row["test_type"] == line["mode"]
        assert row["created_at"].replace(tzinfo=UTC) == datetime.fromisoformat(line["started_at"])
        for name in (*floats, "parameters_million"):
            assert (row[name] is None) == (line[name] == "")
            assert line[name] == "" or math.isclose(row[name], float(line[name]), rel_tol=1e-6)
        expected = {
            "sequence_length": int(line["sequence_length"]) if line["sequence_length"] else None,
            "image_size": int(line["image_size"]) if line["image_size"] else None,
            **{name: float(line[name]) for name in ("p50_latency_ms", "p90_latency_ms", "p99_latency_ms")},
            "attention": line["attention"] or None,
            "software": line["software"],
        }
        assert json.loads(row["metrics"]) == {name: value for name, value in expected.items() if value is not None}


def test_there_is_one_run_for_each_model_and_mode_and_it_starts_with_its_first_result(
    rows: list[dict[str, Any]], lines: list[dict[str, str]]
) -> None:
    assert {(row["model_name"], row["test_case"]) for row in rows} == {(x["model_name"], x["mode"]) for x in lines}
    assert len({row["run_id"] for row in rows}) == 32
    assert len({row["model_id"] for row in rows}) == 20
    assert len({row["hardware_id"] for row in rows}) == 2
    for run_id in {row["run_id"] for row in rows}:
        run = [row for row in rows if row["run_id"] == run_id]
        assert {row["started_at"] for row in run} == {min(row["created_at"] for row in run)}


def test_the_file_is_complete_and_an_existing_one_is_never_replaced(built: Path) -> None:
    assert [path.name for path in built.parent.iterdir()] == ["benchmark.duckdb"]
    with pytest.raises(FileExistsError):
        load_sample(built)


def test_the_command_makes_the_file_and_refuses_an_existing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["load-sample", "--output", str(tmp_path / "b.duckdb")]
    assert main(words) == 0
    assert "1212" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
