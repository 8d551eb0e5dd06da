"""The routes over several benchmark files: sums that add up, each file by name, and nothing that a caller could open."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .conftest import RESULTS, Host, MakeHost, assert_problem

STATES = ("total", "delivered", "pending", "retrying", "in_doubt", "rejected", "skipped")


@pytest.fixture
def several(make_host: MakeHost, sample: Path, tmp_path: Path) -> Host:
    """A host over a folder with the files a and b."""
    (tmp_path / "runs").mkdir()
    for name in "ab":
        shutil.copy(sample, tmp_path / f"runs/{name}.duckdb")
    return make_host(benchmark_db_path=str(tmp_path / "runs"), sync_limit=0)


def get(host: Host, path: str) -> Any:
    return host.client.get(f"/api/bridge{path}")


def post(host: Host, path: str, **body: Any) -> Any:
    return host.client.post(f"/api/bridge{path}", json=body)


def test_status_and_report_have_each_file_and_totals_that_add_up(several: Host) -> None:
    """Before anything was synced, in the middle, and at the end."""
    for body in ({}, {"limit": 7}, {"source": "b", "limit": 3}, {"limit": 0}):
        if body:
            assert post(several, "/sync", wait=True, **body).status_code == 200
        for answer in (get(several, "/report").json, get(several, "/status").json):
            assert [part["name"] for part in answer["sources"]] == ["a", "b"]
            for state in STATES:
                assert answer["accounting"][state] == sum(part["accounting"][state] for part in answer["sources"])
            assert all(part["accounting"]["balanced"] for part in (answer, *answer["sources"]))
    status = get(several, "/status").json
    assert status["accounting"]["total"] == 2 * RESULTS
    assert all(part["last_run"]["state"] == "succeeded" for part in status["sources"])
    assert status["connections"]["benchmark_db"]["ok"] is True
    assert status["config"]["benchmark_db_path"].endswith("runs")
    assert get(several, "/health").json["total"] == 2 * RESULTS


def test_a_sync_answers_for_every_file(several: Host) -> None:
    """With `wait` the sum and each file; a run of any of them can be looked at; a dry run too."""
    dry = post(several, "/sync", dry_run=True, limit=0).json
    assert [part["source"] for part in dry["sources"]] == ["a", "b"]
    done = post(several, "/sync", wait=True)
    assert (done.status_code, done.json["state"], len(done.json["sources"])) == (200, "succeeded", 2)
    assert done.json["synced"] + done.json["rejected"] == 2 * RESULTS
    assert get(several, done.headers["Location"].removeprefix("/api/bridge")).json["source"] == "a"
    assert Counter(run["source"] for run in get(several, "/runs").json["runs"]) == {"a": 1, "b": 1}


def test_every_route_takes_a_source(several: Host) -> None:
    """And only that file is meant; the pages of runs and results keep to it."""
    assert [part["source"] for part in post(several, "/sync", source="b", wait=True).json["sources"]] == ["b"]
    post(several, "/sync", source="b", wait=True)
    first = get(several, "/runs?source=b&limit=1").json
    assert "source=b" in first["next"]
    assert get(several, first["next"].removeprefix("/api/bridge")).json["runs"][0]["source"] == "b"
    assert get(several, "/runs?source=a").json["runs"] == []
    assert get(several, "/results?source=a").json["results"] == []
    assert [part["name"] for part in get(several, "/report?source=b").json["sources"]] == ["b"]
    assert post(several, "/verify", source="a").json["checked"] == 0
    assert post(several, "/verify").json["clean"] is True
    assert post(several, "/results/retry", source="a", state="rejected").json["retried"] == 0
    for path in ("/runs?source=c", "/results?source=../b", "/report?source=x"):
        assert_problem(get(several, path), 422, "invalid_argument")
    for path in ("/sync", "/verify", "/results/retry"):
        assert_problem(post(several, path, source="/etc/passwd"), 422, "invalid_argument")


def test_results_are_paged_over_all_files(several: Host) -> None:
    """Each once and with its file; a cursor of a bridge with one file is none of this one."""
    post(several, "/sync", wait=True)
    rows: list[tuple[str, str]] = []
    path = "/results?limit=7"
    while path:
        page = get(several, path).json
        rows += [(row["source"], row["result_id"]) for row in page["results"]]
        path = (page["next"] or "").removeprefix("/api/bridge")
    assert len(rows) == len(set(rows)) == 2 * RESULTS
    assert_problem(get(several, f"/results?cursor={'0' * 32}.1"), 422, "invalid_argument")
    assert get(several, f"/results?cursor=999:{'0' * 32}.1").json["results"] == []


def test_the_report_tells_the_files_apart_in_every_format(several: Host) -> None:
    """CSV with the file in front, Markdown and text with a table of files."""
    post(several, "/sync", wait=True)
    lines = get(several, "/report?format=csv").text.splitlines()
    assert lines[0].startswith("source,model,hardware,total")
    assert {line.split(",")[0] for line in lines[1:]} == {"a", "b"}
    assert "## By benchmark file" in get(several, "/report?format=markdown").text
    assert f"all      {2 * RESULTS}" in get(several, "/report?format=text").text


def test_a_pattern_that_nothing_matches_yet_is_told_and_not_an_error_of_the_server(
    make_host: MakeHost, sample: Path, tmp_path: Path
) -> None:
    """Status, report and health are there; a sync says what is missing; a file that comes is synced."""
    host = make_host(benchmark_db_path=[str(tmp_path / "later/*.duckdb")])
    status = get(host, "/status").json
    assert (status["sources"], "yet" in status["connections"]["benchmark_db"]["error"]) == ([], True)
    assert get(host, "/health").json["status"] == "ok"
    assert "yet" in get(host, "/report").json["note"]
    assert_problem(post(host, "/sync"), 503, "benchmark_db_missing")
    (tmp_path / "later").mkdir()
    shutil.copy(sample, tmp_path / "later/x.duckdb")
    assert post(host, "/sync", wait=True).json["sources"][0]["source"] == "x"


def test_one_file_has_no_sources_and_takes_its_own_name(host: Host) -> None:
    """The answers are those of ever."""
    for path in ("/status", "/report", "/runs", "/results"):
        assert "sources" not in get(host, path).json
    assert post(host, "/sync", source="bench", wait=True).json["state"] == "succeeded"
    assert_problem(post(host, "/sync", source="other"), 422, "invalid_argument")
    assert_problem(get(host, f"/results?cursor=1:{'0' * 32}.1"), 422, "invalid_argument")
    assert post(host, "/verify", source="bench").json["clean"] is True
