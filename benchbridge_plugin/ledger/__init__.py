"""The ledger: one row for each result that was ever touched, the runs, and who may move results.

`Ledger` is the only name other modules need. It holds no connection between calls and may be shared by threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchbridge_plugin.clocks import kernel_clock
from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger import meters
from benchbridge_plugin.ledger.accounts import Accounts, Compared, Page
from benchbridge_plugin.ledger.claims import Claim
from benchbridge_plugin.ledger.comparisons import Comparison, Comparisons
from benchbridge_plugin.ledger.contents import Content, Contents
from benchbridge_plugin.ledger.deliveries import Deliveries
from benchbridge_plugin.ledger.doubts import Doubts
from benchbridge_plugin.ledger.histories import Histories, Kept, Mark
from benchbridge_plugin.ledger.leases import Holder, Lease, LeaseHolder, Leases
from benchbridge_plugin.ledger.meters import Meters
from benchbridge_plugin.ledger.outbox import Outbox, Parcel
from benchbridge_plugin.ledger.regressions import OPEN, STATES, Changed, Finding, Regressions, Returned
from benchbridge_plugin.ledger.runs import Runs, Schedule
from benchbridge_plugin.ledger.scores import Scores
from benchbridge_plugin.ledger.shares import SHARE_SCHEMA, Ended, Share, Shares
from benchbridge_plugin.ledger.steady import Steady
from benchbridge_plugin.ledger.store import Store
from benchbridge_plugin.ledger.whereabouts import Whereabouts

__all__ = [
    "OPEN",
    "SHARE_SCHEMA",
    "STATES",
    "Changed",
    "Claim",
    "Compared",
    "Comparison",
    "Content",
    "Ended",
    "Finding",
    "Histories",
    "Holder",
    "Kept",
    "Lease",
    "LeaseHolder",
    "Ledger",
    "Mark",
    "Meters",
    "Outbox",
    "Page",
    "Parcel",
    "Regressions",
    "Returned",
    "Schedule",
    "Share",
]


class Ledger:
    """`leases`: who may write; `runs`: what was done and when; `comparisons`: the file against the rows; `deliveries`: the rows and their steps;
    `doubts`: the rows in doubt; `shares`: parts of a run that others carry; `accounts`: what it all adds up to; `contents`: one result by itself;
    `scores`: what was predicted of it; `whereabouts`: where the files were; `outbox`: events that a webhook has to be told of; `histories`: the figures
    of each configuration over time; `regressions`: where they got worse.

    `now`: the wall clock. `kernel`: the machine's clock that never jumps (see steady.py); left out with a wall clock of one's own, it is not asked.
    `events`: the types that are kept for a webhook. `told`: called with the events of what has just been recorded.
    """

    def __init__(
        self,
        url: str,
        *,
        now: Callable[[], float] = time.time,
        kernel: Callable[[], tuple[str, float] | None] | None = None,
        events: frozenset[str] = frozenset(),
        told: Callable[[Sequence[Event]], object] | None = None,
    ) -> None:
        steady = Steady(now, kernel or (kernel_clock if now is time.time else _no_kernel))
        self._store = Store(url, before_writing=steady.check)
        self.now = now
        self.leases = Leases(self._store, now)
        self.accounts = Accounts(self._store)
        self.outbox = Outbox(self._store, now, events)
        self.runs = Runs(self._store, self.leases, now, self.accounts, self.outbox, told)
        self.regressions = Regressions(self._store, now)
        self.histories = Histories(self._store, self.regressions, self.outbox, told)
        self.comparisons = Comparisons(self._store, self.leases, now)
        self.deliveries = Deliveries(self._store, self.leases, now)
        self.doubts = Doubts(self._store, self.leases, now)
        self.shares = Shares(self._store, self.leases, now)
        self.contents = Contents(self._store)
        self.scores = Scores(self._store)
        self.whereabouts = Whereabouts(self._store)

    @property
    def place(self) -> str:
        """Where it is, without a password."""
        return self._store.place

    def meters(self, source_ids: Sequence[int]) -> dict[int, Meters]:
        """What monitoring reads of each source."""
        return meters.read(self._store, source_ids)

    def check(self) -> None:
        """Open it, creating or upgrading it if need be. Raises LedgerError."""
        self._store.prepare()

    def close(self) -> None:
        self._store.dispose()


def _no_kernel() -> None:
    return None
