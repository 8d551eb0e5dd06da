"""The bridge: what users ask of it, from Python, the web and the command line alike."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchbridge_plugin import report as reports
from benchbridge_plugin._version import __version__
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.ends import HostServices
from benchbridge_plugin.errors import BridgeError, ConfigError, LeaseBusy, SourceError
from benchbridge_plugin.ledger import Holder, LeaseHolder, Page, Schedule
from benchbridge_plugin.model import Progress, RunSummary, SinkProfile, State, SyncRequest
from benchbridge_plugin.parts import Parts, Workshop, lookback
from benchbridge_plugin.process import identity
from benchbridge_plugin.verification import Verification, verify

__all__ = ["BenchmarkPredictivePerformanceBridge", "HostServices", "result_as_json"]

_logger = logging.getLogger(__name__)

_START_PATIENCE_S = 2.0
_LEASE_PATIENCE_S = 30.0
_SQLITE = "sqlite:///"


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
        self._now = now
        self._workshop = Workshop(self.config, host or HostServices(), now, claim=self._claim_tick, cycle=self._cycle)

    # -- the documented Python interface ------------------------------------------------------------------------------------------------

    def check_connections(self) -> dict[str, bool]:
        """Whether the benchmark database can be read and the predictive API answers: `{"benchmark_db": True, "predictive_api": True}`.

        Takes 2 s at most: what has not answered by then is False. `connections` says why something is False.
        """
        return {name: part["ok"] is True for name, part in self.connections().items()}

    def sync_recent_results(self, limit: int | None = None, days: int | None = None) -> dict[str, Any]:
        """Sync what is new, at most `limit` results no older than `days` (0: no limit; None: as configured).

        Returns `{"success", "message", "total", "synced", "failed", "rejected", "skipped", "run_id", "details"}`; never raises a BridgeError.
        """
        return self._answer(SyncRequest(limit=limit, days=days))

    def sync_by_model(self, model_name: str, days: int | None = None, limit: int | None = None) -> dict[str, Any]:
        """The same for the results of one model."""
        return self._answer(SyncRequest(model="" if model_name is None else model_name, days=days, limit=limit))

    def generate_report(self) -> dict[str, Any]:
        """The report as JSON values (see report.build), compared with the benchmark file first if that changed and can be read.

        Raises LedgerError. When the benchmark file cannot be read, the last comparison is reported and `note` says so; when there is none, the
        SourceError is raised.
        """
        self.require_source(wait=False)
        with self._workshop.at_work() as parts:
            note = ""
            try:
                parts.engine.refresh()
            except SourceError as error:
                if self.accounting()["compared_at"] is None:
                    raise
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
        """One run, in this thread. Raises ConfigError for a request that makes no sense, and what SyncEngine.run raises."""
        request = _checked(request)
        with self._workshop.at_work() as parts:
            return self._run(parts, request, _LEASE_PATIENCE_S, progress=progress, stopping=stopping, started=started)

    def adopt(self, *, assume_absent: bool = False) -> RunSummary:
        """Record as delivered what the predictive API already has, without sending anything: for a ledger that was lost. Raises as `sync` does.

        Of what the API cannot say, `unknown` in the summary counts the results; with `assume_absent` the next sync sends them.
        """
        return self.sync(SyncRequest(adopt=True, assume_absent=assume_absent))

    def start_sync(self, request: SyncRequest) -> tuple[int, bool]:
        """Start a run in the background. Returns its number, and whether that is a run that was under way already (it is joined, not doubled)."""
        begun: Future[int] = Future()
        threading.Thread(target=self._run_in_background, args=(_checked(request), begun), name="benchbridge-sync", daemon=True).start()
        try:
            return begun.result(), False
        except LeaseBusy as error:
            run_id = error.fields.get("run_id")
            if isinstance(run_id, int):
                return run_id, True
            raise

    def wait_for_run(self, run_id: int, timeout_s: float) -> dict[str, Any] | None:
        """The run once it has ended, or as it is after `timeout_s`; None if there is no such run."""
        deadline = time.monotonic() + timeout_s
        while (run := self.run(run_id)) is not None and run["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        return run

    def cycle(self, kind: str) -> RunSummary | None:
        """One scheduled run with its report on disk. None when another process is syncing. Errors are logged, not raised."""
        with self._workshop.at_work() as parts:
            return self._cycle(parts, kind)

    def retry(
        self, *, rejected: bool = False, model: str | None = None, result_ids: Sequence[str] | None = None, reason: str | None = None
    ) -> int:
        """Make waiting results due now; with `rejected`, bring refused ones back too. The next run sends them. Returns how many."""
        parts = self._workshop.parts()
        return parts.ledger.deliveries.retry(parts.source_id, rejected=rejected, model=model, result_ids=result_ids, reason=reason)

    def verify(self, *, repair: bool = False, progress: Callable[[int], object] = lambda checked: None) -> Verification:
        """Compare ledger and sink. With `repair`, what is missing goes back to pending and is sent by the next run. Raises SinkError, LeaseBusy."""
        with self._workshop.at_work() as parts:
            found = verify(parts.ledger, parts.source_id, self._workshop.ends().sink(), progress=progress)
            if not (repair and found.missing):
                return found
            lease = parts.ledger.leases.acquire(self.config.resolved_source_name, identity(), self.config.lease_s)
            try:
                count = parts.ledger.deliveries.reopen(Holder(lease, self.config.lease_s, 0), parts.source_id, found.missing)
            finally:
                parts.ledger.leases.release(lease)
            return replace(found, repaired=count)

    # -- the process --------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve in this process: open the ledger, and start the timer if `auto_sync_enabled`. Call it after any fork."""
        parts = self._workshop.parts()
        if self.config.auto_sync_enabled:
            parts.scheduler.start(run_now=self.config.sync_on_startup)

    def stop(self) -> None:
        """Stop the timer and finish or abandon the batch in hand within `shutdown_timeout_s`. What was not sent stays pending."""
        self._workshop.close(self.config.shutdown_timeout_s)

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def connections(self) -> dict[str, dict[str, object]]:
        """How source and sink are: `{"ok": bool | None, "name", "error", "guidance", ...}` each, within 2 s (None: no answer by then)."""
        return self._workshop.ends().connections()

    def status(self) -> dict[str, Any]:
        """What /status shows. Bounded by 2 s for source and sink together; the ledger is read without waiting for writers."""
        parts = self._workshop.parts()
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
        parts = self._workshop.parts()
        accounting = parts.ledger.accounts.accounting(parts.source_id)
        return {**accounting.as_dict(), "compared_at": reports.iso(accounting.compared_at)}

    def runs(self, *, limit: int = 20, before: int | None = None) -> list[dict[str, Any]]:
        """The runs, newest first."""
        parts = self._workshop.parts()
        return [self._shown(run) for run in parts.ledger.runs.history(parts.source_id, limit=limit, before=before)]

    def run(self, run_id: int) -> dict[str, Any] | None:
        parts = self._workshop.parts()
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
        parts = self._workshop.parts()
        return parts.ledger.accounts.results(parts.source_id, state=state, model=model, hardware=hardware, limit=limit, cursor=cursor)

    def schedule(self) -> dict[str, Any]:
        parts = self._workshop.parts()
        found = parts.ledger.runs.schedule(parts.source_id)
        return self._schedule_as_json(found)

    def set_schedule(self, *, paused: bool | None = None, interval_minutes: float | None = None) -> dict[str, Any]:
        """Pause, resume, or change the interval, for all processes."""
        parts = self._workshop.parts()
        return self._schedule_as_json(parts.ledger.runs.set_schedule(parts.source_id, paused=paused, interval_minutes=interval_minutes))

    def lease_holder(self) -> LeaseHolder | None:
        return self._workshop.parts().ledger.leases.holder(self.config.resolved_source_name)

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
        return self._workshop.ends().source.layout().roles

    def sink_profile(self) -> tuple[str, SinkProfile]:
        """The sink's name and what it takes, asked now. Raises SinkError."""
        ends = self._workshop.ends()
        profile = ends.sink().profile()
        return ends.sink_name, profile

    def require_source(self, *, readable: bool = True, wait: bool = True) -> None:
        """Raise a SourceError if there is no ledger yet and the benchmark file cannot be read: a mistyped path must not leave a ledger behind.

        With `wait=False` a file that is busy just now raises at once; with `readable=False`, or a ledger on a server, it only has to be there.
        """
        ledger = self.ledger_path
        if ledger is not None and ledger.exists():
            return
        if readable and ledger is not None:
            self._workshop.ends().source.layout(wait=wait)
        else:
            self._workshop.ends().source.signature()

    @property
    def ledger_path(self) -> Path | None:
        """The ledger's file; None when it is on a server."""
        url = self.config.resolved_ledger_url
        return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None

    @property
    def key_path(self) -> Path:
        """Where a generated key for /api/bridge is kept: beside the ledger, or beside the benchmark file when the ledger is a server."""
        ledger = self.ledger_path
        return Path(f"{ledger}.key") if ledger is not None else Path(f"{self.config.benchmark_db_path}.bridge.key")

    # -- inside -------------------------------------------------------------------------------------------------------------------------

    def _answer(self, request: SyncRequest) -> dict[str, Any]:
        try:
            self.require_source()
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

    def _run(
        self,
        parts: Parts,
        request: SyncRequest,
        patience_s: float,
        *,
        progress: Callable[[Progress], object] = lambda progress: None,
        stopping: Callable[[], bool] = lambda: False,
        started: Callable[[int], object] = lambda run_id: None,
    ) -> RunSummary:
        """One run of the engine. Somebody who holds the lease without a run makes a report or repairs, and is waited for: that is no other sync."""

        def stop() -> bool:
            return stopping() or parts.stopping.is_set()

        deadline = time.monotonic() + patience_s
        while True:
            try:
                return parts.engine.run(request, progress=progress, stopping=stop, started=started)
            except LeaseBusy as error:
                if error.fields.get("run_id") is not None or time.monotonic() > deadline or stop():
                    raise
            time.sleep(0.05)

    def _run_in_background(self, request: SyncRequest, begun: Future[int]) -> None:
        try:
            with self._workshop.at_work() as parts:
                self._run(parts, request, _START_PATIENCE_S, started=begun.set_result)
                self._write_report(parts)
        except Exception as error:  # the edge of a thread
            if not begun.done():
                begun.set_exception(error)
            else:
                _logger.exception("a sync in the background failed")

    def _cycle(self, parts: Parts, kind: str) -> RunSummary | None:
        try:
            summary = self._run(parts, SyncRequest(kind=kind), _LEASE_PATIENCE_S)
        except LeaseBusy as error:
            _logger.info("no scheduled sync: %s", error.message)
            return None
        except BridgeError as error:
            _logger.error("the scheduled sync could not run: %s", error)
            return None
        if summary.run_id is not None:  # there was something to do
            self._write_report(parts)
        return summary

    def _write_report(self, parts: Parts) -> None:
        try:
            built = reports.build(parts.ledger, parts.source_id, source_name=self.config.resolved_source_name)
            reports.write(built, Path(self.config.report_output_dir), keep=self.config.report_keep)
        except BridgeError as error:
            _logger.error("no report was written: %s", error)

    def _claim_tick(self, parts: Parts, at_once: bool) -> bool:
        interval_minutes = parts.ledger.runs.schedule(parts.source_id).interval_minutes or self.config.sync_interval_minutes
        return parts.ledger.runs.claim_tick(parts.source_id, interval_minutes * 60, at_once=at_once)

    def _shown(self, run: dict[str, Any]) -> dict[str, Any]:
        if run["state"] == "running":
            holder = self.lease_holder()
            if holder is None or holder.run_id != run["run_id"]:
                parts = self._workshop.parts()
                # It may have ended since it was read: the end is recorded before the lease is given back.
                run = parts.ledger.runs.get(parts.source_id, run["run_id"]) or run
                if run["state"] == "running":
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


def result_as_json(row: Mapping[str, object]) -> dict[str, Any]:
    """A row of `results` with its times as ISO 8601."""
    shown: dict[str, Any] = dict(row)
    return {**shown, **{name: reports.iso(shown[name]) for name in ("measured_at", "next_attempt_at", "updated_at")}}


def _checked(request: SyncRequest) -> SyncRequest:
    """The request, or a ConfigError with a sentence. It may come from anybody's Python, and a wrong limit must not mean none."""
    for name in ("limit", "days"):
        value = getattr(request, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ConfigError(f"{name} must be a whole number, 0 (no limit) or more, not {value!r}.", guidance="Correct it in the call.")
    if request.model is not None and (not isinstance(request.model, str) or not request.model):
        raise ConfigError(f"The model must be a name, not {request.model!r}.", guidance="Leave it out to take all models.")
    return request if request.days is None else replace(request, days=lookback(request.days))
