"""How many rows of a source are in which state, kept in step by whoever moves rows and inside the same transaction.

Counting a million rows takes a tenth of a second, and an accounting is asked for all the time. That the figures are right is not taken on trust: every
comparison of the file with the ledger counts the rows anew, and says so loudly if the two differ.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy import Connection, func, select

from benchbridge_plugin.ledger.schema import deliveries, standings
from benchbridge_plugin.ledger.store import insert_many
from benchbridge_plugin.model import State

_logger = logging.getLogger(__name__)
_ADD_SQL = (
    "INSERT INTO standings (source_id, state, results) VALUES (?, ?, ?) "
    "ON CONFLICT (source_id, state) DO UPDATE SET results = standings.results + excluded.results"
)


def move(connection: Connection, source_id: int, changes: Mapping[State, int]) -> None:
    """Add to the counts, or take from them. In the order of the states: two hosts that move rows at once must not wait for each other."""
    insert_many(connection, _ADD_SQL, [(source_id, int(state), change) for state, change in sorted(changes.items()) if change])


def recount(connection: Connection, source_id: int, *, moved: bool) -> None:
    """Count all rows. `moved`: rows have moved in this transaction, and the counts are not in step."""
    counts = select(deliveries.c.state, func.count()).where(deliveries.c.source_id == source_id).group_by(deliveries.c.state)
    found = {int(state): int(count) for state, count in connection.execute(counts)}
    kept = select(standings.c.state, standings.c.results).where(standings.c.source_id == source_id, standings.c.results != 0)
    said = {int(state): int(count) for state, count in connection.execute(kept)}
    if found == said:
        return
    if not moved:
        _logger.error("the counts of states were out of step and are corrected", extra={"were": said, "are": found})
    connection.execute(standings.delete().where(standings.c.source_id == source_id))
    insert_many(connection, _ADD_SQL, [(source_id, state, count) for state, count in found.items()])
