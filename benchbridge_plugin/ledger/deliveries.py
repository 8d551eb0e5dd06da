"""The rows of the ledger and the steps they take. Each method is one transaction, and each one that writes is fenced by the run's lease."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import pyarrow as pa
from sqlalchemy import and_, bindparam, func, or_, select, update

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger.leases import CLOCKS_APART_S, Lease, Leases
from benchbridge_plugin.ledger.numbers import Numbers
from benchbridge_plugin.ledger.schema import deliveries, reasons, sources, subjects, tallies
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import GIVEN_UP, Doubt, Fate, Outcome, Receipt, State

_CURRENT = (State.PENDING, State.SENDING, State.DELIVERED, State.RETRYING, State.REJECTED)
_CHUNK = 500  # SQLite allows 32,766 parameters in one statement; smaller chunks are as quick

_DELIVERED = (
    f"UPDATE deliveries SET state = {int(State.DELIVERED)}, measurement_id = ?, task_id = NULL, reason_id = NULL, next_attempt_at = NULL, "
    "updated_at = ?"
)

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


@dataclass(frozen=True, slots=True)
class Holder:
    """A run's right to write: its lease, how long each renewal lasts, its number."""

    lease: Lease
    duration_s: float
    run_id: int


class Deliveries:
    def __init__(self, store: Store, leases: Leases, now: Callable[[], float]) -> None:
        self._store = store
        self._leases = leases
        self._now = now
        self._subjects = Numbers(subjects, "model", "hardware")
        self._reasons = Numbers(reasons, "code", "sentence")

    # -- comparing ----------------------------------------------------------------------------------------------------------------------

    def has_rows(self, source_id: int) -> bool:
        """Whether the ledger knows anything of the source yet."""
        with self._store.reading() as connection:
            found = connection.execute(select(deliveries.c.result_id).where(deliveries.c.source_id == source_id).limit(1)).first()
        return found is not None

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
        now = self._now()
        waiting = (State.PENDING, State.RETRYING)
        return pa.table(
            {
                "result_id": [row[0] for row in rows],
                "content_hash": [row[1] for row in rows],
                "state": [row[2] for row in rows],
                "due": [(row[2] if row[3] is None else row[3]) in waiting and _has_come(row[4], row[5], now) for row in rows],
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
        statement = select(func.count()).where(deliveries.c.source_id == source_id, deliveries.c.state.in_(_CURRENT))
        with self._store.reading() as connection:
            return int(connection.execute(statement).scalar_one())

    def compared(
        self,
        holder: Holder,
        source_id: int,
        comparison: Comparison,
        *,
        superseded: Iterable[tuple[str, bytes]],
        returned: Iterable[tuple[str, bytes]],
        withdrawn: Iterable[str],
    ) -> None:
        """Record a whole comparison: the counts, and which rows no longer count (old contents, rows gone) or count again."""
        now = self._now()
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
                    scope=comparison.scope,
                    total=comparison.total,
                    untouched=comparison.untouched,
                    skipped=json.dumps(dict(comparison.skipped)),
                )
            )
        self._subjects.remember(subject_ids)

    # -- moving -------------------------------------------------------------------------------------------------------------------------

    def claim(self, holder: Holder, source_id: int, batch: pa.Table, is_new: Sequence[bool]) -> None:
        """Make a batch ours before any of it is sent: deliverable rows become `sending`, the others `rejected` with their reason.

        `is_new[i]` says that row i has no row in the ledger yet. All or nothing: raises LedgerError (and changes nothing) if the ledger does not
        look as the comparison said.
        """
        now = self._now()
        columns = batch.select(
            ["result_id", "content_hash", "key", "reason_code", "reason", "quality", "measured_at_us", "model_name", "hardware_platform"]
        )
        rows = list(zip(*(column.to_pylist() for column in columns.columns), strict=True))
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            subject_ids = self._subjects.of(connection, {(row[7] or "", row[8] or "") for row in rows})
            reason_ids = self._reasons.of(connection, {(row[3], row[4]) for row in rows if row[3]})
            fresh, again = [], []
            for row, new in zip(rows, is_new, strict=True):
                result_id, content, key, code, sentence, quality, measured_at_us, model, hardware = row
                state = int(State.REJECTED if code else State.SENDING)
                reason_id = reason_ids[code, sentence] if code else None
                subject_id = subject_ids[model or "", hardware or ""]
                attempt = 0 if code else 1
                if new:
                    measured_at = None if measured_at_us is None else measured_at_us / 1e6
                    fresh.append(
                        (
                            source_id,
                            result_id,
                            content,
                            key,
                            state,
                            subject_id,
                            measured_at,
                            attempt,
                            reason_id,
                            quality,
                            holder.run_id,
                            now,
                        )
                    )
                else:
                    again.append((state, subject_id, attempt, reason_id, quality, holder.run_id, now, source_id, result_id, content))
            insert_many(
                connection,
                "INSERT INTO deliveries (source_id, result_id, content_hash, key, state, subject_id, measured_at, attempts, reason_id, quality, "
                "run_id, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                fresh,
            )
            changed = insert_many(
                connection,
                "UPDATE deliveries SET state = ?, subject_id = ?, attempts = attempts + ?, reason_id = ?, quality = ?, run_id = ?, updated_at = ?, "
                "next_attempt_at = NULL WHERE source_id = ? AND result_id = ? AND content_hash = ? "
                f"AND state IN ({int(State.PENDING)}, {int(State.RETRYING)})",
                again,
            )
            if changed != len(again):
                raise LedgerError(
                    "The ledger changed while a batch was being claimed.", guidance="Nothing was sent; the next sync compares anew."
                )
            connection.execute(update(sources).where(sources.c.source_id == source_id).values(untouched=sources.c.untouched - len(fresh)))
        self._subjects.remember(subject_ids)
        self._reasons.remember(reason_ids)

    def acknowledge(
        self, holder: Holder, source_id: int, batch: pa.Table, receipt: Receipt, *, retry_at: Callable[[int, Outcome], float]
    ) -> None:
        """Record what became of the deliverable rows of a claimed batch. `retry_at(row, outcome)` gives the time of the next attempt.

        An attempt that failed because the sink is down (`receipt.stop`) is not counted against its row.
        All or nothing: raises LedgerError (and changes nothing) if a row is not `sending` any more or the receipt is about other rows.
        """
        if len(receipt.measurement_ids) != len(batch):
            raise LedgerError(
                f"The receipt is about {len(receipt.measurement_ids)} rows, the batch has {len(batch)}.",
                guidance="What is not acknowledged is in doubt and will be asked for.",
            )
        now = self._now()
        ids, hashes = batch.column("result_id").to_pylist(), batch.column("content_hash").to_pylist()
        exceptions = receipt.exceptions
        done = [
            (measurement_id, now, source_id, ids[i], hashes[i])
            for i, measurement_id in enumerate(receipt.measurement_ids)
            if i not in exceptions
        ]
        where = f"WHERE source_id = ? AND result_id = ? AND content_hash = ? AND state = {int(State.SENDING)}"
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            wanted = {(outcome.code, outcome.reason) for outcome in exceptions.values() if outcome.fate is not Fate.NOT_SENT}
            reason_ids = self._reasons.of(connection, wanted)
            changed = insert_many(
                connection,
                f"{_DELIVERED} {where}",
                done,
            )
            states = {
                Fate.REJECTED: State.REJECTED,
                Fate.FAILED: State.RETRYING,
                Fate.IN_DOUBT: State.SENDING,
                Fate.NOT_SENT: State.PENDING,
            }
            changed += insert_many(
                connection,
                "UPDATE deliveries SET state = ?, attempts = attempts - ?, reason_id = ?, next_attempt_at = ?, task_id = ?, updated_at = ? "
                f"{where}",
                [
                    (
                        int(states[outcome.fate]),
                        int(outcome.fate is Fate.NOT_SENT or (receipt.stop is not None and outcome.fate is not Fate.REJECTED)),
                        reason_ids.get((outcome.code, outcome.reason)),
                        retry_at(i, outcome) if _waits(outcome, receipt) else None,
                        outcome.task_id,
                        now,
                        source_id,
                        ids[i],
                        hashes[i],
                    )
                    for i, outcome in exceptions.items()
                ],
            )
            if changed != len(batch):
                raise LedgerError(
                    "The ledger changed while a batch was on its way.",
                    guidance="What is not acknowledged is in doubt and will be asked for.",
                )
        self._reasons.remember(reason_ids)

    # -- doubt --------------------------------------------------------------------------------------------------------------------------

    def doubts(self, source_id: int, *, state: State = State.SENDING, after: str = "", limit: int = 1000) -> list[Doubt]:
        """The results that were handed over and never acknowledged, in order of their ids, a page at a time.

        With `state=DELIVERED` the acknowledged ones, as questions to a sink that is to be verified.
        """
        statement = (
            select(
                deliveries.c.result_id,
                deliveries.c.content_hash,
                deliveries.c.key,
                subjects.c.model,
                deliveries.c.updated_at,
                deliveries.c.attempts,
                deliveries.c.task_id,
            )
            .join(subjects)
            .where(deliveries.c.source_id == source_id, deliveries.c.state == int(state), deliveries.c.result_id > after)
            .order_by(deliveries.c.result_id)
            .limit(limit)
        )
        with self._store.reading() as connection:
            return [
                Doubt(result_id, bytes(content), UUID(bytes=bytes(key)), model, sent_at, attempts, task_id)
                for result_id, content, key, model, sent_at, attempts, task_id in connection.execute(statement)
            ]

    def abandoned(self, holder: Holder, source_id: int) -> None:
        """Rows that a process was sending when it died are in doubt as of now: it may have sent them until a moment ago, however long ago it claimed them.

        They are the ones in doubt without a reason: whoever lives to acknowledge gives one.
        """
        orphans = and_(deliveries.c.source_id == source_id, deliveries.c.state == int(State.SENDING), deliveries.c.reason_id.is_(None))
        with self._store.reading() as connection:
            if connection.execute(select(1).where(orphans).limit(1)).first() is None:
                return
        reason = ("process_gone", "The process that was sending this result is gone.")
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            reason_ids = self._reasons.of(connection, {reason})
            # The attempt is not counted: it was not the result that failed.
            values = {"reason_id": reason_ids[reason], "attempts": deliveries.c.attempts - 1, "updated_at": self._now()}
            connection.execute(update(deliveries).where(orphans).values(**values))

    def settle(
        self,
        holder: Holder,
        source_id: int,
        stored: Iterable[tuple[Doubt, str | None]],
        absent: Iterable[Doubt],
        given_up: Iterable[tuple[Doubt, Outcome]] = (),
    ) -> None:
        """End doubts: what the sink has is delivered; what it certainly does not have is due again (at the time it was given when it failed, or now), or
        given up."""
        now = self._now()
        where = f"WHERE source_id = ? AND result_id = ? AND content_hash = ? AND state = {int(State.SENDING)}"
        dead = list(given_up)
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            insert_many(
                connection,
                f"{_DELIVERED} {where}",
                [(measurement_id, now, source_id, doubt.result_id, doubt.content_hash) for doubt, measurement_id in stored],
            )
            insert_many(
                connection,
                f"UPDATE deliveries SET state = {int(State.RETRYING)}, next_attempt_at = coalesce(next_attempt_at, ?), task_id = NULL, "
                f"updated_at = ? {where}",
                [(now, now, source_id, doubt.result_id, doubt.content_hash) for doubt in absent],
            )
            reason_ids = self._reasons.of(connection, {(outcome.code, outcome.reason) for _, outcome in dead})
            insert_many(
                connection,
                f"UPDATE deliveries SET state = {int(State.REJECTED)}, reason_id = ?, next_attempt_at = NULL, task_id = NULL, updated_at = ? {where}",
                [
                    (reason_ids[outcome.code, outcome.reason], now, source_id, doubt.result_id, doubt.content_hash)
                    for doubt, outcome in dead
                ],
            )
        self._reasons.remember(reason_ids)

    def is_adopted(self, source_id: int) -> bool:
        """Whether the sink was asked, to the end, what it had of this source before this ledger."""
        with self._store.reading() as connection:
            return bool(connection.execute(select(sources.c.adopted).where(sources.c.source_id == source_id)).scalar_one())

    def mark_adopted(self, holder: Holder, source_id: int) -> None:
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            connection.execute(update(sources).where(sources.c.source_id == source_id).values(adopted=True))

    def ids_taken(self, measurement_ids: Sequence[str]) -> frozenset[str]:
        """Those of the sink's ids that some delivered result has, of whatever source."""
        statement = select(deliveries.c.measurement_id).where(deliveries.c.measurement_id.in_(bindparam("ids", expanding=True)))
        found: set[str] = set()
        with self._store.reading() as connection:
            for start in range(0, len(measurement_ids), _CHUNK):
                found.update(connection.execute(statement, {"ids": list(measurement_ids[start : start + _CHUNK])}).scalars())
        return frozenset(found)

    def reopen(self, holder: Holder, source_id: int, result_ids: Sequence[str]) -> int:
        """Delivered results that the sink no longer has go back to pending. Returns how many rows changed."""
        now = self._now()
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            return insert_many(
                connection,
                f"UPDATE deliveries SET state = {int(State.PENDING)}, next_attempt_at = NULL, updated_at = ? "
                f"WHERE source_id = ? AND result_id = ? AND state = {int(State.DELIVERED)}",
                [(now, source_id, result_id) for result_id in result_ids],
            )

    # -- by hand ------------------------------------------------------------------------------------------------------------------------

    def retry(
        self,
        source_id: int,
        *,
        rejected: bool,
        model: str | None = None,
        result_ids: Sequence[str] | None = None,
        reason: str | None = None,
    ) -> int:
        """Make waiting rows due now and bring given-up ones back to pending; with `rejected`, refused ones too. Returns how many rows changed."""
        refused = deliveries.c.state == int(State.REJECTED)
        if not rejected:
            refused &= deliveries.c.reason_id.in_(select(reasons.c.reason_id).where(reasons.c.code == GIVEN_UP))
        statement = (
            update(deliveries)
            .where(deliveries.c.source_id == source_id, or_(deliveries.c.state == int(State.RETRYING), refused))
            .values(state=int(State.PENDING), attempts=0, next_attempt_at=None, updated_at=self._now())
        )
        if model is not None:
            statement = statement.where(deliveries.c.subject_id.in_(select(subjects.c.subject_id).where(subjects.c.model == model)))
        if reason is not None:
            statement = statement.where(deliveries.c.reason_id.in_(select(reasons.c.reason_id).where(reasons.c.code == reason)))
        with self._store.writing() as connection:
            if result_ids is None:
                return connection.execute(statement).rowcount
            chunks = (list(result_ids[start : start + _CHUNK]) for start in range(0, len(result_ids), _CHUNK))
            return sum(connection.execute(statement.where(deliveries.c.result_id.in_(chunk))).rowcount for chunk in chunks)


def _waits(outcome: Outcome, receipt: Receipt) -> bool:
    """Whether a row gets a time before which it is not sent again. One in doubt because the sink went down is sent once the sink says it is absent."""
    if outcome.fate is Fate.IN_DOUBT:
        return receipt.stop is None or outcome.retry_after_s is not None
    return outcome.fate is Fate.FAILED


def _has_come(next_attempt_at: float | None, updated_at: float, now: float) -> bool:
    """Whether a row is due. One that was written by a clock far ahead of ours is: nobody knows when its time would be."""
    return next_attempt_at is None or next_attempt_at <= now or updated_at > now + CLOCKS_APART_S
