"""The routes that move results: sync, retry, schedule, verify."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any

import pytest

from benchbridge_plugin.model import SyncRequest
from tests.kit.base_contract import BaseContractServer, Fault

from .conftest import RESULTS, Host, MakeHost, assert_problem


def post(host: Host, path: str, **body: Any) -> Any:
    return host.client.post(f"/api/bridge{path}", json=body)


def wait(host: Host, run_id: int) -> dict[str, Any]:
    run = host.bridge.wait_for_run(run_id, 30)
    assert run is not None
    return run


@pytest.fixture
def slow_host(make_host: MakeHost) -> Any:
    """A host whose API takes its time, and the event that lets it go on: `(host, server, gate)`."""
    gate = threading.Event()
    with BaseContractServer() as server:
        server.faults.add(Fault.ERROR_500, when=lambda body: not gate.wait(20))  # never strikes; waits in the server's thread
        host = make_host(predictive_mode="http", predictive_api_url=server.url)
        yield host, server, gate
        gate.set()


def test_a_sync_starts_in_the_background_and_says_where_to_look(host: Host) -> None:
    """202 with the run's number and its address; there the summary is, once it has ended."""
    answer = post(host, "/sync")
    assert answer.status_code == 202
    run_id = answer.json["run_id"]
    assert answer.json == {"run_id": run_id, "joined": False, "state": "running"}
    assert answer.headers["Location"] == f"/api/bridge/runs/{run_id}"
    assert wait(host, run_id)["state"] == "succeeded"
    found = host.client.get(answer.headers["Location"]).json
    assert (found["synced"], found["kind"], found["state"]) == (RESULTS, "http", "succeeded")
    assert found["finished_at"].endswith("Z")


def test_a_sync_can_be_waited_for(host: Host) -> None:
    """`wait` answers 200 with the summary of the run."""
    answer = post(host, "/sync", wait=True, limit=5, model="bert-base-uncased", days=0)
    assert answer.status_code == 200
    assert answer.json["state"] == "succeeded"
    assert answer.json["request"] == asdict(SyncRequest(kind="http", model="bert-base-uncased", days=0, limit=5))
    assert answer.json["joined"] is False


def test_a_second_sync_joins_the_one_that_runs(slow_host: tuple[Host, BaseContractServer, threading.Event]) -> None:
    """Two callers, one run: the second one gets the number of the first one's run."""
    host, _, gate = slow_host
    first = post(host, "/sync", limit=3)
    second = post(host, "/sync", limit=0)
    assert (second.status_code, second.json["run_id"], second.json["joined"]) == (202, first.json["run_id"], True)
    assert "keeps its own arguments" in second.json["note"]
    assert "keeps its own arguments" in post(host, "/schedule", run_now=True).json["note"]
    status = host.client.get("/api/bridge/status").json
    assert (status["last_run"]["state"], status["lease"]["run_id"]) == ("running", first.json["run_id"])
    gate.set()
    ended = wait(host, first.json["run_id"])
    assert (ended["state"], ended["request"]["limit"]) == ("succeeded", 3)
    for thread in threading.enumerate():  # the lease is given back after the end of the run is recorded
        if thread.name == "benchbridge-sync":
            thread.join(30)
    assert host.client.get("/api/bridge/status").json["lease"] is None
    assert len(host.client.get("/api/bridge/runs").json["runs"]) == 1


def test_a_dry_run_answers_at_once_and_changes_nothing(host: Host) -> None:
    """What would be sent, without a run, a row or a measurement."""
    answer = post(host, "/sync", dry_run=True)
    assert (answer.status_code, answer.json["synced"], answer.json["run_id"], answer.json["dry_run"]) == (200, RESULTS, None, True)
    assert host.client.get("/api/bridge/runs").json["runs"] == []
    assert host.client.get("/api/bridge/results").json["results"] == []


def test_a_sync_that_fails_is_told_in_its_run(make_host: MakeHost) -> None:
    """The request was right, so it is not an error of HTTP: the summary has the code, the sentence and what to do."""
    host = make_host(predictive_mode="http")
    answer = post(host, "/sync", wait=True)
    assert answer.status_code == 200
    assert (answer.json["state"], answer.json["error_code"]) == ("failed", "predictive_api_unreachable")
    assert "does not answer" in answer.json["message"]
    assert "predictive_api_url" in answer.json["guidance"]


@pytest.mark.parametrize("body", [{"dry_run": True}, {}])
def test_an_api_that_cannot_be_reached_is_502(make_host: MakeHost, body: dict[str, Any]) -> None:
    """Where there is no run to tell it, the predictive API's fault is a problem document."""
    path = "/sync" if body else "/verify"
    assert_problem(post(make_host(predictive_mode="http"), path, **body), 502, "predictive_api_unreachable")


def test_an_api_that_refuses_the_key_is_502(make_host: MakeHost) -> None:
    """And says which setting to look at, not which key was sent."""
    with BaseContractServer(api_key="right") as server:
        host = make_host(predictive_mode="http", predictive_api_url=server.url, api_key="the-wrong-key")
        answer = post(host, "/sync", dry_run=True)
    assert_problem(answer, 502, "predictive_api_denied")
    assert "api_key" in answer.json["guidance"]
    assert "the-wrong-key" not in answer.text


def test_a_benchmark_file_that_is_gone_is_503(host: Host) -> None:
    """The source's fault, in a sentence with the path."""
    host.database.unlink()
    answer = post(host, "/sync", dry_run=True)
    assert_problem(answer, 503, "benchmark_db_missing")
    assert str(host.database) in answer.json["detail"]


def test_a_lease_held_for_long_by_somebody_without_a_run_is_409(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification with repair holds the lease without a run to join: the caller is told to come again."""
    monkeypatch.setattr("benchbridge_plugin.bridge._START_PATIENCE_S", 0.2)
    parts = host.bridge._workshop.parts()
    lease = parts.ledger.leases.acquire("bench", "somebody else", 60)
    try:
        assert_problem(post(host, "/sync"), 409, "sync_running")
    finally:
        parts.ledger.leases.release(lease)


def test_a_background_sync_leaves_a_report(host: Host) -> None:
    """Every run in the server writes one into report_output_dir."""
    run_id = post(host, "/sync").json["run_id"]
    wait(host, run_id)
    host.bridge.stop()  # waits for the thread, which writes the report after the run
    assert len(list((host.database.parent / "reports").glob("benchbridge-report-*.json"))) == 1


# -- retry ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(make_host: MakeHost) -> Host:
    """A host with one result that no API takes."""
    host = make_host()
    host.insert(result_id=900, hardware="abacus", model="gpt2")
    host.bridge.sync(SyncRequest(limit=0))
    return host


def test_refused_results_are_brought_back_by_state_model_reason_and_id(refused: Host) -> None:
    """And only those that are meant; the next sync takes them up again."""
    code = refused.client.get("/api/bridge/results?state=rejected").json["results"][0]["reason_code"]
    for body in (
        {},
        {"state": "rejected", "model": "t5"},
        {"state": "rejected", "reason": "x"},
        {"state": "rejected", "result_ids": ["1"]},
    ):
        assert post(refused, "/results/retry", **body).json["retried"] == 0
    answer = post(refused, "/results/retry", state="rejected", model="gpt2", reason=code, result_ids=["900", "901"])
    assert (answer.status_code, answer.json["retried"]) == (200, 1)
    assert refused.client.get("/api/bridge/results?state=pending").json["results"][0]["result_id"] == "900"
    assert post(refused, "/sync", wait=True).json["rejected"] == 1


def test_no_ids_are_no_results(refused: Host) -> None:
    """An empty list is not the same as no list."""
    assert post(refused, "/results/retry", state="rejected", result_ids=[]).json["retried"] == 0
    assert post(refused, "/results/retry", state="rejected").json["retried"] == 1


# -- schedule -------------------------------------------------------------------------------------------------------------------------------


def test_the_schedule_can_be_seen_paused_resumed_and_changed(make_host: MakeHost) -> None:
    """What an operator sets is kept in the ledger, for all processes and over restarts."""
    host = make_host(auto_sync_enabled=True, sync_on_startup=False)
    seen = host.client.get("/api/bridge/schedule").json
    assert (seen["enabled"], seen["paused"], seen["interval_minutes"]) == (True, False, 60)
    paused = post(host, "/schedule", paused=True).json
    assert (paused["paused"], paused["next_tick_at"]) == (True, None)
    changed = post(host, "/schedule", paused=False, interval_minutes=7.5).json
    assert (changed["paused"], changed["interval_minutes"]) == (False, 7.5)
    assert changed["next_tick_at"] is not None
    host.bridge.close()
    again = host.client.get("/api/bridge/schedule").json
    assert (again["paused"], again["interval_minutes"]) == (False, 7.5)
    assert post(host, "/schedule").json == again


def test_the_schedule_can_be_run_now(host: Host) -> None:
    """Also where it is off: an operator who asks gets a run."""
    answer = post(host, "/schedule", run_now=True).json
    assert wait(host, answer["run_id"])["state"] == "succeeded"
    assert answer["joined"] is False


# -- verify ---------------------------------------------------------------------------------------------------------------------------------


def test_verification_finds_what_the_api_lost_and_repairs_it(make_host: MakeHost) -> None:
    """Missing at the API: named; with `repair` pending again, and the next sync sends it."""
    with BaseContractServer() as server:
        host = make_host(predictive_mode="http", predictive_api_url=server.url)
        sent = post(host, "/sync", wait=True, limit=3).json["synced"]
        clean = post(host, "/verify")
        assert (clean.status_code, clean.json["clean"], clean.json["checked"]) == (200, True, sent)
        with server.store._lock:
            lost = server.store._rows.pop()
        found = post(host, "/verify", repair=True).json
        assert (found["clean"], len(found["missing"]), found["repaired"]) == (False, 1, 1)
        assert post(host, "/sync", wait=True, limit=0, model=lost["model_name"]).json["synced"] >= 1
        assert post(host, "/verify").json["clean"] is True
