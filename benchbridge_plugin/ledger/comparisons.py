"""The file against the ledger, as the ledger keeps it: what it knows of results, what a comparison or a look found, and which ids were seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, bindparam, func, or_, select, update

from benchbridge_plugin.ledger import claims, standings
from benchbridge_plugin.ledger.leases import CLOCKS_APART_S, Holder, Leases
from benchbridge_plugin.ledger.numbers import Numbers
from benchbridge_plugin.ledger.schema import among_open, deliveries, seen_ids, sources, subjects, tallies
from benchbridge_plugin.ledger.schema import standings as kept
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import State

_CURRENT = (State.PENDING, State.SENDING, State.DELIVERED, State.RETRYING, State.REJECTED)
_CHUNK = 500  # SQLite allows 32,766 parameters in one statement; smaller chunks are as quick

#: What `known` returns for each row of the ledger.
KNOWN_SCHEMA = pa.schema(
    [("result_id", pa.string()), ("content_hash", pa.binary()), ("state", pa.int64()), ("due", pa.bool_()), ("attempts", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison of the file with the ledger found."""

    total: int
    untouched: int  # to be sent, and no row yet
    skipped: Mapping[str, int]
    signature: str
    scope: str
    subjects: Mapping[tuple[str, str], tuple[int, int]]  # (model, hardware) -> (results, skipped ones among them)
    ids: pa.Array | None = (
        None  # of all results, unique, in the type of the file; None when they do not tell what is new (repeated or missing ones)
    )


class Comparisons:
    """Each method is one transaction, and each one that writes is fenced by the run's lease."""

    def __init__(self, store: Store, leases: Leases, now: Callable[[], float]) -> None:
        self._store = store
        self._leases = leases
        self._now = now
        self._subjects = Numbers(subjects, "model", "hardware")

    def has_rows(self, source_id: int) -> bool:
        """Whether the ledger knows anything of the source yet."""
        with self._store.reading() as connection:
            found = connection.execute(select(deliveries.c.result_id).where(deliveries.c.source_id == source_id).limit(1)).first()
            return found is not None or claims.count(connection, source_id) > 0

    def known(self, source_id: int, result_ids: Sequence[str]) -> pa.Table:
        """The ledger's rows of these results (KNOWN_SCHEMA); `due` says that the row waits and its time has come.

        For a superseded or withdrawn row it says so of the state it would come back to.
        """
        rows: list[tuple[str, bytes, int, int | None, float | None, float, int]] = []
        columns = (
            deliveries.c.result_id,
            deliveries.c.content_hash,
            deliveries.c.state,
            deliveries.c.prior_state,
            deliveries.c.next_attempt_at,
            deliveries.c.updated_at,
            deliveries.c.attempts,
        )
        statement = select(*columns).where(
            deliveries.c.source_id == source_id, deliveries.c.result_id.in_(bindparam("ids", expanding=True))
        )
        result_ids = [
            result_id for result_id in result_ids if "\0" not in result_id
        ]  # no such row can be there, and PostgreSQL cannot be asked
        with self._store.reading() as connection:
            for start in range(0, len(result_ids), _CHUNK):
                found = connection.execute(statement, {"ids": list(result_ids[start : start + _CHUNK])})
                rows.extend(found)
            for claim, results in claims.read(connection, source_id):
                mine = results.filter(pc.is_in(results.column("result_id"), value_set=pa.array(result_ids, pa.string())))
                identities = zip(mine.column("result_id").to_pylist(), mine.column("content_hash").to_pylist(), strict=True)
                rows += [(result_id, content, int(State.SENDING), None, None, claim["claimed_at"], 1) for result_id, content in identities]
        now = self._now()
        waiting = (State.PENDING, State.RETRYING)
        return pa.table(
            {
                "result_id": [row[0] for row in rows],
                "content_hash": [row[1] for row in rows],
                "state": [row[2] for row in rows],
                "due": [(row[2] if row[3] is None else row[3]) in waiting and has_come(row[4], row[5], now) for row in rows],
                "attempts": [row[6] for row in rows],
            },
            schema=KNOWN_SCHEMA,
        )

    def current_ids(self, source_id: int, after: str, limit: int) -> list[str]:
        """The ids of the rows that count (neither superseded nor withdrawn), in order, a page at a time."""
        statement = (
            select(deliveries.c.result_id)
            .where(deliveries.c.source_id == source_id, deliveries.c.result_id > after, deliveries.c.state.in_(_CURRENT))
            .distinct()
            .order_by(deliveries.c.result_id)
            .limit(limit)
        )
        with self._store.reading() as connection:
            return list(connection.execute(statement).scalars())

    def count_current(self, source_id: int) -> int:
        """How many rows count, in doubt ones included."""
        statement = select(func.sum(kept.c.results)).where(kept.c.source_id == source_id, kept.c.state.in_(_CURRENT))
        with self._store.reading() as connection:
            return int(connection.execute(statement).scalar_one() or 0) + claims.count(connection, source_id)

    def compared(
        self,
        holder: Holder,
        source_id: int,
        comparison: Comparison,
        *,
        superseded: Iterable[tuple[str, bytes]],
        returned: Iterable[tuple[str, bytes]],
        withdrawn: Iterable[str],
        provisional: int | None = None,
    ) -> None:
        """Record a whole comparison: the counts, and which rows no longer count (old contents, rows gone) or count again.

        `provisional`: rows have been taken up already, from that many which an earlier record called untouched.
        """
        now = self._now()
        superseded, returned, withdrawn = list(superseded), list(returned), list(withdrawn)
        retire = "UPDATE deliveries SET prior_state = state, state = ?, updated_at = ? WHERE source_id = ? AND result_id = ?"
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            insert_many(
                connection,
                f"{retire} AND content_hash = ? AND state < {int(State.SUPERSEDED)}",
                [(int(State.SUPERSEDED), now, source_id, result_id, content) for result_id, content in superseded],
            )
            insert_many(
                connection,
                f"{retire} AND state < {int(State.SUPERSEDED)}",
                [(int(State.WITHDRAWN), now, source_id, result_id) for result_id in withdrawn],
            )
            insert_many(
                connection,
                "UPDATE deliveries SET state = prior_state, prior_state = NULL, updated_at = ? "
                f"WHERE source_id = ? AND result_id = ? AND content_hash = ? AND state >= {int(State.SUPERSEDED)}",
                [(now, source_id, result_id, content) for result_id, content in returned],
            )
            if provisional is None:  # otherwise all rows were made by this run a moment ago, and the next comparison counts them
                standings.recount(connection, source_id, moved=bool(superseded or returned or withdrawn))
            subject_ids = self._subjects.of(connection, set(comparison.subjects))
            connection.execute(tallies.delete().where(tallies.c.source_id == source_id))
            insert_many(
                connection,
                "INSERT INTO tallies (source_id, subject_id, total, skipped) VALUES (?, ?, ?, ?)",
                [(source_id, subject_ids[pair], total, skipped) for pair, (total, skipped) in comparison.subjects.items()],
            )
            connection.execute(
                update(sources)
                .where(sources.c.source_id == source_id)
                .values(
                    compared_at=now,
                    signature=comparison.signature,
                    looked=comparison.signature,
                    scope=comparison.scope,
                    total=comparison.total,
                    untouched=comparison.untouched if provisional is None else sources.c.untouched + (comparison.untouched - provisional),
                    skipped=json.dumps(dict(comparison.skipped)),
                )
            )
            connection.execute(seen_ids.delete().where(seen_ids.c.source_id == source_id))
            if comparison.ids is not None:
                _see(connection, source_id, comparison.ids)
        self._subjects.remember(subject_ids)

    def found(self, holder: Holder, source_id: int, more: Comparison, ids: pa.Array) -> None:
        """Record what a look for new ids found: `more` counts them alone, and `ids` are they. Its signature is the one of the look."""
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            before = connection.execute(select(sources.c.skipped).where(sources.c.source_id == source_id)).scalar_one()
            skipped = Counter(json.loads(before))
            skipped.update(more.skipped)
            subject_ids = self._subjects.of(connection, set(more.subjects))
            insert_many(
                connection,
                "INSERT INTO tallies (source_id, subject_id, total, skipped) VALUES (?, ?, ?, ?) ON CONFLICT (source_id, subject_id) "
                "DO UPDATE SET total = tallies.total + excluded.total, skipped = tallies.skipped + excluded.skipped",
                [(source_id, subject_ids[pair], total, skips) for pair, (total, skips) in more.subjects.items()],
            )
            values = {
                "looked": more.signature,
                "total": sources.c.total + more.total,
                "untouched": sources.c.untouched + more.untouched,
                "skipped": json.dumps(skipped),
            }
            connection.execute(update(sources).where(sources.c.source_id == source_id).values(**values))
            if len(ids):
                _see(connection, source_id, ids)
        self._subjects.remember(subject_ids)

    def seen(self, source_id: int) -> list[pa.Array]:
        """The ids that the last comparison and the looks after it found in the file, unique, in the type of the file. Empty: nobody knows."""
        statement = select(seen_ids.c.payload).where(seen_ids.c.source_id == source_id).order_by(seen_ids.c.seen_id)
        with self._store.reading() as connection:
            tables = [pa.ipc.open_stream(payload).read_all() for payload in connection.execute(statement).scalars()]
        return [chunk for table in tables for chunk in table.column("id").chunks]

    def due(self, source_id: int, limit: int) -> pa.Table:
        """The rows that wait and whose time has come: result_id, content_hash and attempts, of KNOWN_SCHEMA."""
        now = self._now()
        come = or_(
            deliveries.c.next_attempt_at.is_(None), deliveries.c.next_attempt_at <= now, deliveries.c.updated_at > now + CLOCKS_APART_S
        )
        waiting = deliveries.c.state.in_([int(State.PENDING), int(State.RETRYING)])
        columns = [KNOWN_SCHEMA.field(name) for name in ("result_id", "content_hash", "attempts")]
        rows = select(*(deliveries.c[column.name] for column in columns)).where(deliveries.c.source_id == source_id, waiting, come)
        with self._store.reading() as connection:
            found = connection.execute(among_open(rows.limit(limit))).all()
        return pa.table(
            [pa.array([row[place] for row in found], column.type) for place, column in enumerate(columns)], schema=pa.schema(columns)
        )


def _see(connection: Connection, source_id: int, ids: pa.Array) -> None:
    table = pa.table({"id": ids})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    connection.execute(seen_ids.insert().values(source_id=source_id, payload=sink.getvalue().to_pybytes()))


def has_come(next_attempt_at: float | None, updated_at: float, now: float) -> bool:
    """Whether a row is due. One that was written by a clock far ahead of ours is: nobody knows when its time would be."""
    return next_attempt_at is None or next_attempt_at <= now or updated_at > now + CLOCKS_APART_S
