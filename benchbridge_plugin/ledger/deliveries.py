"""The rows of the ledger and the steps they take. Each method is one transaction, and each one that writes is fenced by the run's lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import ColumnElement, Connection, bindparam, or_, select, update

from benchbridge_plugin.accuracy import Errors, Group
from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger import claims, scores, standings
from benchbridge_plugin.ledger.bulk import insert_delivered
from benchbridge_plugin.ledger.claims import Claim
from benchbridge_plugin.ledger.leases import Holder, Leases
from benchbridge_plugin.ledger.numbers import Numbers
from benchbridge_plugin.ledger.schema import deliveries, reasons, subjects
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import GIVEN_UP, Fate, Outcome, Receipt, State

_CHUNK = 500  # SQLite allows 32,766 parameters in one statement; smaller chunks are as quick

# A claim of up to that many new rows looks whether they are new. Larger batches go to sinks with keys, which store nothing twice, and there the look
# would cost more than the claim.
_LOOKED_UP = 1_000

DELIVERED_SQL = (
    f"UPDATE deliveries SET state = {int(State.DELIVERED)}, measurement_id = ?, task_id = NULL, reason_id = NULL, next_attempt_at = NULL, "
    "updated_at = ?"
)


class Deliveries:
    def __init__(self, store: Store, leases: Leases, now: Callable[[], float]) -> None:
        self._store = store
        self._leases = leases
        self._now = now
        self._subjects = Numbers(subjects, "model", "hardware")
        self._reasons = Numbers(reasons, "code", "sentence")

    # -- moving -------------------------------------------------------------------------------------------------------------------------

    def claim(self, holder: Holder, source_id: int, batch: pa.Table, is_new: pa.BooleanArray) -> Claim:
        """Make a batch ours before any of it is sent; what is refused by the mapping is `rejected` with its reason at once.

        `is_new[i]` says that row i has no row in the ledger yet: such rows get one when they are acknowledged, and count as in doubt until then; the
        others become `sending`. All or nothing: raises LedgerError (and changes nothing) if the ledger does not look as the comparison said.
        """
        now = self._now()
        deliverable = claims.whole(pc.is_null(batch.column("reason_code")))
        sent, refused = claims.filtered(batch, deliverable), claims.filtered(batch, pc.invert(deliverable))
        sent_new, refused_new = pc.filter(is_new, deliverable), pc.filter(is_new, pc.invert(deliverable))
        pairs, numbers = claims.encoded(batch, "model_name", "hardware_platform")
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            if holder.run_lease is not None:
                self._leases.require(connection, holder.run_lease)
            subject_ids = self._subjects.of(connection, set(pairs))
            reason_ids = self._reasons.of(connection, set(claims.zipped(refused, "reason_code", "reason")))
            subjects_of = pa.array([subject_ids[pair] for pair in pairs], pa.int32()).take(numbers)
            fresh = claims.identities(batch, subjects_of, pc.and_(is_new, deliverable))
            fresh_refused = claims.identities(batch, subjects_of, pc.and_(is_new, pc.invert(deliverable)))
            moves = standings.Moves(connection, source_id)
            self._refuse(connection, holder, moves, source_id, fresh_refused, claims.filtered(refused, refused_new), reason_ids, now)
            again = _again(claims.filtered(refused, pc.invert(refused_new)), State.REJECTED, subject_ids, reason_ids)
            again += _again(claims.filtered(sent, pc.invert(sent_new)), State.SENDING, subject_ids, reason_ids)
            with moves.among([result_id for *_, result_id, _ in again]):
                changed = insert_many(
                    connection,
                    "UPDATE deliveries SET state = ?, attempts = attempts + ?, subject_id = ?, reason_id = ?, quality = ?, run_id = ?, "
                    "updated_at = ?, next_attempt_at = NULL WHERE source_id = ? AND result_id = ? AND content_hash = ? "
                    f"AND state IN ({int(State.PENDING)}, {int(State.RETRYING)})",
                    [(*values, holder.run_id, now, source_id, result_id, content) for *values, result_id, content in again],
                )
            if changed != len(batch) - is_new.true_count or (len(fresh) <= _LOOKED_UP and _meets(connection, source_id, fresh)):
                raise LedgerError(
                    "The ledger changed while a batch was being claimed.", guidance="Nothing was sent; the next sync compares anew."
                )
            moves.write()
            number = claims.store(connection, source_id, holder, fresh, now) if len(fresh) else None
            standings.take_up(connection, source_id, is_new.true_count)
        self._subjects.remember(subject_ids)
        self._reasons.remember(reason_ids)
        return Claim(number, sent, sent_new, fresh)

    def acknowledge(
        self,
        holder: Holder,
        source_id: int,
        claim: Claim,
        receipt: Receipt,
        *,
        retry_at: Callable[[int, Outcome], float],
        scored: tuple[pa.Table, Mapping[Group, Errors]] | None = None,
    ) -> None:
        """Record what became of the deliverable rows of a claimed batch. `retry_at(row, outcome)` gives the time of the next attempt; `scored`: what was
        predicted of those that were delivered, and how far off it was (see scores.write).

        An attempt that failed because the sink is down (`receipt.stop`) is not counted against its row. New rows that were not sent are as if they had
        never been touched. All or nothing: raises LedgerError (and changes nothing) if the claim is gone, a row is not `sending` any more or the
        receipt is about other rows.
        """
        batch, exceptions = claim.batch, receipt.exceptions
        if len(receipt.measurement_ids) != len(batch):
            raise LedgerError(
                f"The receipt is about {len(receipt.measurement_ids)} rows, the batch has {len(batch)}.",
                guidance="What is not acknowledged is in doubt and will be asked for.",
            )
        now = self._now()
        names = _names(receipt.measurement_ids)
        delivered = _all_but(exceptions, len(batch))
        delivered_new = pc.and_(delivered, claim.is_new)
        known = pc.and_(delivered, pc.invert(claim.is_new))
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            wanted = {(outcome.code, outcome.reason) for outcome in exceptions.values() if outcome.fate is not Fate.NOT_SENT}
            reason_ids = self._reasons.of(connection, wanted)
            whole = claim.number is None or claims.remove(connection, source_id, claim.number)
            done = claims.filtered(claim.fresh, pc.filter(delivered, claim.is_new))
            insert_delivered(connection, source_id, holder.run_id, done, pc.filter(names, delivered_new), now)
            moves = standings.Moves(connection, source_id)
            moves.made(done, State.DELIVERED)
            old = claims.filtered(batch.select(["result_id", "content_hash"]), known)
            old_ids, old_hashes = (old.column(name).to_pylist() for name in ("result_id", "content_hash"))
            fresh_ends, old_ends = self._ends(claim, receipt, reason_ids, retry_at)
            where = f"WHERE source_id = ? AND result_id = ? AND content_hash = ? AND state = {int(State.SENDING)}"
            with moves.among([*old_ids, *(row[0] for row, _ in fresh_ends), *(result_id for result_id, *_ in old_ends)]):
                changed = insert_many(
                    connection,
                    f"{DELIVERED_SQL} {where}",
                    [
                        (name, now, source_id, result_id, content)
                        for name, result_id, content in zip(pc.filter(names, known).to_pylist(), old_ids, old_hashes, strict=True)
                    ],
                )
                insert_many(
                    connection,
                    "INSERT INTO deliveries (source_id, result_id, content_hash, key, subject_id, measured_at, quality, state, attempts, "
                    "reason_id, next_attempt_at, task_id, run_id, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(source_id, *row, *end, holder.run_id, now) for row, end in fresh_ends],
                )
                changed += insert_many(
                    connection,
                    "UPDATE deliveries SET state = ?, attempts = attempts - 1 + ?, reason_id = ?, next_attempt_at = ?, task_id = ?, "
                    f"updated_at = ? {where}",
                    [(*end, now, source_id, result_id, content) for result_id, content, end in old_ends],
                )
            if not whole or changed != len(old) + len(old_ends):
                raise LedgerError(
                    "The ledger changed while a batch was on its way.",
                    guidance="What is not acknowledged is in doubt and will be asked for.",
                )
            moves.write()
            if scored is not None:
                scores.write(connection, source_id, holder.run_id, *scored, now)
            unsent = len(claim.fresh) - len(done) - len(fresh_ends)
            standings.take_up(connection, source_id, -unsent)  # after the standings, as everywhere: two hosts must not wait for each other
        self._reasons.remember(reason_ids)

    @staticmethod
    def _ends(
        claim: Claim, receipt: Receipt, reason_ids: Mapping[tuple[str, str], int], retry_at: Callable[[int, Outcome], float]
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any, Any]]]:
        """How the rows that were not delivered end: (state, attempts of this time, reason, next attempt, task). New rows, then known ones."""
        fresh: list[tuple[Any, Any]] = []
        old: list[tuple[Any, Any, Any]] = []
        if not receipt.exceptions:
            return fresh, old
        is_new = claim.is_new.to_pylist()
        place = [position - 1 for position in accumulate(is_new)]
        rows = claims.as_rows(claim.fresh)
        ids, hashes = claim.batch.column("result_id").to_pylist(), claim.batch.column("content_hash").to_pylist()
        for row, outcome in receipt.exceptions.items():
            counts = not (outcome.fate is Fate.NOT_SENT or (receipt.stop is not None and outcome.fate is not Fate.REJECTED))
            due = retry_at(row, outcome) if _waits(outcome, receipt) else None
            end = (int(_STATES[outcome.fate]), int(counts), reason_ids.get((outcome.code, outcome.reason)), due, outcome.task_id)
            if not is_new[row]:
                old.append((ids[row], hashes[row], end))
            elif outcome.fate is not Fate.NOT_SENT:
                fresh.append((rows[place[row]], end))
        return fresh, old

    @staticmethod
    def _refuse(
        connection: Connection,
        holder: Holder,
        moves: standings.Moves,
        source_id: int,
        identities: pa.Table,
        refused: pa.Table,
        reason_ids: Mapping[tuple[str, str], int],
        now: float,
    ) -> None:
        reasons_of = [reason_ids[pair] for pair in claims.zipped(refused, "reason_code", "reason")]
        subject_ids, qualities = (identities.column(name).to_pylist() for name in ("subject_id", "quality"))
        moves.placed(
            (subject, int(State.REJECTED), quality, reason)
            for subject, quality, reason in zip(subject_ids, qualities, reasons_of, strict=True)
        )
        insert_many(
            connection,
            "INSERT INTO deliveries (source_id, result_id, content_hash, key, subject_id, measured_at, quality, state, attempts, reason_id, run_id, "
            f"updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, {int(State.REJECTED)}, 0, ?, ?, ?)",
            [(source_id, *row, reason, holder.run_id, now) for row, reason in zip(claims.as_rows(identities), reasons_of, strict=True)],
        )

    def reopen(self, holder: Holder, source_id: int, result_ids: Sequence[str]) -> int:
        """Delivered results that the sink no longer has go back to pending. Returns how many rows changed."""
        now = self._now()
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            moves = standings.Moves(connection, source_id)
            with moves.among(result_ids):
                changed = insert_many(
                    connection,
                    f"UPDATE deliveries SET state = {int(State.PENDING)}, next_attempt_at = NULL, updated_at = ? "
                    f"WHERE source_id = ? AND result_id = ? AND state = {int(State.DELIVERED)}",
                    [(now, source_id, result_id) for result_id in result_ids],
                )
            moves.write()
            return changed

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
        conditions = [deliveries.c.source_id == source_id]
        if model is not None:
            conditions.append(deliveries.c.subject_id.in_(select(subjects.c.subject_id).where(subjects.c.model == model)))
        if reason is not None:
            conditions.append(deliveries.c.reason_id.in_(select(reasons.c.reason_id).where(reasons.c.code == reason)))
        values = {"state": int(State.PENDING), "attempts": 0, "next_attempt_at": None, "updated_at": self._now()}
        chunks: list[tuple[ColumnElement[bool], ...]] = [()]
        if result_ids is not None:
            steps = range(0, len(result_ids), _CHUNK)
            chunks = [(deliveries.c.result_id.in_(list(result_ids[start : start + _CHUNK])),) for start in steps]
        conditions.append(or_(deliveries.c.state == int(State.RETRYING), refused))
        with self._store.writing() as connection:
            moves = standings.Moves(connection, source_id)
            changed = 0
            for mine in chunks:
                changed += moves.turning(*conditions, *mine, state=State.PENDING)
                connection.execute(update(deliveries).where(*conditions, *mine).values(**values))
            moves.write()
        return changed


def _meets(connection: Connection, source_id: int, fresh: pa.Table) -> bool:
    """Whether the ledger has one of these contents already, as a row or on its way."""
    ids, hashes = (fresh.column(name).to_pylist() for name in ("result_id", "content_hash"))
    mine = set(zip(ids, hashes, strict=True))
    if len(mine) < len(ids):
        return True
    statement = select(deliveries.c.result_id, deliveries.c.content_hash).where(
        deliveries.c.source_id == source_id, deliveries.c.result_id.in_(bindparam("ids", expanding=True))
    )
    for start in range(0, len(ids), _CHUNK):
        if any((found, bytes(content)) in mine for found, content in connection.execute(statement, {"ids": ids[start : start + _CHUNK]})):
            return True
    for _, results in claims.read(connection, source_id):
        here = results.filter(pc.is_in(results.column("result_id"), value_set=fresh.column("result_id").combine_chunks()))
        if not mine.isdisjoint(zip(here.column("result_id").to_pylist(), here.column("content_hash").to_pylist(), strict=True)):
            return True
    return False


_STATES = {
    Fate.REJECTED: State.REJECTED,
    Fate.FAILED: State.RETRYING,
    Fate.IN_DOUBT: State.SENDING,
    Fate.NOT_SENT: State.PENDING,
}


def _names(measurement_ids: Sequence[str | None] | pa.Array) -> pa.Array:
    return measurement_ids if isinstance(measurement_ids, pa.Array) else pa.array(measurement_ids, pa.string())


def _all_but(rows: Iterable[int], count: int) -> pa.BooleanArray:
    """A mask that leaves these rows out."""
    left_out = pa.array(list(rows), pa.int64())
    return pc.invert(pc.is_in(pa.array(range(count), pa.int64()), value_set=left_out)) if len(left_out) else pa.repeat(True, count)


def _again(
    batch: pa.Table, state: State, subject_ids: Mapping[tuple[str, str], int], reason_ids: Mapping[tuple[str, str], int]
) -> list[tuple[Any, ...]]:
    """How rows that the ledger has are claimed: (state, attempts more, subject, reason, quality, result id, content hash)."""
    more = int(state is State.SENDING)
    return [
        (int(state), more, subject_ids[subject], reason_ids.get(reason) if reason[0] else None, quality, result_id, content)
        for subject, reason, quality, result_id, content in zip(
            claims.zipped(batch, "model_name", "hardware_platform"),
            claims.zipped(batch, "reason_code", "reason"),
            *(batch.column(name).to_pylist() for name in ("quality", "result_id", "content_hash")),
            strict=True,
        )
    ]


def _waits(outcome: Outcome, receipt: Receipt) -> bool:
    """Whether a row gets a time before which it is not sent again. One in doubt because the sink went down is sent once the sink says it is absent."""
    if outcome.fate is Fate.IN_DOUBT:
        return receipt.stop is None or outcome.retry_after_s is not None
    return outcome.fate is Fate.FAILED
