"""One benchmark file on its way to the sink: its engine, and what the ledger says of it. A bridge has one feed or many; each stands for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchbridge_plugin import report as reports
from benchbridge_plugin.as_json import run_as_json
from benchbridge_plugin.errors import BridgeError, LeaseBusy, SourceError
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.ledger import Holder, LeaseHolder, Ledger
from benchbridge_plugin.model import Accounting, Progress, RunSummary, SyncRequest
from benchbridge_plugin.process import identity
from benchbridge_plugin.regressions.watch import Watched, Watcher
from benchbridge_plugin.sync import SyncEngine
from benchbridge_plugin.verification import Verification


@dataclass(frozen=True, slots=True)
class Watch:
    """What a run tells, and how it is told to stop."""

    progress: Callable[[Progress], object] = lambda progress: None
    stopping: Callable[[], bool] = lambda: False
    started: Callable[[int], object] = lambda run_id: None


class Feed:
    """`file.error` says that there is nothing to read: then only the ledger is asked, and nothing is moved."""

    def __init__(
        self, file: BenchmarkFile, source_id: int, engine: SyncEngine, ledger: Ledger, watcher: Watcher | None, *, lease_s: float
    ) -> None:
        self.file = file
        self.source_id = source_id
        self.engine = engine
        self._ledger = ledger
        self._watcher = watcher
        self._lease_s = lease_s

    @property
    def name(self) -> str:
        return self.file.name

    def about(self, file: BenchmarkFile) -> Feed:
        """The same feed of a file that came or went."""
        return Feed(file, self.source_id, self.engine, self._ledger, self._watcher, lease_s=self._lease_s)

    # -- moving results -----------------------------------------------------------------------------------------------------------------

    def run(self, request: SyncRequest, patience_s: float, watch: Watch) -> RunSummary:
        """One run of the engine. Somebody who holds the lease without a run makes a report or repairs, and is waited for: that is no other sync."""
        if self.file.error is not None:
            raise self.file.error
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self.engine.run(request, progress=watch.progress, stopping=watch.stopping, started=watch.started)
            except LeaseBusy as error:
                if error.fields.get("run_id") is not None or time.monotonic() > deadline or watch.stopping():
                    raise
            time.sleep(0.05)

    def watch(self, *, within_s: float | None, at_least_some: bool, stopping: Callable[[], bool]) -> Watched:
        """What Watcher.watch does; nothing where histories are not watched."""
        if self._watcher is None or self.file.error is not None:
            return Watched()
        return self._watcher.watch(within_s=within_s, at_least_some=at_least_some, stopping=stopping)

    def retry(self, *, rejected: bool, model: str | None, result_ids: Sequence[str] | None, reason: str | None) -> int:
        return self._ledger.deliveries.retry(self.source_id, rejected=rejected, model=model, result_ids=result_ids, reason=reason)

    def repair(self, found: Verification) -> Verification:
        """Put what is missing at the sink back to pending. Raises LeaseBusy."""
        if not found.missing:
            return found
        lease = self._ledger.leases.acquire(self.name, identity(), self._lease_s)
        try:
            count = self._ledger.deliveries.reopen(Holder(lease, self._lease_s, 0), self.source_id, found.missing)
        finally:
            self._ledger.leases.release(lease)
        return replace(found, repaired=count)

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def accounting(self) -> Accounting:
        return self._ledger.accounts.accounting(self.source_id)

    def refresh(self) -> BridgeError | None:
        """Compare with the file if that changed. What kept it from that: then the accounting is that of the last comparison."""
        if self.file.error is not None:
            return self.file.error
        try:
            self.engine.refresh()
        except SourceError as error:
            return error
        return None

    def report(self) -> dict[str, Any]:
        """The report, after a comparison if the file changed and can be read. Raises the SourceError where there was never a comparison."""
        error = self.refresh()
        if error is not None and self.accounting().compared_at is None:
            raise error
        return self.report_as_it_is(note="" if error is None else f"{error.message} The figures are those of the last comparison.")

    def report_as_it_is(self, *, note: str = "") -> dict[str, Any]:
        """The report from the ledger alone."""
        return reports.build(self._ledger, self.source_id, source_name=self.name, note=note)

    def lease_holder(self) -> LeaseHolder | None:
        return self._ledger.leases.holder(self.name)

    def find_run(self, run_id: int) -> dict[str, Any] | None:
        found = self._ledger.runs.get(self.source_id, run_id)
        return None if found is None else self.shown(found)

    def shown(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """A run of this source as JSON values. One that nobody is at any more was interrupted."""
        if run["state"] == "running":
            holder = self.lease_holder()
            if holder is None or holder.run_id != run["run_id"]:
                # It may have ended since it was read: the end is recorded before the lease is given back.
                run = self._ledger.runs.get(self.source_id, run["run_id"]) or run
                if run["state"] == "running":
                    run = {
                        **run,
                        "state": "interrupted",
                        "message": "The process that ran it is gone; the next run goes on from where it stopped.",
                    }
        return run_as_json(run)
