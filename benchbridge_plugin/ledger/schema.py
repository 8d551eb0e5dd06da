"""The tables of the ledger.

Repeated texts (models, hardware, reasons) are kept once and referred to by number, so that a million rows stay small and quick to count. The view
`delivery_view` shows the rows as people think of them; nothing in the code reads it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
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
    text,
)
from sqlalchemy.dialects.postgresql import TEXT

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
_DELIVERED: BindParameter[int] = bindparam("delivered", 2, literal_execute=True)  # to the letter: a database does not look into parameters
_SUPERSEDED: BindParameter[int] = bindparam("superseded", 5, literal_execute=True)
_UNDELIVERED = and_(deliveries.c.state != _DELIVERED, deliveries.c.state < _SUPERSEDED)
# The rows that somebody still has to look at, of each state in the order in which they are shown; it stays small however many results are delivered. One
# index and not two, and no list of states in its condition: delivered rows pay for it as well (docs/decisions/ledger.md).
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
    return statement.where(_UNDELIVERED).execution_options(benchbridge_index=(deliveries.name, ix_undelivered.name))


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
