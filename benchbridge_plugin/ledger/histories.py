"""The histories of configurations, and up to where results have been taken up into them.

A watch takes up what runs have delivered, in the order in which it was measured. How far it is (`Mark`) is written in the transaction that writes the
histories, and only if nobody else has moved it: a result is taken up once, also where a process dies or two watch at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Select, and_, func, literal, or_, select, update

from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger.outbox import Outbox
from benchbridge_plugin.ledger.regressions import Finding, Regressions
from benchbridge_plugin.ledger.schema import deliveries, histories, runs, standings, watches
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import State

_LOOKED_UP = 500  # digests in one query
_MOVING = ("synced", "settled", "adopted")  # what a run counts when results become delivered; one that failed may have had no time to


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a source is watched. What runs up to `run_id` had delivered by `through` is taken up. `upto_run`: what is being taken up, in order of time,
    and so far up to (`measured_at`, `result_id`)."""

    source_id: int
    run_id: int = 0
    through: float = 0.0
    upto_run: int | None = None
    measured_at: float | None = None
    result_id: str | None = None

    @property
    def done(self) -> bool:
        return self.upto_run is None


@dataclass(frozen=True, slots=True)
class Kept:
    """A history as it is kept: what it is of, and its payload."""

    configuration: str
    payload: bytes


class Histories:
    def __init__(
        self,
        store: Store,
        regressions: Regressions,
        outbox: Outbox,
        told: Callable[[Sequence[Event]], object] | None = None,
    ) -> None:
        self._store = store
        self._regressions = regressions
        self._outbox = outbox
        self._told = told

    # -- how far it is ------------------------------------------------------------------------------------------------------------------

    def mark(self, source_id: int) -> Mark:
        with self._store.reading() as connection:
            return _mark(connection, source_id)

    def next(self, source_id: int) -> Mark:
        """The mark with something to take up, or done: runs that have ended since. A run that is under way is left for later."""
        with self._store.reading() as connection:
            mark = _mark(connection, source_id)
            if not mark.done:
                return mark
            ended = self._ended(connection, mark)
        if not ended:
            return mark
        upto = replace(mark, upto_run=ended[-1]["run_id"])
        if any(row["state"] == "failed" or any(json.loads(row["summary"]).get(name) for name in _MOVING) for row in ended):
            return upto
        return self.finish(upto) or mark

    @staticmethod
    def _ended(connection: Connection, mark: Mark) -> list[Mapping[Any, Any]]:
        mine = and_(runs.c.source_id == mark.source_id, runs.c.run_id > mark.run_id)
        first_open = connection.execute(select(func.min(runs.c.run_id)).where(mine, runs.c.state == "running")).scalar_one()
        ended = select(runs.c.run_id, runs.c.summary, runs.c.state).where(mine).order_by(runs.c.run_id)
        if first_open is not None:
            ended = ended.where(runs.c.run_id < first_open)
        return [dict(row) for row in connection.execute(ended).mappings()]

    def rows(self, source_id: int) -> int:
        """How many rows `delivered` has to look through."""
        with self._store.reading() as connection:
            counted = select(func.coalesce(func.sum(standings.c.results), 0)).where(standings.c.source_id == source_id)
            return int(connection.execute(counted).scalar_one())

    def delivered(self, mark: Mark, limit: int) -> list[tuple[str, float]]:
        """The next results to take up: (id, when it was measured), in that order; of one time shorter ids first, so that 9 comes before 10."""
        order = (deliveries.c.measured_at, func.length(deliveries.c.result_id), deliveries.c.result_id)
        statement: Select[Any] = (
            select(deliveries.c.result_id, deliveries.c.measured_at)
            .where(
                deliveries.c.source_id == mark.source_id,
                deliveries.c.state == int(State.DELIVERED),
                deliveries.c.measured_at.is_not(None),
                deliveries.c.run_id <= mark.upto_run,
                # A doubt that a later run settled keeps the number of its own run.
                or_(deliveries.c.run_id > mark.run_id, deliveries.c.updated_at > mark.through),
            )
            .order_by(*order)
            .limit(limit)
        )
        if mark.measured_at is not None and mark.result_id is not None:
            length = func.length(literal(mark.result_id))
            later = or_(order[1] > length, and_(order[1] == length, deliveries.c.result_id > mark.result_id))
            statement = statement.where(or_(order[0] > mark.measured_at, and_(order[0] == mark.measured_at, later)))
        with self._store.reading() as connection:
            return [(row.result_id, row.measured_at) for row in connection.execute(statement)]

    def finish(self, mark: Mark) -> Mark | None:
        """All that the runs of this mark delivered is taken up. None: somebody else was quicker."""
        assert mark.upto_run is not None
        with self._store.writing() as connection:
            ended = select(func.max(runs.c.finished_at)).where(runs.c.source_id == mark.source_id, runs.c.run_id <= mark.upto_run)
            through = max(mark.through, connection.execute(ended).scalar_one() or 0.0)
            done = Mark(mark.source_id, mark.upto_run, through)
            return done if self._move(connection, mark, done) else None

    # -- the histories ------------------------------------------------------------------------------------------------------------------

    def load(self, source_id: int, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """The payloads of the histories that are there, by the digests of their configurations."""
        wanted = list(digests)
        found: dict[bytes, bytes] = {}
        with self._store.reading() as connection:
            for start in range(0, len(wanted), _LOOKED_UP):
                these = histories.c.digest.in_(wanted[start : start + _LOOKED_UP])
                statement = select(histories.c.digest, histories.c.payload).where(histories.c.source_id == source_id, these)
                found.update((bytes(row.digest), bytes(row.payload)) for row in connection.execute(statement))
        return found

    def of(self, history_id: int) -> Kept | None:
        statement = select(histories.c.configuration, histories.c.payload).where(histories.c.history_id == history_id)
        with self._store.reading() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else Kept(row.configuration, bytes(row.payload))

    def save(
        self,
        mark: Mark,
        reached: tuple[float, str],
        kept: Mapping[bytes, Kept],
        findings: Sequence[Finding],
        *,
        points: int,
        late: int,
    ) -> Mark | None:
        """Write the histories as far as they have come, what was found, and the mark: all or nothing. None: somebody else was quicker, and nothing was
        written."""
        following = replace(mark, measured_at=reached[0], result_id=reached[1])
        happened: list[Event] = []
        with self._store.writing() as connection:
            if not self._move(connection, mark, following, points=points, late=late):
                return None
            insert_many(
                connection,
                "INSERT INTO histories (source_id, digest, configuration, payload) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (source_id, digest) DO UPDATE SET payload = excluded.payload",
                [(mark.source_id, digest, history.configuration, history.payload) for digest, history in kept.items()],
            )
            if findings:
                happened = self._regressions.record(connection, mark.source_id, findings)
                for event in happened:
                    self._outbox.put(connection, mark.source_id, event)
        if happened and self._told is not None:
            self._told(happened)
        return following

    def counts(self, source_id: int) -> dict[str, int]:
        """How many points were taken up, and how many of them came too late to count."""
        with self._store.reading() as connection:
            row = connection.execute(select(watches.c.points, watches.c.late).where(watches.c.source_id == source_id)).one_or_none()
        return {"points": row.points, "late": row.late} if row is not None else {"points": 0, "late": 0}

    @staticmethod
    def _move(connection: Connection, mark: Mark, to: Mark, *, points: int = 0, late: int = 0) -> bool:
        """Move the mark, if it still is where it was read."""
        start = (mark.source_id, 0, 0.0)
        insert_many(connection, "INSERT INTO watches (source_id, run_id, through) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", [start])
        here = and_(
            watches.c.source_id == mark.source_id,
            watches.c.run_id == mark.run_id,
            watches.c.measured_at.is_not_distinct_from(mark.measured_at),
            watches.c.result_id.is_not_distinct_from(mark.result_id),
        )
        values = {
            "run_id": to.run_id,
            "through": to.through,
            "upto_run": to.upto_run,
            "measured_at": to.measured_at,
            "result_id": to.result_id,
        }
        counted = {"points": watches.c.points + points, "late": watches.c.late + late}
        return connection.execute(update(watches).where(here).values(**values, **counted)).rowcount == 1


def _mark(connection: Connection, source_id: int) -> Mark:
    row = connection.execute(select(watches).where(watches.c.source_id == source_id)).one_or_none()
    return Mark(source_id) if row is None else Mark(source_id, row.run_id, row.through, row.upto_run, row.measured_at, row.result_id)
