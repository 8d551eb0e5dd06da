"""A predictive performance API over real sockets that speaks the base contract of WIRE.md and nothing more.

It behaves as servers in use do: a POST is answered "pending" and stored right after, once for each time it is sent;
tasks are in memory; unknown fields are dropped; measurement_id repeats; one NaN breaks the listing; there is no
idempotency, bulk, lookup or capability answer.

    with BaseContractServer() as server:
        server.faults.add(Fault.RESET_AFTER_STORE)
        requests.post(f"{server.url}/api/predictive-performance/record-measurement", json={...})   # ConnectionError
        assert len(server.rows) == 1 and server.requests[RECORD] == 1

As a process: `python -m tests.kit.base_contract --port 8080 --store rows.jsonl` prints "ready URL" when it listens.
"""

from __future__ import annotations

import argparse
import random
import signal
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kit.connections import ConnectionServer
from tests.kit.contract import BASE
from tests.kit.faults import HEALTH, LISTING, OPENAPI, PLUGIN_HEALTH, RECORD, TASK, Fault, FaultPlan
from tests.kit.handler import BaseContractHandler
from tests.kit.store import MeasurementStore, Row

__all__ = [
    "BASE",
    "HEALTH",
    "LISTING",
    "OPENAPI",
    "PLUGIN_HEALTH",
    "RECORD",
    "TASK",
    "BaseContractServer",
    "Fault",
    "FaultPlan",
    "free_port",
]


class BaseContractServer:
    """The server in this process, on a thread of its own, from `start()` (or `with`) to `stop()`.

    port: 0 takes a free one and keeps it for every later start. `api_key`: every route under BASE then answers 401
    without it.
    `store`: a JSON-lines file that keeps the rows between objects and processes.
    `latency_s`, `redirect_target` and `api_key` may be changed at any time and count from the next request on.
    `insert_s`: all connections share one event loop, which stands still for so long while it stores a measurement, right
    after it answered for it.
    """

    def __init__(
        self, api_key: str | None = None, port: int = 0, store: Path | None = None, latency_s: float = 0.0, insert_s: float = 0.0
    ) -> None:
        self.api_key = api_key
        self.port = port
        self.latency_s = latency_s
        self.insert_s = insert_s
        #: Held by whoever the event loop is busy with, where there is one.
        self.loop: AbstractContextManager[object] = threading.Lock() if insert_s else nullcontext()
        #: Where Fault.REDIRECT points to; None: to the same path of this server.
        self.redirect_target: str | None = None
        self.faults = FaultPlan()
        self.store = MeasurementStore(store)
        self._requests: Counter[str] = Counter()
        self._requests_lock = threading.Lock()
        self._listener: ConnectionServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The server's address without a path, as `predictive_api_url` takes it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def rows(self) -> list[Row]:
        """A copy of what is stored, oldest first.

        Waits for measurements that were answered for and are being stored.
        """
        return self.store.rows()

    @property
    def requests(self) -> Counter[str]:
        """A copy of the counts of requests by "METHOD path", with {task_id} for ids: RECORD, TASK, LISTING ..."""
        with self._requests_lock:
            return Counter(self._requests)

    def count(self, route: str) -> None:
        """Counts a request (the handler calls it)."""
        with self._requests_lock:
            self._requests[route] += 1

    def start(self) -> Self:
        """Listens. After a stop the rows are the same and the tasks are gone."""
        self.store.forget()
        self.up()
        return self

    def stop(self) -> None:
        """Closes every connection, then the port, and waits for the threads.

        A request that is silent or slow ends at once. Idempotent.
        """
        self.down()

    def restart(self) -> None:
        """Stops and starts on the same port: connections break, tasks are forgotten, rows stay."""
        self.stop()
        self.start()

    def down(self) -> None:
        """From now on connections are refused, and open ones are closed. Tasks are remembered."""
        listener, thread, self._listener, self._thread = self._listener, self._thread, None, None
        if listener is not None and thread is not None:
            listener.shutdown()
            listener.server_close()
            thread.join()

    def up(self) -> None:
        """Listens again on the same port; nothing if it does already."""
        if self._listener is not None:
            return
        self.port = self.port or free_port()
        self._listener = ConnectionServer(("127.0.0.1", self.port), self._handler())
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _handler(self) -> type[BaseContractHandler]:
        return type("Handler", (BaseContractHandler,), {"api": self})


def free_port() -> int:
    """A port that nothing listens on, below the range of outgoing connections.

    Nobody is given it by chance while the server is down, and a client that connects to it then is refused: on a port
    from the outgoing range it can be connected to itself.
    """
    draws = random.SystemRandom()
    while True:
        port = draws.randrange(20_000, 32_000)
        try:
            ConnectionServer(("127.0.0.1", port), BaseContractHandler).server_close()
        except OSError:
            continue
        return port


def main() -> None:
    """The server as a process: runs until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.kit.base_contract", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0: a free one, named in the line that says ready")
    parser.add_argument("--store", type=Path, help="JSON-lines file that keeps the rows")
    parser.add_argument("--api-key")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="wait before each answer")
    parser.add_argument("--insert", type=float, default=0.0, metavar="SECONDS", help="one event loop, which stands still while it stores")
    parser.add_argument("--rate", type=float, default=0.0, help="how many of the measurements are struck by a fault, 0..1")
    parser.add_argument("--fault", action="append", default=[], choices=[fault.label for fault in Fault])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with BaseContractServer(options.api_key, options.port, options.store, options.latency, options.insert) as server:
        server.faults.rate(options.rate, *(fault for fault in Fault if fault.label in options.fault), seed=options.seed)
        print(f"ready {server.url}", flush=True)
        while not stopped.is_set():
            time.sleep(0.05)


if __name__ == "__main__":
    main()
