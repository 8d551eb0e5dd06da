"""Ledger and sink side by side: what is missing, doubled and foreign is found exactly, and repaired on the way that everything takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.ledger import Holder
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.service import ServiceSink
from benchbridge_plugin.verification import Verification, verify
from tests.conftest import MakeSink, World, fill
from tests.kit import ledgers
from tests.kit.base_contract import LISTING, BaseContractServer, Fault


def keys(world: World) -> dict[str, str]:
    """result id -> key, of what the ledger has."""
    source_id = world.ledger.runs.source_id(world.name)
    return {str(row["result_id"]): str(row["key"]) for row in world.ledger.accounts.results(source_id, limit=1_000).rows}


def lose(server: BaseContractServer, *sources: str) -> None:
    """Somebody deletes measurements behind the API's back."""
    store = server.store
    with store._lock:
        store._rows = [row for row in store._rows if row["measurement_source"] not in sources]


def check(world: World, sink: Sink, **options: Any) -> Verification:
    return verify(world.ledger, world.ledger.runs.source_id(world.name), sink, **options)


@pytest.fixture
def sink(server: BaseContractServer, http_sink: MakeSink) -> Sink:
    return http_sink(server.url)


def test_after_a_sync_both_sides_agree(world: World, sink: Sink) -> None:
    """And the report says how many were looked at."""
    fill(world, 5)
    world.sync(sink)
    seen: list[int] = []
    found = check(world, sink, progress=seen.append)
    assert found.clean
    assert found.as_dict() == {
        "checked": 5,
        "clean": True,
        "missing": [],
        "unknown": 0,
        "doubled": [],
        "foreign": [],
        "repaired": 0,
        "note": "",
    }
    assert seen == [5]


def test_missing_doubled_and_foreign_measurements_are_named_exactly(world: World, server: BaseContractServer, sink: Sink) -> None:
    """Nothing else is: neither what others stored, nor old contents of ours."""
    fill(world, 6)
    world.database.update(6, precision="int2")  # refused: not expected at the sink
    world.sync(sink)
    world.database.update(5, batch_size=16)
    world.sync(sink)  # the old content of 5 stays at the sink and is ours
    known = keys(world)
    lose(server, f"benchmark:{known['2']}")
    server.store.insert(measurement_source=f"benchmark:{known['3']}")
    server.store.insert(measurement_source="benchmark:somebody-elses-key")
    server.store.insert(measurement_source="not one of ours")
    found = check(world, sink)
    assert (found.checked, found.missing, found.doubled, found.foreign) == (5, ["2"], [known["3"]], ["somebody-elses-key"])
    assert not found.clean


def test_what_is_missing_is_sent_again_by_the_next_run(world: World, server: BaseContractServer, sink: Sink) -> None:
    """Repair puts rows back to pending; there is no second way to the sink."""
    fill(world, 4)
    world.sync(sink)
    known = keys(world)
    lose(server, f"benchmark:{known['1']}", f"benchmark:{known['4']}")
    found = check(world, sink)
    assert found.missing == ["1", "4"]
    source_id = world.ledger.runs.source_id(world.name)
    lease = world.ledger.leases.acquire(world.name, "repair", 60)
    assert world.ledger.deliveries.reopen(Holder(lease, 60, 0), source_id, found.missing) == 2
    world.ledger.leases.release(lease)
    assert world.check_accounts().pending == 2
    assert world.sync(sink).synced == 2
    assert check(world, sink).clean
    assert len(server.rows) == 4


def test_a_row_delivered_after_the_listing_was_read_is_not_missing(world: World, server: BaseContractServer, sink: Sink) -> None:
    """A sync that runs at the same time must not be undone by the repair: that would send everything twice."""
    fill(world, 3)
    world.sync(sink, limit=1)
    listing = sink.listing

    def then_sync() -> Any:
        before = list(listing())
        world.sync(sink)
        return iter(before)

    sink.listing = then_sync  # type: ignore[method-assign]
    found = check(world, sink)
    assert (found.checked, found.missing, found.unknown) == (3, [], 0)


def test_a_listing_that_does_not_work_leads_to_unknown_and_never_to_missing(world: World, server: BaseContractServer, sink: Sink) -> None:
    """Somebody's NaN hides everything: that is no reason to send it again."""
    fill(world, 3)
    world.sync(sink)
    server.store.insert(model_name="bert-base-uncased", throughput=float("nan"))
    found = check(world, sink)
    assert (found.missing, found.unknown, found.doubled, found.foreign) == ([], 3, None, None)
    assert not found.clean
    assert found.note


def test_a_listing_too_long_for_one_answer_is_replaced_by_questions(
    world: World, server: BaseContractServer, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each model is asked for by its own name."""
    monkeypatch.setattr("benchbridge_plugin.sinks.listing._FIRST_WINDOW", 8)
    monkeypatch.setattr("benchbridge_plugin.sinks.listing._LARGEST_WINDOW", 16)
    fill(world, 4)
    world.sync(sink)
    for _ in range(20):
        server.store.insert(model_name="somebody-elses")
    lose(server, f"benchmark:{keys(world)['2']}")
    found = check(world, sink)
    assert (found.missing, found.unknown, found.doubled, found.foreign) == (["2"], 0, None, None)
    assert "more than 16" in found.note


def test_plain_measurements_cannot_be_verified_and_none_is_called_missing(
    world: World, server: BaseContractServer, http_sink: MakeSink
) -> None:
    """Without keys in the listing nobody can tell: unknown."""
    world.follow(keyed=False)
    fill(world, 3)
    plain = http_sink(server.url, keyed=False)
    world.sync(plain)
    assert {row["measurement_source"] for row in server.rows} == {"benchmark"}
    found = check(world, plain)
    assert (found.missing, found.unknown) == ([], 3)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_service_is_verified_by_its_keys(world: World, service: PredictivePerformance, keyed: bool) -> None:
    """Whether the measurement's source carries the key or not."""
    world.follow(keyed=keyed)
    fill(world, 4)
    sink = ServiceSink(service)
    world.sync(sink)
    assert check(world, sink).clean
    with service.file.transaction() as cursor:
        cursor.execute("DELETE FROM measurements WHERE throughput = 801.0")
    found = check(world, sink)
    assert (found.missing, found.unknown, found.foreign) == (["2"], 0, [])


def test_a_sink_that_is_down_is_an_error_and_not_a_finding(world: World, server: BaseContractServer, sink: Sink) -> None:
    """Nothing is missing because nobody answers."""
    fill(world, 2)
    world.sync(sink)
    server.faults.add(Fault.UNAVAILABLE_503, on=LISTING)
    with pytest.raises(SinkUnreachable):
        check(world, sink)
    server.down()
    with pytest.raises(SinkUnreachable):
        check(world, sink)


def test_thousands_are_verified_page_by_page(world: World, service: PredictivePerformance) -> None:
    """No page is left out and none is counted twice."""
    fill(world, 2_500)
    sink = ServiceSink(service)
    world.sync(sink)
    pages: list[int] = []
    assert check(world, sink, progress=pages.append).clean
    assert pages == [1_000, 2_000, 2_500]
    assert ledgers.read_rows(world.ledger_url, "SELECT count(*) AS delivered FROM deliveries WHERE state = 2") == [{"delivered": 2_500}]


def test_an_empty_ledger_is_clean() -> None:
    """Nothing was promised."""
    assert replace(Verification(0, [], 0, [], [])).clean
