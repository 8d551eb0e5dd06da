"""What the service of the host is given, and what is made of its answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.model import CONTRACT_HARDWARE, CONTRACT_MODES, CONTRACT_PRECISIONS, MEASUREMENT_FIELDS, Fate, Receipt, SinkProfile
from benchbridge_plugin.sinks.service import ServiceSink
from tests.conftest import MEASUREMENT, go_on, make_batch


class Host:
    """A service that remembers what it was given, and answers what a test says."""

    def __init__(self, said: Mapping[str, Any] | None = None, stored: Sequence[Mapping[str, Any]] = ()) -> None:
        self.said = said or {}
        self.stored = stored
        self.rows: list[Sequence[Mapping[str, Any]]] = []
        self.limits: list[int] = []
        self.answer: Mapping[str, Any] = {"status": "created", "measurement_id": "m"}

    def describe(self) -> Mapping[str, Any]:
        return self.said

    def record_measurements(self, measurements: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        self.rows.append(measurements)
        return [self.answer] * len(measurements)

    def lookup(self, idempotency_keys: Sequence[str]) -> Mapping[str, str]:
        return {}


class ListingHost(Host):
    def list_measurements(self, *, limit: int) -> Sequence[Mapping[str, Any]]:
        self.limits.append(limit)
        return self.stored[:limit]


class ArrowHost(Host):
    """It takes Arrow tables too."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[pa.Table] = []

    def record_measurement_table(self, table: pa.Table) -> pa.Table:
        self.tables.append(table)
        ids = [f"m-{row}" for row in range(len(table))]
        return pa.table({"status": ["existing"] * len(table), "measurement_id": ids, "error": [None] * len(table)})


def ids_of(receipt: Receipt) -> list[str | None]:
    """The sink gives its ids in Arrow."""
    assert isinstance(receipt.measurement_ids, pa.Array)
    return list(receipt.measurement_ids.to_pylist())


# -- what it is given -------------------------------------------------------------------------------------------------------------------


def test_a_service_that_takes_arrow_gets_the_table_once_and_no_rows() -> None:
    """The columns of a measurement in their order, and nothing of the ledger's."""
    host = ArrowHost()
    batch = make_batch({}, {"model_name": "vit"}, {})
    receipt = ServiceSink(host).send(batch, stopping=go_on)
    assert (ids_of(receipt), receipt.exceptions) == (["m-0", "m-1", "m-2"], {})
    assert host.rows == []
    (table,) = host.tables
    assert table == batch.select(list(MEASUREMENT_FIELDS))


def test_a_service_without_arrow_gets_rows_as_json_would_have_them() -> None:
    """Metadata as a dictionary and the time as ISO text; what is not known is None."""
    host = Host()
    batch = make_batch({}, {"metadata": None, "measured_at": None}, {"metadata": ""})
    receipt = ServiceSink(host).send(batch, stopping=go_on)
    assert (ids_of(receipt), receipt.exceptions) == (["m"] * 3, {})
    ((first, second, third),) = host.rows
    key = batch.column("idempotency_key").to_pylist()[0]
    assert first == {
        **MEASUREMENT,
        "source": f"benchmark:{key}",
        "measured_at": "2026-11-01T00:00:00+00:00",
        "source_ref": "bench/1",
        "metadata": {"device_name": "H100"},
        "idempotency_key": key,
    }
    assert (second["metadata"], second["measured_at"], third["metadata"]) == (None, None, None)


@pytest.mark.parametrize(
    ("answer", "fate", "code", "reason"),
    [
        ({"status": "rejected", "error": "too large"}, Fate.REJECTED, "refused_by_api", "too large"),
        ({"status": "rejected"}, Fate.REJECTED, "refused_by_api", "refused without a reason"),
        ({"status": "perhaps"}, Fate.IN_DOUBT, "service_answer", "'perhaps'"),
        ({"state": "created"}, Fate.IN_DOUBT, "service_answer", "unknown status None"),
        ("created", Fate.IN_DOUBT, "service_failed", "AttributeError"),
    ],
    ids=str,
)
def test_each_answer_has_its_fate(answer: Any, fate: Fate, code: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is no plain word on the row leaves it in doubt."""
    caplog.set_level(logging.CRITICAL)
    host = Host()
    host.answer = answer
    receipt = ServiceSink(host).send(make_batch({}, {}), stopping=go_on)
    outcome = receipt.exceptions[0]
    assert (outcome.fate, outcome.code) == (fate, code)
    assert reason in outcome.reason
    assert (len(receipt.measurement_ids), sorted(receipt.exceptions)) == (2, [0, 1]), "a receipt is about all rows of its batch"


def test_an_answer_about_other_rows_is_in_doubt_with_the_counts() -> None:
    """And one that was not asked for is not sent."""
    host = ArrowHost()
    host.record_measurement_table = lambda table: ArrowHost().record_measurement_table(table.slice(1))  # type: ignore[method-assign]
    receipt = ServiceSink(host).send(make_batch({}, {}), stopping=go_on)
    assert (receipt.exceptions[1].fate, receipt.exceptions[1].code) == (Fate.IN_DOUBT, "service_answer")
    assert "1 rows for a batch of 2" in receipt.exceptions[1].reason
    unsent = ServiceSink(host).send(make_batch({}, {}), stopping=lambda: True)
    assert [(unsent.exceptions[row].fate, unsent.exceptions[row].code) for row in (0, 1)] == [(Fate.NOT_SENT, "not_sent")] * 2
    for told in (receipt, unsent):
        assert (list(told.measurement_ids), sorted(told.exceptions)) == ([None, None], [0, 1])


@pytest.mark.parametrize("chunked", [False, True])
def test_ids_that_a_table_gives_as_numbers_or_in_pieces_are_texts(chunked: bool) -> None:
    """As the ledger keeps them; one that is missing stays missing."""
    host = ArrowHost()

    def answer(table: pa.Table) -> pa.Table:
        rows = len(table)
        answered = pa.table({"status": ["created"] * rows, "measurement_id": [7, None, 9][:rows], "error": [None] * rows})
        return pa.concat_tables([answered.slice(0, 1), answered.slice(1)]) if chunked else answered

    host.record_measurement_table = answer  # type: ignore[method-assign]
    receipt = ServiceSink(host).send(make_batch({}, {}, {}), stopping=go_on)
    assert (ids_of(receipt), receipt.exceptions) == (["7", None, "9"], {})


def test_a_service_that_takes_tables_gets_larger_batches() -> None:
    """As many as DuckDB stores together."""
    assert (ServiceSink(Host()).batch_rows, ServiceSink(ArrowHost()).batch_rows) == (10_000, 122_880)


# -- what it says of itself -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "profile"),
    [
        ({}, SinkProfile(CONTRACT_HARDWARE, CONTRACT_PRECISIONS, CONTRACT_MODES, frozenset())),
        ({"hardware_platforms": ["tpu"]}, SinkProfile(hardware=("tpu",))),
        ({"precisions": ["fp8"]}, SinkProfile(precisions=("fp8",))),
        ({"modes": ["tuning"]}, SinkProfile(modes=("tuning",))),
        ({"capabilities": ["bulk"]}, SinkProfile(capabilities=frozenset({"bulk"}))),
        ({"hardware_platforms": [], "precisions": None, "modes": [], "capabilities": None}, SinkProfile()),
    ],
    ids=str,
)
def test_what_a_service_does_not_say_is_as_in_the_base_contract(said: Mapping[str, Any], profile: SinkProfile) -> None:
    """Each list by itself."""
    assert ServiceSink(Host(said)).profile() == profile


def test_a_listing_names_ours_by_the_key_in_their_source_or_beside_it() -> None:
    """A measurement that carries neither is not ours."""
    host = ListingHost(
        stored=[
            {"measurement_source": "benchmark:a", "measurement_id": "1"},
            {"measurement_source": "benchmark:b", "idempotency_key": "x", "measurement_id": 2},
            {"measurement_source": "benchmark", "idempotency_key": "c", "measurement_id": "3"},
            {"measurement_source": None, "idempotency_key": "d", "measurement_id": "4"},
            {"measurement_source": "somebody else", "idempotency_key": None, "measurement_id": "5"},
            {"measurement_id": "6"},
        ]
    )
    assert list(ServiceSink(host).listing()) == [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_listing_that_is_full_may_hide_some(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """It is asked for as many as can be had, and believed when there are fewer."""
    monkeypatch.setattr("benchbridge_plugin.sinks.service._LISTED", 3)
    host = ListingHost(stored=[{"measurement_source": f"benchmark:{row}", "measurement_id": "m"} for row in range(count)])
    if count < 3:
        assert len(list(ServiceSink(host).listing())) == count
    else:
        with pytest.raises(SinkUnreachable, match="cannot list all"):
            list(ServiceSink(host).listing())
    assert host.limits == [3]


def test_a_service_without_a_listing_says_to_look_keys_up() -> None:
    """It is no fault of the service: the protocol does not ask for one."""
    with pytest.raises(SinkUnreachable, match="cannot list all") as raised:
        list(ServiceSink(Host()).listing())
    assert "lookup" in raised.value.guidance
