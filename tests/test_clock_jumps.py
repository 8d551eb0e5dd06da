"""The wall clock is set while results wait: nothing is retried at once, no lease is held for ever or lost, and no tick is doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchbridge_plugin.clocks import elapsed_s, kernel_clock
from benchbridge_plugin.errors import LeaseBusy
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.model import Fate, Outcome
from tests.conftest import LEASE_S, Book, Clock, make_batch

DAY = 86_400.0


class Machine:
    """A wall clock and the kernel's: time passes on both, a jump happens to one."""

    def __init__(self) -> None:
        self.wall = Clock()
        self.boot = "boot-1"
        self.elapsed = 1_000.0

    def kernel(self) -> tuple[str, float]:
        return self.boot, self.elapsed

    def passes(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.elapsed += seconds

    def jumps(self, seconds: float) -> None:
        self.wall.advance(seconds)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def book(tmp_path: Path, machine: Machine) -> Iterator[Book]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", now=machine.wall, kernel=machine.kernel)
    yield Book(ledger, machine.wall)
    ledger.close()


def due(book: Book) -> list[bool]:
    return list(book.ledger.comparisons.known(book.source_id, ["1"]).column("due").to_pylist())


@pytest.mark.parametrize("jump_s", [DAY, -DAY, 3_600.0, -30.0])
def test_a_back_off_lasts_as_long_as_it_would_have(book: Book, machine: Machine, jump_s: float) -> None:
    """100 s are 100 s, whatever the clock says meanwhile."""
    book.compared(1)
    batch = make_batch({})
    book.claim(batch)
    book.acknowledge(batch, {0: Outcome(Fate.FAILED, "try_later", "later")})
    machine.passes(50)
    machine.jumps(jump_s)
    book.ledger.leases.prolong(book.holder.lease, LEASE_S)
    assert due(book) == [False]
    machine.passes(49)
    assert due(book) == [False]
    machine.passes(2)
    assert due(book) == [True]


@pytest.mark.parametrize("jump_s", [DAY, -DAY])
def test_a_lease_lasts_as_long_as_it_would_have(book: Book, machine: Machine, jump_s: float) -> None:
    """It is neither stolen from a holder that lives nor held for a day by one that does not."""
    machine.jumps(jump_s)
    with pytest.raises(LeaseBusy):
        book.ledger.leases.acquire("bench", "other", LEASE_S)
    machine.passes(LEASE_S - 1)
    with pytest.raises(LeaseBusy):
        book.ledger.leases.acquire("bench", "other", LEASE_S)
    machine.passes(2)
    assert book.ledger.leases.acquire("bench", "other", LEASE_S).token == 2


@pytest.mark.parametrize("jump_s", [DAY, -DAY])
def test_a_tick_comes_when_it_would_have(book: Book, machine: Machine, jump_s: float) -> None:
    """Once."""
    runs = book.ledger.runs
    assert runs.claim_tick(book.source_id, 600, at_once=True)
    machine.passes(300)
    machine.jumps(jump_s)
    assert not runs.claim_tick(book.source_id, 600)
    machine.passes(301)
    assert runs.claim_tick(book.source_id, 600)
    assert not runs.claim_tick(book.source_id, 600)


def test_a_row_being_sent_keeps_its_age(book: Book, machine: Machine) -> None:
    """A slow server gets its time before an absence is believed."""
    book.compared(1)
    book.claim(make_batch({}))
    book.lose()
    machine.passes(1)
    machine.jumps(DAY)
    book.ledger.leases.prolong(book.holder.lease, LEASE_S)
    (doubt,) = book.ledger.doubts.page(book.source_id)
    assert machine.wall() - doubt.sent_at == pytest.approx(1.0)


def test_a_slow_correction_moves_nothing(book: Book, machine: Machine) -> None:
    """Less than 5 s between two writes."""
    book.compared(1)
    book.claim(make_batch({}))
    before = book.rows()
    machine.jumps(4)
    book.ledger.leases.prolong(book.holder.lease, LEASE_S)
    assert book.rows() == before


def test_after_a_reboot_nothing_moves_and_impossible_times_are_due(book: Book, machine: Machine) -> None:
    """Nobody can know what happened; a machine that forgot the date must not wait for years."""
    book.compared(1)
    batch = make_batch({})
    book.claim(batch)
    book.acknowledge(batch, {0: Outcome(Fate.FAILED, "try_later", "later")})
    machine.boot, machine.elapsed = "boot-2", 5.0
    machine.jumps(-1000 * DAY)
    assert due(book) == [True]
    assert book.ledger.accounts.waiting(book.source_id, machine.wall())
    assert book.ledger.leases.holder("bench") is None
    assert book.ledger.leases.acquire("bench", "other", LEASE_S).token == 2


def test_the_kernels_clock_is_the_same_for_all_and_never_goes_back() -> None:
    """Where there is one."""
    first, second = kernel_clock(), kernel_clock()
    assert elapsed_s() <= elapsed_s()
    if first is not None and second is not None:
        assert first[0] == second[0]
        assert first[1] <= second[1]
