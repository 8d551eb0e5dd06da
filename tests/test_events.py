"""Events: what they say, that none is lost, and how a webhook and plugins get them."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, hookspecs
from benchbridge_plugin.coercion import signing_key
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.courier import Courier
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.events import TYPES
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.model import RunSummary
from benchbridge_plugin.webhook import Webhook, signature
from tests.conftest import LEASE_S, REFUSED, Book, Clock, make_batch
from tests.kit import ledgers
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import BenchmarkDatabase
from tests.kit.receiver import Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAGE = Path(__file__).parents[1] / "docs/events.md"


@pytest.fixture
def book(tmp_path: Path, clock: Clock) -> Iterator[Book]:
    """A ledger that keeps events for a webhook, and a run that holds the lease."""
    ledger = Ledger(ledgers.new_url(tmp_path / "ledger.sqlite"), now=clock, events=frozenset(TYPES))
    yield Book(ledger, clock)
    ledger.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def courier(book: Book, url: str) -> Courier:
    webhook = Webhook(url, SECRET, timeout_s=5.0, ca_bundle=None, now=book.clock)
    return Courier(lambda: book.ledger.outbox, webhook, book.clock, jitter=lambda low, high: high)


def finish(book: Book, **changes: Any) -> None:
    book.ledger.runs.finish(RunSummary(book.holder.run_id, "succeeded", "cli", False, book.clock(), None, **changes))


def events_in(book: Book) -> list[dict[str, Any]]:
    """Everything in the outbox, taken out of it."""
    found = []
    while (parcel := book.ledger.outbox.take(60.0)) is not None:
        found.append(json.loads(parcel.payload))
        book.ledger.outbox.delivered(parcel)
    return found


def outcomes(book: Book) -> dict[tuple[str, ...], float]:
    return dict(book.ledger.meters([book.source_id])[book.source_id].labelled("webhook"))


# -- what is told ---------------------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_told_with_its_figures_and_the_accounting(book: Book) -> None:
    """All that GET /runs says of it, times as ISO 8601."""
    book.compared(total=5)
    finish(book, synced=2, message="2 synced.")
    (event,) = events_in(book)
    assert (event["type"], event["version"], event["source"]) == ("run.finished", 1, "bench")
    assert re.fullmatch(r"evt_[0-9a-f]{32}", event["id"])
    assert event["occurred_at"] == event["data"]["run"]["finished_at"] == "2027-01-15T08:00:00Z"
    assert (event["data"]["run"]["synced"], event["data"]["run"]["state"], event["data"]["run"]["kind"]) == (2, "succeeded", "python")
    assert (event["data"]["accounting"]["total"], event["data"]["accounting"]["balanced"]) == (5, True)


def test_a_new_kind_of_refusal_is_told_once(book: Book) -> None:
    """By its code, with how many there are and a sentence; not again in later runs."""
    book.compared(total=3)
    book.claim(make_batch(REFUSED, REFUSED))
    finish(book, rejected=2)
    book.ledger.leases.release(book.holder.lease)
    first = [event for event in events_in(book) if event["type"] == "refusals.new"]
    told = {"code": "hardware_unsupported", "count": 2, "example": "Hardware 'tpu' is not taken."}
    assert [event["data"] for event in first] == [{"run_id": book.holder.run_id, "refusals": [told]}]
    book.holder = book.take()
    book.claim(make_batch(REFUSED, first=3))
    finish(book, rejected=1)
    assert [event["type"] for event in events_in(book)] == ["run.finished"]


def test_a_run_whose_process_died_is_told_of_by_the_next_one(book: Book) -> None:
    """Its end is recorded when the next run begins, and the event with it."""
    book.clock.advance(LEASE_S + 1)
    book.take("another")
    (event,) = events_in(book)
    assert (event["data"]["run"]["state"], event["data"]["run"]["error_code"]) == ("failed", "process_gone")


def test_an_end_that_is_not_recorded_is_not_told(book: Book) -> None:
    """A run ends once, and so does its event."""
    finish(book)
    finish(book)
    assert len(events_in(book)) == 1


def test_without_a_webhook_nothing_is_written(tmp_path: Path, clock: Clock) -> None:
    """Off by default, and then it costs nothing."""
    ledger = Ledger(ledgers.new_url(tmp_path / "quiet.sqlite"), now=clock)
    quiet = Book(ledger, clock)
    finish(quiet)
    assert (ledger.outbox.waiting(), events_in(quiet)) == ({}, [])
    ledger.close()


# -- the webhook ----------------------------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification, to the letter."""
    body = b'{"test": 2432232314}'
    assert (
        signature(signing_key(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_the_example_of_the_page_verifies_what_is_sent(book: Book, receiver: Receiver) -> None:
    """And takes nothing that was changed, is old, or is signed with another secret."""
    scope: dict[str, Any] = {}
    example = next(code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "def verify" in code)
    exec(example, scope)
    book.clock.time = time.time()
    finish(book)
    assert courier(book, receiver.url).send_due() is None
    (told,) = receiver.told
    assert scope["verify"](SECRET, told.headers, told.body)
    assert json.loads(told.body)["id"] == told.headers["webhook-id"]
    assert told.headers["content-type"] == "application/json"
    assert not scope["verify"](SECRET, told.headers, told.body + b" ")
    assert not scope["verify"]("whsec_" + "A" * 32, told.headers, told.body)
    assert not scope["verify"](SECRET, {**told.headers, "webhook-timestamp": "1"}, told.body)
    assert outcomes(book) == {("run.finished", "delivered"): 1}


def test_a_receiver_that_fails_is_told_again_later_with_the_same_id(book: Book, receiver: Receiver) -> None:
    """The waits grow, Retry-After is kept to, and nothing is sent before its time."""
    receiver.answers += [(500, {}), (503, {"Retry-After": "120"})]
    finish(book)
    carrying = courier(book, receiver.url)
    assert carrying.send_due() == 5.0
    assert carrying.send_due() == 5.0
    assert len(receiver.told) == 1
    book.clock.advance(5)
    assert carrying.send_due() == 60.0, "it looks every minute, whatever the wait"
    book.clock.advance(119)
    carrying.send_due()
    assert len(receiver.told) == 2
    book.clock.advance(1)
    assert carrying.send_due() is None
    assert len({told.headers["webhook-id"] for told in receiver.told}) == 1
    assert len(receiver.told) == 3
    assert outcomes(book) == {("run.finished", "failed"): 2, ("run.finished", "delivered"): 1}


def test_a_redirect_is_not_followed(book: Book, receiver: Receiver) -> None:
    """Who answers in place of the receiver does not learn the event."""
    with Receiver() as elsewhere:
        receiver.answers.append((307, {"Location": elsewhere.url}))
        finish(book)
        assert courier(book, receiver.url).send_due() == 5.0
        assert elsewhere.told == []


@pytest.mark.parametrize(("answer", "after_s"), [(410, 0.0), (500, 3 * 86_400.0 + 1)])
def test_an_event_is_given_up_at_once_when_it_is_not_wanted_and_after_days_when_nobody_takes_it(
    book: Book, receiver: Receiver, answer: int, after_s: float
) -> None:
    """It is counted, and does not stand in the way of others."""
    receiver.answers.append((answer, {}))
    finish(book)
    book.clock.advance(after_s)
    assert courier(book, receiver.url).send_due() is None
    assert outcomes(book) == {("run.finished", "given_up"): 1}


def test_two_processes_do_not_send_the_same_and_a_dead_ones_is_sent_by_another(book: Book) -> None:
    """Who takes an event has it for a while; after that it is anybody's again."""
    finish(book)
    taken = book.ledger.outbox.take(60.0)
    assert taken is not None
    assert book.ledger.outbox.take(60.0) is None
    book.clock.advance(61)
    again = book.ledger.outbox.take(60.0)
    assert again is not None
    assert (again.event_id, again.attempts) == (taken.event_id, 2)
    book.ledger.outbox.put_back(taken, book.clock() + 1_000.0)  # a late failure is not the other's
    assert book.ledger.outbox.next_due_at() == book.clock() + 60.0
    book.ledger.outbox.delivered(again)
    book.ledger.outbox.delivered(taken)
    assert outcomes(book) == {("run.finished", "failed"): 1, ("run.finished", "delivered"): 1}


def test_an_event_that_is_put_back_leaves_another_one_with_who_is_sending_it(book: Book) -> None:
    """Both were tried as often."""
    finish(book)
    book.clock.advance(LEASE_S + 1)
    book.holder = book.take("another run")
    finish(book)
    mine, theirs = (book.ledger.outbox.take(60.0) for _ in range(2))
    assert mine is not None
    assert theirs is not None
    book.ledger.outbox.put_back(mine, book.clock())
    again = book.ledger.outbox.take(60.0)
    assert again is not None
    assert (again.event_id, book.ledger.outbox.take(60.0)) == (mine.event_id, None)


def test_an_event_of_a_clock_that_was_days_ahead_is_sent_all_the_same(book: Book) -> None:
    """It wrote it and took it, and was put right."""
    ahead_s = 3 * 86_400.0
    book.clock.advance(ahead_s)
    finish(book)
    taken = book.ledger.outbox.take(60.0)
    book.clock.advance(-ahead_s)
    again = book.ledger.outbox.take(60.0)
    assert taken is not None
    assert again is not None
    assert again.event_id == taken.event_id


def test_nobody_there_is_a_failed_attempt_and_no_error(book: Book) -> None:
    """The log has the receiver's name, and neither its path nor a trace."""
    finish(book)
    assert courier(book, "http://127.0.0.1:1/secret-path").send_due() == 5.0


# -- through the bridge ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "bench.duckdb"
    BenchmarkDatabase(path).insert(result_id=1)
    return path


def test_a_bridge_that_is_closed_has_told_of_its_run(database: Path, server: BaseContractServer, receiver: Receiver) -> None:
    """As a one-off command does: the event is out before it ends."""
    settings: dict[str, Any] = {"sync_days_lookback": 0, "webhook_url": receiver.url, "webhook_secret": SECRET}
    with BenchmarkPredictivePerformanceBridge(database, server.url, **settings) as bridge:
        run_id = bridge.sync_recent_results()["run_id"]
        listed = bridge.run(run_id)
    (told,) = receiver.told
    assert json.loads(told.body)["data"]["run"] == listed
    assert SECRET not in told.body.decode()
    assert str(database.parent) not in told.body.decode()


def test_a_webhook_that_is_down_neither_fails_nor_loses_anything(database: Path, server: BaseContractServer, receiver: Receiver) -> None:
    """What could not be sent is sent by the next process that uses the ledger."""
    settings: dict[str, Any] = {"sync_days_lookback": 0, "webhook_secret": SECRET}
    with BenchmarkPredictivePerformanceBridge(database, server.url, webhook_url="http://127.0.0.1:1/", **settings) as bridge:
        assert bridge.sync_recent_results()["success"] is True
    later = time.time() + 600
    with BenchmarkPredictivePerformanceBridge(database, server.url, webhook_url=receiver.url, now=lambda: later, **settings) as bridge:
        bridge.start()
        assert receiver.arrived.acquire(timeout=20)


def test_plugins_are_called_and_one_that_fails_harms_nobody(
    database: Path, server: BaseContractServer, caplog: pytest.LogCaptureFixture
) -> None:
    """In a thread of their own, with what a webhook would get."""
    called = threading.Event()
    seen: list[dict[str, Any]] = []

    class Good:
        @hookspecs.hookimpl
        def benchbridge_run_finished(self, event: dict[str, Any]) -> None:
            seen.append(event)
            called.set()

    class Bad:
        @hookspecs.hookimpl
        def benchbridge_run_finished(self, event: dict[str, Any]) -> None:
            event.clear()
            raise RuntimeError("no")

    plugins = (Bad(), Good(), Bad())
    for plugin in plugins:
        hookspecs.register(plugin)
    try:
        with BenchmarkPredictivePerformanceBridge(database, server.url, sync_days_lookback=0) as bridge:
            assert bridge.sync_recent_results()["synced"] == 1
            assert called.wait(20)
    finally:
        for plugin in plugins:
            hookspecs.unregister(plugin)
    assert (seen[0]["version"], seen[0]["data"]["run"]["synced"]) == (1, 1)
    assert caplog.text.count("a plugin failed on an event") == 2


def test_a_plugin_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group benchbridge; one that cannot be loaded is logged and left out."""
    for name, source in (("reacting", "from benchbridge_plugin.hookspecs import hookimpl\n"), ("broken", "raise ImportError\n")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[benchbridge]\n{name} = {name}_events\n")
        (tmp_path / f"{name}_events.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(hookspecs, "_manager", None)
    assert hookspecs.listening()
    assert "reacting_events" in sys.modules
    assert "broken_events" not in sys.modules


# -- settings -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"webhook_url": "https://example.org/x"}, "needs a webhook_secret"),
        ({"webhook_url": "ftp://example.org", "webhook_secret": SECRET}, "webhook_url"),
        ({"webhook_url": "https://example.org/x#y", "webhook_secret": SECRET}, "webhook_url"),
        ({"webhook_secret": "not base64!"}, "webhook_secret"),
        ({"webhook_secret": "whsec_c2hvcnQ="}, "webhook_secret"),
        ({"webhook_events": ["run.begun"]}, "webhook_events"),
    ],
)
def test_settings_that_make_no_sense_are_a_sentence(settings: dict[str, Any], said: str) -> None:
    """It names the key and never shows the secret."""
    with pytest.raises(ConfigError, match=said) as caught:
        BridgeConfig().with_changes(**settings)
    assert "c2hvcnQ" not in str(caught.value)
    assert "not base64!" not in str(caught.value)


def test_the_secret_is_never_shown() -> None:
    """Like every other one; an address may have a query."""
    config = BridgeConfig().with_changes(webhook_url="https://example.org/x?token=abc", webhook_secret=SECRET)
    assert config.redacted()["webhook_secret"] == "***"
    assert "abc" not in str(config.redacted()["webhook_url"])


def test_every_type_and_every_hook_is_on_the_page() -> None:
    """docs/events.md and the code agree both ways."""
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+\.\w+)` \|", page, re.MULTILINE)) == set(TYPES)
    hooks = {name for name in vars(hookspecs.Hooks) if name.startswith("benchbridge_")}
    assert set(re.findall(r"^\| `(\w+)\(event\)` \|", page, re.MULTILINE)) == hooks
