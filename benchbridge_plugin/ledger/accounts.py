"""What the ledger says of itself: the accounting, coverage, refusals, single results. Reads only, each in one snapshot, never waiting for a writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, select

from benchbridge_plugin.ledger.leases import CLOCKS_APART_S
from benchbridge_plugin.ledger.schema import deliveries, reasons, sources, subjects, tallies
from benchbridge_plugin.ledger.store import Store
from benchbridge_plugin.model import STATE_NAMES, Accounting, Quality, State, quality_names


@dataclass(frozen=True, slots=True)
class Compared:
    """What the last comparison was made of, to know whether another one is needed."""

    signature: str | None
    scope: str | None
    untouched: int  # results that are to be sent and that no run has taken up yet


@dataclass(frozen=True, slots=True)
class Page:
    rows: Sequence[Mapping[str, object]]
    next_cursor: str | None


class Accounts:
    def __init__(self, store: Store) -> None:
        self._store = store

    def accounting(self, source_id: int) -> Accounting:
        """The accounting identity: the counts of the last comparison and the states of now, from one snapshot."""
        counts = select(deliveries.c.state, func.count()).where(deliveries.c.source_id == source_id).group_by(deliveries.c.state)
        with self._store.reading() as connection:
            source = connection.execute(select(sources).where(sources.c.source_id == source_id)).mappings().one()
            by_state = {State(state): count for state, count in connection.execute(counts)}
        skipped = {reason: int(count) for reason, count in json.loads(source["skipped"]).items()}
        return Accounting(
            total=source["total"],
            delivered=by_state.get(State.DELIVERED, 0),
            pending=source["untouched"] + by_state.get(State.PENDING, 0),
            retrying=by_state.get(State.RETRYING, 0),
            in_doubt=by_state.get(State.SENDING, 0),
            rejected=by_state.get(State.REJECTED, 0),
            skipped=sum(skipped.values()),
            skipped_by_reason=skipped,
            superseded=by_state.get(State.SUPERSEDED, 0),
            withdrawn=by_state.get(State.WITHDRAWN, 0),
            compared_at=source["compared_at"],
        )

    def compared(self, source_id: int) -> Compared:
        columns = (sources.c.signature, sources.c.scope, sources.c.untouched)
        with self._store.reading() as connection:
            return Compared(*connection.execute(select(*columns).where(sources.c.source_id == source_id)).one())

    def waiting(self, source_id: int, now: float) -> bool:
        """Whether some row has to be looked at: in doubt, or due to be sent again."""
        come = or_(deliveries.c.next_attempt_at <= now, deliveries.c.updated_at > now + CLOCKS_APART_S)
        due = and_(deliveries.c.state == int(State.RETRYING), come)
        open_now = or_(due, deliveries.c.state.in_([int(State.SENDING), int(State.PENDING)]))
        with self._store.reading() as connection:
            return connection.execute(select(1).where(deliveries.c.source_id == source_id, open_now).limit(1)).first() is not None

    def coverage(self, source_id: int) -> list[dict[str, object]]:
        """One row for each (model, hardware): `total` on disk at the last comparison, and how many of them are where."""
        by_state = (
            select(subjects.c.model, subjects.c.hardware, deliveries.c.state, func.count())
            .join(subjects)
            .where(deliveries.c.source_id == source_id, deliveries.c.state < int(State.SUPERSEDED))
            .group_by(subjects.c.model, subjects.c.hardware, deliveries.c.state)
        )
        on_disk = (
            select(subjects.c.model, subjects.c.hardware, tallies.c.total, tallies.c.skipped)
            .select_from(tallies.join(subjects))
            .where(tallies.c.source_id == source_id)
        )
        cells: dict[tuple[str, str], dict[str, int]] = {}
        with self._store.reading() as connection:
            for model, hardware, total, skipped in connection.execute(on_disk):
                cells[model, hardware] = {"total": total, "skipped": skipped}
            for model, hardware, state, count in connection.execute(by_state):
                cells.setdefault((model, hardware), {"total": 0, "skipped": 0})[STATE_NAMES[State(state)]] = count
        rows: list[dict[str, object]] = []
        for (model, hardware), cell in sorted(cells.items()):
            states = {name: cell.get(name, 0) for name in ("delivered", "retrying", "in_doubt", "rejected", "skipped")}
            pending = max(cell["total"] - sum(states.values()), 0)
            rows.append({"model": model, "hardware": hardware, "total": cell["total"], **states, "pending": pending})
        return rows

    def refusals(self, source_id: int) -> list[dict[str, object]]:
        """Refused, retrying and doubtful results grouped by their reason, most first."""
        statement = (
            select(deliveries.c.state, reasons.c.code, reasons.c.sentence, func.count())
            .join(reasons)
            .where(
                deliveries.c.source_id == source_id, deliveries.c.state.in_([int(State.REJECTED), int(State.RETRYING), int(State.SENDING)])
            )
            .group_by(deliveries.c.state, reasons.c.code, reasons.c.sentence)
            .order_by(func.count().desc(), reasons.c.code, reasons.c.sentence)
        )
        with self._store.reading() as connection:
            return [
                {"state": STATE_NAMES[State(state)], "code": code, "reason": sentence, "count": count}
                for state, code, sentence, count in connection.execute(statement)
            ]

    def quality(self, source_id: int) -> dict[str, int]:
        """How many delivered results carry which quality flag."""
        statement = (
            select(deliveries.c.quality, func.count())
            .where(deliveries.c.source_id == source_id, deliveries.c.state == int(State.DELIVERED), deliveries.c.quality > 0)
            .group_by(deliveries.c.quality)
        )
        totals = {flag.name.lower(): 0 for flag in Quality if flag.name}
        with self._store.reading() as connection:
            for flags, count in connection.execute(statement):
                for name in quality_names(flags):
                    totals[name] += count
        return {name: count for name, count in totals.items() if count}

    def results(
        self,
        source_id: int,
        *,
        state: State | None = None,
        model: str | None = None,
        hardware: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Single results in the order of their ids, `limit` at a time; `cursor` is the `next_cursor` of the page before."""
        conditions: list[ColumnElement[bool]] = [deliveries.c.source_id == source_id]
        if state is not None:
            conditions.append(deliveries.c.state == int(state))
        if model is not None:
            conditions.append(subjects.c.model == model)
        if hardware is not None:
            conditions.append(subjects.c.hardware == hardware)
        if cursor is not None:
            content, _, result_id = cursor.partition(".")
            mark = bytes.fromhex(content)
            conditions.append(
                or_(deliveries.c.result_id > result_id, and_(deliveries.c.result_id == result_id, deliveries.c.content_hash > mark))
            )
        statement = (
            select(deliveries, subjects.c.model, subjects.c.hardware, reasons.c.code, reasons.c.sentence)
            .join(subjects, subjects.c.subject_id == deliveries.c.subject_id)
            .outerjoin(reasons, reasons.c.reason_id == deliveries.c.reason_id)
            .where(*conditions)
            .order_by(deliveries.c.result_id, deliveries.c.content_hash)
            .limit(limit + 1)
        )
        with self._store.reading() as connection:
            found = connection.execute(statement).mappings().all()
        rows = [
            {
                "result_id": row["result_id"],
                "content_hash": row["content_hash"].hex(),
                "key": _uuid(row["key"]),
                "state": STATE_NAMES[State(row["state"])],
                "model": row["model"],
                "hardware": row["hardware"],
                "measured_at": row["measured_at"],
                "measurement_id": row["measurement_id"],
                "attempts": row["attempts"],
                "next_attempt_at": row["next_attempt_at"],
                "reason_code": row["code"],
                "reason": row["sentence"],
                "quality": quality_names(row["quality"]),
                "run_id": row["run_id"],
                "updated_at": row["updated_at"],
            }
            for row in found[:limit]
        ]
        following = f"{rows[-1]['content_hash']}.{rows[-1]['result_id']}" if len(found) > limit else None
        return Page(rows, following)

    def every_key(self, source_id: int) -> Iterator[str]:
        """The keys of all rows, in whatever state: an old content of a changed result is ours too."""
        statement = select(deliveries.c.key).where(deliveries.c.source_id == source_id).execution_options(yield_per=10_000)
        with self._store.reading() as connection:
            for key in connection.execute(statement).scalars():
                yield _uuid(key)


def _uuid(key: bytes) -> str:
    return str(UUID(bytes=bytes(key)))
