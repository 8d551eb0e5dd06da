"""The bridge: what users ask of it, from Python, the web and the command line alike."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchbridge_plugin import report as reports
from benchbridge_plugin._version import __version__
from benchbridge_plugin.as_json import accounting_as_json, iso, problems_as_json, run_as_json
from benchbridge_plugin.background import Background
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.ends import HostServices
from benchbridge_plugin.errors import BridgeError, ConfigError, LeaseBusy, SourceError, SourceMissing
from benchbridge_plugin.feed import Watch
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import LeaseHolder, Page, Schedule
from benchbridge_plugin.model import Progress, RunSummary, SinkProfile, State, SyncRequest, SyncTotal
from benchbridge_plugin.parts import Parts, Workshop, lookback
from benchbridge_plugin.planning.planner import ASKING_S, MOST, Wish
from benchbridge_plugin.regressions.watch import regression_with_history
from benchbridge_plugin.roster import Roster, lease_as_json
from benchbridge_plugin.story import Story, tell
from benchbridge_plugin.suggestions.desk import Answer
from benchbridge_plugin.suggestions.told import Wanted, told
from benchbridge_plugin.verification import Verification

__all__ = ["BenchmarkPredictivePerformanceBridge", "HostServices"]

_logger = logging.getLogger(__name__)

_START_PATIENCE_S = 2.0
_LEASE_PATIENCE_S = 30.0
_WATCHED_PART = 0.05  # of the time that syncs take
_MOST_CREDIT_S = 5.0
_RECENT_S = 2.0  # how old the word of source and sink may be in the status


class BenchmarkPredictivePerformanceBridge:
    """Carries the results of benchmark databases to one predictive API, exactly once.

    >>> bridge = BenchmarkPredictivePerformanceBridge(benchmark_db_path="benchmark_db.duckdb", predictive_api_url="http://localhost:8080")
    >>> bridge.sync_recent_results(limit=50)["synced"]
    50

    Any setting of docs/configuration.md can be given by keyword; `config` is a whole configuration to start from. Nothing is opened before it is
    needed. May be shared by threads; one sync of a file runs at a time, across all processes that use the same ledger.

    `benchmark_db_path` may be a list, and a folder or a pattern: then each file is a source of its own, what comes back is the sum over all files with
    `sources` in it, and `source` (a name) narrows a call to one of them.
    """

    def __init__(
        self,
        benchmark_db_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        predictive_api_url: str | None = None,
        api_key: str | None = None,
        *,
        config: BridgeConfig | None = None,
        host: HostServices | None = None,
        now: Callable[[], float] = time.time,
        **settings: object,
    ) -> None:
        self.config = (config or BridgeConfig()).with_changes(
            benchmark_db_path=benchmark_db_path,
            predictive_api_url=predictive_api_url,
            api_key=api_key,
            **settings,
        )
        self._now = now
        self._background = Background()
        self._workshop = Workshop(self.config, host or HostServices(), now, claim=self._claim_tick, cycle=self._cycle)

    # -- the documented Python interface ------------------------------------------------------------------------------------------------

    def check_connections(self) -> dict[str, bool]:
        """Whether the benchmark database can be read and the predictive API answers: `{"benchmark_db": True, "predictive_api": True}`.

        Takes 2 s at most: what has not answered by then is False. `connections` says why something is False.
        """
        return {name: part["ok"] is True for name, part in self.connections().items()}

    def sync_recent_results(self, limit: int | None = None, days: int | None = None, *, source: str | None = None) -> dict[str, Any]:
        """Sync what is new, at most `limit` results no older than `days` (0: no limit; None: as configured).

        Returns `{"success", "message", "total", "synced", "failed", "rejected", "skipped", "run_id", "details"}`; never raises a BridgeError. Of several
        files the sums, with `sources`.
        """
        return self._answer(SyncRequest(limit=limit, days=days), source)

    def sync_by_model(
        self, model_name: str, days: int | None = None, limit: int | None = None, *, source: str | None = None
    ) -> dict[str, Any]:
        """The same for the results of one model."""
        return self._answer(SyncRequest(model="" if model_name is None else model_name, days=days, limit=limit), source)

    def generate_report(self, *, source: str | None = None) -> dict[str, Any]:
        """The report as JSON values (see report.build), compared with the benchmark file first if that changed and can be read.

        Raises LedgerError. When the benchmark file cannot be read, the last comparison is reported and `note` says so; when there is none, the
        SourceError is raised. Of several files the sums, with `sources`.
        """
        self.require_source(wait=False)
        with self._workshop.at_work() as parts:
            return parts.roster(source).report()

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
        source: str | None = None,
        progress: Callable[[Progress], object] = lambda progress: None,
        stopping: Callable[[], bool] = lambda: False,
        started: Callable[[int], object] = lambda run_id: None,
    ) -> RunSummary:
        """One run, in this thread. Raises ConfigError for a request that makes no sense, and what SyncEngine.run raises.

        Of several files a run of each, and a SyncTotal: what is wrong with one of them is in it and not raised.
        """
        request = _checked(request)
        with self._workshop.at_work() as parts:
            began = time.monotonic()
            summary = self._run(parts, request, _LEASE_PATIENCE_S, Watch(progress, stopping, started), source)
            self._watch_a_little(parts, summary, began, source, stopping)
            return summary

    def adopt(self, *, assume_absent: bool = False, source: str | None = None) -> RunSummary:
        """Record as delivered what the predictive API already has, without sending anything: for a ledger that was lost. Raises as `sync` does.

        Of what the API cannot say, `unknown` in the summary counts the results; with `assume_absent` the next sync sends them.
        """
        return self.sync(SyncRequest(adopt=True, assume_absent=assume_absent), source=source)

    def start_sync(self, request: SyncRequest, *, source: str | None = None) -> tuple[int, bool]:
        """Start a run in the background. Returns its number, and whether that is a run that was under way already (it is joined, not doubled).

        Of several files it is the number of the first run that begins; `wait_for_run` waits for all of them.
        """
        request = _checked(request)
        return self._background.start(lambda watch: self._in_background(request, source, watch), whole=self.config.files.several)

    def wait_for_run(self, run_id: int, timeout_s: float) -> dict[str, Any] | None:
        """The run once it has ended, or as it is after `timeout_s`; None if there is no such run. The run that a sync over several files in this
        process began with stands for the whole sync."""
        deadline = time.monotonic() + timeout_s
        whole = self._background.whole(run_id)
        if whole is not None:
            with suppress(TimeoutError):
                return run_as_json(whole.result(timeout_s).as_dict())
        while (run := self.run(run_id)) is not None and run["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        return run

    def cycle(self, kind: str) -> RunSummary | None:
        """One scheduled run with its report on disk. None when another process is syncing. Errors are logged, not raised."""
        with self._workshop.at_work() as parts:
            return self._cycle(parts, kind)

    def retry(
        self,
        *,
        rejected: bool = False,
        model: str | None = None,
        result_ids: Sequence[str] | None = None,
        reason: str | None = None,
        source: str | None = None,
    ) -> int:
        """Make waiting results due now; with `rejected`, bring refused ones back too. The next run sends them. Returns how many."""
        return self._roster(source).retry(rejected=rejected, model=model, result_ids=result_ids, reason=reason)

    def verify(
        self, *, repair: bool = False, source: str | None = None, progress: Callable[[int], object] = lambda checked: None
    ) -> Verification:
        """Compare ledger and sink. With `repair`, what is missing goes back to pending and is sent by the next run. Raises SinkError, LeaseBusy."""
        with self._workshop.at_work() as parts:
            return parts.roster(source).verify(self._workshop.ends().sink(), repair=repair, progress=progress)

    def watch(self, *, source: str | None = None, stopping: Callable[[], bool] = lambda: False) -> int:
        """Take up all that was delivered into the histories of configurations, and look where they got worse. Returns how many results that were.

        A sync and the timer do so by themselves, in parts. Raises LedgerError, and SourceError when the benchmark file cannot be read now.
        """
        with self._workshop.at_work() as parts:

            def stop() -> bool:
                return stopping() or parts.stopping.is_set()

            return parts.roster(source).watch(within_s=None, at_least_some=True, stopping=stop).points

    # -- the process --------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve in this process: open the ledger, and start the timer if `auto_sync_enabled`. Call it after any fork."""
        parts = self._workshop.parts()
        parts.courier.nudge()
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
        """What /status shows. Bounded by 2 s for source and sink together; the ledger is read without waiting for writers.

        How source and sink are may be up to 2 s old, when somebody asked just before. `problems`: all that keeps results from arriving, or arriving whole.
        """
        parts = self._workshop.parts()
        connections = self._workshop.ends().connections(recent_s=_RECENT_S)
        roster = parts.roster()
        runs = roster.runs(limit=1)
        accountings = roster.accountings()
        problems = problems_as_json(connections, runs)
        status = {
            "status": "degraded" if problems else "ok",
            "problems": problems,
            "version": __version__,
            "source": roster.label if roster.only is None else roster.only.name,
            "connections": connections,
            "ledger": {"place": parts.ledger.place},
            "schedule": self.schedule(),
            "lease": lease_as_json(roster.lease_holder()),
            "last_run": runs[0] if runs else None,
            "accounting": {**accounting_as_json(roster.total_of(accountings)), "rejected_by_reason": roster.rejected_by_reason()},
            "config": self.config.redacted(),
        }
        return {**status, "sources": roster.sources(accountings)} if roster.several else status

    def source_names(self) -> list[str]:
        """The names of the sources there are now."""
        return [feed.name for feed in self._roster().feeds]

    def accounting(self, *, source: str | None = None) -> dict[str, Any]:
        """The accounting as the ledger has it, without looking at the source."""
        return accounting_as_json(self._roster(source).accounting())

    def accountings(self) -> dict[str, dict[str, Any]] | None:
        """The accounting of each of several files, by name; None for a bridge with a single file."""
        roster = self._roster()
        found = roster.accountings()
        return {feed.name: accounting_as_json(found[feed.source_id]) for feed in roster.feeds} if roster.several else None

    def runs(self, *, limit: int = 20, before: int | None = None, source: str | None = None) -> list[dict[str, Any]]:
        """The runs, newest first."""
        return self._roster(source).runs(limit=limit, before=before)

    def run(self, run_id: int) -> dict[str, Any] | None:
        return self._roster().run(run_id)

    def results(
        self,
        *,
        state: State | None = None,
        model: str | None = None,
        hardware: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        source: str | None = None,
    ) -> Page:
        """Single results, a page at a time. Results that no run took up yet have no row and are not listed."""
        return self._roster(source).results(state=state, model=model, hardware=hardware, limit=limit, cursor=cursor)

    def files(self) -> list[dict[str, Any]]:
        """What is said of each benchmark file: its accounting, its last run, and what is wrong with it."""
        roster = self._roster()
        return roster.sources(roster.accountings())

    def coverage(self, *, source: str | None = None) -> list[dict[str, Any]]:
        """One row for each model and hardware: `total` on disk, and how many of them are where. From the ledger alone."""
        return self._roster(source).coverage()

    def refusals(self, *, source: str | None = None) -> list[dict[str, Any]]:
        """What is refused, retrying or in doubt, grouped by its reason, most first."""
        return self._roster(source).refusals()

    def quality(self, *, source: str | None = None) -> dict[str, int]:
        """How many delivered results carry which remark."""
        return self._roster(source).quality()

    def accuracy(self, *, days: int = 0, source: str | None = None) -> dict[str, Any]:
        """How far the predictor was off on results that it had not been shown (docs/accuracy.md), over so many days; 0: all. From the ledger alone."""
        roster = self._roster(source)
        since_day = int(roster.ledger.now() // 86_400) - days + 1 if days else 0
        return roster.ledger.scores.report([feed.source_id for feed in roster.feeds], since_day=since_day)

    def plan(
        self,
        *,
        limit: int = 20,
        model: str | None = None,
        hardware: str | None = None,
        source: str | None = None,
        within_s: float = ASKING_S,
        recent_s: float = 0.0,
    ) -> dict[str, Any]:
        """What to measure next: the configurations whose measurement would reduce the predictor's error most (docs/plan.md), at most so many.

        Raises SourceError, ConfigError and LedgerError. `within_s` bounds how long the predictor is asked; with `recent_s` a plan that is no older is
        given again while no file has changed.
        """
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST:
            raise ConfigError(f"limit must be a whole number from 1 to {MOST}, not {limit!r}.", guidance="Correct it in the call.")
        with self._workshop.at_work() as parts:
            files = parts.benchmark_files(source)
            return parts.planner.plan(files, parts.ends.sink, Wish(limit, model, hardware), within_s=within_s, recent_s=recent_s)

    def regressions(
        self,
        *,
        state: str | None = None,
        model: str | None = None,
        hardware: str | None = None,
        metric: str | None = None,
        worse: bool = True,
        since: float | None = None,
        limit: int = 100,
        cursor: str | None = None,
        source: str | None = None,
    ) -> Page:
        """Where configurations got worse for good (`worse=False`: better), newest first, a page at a time."""
        wanted = {"state": state, "model": model, "hardware": hardware, "metric": metric, "worse": worse, "since": since}
        return self._roster(source).regressions(**wanted, limit=limit, before=None if cursor is None else int(cursor))

    def regression(self, regression_id: int) -> dict[str, Any] | None:
        """One of them, with `points` of its history: (number, when, figure), and `first_number`, where it changed."""
        return regression_with_history(self._workshop.parts().ledger, regression_id)

    def decide_regression(self, regression_id: int, state: str, note: str | None = None) -> dict[str, Any] | None:
        """Somebody sets the state of a regression: `open`, `acknowledged` or `resolved`. None: there is no such regression."""
        return self._workshop.parts().ledger.regressions.decide(regression_id, state, note)

    def suggestions(
        self,
        *,
        code: str | None = None,
        model: str | None = None,
        hardware: str | None = None,
        limit: int = 100,
        each: bool = False,
        source: str | None = None,
        patience_s: float | None = None,
        newest: bool = True,
    ) -> dict[str, Any]:
        """What the measured results suggest (docs/suggestions.md), most gain first: `{"suggestions", "total", "counts", "read_at", "note"}`.

        `hardware` is a platform or the name of a device. `counts` has each code; `total` is how many match, listed or not: at
        most `limit` are, with `each` of each code. What cannot be had within
        `patience_s`, and with `newest=False` at once, is as it was before: `read_at` says when, `note` why. Raises LedgerError, and the SourceError
        when no file can be read.
        """
        with self._workshop.at_work() as parts:
            roster = parts.roster(source)
            if not roster.feeds:
                raise roster.nothing_found()
            found: list[tuple[str, Answer | BridgeError | None]] = []
            for feed in roster.feeds:
                try:
                    found.append((feed.name, parts.desk.ask(parts.evidence_of(feed), patience_s=patience_s, newest=newest)))
                except (SourceError, ConfigError) as error:
                    found.append((feed.name, error))
        errors = [part for _, part in found if isinstance(part, BridgeError)]
        if len(errors) == len(found):
            raise errors[0]
        return told(found, Wanted(code, model, hardware), limit=limit, each=each, several=roster.several)

    def story(self, result_id: str, *, source: str | None = None) -> Story:
        """Everything that is known of one result, within about 3 s. Over several files `source` names the one, else the first that has it."""
        roster = self._roster(source)
        if not roster.feeds:
            return Story(source or "", result_id, ())
        feed = next((feed for feed in roster.feeds if roster.ledger.contents.of(feed.source_id, result_id)), roster.feeds[0])
        mapper, ends = self._workshop.parts().mapper.for_source(feed.name), self._workshop.ends()
        place = ends.source_at(feed.file.path)
        return tell(roster.ledger, feed.source_id, place, mapper, ends.sink, name=feed.name, result_id=result_id)

    def schedule(self) -> dict[str, Any]:
        parts = self._workshop.parts()
        return self._schedule_as_json(parts.ledger.runs.schedule(parts.schedule_id))

    def set_schedule(self, *, paused: bool | None = None, interval_minutes: float | None = None) -> dict[str, Any]:
        """Pause, resume, or change the interval, for all processes."""
        parts = self._workshop.parts()
        return self._schedule_as_json(parts.ledger.runs.set_schedule(parts.schedule_id, paused=paused, interval_minutes=interval_minutes))

    def lease_holder(self) -> LeaseHolder | None:
        return self._roster().lease_holder()

    def health(self) -> dict[str, object]:
        """A few numbers for the host's /health: cheap, from the ledger alone. `status` is `degraded` while the last run failed, with why."""
        accounting = self.accounting()
        names = ("total", "delivered", "pending", "retrying", "in_doubt", "rejected", "skipped", "balanced")
        runs = self.runs(limit=1)
        problems = problems_as_json({}, runs)
        return {
            "status": "degraded" if problems else "ok",
            "problems": problems,
            **{name: accounting[name] for name in names},
            "last_run": {name: runs[0][name] for name in ("run_id", "state", "finished_at")} if runs else None,
        }

    def metrics(self, accept: str = "") -> tuple[bytes, str]:
        """The figures for Prometheus and their content type, from the ledger alone. `accept`: the header of who asks. Raises LedgerError."""
        from benchbridge_plugin import metrics  # with the library, which nobody else needs

        parts = self._workshop.parts()
        names = {feed.source_id: feed.name for feed in parts.roster().feeds}
        schedule = parts.ledger.runs.schedule(parts.schedule_id)
        interval_s = (schedule.interval_minutes or self.config.sync_interval_minutes) * 60
        plan = metrics.Plan(self.config.auto_sync_enabled, schedule, interval_s)
        return metrics.expose(metrics.read(parts.ledger, names), plan, parts.ledger.now(), accept)

    def source_layout(self) -> Layout:
        """The benchmark database's layout: its `roles` are `{"latency_ms": "performance_results.average_latency_ms", ...}`. Raises SourceError."""
        return self._workshop.ends().source.layout()

    def roles_of_each(self) -> list[tuple[BenchmarkFile, Mapping[str, str] | SourceError | ConfigError]] | None:
        """The roles of each of several files, or what is wrong with it; None for a bridge with a single file. Needs no ledger."""
        ends = self._workshop.ends()
        return [(file, ends.roles_or_error(file)) for file in ends.files.look({})] if ends.files.several else None

    def sink_profile(self) -> tuple[str, SinkProfile]:
        """The sink's name and what it takes, asked now. Raises SinkError."""
        ends = self._workshop.ends()
        profile = ends.sink().profile()
        return ends.sink_name, profile

    def require_source(self, *, readable: bool = True, wait: bool = True) -> None:
        """Raise a SourceError if there is no ledger yet and the benchmark file cannot be read: a mistyped path must not leave a ledger behind.

        With `wait=False` a file that is busy just now raises at once; with `readable=False`, or a ledger on a server, it only has to be there. Of several
        files one that can be read is enough, and where only being there is asked for they may also come later.
        """
        ledger = self.ledger_path
        if ledger is not None and ledger.exists():
            return
        ends = self._workshop.ends()
        if ends.files.several:
            if readable:
                ends.require_one()
        elif readable and ledger is not None:
            ends.source.layout(wait=wait)
        else:
            ends.source.signature()

    @property
    def ledger_path(self) -> Path | None:
        """The ledger's file; None when it is on a server."""
        return None if (file := self.config.ledger_file) is None else Path(file)

    @property
    def key_path(self) -> Path:
        """Where a generated key for /api/bridge is kept: beside the ledger, or beside the benchmark file when the ledger is a server."""
        ledger = self.ledger_path
        return Path(f"{ledger}.key") if ledger is not None else Path(f"{self.config.files.beside}.bridge.key")

    # -- inside -------------------------------------------------------------------------------------------------------------------------

    def _roster(self, source: str | None = None) -> Roster:
        return self._workshop.parts().roster(source)

    def _answer(self, request: SyncRequest, source: str | None) -> dict[str, Any]:
        try:
            self.require_source()
            summary = self.sync(request, source=source)
        except BridgeError as error:
            summary = RunSummary.of_error(error, request, self._now())
        return reports.answer(summary)

    def _run(self, parts: Parts, request: SyncRequest, patience_s: float, watch: Watch, source: str | None = None) -> RunSummary:
        stopping = watch.stopping
        watch = replace(watch, stopping=lambda: stopping() or parts.stopping.is_set())
        limit = self.config.sync_limit if request.limit is None else request.limit
        return parts.roster(source).sync(request, limit=0 if request.adopt else limit, patience_s=patience_s, watch=watch)

    def _watch_a_little(self, parts: Parts, summary: RunSummary, began: float, source: str | None, stopping: Callable[[], bool]) -> None:
        """Somebody waits for the sync, and for this with it: it has a twentieth of the time of all syncs, and what it takes longer later ones have less.
        What is left is taken up between cycles, after later syncs, or by `watch`."""
        if not _ran(summary):
            return
        ended = time.monotonic()
        parts.watch_credit_s = min(parts.watch_credit_s + _WATCHED_PART * (ended - began), _MOST_CREDIT_S)
        if parts.watch_credit_s > 0:
            parts.watch(source, within_s=parts.watch_credit_s, at_least_some=False, stopping=stopping)
            parts.watch_credit_s -= time.monotonic() - ended
        else:
            parts.unwatched = True

    def _in_background(self, request: SyncRequest, source: str | None, watch: Watch) -> Iterator[RunSummary]:
        """The sync, and when that has been told what it means for the histories, and the report of it."""
        with self._workshop.at_work() as parts:
            yield self._run(parts, request, _START_PATIENCE_S, watch, source)
            parts.watch(source, within_s=None)
            self._write_report(parts)

    def _cycle(self, parts: Parts, kind: str) -> RunSummary | None:
        began = time.monotonic()
        try:
            summary = self._run(parts, SyncRequest(kind=kind), _LEASE_PATIENCE_S, Watch())
        except LeaseBusy as error:
            _logger.info("no scheduled sync: %s", error.message)
            return None
        except SourceMissing as error:  # a pattern that nothing matches yet
            _logger.info("nothing to sync: %s", error.message)
            return None
        except BridgeError as error:
            _logger.error("the scheduled sync could not run: %s", error)
            return None
        if _ran(summary):  # there was something to do
            self._watch_a_little(parts, summary, began, None, lambda: False)
            self._write_report(parts)
        return summary

    def _write_report(self, parts: Parts) -> None:
        try:
            reports.write(parts.roster().report_as_it_is(), Path(self.config.report_output_dir), keep=self.config.report_keep)
        except BridgeError as error:
            _logger.error("no report was written: %s", error)

    def _claim_tick(self, parts: Parts, at_once: bool) -> bool:
        source_id = parts.schedule_id
        interval_minutes = parts.ledger.runs.schedule(source_id).interval_minutes or self.config.sync_interval_minutes
        return parts.ledger.runs.claim_tick(source_id, interval_minutes * 60, at_once=at_once)

    def _schedule_as_json(self, schedule: Schedule) -> dict[str, Any]:
        return {
            "enabled": self.config.auto_sync_enabled,
            "paused": schedule.paused,
            "interval_minutes": schedule.interval_minutes or self.config.sync_interval_minutes,
            "next_tick_at": iso(schedule.next_tick_at) if self.config.auto_sync_enabled and not schedule.paused else None,
            "last_tick_at": iso(schedule.last_tick_at),
        }


def _ran(summary: RunSummary) -> bool:
    """Whether there was a run, of any file."""
    parts = [part.summary for part in summary.sources] if isinstance(summary, SyncTotal) else [summary]
    return any(part.run_id is not None for part in parts)


def _checked(request: SyncRequest) -> SyncRequest:
    """The request, or a ConfigError with a sentence. It may come from anybody's Python, and a wrong limit must not mean none."""
    for name in ("limit", "days"):
        value = getattr(request, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ConfigError(f"{name} must be a whole number, 0 (no limit) or more, not {value!r}.", guidance="Correct it in the call.")
    if request.model is not None and (not isinstance(request.model, str) or not request.model):
        raise ConfigError(f"The model must be a name, not {request.model!r}.", guidance="Leave it out to take all models.")
    return request if request.days is None else replace(request, days=lookback(request.days))
