"""Keeps the lease of a run alive, and stops the run when that fails."""

from __future__ import annotations

from collections.abc import Callable

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger import Holder, Ledger


class Heartbeat:
    """Keeps the lease alive while rows are on their way, and says when to stop: asked to, or because the lease is lost."""

    def __init__(self, ledger: Ledger, holder: Holder, clock: Callable[[], float], asked: Callable[[], bool]) -> None:
        self._ledger = ledger
        self._holder = holder
        self._clock = clock
        self._asked = asked
        self._renewed = clock()
        self._error: LedgerError | None = None

    def stopping(self) -> bool:
        # Often: from one renewal to the next there may be one request that takes all of its time, and the lease must outlast that.
        if self._error is None and self._clock() - self._renewed > self._holder.duration_s / 10:
            try:
                self._ledger.leases.prolong(self._holder.lease, self._holder.duration_s)
                self._renewed = self._clock()
            except LedgerError as error:  # not raised here: what was sent must still be acknowledged, if that can be done
                self._error = error
        return self._error is not None or self._asked()

    def check(self) -> None:
        """Raises what made it stop, if that was the ledger."""
        if self._error is not None:
            raise self._error
