"""Times of the ledger that survive a jump of the wall clock.

Leases, retries and ticks are times of the wall clock, since they have to mean something to other processes and after a restart. When that clock is set,
in either direction, all of them would be wrong by the same amount: leases that never end, back-offs that end at once. So the ledger remembers how far the
wall clock is from the kernel's clock, which never jumps, and every transaction that writes looks first whether that has changed; if it has, the times that
are still to come move along. The two clocks of one running kernel are the same for all of its processes. Slow corrections move both clocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy import Connection, select, update

from benchbridge_plugin.ledger.schema import deliveries, leases, ledger_meta, sources
from benchbridge_plugin.ledger.store import insert_many
from benchbridge_plugin.model import State

_logger = logging.getLogger(__name__)

_NAME = "clock"
_SMALLEST_JUMP_S = 5.0
_OPEN = [int(State.PENDING), int(State.SENDING), int(State.RETRYING)]


class Steady:
    """`now`: the wall clock, seconds since 1970. `kernel`: the clock that never jumps, or None where it cannot be read."""

    def __init__(self, now: Callable[[], float], kernel: Callable[[], tuple[str, float] | None]) -> None:
        self._now = now
        self._kernel = kernel

    def check(self, connection: Connection) -> None:
        """To be called first in a transaction that writes: moves what is still to come when the wall clock was set."""
        read = self._kernel()
        if read is None:
            return
        kernel, elapsed = read
        apart = self._now() - elapsed
        known = connection.execute(select(ledger_meta.c.value).where(ledger_meta.c.name == _NAME)).scalar_one_or_none()
        before, _, then = (known or "").rpartition(" ")
        jump_s = apart - float(then) if before == kernel else 0.0
        if before == kernel and abs(jump_s) < _SMALLEST_JUMP_S:
            return
        if jump_s:
            _move(connection, jump_s)
            _logger.warning("the clock of this machine jumped by %+.0f s; waiting times and leases move along", jump_s)
        insert_many(
            connection,
            "INSERT INTO ledger_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [(_NAME, f"{kernel} {apart!r}")],
        )


def _move(connection: Connection, jump_s: float) -> None:
    # The age of a row that is being sent, or in doubt, says whether a slow server has had its time. NULL stays NULL.
    times = {name: deliveries.c[name] + jump_s for name in ("next_attempt_at", "updated_at")}
    connection.execute(update(deliveries).where(deliveries.c.state.in_(_OPEN)).values(**times))
    connection.execute(update(leases).where(leases.c.expires_at > 0).values(expires_at=leases.c.expires_at + jump_s))
    ticks = {name: sources.c[name] + jump_s for name in ("next_tick_at", "last_tick_at")}
    connection.execute(update(sources).values(**ticks))
