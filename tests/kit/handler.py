"""One connection to the base-contract server: routes, answers, and faults on the way out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, urlsplit

from tests.kit.connections import ConnectionServer, reset, wait_until_gone
from tests.kit.contract import BASE, Invalid, openapi, read_integer, read_measurement
from tests.kit.faults import HEALTH, LISTING, OPENAPI, RECORD, TASK, Fault, Strike
from tests.kit.store import has_non_finite

if TYPE_CHECKING:
    from tests.kit.base_contract import BaseContractServer

#: What a proxy with a full disk might send: announced as JSON, and none.
_GARBAGE = b'{"task_id": "measurement-\x00'

#: Query parameter of the listing -> the column it is compared with.
_FILTERS = {"model_name": "model_name", "model_family": "model_family", "hardware": "hardware_platform"}

#: Faults that break the answer after the request was carried out. The others take its place.
_ON_THE_WAY_OUT = {
    Fault.RESET_AFTER_STORE,
    Fault.SILENCE_AFTER_STORE,
    Fault.HALF_BODY_STORED,
    Fault.GARBAGE_STORED,
    Fault.SLOW_BYTES,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `stores` is the task whose measurement is stored when the response has been sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    stores: str | None = None


def _json(status: int, value: object, *, stores: str | None = None) -> Answer:
    return Answer(status, json.dumps(value, separators=(",", ":")).encode(), stores=stores)


def _plain(status: int, text: str, **headers: str) -> Answer:
    return Answer(status, text.encode(), "text/plain; charset=utf-8", headers)


class BaseContractHandler(BaseHTTPRequestHandler):
    """Handles the requests of one connection, one after the other. A subclass has the server it belongs to in `api`."""

    protocol_version = "HTTP/1.1"
    server_version = "base-contract"
    disable_nagle_algorithm = True
    api: BaseContractServer

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a test's output is the test's."""

    def _pause(self, seconds: float) -> bool:
        """Waits; true at once when the server closes, and then the connection is to end."""
        if not cast(ConnectionServer, self.server).closing.wait(seconds):
            return False
        self.close_connection = True
        return True

    def _handle(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.close_connection = True
            return self._send(_json(411, {"detail": "Length Required"}))
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        task_id = path.removeprefix(f"{BASE}/task/")
        found = path != task_id and "/" not in task_id
        route = TASK.replace("GET", self.command) if found else f"{self.command} {path}"
        self.api.count(route)
        if self.api.latency_s and self._pause(self.api.latency_s):
            return None
        if self.api.api_key is not None and path.startswith(BASE) and self.headers.get("X-API-Key") != self.api.api_key:
            return self._send(_json(401, {"detail": "Invalid API key"}))
        with self.api.loop:
            return self._answer(route, raw, task_id)

    def _answer(self, route: str, raw: bytes, task_id: str) -> None:
        try:
            if route == RECORD:
                measurement = read_measurement(raw, self.headers.get("Content-Type", ""))
                return self._struck(self.api.faults.draw(route, measurement), lambda strike: self._record(measurement, strike))
            query = dict(parse_qsl(urlsplit(self.path).query))
            return self._struck(self.api.faults.draw(route, query), lambda _: self._read(route, task_id, query))
        except Invalid as error:
            return self._send(_json(422, {"detail": error.detail}))

    def _record(self, measurement: dict[str, Any], strike: Strike) -> Answer:
        fault, store = strike.fault, self.api.store
        task_id = store.new_task(measurement, polls=strike.polls if fault is Fault.TASK_SLOW else None)
        answer = _json(200, {"task_id": task_id, "status": "pending"})
        if fault is Fault.TASK_SLOW:
            return answer
        if fault is Fault.TASK_FAILED:
            store.fail(task_id)
            return answer
        if fault in _ON_THE_WAY_OUT or fault is Fault.TASK_FORGOTTEN_STORED:
            store.complete(task_id)
        if fault in {Fault.TASK_FORGOTTEN_STORED, Fault.TASK_FORGOTTEN_LOST}:
            store.forget(task_id)
            return answer
        return replace(answer, stores=task_id)

    def _read(self, route: str, task_id: str, query: dict[str, str]) -> Answer:
        if route == TASK:
            task = self.api.store.poll(task_id)
            return _json(404, {"detail": "Task not found"}) if task is None else _json(200, task)
        if route == LISTING:
            return self._listing(query)
        if route == HEALTH:
            return _json(200, {"status": "healthy"})
        if route == OPENAPI:
            return _json(200, openapi())
        path = route.partition(" ")[2]
        if any(known.endswith(f" {path}") for known in (RECORD, TASK, LISTING, HEALTH, OPENAPI)):
            return _json(405, {"detail": "Method Not Allowed"})
        return _json(404, {"detail": "Not Found"})

    def _listing(self, query: dict[str, str]) -> Answer:
        filters: dict[str, Any] = {}
        for name, column in _FILTERS.items():
            if name in query:
                filters[column] = query[name]
        if "batch_size" in query:
            filters["batch_size"] = read_integer("batch_size", query["batch_size"])
        days = read_integer("days", query["days"]) if "days" in query else None
        limit = read_integer("limit", query.get("limit", "10"))
        rows = self.api.store.page(filters, days, limit) if limit >= 0 else None
        if rows is None or has_non_finite(rows):
            return _plain(500, "Internal Server Error")
        return _json(200, {"count": len(rows), "measurements": rows})

    def _struck(self, strike: Strike, carry_out: Callable[[Strike], Answer]) -> None:
        """Answers the request as far as the fault allows."""
        fault = strike.fault
        replaced = self._instead(strike)
        if replaced is not None:
            return self._send(replaced)
        if fault is Fault.RESET_BEFORE_STORE:
            return self._reset()
        if fault is Fault.SILENCE_BEFORE_STORE:
            return self._stay_silent()
        if fault is Fault.HALF_BODY_LOST:
            return self._send_half(_json(200, {"task_id": "measurement-00000000", "status": "pending"}))
        answer = carry_out(strike)
        if fault is Fault.RESET_AFTER_STORE:
            return self._reset()
        if fault is Fault.SILENCE_AFTER_STORE:
            return self._stay_silent()
        if fault is Fault.HALF_BODY_STORED:
            return self._send_half(answer)
        if fault is Fault.GARBAGE_STORED:
            return self._send(Answer(200, _GARBAGE))
        if fault is Fault.SLOW_BYTES:
            return self._send_slowly(answer, strike.delay_s)
        if answer.stores is None:
            return self._send(answer)
        with self.api.store.on_the_way():
            try:
                self._send(answer)
                if self.api.insert_s:
                    time.sleep(self.api.insert_s)
            finally:  # a client that has gone does not stop the task
                self.api.store.complete(answer.stores)

    def _instead(self, strike: Strike) -> Answer | None:
        """The answer of a fault that is a whole answer of its own."""
        later = {} if strike.retry_after is None else {"Retry-After": strike.retry_after}
        if strike.fault is Fault.ERROR_500:
            return _plain(500, "Internal Server Error")
        if strike.fault is Fault.UNAVAILABLE_503:
            return Answer(503, b'{"detail":"Service Unavailable"}', headers=later)
        if strike.fault is Fault.TOO_MANY_429:
            return Answer(429, b'{"detail":"Too Many Requests"}', headers=later)
        if strike.fault is Fault.GARBAGE_LOST:
            return Answer(200, _GARBAGE)
        if strike.fault is Fault.REDIRECT:
            target = self.api.redirect_target or f"{self.api.url}{self.path}"
            return Answer(strike.status, b"", headers={"Location": target})
        return None

    def _send(self, answer: Answer) -> None:
        self.wfile.write(self._bytes(answer))

    def _bytes(self, answer: Answer) -> bytes:
        """Head and body as one piece, so that they leave in one packet."""
        head = {
            "Server": self.server_version,
            "Date": self.date_time_string(),
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            **({"Connection": "close"} if self.close_connection else {}),
            **answer.headers,
        }
        lines = [f"{self.protocol_version} {answer.status} {self.responses[HTTPStatus(answer.status)][0]}"]
        lines += [f"{name}: {value}" for name, value in head.items()]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body

    def _send_half(self, answer: Answer) -> None:
        whole = self._bytes(answer)
        self.wfile.write(whole[: len(whole) - (len(answer.body) + 1) // 2])
        self.close_connection = True

    def _send_slowly(self, answer: Answer, delay_s: float) -> None:
        for byte in self._bytes(answer):
            if self._pause(delay_s):
                return
            self.wfile.write(bytes([byte]))

    def _reset(self) -> None:
        self.close_connection = True
        self.rfile.close()
        reset(self.connection)

    def _stay_silent(self) -> None:
        self.close_connection = True
        wait_until_gone(self.connection)
