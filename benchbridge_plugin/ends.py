"""Where results come from and where they go, as one process sees it. Both can be looked at without a ledger."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.errors import BridgeError, ConfigError, SinkError, SourceBusy, SourceError
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.gaps import gaps
from benchbridge_plugin.parquet import open_source
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.sinks.service import PredictiveService, ServiceSink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.urls import redact_url

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 2.0
_WHEN_LATE = {
    "benchmark_db": "Check benchmark_db_path and the disk that it is on; benchbridge doctor waits longer.",
    "predictive_api": "Check predictive_api_url (http or https?) and that the server runs; benchbridge doctor waits longer and says more.",
}
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
        self.files = config.files
        self._config = config
        self._host = host
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._checks: dict[str, Future[dict[str, object]]] = {}
        self._answered: dict[str, tuple[float, dict[str, object]]] = {}  # the last answer of each check, and when it came
        self._closing = threading.Event()
        self._sources: dict[str, BenchmarkSource] = {}
        self._seen: dict[str, tuple[str, Mapping[str, str]]] = {}  # of several files: the roles found, and the signature they were found at
        self._judged: tuple[DuckDBPyConnection | None, dict[str, bool]] = (None, {})  # the last one offered, and which files it has open

    @property
    def source(self) -> BenchmarkSource:
        """The single benchmark file; of several, the first that is configured."""
        return self.source_at(self._config.benchmark_db_paths[0])

    def source_at(self, path: str) -> BenchmarkSource:
        """The source for a benchmark file. Nothing is opened for it."""
        with self._lock:
            if path not in self._sources:
                self._sources[path] = open_source(
                    path, busy_timeout_s=self._config.source_busy_timeout_s, host_connection=lambda: self._host_connection(path)
                )
            return self._sources[path]

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

    def connections(self, *, recent_s: float = 0.0) -> dict[str, dict[str, object]]:
        """How source and sink are: `{"ok": bool | None, "name", "error", "guidance", ...}` each. Both are asked at once, and within 2 s it
        is over: `ok` is None for one that has not answered by then, and how it was before is told, if that was not well.

        That all is well is said again for `recent_s`, and asked anew behind the caller's back in the second half of it: who asks all the time, as
        monitors do, waits for nobody, and keeps neither the file nor the API busy. What is wrong is looked at each time.
        """
        deadline = time.monotonic() + CHECK_TIMEOUT_S
        looks = {"benchmark_db": self._look_at_source, "predictive_api": self._look_at_sink}
        names = {"benchmark_db": self.files.label, "predictive_api": self.sink_name}
        answers: dict[str, dict[str, object]] = {}
        begun: dict[str, Future[dict[str, object]]] = {}
        for name, look in looks.items():
            answered_at, answer = self._answered.get(name, (0.0, None))
            age_s = time.monotonic() - answered_at
            recent = age_s < recent_s and answer is not None and answer["ok"] is True
            if answer is not None and recent:
                answers[name] = answer
            if not recent or age_s > recent_s / 2:
                begun[name] = self._begin(name, look)
        for name, future in begun.items():
            if name in answers:
                continue
            try:
                answers[name] = future.result(max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                answers[name] = {"ok": None, "name": names[name], **self._late(name)}
        return answers

    def close(self) -> None:
        """Let go of connections. May be repeated."""
        self._closing.set()
        if self.files.several and (look := self._checks.get("benchmark_db")) is not None:
            with suppress(TimeoutError):  # a process must not end while a thread of it is inside DuckDB
                look.result(CHECK_TIMEOUT_S)
        if self._sink is not None:
            self._sink.close()

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, look: Callable[[], dict[str, object]]) -> Future[dict[str, object]]:
        """Look in a thread of its own; a look that hangs is joined by the next one, not repeated."""
        with self._lock:
            future = self._checks.get(name)
            if future is None or future.done():
                future = self._checks[name] = Future()
                threading.Thread(target=self._fulfil, args=(name, future, look), name=f"benchbridge-check-{name}", daemon=True).start()
            return future

    def _late(self, name: str) -> dict[str, object]:
        late = f"no answer within {CHECK_TIMEOUT_S:g} s"
        _, before = self._answered.get(name, (0.0, None))
        if before is None or before["ok"]:
            return {"error": late, "guidance": _WHEN_LATE[name]}
        return {"error": f"{late}; the last time: {before['error']}", "guidance": before["guidance"]}

    def _fulfil(self, name: str, future: Future[dict[str, object]], look: Callable[[], dict[str, object]]) -> None:
        try:
            answer = look()
        except Exception as error:  # the edge of a thread
            if isinstance(error, BridgeError):
                answer = {"ok": False, "error": error.message, "guidance": error.guidance}
            else:
                _logger.exception("a connection check failed")
                answer = {"ok": False, "error": str(error), "guidance": "Look at the server's log."}
        self._answered[name] = (time.monotonic(), answer)
        future.set_result(answer)

    def _look_at_source(self) -> dict[str, object]:
        if self.files.several:
            return self._look_at_files()
        name = self.files.label
        try:
            layout = self.source.layout(wait=False)
        except SourceBusy as error:
            return {"ok": False, "name": name, "busy": True, "error": error.message, "guidance": error.guidance}
        except SourceError as error:
            return {"ok": False, "name": name, "error": error.message, "guidance": error.guidance}
        return {"ok": True, "name": name, "roles": dict(layout.roles), "warnings": self._warnings(layout.roles, layout.unread)}

    def _look_at_files(self) -> dict[str, object]:
        """All files that are there now, each by name. One that is as it was when it was read is not opened again."""
        looks = []
        for file in self.files.look({}):
            if self._closing.is_set():
                break
            shown: dict[str, object] = {"source": file.name, "path": file.path, "ok": True}
            found = self.roles_or_error(file)
            if isinstance(found, (SourceError, ConfigError)):
                shown |= {"ok": False, "error": found.message, "guidance": found.guidance}
            elif warnings := self._warnings(found):
                shown["warnings"] = warnings
            looks.append(shown)
        if not looks:
            nothing = self.files.nothing_found()
            return {"ok": False, "name": self.files.label, "error": nothing.message, "guidance": nothing.guidance, "sources": []}
        bad = [look for look in looks if not look["ok"]]
        shown = {"ok": not bad, "name": self.files.label, "sources": looks}
        return {**shown, "error": bad[0]["error"], "guidance": bad[0]["guidance"]} if bad else shown

    def _warnings(self, roles: Mapping[str, str], unread: Sequence[str] = ()) -> list[dict[str, str]]:
        """What the file does not say, though it can be read: then results are refused or go without a figure, and every run succeeds."""
        return [{"message": gap.message, "guidance": gap.guidance} for gap in gaps(self._config, roles, unread)]

    def roles_of(self, file: BenchmarkFile) -> Mapping[str, str]:
        """The roles of the file's columns, read anew only when it changed. Raises SourceError, or what is wrong with its name."""
        if file.error is not None:
            raise file.error
        source = self.source_at(file.path)
        signature = str(source.signature())
        seen = self._seen.get(file.path)
        if seen is None or seen[0] != signature:
            seen = self._seen[file.path] = (signature, source.layout(wait=False).roles)
        return seen[1]

    def roles_or_error(self, file: BenchmarkFile) -> Mapping[str, str] | SourceError | ConfigError:
        try:
            return self.roles_of(file)
        except (SourceError, ConfigError) as error:
            return error

    def require_one(self) -> None:
        """Raise what is wrong with the first of several files, unless some other can be read. Raises SourceMissing when there is none."""
        files = self.files.look({})
        first: SourceError | ConfigError | None = None
        for file in files:
            found = self.roles_or_error(file)
            if not isinstance(found, (SourceError, ConfigError)):
                return
            first = first or found
        raise first or self.files.nothing_found()

    def _look_at_sink(self) -> dict[str, object]:
        try:
            profile = self.sink().profile()
        except (SinkError, ConfigError) as error:
            return {"ok": False, "name": self.sink_name, "error": error.message, "guidance": error.guidance}
        return {"ok": True, "name": self.sink_name, **profile.as_dict()}

    # -- choosing -----------------------------------------------------------------------------------------------------------------------

    def _host_connection(self, path: str) -> DuckDBPyConnection | None:
        """The host's own connection to this benchmark file, if it offers one. One to another file, or a closed one, is of no use."""
        offered = self._host.services().get("benchmark_db")
        if not isinstance(offered, duckdb.DuckDBPyConnection):
            return None
        if self._judged[0] is not offered:
            self._judged = (offered, {})
        judged = self._judged[1]
        if path not in judged:
            judged[path] = _has_open(offered, path)
            if not judged[path] and not self.files.several:
                _logger.warning("the server's benchmark_db connection is not one to %s; it is not used", path)
        return offered if judged[path] else None

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


def _has_open(connection: DuckDBPyConnection, path: str) -> bool:
    try:
        with connection.cursor() as cursor:
            found = cursor.execute(_PATH_SQL).fetchone()
        return found is not None and found[0] is not None and Path(found[0]).samefile(path)
    except (duckdb.Error, OSError):
        return False
