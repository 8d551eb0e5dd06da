"""A server on a socket that answers whatever a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kit.base_contract import BASE, free_port

#: A status and a JSON value, or bytes that need be no JSON; or what makes them of the request's body.
Said = tuple[int, Any] | Callable[[Any], tuple[int, Any]]


class Liar:
    """It says that it can do everything, and answers by path. `requests` are the paths it was asked for, `bodies` and `headers` what came along."""

    def __init__(self) -> None:
        self.answers: dict[str, Said] = {
            f"{BASE}/measurements": (200, {"count": 0, "measurements": []}),
            f"{BASE}/health": (200, {"capabilities": ["bulk", "lookup", "idempotency"]}),
        }
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.headers: list[Mapping[str, str]] = []
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and a body in two packets would wait 40 ms for each other

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0]
                liar.requests.append(path)
                liar.bodies.append(json.loads(raw) if raw else None)
                liar.headers.append(dict(self.headers.items()))
                said = liar.answers.get(path, (404, {"detail": "Not Found"}))
                status, value = said(liar.bodies[-1]) if callable(said) else said
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._listener = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self._listener.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def can(self, *capabilities: str) -> None:
        """All that it says it can do from now on."""
        self.answers[f"{BASE}/health"] = (200, {"capabilities": list(capabilities)})

    def asked(self, what: str) -> list[str]:
        """The requests to paths that begin so."""
        return [path for path in self.requests if path.startswith(f"{BASE}/{what}")]

    def close(self) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
