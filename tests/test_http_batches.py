"""How a batch goes over HTTP, in thousands or one by one: each answer is put beside its row, and what was not sent is known to be so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from benchbridge_plugin.errors import SinkDenied, SinkUnreachable
from benchbridge_plugin.model import Answer, Fate, Receipt
from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL, WSGIAdapter
from tests.conftest import FullServer, MakeSink, doubts_of, go_on, make_batch
from tests.kit.base_contract import BASE, LISTING, RECORD, TASK, BaseContractServer, Fault
from tests.liar import Liar

BULK, SINGLE = f"{BASE}/record-measurements", f"{BASE}/record-measurement"


def answers(*said: bool) -> Callable[[], bool]:
    """Says these, and then False for ever."""
    left = iter(said)
    return lambda: next(left, False)


def fates(receipt: Receipt) -> dict[int, Fate]:
    return {row: outcome.fate for row, outcome in receipt.exceptions.items()}


def unsent(rows: Iterable[int]) -> dict[int, Fate]:
    return dict.fromkeys(rows, Fate.NOT_SENT)


# -- in bulk ----------------------------------------------------------------------------------------------------------------------------


def test_a_batch_of_thousands_goes_in_bulk_and_no_row_goes_alone(full_server: FullServer, http_sink: MakeSink) -> None:
    """A thousand at a time; each id and each refusal is that of its row."""
    requests: Counter[str] = Counter()

    def counting(environ: Any, start_response: Any) -> Any:
        requests[f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"] += 1
        return full_server.app(environ, start_response)

    sink = http_sink(IN_PROCESS_URL, adapter=WSGIAdapter(counting))
    sink.profile()
    refused = {1, 1_700, 2_400}
    batch = make_batch(*[{"hardware_platform": "tpu"} if row in refused else {} for row in range(2_500)])
    receipt = sink.send(batch, stopping=go_on)
    assert requests[f"POST {BULK}"] == 3
    assert requests[RECORD] == requests[TASK] == 0
    assert fates(receipt) == dict.fromkeys(refused, Fate.REJECTED)
    settled = sink.settle(doubts_of(batch))
    assert [settlement.measurement_id for settlement in settled] == list(receipt.measurement_ids)
    assert {row for row, settlement in enumerate(settled) if settlement.answer is not Answer.STORED} == refused
    assert requests[f"POST {BASE}/measurements/lookup"] == 3
    assert len(full_server.stored()) == 2_497


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchbridge_plugin.sinks.bulk.PART_ROWS", 4)


def in_bulk(liar: Liar, middle: tuple[int, Any] | None = None) -> None:
    """Each row gets its key as its id; or the second part gets `middle`."""

    def answer(body: Any) -> tuple[int, Any]:
        if middle is not None and liar.requests.count(BULK) == 2:
            return middle
        return 200, {"results": [{"status": "created", "measurement_id": row["idempotency_key"]} for row in body["measurements"]]}

    liar.answers[BULK] = answer


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("status", "fate", "error"),
    [
        (503, Fate.FAILED, SinkUnreachable),
        (429, Fate.FAILED, SinkUnreachable),
        (401, Fate.NOT_SENT, SinkDenied),
        (404, Fate.NOT_SENT, SinkUnreachable),
    ],
)
def test_a_part_that_fails_ends_the_batch_there(liar: Liar, http_sink: MakeSink, status: int, fate: Fate, error: type[Exception]) -> None:
    """What was acknowledged before it stays so, and what comes behind it is not sent."""
    in_bulk(liar, (status, {"detail": "no"}))
    sink = http_sink(liar.url)
    sink.profile()
    batch = make_batch(*[{}] * 10)
    receipt = sink.send(batch, stopping=go_on)
    assert fates(receipt) == {**dict.fromkeys(range(4, 8), fate), **unsent((8, 9))}
    assert list(receipt.measurement_ids) == [*batch.column("idempotency_key").to_pylist()[:4], *[None] * 6]
    assert isinstance(receipt.stop, error)
    assert liar.requests.count(BULK) == 2


@pytest.mark.usefixtures("small_parts")
def test_stopping_between_two_parts_leaves_the_rest_unsent(liar: Liar, http_sink: MakeSink) -> None:
    """What had its turn is acknowledged."""
    in_bulk(liar)
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 10), stopping=answers(False, True))
    assert (fates(receipt), receipt.stop) == (unsent(range(4, 10)), None)
    assert all(receipt.measurement_ids[:4])


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_is_refused_as_a_whole_goes_row_by_row_and_the_next_in_bulk_again(liar: Liar, http_sink: MakeSink) -> None:
    """Only the row that is wrong is rejected, and each of the others has the id of its own task."""
    in_bulk(liar, (422, {"detail": "one of them is wrong"}))
    keys = make_batch(*[{}] * 10).column("idempotency_key").to_pylist()
    liar.answers[SINGLE] = lambda body: (422, {"detail": "no"}) if body["batch_size"] == 7 else (200, {"task_id": body["source"][-12:]})
    for row in range(4, 8):
        liar.answers[f"{BASE}/task/{keys[row][-12:]}"] = (200, {"status": "completed", "result": {"measurement_id": keys[row]}})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{"batch_size": 7} if row == 5 else {} for row in range(10)]), stopping=go_on)
    assert (fates(receipt), receipt.stop) == ({5: Fate.REJECTED}, None)
    assert list(receipt.measurement_ids) == [None if row == 5 else keys[row] for row in range(10)]
    assert (liar.requests.count(BULK), liar.requests.count(SINGLE)) == (3, 4)


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_goes_row_by_row_and_meets_the_end_ends_the_batch(liar: Liar, http_sink: MakeSink) -> None:
    """The key is withdrawn at its second row."""
    in_bulk(liar, (422, {"detail": "one of them is wrong"}))
    liar.answers[SINGLE] = lambda body: (200, {"task_id": "t"}) if liar.requests.count(SINGLE) == 1 else (401, {"detail": "no"})
    liar.answers[f"{BASE}/task/t"] = (200, {"status": "completed", "result": {"measurement_id": "m-4"}})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 10), stopping=go_on)
    assert fates(receipt) == unsent(range(5, 10))
    assert receipt.measurement_ids[4] == "m-4"
    assert all(receipt.measurement_ids[:4])
    assert isinstance(receipt.stop, SinkDenied)


@pytest.mark.parametrize(
    ("result", "fate", "code", "reason"),
    [
        ({"status": "rejected", "error": "too large"}, Fate.REJECTED, "refused_by_api", "too large"),
        ({"status": "rejected"}, Fate.REJECTED, "refused_by_api", "refused without a reason"),
        ({"status": "perhaps"}, Fate.FAILED, "answer_unclear", "'perhaps'"),
        ({}, Fate.FAILED, "answer_unclear", "None"),
        (5, Fate.FAILED, "answer_unclear", "None"),
    ],
    ids=str,
)
def test_each_row_of_a_bulk_answer_speaks_for_itself(
    liar: Liar, http_sink: MakeSink, result: object, fate: Fate, code: str, reason: str
) -> None:
    """What is no plain "created" or "existing" delivers nothing, and the others are delivered."""
    liar.answers[BULK] = (200, {"results": [{"status": "existing", "measurement_id": "a"}, result, {"status": "created"}]})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}, {}), stopping=go_on)
    assert list(receipt.exceptions) == [1]
    assert (receipt.exceptions[1].fate, receipt.exceptions[1].code) == (fate, code)
    assert reason in receipt.exceptions[1].reason


# -- one by one -------------------------------------------------------------------------------------------------------------------------


def test_a_row_alone_is_sent_with_its_key_in_the_header_and_not_in_the_body(liar: Liar, http_sink: MakeSink) -> None:
    """Always: a server that understands keys may just not have said so."""
    liar.can()
    sink = http_sink(liar.url)
    sink.profile()
    batch = make_batch({}, {})
    sink.send(batch, stopping=go_on)
    sent = [number for number, path in enumerate(liar.requests) if path == SINGLE]
    assert [liar.headers[number]["Idempotency-Key"] for number in sent] == batch.column("idempotency_key").to_pylist()[: len(sent)]
    assert {name for number in sent for name in liar.bodies[number]} == {*MEASURED, "source"}
    assert sent


MEASURED = set(make_batch({}).column_names) - {
    *("result_id", "content_hash", "key", "reason_code", "reason", "quality", "measured_at_us"),
    *("source", "measured_at", "source_ref", "metadata", "idempotency_key"),
}


@pytest.mark.parametrize(
    ("status", "task", "taken"),
    [
        (200, "t", True),
        (201, "t", True),
        (202, "t", True),
        (203, "t", False),
        (200, "", False),
        (200, 5, False),
        (200, None, False),
        (500, "t", False),
    ],
)
def test_a_row_is_on_its_way_when_a_good_answer_names_its_task(
    liar: Liar, http_sink: MakeSink, status: int, task: object, taken: bool
) -> None:
    """Whatever else is said is no word on the row."""
    liar.can()
    liar.answers[SINGLE] = (status, {"task_id": task})
    liar.answers[f"{BASE}/task/t"] = (200, {"status": "completed", "result": {"measurement_id": "m"}})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}), stopping=go_on)
    assert fates(receipt) == ({} if taken else {0: Fate.IN_DOUBT})
    assert len(liar.asked("task/")) == taken


def test_stopping_between_two_rows_leaves_the_rest_unsent(server: BaseContractServer, http_sink: MakeSink) -> None:
    """What had its turn is acknowledged."""
    receipt = http_sink(server.url).send(make_batch(*[{}] * 5), stopping=answers(False, False, True))
    assert (fates(receipt), receipt.stop) == (unsent((2, 3, 4)), None)
    assert len(server.rows) == 2


def test_a_key_that_is_refused_at_a_row_leaves_that_one_and_the_rest_unsent(liar: Liar, http_sink: MakeSink) -> None:
    """What had its turn is acknowledged."""
    liar.can()
    liar.answers[SINGLE] = lambda body: (200, {"task_id": "t"}) if liar.requests.count(SINGLE) < 3 else (403, {"detail": "no"})
    liar.answers[f"{BASE}/task/t"] = (200, {"status": "completed"})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 5), stopping=go_on)
    assert fates(receipt) == unsent((2, 3, 4))
    assert isinstance(receipt.stop, SinkDenied)


@pytest.mark.parametrize("between", ["taken", "refused"])
def test_a_row_that_is_answered_for_ends_a_row_of_failures(server: BaseContractServer, http_sink: MakeSink, between: str) -> None:
    """Four failures, one that is taken or refused, and four more: the server is there, and every row has its turn."""
    server.faults.add(Fault.ERROR_500, None, when=lambda body: body["batch_size"] == 7)
    four = [{"batch_size": 7}] * 4
    other = {"hardware_platform": "tpu"} if between == "refused" else {}
    receipt = http_sink(server.url).send(make_batch(*four, other, *four, other), stopping=go_on)
    assert receipt.stop is None
    assert [fates(receipt)[row] for row in (0, 1, 2, 3, 5, 6, 7, 8)] == [Fate.IN_DOUBT] * 8
    assert server.requests[RECORD] == 10


def test_the_tasks_of_a_server_that_fell_silent_are_not_asked_for(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Their rows are in doubt, each with the task that may still store it."""
    sink = http_sink(server.url, timeout_s=0.2)
    server.faults.skip(2)
    server.faults.add(Fault.SILENCE_BEFORE_STORE, None)
    server.faults.add(Fault.SILENCE_BEFORE_STORE, None, on=LISTING)
    receipt = sink.send(make_batch(*[{}] * 4), stopping=go_on)
    assert fates(receipt) == {**dict.fromkeys(range(3), Fate.IN_DOUBT), 3: Fate.NOT_SENT}
    assert [receipt.exceptions[row].code for row in range(3)] == ["task_pending", "task_pending", "no_answer"]
    assert all(receipt.exceptions[row].task_id for row in range(2))
    assert (server.requests[TASK], server.requests[LISTING], server.requests[RECORD]) == (0, 1, 3)


def test_two_rows_are_acknowledged_by_one_listing_already(server: BaseContractServer, http_sink: MakeSink) -> None:
    """And one alone by its task."""
    sink = http_sink(server.url)
    assert sink.send(make_batch({}, {}), stopping=go_on).exceptions == {}
    assert server.requests[LISTING] == 1
    assert sink.send(make_batch({}, first=9), stopping=go_on).exceptions == {}
    assert server.requests[LISTING] == 1
