"""The runs, kept for good, and the schedule that all processes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, or_, select, update

from benchbridge_plugin import events
from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger import meters, scores
from benchbridge_plugin.ledger.accounts import Accounts
from benchbridge_plugin.ledger.leases import Holder, Lease, Leases
from benchbridge_plugin.ledger.outbox import Outbox
from benchbridge_plugin.ledger.schema import runs, sources
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import STATE_NAMES, Accounting, RunSummary, State, SyncRequest

_START_UP_APART_S = 10.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the next cycle is due. Times are seconds since 1970."""

    paused: bool
    interval_minutes: float | None  # set by an operator; None: as configured
    next_tick_at: float | None
    last_tick_at: float | None


class Runs:
    """`told` is called with the events of a run once its end is recorded; without it, and without a webhook, there are none."""

    def __init__(
        self,
        store: Store,
        leases: Leases,
        now: Callable[[], float],
        accounts: Accounts,
        outbox: Outbox,
        told: Callable[[Sequence[Event]], object] | None = None,
    ) -> None:
        self._store = store
        self._leases = leases
        self._now = now
        self._accounts = accounts
        self._outbox = outbox
        self._told = told

    def source_id(self, name: str) -> int:
        """The number of a source, added when it is new."""
        statement = select(sources.c.source_id).where(sources.c.name == name)
        with self._store.reading() as connection:
            found = connection.execute(statement).scalar_one_or_none()
        if found is None:
            with self._store.writing() as connection:
                insert_many(connection, "INSERT INTO sources (name) VALUES (?) ON CONFLICT DO NOTHING", [(name,)])
                found = connection.execute(statement).scalar_one()
        return int(found)

    def begin(self, lease: Lease, source_id: int, request: SyncRequest, duration_s: float) -> RunSummary:
        """Record a new run of this lease. Runs that were never finished belong to processes that are gone: they become `failed`."""
        now = self._now()
        accounting = self._accounts.accounting(source_id) if self._has_listeners else Accounting()
        with self._store.writing() as connection:
            dead = connection.execute(select(runs).where(runs.c.source_id == source_id, runs.c.state == "running")).mappings().all()
            connection.execute(
                update(runs)
                .where(runs.c.source_id == source_id, runs.c.state == "running")
                .values(state="failed", finished_at=now, error_code="process_gone", message="The process that ran it is gone.")
            )
            happened: list[Event] = []
            for row in dead:
                ended = {**_run(row), "state": "failed", "finished_at": now, "error_code": "process_gone"}
                ended["message"] = "The process that ran it is gone."
                meters.run_ended(connection, source_id, ended, ended)
                happened += self._tell(connection, source_id, ended, accounting, [])
            inserted = connection.execute(
                runs.insert().values(
                    source_id=source_id,
                    kind=request.kind,
                    state="running",
                    owner=lease.owner,
                    request=json.dumps(asdict(request)),
                    started_at=now,
                )
            )
            assert inserted.inserted_primary_key
            run_id = int(inserted.inserted_primary_key[0])
            self._leases.renew(connection, lease, duration_s, run_id)
        self._pass_on(happened)
        return RunSummary(run_id, "running", request.kind, request.dry_run, now, None, request=asdict(request))

    def progress(self, holder: Holder, progress: Mapping[str, object]) -> None:
        """Show how far the run is, and prolong its lease."""
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            row = connection.execute(select(runs.c.source_id, runs.c.summary).where(runs.c.run_id == holder.run_id)).one()
            meters.run_moved(connection, row.source_id, json.loads(row.summary), progress)
            connection.execute(update(runs).where(runs.c.run_id == holder.run_id).values(summary=json.dumps(dict(progress))))

    def finish(self, summary: RunSummary) -> RunSummary:
        """Record how the run ended. Not fenced: a run that lost its lease may say so, but never over another's verdict on it."""
        finished = replace(summary, finished_at=self._now())
        mine = (runs.c.run_id == finished.run_id) & (runs.c.state == "running")
        with self._store.reading() as connection:
            source_id = connection.execute(select(runs.c.source_id).where(runs.c.run_id == finished.run_id)).scalar_one()
        accounting = self._accounts.accounting(source_id) if self._has_listeners else Accounting()
        refusals = self._accounts.refusals(source_id) if finished.rejected else []
        happened: list[Event] = []
        with self._store.writing() as connection:
            row = connection.execute(select(runs).where(mine).with_for_update()).mappings().one_or_none()
            if row is not None:
                values = {
                    "state": finished.state,
                    "finished_at": finished.finished_at,
                    "summary": json.dumps(finished.as_dict()),
                    "error_code": finished.error_code,
                    "message": finished.message,
                }
                connection.execute(update(runs).where(mine).values(**values))
                ended = _run({**row, **values})
                meters.run_ended(connection, source_id, ended, json.loads(row["summary"]))
                happened = self._tell(connection, source_id, ended, accounting, refusals)
        self._pass_on(happened)
        return finished

    @property
    def _has_listeners(self) -> bool:
        return self._told is not None or bool(self._outbox.wanted)

    def _tell(
        self, connection: Connection, source_id: int, run: Mapping[str, Any], accounting: Accounting, refusals: Sequence[Mapping[str, Any]]
    ) -> list[Event]:
        """The events of a run that has ended, written to the outbox. `refusals`: see Accounts.refusals."""
        refused = [row for row in refusals if row["state"] == STATE_NAMES[State.REJECTED]]
        new = meters.new_codes(connection, source_id, [row["code"] for row in refused]) if refused else []
        lost = scores.newly_lost(connection, source_id, run["finished_at"])
        if not self._has_listeners:
            return []
        source = connection.execute(select(sources.c.name).where(sources.c.source_id == source_id)).scalar_one()
        happened = [events.run_finished(source, run, accounting)]
        if new:
            kinds = [[row for row in refused if row["code"] == code] for code in new]  # most first
            told = [{"code": rows[0]["code"], "count": sum(row["count"] for row in rows), "example": rows[0]["reason"]} for rows in kinds]
            happened.append(events.new_refusals(source, run["run_id"], run["finished_at"], told))
        if lost:
            happened.append(events.accuracy_lost(source, run["run_id"], run["finished_at"], lost))
        for event in happened:
            self._outbox.put(connection, source_id, event)
        return happened

    def _pass_on(self, happened: Sequence[Event]) -> None:
        if happened and self._told is not None:
            self._told(happened)

    def get(self, source_id: int, run_id: int) -> dict[str, object] | None:
        with self._store.reading() as connection:
            row = connection.execute(select(runs).where(runs.c.source_id == source_id, runs.c.run_id == run_id)).mappings().one_or_none()
        return _run(row) if row is not None else None

    def history(self, source_id: int, *, limit: int = 20, before: int | None = None) -> list[dict[str, object]]:
        """The runs, newest first; `before` is a run id to go on from."""
        return [run for _, run in self.history_of([source_id], limit=limit, before=before)]

    def history_of(self, source_ids: Sequence[int], *, limit: int = 20, before: int | None = None) -> list[tuple[int, dict[str, object]]]:
        """The runs of several sources, newest first, each with its source."""
        statement = select(runs).where(runs.c.source_id.in_(source_ids)).order_by(runs.c.run_id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(runs.c.run_id < before)
        with self._store.reading() as connection:
            return [(row["source_id"], _run(row)) for row in connection.execute(statement).mappings()]

    def last(self, source_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The last run of each source. A source that never had one is left out."""
        newest = select(func.max(runs.c.run_id)).where(runs.c.source_id.in_(source_ids)).group_by(runs.c.source_id)
        with self._store.reading() as connection:
            found = connection.execute(select(runs).where(runs.c.run_id.in_(newest))).mappings()
            return {row["source_id"]: _run(row) for row in found}

    # -- the schedule -------------------------------------------------------------------------------------------------------------------

    def schedule(self, source_id: int) -> Schedule:
        columns = (sources.c.paused, sources.c.interval_minutes, sources.c.next_tick_at, sources.c.last_tick_at)
        with self._store.reading() as connection:
            row = connection.execute(select(*columns).where(sources.c.source_id == source_id)).one()
        return Schedule(bool(row[0]), row[1], row[2], row[3])

    def set_schedule(self, source_id: int, *, paused: bool | None = None, interval_minutes: float | None = None) -> Schedule:
        """Pause, resume or change the interval, for every process. A new interval counts from now."""
        changes: dict[str, Any] = {}
        if paused is not None:
            changes["paused"] = paused
        if interval_minutes is not None:
            changes["interval_minutes"] = interval_minutes
            changes["next_tick_at"] = self._now() + interval_minutes * 60
        if changes:
            with self._store.writing() as connection:
                connection.execute(update(sources).where(sources.c.source_id == source_id).values(**changes))
        return self.schedule(source_id)

    def claim_tick(self, source_id: int, interval_s: float, *, at_once: bool = False) -> bool:
        """Whether the scheduled cycle that is due now is ours to run: of all processes that ask, one gets True.

        `at_once` asks for the start-up cycle: due unless another process, started together with this one, had a tick just now.
        """
        if not at_once:  # most of the time nothing is due, and looking does not lock
            known = self.schedule(source_id)
            now = self._now()
            if known.next_tick_at is not None and (known.paused or now < known.next_tick_at <= now + interval_s * 1.5):
                return False
        mine = sources.c.source_id == source_id
        with self._store.writing() as connection:
            # Under the row's lock, and the time is read after it is had: it is later than that of whoever had the lock before.
            planned = connection.execute(select(sources.c.next_tick_at).where(mine).with_for_update()).scalar_one()
            now = self._now()
            # Ticks keep their beat when one is taken a little late; after a pause or a jump of the clock they count from now.
            on_beat = not at_once and planned is not None and now - interval_s < planned <= now
            following = (planned if on_beat else now) + interval_s
            if at_once:
                apart = min(interval_s / 2, _START_UP_APART_S)
                due = or_(
                    sources.c.last_tick_at.is_(None), sources.c.last_tick_at <= now - apart, sources.c.last_tick_at > now + interval_s
                )
            else:
                # A next tick further away than one interval comes from a clock that was wrong, or from a longer interval: it is due.
                due = or_(sources.c.next_tick_at <= now, sources.c.next_tick_at > now + interval_s * 1.5)
            claim = update(sources).where(mine, sources.c.paused.is_(False), due).values(next_tick_at=following, last_tick_at=now)
            claimed = connection.execute(claim).rowcount == 1
            connection.execute(update(sources).where(mine, sources.c.next_tick_at.is_(None)).values(next_tick_at=now + interval_s))
        return claimed


def _run(row: Mapping[Any, Any]) -> dict[str, object]:
    summary = json.loads(row["summary"])
    return {
        **summary,
        "run_id": row["run_id"],
        "kind": row["kind"],
        "state": row["state"],
        "owner": row["owner"],
        "request": json.loads(row["request"]),
        "started_at": row["started_at"],
        "finished_at": row["finished_at"],
        "error_code": row["error_code"],
        "message": row["message"],
    }
