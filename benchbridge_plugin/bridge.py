"""The bridge: builds the parts from a configuration and offers what users ask of it, from Python, the web and the command line alike."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbridge_plugin import report as reports
from benchbridge_plugin._version import __version__
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.errors import BridgeError, ConfigError, LeaseBusy, SinkError, SourceBusy, SourceError
from benchbridge_plugin.ledger import Holder, LeaseHolder, Ledger, Page, Schedule
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import Progress, RunSummary, SinkProfile, State, SyncRequest
from benchbridge_plugin.scheduler import SyncScheduler
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.sinks.service import PredictiveService, ServiceSink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.sync import Policy, SyncEngine
from benchbridge_plugin.verification import Verification, verify

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger(__name__)

_CHECK_TIMEOUT_S = 2.0
_ROUTE = "/api/predictive-performance/record-measurement"


@dataclass(frozen=True, slots=True)
class HostServices:
    """What a server offers to the bridge inside it. Everything is asked for when it is needed: services may come after the plugin."""

    services: Callable[[], Mapping[str, object]] = dict
    application: WSGIApplication | None = None
    has_route: Callable[[str], bool] = lambda path: False


@dataclass(slots=True)
class _Parts:
    """What belongs to one process and is built in it: after a fork the child builds its own."""

    process: int
    source: BenchmarkSource
    mapper: Mapper
    ledger: Ledger
    engine: SyncEngine
    source_id: int
    scheduler: SyncScheduler
    stopping: threading.Event = field(default_factory=threading.Event)
    sink: Sink | None = None


class BenchmarkPredictivePerformanceBridge:
    """Carries the results of one benchmark database to one predictive API, exactly once.

    >>> bridge = BenchmarkPredictivePerformanceBridge(benchmark_db_path="benchmark_db.duckdb", predictive_api_url="http://localhost:8080")
    >>> bridge.sync_recent_results(limit=50)["synced"]
    50

    Any setting of docs/configuration.md can be given by keyword; `config` is a whole configuration to start from. Nothing is opened before it is
    needed. May be shared by threads; one sync runs at a time, across all processes that use the same ledger.
    """

    def __init__(
        self,
        benchmark_db_path: str | os.PathLike[str] | None = None,
        predictive_api_url: str | None = None,
        api_key: str | None = None,
        *,
        config: BridgeConfig | None = None,
        host: HostServices | None = None,
        now: Callable[[], float] = time.time,
        **settings: object,
    ) -> None:
        self.config = (config or BridgeConfig()).with_changes(
            benchmark_db_path=None if benchmark_db_path is None else os.fspath(benchmark_db_path),
            predictive_api_url=predictive_api_url,
            api_key=api_key,
            **settings,
        )
        self._host = host or HostServices()
        self._now = now
        self._lock = threading.RLock()
        self._built: _Parts | None = None
        self._checks: dict[str, Future[dict[str, object]]] = {}

    # -- the documented Python interface ------------------------------------------------------------------------------------------------

    def check_connections(self) -> dict[str, bool]:
        """Whether the benchmark database can be read and the predictive API answers: `{"benchmark_db": True, "predictive_api": True}`."""
        return {name: part["ok"] is True for name, part in self.connections().items()}

    def sync_recent_results(self, limit: int | None = None, days: int | None = None) -> dict[str, Any]:
        """Sync what is new, at most `limit` results no older than `days` (0: no limit; None: as configured).

        Returns `{"success", "message", "total", "synced", "failed", "rejected", "skipped", "run_id", "details"}`; never raises a BridgeError.
        """
        return self._answer(SyncRequest(limit=limit, days=days))

    def sync_by_model(self, model_name: str, days: int | None = None, limit: int | None = None) -> dict[str, Any]:
        """The same for the results of one model."""
        return self._answer(SyncRequest(model=model_name, days=days, limit=limit))

    def generate_report(self) -> dict[str, Any]:
        """The report as JSON values (see report.build), compared with the benchmark file first if that changed and can be read.

        Raises LedgerError. When the benchmark file cannot be read, the last comparison is reported and `note` says so.
        """
        parts = self._parts()
        note = ""
        try:
            parts.engine.refresh()
        except SourceError as error:
            note = f"{error.message} The figures are those of the last comparison."
        return reports.build(parts.ledger, parts.source_id, source_name=self.config.resolved_source_name, note=note)

    def close(self) -> None:
        """Stop what runs and let go of everything. May be repeated; using the bridge again opens it again."""
        self.stop()

    def __enter__(self) -> BenchmarkPredictivePerformanceBridge:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- moving results -----------------------------------------------------------------------------------------------------------------

    def sync(
        self,
        request: SyncRequest,
        *,
        progress: Callable[[Progress], object] = lambda progress: None,
        stopping: Callable[[], bool] = lambda: False,
        started: Callable[[int], object] = lambda run_id: None,
    ) -> RunSummary:
        """One run, in this thread. See SyncEngine.run for what it raises."""
        parts = self._parts()
        return parts.engine.run(request, progress=progress, stopping=lambda: stopping() or parts.stopping.is_set(), started=started)

    def start_sync(self, request: SyncRequest) -> tuple[int, bool]:
        """Start a run in the background. Returns its number, and whether that is a run that was under way already (it is joined, not doubled)."""
        deadline = time.monotonic() + _CHECK_TIMEOUT_S
        while True:
            begun: Future[int] = Future()
            threading.Thread(target=self._run_in_background, args=(request, begun), name="benchbridge-sync", daemon=True).start()
            try:
                return begun.result(), False
            except LeaseBusy as error:
                run_id = error.fields.get("run_id")
                if isinstance(run_id, int):
                    return run_id, True
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)  # the holder is comparing or verifying, or has not named its run yet

    def wait_for_run(self, run_id: int, timeout_s: float) -> dict[str, Any] | None:
        """The run once it has ended, or as it is after `timeout_s`; None if there is no such run."""
        deadline = time.monotonic() + timeout_s
        while (run := self.run(run_id)) is not None and run["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        return run

    def cycle(self, kind: str) -> RunSummary | None:
        """One scheduled run with its report on disk. None when another process is syncing. Errors are logged, not raised."""
        try:
            summary = self.sync(SyncRequest(kind=kind))
        except LeaseBusy as error:
            _logger.info("no scheduled sync: %s", error.message)
            return None
        except BridgeError as error:
            _logger.error("the scheduled sync could not run: %s", error)
            return None
        self._write_report()
        return summary

    def retry(
        self, *, rejected: bool = False, model: str | None = None, result_ids: Sequence[str] | None = None, reason: str | None = None
    ) -> int:
        """Make waiting results due now; with `rejected`, bring refused ones back too. The next run sends them. Returns how many."""
        parts = self._parts()
        return parts.ledger.deliveries.retry(parts.source_id, rejected=rejected, model=model, result_ids=result_ids, reason=reason)

    def verify(self, *, repair: bool = False, progress: Callable[[int], object] = lambda checked: None) -> Verification:
        """Compare ledger and sink. With `repair`, what is missing goes back to pending and is sent by the next run. Raises SinkError, LeaseBusy."""
        parts = self._parts()
        found = verify(parts.ledger, parts.source_id, self._sink(), progress=progress)
        if not (repair and found.missing):
            return found
        lease = parts.ledger.leases.acquire(self.config.resolved_source_name, _owner(), self.config.lease_s)
        try:
            count = parts.ledger.deliveries.reopen(Holder(lease, self.config.lease_s, 0), parts.source_id, found.missing)
        finally:
            parts.ledger.leases.release(lease)
        return replace(found, repaired=count)

    # -- the process --------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve in this process: open the ledger, and start the timer if `auto_sync_enabled`. Call it after any fork."""
        parts = self._parts()
        if self.config.auto_sync_enabled:
            parts.scheduler.start(run_now=self.config.sync_on_startup)

    def stop(self) -> None:
        """Stop the timer and finish or abandon the batch in hand within `shutdown_timeout_s`. What was not sent stays pending."""
        with self._lock:
            parts, self._built = self._built, None
        if parts is None or parts.process != os.getpid():
            return
        parts.stopping.set()
        deadline = time.monotonic() + self.config.shutdown_timeout_s
        in_time = parts.scheduler.stop(self.config.shutdown_timeout_s)
        for thread in threading.enumerate():
            if thread.name == "benchbridge-sync":
                thread.join(max(deadline - time.monotonic(), 0.0))
                in_time = in_time and not thread.is_alive()
        if not in_time:
            _logger.warning("a sync did not end in time; what it had handed over is in doubt and will be asked for")
            return  # its parts stay open under it; the process is about to end
        if parts.sink is not None:
            parts.sink.close()
        parts.mapper.close()
        parts.ledger.close()

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def connections(self) -> dict[str, dict[str, object]]:
        """How source and sink are: `{"ok": bool | None, "name", "error", "guidance", ...}` each, within 2 s (None: no answer by then)."""
        return {
            name: self._checked(name, look)
            for name, look in (("benchmark_db", self._look_at_source), ("predictive_api", self._look_at_sink))
        }

    def status(self) -> dict[str, Any]:
        """What /status shows. Bounded by 2 s for source and sink together; the ledger is read without waiting for writers."""
        parts = self._parts()
        connections = self.connections()
        runs = self.runs(limit=1)
        holder = self.lease_holder()
        return {
            "version": __version__,
            "source": self.config.resolved_source_name,
            "connections": connections,
            "ledger": {"place": parts.ledger.place},
            "schedule": self.schedule(),
            "lease": None
            if holder is None
            else {"owner": holder.owner, "run_id": holder.run_id, "expires_at": reports.iso(holder.expires_at)},
            "last_run": runs[0] if runs else None,
            "accounting": self.accounting(),
            "config": self.config.redacted(),
        }

    def accounting(self) -> dict[str, Any]:
        """The accounting as the ledger has it, without looking at the source."""
        parts = self._parts()
        accounting = parts.ledger.accounts.accounting(parts.source_id)
        return {**accounting.as_dict(), "compared_at": reports.iso(accounting.compared_at)}

    def runs(self, *, limit: int = 20, before: int | None = None) -> list[dict[str, Any]]:
        """The runs, newest first."""
        parts = self._parts()
        return [self._shown(run) for run in parts.ledger.runs.history(parts.source_id, limit=limit, before=before)]

    def run(self, run_id: int) -> dict[str, Any] | None:
        parts = self._parts()
        found = parts.ledger.runs.get(parts.source_id, run_id)
        return None if found is None else self._shown(found)

    def results(
        self,
        *,
        state: State | None = None,
        model: str | None = None,
        hardware: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Single results, a page at a time. Results that no run took up yet have no row and are not listed."""
        parts = self._parts()
        return parts.ledger.accounts.results(parts.source_id, state=state, model=model, hardware=hardware, limit=limit, cursor=cursor)

    def schedule(self) -> dict[str, Any]:
        parts = self._parts()
        found = parts.ledger.runs.schedule(parts.source_id)
        return self._schedule_as_json(found)

    def set_schedule(self, *, paused: bool | None = None, interval_minutes: float | None = None) -> dict[str, Any]:
        """Pause, resume, or change the interval, for all processes."""
        parts = self._parts()
        return self._schedule_as_json(parts.ledger.runs.set_schedule(parts.source_id, paused=paused, interval_minutes=interval_minutes))

    def lease_holder(self) -> LeaseHolder | None:
        return self._parts().ledger.leases.holder(self.config.resolved_source_name)

    def health(self) -> dict[str, object]:
        """A few numbers for the host's /health: cheap, from the ledger alone."""
        accounting = self.accounting()
        names = ("total", "delivered", "pending", "retrying", "in_doubt", "rejected", "skipped", "balanced")
        runs = self.runs(limit=1)
        return {
            "status": "ok",
            **{name: accounting[name] for name in names},
            "last_run": {name: runs[0][name] for name in ("run_id", "state", "finished_at")} if runs else None,
        }

    def source_roles(self) -> Mapping[str, str]:
        """Which column plays which role in the benchmark database: `{"latency_ms": "performance_results.average_latency_ms", ...}`."""
        return self._parts().source.layout().roles

    def sink_profile(self) -> tuple[str, SinkProfile]:
        """The sink's name and what it takes, asked now. Raises SinkError."""
        sink = self._sink()
        return sink.name, sink.profile()

    @property
    def key_path(self) -> Path:
        """Where a generated key for /api/bridge is kept: beside the ledger, or beside the benchmark file when the ledger is a server."""
        prefix = "sqlite:///"
        url = self.config.resolved_ledger_url
        return Path(url.removeprefix(prefix) + ".key") if url.startswith(prefix) else Path(f"{self.config.benchmark_db_path}.bridge.key")

    # -- inside -------------------------------------------------------------------------------------------------------------------------

    def _parts(self) -> _Parts:
        with self._lock:
            if self._built is None or self._built.process != os.getpid():
                self._built = self._build()
            return self._built

    def _build(self) -> _Parts:
        config = self.config
        ledger = Ledger(config.resolved_ledger_url, now=self._now)
        ledger.check()
        source = BenchmarkSource(
            config.benchmark_db_path, busy_timeout_s=config.source_busy_timeout_s, host_connection=self._host_connection
        )
        mapper = Mapper(
            Rules(
                source_name=config.resolved_source_name,
                source_timezone=config.source_timezone,
                hardware_aliases=config.hardware_aliases,
                precision_aliases=config.precision_aliases,
                priority_models=config.high_priority_models,
                default_sequence_length=config.default_sequence_length,
                default_precision=config.default_precision,
                default_batch_size=config.default_batch_size,
                keyed=config.measurement_source == "keyed",
            )
        )
        policy = Policy(
            days=config.sync_days_lookback,
            limit=config.sync_limit,
            batch_size=config.batch_size,
            retry_base_s=config.retry_base_s,
            retry_max_s=config.retry_max_s,
            settle_after_s=config.settle_after_s,
            lease_s=config.lease_s,
        )
        engine = SyncEngine(source, mapper, ledger, self._sink, source_name=config.resolved_source_name, owner=_owner(), policy=policy)
        scheduler = SyncScheduler(claim=self._claim_tick, cycle=self.cycle, look_every_s=min(5.0, config.sync_interval_minutes * 60 / 4))
        return _Parts(os.getpid(), source, mapper, ledger, engine, ledger.runs.source_id(config.resolved_source_name), scheduler)

    def _host_connection(self) -> DuckDBPyConnection | None:
        from duckdb import DuckDBPyConnection

        offered = self._host.services().get("benchmark_db")
        return offered if isinstance(offered, DuckDBPyConnection) else None

    def _sink(self) -> Sink:
        """The sink of this process: the host's service, its routes, or HTTP; the first that is there and that the config allows."""
        parts = self._parts()
        with self._lock:
            if parts.sink is None:
                parts.sink = self._choose_sink()
            return parts.sink

    def _choose_sink(self) -> Sink:
        config = self.config
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
        return HttpSink(exchange, keyed=self.config.measurement_source == "keyed", acknowledge_timeout_s=self.config.acknowledge_timeout_s)

    def _answer(self, request: SyncRequest) -> dict[str, Any]:
        try:
            summary = self.sync(request)
        except BridgeError as error:
            summary = RunSummary(
                None,
                "failed",
                request.kind,
                request.dry_run,
                self._now(),
                self._now(),
                error_code=error.code,
                message=error.message,
                guidance=error.guidance,
            )
        return {
            "success": summary.state in ("succeeded", "partial", "stopped") and summary.failed == 0,
            "message": f"{summary.message} {summary.guidance}".strip(),
            "total": summary.considered,
            "synced": summary.synced,
            "failed": summary.failed,
            "rejected": summary.rejected,
            "skipped": summary.skipped,
            "run_id": summary.run_id,
            "details": reports.run_as_json(summary.as_dict()),
        }

    def _run_in_background(self, request: SyncRequest, begun: Future[int]) -> None:
        try:
            self.sync(request, started=begun.set_result)
        except Exception as error:  # the edge of a thread
            if not begun.done():
                begun.set_exception(error)
            else:
                _logger.exception("a sync in the background failed")
            return
        self._write_report()

    def _write_report(self) -> None:
        try:
            parts = self._parts()
            built = reports.build(parts.ledger, parts.source_id, source_name=self.config.resolved_source_name)
            reports.write(built, Path(self.config.report_output_dir), keep=self.config.report_keep)
        except BridgeError as error:
            _logger.error("no report was written: %s", error)

    def _claim_tick(self, at_once: bool) -> bool:
        parts = self._parts()
        if parts.stopping.is_set():
            return False
        interval_minutes = parts.ledger.runs.schedule(parts.source_id).interval_minutes or self.config.sync_interval_minutes
        return parts.ledger.runs.claim_tick(parts.source_id, interval_minutes * 60, at_once=at_once)

    def _look_at_source(self) -> dict[str, object]:
        name = self.config.benchmark_db_path
        try:
            layout = self._parts().source.layout(wait=False)
        except SourceBusy as error:
            return {"ok": False, "name": name, "busy": True, "error": error.message, "guidance": error.guidance}
        except SourceError as error:
            return {"ok": False, "name": name, "error": error.message, "guidance": error.guidance}
        return {"ok": True, "name": name, "roles": dict(layout.roles)}

    def _look_at_sink(self) -> dict[str, object]:
        name = self.config.predictive_api_url
        try:
            sink = self._sink()
            name = sink.name
            return {"ok": True, "name": name, **sink.profile().as_dict()}
        except (SinkError, ConfigError) as error:
            return {"ok": False, "name": name, "error": error.message, "guidance": error.guidance}

    def _checked(self, name: str, look: Callable[[], dict[str, object]]) -> dict[str, object]:
        """Look in a thread of its own and wait 2 s at most; a look that hangs is joined by the next one, not repeated."""
        with self._lock:
            future = self._checks.get(name)
            if future is None or future.done():
                future = self._checks[name] = Future()
                threading.Thread(target=_fulfil, args=(future, look), name=f"benchbridge-check-{name}", daemon=True).start()
        try:
            return future.result(_CHECK_TIMEOUT_S)
        except TimeoutError:
            return {"ok": None, "error": f"no answer within {_CHECK_TIMEOUT_S:g} s"}

    def _shown(self, run: dict[str, Any]) -> dict[str, Any]:
        if run["state"] == "running":
            holder = self.lease_holder()
            if holder is None or holder.run_id != run["run_id"]:
                run = {
                    **run,
                    "state": "interrupted",
                    "message": "The process that ran it is gone; the next run goes on from where it stopped.",
                }
        return reports.run_as_json(run)

    def _schedule_as_json(self, schedule: Schedule) -> dict[str, Any]:
        return {
            "enabled": self.config.auto_sync_enabled,
            "paused": schedule.paused,
            "interval_minutes": schedule.interval_minutes or self.config.sync_interval_minutes,
            "next_tick_at": reports.iso(schedule.next_tick_at) if self.config.auto_sync_enabled and not schedule.paused else None,
            "last_tick_at": reports.iso(schedule.last_tick_at),
        }


def _owner() -> str:
    """Names this engine among all that share a ledger: host, process, and something that no restart repeats."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def _fulfil(future: Future[dict[str, object]], look: Callable[[], dict[str, object]]) -> None:
    try:
        future.set_result(look())
    except Exception as error:  # the edge of a thread
        if not isinstance(error, BridgeError):
            _logger.exception("a connection check failed")
        future.set_result({"ok": False, "error": str(error)})
