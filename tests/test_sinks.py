"""Every sink keeps one contract: the service in this process, HTTP to either kind of server, and HTTP through WSGI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin.errors import SinkDenied, SinkUnreachable
from benchbridge_plugin.model import CONTRACT_HARDWARE, Answer, Doubt, Fate, Receipt
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.service import PredictiveService, ServiceSink
from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL, WSGIAdapter
from tests.conftest import MEASUREMENT, FullServer, MakeSink, doubts_of, make_batch
from tests.kit.base_contract import BaseContractServer

Rows = Sequence[Mapping[str, Any]]
CAPABILITIES = {"idempotency", "bulk", "lookup", "measured_at", "predict_bulk"}


class RowsOnly:
    """The host's service without its Arrow method, as a simpler host offers it."""

    def __init__(self, service: PredictivePerformance) -> None:
        self.describe = service.describe
        self.record_measurements = service.record_measurements
        self.lookup = service.lookup
        self.list_measurements = service.list_measurements


@dataclass
class Target:
    """A sink and, past it, what is stored behind it."""

    sink: Sink
    stored: Callable[[], Rows]
    keyed: bool  # whether the other side understands idempotency keys
    takes_bf16: bool = True


def _service_arrow(request: pytest.FixtureRequest) -> Target:
    service: PredictivePerformance = request.getfixturevalue("service")
    return Target(ServiceSink(service), lambda: service.list_measurements(limit=1000), True)


def _service_rows(request: pytest.FixtureRequest) -> Target:
    service: PredictivePerformance = request.getfixturevalue("service")
    return Target(ServiceSink(RowsOnly(service)), lambda: service.list_measurements(limit=1000), True)


def _http_base(request: pytest.FixtureRequest) -> Target:
    server: BaseContractServer = request.getfixturevalue("server")
    make: MakeSink = request.getfixturevalue("http_sink")
    return Target(make(server.url), lambda: server.rows, False, takes_bf16=False)


def _http_full(request: pytest.FixtureRequest) -> Target:
    server: FullServer = request.getfixturevalue("full_server")
    make: MakeSink = request.getfixturevalue("http_sink")
    return Target(make(server.url), server.stored, True)


def _wsgi(request: pytest.FixtureRequest) -> Target:
    server: FullServer = request.getfixturevalue("full_server")
    make: MakeSink = request.getfixturevalue("http_sink")
    return Target(make(IN_PROCESS_URL, adapter=WSGIAdapter(server.app)), server.stored, True)


KINDS = {
    "service-arrow": _service_arrow,
    "service-rows": _service_rows,
    "http-base": _http_base,
    "http-full": _http_full,
    "wsgi": _wsgi,
}


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest) -> Target:
    made = KINDS[request.param](request)
    made.sink.profile()
    return made


def send(target: Target, batch: pa.Table) -> Receipt:
    receipt = target.sink.send(batch, stopping=lambda: False)
    assert len(receipt.measurement_ids) == len(batch)
    ids = receipt.measurement_ids
    return replace(receipt, measurement_ids=ids.to_pylist() if isinstance(ids, pa.Array) else ids)


def test_every_row_is_stored_once_with_equal_fields(target: Target) -> None:
    """What is delivered is what was measured, field by field, nulls included."""
    batch = make_batch(
        {},
        {"model_name": "vit", "model_family": None, "hardware_platform": "cpu", "batch_size": 1, "precision": "fp32"},
        {"throughput": None, "latency": 0.1, "memory_usage": None, "mode": "training", "sequence_length": 4096},
    )
    receipt = send(target, batch)
    assert receipt.exceptions == {}
    assert receipt.stop is None
    assert len({*receipt.measurement_ids}) == 3
    stored = {row["measurement_source"]: {name: row[name] for name in MEASUREMENT} for row in target.stored()}
    sent = {row["source"]: {name: row[name] for name in MEASUREMENT} for row in batch.to_pylist()}
    assert stored == sent
    assert len(target.stored()) == 3


def test_the_time_the_reference_and_the_metadata_are_kept_where_the_server_keeps_them(target: Target) -> None:
    """The full contract stores when it was measured and where it comes from; the base contract drops both without an error."""
    send(target, make_batch({}))
    row = target.stored()[0]
    if target.keyed:
        assert datetime.fromisoformat(str(row["measured_at"])).replace(tzinfo=UTC) == datetime(2026, 11, 1, tzinfo=UTC)
        assert row["source_ref"] == "bench/1"
        assert row["metadata"] == {"device_name": "H100"}
    else:
        assert "measured_at" not in row


def test_a_row_the_server_refuses_is_rejected_with_its_sentence(target: Target) -> None:
    """The reason that a user reads names the field and what would be right."""
    outcome = send(target, make_batch({"hardware_platform": "tpu"})).exceptions[0]
    assert outcome.fate is Fate.REJECTED
    assert outcome.code == "refused_by_api"
    assert "hardware_platform" in outcome.reason
    assert "'cuda'" in outcome.reason
    assert target.stored() == []


def test_one_bad_row_does_not_stop_the_others(target: Target) -> None:
    """A refusal in the middle of a batch is that row's alone."""
    batch = make_batch({}, {"hardware_platform": "tpu"}, {}, {"precision": "int2"}, {})
    receipt = send(target, batch)
    assert {row: outcome.fate for row, outcome in receipt.exceptions.items()} == {1: Fate.REJECTED, 3: Fate.REJECTED}
    assert [row for row, measurement_id in enumerate(receipt.measurement_ids) if measurement_id] == [0, 2, 4]
    assert len(target.stored()) == 3


def test_a_batch_sent_again_doubles_nothing_where_keys_are_understood(target: Target) -> None:
    """The same keys give the same ids. The base contract stores a POST as often as it comes, which is why the engine asks before it sends again."""
    first = send(target, make_batch({}, {}))
    again = send(target, make_batch({}, {}, {}))
    assert again.exceptions == {}
    assert len(target.stored()) == (3 if target.keyed else 5)
    if target.keyed:
        assert list(again.measurement_ids[:2]) == list(first.measurement_ids)


def test_settling_tells_what_is_stored_from_what_is_absent(target: Target) -> None:
    """Asked about rows that were stored, refused and never sent, in any order, it answers each in its place."""
    stored = make_batch({}, {"model_name": "vit"})
    send(target, stored)
    never = make_batch({}, first=10)
    settlements = target.sink.settle([*doubts_of(never), *doubts_of(stored)])
    assert [settlement.answer for settlement in settlements] == [Answer.ABSENT, Answer.STORED, Answer.STORED]
    assert all(settlement.measurement_id for settlement in settlements[1:])


def test_settling_names_the_measurement_as_delivering_did(target: Target) -> None:
    """The ledger keeps one kind of id for a measurement, whichever way it learnt of it."""
    batch = make_batch({}, {})
    receipt = send(target, batch)
    assert [settlement.measurement_id for settlement in target.sink.settle(doubts_of(batch))] == list(receipt.measurement_ids)
    alone = send(target, make_batch({}, first=7))
    assert dict(target.sink.listing())[str(doubts_of(make_batch({}, first=7))[0].key)] == alone.measurement_ids[0]


def test_the_listing_shows_our_keys_and_nobody_elses(target: Target) -> None:
    """Measurements of other senders are not ours to count."""
    batch = make_batch({}, {}, {"source": "somebody else", "idempotency_key": None})
    if isinstance(target.sink, ServiceSink):
        target.sink.send(batch, stopping=lambda: False)
    else:
        send(target, batch.slice(0, 2))
    assert {key for key, _ in target.sink.listing()} == set(batch.column("idempotency_key").to_pylist()[:2])


def test_nothing_is_sent_once_stopping(target: Target) -> None:
    """Rows that had no turn come back as not sent, and none of them is stored."""
    receipt = target.sink.send(make_batch({}, {}), stopping=lambda: True)
    assert [receipt.exceptions[row].fate for row in (0, 1)] == [Fate.NOT_SENT] * 2
    assert target.stored() == []


def test_the_profile_says_what_is_taken_and_what_can_be_done(target: Target) -> None:
    """Enums come from the other side, so a result it would refuse is not sent to it."""
    profile = target.sink.profile()
    assert set(profile.hardware) == set(CONTRACT_HARDWARE)
    assert ("bf16" in profile.precisions) is target.takes_bf16
    assert set(profile.modes) == {"inference", "training"}
    over_http = set() if isinstance(target.sink, ServiceSink) else {"gzip"}
    assert set(profile.capabilities) == (CAPABILITIES | over_http if target.keyed else set())
    assert target.sink.batch_rows >= 100


def test_closing_may_be_repeated(target: Target) -> None:
    """Shutdown paths overlap."""
    target.sink.close()
    target.sink.close()


def test_the_name_is_for_people_and_not_empty(target: Target) -> None:
    """Errors and the status page show it."""
    assert target.sink.name


# -- the key ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["http-base", "http-full", "wsgi"])
def guarded(request: pytest.FixtureRequest, http_sink: MakeSink) -> Iterator[Callable[[str | None], Target]]:
    """Sinks to a server that asks for the key "right"."""
    if request.param == "http-base":
        with BaseContractServer(api_key="right") as server:
            yield lambda key: Target(http_sink(server.url, api_key=key), lambda: server.rows, False)
        return
    full: FullServer = request.getfixturevalue("full_server_with_key")
    adapter, url = (WSGIAdapter(full.app), IN_PROCESS_URL) if request.param == "wsgi" else (None, full.url)
    yield lambda key: Target(http_sink(url, api_key=key, adapter=adapter), full.stored, True)


def test_the_right_key_opens_every_route(guarded: Callable[[str | None], Target]) -> None:
    """Sending, settling and listing all carry it."""
    target = guarded("right")
    target.sink.profile()
    batch = make_batch({})
    assert send(target, batch).exceptions == {}
    assert target.sink.settle(doubts_of(batch))[0].answer is Answer.STORED
    assert len(list(target.sink.listing())) == 1


@pytest.mark.parametrize("key", [None, "wrong", "wröng"])
def test_a_wrong_key_is_denied_before_any_row_is_touched(guarded: Callable[[str | None], Target], key: str | None) -> None:
    """The error says what to set, and not what was tried."""
    target = guarded(key)
    with pytest.raises(SinkDenied) as denied:
        target.sink.profile()
    assert "api_key" in denied.value.guidance
    assert key is None or key not in str(denied.value)
    assert target.stored() == []


def test_a_key_withdrawn_during_a_batch_leaves_the_rest_unsent(http_sink: MakeSink) -> None:
    """What went through is acknowledged as far as can be known, the rest is as if never touched, and the error says why."""
    with BaseContractServer(api_key="right") as server:
        sink = http_sink(server.url, api_key="right")
        sink.profile()
        asked = iter(range(100))

        def withdraw_before_the_third_row() -> bool:
            if next(asked) == 2:
                server.api_key = "another"
            return False

        receipt = sink.send(make_batch({}, {}, {}, {}), stopping=withdraw_before_the_third_row)
        assert isinstance(receipt.stop, SinkDenied)
        assert {row: outcome.fate for row, outcome in receipt.exceptions.items()} == {
            0: Fate.IN_DOUBT,
            1: Fate.IN_DOUBT,
            2: Fate.NOT_SENT,
            3: Fate.NOT_SENT,
        }
        assert len(server.rows) == 2


@pytest.mark.parametrize("key", ["se\ncret", "sécret\u2603"])
def test_a_key_that_no_header_can_carry_is_an_error_that_does_not_show_it(
    server: BaseContractServer, http_sink: MakeSink, key: str
) -> None:
    """A stray line break in a secret is common; it must not end in a log."""
    with pytest.raises(SinkUnreachable) as raised:
        http_sink(server.url, api_key=key).profile()
    assert "cret" not in str(raised.value)
    assert server.requests.total() == 0


# -- a service that misbehaves ----------------------------------------------------------------------------------------------------------


class Broken:
    """A host's service that answers whatever a test says."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def describe(self) -> Mapping[str, Any]:
        return self._answer("describe")  # type: ignore[no-any-return]

    def record_measurements(self, measurements: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        return self._answer("record")  # type: ignore[no-any-return]

    def lookup(self, idempotency_keys: Sequence[str]) -> Mapping[str, str]:
        return self._answer("lookup")  # type: ignore[no-any-return]

    def list_measurements(self, limit: int) -> Rows:
        return self._answer("listing")  # type: ignore[no-any-return]

    def _answer(self, name: str) -> Any:
        answer = self._answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_service_that_raises_leaves_its_batch_in_doubt(caplog: pytest.LogCaptureFixture) -> None:
    """It may have committed before it raised, so nobody knows; the log has the traceback."""
    receipt = ServiceSink(Broken(record=RuntimeError("disk"))).send(make_batch({}, {}), stopping=lambda: False)
    assert {outcome.fate for outcome in receipt.exceptions.values()} == {Fate.IN_DOUBT}
    assert "RuntimeError: disk" in receipt.exceptions[0].reason
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "answer", [[], [{"status": "created"}], [{"status": "created"}] * 3, [{}, {}], [{"status": "perhaps"}] * 2, None, 7]
)
def test_a_service_that_answers_nonsense_leaves_its_batch_in_doubt(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    """Too few rows, too many, an unknown status, or no list at all: none of it is an acknowledgement."""
    caplog.set_level(logging.CRITICAL)
    receipt = ServiceSink(Broken(record=answer)).send(make_batch({}, {}), stopping=lambda: False)
    assert [receipt.exceptions[row].fate for row in (0, 1)] == [Fate.IN_DOUBT] * 2


@pytest.mark.parametrize("name", ["describe", "lookup", "listing"])
def test_a_service_that_cannot_be_asked_is_unreachable(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The engine gets a SinkError, never the host's own exception."""
    caplog.set_level(logging.CRITICAL)
    sink = ServiceSink(Broken(**{name: RuntimeError("gone")}))
    calls: Mapping[str, Callable[[], object]] = {
        "describe": sink.profile,
        "lookup": lambda: sink.settle([Doubt("1", b"", UUID(int=1), "m", 0.0)]),
        "listing": lambda: list(sink.listing()),
    }
    with pytest.raises(SinkUnreachable):
        calls[name]()


def test_the_hosts_service_is_what_the_bridge_asks_for(service: PredictivePerformance) -> None:
    """The protocol is checked at run time before a service is used."""
    assert isinstance(service, PredictiveService)
    assert isinstance(RowsOnly(service), PredictiveService)
    assert not isinstance(object(), PredictiveService)


def test_an_application_that_raises_leaves_the_row_in_doubt(
    http_sink: MakeSink, full_server: FullServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Through WSGI an exception takes the place of a broken connection."""
    broken = False

    def application(environ: Any, start_response: Any) -> Any:
        if broken:
            raise ConnectionRefusedError("from deep inside the application")
        return full_server.app(environ, start_response)

    sink = http_sink(IN_PROCESS_URL, adapter=WSGIAdapter(application))
    sink.profile()
    broken = True
    outcome = sink.send(make_batch({}), stopping=lambda: False).exceptions[0]
    assert outcome.fate is Fate.FAILED  # it understands keys: sending it again is harmless, and it was not said to be unsent
    assert outcome.code == "no_answer"
