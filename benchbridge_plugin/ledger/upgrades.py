"""The steps that bring an older ledger up to date, and its version, which is their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, func, inspect, select, text

from benchbridge_plugin.ledger.schema import (
    NO_REASON,
    claims,
    deliveries,
    forecast_errors,
    histories,
    ix_undelivered,
    metadata,
    meters,
    outbox,
    regressions,
    scores,
    seen_ids,
    shares,
    sources,
    standings,
    watches,
)
from benchbridge_plugin.model import STATE_NAMES


def _create(connection: Connection) -> None:
    metadata.create_all(connection, checkfirst=False)  # a table of that name in an unversioned database is not ours
    states = " ".join(f"WHEN {int(state)} THEN '{name}'" for state, name in STATE_NAMES.items())
    connection.execute(
        text(
            f"""
            CREATE VIEW delivery_view AS
            SELECT s.name AS source, d.result_id, d.content_hash, d.key, CASE d.state {states} END AS state, d.measurement_id, d.attempts,
                   d.next_attempt_at, r.code AS reason_code, r.sentence AS reason, d.run_id, d.updated_at, j.model, j.hardware
              FROM deliveries AS d
              JOIN sources AS s ON s.source_id = d.source_id
              JOIN subjects AS j ON j.subject_id = d.subject_id
              LEFT JOIN reasons AS r ON r.reason_id = d.reason_id
            """
        )
    )


def _add_claims(connection: Connection) -> None:
    """Claims and seen ids. A ledger made by this version has them from the first step."""
    for table in (claims, seen_ids):
        table.create(connection, checkfirst=True)
    if "looked" not in {column["name"] for column in inspect(connection).get_columns(sources.name)}:
        connection.execute(text("ALTER TABLE sources ADD COLUMN looked TEXT"))


def _add_shares(connection: Connection) -> None:
    shares.create(connection, checkfirst=True)
    if "share_id" not in {column["name"] for column in inspect(connection).get_columns(claims.name)}:
        connection.execute(text("ALTER TABLE claims ADD COLUMN share_id INTEGER"))


def _count_by_subject(connection: Connection) -> None:
    """Standings were by state alone, or not there."""
    connection.execute(text("DROP TABLE IF EXISTS standings"))
    standings.create(connection)
    place = (
        deliveries.c.source_id,
        deliveries.c.subject_id,
        deliveries.c.state,
        deliveries.c.quality,
        func.coalesce(deliveries.c.reason_id, NO_REASON),
    )
    names = [column.name for column in standings.columns]
    connection.execute(standings.insert().from_select(names, select(*place, func.count()).group_by(*place)))


def _add_meters(connection: Connection) -> None:
    """Meters, which begin with what the runs and refusals so far come to, and the outbox."""
    from benchbridge_plugin.ledger.meters import begin

    known = inspect(connection).has_table(meters.name)
    for table in (meters, outbox):
        table.create(connection, checkfirst=True)
    if not known:
        begin(connection)


def _add_histories(connection: Connection) -> None:
    """What is there already is taken up by the first watch."""
    for table in (histories, watches, regressions):
        table.create(connection, checkfirst=True)


def _add_scores(connection: Connection) -> None:
    for table in (scores, forecast_errors):
        table.create(connection, checkfirst=True)


def _index_undelivered(connection: Connection) -> None:
    """There was an index of the open rows and one of the refused ones."""
    for name in ("ix_deliveries_open", "ix_deliveries_refused"):
        connection.execute(text(f"DROP INDEX IF EXISTS {name}"))
    ix_undelivered.create(connection, checkfirst=True)


#: Step n brings a ledger from version n to version n + 1; version 0 is an empty database. Steps are only ever appended.
UPGRADES: Sequence[Callable[[Connection], None]] = (
    _create,
    _add_claims,
    _add_shares,
    _count_by_subject,
    _add_meters,
    _add_histories,
    _add_scores,
    _index_undelivered,
)
VERSION = len(UPGRADES)
