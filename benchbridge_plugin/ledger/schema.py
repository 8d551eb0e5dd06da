"""The tables of the ledger and the steps that bring an older one up to date.

Repeated texts (models, hardware, reasons) are kept once and referred to by number, so that a million rows stay small and quick to count. The view
`delivery_view` shows the rows as people think of them; nothing in the code reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import TEXT

from benchbridge_plugin.model import STATE_NAMES

metadata = MetaData()

ledger_meta = Table("ledger_meta", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

sources = Table(
    "sources",
    metadata,
    Column("source_id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # The last comparison with the file. `total` and `skipped` stay as counted; `untouched` falls with every row that a run takes up.
    Column("compared_at", Double),
    Column("signature", Text),
    Column("looked", Text),  # the signature at the last look for new ids, which a comparison includes
    Column("scope", Text),  # what the counts depend on beside the file: look-back and rules
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("untouched", BigInteger, nullable=False, server_default="0"),
    Column("skipped", Text, nullable=False, server_default="{}"),
    Column("adopted", Boolean, nullable=False, server_default=text("false")),  # the sink was asked what it already had
    # The schedule, one for all processes.
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("interval_minutes", Double),
    Column("next_tick_at", Double),
    Column("last_tick_at", Double),
)

subjects = Table(
    "subjects",
    metadata,
    Column("subject_id", Integer, primary_key=True),
    Column("model", Text, nullable=False),
    Column("hardware", Text, nullable=False),
    UniqueConstraint("model", "hardware"),
)

reasons = Table(
    "reasons",
    metadata,
    Column("reason_id", Integer, primary_key=True),
    Column("code", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    UniqueConstraint("code", "sentence"),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("summary", Text, nullable=False, server_default="{}"),
    Column("error_code", Text),
    Column("message", Text, nullable=False, server_default=""),
    Index("ix_runs_source", "source_id", "run_id"),
    sqlite_autoincrement=True,
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("source_id", Integer, ForeignKey("sources.source_id"), primary_key=True, autoincrement=False),
    Column("result_id", Text().with_variant(TEXT(collation="C"), "postgresql"), primary_key=True),  # by bytes, as SQLite orders it
    Column("content_hash", LargeBinary(16), primary_key=True),
    Column("key", LargeBinary(16), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("prior_state", SmallInteger),  # of a superseded or withdrawn row, to bring it back if the old content returns
    Column("subject_id", Integer, ForeignKey("subjects.subject_id"), nullable=False),
    Column("measured_at", Double),  # seconds since 1970 UTC
    Column("measurement_id", Text),
    Column("task_id", Text),  # of a row in doubt: the task that may still store it
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Double),
    Column("reason_id", Integer, ForeignKey("reasons.reason_id")),
    Column("quality", SmallInteger, nullable=False),
    Column("run_id", Integer, nullable=False),
    Column("updated_at", Double, nullable=False),
    sqlite_with_rowid=False,
)
OPEN_STATES = (0, 1, 3)  # pending, sending, retrying
REFUSED_STATE = 4
_UNDELIVERED = and_(deliveries.c.state != 2, deliveries.c.state < 5)
# The rows that somebody still has to look at, of each state in the order in which they are shown; it stays small however many results are delivered. A
# second index, or a list of states in its condition, makes a delivered row half as dear again (docs/decisions/ledger.md).
ix_undelivered = Index(
    "ix_deliveries_undelivered",
    deliveries.c.source_id,
    deliveries.c.state,
    deliveries.c.result_id,
    deliveries.c.content_hash,
    sqlite_where=_UNDELIVERED,
    postgresql_where=_UNDELIVERED,
)


def _among_undelivered(statement: Select[Any]) -> Select[Any]:
    """The query of deliveries, kept to what ix_deliveries_undelivered holds and told to use it: SQLite prefers the primary key, and with it all rows."""
    # The index's own conditions to the letter: a database does not look into parameters.
    delivered: BindParameter[int] = bindparam("delivered", 2, literal_execute=True)
    superseded: BindParameter[int] = bindparam("superseded", 5, literal_execute=True)
    statement = statement.where(deliveries.c.state != delivered, deliveries.c.state < superseded)
    return statement.execution_options(benchbridge_index=(deliveries.name, ix_undelivered.name))


def among_open(statement: Select[Any]) -> Select[Any]:
    """The query of deliveries, kept to open rows and quick however many others there are."""
    return _among_undelivered(statement.where(deliveries.c.state.in_(OPEN_STATES)))


def among_refused(statement: Select[Any]) -> Select[Any]:
    """The same for the refused rows."""
    return _among_undelivered(statement.where(deliveries.c.state == REFUSED_STATE))


# What a run is handing to the sink at this moment and the ledger has no rows for yet: the whole batch as one value, written before the first byte is
# sent and removed when its rows are written. After a crash its results are in doubt (see claims.py).
claims = Table(
    "claims",
    metadata,
    Column("claim_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("run_id", Integer, nullable=False),
    Column("share_id", Integer),  # null: claimed by the run itself, not by somebody who carries a share of it
    Column("results", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("claimed_at", Double, nullable=False),
    sqlite_autoincrement=True,
)

# Parts of a run that another process may carry (see shares.py).
shares = Table(
    "shares",
    metadata,
    Column("share_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("run_id", Integer, nullable=False),
    Column("run_lease", Text, nullable=False),  # name and token of the lease under which it is offered
    Column("run_token", BigInteger, nullable=False),
    Column("taken", Boolean, nullable=False, server_default=text("false")),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_shares_source", "source_id"),
    sqlite_autoincrement=True,
)

# What the last comparison counted for each model and hardware: coverage needs the rows that the ledger does not have yet.
tallies = Table(
    "tallies",
    metadata,
    Column("source_id", Integer, ForeignKey("sources.source_id"), primary_key=True, autoincrement=False),
    Column("subject_id", Integer, ForeignKey("subjects.subject_id"), primary_key=True, autoincrement=False),
    Column("total", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
)

# How many rows of a source are where, kept in step by every transaction that moves rows, and counted anew by every comparison: an accounting, the coverage
# and the refusals must not take longer the more results there are.
NO_REASON = 0
standings = Table(
    "standings",
    metadata,
    Column("source_id", Integer, ForeignKey("sources.source_id"), primary_key=True, autoincrement=False),
    Column("subject_id", Integer, primary_key=True, autoincrement=False),
    Column("state", SmallInteger, primary_key=True, autoincrement=False),
    Column("quality", SmallInteger, primary_key=True, autoincrement=False),
    Column("reason_id", Integer, primary_key=True, autoincrement=False),  # NO_REASON for none
    Column("results", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# The ids that were in the file at the last comparison, whatever became of them, and after that what each look for new ones found: Arrow streams.
seen_ids = Table(
    "seen_ids",
    metadata,
    Column("seen_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_seen_ids_source", "source_id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),  # grows with every new holder: the fencing token
    Column("run_id", Integer),
    Column("expires_at", Double, nullable=False),
    Column("duration_s", Double, nullable=False),  # how long the last renewal lasts
)

# What monitoring reads: sums that only grow, kept in step by the transactions that begin, show and end runs, and a few figures of the last run. All runs
# together must not be read for it.
meters = Table(
    "meters",
    metadata,
    Column("source_id", Integer, ForeignKey("sources.source_id"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("labels", Text, primary_key=True, server_default=""),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,
)

# Events that a webhook still has to be told of (see outbox.py).
outbox = Table(
    "outbox",
    metadata,
    Column("outbox_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("event_id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("written_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", Double, nullable=False),
    Column("claimed_until", Double, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)

# The histories of configurations, as much of each as is remembered (see histories.py), and up to where results have been taken up into them.
histories = Table(
    "histories",
    metadata,
    Column("history_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("digest", LargeBinary(16), nullable=False),  # of the configuration, which is a long key
    Column("configuration", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("source_id", "digest"),
)
watches = Table(
    "watches",
    metadata,
    Column("source_id", Integer, ForeignKey("sources.source_id"), primary_key=True, autoincrement=False),
    Column("run_id", Integer, nullable=False),  # what runs up to this one had delivered by `through` has been taken up
    Column("through", Double, nullable=False),
    Column(
        "upto_run", Integer
    ),  # what is being taken up now: the runs after run_id up to this one, in order of time, as far as the result below
    Column("measured_at", Double),
    Column("result_id", Text),
    Column("points", BigInteger, nullable=False, server_default="0"),
    Column("late", BigInteger, nullable=False, server_default="0"),
)

# Where a history changed for good (see regressions.py).
regressions = Table(
    "regressions",
    metadata,
    Column("regression_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("history_id", Integer, ForeignKey("histories.history_id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("hardware", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("worse", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("first", BigInteger, nullable=False),  # the number of the first changed point in its history
    Column("size", Double, nullable=False),  # relative: 0.1 is 10 % more
    Column("confidence", Double, nullable=False),
    Column("before", Double, nullable=False),
    Column("after", Double, nullable=False),
    Column("last_good", Text, nullable=False),
    Column("first_changed", Text, nullable=False),
    Column("found_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("updated_by", Text),  # who set the state: a person, or the level that is back
    Column("note", Text, nullable=False, server_default=""),
    Column("points", LargeBinary, nullable=False),  # those around it, for a picture
    UniqueConstraint("history_id", "metric", "first"),
    Index("ix_regressions_state", "source_id", "worse", "state", "regression_id"),
    sqlite_autoincrement=True,
)


# What was predicted of delivered results, one Arrow stream for each acknowledged batch, and how far the predictions were off: counts as JSON, by day and
# by the groups of accuracy.py.
scores = Table(
    "scores",
    metadata,
    Column("score_id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.source_id"), nullable=False),
    Column("run_id", Integer, nullable=False),
    Column("results", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("scored_at", Double, nullable=False),
    Index("ix_scores_source", "source_id", "scored_at"),
)
forecast_errors = Table(
    "forecast_errors",
    metadata,
    Column("source_id", Integer, ForeignKey("sources.source_id"), primary_key=True, autoincrement=False),
    Column("day", Integer, primary_key=True, autoincrement=False),  # since 1970 UTC
    Column("view", Text, primary_key=True),
    Column("label", Text, primary_key=True),
    Column("figure", Text, primary_key=True),
    Column("predictor", Text, primary_key=True),
    Column("counts", Text, nullable=False),
    sqlite_with_rowid=False,
)


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
