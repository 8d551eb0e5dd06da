"""What one bridge has open in one process: source and sink, ledger, engine, timer. Built when first needed, closed when nobody works with it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.courier import Courier
from benchbridge_plugin.ends import Ends, HostServices
from benchbridge_plugin.errors import BridgeError, LeaseLost
from benchbridge_plugin.feed import Feed
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.planning.planner import Planner
from benchbridge_plugin.process import identity
from benchbridge_plugin.regressions.watch import Watcher
from benchbridge_plugin.roster import Roster
from benchbridge_plugin.round import Turn
from benchbridge_plugin.scheduler import SyncScheduler
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.suggestions.desk import Desk, File
from benchbridge_plugin.sync import Policy, SyncEngine
from benchbridge_plugin.webhook import Webhook

_logger = logging.getLogger(__name__)

_COURIERS_PATIENCE_S = 5.0
_WATCHED_BETWEEN_S = 1.0  # of the few seconds between two looks of the timer
_LONGEST_LOOKBACK_DAYS = 100_000  # further back than any clock: the same as no limit

#: What a forked child has from its parent. It must neither use it nor let it be closed: SQLite would take the parent's file for abandoned.
_inherited: list[object] = []


@dataclass(slots=True)
class Parts:
    """Everything that has to do with the ledger. Like the ends, it belongs to one process: after a fork the child builds its own."""

    process: int
    config: BridgeConfig
    ends: Ends
    mapper: Mapper
    ledger: Ledger
    scheduler: SyncScheduler
    courier: Courier
    planner: Planner
    stopping: threading.Event = field(default_factory=threading.Event)
    working: int = 0  # how many threads use them; guarded by the workshop's gate
    unwatched: bool = True  # whether there may be something that no history has taken up yet
    watch_credit_s: float = 0.0  # how long syncs may still be kept waiting for the histories
    turn: Turn = field(default_factory=Turn)
    feeds: dict[BenchmarkFile, Feed] = field(default_factory=dict)
    desk: Desk = field(init=False)

    def __post_init__(self) -> None:
        self.desk = Desk(self.stopping, now=self.ledger.now)

    @property
    def schedule_id(self) -> int:
        """The source whose row has the schedule of the whole bridge."""
        return self.ledger.runs.source_id(self.ends.files.name)

    def roster(self, source: str | None = None) -> Roster:
        """All feeds as they are now, or the one of that name: every call looks for files that came or went. Raises LedgerError and ConfigError."""
        files = self.ends.files
        several = files.several
        known = self.ledger.whereabouts.known() if several else {}
        found = files.look(known)
        if several:
            self.ledger.whereabouts.note({file.name: file.place for file in found if file.owns_name and known.get(file.name) != file.place})
        feeds = [self._feed(file) for file in found if file.owns_name]
        refused = [file for file in found if not file.owns_name]
        ours = [feed.source_id for feed in feeds]
        return Roster(files.label, several, feeds, refused, ours, self.ledger, self.turn, files.nothing_found).narrowed(source)

    def evidence_of(self, feed: Feed) -> File:
        """A feed's file as suggestions are made from it. Raises what is wrong with the file's name."""
        if feed.file.error is not None:
            raise feed.file.error
        return File(feed.name, feed.source_id, self.ends.source_at(feed.file.path), self.mapper.for_source(feed.name), self.ledger)

    def _feed(self, file: BenchmarkFile) -> Feed:
        kept = self.feeds.get(replace(file, error=None))
        if kept is None:
            engine = SyncEngine(
                self.ends.source_at(file.path),
                self.mapper.for_source(file.name),
                self.ledger,
                self.ends.sink,
                source_name=file.name,
                owner=identity(),
                policy=policy_of(self.config),
            )
            source_id = self.ledger.runs.source_id(file.name)
            watcher = self._watcher(file, source_id) if self.config.regressions.enabled else None
            kept = self.feeds[replace(file, error=None)] = Feed(file, source_id, engine, self.ledger, watcher, lease_s=self.config.lease_s)
        return kept if kept.file == file else kept.about(file)

    def benchmark_files(self, source: str | None = None) -> list[tuple[BenchmarkSource, Mapper]]:
        """What can be read now, each with the rules for it. Raises what is wrong with the first file when it is with all of them."""
        roster = self.roster(source)
        feeds = [feed for feed in roster.feeds if feed.file.error is None]
        if not feeds:
            raise next((feed.file.error for feed in roster.feeds if feed.file.error is not None), roster.nothing_found())
        return [(self.ends.source_at(feed.file.path), self.mapper.for_source(feed.name)) for feed in feeds]

    def watch(
        self, source: str | None = None, *, within_s: float | None, at_least_some: bool = True, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Take up what was delivered into the histories, as far as the time goes. Raises nothing: what is wrong with a history must not look like a fault
        of what was delivered."""
        if not self.config.regressions.enabled:
            return
        self.unwatched = True
        try:
            watched = self.roster(source).watch(
                within_s=within_s, at_least_some=at_least_some, stopping=lambda: stopping() or self.stopping.is_set()
            )
            self.unwatched = watched.more or source is not None
            if watched.findings:
                _logger.info("histories changed", extra={"findings": watched.findings})
        except BridgeError as error:
            _logger.info("results are taken up into the histories later: %s", error.message)
        except Exception:  # the edge of a job
            _logger.exception("results could not be taken up into the histories")

    def _watcher(self, file: BenchmarkFile, source_id: int) -> Watcher:
        source, mapper = self.ends.source_at(file.path), self.mapper.for_source(file.name)
        return Watcher(source, mapper, self.ledger, source_id, smallest=self.config.regressions.smallest)


_Kept = TypeVar("_Kept", Ends, Parts)


class Workshop:
    """Builds the parts of one bridge, and closes them once the last thread that works with them has left. Safe to use from several threads.

    `claim(parts, at_once)` and `cycle(parts, kind)` are what the timer calls (see SyncScheduler).
    """

    def __init__(
        self,
        config: BridgeConfig,
        host: HostServices,
        now: Callable[[], float],
        *,
        claim: Callable[[Parts, bool], bool],
        cycle: Callable[[Parts, str], object],
    ) -> None:
        self._config = config
        self._host = host
        self._now = now
        self._claim = claim
        self._cycle = cycle
        self._gate = threading.Condition(threading.RLock())
        self._ends: Ends | None = None
        self._parts: Parts | None = None

    def ends(self) -> Ends:
        """Source and sink. They can be looked at without a ledger."""
        with self._gate:
            self._ends = _own(self._ends) or Ends(self._config, self._host)
            return self._ends

    def parts(self) -> Parts:
        """The parts, for a look. Raises LedgerError when the ledger cannot be opened."""
        with self._gate:
            self._parts = _own(self._parts) or self._build(self.ends())
            return self._parts

    @contextmanager
    def at_work(self) -> Iterator[Parts]:
        """The parts, which `close` does not close before the end of this block."""
        with self._gate:
            parts = self.parts()
            parts.working += 1
        try:
            yield parts
        finally:
            self._leave(parts)

    def close(self, timeout_s: float) -> None:
        """Stop the timer, and finish or abandon the batch in hand. May be repeated; using the workshop again opens it again."""
        with self._gate:
            ends, self._ends = _own(self._ends), None
            parts, self._parts = _own(self._parts), None
        if parts is not None:
            parts.stopping.set()
            deadline = time.monotonic() + timeout_s
            in_time = parts.scheduler.stop(timeout_s)
            with self._gate:
                in_time = self._gate.wait_for(lambda: not parts.working, max(deadline - time.monotonic(), 0.0)) and in_time
            if not in_time:
                _logger.warning("a sync did not end in time; what it had handed over is in doubt and will be asked for")
                return  # its parts stay open under it; the process is about to end
            parts.desk.wait(max(deadline - time.monotonic(), 0.0))
            parts.courier.close(min(_COURIERS_PATIENCE_S, max(deadline - time.monotonic(), 0.0)))
            parts.mapper.close()
            parts.ledger.close()
        if ends is not None:
            ends.close()

    # -- inside -------------------------------------------------------------------------------------------------------------------------

    def _leave(self, parts: Parts) -> None:
        with self._gate:
            parts.working -= 1
            self._gate.notify_all()

    def _at_tick(self, parts: Parts, work: Callable[[], object]) -> None:
        """What a tick of the timer brings. One that comes while the workshop closes is dropped: it must not open everything again."""
        with self._gate:
            if parts.stopping.is_set():
                return
            parts.working += 1
        try:
            work()
        finally:
            self._leave(parts)

    def _build(self, ends: Ends) -> Parts:
        config = self._config
        courier = Courier(lambda: ledger.outbox, webhook_of(config, self._now), self._now)
        wanted = frozenset(config.webhook_events) if config.webhook_url is not None else frozenset[str]()
        ledger = Ledger(config.resolved_ledger_url, now=self._now, events=wanted, told=courier.tell)
        ledger.check()
        mapper = Mapper(rules_of(config))
        scheduler = SyncScheduler(
            claim=lambda at_once: not parts.stopping.is_set() and self._claim(parts, at_once),
            cycle=lambda kind: self._at_tick(parts, lambda: self._cycle(parts, kind)),
            help=lambda: self._at_tick(parts, lambda: _between_cycles(parts)),
            # Where work is shared, a run that begins should not have to wait long for its helpers.
            look_every_s=min(1.0 if policy_of(config).share_work else 5.0, config.sync_interval_minutes * 60 / 4),
        )
        planner = Planner(config.default_sequence_length, self._now)
        parts = Parts(os.getpid(), config, ends, mapper, ledger, scheduler, courier, planner)
        return parts


def _own(kept: _Kept | None) -> _Kept | None:
    """What was kept, if this process made it; what a parent made is put aside."""
    if kept is None or kept.process == os.getpid():
        return kept
    _inherited.append(kept)
    return None


def _between_cycles(parts: Parts) -> None:
    parts.courier.nudge()  # another process may have left events and ended
    _help(parts)
    if parts.unwatched:
        parts.watch(within_s=_WATCHED_BETWEEN_S)


def webhook_of(config: BridgeConfig, now: Callable[[], float]) -> Webhook | None:
    if config.webhook_url is None or config.webhook_secret is None:
        return None
    return Webhook(config.webhook_url, config.webhook_secret, timeout_s=config.request_timeout_s, ca_bundle=config.ca_bundle, now=now)


def _help(parts: Parts) -> None:
    """Carry parts of runs of other processes, if they offer any."""
    if not policy_of(parts.config).share_work:
        return
    try:
        for feed in parts.roster().running():
            feed.engine.help(stopping=parts.stopping.is_set)
    except LeaseLost as error:
        _logger.info("%s", error.message)
    except BridgeError as error:
        _logger.warning("cannot help another sync: %s", error)


def rules_of(config: BridgeConfig) -> Rules:
    """What the config says about meaning."""
    return Rules(
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


def policy_of(config: BridgeConfig) -> Policy:
    """What the config says about how the engine behaves."""
    return Policy(
        days=lookback(config.sync_days_lookback),
        limit=config.sync_limit,
        batch_size=config.batch_size,
        retry_base_s=config.retry_base_s,
        retry_max_s=config.retry_max_s,
        max_attempts=config.max_attempts,
        settle_after_s=config.settle_after_s,
        lease_s=config.lease_s,
        compare_every_s=config.full_comparison_minutes * 60,
        share_work=config.share_work and config.ledger_on_a_server,
        score_sample=config.score_sample,
    )


def lookback(days: int) -> int:
    """Days to look back, 0 for no limit."""
    return days if days <= _LONGEST_LOOKBACK_DAYS else 0
