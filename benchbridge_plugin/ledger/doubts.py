"""Results in doubt: handed over, and nobody knows what became of them. Each method is one transaction, and each one that writes is fenced by the lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from sqlalchemy import and_, bindparam, select, update

from benchbridge_plugin.ledger import claims, standings
from benchbridge_plugin.ledger.deliveries import DELIVERED_SQL
from benchbridge_plugin.ledger.leases import Holder, Leases
from benchbridge_plugin.ledger.numbers import Numbers
from benchbridge_plugin.ledger.schema import among_open, deliveries, reasons, sources, subjects
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import Doubt, Outcome, State

_CHUNK = 500  # SQLite allows 32,766 parameters in one statement; smaller chunks are as quick


class Doubts:
    def __init__(self, store: Store, leases: Leases, now: Callable[[], float]) -> None:
        self._store = store
        self._leases = leases
        self._now = now
        self._reasons = Numbers(reasons, "code", "sentence")

    def page(self, source_id: int, *, state: State = State.SENDING, after: str = "", limit: int = 1000) -> list[Doubt]:
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
        if state is State.SENDING:
            statement = among_open(statement)
        with self._store.reading() as connection:
            return [
                Doubt(result_id, bytes(content), UUID(bytes=bytes(key)), model, sent_at, attempts, task_id)
                for result_id, content, key, model, sent_at, attempts, task_id in connection.execute(statement)
            ]

    def abandoned(self, holder: Holder, source_id: int, *, share: int | None = None, of: Sequence[str] | None = None) -> None:
        """What a process was sending when it died is in doubt as of now: it may have sent it until a moment ago, however long ago it claimed it.

        That is what it had claimed and never acknowledged, and the rows in doubt without a reason: whoever lives to acknowledge gives one. With
        `share`: only what was claimed under that share, which is over, and only rows of the results `of` it.
        """
        orphans = and_(deliveries.c.source_id == source_id, deliveries.c.state == int(State.SENDING), deliveries.c.reason_id.is_(None))
        with self._store.reading() as connection:
            if (
                not claims.count(connection, source_id, share=share)
                and connection.execute(among_open(select(1).select_from(deliveries).where(orphans).limit(1))).first() is None
            ):
                return
        reason = ("process_gone", "The process that was sending this result is gone.")
        now = self._now()
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            reason_ids = self._reasons.of(connection, {reason})
            # The attempt is not counted: it was not the result that failed.
            values = {"reason_id": reason_ids[reason], "attempts": deliveries.c.attempts - 1, "updated_at": now}
            moves = standings.Moves(connection, source_id)
            chunks = [list((of or ())[start : start + _CHUNK]) for start in range(0, len(of or ()), _CHUNK)]
            for these in [(orphans,)] if of is None else [(orphans, deliveries.c.result_id.in_(chunk)) for chunk in chunks]:
                moves.turning(*these, reason_id=reason_ids[reason])
                connection.execute(update(deliveries).where(*these).values(**values))
            taken_up = 0
            for claim, results in list(claims.read(connection, source_id, share=share)):
                with moves.among(results.column("result_id").to_pylist()):
                    made = insert_many(
                        connection,
                        "INSERT INTO deliveries (source_id, result_id, content_hash, key, subject_id, measured_at, quality, state, attempts, "
                        f"reason_id, run_id, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, {int(State.SENDING)}, 0, ?, ?, ?) ON CONFLICT DO NOTHING",
                        [(source_id, *row, reason_ids[reason], claim["run_id"], now) for row in claims.as_rows(results)],
                    )
                # One that has a row all the same keeps it, and was not untouched when it was claimed. It must not be in the way of every run to come.
                taken_up += made - len(results)
                claims.remove(connection, source_id, claim["claim_id"])
            moves.write()
            standings.take_up(connection, source_id, taken_up)
        self._reasons.remember(reason_ids)

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
        found, missing, dead = list(stored), list(absent), list(given_up)
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            reason_ids = self._reasons.of(connection, {(outcome.code, outcome.reason) for _, outcome in dead})
            moves = standings.Moves(connection, source_id)
            with moves.among([doubt.result_id for doubt in (*(one for one, _ in found), *missing, *(one for one, _ in dead))]):
                insert_many(
                    connection,
                    f"{DELIVERED_SQL} {where}",
                    [(measurement_id, now, source_id, doubt.result_id, doubt.content_hash) for doubt, measurement_id in found],
                )
                insert_many(
                    connection,
                    f"UPDATE deliveries SET state = {int(State.RETRYING)}, next_attempt_at = coalesce(next_attempt_at, ?), task_id = NULL, "
                    f"updated_at = ? {where}",
                    [(now, now, source_id, doubt.result_id, doubt.content_hash) for doubt in missing],
                )
                insert_many(
                    connection,
                    f"UPDATE deliveries SET state = {int(State.REJECTED)}, reason_id = ?, next_attempt_at = NULL, task_id = NULL, "
                    f"updated_at = ? {where}",
                    [
                        (reason_ids[outcome.code, outcome.reason], now, source_id, doubt.result_id, doubt.content_hash)
                        for doubt, outcome in dead
                    ],
                )
            moves.write()
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
