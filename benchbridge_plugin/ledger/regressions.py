"""Where histories changed for good, and what became of each: open, acknowledged, resolved by a person or by the level that is back.

What got better is recorded beside what got worse, and is never open: nobody has to do anything about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select, update

from benchbridge_plugin import events
from benchbridge_plugin.as_json import iso
from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger.accounts import Page
from benchbridge_plugin.ledger.schema import histories, regressions, sources
from benchbridge_plugin.ledger.store import Store

OPEN, ACKNOWLEDGED, RESOLVED = STATES = ("open", "acknowledged", "resolved")
UNITS: Mapping[str, str] = {"throughput": "items/s", "latency": "ms", "memory_usage": "MB"}
#: What a configuration is made of, in the order in which it is kept.
CONFIGURATION = ("model", "hardware", "device", "precision", "mode", "batch_size", "sequence_length")


@dataclass(frozen=True, slots=True)
class Changed:
    """A metric of a history changed. `last_good` and `first_changed`: the results on both sides, `{"result_id", "measured_at", "run", "commit"}`."""

    metric: str
    first: int
    worse: bool
    size: float
    confidence: float
    before: float
    after: float
    last_good: Mapping[str, Any]
    first_changed: Mapping[str, Any]
    points: bytes


@dataclass(frozen=True, slots=True)
class Returned:
    """The level is back where it was before the change that began at this point."""

    metric: str
    first: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What happened in the history with this digest."""

    digest: bytes
    what: Changed | Returned


class Regressions:
    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    # -- finding ------------------------------------------------------------------------------------------------------------------------

    def record(self, connection: Connection, source_id: int, findings: Sequence[Finding]) -> list[Event]:
        """Inside the transaction that writes the histories, in the order in which it happened. Returns the events of what is open afterwards: what came
        and went long ago is nobody's news."""
        now = self._now()
        found: list[int] = []
        for finding in findings:
            mine = select(histories.c.history_id, histories.c.configuration)
            history = connection.execute(mine.where(histories.c.source_id == source_id, histories.c.digest == finding.digest)).one()
            what = finding.what
            if isinstance(what, Returned):
                here = and_(
                    regressions.c.history_id == history.history_id, regressions.c.metric == what.metric, regressions.c.first == what.first
                )
                back = {"state": RESOLVED, "updated_at": now, "updated_by": "level"}
                connection.execute(update(regressions).where(here, regressions.c.state != RESOLVED).values(**back))
                continue
            model, hardware, *_ = json.loads(history.configuration)
            values = {**asdict(what), "last_good": json.dumps(dict(what.last_good)), "first_changed": json.dumps(dict(what.first_changed))}
            times = {"found_at": now, "updated_at": now}
            row = {
                "source_id": source_id,
                "history_id": history.history_id,
                "model": model or "",
                "hardware": hardware or "",
                **values,
                **times,
            }
            found.append(_write(connection, {"state": OPEN if what.worse else RESOLVED, **row}))
        opened = _selected(connection, _shown().where(regressions.c.regression_id.in_(found), regressions.c.state == OPEN)) if found else ()
        return [events.regression_found(row["source"], now, row) for row in opened]

    # -- what people do with it ---------------------------------------------------------------------------------------------------------

    def decide(self, regression_id: int, state: str, note: str | None = None) -> dict[str, Any] | None:
        """Somebody sets the state of a regression. `note` stays as it is when it is None. Returns it as it is then; None: there is no such regression."""
        values: dict[str, Any] = {"state": state, "updated_at": self._now(), "updated_by": "person"}
        if note is not None:
            values["note"] = note
        with self._store.writing() as connection:
            here = and_(regressions.c.regression_id == regression_id, regressions.c.worse)
            if not connection.execute(update(regressions).where(here).values(**values)).rowcount:
                return None
            return next(_selected(connection, _shown().where(here)))

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def get(self, regression_id: int) -> tuple[dict[str, Any], int, int, bytes] | None:
        """A regression, the number of its history, that of the first changed point in it, and the points around it as they were when it was found."""
        columns = (regressions.c.history_id, regressions.c.first, regressions.c.points)
        statement = select(*columns).where(regressions.c.regression_id == regression_id)
        with self._store.reading() as connection:
            row = connection.execute(statement).one_or_none()
            if row is None:
                return None
            (found,) = _selected(connection, _shown().where(regressions.c.regression_id == regression_id))
        return found, row.history_id, row.first, bytes(row.points)

    def listed(
        self,
        source_ids: Sequence[int],
        *,
        worse: bool = True,
        state: str | None = None,
        model: str | None = None,
        hardware: str | None = None,
        metric: str | None = None,
        since: float | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Page:
        """Newest first; `before` is a number to go on from, `since` a time after which it was found."""
        wanted = {"state": state, "model": model, "hardware": hardware, "metric": metric}
        conditions = [regressions.c[name] == value for name, value in wanted.items() if value is not None]
        statement = _shown().where(regressions.c.source_id.in_(source_ids), regressions.c.worse.is_(worse), *conditions)
        if since is not None:
            statement = statement.where(regressions.c.found_at >= since)
        if before is not None:
            statement = statement.where(regressions.c.regression_id < before)
        with self._store.reading() as connection:
            rows = list(_selected(connection, statement.order_by(regressions.c.regression_id.desc()).limit(limit + 1)))
        return Page(rows[:limit], str(rows[limit - 1]["id"]) if len(rows) > limit else None)

    def counts(self, source_ids: Sequence[int]) -> dict[int, dict[str, int]]:
        """How many regressions of each source are in which state."""
        counted = {source_id: dict.fromkeys(STATES, 0) for source_id in source_ids}
        statement = (
            select(regressions.c.source_id, regressions.c.state, func.count().label("found"))
            .where(regressions.c.source_id.in_(source_ids), regressions.c.worse)
            .group_by(regressions.c.source_id, regressions.c.state)
        )
        with self._store.reading() as connection:
            for row in connection.execute(statement):
                counted[row.source_id][row.state] = row.found
        return counted


def _write(connection: Connection, row: Mapping[str, Any]) -> int:
    """A change that begins where an excursion did that is over is the same record, as it is now."""
    place = and_(*(regressions.c[name] == row[name] for name in ("history_id", "metric", "first")))
    known: int | None = connection.execute(select(regressions.c.regression_id).where(place)).scalar_one_or_none()
    if known is not None:
        connection.execute(update(regressions).where(place).values(**row, updated_by=None))
        return known
    made = connection.execute(regressions.insert().values(**row))
    assert made.inserted_primary_key
    return int(made.inserted_primary_key[0])


def _shown() -> Select[Any]:
    return (
        select(*[column for column in regressions.c if column.name != "points"], sources.c.name.label("source"), histories.c.configuration)
        .join(sources, sources.c.source_id == regressions.c.source_id)
        .join(histories, histories.c.history_id == regressions.c.history_id)
    )


def _selected(connection: Connection, statement: Select[Any]) -> Iterator[dict[str, Any]]:
    """The regressions as JSON values, the same for routes, reports and events."""
    for row in connection.execute(statement).mappings():
        sides = {name: json.loads(row[name]) for name in ("last_good", "first_changed")}
        yield {
            "id": row["regression_id"],
            "source": row["source"],
            "state": row["state"],
            "metric": row["metric"],
            "unit": UNITS[row["metric"]],
            **dict(zip(CONFIGURATION, json.loads(row["configuration"]), strict=True)),
            "size_percent": round(row["size"] * 100, 2),
            "confidence": round(row["confidence"], 3),
            "before": row["before"],
            "after": row["after"],
            "found_at": iso(row["found_at"]),
            **{name: {**side, "measured_at": iso(side["measured_at"])} for name, side in sides.items()},
            "updated_at": iso(row["updated_at"]),
            "updated_by": row["updated_by"],
            "note": row["note"],
        }
