"""How the HTTP sink waits for tasks and ends doubts: what it asks, how often, and what it takes from the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from benchbridge_plugin.errors import SinkDenied, SinkUnreachable
from benchbridge_plugin.model import Answer, Doubt, Fate, Settlement
from tests.conftest import Clock, FullServer, MakeSink, doubts_of, go_on, make_batch
from tests.kit.base_contract import BASE, LISTING, TASK, BaseContractServer, Fault
from tests.liar import Liar, Said

SINGLE, LIST = f"{BASE}/record-measurement", f"{BASE}/measurements"


@pytest.fixture
def liar(liar: Liar) -> Liar:
    """One that can do no more than the base contract, until a test says so."""
    liar.can()
    return liar


# -- waiting for tasks ------------------------------------------------------------------------------------------------------------------


def test_the_wait_for_a_task_doubles_up_to_a_second(server: BaseContractServer, http_sink: MakeSink, clock: Clock) -> None:
    """A quick server is not kept waiting, and a slow one is not asked all the time."""
    server.faults.add(Fault.TASK_SLOW, polls=1_000)
    receipt = http_sink(server.url, acknowledge_timeout_s=5.0, sleep=clock.sleep, clock=clock).send(make_batch({}), stopping=go_on)
    assert receipt.exceptions[0].code == "task_pending"
    assert clock.slept == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 1.0]


def test_the_wait_ends_when_its_time_is_up_to_the_second(server: BaseContractServer, http_sink: MakeSink) -> None:
    """Four questions in four seconds: at 0, 0, 1, 2 and 3."""
    clock = Clock(0.0, step_s=1.0)
    server.faults.add(Fault.TASK_SLOW, polls=1_000)
    sink = http_sink(server.url, acknowledge_timeout_s=3.0, sleep=clock.sleep, clock=clock)
    assert sink.send(make_batch({}), stopping=go_on).exceptions[0].fate is Fate.IN_DOUBT
    assert (server.requests[TASK], clock()) == (5, 3.0)


def test_each_task_that_ends_gives_the_others_their_time_anew(server: BaseContractServer, http_sink: MakeSink) -> None:
    """The limit is for a server at which nothing moves, not for a long batch."""
    clock = Clock(0.0, step_s=1.0)
    for polls in (3, 7, 11):
        server.faults.add(Fault.TASK_SLOW, polls=polls)
    sink = http_sink(server.url, keyed=False, acknowledge_timeout_s=5.0, sleep=clock.sleep, clock=clock)
    assert sink.send(make_batch({}, {}, {}), stopping=go_on).exceptions == {}
    assert clock() > 5.0


def tasks(liar: Liar, *statuses: int) -> None:
    """The next rows have the tasks t-0, t-1 ..., which are completed or answered with these statuses."""
    numbers = iter(range(100))
    liar.answers[SINGLE] = lambda body: (200, {"task_id": f"t-{next(numbers)}"})
    for number, status in enumerate(statuses):
        liar.answers[f"{BASE}/task/t-{number}"] = (status, {"status": "completed", "result": {"measurement_id": f"m-{number}"}})


@pytest.mark.parametrize(("status", "asked"), [(500, 5), (503, 5), (499, 8), (429, 8), (404, 8)])
def test_five_server_failures_in_a_row_end_the_questions_about_tasks(liar: Liar, http_sink: MakeSink, status: int, asked: int) -> None:
    """A refusal is an answer; whatever it carries in its body, a failure is no acknowledgement."""
    tasks(liar, *[status] * 8)
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 8), stopping=go_on)
    assert len(liar.asked("task/")) == asked
    assert [outcome.fate for outcome in receipt.exceptions.values()] == [Fate.IN_DOUBT] * 8
    assert [receipt.exceptions[row].task_id for row in range(asked, 8)] == [f"t-{row}" for row in range(asked, 8)]
    assert {receipt.exceptions[row].code for row in range(asked, 8)} <= {"task_pending"}
    assert all("stopped answering" in receipt.exceptions[row].reason for row in range(asked, 8))


def test_a_task_that_is_answered_for_ends_a_row_of_failures(liar: Liar, http_sink: MakeSink) -> None:
    """Four, one, and four more."""
    tasks(liar, *[500] * 4, 200, *[500] * 4, 200)
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch(*[{}] * 10), stopping=go_on)
    assert len(liar.asked("task/")) == 10
    assert sorted(receipt.exceptions) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert (receipt.measurement_ids[4], receipt.measurement_ids[9]) == ("m-4", "m-9")


@pytest.mark.parametrize("name", ["a/b", "../health", "a?b=c", "a b", "ä"])
def test_the_id_of_a_task_is_one_part_of_the_path_whatever_it_is(liar: Liar, http_sink: MakeSink, name: str) -> None:
    """When it is asked for in the batch, and when it is asked for later."""
    liar.answers[SINGLE] = (200, {"task_id": name})
    sink = http_sink(liar.url)
    sink.profile()
    sink.send(make_batch({}), stopping=go_on)
    sink.settle([replace(doubt, task_id=name) for doubt in doubts_of(make_batch({}))])
    first, second = liar.requests[-3], liar.requests[-1]
    assert first == second
    assert first.startswith(f"{BASE}/task/")
    assert not {"/", "?", " ", "ä"} & set(first.removeprefix(f"{BASE}/task/"))


MADE = {"id": 7, "measurement_id": "m-7"}


@pytest.mark.parametrize(
    ("capabilities", "result", "measurement_id"),
    [
        ([], {"measurement_id": "m-7", "measurement": MADE}, "7"),
        ([], {"measurement_id": "m-7"}, "m-7"),
        ([], {"measurement": {"id": 0}}, "0"),
        ([], {"measurement": "gone"}, None),
        ([], "gone", None),
        (["idempotency"], {"measurement_id": "m-7", "measurement": MADE}, "m-7"),
        (["idempotency"], {"measurement": MADE}, "7"),
        (["idempotency"], {}, None),
    ],
    ids=str,
)
def test_a_completed_task_names_the_measurement_as_well_as_it_can(
    liar: Liar, http_sink: MakeSink, capabilities: list[str], result: object, measurement_id: str | None
) -> None:
    """By `id`, which is one row's for good, where measurement_id may repeat. A row without a name is delivered too."""
    liar.can(*capabilities)
    tasks(liar, 200)
    liar.answers[f"{BASE}/task/t-0"] = (200, {"status": "completed", "result": result})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}), stopping=go_on)
    assert (receipt.exceptions, list(receipt.measurement_ids)) == ({}, [measurement_id])


# -- ending doubts ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "settlement"),
    [
        ((200, {"status": "completed", "result": {"measurement_id": "m-7", "measurement": MADE}}), Settlement(Answer.STORED, "7")),
        ((200, {"status": "pending"}), Settlement(Answer.UNKNOWN)),
        ((200, {"status": "running"}), Settlement(Answer.UNKNOWN)),
        ((200, {"status": "failed", "message": "no"}), Settlement(Answer.ABSENT)),
        ((404, {"detail": "Task not found"}), Settlement(Answer.ABSENT)),
        ((404, {"status": "pending"}), Settlement(Answer.ABSENT)),
        ((500, {"status": "failed"}), Settlement(Answer.UNKNOWN)),
        ((500, {"status": "completed"}), Settlement(Answer.UNKNOWN)),
        ((200, b"no JSON"), Settlement(Answer.UNKNOWN)),
        ((200, {"status": "lost"}), Settlement(Answer.UNKNOWN)),
    ],
    ids=str,
)
def test_an_absence_is_believed_once_the_task_has_ended(liar: Liar, http_sink: MakeSink, end: Said, settlement: Settlement) -> None:
    """Without a task it is believed at once."""
    liar.answers[f"{BASE}/task/t"] = end
    sink = http_sink(liar.url)
    sink.profile()
    (doubt,) = doubts_of(make_batch({}))
    assert sink.settle([replace(doubt, task_id="t"), doubt]) == [settlement, Settlement(Answer.ABSENT)]
    assert len(liar.asked("task/")) == 1


def listed(doubt: Doubt) -> Mapping[str, Any]:
    return {"id": 7, "measurement_id": "m-7", "measurement_source": f"benchmark:{doubt.key}"}


def test_a_doubt_that_the_listing_shows_is_stored_whatever_its_task(liar: Liar, http_sink: MakeSink) -> None:
    """Nobody is asked about the task."""
    (doubt,) = doubts_of(make_batch({}))
    liar.answers[LIST] = (200, {"measurements": [listed(doubt)]})
    sink = http_sink(liar.url)
    sink.profile()
    assert sink.settle([replace(doubt, task_id="t")]) == [Settlement(Answer.STORED, "7")]
    assert liar.asked("task/") == []


@pytest.mark.parametrize(
    ("capabilities", "keyed", "asked", "answer"),
    [
        (["idempotency"], True, 1, Answer.STORED),
        (["idempotency"], False, 0, Answer.ABSENT),
        ([], True, 1, Answer.STORED),
        ([], False, 1, Answer.STORED),
    ],
)
def test_where_a_second_try_is_harmless_a_listing_that_carries_no_keys_is_not_asked(
    liar: Liar, http_sink: MakeSink, capabilities: list[str], keyed: bool, asked: int, answer: Answer
) -> None:
    """One that carries them is: it may save the second try."""
    liar.can(*capabilities)
    (doubt,) = doubts_of(make_batch({}))
    liar.answers[LIST] = (200, {"measurements": [listed(doubt)]})
    sink = http_sink(liar.url, keyed=keyed)
    sink.profile()
    before = len(liar.requests)
    assert sink.settle([doubt])[0].answer is answer
    assert len(liar.requests) - before == asked


def test_thousands_of_keys_are_looked_up_in_their_order(full_server: FullServer, http_sink: MakeSink) -> None:
    """A thousand at a time."""
    sink = http_sink(full_server.url)
    sink.profile()
    batch = make_batch(*[{}] * 1_100)
    sent = batch.take([0, 999, 1_000, 1_099])
    receipt = sink.send(sent, stopping=go_on)
    settlements = sink.settle(doubts_of(batch))
    assert len(settlements) == 1_100
    stored = {row: settlement.measurement_id for row, settlement in enumerate(settlements) if settlement.answer is Answer.STORED}
    assert stored == dict(zip((0, 999, 1_000, 1_099), receipt.measurement_ids, strict=True))


def test_a_window_that_shows_all_doubts_is_the_last(server: BaseContractServer, http_sink: MakeSink) -> None:
    """However many older measurements there are."""
    for _ in range(1_500):
        server.store.insert(model_name="gpt2")
    sink = http_sink(server.url)
    batch = make_batch({})
    assert sink.send(batch, stopping=go_on).exceptions == {}
    assert sink.settle(doubts_of(batch))[0].answer is Answer.STORED
    assert server.requests[LISTING] == 1


def test_somebodys_nan_in_another_model_does_not_hide_ours(server: BaseContractServer, http_sink: MakeSink) -> None:
    """The window shrinks for the model that is asked about, past its own NaN alone."""
    sink = http_sink(server.url)
    server.store.insert(model_name="gpt2", throughput=float("nan"))
    batch = make_batch({})
    sink.send(batch, stopping=go_on)
    server.store.insert(model_name="another", throughput=float("nan"))
    assert sink.settle(doubts_of(batch))[0].answer is Answer.STORED


def test_where_only_another_model_has_a_nan_nothing_is_left_open(server: BaseContractServer, http_sink: MakeSink) -> None:
    """The listing is asked for the model alone, and so what it does not show is absent."""
    sink = http_sink(server.url)
    ours, never = make_batch({}), make_batch({}, first=2)
    sink.send(ours, stopping=go_on)
    server.store.insert(model_name="another", throughput=float("nan"))
    assert [sink.settle(doubts_of(batch))[0].answer for batch in (ours, never)] == [Answer.STORED, Answer.ABSENT]


@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [(401, SinkDenied, 1), (403, SinkDenied, 1), (402, None, 1), (404, None, 1), (429, None, 1), (503, None, 1), (500, None, 10)],
)
def test_a_listing_that_does_not_work_settles_nothing(
    liar: Liar, http_sink: MakeSink, status: int, error: type[Exception] | None, asked: int
) -> None:
    """Only a refused key ends the run; after a 500, which one NaN may cause, smaller windows are tried."""
    sink = http_sink(liar.url)
    sink.profile()
    liar.answers[LIST] = (status, {"detail": "no"})
    before = len(liar.requests)
    if error is None:
        assert sink.settle(doubts_of(make_batch({}))) == [Settlement(Answer.UNKNOWN)]
    else:
        with pytest.raises(error):
            sink.settle(doubts_of(make_batch({})))
    assert len(liar.requests) - before == asked


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_listing_that_does_not_work_is_not_taken_for_empty(liar: Liar, http_sink: MakeSink, status: int) -> None:
    """A verification would find everything lost."""
    sink = http_sink(liar.url)
    sink.profile()
    liar.answers[LIST] = (status, {"measurements": []})
    with pytest.raises(SinkDenied if status == 401 else SinkUnreachable):
        list(sink.listing())
