"""The figures for Prometheus: those of the report, whoever answers, and never falling where they count."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from benchbridge_plugin.ledger import Ledger, schema
from benchbridge_plugin.model import RunSummary, SyncRequest
from tests.conftest import LEASE_S, Book, Clock
from tests.kit.base_contract import BaseContractServer, Fault

from .conftest import Host, MakeHost, assert_problem

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
Figures = dict[tuple[str, ...], float]


def scrape(host: Host) -> Figures:
    """Every sample by its name and the values of its labels, in the order of their names."""
    answer = host.client.get("/api/bridge/metrics")
    assert (answer.status_code, answer.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8"), answer.text
    families: Any = text_string_to_metric_families(answer.text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def of_state(figures: Figures) -> dict[str, float]:
    return {key[2]: value for key, value in figures.items() if key[0] == "benchbridge_results"}


def test_the_figures_are_those_of_the_report(host: Host) -> None:
    """States, refusals by code, what is on disk: the same numbers in both."""
    host.insert(result_id=900, precision="odd9")
    host.bridge.sync(SyncRequest(limit=5))
    figures, report = scrape(host), host.client.get("/api/bridge/report").json
    accounting = report["accounting"]
    states = ("delivered", "pending", "retrying", "in_doubt", "rejected", "skipped")
    assert of_state(figures) == {state: accounting[state] for state in states}
    assert figures["benchbridge_results_on_disk", "bench"] == accounting["total"]
    assert figures["benchbridge_accounting_balanced", "bench"] == 1
    refused = {key[1]: value for key, value in figures.items() if key[0] == "benchbridge_refused_results"}
    assert refused == {row["code"]: row["count"] for row in report["refusals"]}
    assert figures["benchbridge_deliveries_total", "bench"] == accounting["delivered"] == 5
    assert figures["benchbridge_oldest_waiting_seconds", "bench"] > 0
    assert figures["benchbridge_lease_held", "bench"] == 0


def test_every_metric_is_documented_with_its_type_and_labels_and_every_documented_one_exists(make_host: MakeHost) -> None:
    """docs/metrics.md and what is exposed agree both ways, in the page's own words."""
    host = make_host()
    host.insert(result_id=900, precision="odd9")
    host.bridge.sync(SyncRequest(limit=5))
    parts = host.bridge._workshop.parts()
    parts.ledger.runs.claim_tick(parts.schedule_id, 60.0, at_once=True)
    text = host.client.get("/api/bridge/metrics").text
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = re.findall(r"^\| `(benchbridge_\w+)` \| (\w+) \| ([\w, ]*) ?\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: kind for name, kind, _ in rows} == exposed
    labels = {
        name: set(re.findall(r'(\w+)="', found or "")) for name, found in re.findall(r"^(benchbridge_\w+)(\{.*\})? ", text, re.MULTILINE)
    }
    documented = {name: set(re.findall(r"\w+", found)) for name, _, found in rows}
    assert labels == {name: documented[name] for name in labels}


def test_openmetrics_is_answered_to_who_accepts_it(lasting: Host) -> None:
    """The library chooses the format; what comes out can be read by its strict parser."""
    answer = lasting.client.get("/api/bridge/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert answer.mimetype == "application/openmetrics-text"
    families: Any = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]
    assert "benchbridge_results" in {family.name for family in families}


def test_the_key_is_needed_and_a_bearer_token_will_do(lasting: Host) -> None:
    """Prometheus sends the key in that way."""
    assert_problem(lasting.stranger.get("/api/bridge/metrics"), 401, "key_needed")
    key = lasting.bridge.config.bridge_api_key
    assert lasting.stranger.get("/api/bridge/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_ledger_that_cannot_be_read_is_a_problem_document(make_host: MakeHost, tmp_path: Path) -> None:
    """503, so that Prometheus says the target is down."""
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database, and long enough to be sure of that" * 20)
    host = make_host(ledger_url=str(tmp_path / "ledger.sqlite"))
    assert_problem(host.client.get("/api/bridge/metrics"), 503, "ledger_error")


def test_a_failing_api_is_seen_in_failures_and_in_runs(make_host: MakeHost) -> None:
    """What was left to be retried is counted when the run ends, under the kind and state of the run."""
    with BaseContractServer() as server:
        server.faults.add(Fault.ERROR_500, None)
        host = make_host(predictive_mode="http", predictive_api_url=server.url)
        summary = host.bridge.sync(SyncRequest(kind="cli", limit=3))
        figures = scrape(host)
    assert figures["benchbridge_runs_total", "cli", "bench", summary.state] == 1
    assert figures["benchbridge_delivery_failures_total", "bench"] == summary.failed
    assert ("benchbridge_last_run_duration_seconds", "bench") in figures


def test_a_busy_file_is_seen(make_host: MakeHost) -> None:
    """From the last run, so that it is the same in all processes; the next good run ends it."""
    host = make_host()
    parts = host.bridge._workshop.parts()
    source_id = parts.ledger.runs.source_id("bench")
    lease = parts.ledger.leases.acquire("bench", "me", 60.0)
    begun = parts.ledger.runs.begin(lease, source_id, SyncRequest(), 60.0)
    assert scrape(host)["benchbridge_lease_held", "bench"] == 1
    parts.ledger.runs.finish(replace(begun, state="failed", error_code="benchmark_db_busy", message="busy"))
    parts.ledger.leases.release(lease)
    assert scrape(host)["benchbridge_source_busy", "bench"] == 1
    host.bridge.sync(SyncRequest(limit=1))
    assert scrape(host)["benchbridge_source_busy", "bench"] == 0


# -- the sums in the ledger -----------------------------------------------------------------------------------------------------------------


def meter(book: Book, name: str) -> float:
    return book.ledger.meters([book.source_id])[book.source_id].get(name) or 0.0


def test_the_sums_grow_while_a_run_goes_on_and_count_nothing_twice(book: Book) -> None:
    """What a run shows is added at once, and at its end only the rest."""
    runs = book.ledger.runs
    runs.progress(book.holder, {"synced": 3, "rejected": 1})
    assert (meter(book, "synced"), meter(book, "rejected")) == (3, 1)
    runs.progress(book.holder, {"synced": 5, "rejected": 1})
    book.clock.advance(7)
    summary = _summary(book, synced=6, rejected=1, failed=2)
    runs.finish(summary)
    runs.finish(summary)  # a run ends once
    found: Any = book.ledger.meters([book.source_id])[book.source_id]
    assert {name: found.get(name) for name in ("synced", "rejected", "failed")} == {"synced": 6, "rejected": 1, "failed": 2}
    assert found.labelled("runs") == {("python", "partial"): 1}
    assert (found.get("last_duration"), found.get("last_success")) == (7, book.clock())


def test_a_run_whose_process_is_gone_counts_as_failed_with_what_it_had_shown(book: Book) -> None:
    """Its deliveries are counted already, and the next run ends it."""
    book.ledger.runs.progress(book.holder, {"synced": 4})
    book.clock.advance(LEASE_S + 1)
    book.take("another")
    found = book.ledger.meters([book.source_id])[book.source_id]
    assert (found.get("synced"), found.labelled("runs")) == (4, {("python", "failed"): 1})


def test_a_ledger_without_meters_begins_with_the_sums_of_its_runs(book: Book, clock: Clock, tmp_path: Path) -> None:
    """A counter that began at nothing would hide all that was done before."""
    summary = _summary(book, synced=6, rejected=1, failed=2)
    clock.advance(7)
    book.ledger.runs.finish(summary)
    before = book.ledger.meters([book.source_id])[book.source_id].values
    book.ledger.close()
    path = tmp_path / "ledger.sqlite"
    if not path.exists():
        pytest.skip("the ledger is no file")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("DROP TABLE meters; DROP TABLE outbox;")
        connection.execute("UPDATE ledger_meta SET value = ? WHERE name = 'version'", (str(schema.UPGRADES.index(schema._add_meters)),))
    upgraded = Ledger(f"sqlite:///{path}", now=clock)
    assert upgraded.meters([book.source_id])[book.source_id].values == before
    upgraded.close()


def _summary(book: Book, **counts: int) -> RunSummary:
    return replace(RunSummary(book.holder.run_id, "partial", "python", False, book.clock(), None), **cast(Any, counts))
