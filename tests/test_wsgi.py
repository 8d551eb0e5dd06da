"""A request to an application in this process is the request that a socket would have carried, and so is the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import requests

from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL, WSGIAdapter


class Application:
    """Remembers what it was asked for, and answers what a test says."""

    def __init__(self, status: str = "200 OK", pieces: Iterable[bytes] = (b"{}",), **headers: str) -> None:
        self.status, self.pieces, self.headers = status, pieces, headers
        self.environ: dict[str, Any] = {}
        self.body = b""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.environ = environ
        self.body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(self.status, [(name.replace("_", "-"), value) for name, value in self.headers.items()])
        return self.pieces


def call(application: Application, method: str = "GET", path: str = "/", **options: Any) -> Reply | NotSent | NoAnswer:
    exchange = Exchange(IN_PROCESS_URL, api_key="secret", timeout_s=1.0, adapter=WSGIAdapter(application))
    try:
        return exchange.call(method, path, **options)
    finally:
        exchange.close()


def test_method_path_query_headers_and_body_arrive() -> None:
    """With a length that is the body's, in bytes."""
    application = Application()
    call(application, "POST", "/api/caf%C3%A9?limit=5&model_name=a%20b", json_body={"name": "ä"}, headers={"Idempotency-Key": "k"})
    environ = application.environ
    assert (environ["REQUEST_METHOD"], environ["QUERY_STRING"]) == ("POST", "limit=5&model_name=a%20b")
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/api/café"
    assert (environ["HTTP_HOST"], environ["wsgi.url_scheme"]) == ("in-process.invalid", "http")
    assert (environ["HTTP_IDEMPOTENCY_KEY"], environ["HTTP_X_API_KEY"]) == ("k", "secret")
    assert environ["CONTENT_TYPE"] == "application/json"
    assert json.loads(application.body) == {"name": "ä"}
    assert int(environ["CONTENT_LENGTH"]) == len(application.body)


def test_a_request_without_a_body_has_none() -> None:
    """Nothing to read, and a length of nothing."""
    application = Application()
    call(application)
    assert application.environ["REQUEST_METHOD"] == "GET"
    assert int(application.environ.get("CONTENT_LENGTH") or 0) == 0
    assert application.environ["wsgi.input"].read() == b""


def test_a_body_of_text_is_sent_as_its_bytes() -> None:
    """requests keeps a text as it is until it is sent."""
    application = Application()
    with requests.Session() as session:
        session.mount(IN_PROCESS_URL, WSGIAdapter(application))
        session.post(f"{IN_PROCESS_URL}/x", data="plain text")
    assert application.body == b"plain text"


@pytest.mark.parametrize(
    ("application", "answer"),
    [
        (Application(pieces=[b'{"a"', b": ", b"1}"]), Reply(200, {"a": 1}, None, None)),
        (Application("201 Created", [b""]), Reply(201, None, None, None)),
        (Application("404 Not Found Here", [b'{"detail": "no"}']), Reply(404, {"detail": "no"}, None, None)),
        (Application("503 Service Unavailable", [], Retry_After="7"), Reply(503, None, 7.0, None)),
        (Application("307 Temporary Redirect", [], Location="/elsewhere"), Reply(307, None, None, "/elsewhere")),
    ],
    ids=lambda value: value.status if isinstance(value, Application) else "",
)
def test_status_headers_and_body_come_back(application: Application, answer: Reply) -> None:
    """Whatever the pieces are in which the application hands over the body."""
    assert call(application) == answer


def test_an_application_that_raises_in_the_middle_of_its_answer_gave_none(caplog: pytest.LogCaptureFixture) -> None:
    """It may have acted on the request. What it raised is named, and its traceback is in the log."""

    def pieces() -> Iterator[bytes]:
        yield b'{"task_id": '
        raise ZeroDivisionError("from deep inside")

    answer = call(Application(pieces=pieces()))
    assert isinstance(answer, NoAnswer)
    assert "the application raised ZeroDivisionError" in answer.why
    assert any(record.exc_info for record in caplog.records)
