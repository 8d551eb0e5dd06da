"""All the feeds of a bridge as one: what a bridge says and does is said and done by its only feed, or by each of several and summed up.

Whether there are several is a matter of the config and not of how many files there are today: what a caller gets keeps its shape when files come and go.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchbridge_plugin import report as reports
from benchbridge_plugin.as_json import accounting_as_json, iso
from benchbridge_plugin.errors import BridgeError, ConfigError, LeaseBusy, SourceError, SourceMissing
from benchbridge_plugin.feed import Feed, Watch
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.ledger import STATES, LeaseHolder, Ledger, Page
from benchbridge_plugin.model import STATE_NAMES, Accounting, RunSummary, State, SyncRequest
from benchbridge_plugin.regressions.watch import Watched
from benchbridge_plugin.round import Turn, in_turn, sync_all
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.totals import accounting_total, coverage_total, refusals_total, report_total
from benchbridge_plugin.verification import Verification, total_of, verify, verify_all

_RUNS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Roster:
    """The feeds of this moment. `refused` are files without a name of their own; `ours` are the sources of all feeds, also where one was asked for."""

    label: str
    several: bool
    feeds: Sequence[Feed]
    refused: Sequence[BenchmarkFile]
    ours: Sequence[int]
    ledger: Ledger
    turn: Turn
    nothing_found: Callable[[], SourceMissing]

    def narrowed(self, source: str | None) -> Roster:
        """Only the source of that name. Raises ConfigError if there is none."""
        if source is None:
            return self
        found = [feed for feed in self.feeds if feed.name == source]
        if not found:
            names = ", ".join(feed.name for feed in self.feeds[:20]) + (", ..." if len(self.feeds) > 20 else "")
            raise ConfigError(f"There is no source {source!r}.", guidance=f"There are: {names or 'none yet'}.", source=source)
        return replace(self, feeds=found, refused=())

    @property
    def only(self) -> Feed | None:
        """The feed of a bridge with a single file."""
        return None if self.several else self.feeds[0]

    # -- moving results -----------------------------------------------------------------------------------------------------------------

    def sync(self, request: SyncRequest, *, limit: int, patience_s: float, watch: Watch) -> RunSummary:
        """A run of each feed; of the only one it is that run. Raises what Feed.run raises, of several LedgerError, and SourceError if there is none."""
        if self.only is not None:
            return self.only.run(request, patience_s, watch)
        if not self.feeds and not self.refused:
            raise self.nothing_found()
        feeds = in_turn(self.feeds, self.ledger.runs.last([feed.source_id for feed in self.feeds]))

        def started(run_id: int) -> None:
            self.turn.begun(run_id)
            watch.started(run_id)

        def go() -> RunSummary:
            told = replace(watch, started=started)
            return sync_all(feeds, self.refused, request, limit=limit, patience_s=patience_s, watch=told, now=self.ledger.now)

        if request.dry_run:
            return go()
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with self.turn.take(self.label):
                    return go()
            except LeaseBusy as error:  # between two files it has no run to join
                if error.fields.get("run_id") is not None or time.monotonic() > deadline or watch.stopping():
                    raise
            time.sleep(0.05)

    def watch(self, *, within_s: float | None, at_least_some: bool, stopping: Callable[[], bool]) -> Watched:
        """What Feed.watch does, of each file in its turn: the first error is raised when all have had theirs."""
        deadline = None if within_s is None else time.monotonic() + within_s
        done = Watched()
        errors: list[SourceError] = []
        for feed in self.feeds:
            if stopping() or (deadline is not None and time.monotonic() > deadline):
                return replace(done, more=True)
            try:
                left_s = None if deadline is None else deadline - time.monotonic()
                part = feed.watch(within_s=left_s, at_least_some=at_least_some, stopping=stopping)
            except SourceError as error:
                errors.append(error)
                continue
            done = Watched(done.points + part.points, done.findings + part.findings, done.more or part.more)
        if errors:
            raise errors[0]
        return done

    def retry(self, *, rejected: bool, model: str | None, result_ids: Sequence[str] | None, reason: str | None) -> int:
        return sum(feed.retry(rejected=rejected, model=model, result_ids=result_ids, reason=reason) for feed in self.feeds)

    def verify(self, sink: Sink, *, repair: bool, progress: Callable[[int], object]) -> Verification:
        if (feed := self.only) is not None:
            found = verify(self.ledger, feed.source_id, sink, progress=progress)
            return feed.repair(found) if repair else found
        ids = [feed.source_id for feed in self.feeds]
        each = verify_all(self.ledger, ids, sink, ours=self.ours, progress=progress)
        return total_of([(feed.name, feed.repair(each[feed.source_id]) if repair else each[feed.source_id]) for feed in self.feeds])

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def accountings(self) -> Mapping[int, Accounting]:
        return self.ledger.accounts.accountings([feed.source_id for feed in self.feeds])

    def accounting(self) -> Accounting:
        return self.total_of(self.accountings())

    def total_of(self, accountings: Mapping[int, Accounting]) -> Accounting:
        return accountings[self.only.source_id] if self.only is not None else accounting_total(accountings.values())

    def lease_holder(self) -> LeaseHolder | None:
        """Who holds the lease; of several files the first that is held."""
        held = self.ledger.leases.holders([feed.name for feed in self.feeds])
        return next((held[feed.name] for feed in self.feeds if feed.name in held), None)

    def running(self) -> list[Feed]:
        """The feeds that somebody is at with a run, in whatever process."""
        held = self.ledger.leases.holders([feed.name for feed in self.feeds])
        return [feed for feed in self.feeds if feed.name in held and held[feed.name].run_id is not None]

    def runs(self, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """The runs, newest first; of several files each says of which."""
        by_id = {feed.source_id: feed for feed in self.feeds}
        found = self.ledger.runs.history_of(list(by_id), limit=limit, before=before)
        return [self._named(by_id[source_id], by_id[source_id].shown(run)) for source_id, run in found]

    def run(self, run_id: int) -> dict[str, Any] | None:
        for feed in self.feeds:
            if (found := feed.find_run(run_id)) is not None:
                return self._named(feed, found)
        return None

    def results(self, *, state: State | None, model: str | None, hardware: str | None, limit: int, cursor: str | None) -> Page:
        """Single results. Over several files they are in the order in which the ledger came to know the files; a cursor begins with that number."""
        look: dict[str, Any] = {"state": state, "model": model, "hardware": hardware}
        if self.only is not None:
            return self.ledger.accounts.results(self.only.source_id, limit=limit, cursor=cursor, **look)
        number, _, inner = (cursor or "0:").partition(":")
        rows: list[Mapping[str, object]] = []
        marks: list[str] = []
        for feed in sorted(self.feeds, key=lambda feed: feed.source_id):
            if feed.source_id < int(number):
                continue
            after = inner if feed.source_id == int(number) and inner else None
            page = self.ledger.accounts.results(feed.source_id, limit=limit + 1 - len(rows), cursor=after, **look)
            rows += [{"source": feed.name, **row} for row in page.rows]
            marks += [f"{feed.source_id}:{row['content_hash']}.{row['result_id']}" for row in page.rows]
            if len(rows) > limit:
                return Page(rows[:limit], marks[limit - 1])
        return Page(rows, None)

    def coverage(self) -> list[dict[str, Any]]:
        """What Accounts.coverage says, over all files."""
        return coverage_total(self.ledger.accounts.coverage(feed.source_id) for feed in self.feeds)

    def refusals(self) -> list[dict[str, Any]]:
        """What Accounts.refusals says, over all files."""
        return refusals_total(self.ledger.accounts.refusals(feed.source_id) for feed in self.feeds)

    def rejected_by_reason(self) -> dict[str, int]:
        """How many results are refused by each reason code, over all files."""
        total: Counter[str] = Counter()
        for group in self.refusals():
            if group["state"] == STATE_NAMES[State.REJECTED]:
                total[group["code"]] += group["count"]
        return dict(total)

    def quality(self) -> dict[str, int]:
        """What Accounts.quality says, over all files."""
        total: Counter[str] = Counter()
        for feed in self.feeds:
            total.update(self.ledger.accounts.quality(feed.source_id))
        return dict(total)

    def regressions(self, **wanted: Any) -> Page:
        """What Regressions.listed says of all feeds."""
        return self.ledger.regressions.listed([feed.source_id for feed in self.feeds], **wanted)

    def report(self) -> dict[str, Any]:
        """The report. What keeps a file from being compared is in its note; it is raised when there is nothing to show for any file."""
        if self.only is not None:
            return self.only.report()
        errors = {feed.source_id: feed.refresh() for feed in self.feeds}
        known = self.accountings()
        first = next((error for error in errors.values() if error is not None), None)
        if first is not None and all(accounting.compared_at is None for accounting in known.values()):
            raise first
        return self._summed(errors)

    def report_as_it_is(self) -> dict[str, Any]:
        """The report from the ledger alone."""
        return self.only.report_as_it_is() if self.only is not None else self._summed({})

    def _summed(self, errors: Mapping[int, BridgeError | None]) -> dict[str, Any]:
        accountings = self.accountings()
        said = self.sources(accountings, errors)
        nothing = {**dict.fromkeys(STATES, 0), "newest": []}
        bare: dict[str, Any] = {"coverage": [], "refusals": [], "quality": {}, "regressions": nothing}
        counted = [reports.counts(self.ledger, feed.source_id) for feed in self.feeds] + [bare for _ in self.refused]
        unread = [part["name"] for part in said if part["note"]]
        note = (
            f"{len(unread)} of {len(said)} benchmark files could not be compared: {', '.join(unread[:5])}{', ...' if unread[5:] else ''}."
        )
        shown = {
            "generated_at": iso(self.ledger.now()),
            "source": self.label,
            "note": note if unread else "" if said else self.nothing_found().message,
            "sync_history": self.runs(limit=_RUNS_SHOWN),
            "accounting": accounting_as_json(accounting_total(accountings.values())),
            "predictions": reports.predictions(self.ledger, [feed.source_id for feed in self.feeds]),
        }
        return report_total(list(zip(said, counted, strict=True)), shown)

    def sources(
        self, accountings: Mapping[int, Accounting], errors: Mapping[int, BridgeError | None] | None = None
    ) -> list[dict[str, Any]]:
        """What is said of each of several files: its accounting, its last run, who is at it, and (`errors`, by source) what is wrong with it.

        `accountings`: of all feeds; a total that stands beside this has to be made of the same ones.
        """
        ids = [feed.source_id for feed in self.feeds]
        runs = self.ledger.runs.last(ids)
        held = self.ledger.leases.holders([feed.name for feed in self.feeds])
        said = []
        for feed in self.feeds:
            error = (errors or {}).get(feed.source_id) or feed.file.error
            last = feed.shown(runs[feed.source_id]) if feed.source_id in runs else None
            said.append(_said(feed.file, error, accountings[feed.source_id], last, held.get(feed.name)))
        return said + [_said(file, file.error, Accounting(), None, None) for file in self.refused]

    def _named(self, feed: Feed, run: dict[str, Any]) -> dict[str, Any]:
        return run if self.only is not None else {"source": feed.name, **run}


def _said(
    file: BenchmarkFile, error: BridgeError | None, accounting: Accounting, last_run: Mapping[str, Any] | None, holder: LeaseHolder | None
) -> dict[str, Any]:
    return {
        "name": file.name,
        "path": file.path,
        "note": "" if error is None else error.message,
        "error_code": None if error is None else error.code,
        "accounting": accounting_as_json(accounting),
        "last_run": last_run,
        "lease": lease_as_json(holder),
    }


def lease_as_json(holder: LeaseHolder | None) -> dict[str, Any] | None:
    return None if holder is None else {"owner": holder.owner, "run_id": holder.run_id, "expires_at": iso(holder.expires_at)}
