"""Who may move results: one holder for each source, found out and enforced in the ledger itself.

A lease runs out when its holder stops renewing it, and at once when its process is certainly gone (see process.py). Its token grows with every new
holder, and every write of a run checks the token inside the same transaction: a holder that was stopped, lost its lease and comes back cannot write
(fencing). A jump of this machine's clock moves the end of a lease with it (see steady.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, select

from benchbridge_plugin.errors import LeaseBusy, LeaseLost
from benchbridge_plugin.ledger.schema import leases
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.process import is_gone, shown

#: How far the clocks of two hosts may disagree. A lease that ends later than that can be explained comes from a clock that was wrong.
CLOCKS_APART_S = 300.0


@dataclass(frozen=True, slots=True)
class Lease:
    name: str
    owner: str
    token: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A run's right to write: its lease, how long each renewal lasts, its number.

    Who carries a share of another's run (see shares.py) has the share's number and lease, and takes up more only while the run's own lease stands.
    """

    lease: Lease
    duration_s: float
    run_id: int
    share: int | None = None
    run_lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who holds a lease now, for the status page."""

    owner: str
    run_id: int | None
    expires_at: float


class Leases:
    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    def acquire(self, name: str, owner: str, duration_s: float) -> Lease:
        """Take the lease if nobody holds it. Raises LeaseBusy with the holder and its run."""
        with self._store.writing() as connection:
            insert_many(  # so that there is a row to lock, also when two ask for the first time at once
                connection,
                "INSERT INTO leases (name, owner, token, expires_at, duration_s) VALUES (?, '', 0, 0.0, 0.0) ON CONFLICT DO NOTHING",
                [(name,)],
            )
            found = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).mappings().one()
            now = self._now()
            if is_held(found, now):
                raise LeaseBusy(
                    f"Another sync of {name} is running ({shown(found['owner'])}).",
                    guidance="Wait for it, or look at it with: benchbridge report.",
                    owner=found["owner"],
                    run_id=found["run_id"],
                )
            lease = Lease(name, owner, found["token"] + 1)
            values = {"owner": owner, "token": lease.token, "run_id": None, "expires_at": now + duration_s, "duration_s": duration_s}
            connection.execute(leases.update().where(leases.c.name == name).values(**values))
        return lease

    def require(self, connection: Connection, lease: Lease) -> None:
        """Raise LeaseLost if somebody else took the lease since. It may have run out."""
        mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
        if connection.execute(select(leases.c.name).where(mine)).first() is None:
            raise LeaseLost(
                f"The run whose work this process shares ({shown(lease.owner)}) is over: another has taken over {lease.name}.",
                guidance="Nothing to do: the other process goes on from where the ledger stands.",
            )

    def grant(self, connection: Connection, name: str, owner: str, duration_s: float) -> Lease:
        """Make a lease of a name that was never used, inside the caller's transaction."""
        expires_at = self._now() + duration_s
        connection.execute(leases.insert().values(name=name, owner=owner, token=1, expires_at=expires_at, duration_s=duration_s))
        return Lease(name, owner, 1)

    def drop(self, connection: Connection, name: str) -> None:
        """Take a granted lease away for good, whoever has it: its holder cannot write any more."""
        connection.execute(leases.delete().where(leases.c.name == name))

    def renew(self, connection: Connection, lease: Lease, duration_s: float, run_id: int | None = None) -> None:
        """Prolong the lease inside the caller's transaction. Raises LeaseLost, and with that the transaction is rolled back."""
        values: dict[str, object] = {"expires_at": self._now() + duration_s, "duration_s": duration_s}
        if run_id is not None:
            values["run_id"] = run_id
        mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
        if connection.execute(leases.update().where(mine).values(**values)).rowcount != 1:
            raise LeaseLost(
                f"This process ({shown(lease.owner)}) lost the lease on {' '.join(lease.name.split())}: another took over.",
                guidance="Nothing to do: the other process goes on from where the ledger stands.",
            )

    def prolong(self, lease: Lease, duration_s: float) -> None:
        """Renew the lease in a transaction of its own. Raises LeaseLost."""
        with self._store.writing() as connection:
            self.renew(connection, lease, duration_s)

    def release(self, lease: Lease) -> None:
        """Give the lease back; without effect if it was lost. The row stays, so that the token never starts anew."""
        with self._store.writing() as connection:
            mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
            connection.execute(leases.update().where(mine).values(expires_at=0.0, run_id=None))

    def holder(self, name: str) -> LeaseHolder | None:
        """Who holds the lease now, or None."""
        return self.holders([name]).get(name)

    def holders(self, names: Sequence[str]) -> dict[str, LeaseHolder]:
        """Who holds these leases now, by name. One that nobody holds is left out."""
        with self._store.reading() as connection:
            found = connection.execute(select(leases).where(leases.c.name.in_(names))).mappings().all()
        now = self._now()
        return {row["name"]: LeaseHolder(row["owner"], row["run_id"], row["expires_at"]) for row in found if is_held(row, now)}


def is_held(lease: RowMapping, now: float) -> bool:
    return now < lease["expires_at"] <= now + lease["duration_s"] + CLOCKS_APART_S and not is_gone(lease["owner"])
