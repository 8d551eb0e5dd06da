"""`benchbridge sync`, and what can be done about its results: verify, retry, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.cli import _STATES
from benchbridge_plugin.model import STATE_NAMES
from tests.kit.base_contract import BaseContractServer, Fault
from tests.kit.layouts import BenchmarkDatabase

from .conftest import REFUSED, RESULTS, Run


def test_sync_sends_what_is_new_and_says_what_became_of_it(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """A sentence, the reasons, the accounting, and what to do next; a second sync sends nothing."""
    done = run("sync", *to_api)
    assert done.code == 0
    assert f"{RESULTS - REFUSED} synced, {REFUSED} refused, 0 to be retried." in done.out
    assert "precision_unsupported" in done.out
    assert "benchbridge results --state rejected" in done.out
    assert len(api.rows) == RESULTS - REFUSED
    again = run("sync", *to_api)
    assert (again.code, "0 synced" in again.out) == (0, True)
    assert len(api.rows) == RESULTS - REFUSED


def test_sync_prints_json_for_machines(run: Run, to_api: list[str]) -> None:
    """The whole summary, with times as ISO 8601."""
    found = run("sync", *to_api, "--json").json
    assert (found["success"], found["state"], found["synced"], found["rejected"]) == (True, "succeeded", RESULTS - REFUSED, REFUSED)
    assert found["finished_at"].endswith("Z")
    assert found["request"]["kind"] == "cli"


def test_limit_and_all_say_how_many(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """--limit counts what is sent; what is left is pending, and the command says how to send it."""
    done = run("sync", *to_api, "--limit", 3)
    assert len(api.rows) == 3
    assert f"3 synced, 0 refused, 0 to be retried. {RESULTS - 3} wait for the next runs: the limit was reached (0: no limit).\n" in done.out
    assert "benchbridge sync --all" in done.out
    done = run("sync", *to_api, "--all")
    assert len(api.rows) == RESULTS - REFUSED
    assert "Still pending" not in done.out
    both = run("sync", *to_api, "--all", "--limit", 3)
    assert (both.code, "contradict" in both.err) == (2, True)


@pytest.mark.parametrize(
    "words", [["--limit", "-1"], ["--days", "-1"], ["--limit", "many"], ["--no-such-option"], ["extra"], ["--model", ""]]
)
def test_a_wrong_option_is_a_usage_error(run: Run, to_api: list[str], words: list[str]) -> None:
    """Exit code 2, and nothing is sent."""
    done = run("sync", *to_api, *words)
    assert (done.code, "Error" in done.err) == (2, True)


def test_days_bounds_the_look_back_and_0_lifts_it(run: Run, to_api: list[str], database: Path, api: BaseContractServer) -> None:
    """Results older than the look-back are skipped on purpose, and counted; 0, and more days than there ever were, take them all."""
    BenchmarkDatabase(database).execute("UPDATE performance_results SET created_at = created_at - INTERVAL 100 DAY")
    BenchmarkDatabase(database).execute("UPDATE test_runs SET started_at = NULL")
    found = run("sync", *to_api, "--json").json
    assert (found["synced"], found["skipped"]) == (0, RESULTS)
    assert run("sync", *to_api, "--days", 200, "--limit", 2, "--json").json["synced"] == 2
    assert run("sync", *to_api, "--days", 10**12, "--limit", 2, "--json").json["synced"] == 2
    assert run("sync", *to_api, "--days", 0, "--json").json["synced"] == RESULTS - REFUSED - 4


def test_model_takes_one_model_only(run: Run, to_api: list[str], api: BaseContractServer, database: Path) -> None:
    """And a model that is not there is nothing to do, not an error."""
    BenchmarkDatabase(database).insert(model="gpt2-of-the-test")
    assert run("sync", *to_api, "--model", "gpt2-of-the-test").code == 0
    assert [row["model_name"] for row in api.rows] == ["gpt2-of-the-test"]
    assert run("sync", *to_api, "--model", "none such", "--json").json["considered"] == 0


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(run: Run, to_api: list[str], api: BaseContractServer, workplace: Path) -> None:
    """Not even a ledger."""
    done = run("sync", *to_api, "--dry-run", "--all")
    assert done.code == 0
    assert f"Dry run: {RESULTS - REFUSED} would be sent, {REFUSED} refused." in done.out
    assert api.rows == []
    assert [path.name for path in workplace.iterdir()] == ["bench.duckdb"]
    assert run("sync", *to_api, "--dry-run", "--json").json["dry_run"] is True


def test_a_dry_run_knows_what_was_delivered(run: Run, to_api: list[str]) -> None:
    """With a ledger beside the file, only what is new counts."""
    run("sync", *to_api)
    assert run("sync", *to_api, "--dry-run", "--json").json["synced"] == 0


def test_strict_makes_a_refusal_an_exit_code(run: Run, to_api: list[str]) -> None:
    """For CI: 1 when a result was refused."""
    assert run("sync", *to_api, "--strict", "--dry-run").code == 1
    assert run("sync", *to_api, "--strict").code == 1
    assert run("sync", *to_api, "--strict").code == 0  # nothing was refused this time


def test_results_that_will_be_retried_make_exit_code_1(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """Everything else is delivered, and the message says how many are not."""
    api.faults.skip(2)
    api.faults.add(Fault.TASK_FAILED)
    done = run("sync", *to_api, "--json")
    assert (done.code, done.json["success"], done.json["failed"], done.json["state"]) == (1, False, 1, "partial")
    assert run("results", "--state", "retrying", "--benchmark-db", to_api[1], "--json").json[0]["reason_code"] == "task_failed"


def test_retry_makes_waiting_results_due_now(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """Without it the next sync leaves them alone until their time has come."""
    api.faults.add(Fault.TASK_FAILED)
    run("sync", *to_api)
    assert run("sync", *to_api, "--json").json["synced"] == 0
    local = to_api[:2]
    assert "1 result due now" in run("retry", *local).out
    assert run("sync", *to_api, "--json").json["synced"] == 1
    assert "--rejected" in run("retry", *local).out


def test_retry_rejected_brings_refused_results_back(run: Run, to_api: list[str]) -> None:
    """By model, by reason, or all of them."""
    run("sync", *to_api)
    local = to_api[:2]
    assert run("retry", *local, "--rejected", "--model", "none such").out == "No result matches.\n"
    assert run("retry", *local, "--rejected", "--reason", "none such").out == "No result matches.\n"
    done = run("retry", *local, "--rejected", "--reason", "precision_unsupported")
    assert f"{REFUSED} results due now" in done.out
    assert run("sync", *to_api, "--json").json["rejected"] == REFUSED


def test_verify_is_clean_when_the_api_has_everything(run: Run, to_api: list[str]) -> None:
    """Exit code 0."""
    run("sync", *to_api)
    done = run("verify", *to_api)
    assert (done.code, f"{RESULTS - REFUSED} delivered results checked." in done.out) == (0, True)
    found = run("verify", *to_api, "--json")
    assert (found.code, found.json["clean"], found.json["foreign"]) == (0, True, [])


def test_verify_names_what_is_missing_and_repairs_it(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """Exit code 1, then with --repair 0, and the next sync sends it."""
    run("sync", *to_api)
    api.store._rows.pop()
    done = run("verify", *to_api)
    assert (done.code, "missing:  1  (" in done.out, "--repair" in done.out) == (1, True, True)
    repaired = run("verify", *to_api, "--repair")
    assert (repaired.code, "1 put back to pending" in repaired.out) == (0, True)
    assert run("sync", *to_api, "--json").json["synced"] == 1
    assert run("verify", *to_api).code == 0


def test_verify_tells_doubled_and_foreign_apart(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """What the API has twice is a fault; what another ledger sent there is not."""
    run("sync", *to_api)
    row: Any = api.store._rows[0]
    api.store._rows.append({**row, "id": 99_999, "measurement_source": "benchmark:00000000-0000-5000-8000-000000000000"})
    done = run("verify", *to_api)
    assert (done.code, "foreign:  1" in done.out) == (0, True)
    api.store._rows.append({**row, "id": 99_998})
    done = run("verify", *to_api, "--repair")
    assert (done.code, "doubled:  1" in done.out) == (1, True)


def test_results_lists_single_results_with_place_and_reason(run: Run, to_api: list[str]) -> None:
    """As a table, a page of it, or as JSON with all of them."""
    local = to_api[:2]
    assert "No sync has taken up a result yet." in run("results", *local).out
    run("sync", *to_api, "--limit", 20)
    table = run("results", *local, "--limit", 5)
    assert len(table.out.splitlines()) == 2 + 5
    assert "and more" in table.err
    assert "pending" in table.err
    refused = run("results", *local, "--state", "rejected", "--json", "--limit", 1).json
    assert len(refused) > 1
    assert {row["reason_code"] for row in refused} == {"precision_unsupported"}
    assert refused[0]["measured_at"].endswith("Z")
    assert run("results", *local, "--state", "superseded", "--json").json == []
    assert run("results", *local, "--model", "none such").out == "No result matches.\n"
    wrong = run("results", *local, "--state", "lost")
    assert (wrong.code, "lost" in wrong.err) == (2, True)


def test_the_states_of_the_command_line_are_those_of_the_model() -> None:
    """They are written down twice so that `benchbridge --help` loads nothing heavy."""
    assert set(_STATES) == set(STATE_NAMES.values())


def test_a_name_cannot_steer_the_terminal(run: Run, to_api: list[str], database: Path) -> None:
    """Control characters in a model's name come out as question marks, and a name that is not ASCII as it is."""
    BenchmarkDatabase(database).insert(model="evil\x1b[2Jname", hardware="abacus")
    BenchmarkDatabase(database).insert(model="модель 🦙", hardware="abacus")
    run("sync", *to_api)
    text = "".join(run(*words, *to_api[:2]).text for words in (["results"], ["report"], ["results", "--state", "rejected"]))
    assert "\x1b" not in text
    assert "evil?[2Jname" in text
    assert "модель 🦙" in text


def test_a_dry_run_prints_examples_and_gives_them_to_machines(run: Run, to_api: list[str]) -> None:
    """How columns become fields, and one result for each reason of refusal with its value."""
    done = run("sync", *to_api, "--dry-run", "--all")
    assert "would be sent as" in done.out
    assert "performance_results.average_latency_ms" in done.out
    assert "performance_results.precision = bf16" in done.out
    found = run("sync", *to_api, "--dry-run", "--json").json
    assert [one["reason_code"] for one in found["refused_examples"]] == ["precision_unsupported"]
    assert len(found["examples"]) == 3
