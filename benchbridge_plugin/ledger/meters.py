"""Sums for monitoring that only grow, and a few figures of the last run: kept in step by whoever begins, shows and ends runs, in the same transaction.

A scrape must be right whichever process answers it, and cost the same however many runs and results there are. So nothing is counted in a process, and
nothing is counted anew: what a run has delivered and refused is added while it shows how far it is, and the rest when it ends, also where its process is
gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select

from benchbridge_plugin.ledger.schema import among_open, deliveries, meters, reasons, runs, sources
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import State

_ADD_SQL = (
    "INSERT INTO meters (source_id, name, labels, value) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (source_id, name, labels) DO UPDATE SET value = meters.value + excluded.value"
)
_SET_SQL = _ADD_SQL.replace("meters.value + excluded.value", "excluded.value")
_GROWING = ("synced", "rejected")  # what never falls while a run goes on
_AT_THE_END = ("failed", "settled", "adopted")
_KNOWN_CODE = "refusal_code"


@dataclass(frozen=True, slots=True)
class Meters:
    """The meters of one source. `values` by name and labels, which are parts joined by `/`; `last_run`: the newest run's row."""

    values: Mapping[tuple[str, str], float] = field(default_factory=dict)
    last_run: Mapping[Any, Any] | None = None
    oldest_open_at: float | None = None  # when the oldest open result was measured, or else written
    untouched: int = 0  # results that no run has taken up yet

    def get(self, name: str) -> float | None:
        return self.values.get((name, ""))

    def labelled(self, name: str) -> Mapping[tuple[str, ...], float]:
        return {tuple(labels.split("/")): value for (found, labels), value in self.values.items() if found == name}


def add(connection: Connection, source_id: int, changes: Mapping[tuple[str, str], float]) -> None:
    """Add to the sums."""
    insert_many(connection, _ADD_SQL, [(source_id, name, labels, value) for (name, labels), value in sorted(changes.items()) if value])


def run_moved(connection: Connection, source_id: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A run shows how far it is: `before` is what it showed last."""
    add(connection, source_id, {(name, ""): max(now.get(name, 0) - before.get(name, 0), 0) for name in _GROWING})


def run_ended(connection: Connection, source_id: int, run: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """A run has ended: `run` is its row with its summary, `shown` what it showed last."""
    run_moved(connection, source_id, shown, run)
    duration_s = max(run["finished_at"] - run["started_at"], 0.0)
    sums: dict[tuple[str, str], float] = {(name, ""): run.get(name, 0) for name in _AT_THE_END}
    add(connection, source_id, {**sums, ("runs", f"{run['kind']}/{run['state']}"): 1, ("run_seconds", run["kind"]): duration_s})
    last = [("last_finished", run["finished_at"]), ("last_duration", duration_s)]
    if run["state"] in ("succeeded", "partial"):
        last.append(("last_success", run["finished_at"]))
    insert_many(connection, _SET_SQL, [(source_id, name, "", value) for name, value in last])


def new_codes(connection: Connection, source_id: int, codes: Sequence[str]) -> list[str]:
    """Those reason codes of refusals that this source never had before; from now on it has had them."""
    found = connection.execute(select(meters.c.labels).where(meters.c.source_id == source_id, meters.c.name == _KNOWN_CODE))
    new = sorted(set(codes) - set(found.scalars()))
    insert_many(connection, _SET_SQL, [(source_id, _KNOWN_CODE, code, 1.0) for code in new])
    return new


def begin(connection: Connection) -> None:
    """What the runs and refusals of a ledger without meters come to. Once in its life."""
    statement = select(runs).where(runs.c.state != "running", runs.c.finished_at.is_not(None)).order_by(runs.c.run_id)
    for row in connection.execute(statement).mappings().all():
        run_ended(connection, row["source_id"], {**json.loads(row["summary"]), **row}, {})
    refused = (
        select(deliveries.c.source_id, reasons.c.code)
        .join(reasons, reasons.c.reason_id == deliveries.c.reason_id)
        .where(deliveries.c.state == int(State.REJECTED))
        .distinct()
    )
    known = [(source_id, _KNOWN_CODE, code, 1.0) for source_id, code in connection.execute(refused)]
    insert_many(connection, _SET_SQL, known)


def read(store: Store, source_ids: Sequence[int]) -> dict[int, Meters]:
    """The meters of each source, in one snapshot, by looks into indexes."""
    values: dict[int, dict[tuple[str, str], float]] = {source_id: {} for source_id in source_ids}
    found: dict[int, Meters] = {}
    with store.reading() as connection:
        counted = select(sources.c.source_id, sources.c.untouched).where(sources.c.source_id.in_(source_ids))
        untouched = {row.source_id: row.untouched for row in connection.execute(counted)}
        for row in connection.execute(select(meters).where(meters.c.source_id.in_(source_ids))):
            values[row.source_id][row.name, row.labels] = row.value
        for source_id in source_ids:  # one by one, since grouping would read all runs
            newest = select(func.max(runs.c.run_id)).where(runs.c.source_id == source_id).scalar_subquery()
            last = connection.execute(select(runs).where(runs.c.run_id == newest)).mappings().one_or_none()
            oldest = func.min(func.coalesce(deliveries.c.measured_at, deliveries.c.updated_at))
            since = connection.execute(among_open(select(oldest).select_from(deliveries).where(deliveries.c.source_id == source_id)))
            found[source_id] = Meters(values[source_id], last, since.scalar_one_or_none(), untouched[source_id])
    return found
