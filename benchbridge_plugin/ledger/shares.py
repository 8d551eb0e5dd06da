"""Parts of a large run that other processes carry: hosts that share a ledger share its work.

The run that holds the lease of the source offers a part of what it is about to send as a row, and goes on with the next part. Whoever looks for work
takes the row, with it a lease of its own, and moves the results of that part and no others; the run adds up what became of them from the ledger. A part
that nobody took goes back to its run. One whose holder died is in doubt like every other claim, and the run asks for it once the holder's lease is over.
So at every moment one process may write about a result, and which one that is stands in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
from sqlalchemy import bindparam, select, update

from benchbridge_plugin.ledger.comparisons import has_come
from benchbridge_plugin.ledger.leases import Holder, Lease, Leases, is_held
from benchbridge_plugin.ledger.schema import claims, deliveries, leases, reasons, shares, sources
from benchbridge_plugin.ledger.store import Store
from benchbridge_plugin.model import State

_CHUNK = 500

#: What a share is made of: results that a comparison found to be sent.
SHARE_SCHEMA = pa.schema([("result_id", pa.string()), ("content_hash", pa.binary()), ("is_new", pa.bool_()), ("attempts", pa.int64())])


@dataclass(frozen=True, slots=True)
class Share:
    """A part that this process took: what to send (SHARE_SCHEMA), and the right to do so."""

    holder: Holder
    results: pa.Table


@dataclass(frozen=True, slots=True)
class Offer:
    """A part as the run that offered it sees it: its number, whether somebody took it, and whether that process can still carry it."""

    number: int
    taken: bool
    carried: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A result of a share after its end."""

    result_id: str
    content_hash: bytes
    state: State
    quality: int
    reason_code: str | None


class Shares:
    def __init__(self, store: Store, ledger_leases: Leases, now: Callable[[], float]) -> None:
        self._store = store
        self._leases = ledger_leases
        self._now = now

    # -- the run that offers ------------------------------------------------------------------------------------------------------------

    def offer(self, holder: Holder, source_id: int, results: pa.Table) -> int:
        """Offer a part of the run's work (SHARE_SCHEMA, results that nobody has claimed). Returns its number. Raises LeaseLost."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SHARE_SCHEMA) as writer:
            writer.write_table(results.select(SHARE_SCHEMA.names).cast(SHARE_SCHEMA))
        values = {"source_id": source_id, "run_id": holder.run_id, "run_lease": holder.lease.name, "run_token": holder.lease.token}
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            inserted = connection.execute(shares.insert().values(**values, payload=sink.getvalue().to_pybytes()))
            assert inserted.inserted_primary_key
            return int(inserted.inserted_primary_key[0])

    def offers(self, source_id: int) -> list[Offer]:
        """All parts of a source that are offered or being carried, of whatever run, oldest first."""
        statement = select(shares.c.share_id, shares.c.taken).where(shares.c.source_id == source_id).order_by(shares.c.share_id)
        now = self._now()
        with self._store.reading() as connection:
            found = connection.execute(statement).all()
            names = [lease_name(number) for number, taken in found if taken]
            held = {row["name"]: is_held(row, now) for row in connection.execute(select(leases).where(leases.c.name.in_(names))).mappings()}
        return [Offer(number, bool(taken), held.get(lease_name(number), False)) for number, taken in found]

    def withdraw(self, holder: Holder, source_id: int, number: int) -> bool:
        """Take an offer back. False: somebody has taken it, or it is over."""
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            mine = (shares.c.source_id == source_id) & (shares.c.share_id == number) & shares.c.taken.is_(False)
            return connection.execute(shares.delete().where(mine)).rowcount == 1

    def revoke(self, holder: Holder, source_id: int, number: int) -> None:
        """End a part whose holder is gone: from now on it cannot write. What it had claimed is for `Deliveries.abandoned`."""
        with self._store.writing() as connection:
            self._leases.renew(connection, holder.lease, holder.duration_s)
            self._leases.drop(connection, lease_name(number))
            connection.execute(shares.delete().where(shares.c.source_id == source_id, shares.c.share_id == number))

    def outcome(self, holder: Holder, source_id: int, results: pa.Table) -> tuple[list[Ended], pa.Table]:
        """What became of the results of a share that is over, and those that are still to be sent (SHARE_SCHEMA), in their order."""
        columns = (
            deliveries.c.result_id,
            deliveries.c.content_hash,
            deliveries.c.state,
            deliveries.c.quality,
            deliveries.c.run_id,
            deliveries.c.attempts,
            deliveries.c.next_attempt_at,
            deliveries.c.updated_at,
            reasons.c.code,
        )
        statement = (
            select(*columns)
            .outerjoin(reasons)
            .where(deliveries.c.source_id == source_id, deliveries.c.result_id.in_(bindparam("ids", expanding=True)))
        )
        ids, hashes = results.column("result_id").to_pylist(), results.column("content_hash").to_pylist()
        places: Mapping[tuple[str, bytes], int] = {pair: place for place, pair in enumerate(zip(ids, hashes, strict=True))}
        ended: list[Ended] = []
        left = dict.fromkeys(range(len(ids)), (True, 0))
        with self._store.reading() as connection:
            now = self._now()
            for start in range(0, len(ids), _CHUNK):
                for result_id, content, state, quality, run_id, attempts, due, updated_at, code in connection.execute(
                    statement, {"ids": ids[start : start + _CHUNK]}
                ):
                    place = places.get((result_id, bytes(content)))
                    if place is None:
                        continue
                    waits = state in (State.PENDING, State.RETRYING)
                    # As it was before the share, or given back unsent. What failed under the share waits for its time, and is the run's failure.
                    untried = run_id != holder.run_id or state == State.PENDING
                    if waits and untried and has_come(due, updated_at, now):
                        left[place] = (False, attempts)
                        continue
                    del left[place]
                    if run_id == holder.run_id:
                        ended.append(Ended(result_id, bytes(content), State(state), quality, code))
        kept = results.select(["result_id", "content_hash"]).take(pa.array(sorted(left), pa.int64()))
        kept = kept.append_column("is_new", pa.array([left[place][0] for place in sorted(left)], pa.bool_()))
        return ended, kept.append_column("attempts", pa.array([left[place][1] for place in sorted(left)], pa.int64()))

    # -- the process that helps ---------------------------------------------------------------------------------------------------------

    def take(self, source_name: str, owner: str, duration_s: float) -> Share | None:
        """Take the oldest part that another process offers under a lease that still stands, or None. Processes that ask at once get different ones."""
        offered = (
            select(shares, sources.c.name)
            .join(sources, sources.c.source_id == shares.c.source_id)
            .join(leases, (leases.c.name == shares.c.run_lease) & (leases.c.token == shares.c.run_token))
            .where(sources.c.name == source_name, shares.c.taken.is_(False), leases.c.owner != owner)
            .order_by(shares.c.share_id)
            .limit(1)
        )
        with self._store.reading() as connection:  # most of the time nothing is offered, and looking does not lock
            if connection.execute(offered).first() is None:
                return None
        with self._store.writing() as connection:
            found = connection.execute(offered.with_for_update(skip_locked=True, of=shares)).mappings().first()
            if found is None:
                return None
            number = int(found["share_id"])
            lease = self._leases.grant(connection, lease_name(number), owner, duration_s)
            connection.execute(update(shares).where(shares.c.share_id == number).values(taken=True))
        run_lease = Lease(found["run_lease"], "the run that offered it", found["run_token"])
        holder = Holder(lease, duration_s, found["run_id"], share=number, run_lease=run_lease)
        return Share(holder, pa.ipc.open_stream(found["payload"]).read_all())

    def finish(self, share: Share, *, done: bool) -> None:
        """Give a part back. One that is not `done`, or that has claims left, ends as if its holder had died: the run asks about what was under way.

        Without effect if its lease was lost.
        """
        lease, number = share.holder.lease, share.holder.share
        mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
        with self._store.writing() as connection:
            unwritten = connection.execute(select(claims.c.claim_id).where(claims.c.share_id == number)).first() is not None
            if not done or unwritten:
                connection.execute(update(leases).where(mine).values(expires_at=0.0))
            elif connection.execute(leases.delete().where(mine)).rowcount:
                connection.execute(shares.delete().where(shares.c.share_id == number))


def lease_name(number: int) -> str:
    """Under which a share is carried. The number is never used again."""
    return f"share\n{number}"
