"""What the ledger says of itself: the accounting, coverage, refusals, single results. Reads only, each in one snapshot, never waiting for a writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, or_, select, tuple_

from benchbridge_plugin.ledger import claims
from benchbridge_plugin.ledger.leases import CLOCKS_APART_S
from benchbridge_plugin.ledger.schema import (
    OPEN_STATES,
    among_open,
    among_refused,
    deliveries,
    reasons,
    sources,
    standings,
    subjects,
    tallies,
)
from benchbridge_plugin.ledger.store import Store
from benchbridge_plugin.model import STATE_NAMES, Accounting, Quality, State, quality_names


@dataclass(frozen=True, slots=True)
class Compared:
    """What the last comparison was made of, to know whether another one is needed."""

    signature: str | None
    looked: str | None  # the signature at the last look for new ids
    scope: str | None
    compared_at: float | None
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
        return self.accountings([source_id])[source_id]

    def accountings(self, source_ids: Sequence[int]) -> dict[int, Accounting]:
        """The same of several sources, all from one snapshot, so that their sums are as true as they are."""
        by_state = (
            select(standings.c.source_id, standings.c.state, func.sum(standings.c.results))
            .where(standings.c.source_id.in_(source_ids))
            .group_by(standings.c.source_id, standings.c.state)
        )
        states: dict[int, dict[State, int]] = {source_id: {} for source_id in source_ids}
        with self._store.reading() as connection:
            rows = connection.execute(select(sources).where(sources.c.source_id.in_(source_ids))).mappings().all()
            for source_id, state, results in connection.execute(by_state):
                states[source_id][State(state)] = int(results)
            claimed = claims.counts(connection, source_ids)
        return {row["source_id"]: _accounting(row, states[row["source_id"]], claimed.get(row["source_id"], 0)) for row in rows}

    def compared(self, source_id: int) -> Compared:
        columns = (sources.c.signature, sources.c.looked, sources.c.scope, sources.c.compared_at, sources.c.untouched)
        with self._store.reading() as connection:
            return Compared(*connection.execute(select(*columns).where(sources.c.source_id == source_id)).one())

    def waiting(self, source_id: int, now: float) -> bool:
        """Whether some row has to be looked at: in doubt, or due to be sent again."""
        come = or_(deliveries.c.next_attempt_at <= now, deliveries.c.updated_at > now + CLOCKS_APART_S)
        due = and_(deliveries.c.state == int(State.RETRYING), come)
        open_now = or_(due, deliveries.c.state.in_([int(State.SENDING), int(State.PENDING)]))
        with self._store.reading() as connection:
            statement = among_open(select(1).select_from(deliveries).where(deliveries.c.source_id == source_id, open_now).limit(1))
            found = connection.execute(statement).first()
            return found is not None or claims.count(connection, source_id) > 0

    def coverage(self, source_id: int) -> list[dict[str, object]]:
        """One row for each (model, hardware): `total` on disk at the last comparison, and how many of them are where."""
        by_state = (
            select(standings.c.subject_id, standings.c.state, func.sum(standings.c.results))
            .where(standings.c.source_id == source_id, standings.c.state < int(State.SUPERSEDED), standings.c.results != 0)
            .group_by(standings.c.subject_id, standings.c.state)
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
            counted = [(subject_id, STATE_NAMES[State(state)], int(count)) for subject_id, state, count in connection.execute(by_state)]
            counted += [(subject_id, "in_doubt", count) for subject_id, count in claims.by_subject(connection, source_id).items()]
            names = {subject_id: (model, hardware) for subject_id, model, hardware in connection.execute(select(subjects))}
        for subject_id, name, count in counted:
            cell = cells.setdefault(names[subject_id], {"total": 0, "skipped": 0})
            cell[name] = cell.get(name, 0) + count
        rows: list[dict[str, object]] = []
        for (model, hardware), cell in sorted(cells.items()):
            states = {name: cell.get(name, 0) for name in ("delivered", "retrying", "in_doubt", "rejected", "skipped")}
            total = max(cell["total"], sum(states.values()))  # what a first pass has taken up so far was not counted before it
            rows.append({"model": model, "hardware": hardware, "total": total, **states, "pending": total - sum(states.values())})
        return rows

    def refusals(self, source_id: int) -> list[dict[str, object]]:
        """Refused, retrying and doubtful results grouped by their reason, most first."""
        count = func.sum(standings.c.results)
        statement = (
            select(standings.c.state, reasons.c.code, reasons.c.sentence, count)
            .join(reasons, reasons.c.reason_id == standings.c.reason_id)
            .where(
                standings.c.source_id == source_id, standings.c.state.in_([int(State.REJECTED), int(State.RETRYING), int(State.SENDING)])
            )
            .group_by(standings.c.state, reasons.c.code, reasons.c.sentence)
            .having(count != 0)
            .order_by(count.desc(), reasons.c.code, reasons.c.sentence)
        )
        with self._store.reading() as connection:
            return [
                {"state": STATE_NAMES[State(state)], "code": code, "reason": sentence, "count": int(results)}
                for state, code, sentence, results in connection.execute(statement)
            ]

    def quality(self, source_id: int) -> dict[str, int]:
        """How many delivered results carry which quality flag."""
        statement = (
            select(standings.c.quality, func.sum(standings.c.results))
            .where(standings.c.source_id == source_id, standings.c.state == int(State.DELIVERED), standings.c.quality > 0)
            .group_by(standings.c.quality)
        )
        totals = {flag.name.lower(): 0 for flag in Quality if flag.name}
        with self._store.reading() as connection:
            for flags, count in connection.execute(statement):
                for name in quality_names(flags):
                    totals[name] += int(count)
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
        wanted = {name: value for name, value in (("model", model), ("hardware", hardware)) if value is not None}
        if wanted:  # by number: most rows are passed over without a look at their names
            named = select(subjects.c.subject_id).where(*(subjects.c[name] == value for name, value in wanted.items()))
            conditions.append(deliveries.c.subject_id.in_(named))
        if cursor is not None:
            content, _, result_id = cursor.partition(".")
            conditions.append(tuple_(deliveries.c.result_id, deliveries.c.content_hash) > tuple_(result_id, bytes.fromhex(content)))
        statement = (
            select(deliveries, subjects.c.model, subjects.c.hardware, reasons.c.code, reasons.c.sentence)
            .join(subjects, subjects.c.subject_id == deliveries.c.subject_id)
            .outerjoin(reasons, reasons.c.reason_id == deliveries.c.reason_id)
            .where(*conditions)
            .order_by(deliveries.c.result_id, deliveries.c.content_hash)
            .limit(limit + 1)
        )
        if state is not None:
            statement = statement.where(deliveries.c.state == int(state))
        if state is State.REJECTED:
            statement = among_refused(statement)
        elif state is not None and int(state) in OPEN_STATES:
            statement = among_open(statement)
        with self._store.reading() as connection:
            found: list[Mapping[str, Any]] = [*connection.execute(statement).mappings()]
            if state in (None, State.SENDING):
                found += self._claimed(connection, source_id, model=model, hardware=hardware, cursor=cursor)
                found.sort(key=lambda row: (row["result_id"], row["content_hash"]))
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

    @staticmethod
    def _claimed(
        connection: Connection, source_id: int, *, model: str | None, hardware: str | None, cursor: str | None
    ) -> Iterator[Mapping[str, Any]]:
        """What is on its way and has no row yet, as rows in doubt."""
        content, _, after = (cursor or "").partition(".")
        known = {row.subject_id: row for row in connection.execute(select(subjects))}
        for claim, results in claims.read(connection, source_id):
            for result_id, content_hash, key, subject_id, measured_at, quality in claims.as_rows(results):
                subject = known[subject_id]
                if (model in (None, subject.model)) and (hardware in (None, subject.hardware)):
                    if cursor is not None and (result_id, content_hash) <= (after, bytes.fromhex(content)):
                        continue
                    yield {
                        "result_id": result_id,
                        "content_hash": content_hash,
                        "key": key,
                        "state": int(State.SENDING),
                        "model": subject.model,
                        "hardware": subject.hardware,
                        "measured_at": measured_at,
                        "measurement_id": None,
                        "attempts": 1,
                        "next_attempt_at": None,
                        "code": None,
                        "sentence": None,
                        "quality": quality,
                        "run_id": claim["run_id"],
                        "updated_at": claim["claimed_at"],
                    }

    def every_key(self, source_id: int) -> Iterator[str]:
        """The keys of all rows, in whatever state: an old content of a changed result is ours too."""
        statement = select(deliveries.c.key).where(deliveries.c.source_id == source_id).execution_options(yield_per=10_000)
        with self._store.reading() as connection:
            for key in connection.execute(statement).scalars():
                yield _uuid(key)
            for _, results in claims.read(connection, source_id):
                yield from map(_uuid, results.column("key").to_pylist())


def _accounting(source: RowMapping, by_state: Mapping[State, int], on_their_way: int) -> Accounting:
    skipped = {reason: int(count) for reason, count in json.loads(source["skipped"]).items()}
    return Accounting(
        total=source["total"],
        delivered=by_state.get(State.DELIVERED, 0),
        pending=source["untouched"] + by_state.get(State.PENDING, 0),
        retrying=by_state.get(State.RETRYING, 0),
        in_doubt=by_state.get(State.SENDING, 0) + on_their_way,
        rejected=by_state.get(State.REJECTED, 0),
        skipped=sum(skipped.values()),
        skipped_by_reason=skipped,
        superseded=by_state.get(State.SUPERSEDED, 0),
        withdrawn=by_state.get(State.WITHDRAWN, 0),
        compared_at=source["compared_at"],
    )


def _uuid(key: bytes) -> str:
    return str(UUID(bytes=bytes(key)))
