"""Servers that answer nonsense, and requests that cannot be made: nothing is taken for an acknowledgement, nothing raises what it should not."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.errors import SinkDenied, SinkUnreachable
from benchbridge_plugin.model import Answer, Fate
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.verdicts import unusable
from tests.conftest import MakeSink, World, doubts_of, fill, go_on, make_batch
from tests.kit.base_contract import BASE, LISTING, BaseContractServer, Fault
from tests.liar import Liar

UNSTORABLE = "\ud800 and \0"
RECORD = "/api/predictive-performance/record-measurement"
TASK = "/api/predictive-performance/task/t"


@pytest.mark.parametrize(
    ("answers", "states"),
    [
        ({RECORD: (422, {"detail": UNSTORABLE})}, {"rejected": 2}),
        ({RECORD: (200, {"task_id": UNSTORABLE})}, {"sending": 2}),
        ({RECORD: (200, {"task_id": "t"}), TASK: (200, {"status": "completed", "result": {"id": UNSTORABLE}})}, {"delivered": 2}),
        ({RECORD: (200, {"task_id": "t"}), TASK: (200, {"status": "failed", "error": UNSTORABLE})}, {"retrying": 2}),
    ],
    ids=["detail", "task", "measurement", "error"],
)
def test_texts_that_no_database_keeps_are_no_harm(
    answers: dict[str, tuple[int, Any]], states: dict[str, int], world: World, liar: Liar, http_sink: MakeSink
) -> None:
    """Lone surrogates and null characters are valid JSON, and neither SQLite nor PostgreSQL takes them."""
    liar.answers["/api/predictive-performance/health"] = (404, {})
    liar.answers |= answers
    fill(world, 2)
    world.sync(http_sink(liar.url))
    assert world.states() == states


BULK = "/api/predictive-performance/record-measurements"
CREATED = {"status": "created", "measurement_id": "m-1"}


@pytest.mark.parametrize(
    "results",
    [[], [CREATED], [CREATED] * 3, None, "created", {"0": CREATED}, [None, None], [{"status": "perhaps"}] * 2, [[], 5]],
    ids=repr,
)
def test_a_bulk_answer_that_does_not_fit_delivers_nothing(liar: Liar, http_sink: MakeSink, results: object) -> None:
    """A count that is wrong cannot be put beside the rows, so none of them is acknowledged. Their keys make a second try harmless."""
    liar.answers[BULK] = (200, {"results": results})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}), stopping=go_on)
    assert [receipt.exceptions[row].fate for row in (0, 1)] == [Fate.FAILED] * 2


def test_ids_of_any_type_are_kept_as_text(liar: Liar, http_sink: MakeSink) -> None:
    """A number, nothing, a list, a text too long to be an id: the row is delivered, as the server says."""
    ids: list[object] = [12, None, [1], "x" * 10_000]
    liar.answers[BULK] = (200, {"results": [{"status": "created", "measurement_id": measurement_id} for measurement_id in ids]})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}, {}, {}), stopping=go_on)
    assert receipt.exceptions == {}
    assert list(receipt.measurement_ids) == ["12", None, "[1]", "x" * 500]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_bulk_route_that_does_not_take_the_batch_leaves_it_unsent(liar: Liar, http_sink: MakeSink, status: int) -> None:
    """Nothing was acted on, and nothing else would be."""
    liar.answers[BULK] = (status, {"detail": "no"})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}), stopping=go_on)
    assert [receipt.exceptions[row].fate for row in (0, 1)] == [Fate.NOT_SENT] * 2
    assert isinstance(receipt.stop, SinkDenied if status in (401, 403) else SinkUnreachable)


def test_a_bulk_route_that_redirects_ends_the_run_and_its_rows_are_sent_again(liar: Liar, http_sink: MakeSink) -> None:
    """Each row with the reason, for the next batch may take another way."""
    liar.answers[BULK] = (307, {"detail": "elsewhere"})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}), stopping=go_on)
    assert [(outcome.fate, outcome.code) for outcome in receipt.exceptions.values()] == [(Fate.FAILED, "redirected")] * 2
    assert isinstance(receipt.stop, SinkUnreachable)


def test_a_bulk_refusal_of_the_whole_is_tried_row_by_row(liar: Liar, http_sink: MakeSink) -> None:
    """A 422 for a thousand rows must not reject the 999 that are right."""
    liar.answers[BULK] = (422, {"detail": "one of them is wrong"})
    liar.answers["/api/predictive-performance/record-measurement"] = (200, {"task_id": "t"})
    liar.answers["/api/predictive-performance/task/t"] = (200, {"status": "completed", "result": {"measurement_id": "m-1"}})
    sink = http_sink(liar.url)
    sink.profile()
    receipt = sink.send(make_batch({}, {}), stopping=go_on)
    assert receipt.exceptions == {}
    assert list(receipt.measurement_ids) == ["m-1", "m-1"]


@pytest.mark.parametrize("found", [None, [], 5, "x"])
def test_a_lookup_that_answers_nonsense_settles_nothing(liar: Liar, http_sink: MakeSink, found: object) -> None:
    """Nonsense is not "absent": that would send everything again."""
    liar.answers["/api/predictive-performance/measurements/lookup"] = (200, {"found": found})
    sink = http_sink(liar.url)
    sink.profile()
    with pytest.raises(SinkUnreachable):
        sink.settle(doubts_of(make_batch({})))


def test_a_listing_that_is_cut_short_in_silence_proves_no_absence(liar: Liar, http_sink: MakeSink) -> None:
    """Asked for 4,000 the server shows the same 1,000 as before: a row behind them may well be stored, and stays in doubt."""
    others = [{"id": number, "measurement_source": "somebody else"} for number in range(1_000)]
    liar.answers["/api/predictive-performance/measurements"] = (200, {"count": 1_000, "measurements": others})
    liar.answers["/api/predictive-performance/health"] = (404, {})
    sink = http_sink(liar.url)
    sink.profile()
    (settlement,) = sink.settle(doubts_of(make_batch({})))
    assert settlement.answer is Answer.UNKNOWN


def test_of_a_listing_whose_larger_window_breaks_the_smaller_one_counts(liar: Liar, http_sink: MakeSink) -> None:
    """What it showed is stored; what it did not show may lie below, and stays in doubt."""
    shown = make_batch({})
    mine = {"id": 7, "measurement_source": shown.column("source")[0].as_py()}
    others = [{"id": number, "measurement_source": "somebody else"} for number in range(10, 1_009)]
    windows = iter([(200, {"measurements": [*others, mine]})])
    liar.answers[f"{BASE}/measurements"] = lambda body: next(windows, (500, {"detail": "NaN"}))
    liar.answers[f"{BASE}/health"] = (404, {})
    settlements = http_sink(liar.url).settle(doubts_of(make_batch({}, {})))
    assert [(settlement.answer, settlement.measurement_id) for settlement in settlements] == [(Answer.STORED, "7"), (Answer.UNKNOWN, None)]
    assert len(liar.asked("measurements")) == 2


@pytest.mark.parametrize(
    "value",
    [[], {}, {"measurements": None}, {"measurements": "many"}, b"<!doctype html>", b"", b"[" * 100_000, b"\xff\xfe"],
    ids=lambda value: repr(value)[:20],
)
def test_something_else_that_answers_200_is_no_predictive_api(liar: Liar, http_sink: MakeSink, value: object) -> None:
    """A web server that gives its start page for every path is found out before a row is touched."""
    liar.answers["/api/predictive-performance/measurements"] = (200, value)
    with pytest.raises(SinkUnreachable, match="not as a predictive API"):
        http_sink(liar.url).profile()


@pytest.mark.parametrize("health", [{"capabilities": "bulk"}, {"capabilities": None}, [], "ok", {"capabilities": [5, None]}])
def test_capabilities_that_are_no_list_of_names_are_none(liar: Liar, http_sink: MakeSink, health: object) -> None:
    """Nothing is used that was not offered plainly."""
    liar.answers["/api/predictive-performance/health"] = (200, health)
    assert not http_sink(liar.url).profile().capabilities & {"bulk", "lookup", "idempotency", "measured_at"}


@pytest.mark.parametrize(
    ("detail", "sentence"),
    [
        ([{"loc": ["body", "batch_size"], "msg": "Input should be a valid integer"}], "batch_size: Input should be a valid integer"),
        ([{"loc": 7, "msg": "odd"}], "7: odd"),
        ([{"msg": ["a"]}, 5, None], "['a']"),
        ("plain words", "plain words"),
        ({"a": 1}, "{'a': 1}"),
        (None, "HTTP 422"),
        ([], "HTTP 422"),
    ],
)
def test_a_refusal_in_any_form_becomes_a_sentence(detail: object, sentence: str) -> None:
    """FastAPI's list, a problem document's text, or something else: never an exception."""
    assert sentence in Reply(422, {"detail": detail}, None, None).sentence


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid", "http://[::1", "ftp://example.org", "http://a b/"])
def test_a_request_that_cannot_be_made_was_not_sent(url: str) -> None:
    """Refused, unknown, malformed, or no protocol of ours: an answer, not an exception."""
    exchange = Exchange(url, api_key=None, timeout_s=1.0)
    assert isinstance(exchange.call("GET", "/health"), NotSent)
    exchange.close()


def test_each_thread_has_a_session_of_its_own_and_close_reaches_all(server: BaseContractServer) -> None:
    """Connections opened by other threads are let go of too."""
    exchange = Exchange(server.url, api_key=None, timeout_s=1.0)
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(exchange.call("GET", "/health"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exchange.close()
    assert all(isinstance(answer, Reply) for answer in answers)
    assert len(answers) == 4


def test_texts_that_no_database_keeps_are_replaced_wherever_they_stand(liar: Liar) -> None:
    """In names, lists and values; everything else of the answer is as it came."""
    liar.answers["/odd"] = (200, {"a\0": ["b\0", {"c": "\ud800"}, 1, None], "d": 2.5, "e": "plain"})
    exchange = Exchange(liar.url, api_key=None, timeout_s=5.0)
    answer = exchange.call("GET", "/odd")
    exchange.close()
    assert isinstance(answer, Reply)
    assert answer.data == {"a\ufffd": ["b\ufffd", {"c": "\ufffd"}, 1, None], "d": 2.5, "e": "plain"}


def test_an_answer_larger_than_any_is_given_up(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has the request; what it made of it is not known."""
    monkeypatch.setattr("benchbridge_plugin.sinks.exchange._LARGEST_ANSWER", 100_000)
    exchange = Exchange(liar.url, api_key=None, timeout_s=5.0)
    for size, kind in ((90_000, Reply), (200_000, NoAnswer)):
        liar.answers["/large"] = (200, "x" * size)
        assert isinstance(exchange.call("GET", "/large"), kind)
    exchange.close()


def test_a_server_that_takes_no_connection_was_not_sent_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is full, and it does not look."""
    monkeypatch.setattr("benchbridge_plugin.sinks.exchange._CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, contextlib.ExitStack() as queue:
        for _ in range(8):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        exchange = Exchange(f"http://127.0.0.1:{deaf.getsockname()[1]}", api_key=None, timeout_s=5.0)
        answer = exchange.call("POST", "/record", json_body={})
        exchange.close()
    assert answer == NotSent("no connection within the time limit")


@contextlib.contextmanager
def raw(answer: bytes | None) -> Iterator[str]:
    """Host and port of a server that reads once and answers these bytes; None: it waits, and leaves the other side waiting."""
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                held.append(connection)
                connection.recv(65_536)
                if answer is not None:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


NGINX = b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"


@pytest.mark.parametrize(
    ("scheme", "answer", "said"),
    [
        ("https", None, "it takes the connection and does not answer in TLS (is it http, not https?)"),
        ("https", b"", "it takes the connection and does not answer in TLS (is it http, not https?)"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "what is there does not speak TLS (is it http, not https?)"),
        ("http", b"", "remote end closed connection (is it https, not http?)"),
        ("http", b"\x15\x03\x01\x00\x02\x02\x46", "what is there does not speak HTTP (is it https, not http?)"),
        ("http", b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(NGINX), NGINX), "is it https, not http?"),
    ],
    ids=["silent", "closed", "http", "closing", "alert", "nginx"],
)
def test_a_url_with_the_wrong_scheme_is_asked_about(
    http_sink: MakeSink, monkeypatch: pytest.MonkeyPatch, scheme: str, answer: bytes | None, said: str
) -> None:
    """Also where the server only waits for a request that makes sense to it, as waitress does. It is a question: what else it may be is not known."""
    monkeypatch.setattr("benchbridge_plugin.sinks.exchange._CONNECT_TIMEOUT_S", 0.2)
    with raw(answer) as place, pytest.raises(SinkUnreachable) as caught:
        http_sink(f"{scheme}://{place}").profile()
    assert said in str(caught.value)
    assert "predictive_api_url" in caught.value.guidance


def test_a_server_that_has_answered_before_is_not_asked_about_its_scheme(server: BaseContractServer) -> None:
    """It just closed the connection."""
    exchange = Exchange(server.url, api_key=None, timeout_s=5.0)
    assert isinstance(exchange.call("GET", f"{BASE}/health"), Reply)
    server.faults.add(Fault.RESET_BEFORE_STORE, None, on=LISTING)
    answer = exchange.call("GET", f"{BASE}/measurements?limit=1")
    exchange.close()
    assert answer == NoAnswer("connection reset by peer")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_server_whose_certificate_nobody_vouches_for_is_not_sent_anything(liar: Liar, tmp_path: Path) -> None:
    """With the certificate as `ca_bundle` it is; without one a key must not go to whoever answers."""
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=liar -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    liar._listener.socket = context.wrap_socket(liar._listener.socket, server_side=True)
    answers = []
    url = liar.url.replace("http:", "https:")
    for at, ca_bundle in ((url, None), (url.replace("127.0.0.1", "localhost"), str(made)), (url, str(key)), (url, str(made))):
        exchange = Exchange(at, api_key="secret", timeout_s=5.0, ca_bundle=ca_bundle)
        answers.append(exchange.call("GET", f"{BASE}/health"))
        exchange.close()
    refused, misnamed, empty, answered = answers
    assert refused == NotSent("certificate verify failed: self-signed certificate")
    assert "ca_bundle (BENCHBRIDGE_CA_BUNDLE)" in unusable(url, refused).guidance
    assert isinstance(misnamed, NotSent)
    assert "not valid for 'localhost'" in misnamed.why
    assert "predictive_api_url" in unusable(url, misnamed).guidance
    assert "ca_bundle" in unusable(url, empty).guidance
    assert isinstance(answered, Reply)
    assert [(headers["X-API-Key"], headers["User-Agent"]) for headers in liar.headers] == [("secret", "benchbridge")]
