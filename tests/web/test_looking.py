"""The routes that only look: status, runs, report, results, health."""

from __future__ import annotations

import csv
import io
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest

from benchbridge_plugin.model import SyncRequest
from tests.kit.base_contract import LISTING, BaseContractServer, Fault

from .conftest import KEY, RESULTS, Host, MakeHost, assert_problem


def get(host: Host, path: str) -> Any:
    return host.client.get(f"/api/bridge{path}")


# -- status ---------------------------------------------------------------------------------------------------------------------------------


def test_status_shows_both_ends_the_schedule_the_last_run_and_the_accounting(host: Host) -> None:
    """One look says how everything is."""
    host.bridge.sync(SyncRequest(limit=5))
    status = get(host, "/status").json
    assert (status["status"], status["problems"]) == ("ok", [])
    assert status["connections"]["benchmark_db"]["ok"] is True
    assert status["connections"]["predictive_api"]["ok"] is True
    assert (status["last_run"]["synced"], status["lease"]) == (5, None)
    assert (status["accounting"]["delivered"], status["accounting"]["balanced"]) == (5, True)
    assert status["ledger"]["place"].endswith("bench.duckdb.bridge.sqlite")
    assert status["version"]
    assert status["schedule"]["enabled"] is False


def test_status_says_what_a_file_lacks_though_every_run_succeeds(host: Host) -> None:
    """Columns that were renamed: nothing fails, results go without a figure or are refused, and the first words of the answer say so."""
    with duckdb.connect(str(host.database)) as connection:
        connection.execute(
            "CREATE TABLE renamed AS SELECT * RENAME (throughput_items_per_second AS thr, batch_size AS bs) FROM performance_results"
        )
        connection.execute("DROP TABLE performance_batch_results")
        connection.execute("DROP TABLE performance_results")
        connection.execute("ALTER TABLE renamed RENAME TO performance_results")
    run = host.bridge.sync(SyncRequest())
    status = get(host, "/status").json
    assert (run.state, run.synced, run.rejected) == ("succeeded", 0, RESULTS)
    assert status["status"] == "degraded"
    messages = [problem["message"] for problem in status["problems"]]
    assert messages == [warning["message"] for warning in status["connections"]["benchmark_db"]["warnings"]]
    assert "no column for batch_size; results are refused" in messages[0]
    assert "no column for throughput that is known" in messages[1]
    assert " bs, " in messages[1]
    assert " thr, " in messages[1]
    assert status["accounting"]["rejected_by_reason"] == {"batch_size_missing": RESULTS}


def test_a_run_that_failed_is_told_by_status_health_and_the_first_page(make_host: MakeHost) -> None:
    """What failed and what to do about it, until a run ends well."""
    host = make_host(predictive_mode="http", predictive_api_url="http://127.0.0.1:9")
    assert host.bridge.sync(SyncRequest()).state == "failed"
    health, status = get(host, "/health").json, get(host, "/status").json
    assert (health["status"], status["status"]) == ("degraded", "degraded")
    (problem,) = health["problems"]
    assert problem["part"] == "last_run"
    assert "http://127.0.0.1:9 does not answer" in problem["message"]
    assert problem["guidance"]
    assert [found["part"] for found in status["problems"]] == ["predictive_api", "last_run"]
    page = host.client.get("/api/bridge/", headers={"Accept": "text/html"}).text
    assert "The last run failed." in page
    assert "http://127.0.0.1:9 does not answer" in page


def test_a_page_before_anything_was_counted_does_not_say_that_all_is_accounted_for(host: Host) -> None:
    """Nought of nought is no account."""
    page = host.client.get("/api/bridge/", headers={"Accept": "text/html"}).text
    assert "Nothing has been counted yet" in page
    assert "Every result is accounted for" not in page
    host.bridge.sync(SyncRequest())
    assert "Every result is accounted for" in host.client.get("/api/bridge/", headers={"Accept": "text/html"}).text


def test_status_answers_within_two_seconds_when_both_ends_hang(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source and sink are asked side by side, and an answer that does not come is told as such; the next call does not ask again."""
    with BaseContractServer() as server:
        server.faults.add(Fault.SILENCE_BEFORE_STORE, None, on=LISTING)
        host = make_host(predictive_mode="http", predictive_api_url=server.url)
        gate = threading.Event()
        monkeypatch.setattr(host.bridge._workshop.ends(), "_look_at_source", lambda: {"ok": gate.wait(20)})
        began = time.monotonic()
        first = get(host, "/status").json["connections"]
        assert time.monotonic() - began < 8.0, "of 20 s"
        for end, name, key in (
            ("predictive_api", server.url, "predictive_api_url"),
            ("benchmark_db", str(host.database), "benchmark_db_path"),
        ):
            guidance = first[end].pop("guidance")
            assert first[end] == {"ok": None, "name": name, "error": "no answer within 2 s"}
            assert (key in guidance, "benchbridge doctor" in guidance) == (True, True)
        gate.set()
        monkeypatch.setattr("benchbridge_plugin.ends.CHECK_TIMEOUT_S", 0.3)
        asked = server.requests[LISTING]
        assert get(host, "/status").json["connections"]["benchmark_db"]["ok"] is True
        assert server.requests[LISTING] == asked == 1


def test_status_says_what_was_wrong_before_while_an_end_does_not_answer(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longer than 2 s to find out is told from the second look on."""
    host = make_host(predictive_mode="http")
    first = get(host, "/status").json["connections"]["predictive_api"]
    assert (first["ok"], "connection refused" in first["error"]) == (False, True)
    gate = threading.Event()
    monkeypatch.setattr(host.bridge._workshop.ends(), "_look_at_sink", lambda: {"ok": gate.wait(20)})
    monkeypatch.setattr("benchbridge_plugin.ends.CHECK_TIMEOUT_S", 0.3)
    late = get(host, "/status").json["connections"]["predictive_api"]
    gate.set()
    assert late["ok"] is None
    assert late["error"] == f"no answer within 0.3 s; the last time: {first['error']}"
    assert late["guidance"] == first["guidance"]


def test_status_says_who_holds_the_benchmark_file(host: Host) -> None:
    """A busy file is told at once, with the process, and nothing waits for it."""
    host.bridge.sync(SyncRequest(limit=1))
    host.insert(model="gpt2")
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.writer", str(host.database), "--hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "holding\n"
        began = time.monotonic()
        found = get(host, "/status").json["connections"]["benchmark_db"]
        assert time.monotonic() - began < 8.0, "of 30 s"
        report = get(host, "/report").json
        holder.communicate("")
    assert (found["ok"], found["busy"]) == (False, True)
    assert str(holder.pid) in found["error"]
    assert "held for writing" in report["note"]
    assert get(host, "/status").json["connections"]["benchmark_db"]["ok"] is True


def test_secrets_are_shown_nowhere(make_host: MakeHost, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in an answer of any route, nor in the log, nor in a report on disk: keys, and a password inside a URL."""
    with caplog.at_level(logging.DEBUG):
        host = make_host(api_key="SECRET-sink", bridge_api_key=f"SECRET-{KEY}", predictive_mode="http")
        client = host.stranger
        client.environ_base["HTTP_X_API_KEY"] = f"SECRET-{KEY}"
        said = [client.get(f"/api/bridge{path}").text for path in ("/status", "/runs", "/report", "/results", "/schedule", "/health")]
        said += [
            client.post(f"/api/bridge{path}", json=body).text for path, body in (("/sync", {"wait": True}), ("/sync", {"dry_run": True}))
        ]
        said += [client.post("/api/bridge/verify").text, host.stranger.get("/health").text]
        host.bridge.stop()
    said += [written.read_text() for written in (host.database.parent / "reports").glob("*")]
    assert "SECRET" not in "".join(said)
    assert "SECRET" not in caplog.text
    assert '"***"' in said[0]


def test_a_password_in_a_ledger_url_is_not_shown(make_host: MakeHost, caplog: pytest.LogCaptureFixture) -> None:
    """A ledger that cannot be used is named without its password."""
    host = make_host(ledger_url="postgresql+psycopg://bridge:SECRET@127.0.0.1:1/ledger")
    answer = get(host, "/status")
    assert_problem(answer, 503, "ledger_error")
    assert "SECRET" not in answer.text + caplog.text


def test_a_ledger_that_is_no_database_is_503(host: Host) -> None:
    """Every route that needs it says so."""
    host.bridge.close()
    for left in host.database.parent.glob("*.bridge.sqlite*"):
        left.unlink()
    Path(f"{host.database}.bridge.sqlite").write_text("not a database, and long enough to be taken for one " * 20)
    for path in ("/status", "/runs", "/report", "/results", "/schedule", "/health"):
        assert_problem(get(host, path), 503, "ledger_error")


def test_a_fault_of_ours_is_a_500_without_a_stack_trace(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets a sentence, the log gets the traceback."""

    def broken() -> None:
        raise RuntimeError("SECRET detail")

    monkeypatch.setattr(host.bridge, "schedule", broken)
    answer = get(host, "/schedule")
    assert_problem(answer, 500, "internal_error")
    assert "SECRET" not in answer.text
    assert "Traceback" in caplog.text


# -- runs -----------------------------------------------------------------------------------------------------------------------------------


def test_runs_are_paged_newest_first(host: Host) -> None:
    """`next` leads through all of them with the same page size, and is null at the end."""
    numbers = [host.bridge.sync(SyncRequest(limit=1)).run_id for _ in range(4)]
    seen: list[int] = []
    pages = 0
    path = "/api/bridge/runs?limit=2"
    while path:
        page = host.client.get(path).json
        assert len(page["runs"]) == 2
        seen += [run["run_id"] for run in page["runs"]]
        path = page["next"]
        pages += 1
    assert (seen, pages) == (sorted((number for number in numbers if number), reverse=True), 2)
    assert get(host, "/runs").json["next"] is None


def test_a_run_that_is_not_there_is_404(host: Host) -> None:
    """Also one whose number no database can hold."""
    for number in ("999", "9" * 30):
        assert_problem(get(host, f"/runs/{number}"), 404, "no_such_run")


def test_a_run_whose_process_is_gone_is_shown_as_interrupted(host: Host) -> None:
    """Nobody holds its lease any more, so it does not run, whatever its row says."""
    parts = host.bridge._workshop.parts()
    lease = parts.ledger.leases.acquire("bench", "gone", 60)
    begun = parts.ledger.runs.begin(lease, parts.schedule_id, SyncRequest(), 60)
    assert get(host, f"/runs/{begun.run_id}").json["state"] == "running"
    parts.ledger.leases.release(lease)
    found = get(host, f"/runs/{begun.run_id}").json
    assert (found["state"], "goes on from where it stopped" in found["message"]) == ("interrupted", True)


def test_a_run_that_ends_between_two_looks_is_not_called_interrupted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is read as running, then it ends and gives its lease back, and only then the lease is looked at."""
    parts = host.bridge._workshop.parts()
    lease = parts.ledger.leases.acquire("bench", "quick", 60)
    begun = parts.ledger.runs.begin(lease, parts.schedule_id, SyncRequest(), 60)
    holder = parts.ledger.leases.holder

    def ends_meanwhile(name: str) -> object:
        from dataclasses import replace

        parts.ledger.runs.finish(replace(begun, state="succeeded"))
        parts.ledger.leases.release(lease)
        return holder(name)

    monkeypatch.setattr(parts.ledger.leases, "holder", ends_meanwhile)
    assert get(host, f"/runs/{begun.run_id}").json["state"] == "succeeded"


# -- report ---------------------------------------------------------------------------------------------------------------------------------


def test_the_report_comes_in_four_formats(host: Host) -> None:
    """JSON by default; CSV, Markdown and text for those who ask, each with its type."""
    host.bridge.sync(SyncRequest(limit=0))
    plain = get(host, "/report")
    assert (plain.mimetype, plain.json["synced_results"]) == ("application/json", RESULTS)
    assert json.loads(get(host, "/report?format=json").text)["accounting"]["balanced"] is True
    table = get(host, "/report?format=csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert (table.mimetype, sum(int(row["total"]) for row in rows)) == ("text/csv", RESULTS)
    assert get(host, "/report?format=markdown").text.startswith("## benchbridge report: bench")
    assert get(host, "/report?format=text").mimetype == "text/plain"


def test_the_report_sees_what_is_new_in_the_file(host: Host) -> None:
    """Asking for a report compares first, so that the totals are those on disk."""
    assert get(host, "/report").json["total_results"] == RESULTS
    host.insert(model="gpt2")
    report = get(host, "/report").json
    assert (report["total_results"], report["accounting"]["pending"]) == (RESULTS + 1, RESULTS + 1)


# -- results --------------------------------------------------------------------------------------------------------------------------------

LLAMA = "лама/🦙 'quoted' & <b>"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Any:
    """A host in which all is delivered but one result, whose names are strange and whose hardware nobody has."""
    from .conftest import hosting

    with hosting(tmp_path_factory.mktemp("many"), sample) as make:
        host = make()
        host.insert(result_id=900, model=LLAMA, hardware="abacus%&?")
        host.bridge.sync(SyncRequest(limit=0))
        yield host


def test_results_are_paged_without_gaps_and_without_repeats(many: Host) -> None:
    """Following `next` shows each result once."""
    seen: list[str] = []
    path = "/api/bridge/results?limit=7"
    while path:
        page = many.client.get(path).json
        seen += [row["result_id"] for row in page["results"]]
        path = page["next"]
    assert sorted(seen) == sorted([*(str(number) for number in range(1, RESULTS + 1)), "900"])


def test_results_are_filtered_by_state_model_and_hardware(many: Host) -> None:
    """The filters can be combined, and stay on in `next`."""
    assert len(get(many, "/results?state=delivered").json["results"]) == RESULTS
    found = get(many, f"/results?state=rejected&model={quote(LLAMA)}&hardware={quote('abacus%&?')}").json["results"]
    assert [row["result_id"] for row in found] == ["900"]
    assert found[0]["model"] == LLAMA
    assert found[0]["reason"]
    assert found[0]["reason_code"].startswith("hardware")
    assert get(many, "/results?state=superseded").json["results"] == []
    page = get(many, "/results?state=delivered&limit=3").json
    rest = many.client.get(page["next"]).json
    assert len(rest["results"]) == 3
    assert "state=delivered" in page["next"]
    assert not {row["result_id"] for row in rest["results"]} & {row["result_id"] for row in page["results"]}


def test_a_result_says_where_it_is_and_since_when(many: Host) -> None:
    """With the times as ISO 8601, the key it was sent under, and the id it got."""
    row = get(many, "/results?state=delivered&limit=1").json["results"][0]
    assert row["measured_at"].endswith("Z")
    assert row["updated_at"].endswith("Z")
    assert len(row["key"]) == 36
    assert row["measurement_id"]
    assert (row["attempts"], row["quality"]) == (1, row["quality"])


def test_health_is_a_few_numbers(many: Host) -> None:
    """The same that the host's /health shows."""
    health = get(many, "/health").json
    assert (health["status"], health["delivered"], health["rejected"], health["balanced"]) == ("ok", RESULTS, 1, True)
