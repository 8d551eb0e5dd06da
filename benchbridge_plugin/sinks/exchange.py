"""One request to the predictive API and an honest word on how it ended.

A request ends in exactly one of three ways: it never left (`NotSent`), it was answered (`Reply`), or nobody knows whether the server acted on it
(`NoAnswer`). Redirects are not followed, so the key goes nowhere else; the answer has a time limit and a size limit as a whole, so that a server that
drips bytes cannot hold us.
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

from benchbridge_plugin.model import storable

_LARGEST_ANSWER = 256 * 1024 * 1024
#: Null characters and surrogates, as JSON escapes or as bytes. Pairs of surrogates are harmless, but this is only the cheap first look.
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]")
_CONNECT_TIMEOUT_S = 5.0
#: How a cause begins when a certificate is not trusted; behind it is what OpenSSL says.
UNTRUSTED = "certificate verify failed"
NO_CERTIFICATES = "the file with the certificates to trust is not there, or has none that can be read"
_NO_TLS = "it takes the connection and does not answer in TLS"
_NOT_TLS, _NOT_HTTP = "what is there does not speak TLS", "what is there does not speak HTTP"
_RESET, _CLOSED = "connection reset by peer", "remote end closed connection"
#: Causes that one also meets where the URL has the wrong one of the two schemes.
_WRONG_SCHEME = {"https": (_NO_TLS, _NOT_TLS), "http": (_NOT_HTTP, _RESET, _CLOSED)}


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's answer. `data` is the parsed JSON, or None when it is not JSON."""

    status: int
    data: Any
    retry_after_s: float | None
    location: str | None

    @property
    def sentence(self) -> str:
        """What the server says, as one line: the `detail` of FastAPI and of problem documents, with the field it is about."""
        detail = self.data.get("detail", self.data.get("error")) if isinstance(self.data, Mapping) else None
        if isinstance(detail, list):
            parts = [(item.get("loc"), item.get("msg", "invalid")) for item in detail if isinstance(item, Mapping)]
            said = "; ".join(
                f"{'.'.join(str(at) for at in (place if isinstance(place, list) else [place]) if at != 'body')}: {message}"
                for place, message in parts
            )
        else:
            said = str(detail) if detail else ""
        return " ".join((said or f"HTTP {self.status}").split())[:500]


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request reached the server."""

    why: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The request left and no whole answer came back: the server may or may not have acted on it."""

    why: str


class _Deadline(RawIOBase):
    """The bytes of one answer. They must all come within the socket's timeout, which otherwise counts anew for each piece."""

    def __init__(self, raw: RawIOBase, connection: socket.socket) -> None:
        self._raw = raw
        self._connection = connection
        self._timeout_s = connection.gettimeout()
        self._ends = time.monotonic() + (self._timeout_s or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._timeout_s is None:
            return self._raw.readinto(buffer)
        left_s = self._ends - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left_s)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._connection.settimeout(self._timeout_s)  # the next request on this connection has a time limit of its own

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = BufferedReader(_Deadline(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer

    def connect(self) -> None:
        try:
            super().connect()
        except (TimeoutError, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            # The connection stood: urllib3 has errors of its own for one that did not.
            if self._tunnel_host is not None:  # it may be the proxy that does not answer
                raise
            raise ssl.SSLError(_NO_TLS) from error


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _BoundedAdapter(HTTPAdapter):
    """Connections whose read timeout holds for the status, the headers and the body together."""

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


class _Line:
    """A session for one request at a time, with all that does not change from request to request worked out once.

    requests would read the environment (proxies, certificates) and the user's netrc anew for each, which takes longer than the request does.
    """

    def __init__(self, base_url: str, *, api_key: str | None, verify: bool | str, adapter: BaseAdapter | None) -> None:
        self._session = requests.Session()
        self._session.mount(base_url, adapter or _BoundedAdapter())
        if api_key:
            self._session.headers["X-API-Key"] = api_key
        self._session.headers["User-Agent"] = "benchbridge"
        self._base_url = base_url
        self._verify = verify
        self._settings: Mapping[str, Any] | None = None
        self._last: requests.PreparedRequest | None = None

    def send(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout: tuple[float, float]
    ) -> requests.Response:
        if self._settings is None:
            self._settings = self._session.merge_environment_settings(self._base_url, {}, True, self._verify, None)
        request = self._prepared(method, url).copy()
        if body is not None:
            request.body = body
            request.headers["Content-Type"] = "application/json"
            request.headers["Content-Length"] = str(len(body))
        request.headers.update(headers)
        return self._session.send(request, timeout=timeout, allow_redirects=False, **self._settings)

    def _prepared(self, method: str, url: str) -> requests.PreparedRequest:
        last = self._last
        # A cookie, as of a load balancer that keeps us at one server, may change with every answer.
        if last is None or (last.method, last.url) != (method, url) or self._session.cookies:
            last = self._last = self._session.prepare_request(requests.Request(method, url))
        return last

    def close(self) -> None:
        self._session.close()


class Exchange:
    """Connections to one server, as many as there are requests at a time. Safe to share between threads; never raises for what the network does.

    With an `adapter` the requests go where it carries them, which may be this process: `in_turn` says that they should be made one by one, then.
    `is_near`: whether no network lies in between, so that a byte costs less than to make it smaller.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        ca_bundle: str | None = None,
        adapter: BaseAdapter | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.in_turn = adapter is not None
        self.is_near = self.in_turn or _is_loopback(self.base_url)
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._verify: bool | str = ca_bundle or True
        self._adapter = adapter
        self._has_answered = False
        self._idle: list[_Line] = []  # the one that was used last is taken first
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        path: str,
        *,
        json_body: object = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        fresh: bool = False,
    ) -> Reply | NotSent | NoAnswer:
        """`path` is everything after the base URL. `timeout_s` is for an answer wanted sooner than usual, `body` is JSON already.

        `fresh`: on a connection of its own, which is kept for later requests only if this one is answered.
        """
        patience_s = min(timeout_s or self._timeout_s, self._timeout_s)
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S + patience_s
        line = self._line(fresh)
        answer: Reply | NotSent | NoAnswer = NoAnswer("interrupted")
        try:
            content = body if json_body is None else json.dumps(json_body, allow_nan=False).encode()
            timeout = (min(_CONNECT_TIMEOUT_S, patience_s), patience_s)
            with line.send(method, self.base_url + path, content, headers or {}, timeout) as response:
                answer = self._reply(response, deadline, patience_s)
        except (requests.exceptions.InvalidHeader, UnicodeError):  # their texts show the header
            answer = NotSent("the API key has characters that a header cannot carry")
        except requests.ConnectTimeout:
            answer = NotSent("no connection within the time limit")
        except requests.ReadTimeout:
            answer = NoAnswer(f"no answer within {patience_s:g} s")
        except (requests.RequestException, HTTPError, OSError) as error:
            answer = NotSent(self._why(error)) if _never_left(error) else NoAnswer(self._why(error))
        except ValueError as error:  # a URL or a body that cannot be put into a request
            answer = NotSent(_cause(error))
        finally:
            if fresh and not isinstance(answer, Reply):
                line.close()
            else:
                with self._lock:
                    self._idle.append(line)
        return answer

    def close(self) -> None:
        """Let go of the connections. One that carries a request just now stays until the next time."""
        with self._lock:
            lines, self._idle = self._idle, []
        for line in lines:
            line.close()

    def _line(self, fresh: bool) -> _Line:
        with self._lock:
            if self._idle and not fresh:
                return self._idle.pop()
        return _Line(self.base_url, api_key=self._api_key, verify=self._verify, adapter=self._adapter)

    def _why(self, error: BaseException) -> str:
        """The cause, with a question where the URL may have the wrong scheme: it is settled by the first answer."""
        cause = _cause(error)
        said, other = ("https", "http") if self.base_url.lower().startswith("https:") else ("http", "https")
        asks = cause in _WRONG_SCHEME[said] and not self._has_answered
        return f"{cause} (is it {other}, not {said}?)" if asks else cause

    def _reply(self, response: requests.Response, deadline: float, patience_s: float) -> Reply | NoAnswer:
        content = self._read(response, deadline)
        if content is None:
            return NoAnswer(f"no whole answer within {patience_s:g} s and {_LARGEST_ANSWER} bytes")
        try:
            data = json.loads(content) if content else None
            if _UNSTORABLE.search(content):
                data = _storable(data)
        except (ValueError, RecursionError):
            data = None
        self._has_answered = True
        return Reply(
            response.status_code, data, _retry_after(response.headers.get("Retry-After")), _place(response.headers.get("Location"))
        )

    @staticmethod
    def _read(response: requests.Response, deadline: float) -> bytes | None:
        pieces, size = [], 0
        for piece in response.iter_content(64 * 1024):
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > deadline or size > _LARGEST_ANSWER:
                return None
        return b"".join(pieces)


def _storable(value: Any) -> Any:
    """A JSON value with its texts as every database takes them."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(name): _storable(item) for name, item in value.items()}
    return value


def _never_left(error: BaseException | None) -> bool:
    """Whether the failure came before a connection stood. Looks through the layers of requests and urllib3.

    Of what TLS can fail with only a certificate that is not trusted is certain to have come before the request.
    """
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, _BEFORE_SENDING):
            return True
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        error = inner if isinstance(inner, BaseException) else None
        seen += 1
    return False


_BEFORE_SENDING = (
    NewConnectionError,
    ConnectTimeoutError,
    NameResolutionError,
    ssl.SSLCertVerificationError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)


#: What the libraries say, in lower case, and what we call it.
_CAUSES = {
    "wrong_version_number": _NOT_TLS,
    _NO_TLS.lower(): _NO_TLS,
    r"badstatusline('\x15\x03": _NOT_HTTP,  # an alert of TLS
    "connection refused": "connection refused",
    "name or service not known": "name or service not known",
    _RESET: _RESET,
    _CLOSED: _CLOSED,
    UNTRUSTED: UNTRUSTED,
    "suitable tls ca certificate bundle": NO_CERTIFICATES,
    "[x509": NO_CERTIFICATES,
}


def _cause(error: BaseException) -> str:
    """The innermost reason as a short sentence, without object addresses."""
    text = str(error)
    lower = text.lower()
    if untrusted := re.search(rf"{UNTRUSTED}: (.+?)\.? \(_ssl", text):
        return f"{UNTRUSTED}: {untrusted[1]}"[:200]
    for mark, cause in _CAUSES.items():
        if mark in lower:
            return cause
    return f"{type(error).__name__}: {' '.join(text.split())}"[:200]


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait. The date form of the header is read as 'unknown': it needs two clocks that agree."""
    try:
        wait_s = float(header or "nan")
    except ValueError:
        return None
    return None if math.isnan(wait_s) else min(max(wait_s, 0.0), 86_400.0)


def _place(location: str | None) -> str | None:
    """Where a redirect points, without anything secret that may stand in its query."""
    if not location:
        return None
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"[:200] if parts.hostname else parts.path[:200]
