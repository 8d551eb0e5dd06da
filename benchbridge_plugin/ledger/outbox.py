"""Events on their way to a webhook. Each is written in the transaction that it tells of, so that none is lost, and stays until it was delivered or given
up.

Whoever sends takes an event for a while by its row: normally no two processes send the same one. After a crash it is sent again, with the same id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, or_, select, update

from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger import meters
from benchbridge_plugin.ledger.schema import outbox
from benchbridge_plugin.ledger.store import Store

_LONGEST_WAIT_S = 86_400.0  # what is due later than that was written by a clock that was wrong


@dataclass(frozen=True, slots=True)
class Parcel:
    """An event that is ours to send now. `attempts` counts this one."""

    outbox_id: int
    source_id: int
    event_id: str
    type: str
    payload: str
    written_at: float
    attempts: int


class Outbox:
    """`wanted`: the types of events that are written. Without a webhook there are none, and nothing is written."""

    def __init__(self, store: Store, now: Callable[[], float], wanted: frozenset[str]) -> None:
        self._store = store
        self._now = now
        self.wanted = wanted

    def put(self, connection: Connection, source_id: int, event: Event) -> None:
        """Inside the transaction that the event tells of."""
        if event.type not in self.wanted:
            return
        now = self._now()
        row = {"event_id": event.id, "type": event.type, "payload": event.as_json(), "written_at": now, "next_attempt_at": now}
        connection.execute(outbox.insert().values(source_id=source_id, **row))

    def take(self, lease_s: float) -> Parcel | None:
        """The oldest event that is due and that nobody else is sending; it is ours for `lease_s`."""
        now = self._now()
        due = or_(outbox.c.next_attempt_at <= now, outbox.c.next_attempt_at > now + _LONGEST_WAIT_S)
        free = or_(outbox.c.claimed_until <= now, outbox.c.claimed_until > now + _LONGEST_WAIT_S)
        with self._store.reading() as connection:  # most of the time there is nothing, and looking does not lock
            if connection.execute(select(outbox.c.outbox_id).where(due, free).limit(1)).first() is None:
                return None
        with self._store.writing() as connection:
            first = select(outbox).where(due, free).order_by(outbox.c.outbox_id).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(first).mappings().one_or_none()
            if row is None:
                return None
            taken = {"claimed_until": now + lease_s, "attempts": row["attempts"] + 1}
            connection.execute(update(outbox).where(outbox.c.outbox_id == row["outbox_id"]).values(**taken))
        kept = {name: row[name] for name in ("outbox_id", "source_id", "event_id", "type", "payload", "written_at")}
        return Parcel(**kept, attempts=row["attempts"] + 1)

    def delivered(self, parcel: Parcel) -> None:
        self._end(parcel, "delivered")

    def given_up(self, parcel: Parcel) -> None:
        self._end(parcel, "given_up")

    def put_back(self, parcel: Parcel, next_attempt_at: float) -> None:
        """It could not be delivered; it is due again then."""
        mine = and_(outbox.c.outbox_id == parcel.outbox_id, outbox.c.attempts == parcel.attempts)
        with self._store.writing() as connection:
            connection.execute(update(outbox).where(mine).values(next_attempt_at=next_attempt_at, claimed_until=0.0))
            meters.add(connection, parcel.source_id, {("webhook", f"{parcel.type}/failed"): 1})

    def next_due_at(self) -> float | None:
        """When there is something to send next; None: the outbox is empty."""
        latest = func.max(outbox.c.next_attempt_at, outbox.c.claimed_until) if self._store.is_sqlite else None
        when = latest if latest is not None else func.greatest(outbox.c.next_attempt_at, outbox.c.claimed_until)
        with self._store.reading() as connection:
            found: float | None = connection.execute(select(func.min(when.label("due")))).scalar_one_or_none()
        return found

    def waiting(self) -> dict[int, int]:
        """How many events wait, by source."""
        with self._store.reading() as connection:
            counted = connection.execute(select(outbox.c.source_id, func.count().label("events")).group_by(outbox.c.source_id))
            return {row.source_id: row.events for row in counted}

    def _end(self, parcel: Parcel, outcome: str) -> None:
        with self._store.writing() as connection:
            gone = connection.execute(outbox.delete().where(outbox.c.outbox_id == parcel.outbox_id)).rowcount
            if gone:
                meters.add(connection, parcel.source_id, {("webhook", f"{parcel.type}/{outcome}"): 1})
