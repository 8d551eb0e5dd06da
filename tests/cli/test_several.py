"""The command line over several benchmark files: a line for each, a total, and the exit code of the worst."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmark_files import ROOT
from tests.kit.base_contract import BaseContractServer

from .conftest import REFUSED, RESULTS, Run

SENT = RESULTS - REFUSED


@pytest.fixture
def runs(workplace: Path, sample: Path) -> Path:
    """A folder with the files a and b."""
    folder = workplace / "runs"
    folder.mkdir()
    for name in "ab":
        shutil.copy(sample, folder / f"{name}.duckdb")
    return folder


@pytest.fixture
def to_api(runs: Path, api: BaseContractServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("BENCHBRIDGE_SETTLE_AFTER_S", "0.1")
    return ["--benchmark-db", "runs/a.duckdb", "--benchmark-db", "runs/b.duckdb", "--api-url", api.url]


def cells(text: str, first: str) -> list[str]:
    """The line that begins with this cell, as cells."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_a_sync_has_a_line_for_each_file_and_a_total(run: Run, to_api: list[str]) -> None:
    """What was done now, and where all of its results are."""
    done = run("sync", "--all", *to_api)
    assert done.code == 0, done.text
    assert done.out.startswith(f"{2 * SENT} synced, {2 * REFUSED} refused, 0 to be retried, over 2 benchmark files.\n")
    for name in "ab":
        assert cells(done.out, name) == [name, str(SENT), str(REFUSED), "0", str(RESULTS), str(SENT), "0", "0", "0", str(REFUSED), "0"]
    assert cells(done.out, "all")[1:6] == [str(2 * SENT), str(2 * REFUSED), "0", str(2 * RESULTS), str(2 * SENT)]


def test_json_has_the_sums_and_each_file(run: Run, to_api: list[str]) -> None:
    """The keys of one file, and `sources`."""
    done = run("sync", "--all", "--json", *to_api)
    assert (done.json["success"], done.json["synced"]) == (True, 2 * SENT)
    assert [(part["source"], part["synced"], part["state"]) for part in done.json["sources"]] == [
        ("a", SENT, "succeeded"),
        ("b", SENT, "succeeded"),
    ]
    assert [part["name"] for part in run("report", "--json", *to_api[:4]).json["sources"]] == ["a", "b"]


def test_a_bad_file_is_named_and_decides_the_exit_code(run: Run, to_api: list[str], runs: Path, workplace: Path) -> None:
    """The others are synced; the error of each bad one is on standard error."""
    (runs / "b.duckdb").write_text("no database " * 1000)
    done = run("sync", "--all", *to_api, "--benchmark-db", "none.duckdb")
    assert done.code == 3
    assert "2 of 3 benchmark files could not be synced. b: The benchmark database runs/b.duckdb is not a DuckDB database." in done.err
    assert f"Error: none: There is no benchmark database at none.duckdb (in {workplace})." in done.err
    assert cells(done.out, "a")[:3] == ["a", str(SENT), str(REFUSED)]
    assert cells(done.out, "b")[-1] == "benchmark_db_invalid"
    again = run("sync", *to_api, "--source", "a")
    assert again.code == 0, again.text


def test_a_source_narrows_every_command(run: Run, to_api: list[str]) -> None:
    """By its name, and an unknown one is told with those that there are."""
    files = to_api[:4]
    assert run("sync", "--all", "--source", "b", *to_api).code == 0
    assert run("results", "--json", "--source", "a", *files).json == []
    assert {row["source"] for row in run("results", "--json", *files).json} == {"b"}
    assert run("results", "--limit", 1, *files).out.split()[0] == "source"
    assert "benchbridge report: runs/a.duckdb, runs/b.duckdb" in run("report", *files).out.replace("\\", "")
    assert run("report", "--json", "--source", "b", *files).json["total_results"] == RESULTS
    assert run("verify", "--source", "b", *to_api).out.startswith(f"{SENT} delivered results checked.")
    assert cells(run("verify", *to_api).out, "a") == ["a", "0", "0", "0", "0"]
    assert run("retry", "--rejected", "--source", "a", *files).out == "No result matches.\n"
    assert run("retry", "--rejected", "--source", "b", *files).out.startswith(f"{REFUSED} results due now")
    assert run("adopt", "--source", "a", *to_api).code == 0
    unknown = run("sync", "--source", "c", *to_api)
    assert (unknown.code, "There are: a, b." in unknown.err) == (2, True)


def test_a_folder_and_a_pattern_are_read_with_their_ledger_beside_the_folder(run: Run, to_api: list[str], workplace: Path) -> None:
    """And a dry run leaves none behind."""
    assert run("sync", "--all", "--dry-run", "--benchmark-db", "runs", *to_api[4:]).out.startswith(f"Dry run: {2 * SENT} would be sent")
    assert list(workplace.glob("*.sqlite")) == []
    assert run("sync", "--all", "--benchmark-db", "runs", *to_api[4:]).code == 0
    assert [path.name for path in workplace.glob("*.sqlite")] == ["runs.bridge.sqlite"]
    assert run("sync", "--benchmark-db", "runs/*.duckdb", *to_api[4:]).out.startswith("0 synced")


def test_a_pattern_that_nothing_matches_is_said(run: Run, api: BaseContractServer, workplace: Path) -> None:
    """With the exit code of a missing file, and no ledger."""
    done = run("sync", "--benchmark-db", "none/*.duckdb", "--api-url", api.url)
    assert (done.code, f"no benchmark file at none/*.duckdb (in {workplace}) yet" in done.err) == (3, True)
    assert list(workplace.iterdir()) == []


def test_the_doctor_looks_at_every_file(run: Run, to_api: list[str], runs: Path) -> None:
    """What can be read in one line, what cannot in one each, and the forecast for those that can."""
    healthy = run("doctor", *to_api)
    assert healthy.code == 0, healthy.text
    assert "2 of 2 benchmark files are readable: a, b" in healthy.out
    assert f"of all files {2 * SENT} could be sent" in healthy.out
    (runs / "b.duckdb").write_text("no database " * 1000)
    sick = run("doctor", "--json", *to_api)
    assert sick.code == 3
    said = " ".join(finding["message"] for finding in sick.json)
    assert "1 of 2 benchmark files are readable: a" in said
    assert "runs/b.duckdb is not a DuckDB database" in said
    assert f"of all files {SENT} could be sent" in said


def test_the_config_file_and_the_environment_take_a_list(run: Run, to_api: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The option replaces it."""
    section = {"benchmark_db_path": ["runs/a.duckdb", "runs/b.duckdb"], "predictive_api_url": to_api[-1]}
    Path("benchbridge.json").write_text(json.dumps({"benchmark_predictive_performance": section}))
    assert len(run("sync", "--json").json["sources"]) == 2
    assert "sources" not in run("sync", "--json", "--benchmark-db", "runs/a.duckdb").json
    monkeypatch.setenv("BENCHBRIDGE_BENCHMARK_DB_PATH", '["runs/b.duckdb", "runs/none.duckdb"]')
    assert [part["source"] for part in run("sync", "--json").json["sources"]] == ["b", "none"]


def test_a_service_waits_for_files_that_come(workplace: Path, sample: Path, api: BaseContractServer) -> None:
    """A pattern that nothing matches is no error of a service: its cycles find what comes later."""
    command = [sys.executable, "-m", "benchbridge_plugin.cli", "service", "--benchmark-db", "runs/*.duckdb", "--api-url", api.url]
    quick = {"BENCHBRIDGE_SYNC_INTERVAL_MINUTES": "0.01", "BENCHBRIDGE_SYNC_LIMIT": "0", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=workplace, env={**os.environ, **quick}, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        assert any(f"nothing to sync: There is no benchmark file at runs/*.duckdb (in {workplace}) yet." in line for line in service.stderr)
        (workplace / "half").mkdir()
        shutil.copy(sample, workplace / "half/a.duckdb")
        (workplace / "half").rename(workplace / "runs")
        assert any(f"{SENT} synced, {REFUSED} refused" in line for line in service.stderr)
        service.terminate()
        service.stderr.read()
    assert service.returncode == 0
