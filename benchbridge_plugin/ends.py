"""Where results come from and where they go, as one process sees it. Both can be looked at without a ledger."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from benchbridge_plugin.config import BridgeConfig, redact_url
from benchbridge_plugin.errors import BridgeError, ConfigError, SinkError, SourceBusy, SourceError
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.sinks.service import PredictiveService, ServiceSink
from benchbridge_plugin.source import BenchmarkSource

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 2.0
_ROUTE = "/api/predictive-performance/record-measurement"
_PATH_SQL = "SELECT path FROM system.main.duckdb_databases() WHERE database_name = system.main.current_database()"


@dataclass(frozen=True, slots=True)
class HostServices:
    """What a server offers to the bridge inside it. Everything is asked for when it is needed: services may come after the plugin."""

    services: Callable[[], Mapping[str, object]] = dict
    application: WSGIApplication | None = None
    has_route: Callable[[str], bool] = lambda path: False


class Ends:
    """The source and the sink of one bridge in one process. Safe to use from several threads; `process` says whose it is after a fork."""

    def __init__(self, config: BridgeConfig, host: HostServices) -> None:
        self.process = os.getpid()
        self.source = BenchmarkSource(
            config.benchmark_db_path, busy_timeout_s=config.source_busy_timeout_s, host_connection=self._host_connection
        )
        self._config = config
        self._host = host
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._checks: dict[str, Future[dict[str, object]]] = {}
        self._judged: tuple[DuckDBPyConnection, bool] | None = None  # the last connection offered, and whether it has our file open

    def sink(self) -> Sink:
        """The host's service, its routes, or HTTP; the first that is there and that the config allows. Raises SinkError and ConfigError."""
        with self._lock:
            if self._sink is None:
                self._sink = self._choose_sink()
            return self._sink

    @property
    def sink_name(self) -> str:
        """For people, without a password."""
        return redact_url(self._config.predictive_api_url if self._sink is None else self._sink.name)

    def connections(self) -> dict[str, dict[str, object]]:
        """How source and sink are: `{"ok": bool | None, "name", "error", "guidance", ...}` each. Both are asked at once, and within 2 s it
        is over: `ok` is None for one that has not answered by then."""
        deadline = time.monotonic() + CHECK_TIMEOUT_S
        looks = {"benchmark_db": self._look_at_source, "predictive_api": self._look_at_sink}
        begun = {name: self._begin(name, look) for name, look in looks.items()}
        names = {"benchmark_db": self._config.benchmark_db_path, "predictive_api": self.sink_name}
        answers: dict[str, dict[str, object]] = {}
        for name, future in begun.items():
            try:
                answers[name] = future.result(max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                answers[name] = {"ok": None, "name": names[name], "error": f"no answer within {CHECK_TIMEOUT_S:g} s"}
        return answers

    def close(self) -> None:
        """Let go of connections. May be repeated."""
        if self._sink is not None:
            self._sink.close()

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, look: Callable[[], dict[str, object]]) -> Future[dict[str, object]]:
        """Look in a thread of its own; a look that hangs is joined by the next one, not repeated."""
        with self._lock:
            future = self._checks.get(name)
            if future is None or future.done():
                future = self._checks[name] = Future()
                threading.Thread(target=_fulfil, args=(future, look), name=f"benchbridge-check-{name}", daemon=True).start()
            return future

    def _look_at_source(self) -> dict[str, object]:
        name = self._config.benchmark_db_path
        try:
            layout = self.source.layout(wait=False)
        except SourceBusy as error:
            return {"ok": False, "name": name, "busy": True, "error": error.message, "guidance": error.guidance}
        except SourceError as error:
            return {"ok": False, "name": name, "error": error.message, "guidance": error.guidance}
        return {"ok": True, "name": name, "roles": dict(layout.roles)}

    def _look_at_sink(self) -> dict[str, object]:
        try:
            profile = self.sink().profile()
        except (SinkError, ConfigError) as error:
            return {"ok": False, "name": self.sink_name, "error": error.message, "guidance": error.guidance}
        return {"ok": True, "name": self.sink_name, **profile.as_dict()}

    # -- choosing -----------------------------------------------------------------------------------------------------------------------

    def _host_connection(self) -> DuckDBPyConnection | None:
        """The host's own connection to the benchmark file, if it offers one. One to another file, or a closed one, is of no use."""
        offered = self._host.services().get("benchmark_db")
        if not isinstance(offered, duckdb.DuckDBPyConnection):
            return None
        judged = self._judged
        if judged is None or judged[0] is not offered:
            judged = self._judged = (offered, self._has_our_file(offered))
            if not judged[1]:
                _logger.warning("the server's benchmark_db connection is not one to %s; it is not used", self._config.benchmark_db_path)
        return offered if judged[1] else None

    def _has_our_file(self, connection: DuckDBPyConnection) -> bool:
        try:
            with connection.cursor() as cursor:
                found = cursor.execute(_PATH_SQL).fetchone()
            return found is not None and found[0] is not None and Path(found[0]).samefile(self._config.benchmark_db_path)
        except (duckdb.Error, OSError):
            return False

    def _choose_sink(self) -> Sink:
        config = self._config
        if config.predictive_mode in ("auto", "in_process"):
            service = self._host.services().get("predictive_performance")
            if service is not None:
                if not isinstance(service, PredictiveService):
                    raise SinkError(
                        f"The server's predictive_performance service ({type(service).__name__}) cannot take measurements.",
                        guidance="It needs describe, record_measurements and lookup: see docs/host.md. Or set predictive_mode to http.",
                    )
                return ServiceSink(service)
            if self._host.application is not None and self._host.has_route(_ROUTE):
                from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL, WSGIAdapter

                return self._http_sink(
                    Exchange(
                        IN_PROCESS_URL,
                        api_key=config.api_key,
                        timeout_s=config.request_timeout_s,
                        adapter=WSGIAdapter(self._host.application),
                    )
                )
            if config.predictive_mode == "in_process":
                raise ConfigError(
                    "predictive_mode is in_process, but this process hosts no predictive API.",
                    guidance="Set predictive_mode to auto or http, or enable the predictive API in this server.",
                )
        return self._http_sink(
            Exchange(config.predictive_api_url, api_key=config.api_key, timeout_s=config.request_timeout_s, ca_bundle=config.ca_bundle)
        )

    def _http_sink(self, exchange: Exchange) -> HttpSink:
        config = self._config
        return HttpSink(
            exchange,
            keyed=config.measurement_source == "keyed",
            acknowledge_timeout_s=config.acknowledge_timeout_s,
            connections=config.max_requests_in_flight,
        )


def _fulfil(future: Future[dict[str, object]], look: Callable[[], dict[str, object]]) -> None:
    try:
        future.set_result(look())
    except Exception as error:  # the edge of a thread
        if not isinstance(error, BridgeError):
            _logger.exception("a connection check failed")
        future.set_result({"ok": False, "error": str(error)})
