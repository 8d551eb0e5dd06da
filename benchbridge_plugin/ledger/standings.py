"""How many rows of a source are where: by subject, state, quality and reason; kept in step by whoever moves rows and inside the same transaction.

Counting a million rows takes up to a second, and an accounting, its coverage and its refusals are asked for all the time. That the figures are right is
not taken on trust: every comparison of the file with the ledger counts the rows anew, and says so loudly if the two differ.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
from sqlalchemy import ColumnElement, Connection, bindparam, func, select, text, update

from benchbridge_plugin.ledger.schema import NO_REASON, deliveries, sources, standings
from benchbridge_plugin.ledger.store import insert_many
from benchbridge_plugin.model import State

_logger = logging.getLogger(__name__)
_CHUNK = 500  # SQLite allows 32,766 parameters in one statement; smaller chunks are as quick

#: subject_id, state, quality, reason_id
_Place = tuple[int, int, int, int]
_PLACE = (
    deliveries.c.subject_id,
    deliveries.c.state,
    deliveries.c.quality,
    func.coalesce(deliveries.c.reason_id, NO_REASON).label("reason_id"),
)
_ADD_SQL = (
    "INSERT INTO standings (source_id, subject_id, state, quality, reason_id, results) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (source_id, subject_id, state, quality, reason_id) DO UPDATE SET results = standings.results + excluded.results"
)


class Moves:
    """What one transaction moves. `write` goes last, in the order of the places: two hosts that move rows at once must not wait for each other."""

    def __init__(self, connection: Connection, source_id: int) -> None:
        self._connection = connection
        self._source_id = source_id
        self._changes: Counter[_Place] = Counter()

    def made(self, fresh: pa.Table, state: State) -> None:
        """New rows without a reason. `fresh`: claims.CLAIM_SCHEMA."""
        groups = fresh.select(["subject_id", "quality"]).group_by(["subject_id", "quality"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            self._changes[group["subject_id"], int(state), group["quality"], NO_REASON] += group["count_all"]

    def placed(self, places: Iterable[_Place]) -> None:
        """New rows, each with its place: (subject_id, state, quality, reason_id)."""
        self._changes.update(places)

    @contextmanager
    def among(self, result_ids: Sequence[str]) -> Iterator[None]:
        """Whatever the block does to the rows of these results: made, changed or both."""
        if not result_ids:
            yield
            return
        ids = sorted(set(result_ids))
        before = self._of(ids)
        yield
        self._changes.update(self._of(ids))
        self._changes.subtract(before)

    def turning(self, *where: ColumnElement[bool], state: State | None = None, reason_id: int | None = None) -> int:
        """Before an UPDATE of these rows that gives all of them this state, or this reason, and the same place otherwise. Returns how many they are."""
        found = self._count(*where)
        for place, rows in found.items():
            subject, before, quality, reason = place
            self._changes[place] -= rows
            self._changes[subject, before if state is None else int(state), quality, reason if reason_id is None else reason_id] += rows
        return found.total()

    def write(self) -> None:
        _add(self._connection, self._source_id, self._changes)
        self._changes.clear()

    def _of(self, ids: Sequence[str]) -> Counter[_Place]:
        found: Counter[_Place] = Counter()
        mine = deliveries.c.result_id.in_(bindparam("ids", expanding=True))
        for start in range(0, len(ids), _CHUNK):
            found.update(self._count(mine, ids=list(ids[start : start + _CHUNK])))
        return found

    def _count(self, *where: ColumnElement[bool], **parameters: object) -> Counter[_Place]:
        """Locked where several hosts can write: what is counted is what is changed."""
        rows = select(*_PLACE).where(deliveries.c.source_id == self._source_id, *where).with_for_update().subquery()
        counted = select(*rows.c, func.count()).group_by(*rows.c)
        return Counter({(row[0], row[1], row[2], row[3]): row[4] for row in self._connection.execute(counted, parameters)})


def take_up(connection: Connection, source_id: int, rows: int) -> None:
    """That many results more are taken up: the comparison counted them as not touched. After `Moves.write`, everywhere in this order."""
    if rows:
        connection.execute(update(sources).where(sources.c.source_id == source_id).values(untouched=sources.c.untouched - rows))


def recount(connection: Connection, source_id: int, *, moved: bool) -> None:
    """Count all rows. `moved`: rows have moved in this transaction, and the counts are not in step."""
    if (
        connection.dialect.name != "sqlite"
    ):  # who has moved rows and not said so yet adds to what is counted here, and not to what was before
        connection.execute(text("LOCK TABLE standings IN SHARE ROW EXCLUSIVE MODE"))
    counts = select(*_PLACE, func.count()).where(deliveries.c.source_id == source_id).group_by(*_PLACE)
    found = {(row[0], row[1], row[2], row[3]): row[4] for row in connection.execute(counts)}
    columns = (standings.c.subject_id, standings.c.state, standings.c.quality, standings.c.reason_id, standings.c.results)
    kept = select(*columns).where(standings.c.source_id == source_id, standings.c.results != 0)
    said = {(row[0], row[1], row[2], row[3]): row[4] for row in connection.execute(kept)}
    if found == said:
        return
    if not moved:
        wrong = sorted(place for place in found.keys() | said.keys() if found.get(place) != said.get(place))[:20]
        _logger.error(
            "the counts of states were out of step and are corrected",
            extra={"were": {place: said.get(place, 0) for place in wrong}, "are": {place: found.get(place, 0) for place in wrong}},
        )
    connection.execute(standings.delete().where(standings.c.source_id == source_id))
    _add(connection, source_id, found)


def _add(connection: Connection, source_id: int, changes: Mapping[_Place, int]) -> None:
    insert_many(connection, _ADD_SQL, [(source_id, *place, change) for place, change in sorted(changes.items()) if change])
