"""Several processes in one ledger: races, forks, and one that is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import text

from benchbridge_plugin.errors import LeaseBusy
from benchbridge_plugin.ledger import Ledger
from tests.conftest import Book, Clock, make_batch
from tests.kit import ledgers

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return ledgers.new_url(tmp_path / "ledger.sqlite")


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(url, now=clock)
    yield made
    made.close()


def take_lease(url: str, barrier: Any, answers: Any) -> None:
    ledger = Ledger(url)
    barrier.wait(60)
    try:
        lease = ledger.leases.acquire("bench", str(os.getpid()), 60)
    except LeaseBusy:
        answers.put("busy")
    else:
        answers.put(f"token {lease.token}")


def take_ticks(url: str, barrier: Any, answers: Any) -> None:
    ledger = Ledger(url)
    source_id = ledger.runs.source_id("bench")
    taken = []
    for at_once in (True, False):
        barrier.wait(60)
        taken.append(ledger.runs.claim_tick(source_id, 3600, at_once=at_once))
    answers.put(taken)


def take_parts(url: str, barrier: Any, answers: Any) -> None:
    ledger = Ledger(url)
    barrier.wait(60)
    taken = []
    while (share := ledger.shares.take("bench", str(os.getpid()), 60)) is not None:
        taken.append(share.holder.share)
    answers.put(taken)


def race(worker: Any, url: str, count: int = 4) -> list[Any]:
    barrier, answers = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [SPAWN.Process(target=worker, args=(url, barrier, answers)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    answers.close()
    answers.join_thread()
    return found


def test_of_processes_that_race_for_a_new_ledgers_lease_one_gets_it(url: str) -> None:
    """They create the file, its tables and the lease at the same moment."""
    assert sorted(race(take_lease, url)) == ["busy", "busy", "busy", "token 1"]


def test_processes_that_race_for_the_parts_of_a_run_take_each_once(url: str) -> None:
    ledger = Ledger(url)
    book = Book(ledger, Clock(time.time()))
    batch = make_batch({}).select(["result_id", "content_hash"])
    part = batch.append_column("is_new", pa.array([True])).append_column("attempts", pa.array([0]))
    offered = [ledger.shares.offer(book.holder, book.source_id, part) for _ in range(40)]
    taken = race(take_parts, url)
    ledger.close()
    assert sorted(number for parts in taken for number in parts) == offered


def test_of_processes_that_race_for_a_tick_one_gets_it(url: str) -> None:
    """The start-up cycle is one process's; the tick after it is not due for anybody."""
    answers = race(take_ticks, url)
    assert sorted(start_up for start_up, _ in answers) == [False, False, False, True]
    assert [tick for _, tick in answers] == [False] * 4


KILLED = """
import os, signal, sys
from sqlalchemy import text
from benchbridge_plugin.ledger import Ledger
ledger = Ledger(sys.argv[1])
with ledger._store.writing() as connection:
    connection.execute(text("UPDATE sources SET total = 555"))
    connection.execute(text("DELETE FROM claims"))
    print("in the middle", flush=True)
    sys.stdin.read()
"""


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it(ledger: Ledger, url: str, clock: Clock) -> None:
    """kill -9 between two statements: the next one reads and writes as if it had never begun."""
    book = Book(ledger, clock)
    book.compared(1)
    batch = make_batch({})
    book.claim(batch)
    before = (book.rows(), book.accounting)
    with subprocess.Popen([sys.executable, "-c", KILLED, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "in the middle\n"
        victim.send_signal(signal.SIGKILL)
    assert (book.rows(), book.accounting) == before
    book.acknowledge(batch)
    assert book.states() == ["delivered"]


def test_a_fork_does_not_share_connections(ledger: Ledger, url: str, clock: Clock) -> None:
    """The child opens its own; what it does and how it ends does not disturb the parent's."""
    source_id = ledger.runs.source_id("bench")
    engine = ledger._store._engine
    with engine.connect() as connection:
        parents = id(connection.connection.dbapi_connection)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ledger.runs.set_schedule(source_id, paused=True)
            with engine.connect() as connection:
                status = 0 if id(connection.connection.dbapi_connection) != parents else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.runs.schedule(source_id).paused
    ledger.runs.set_schedule(source_id, paused=False)
    if ledgers.kind == "sqlite":
        assert ledgers.read_rows(url, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_a_commit_is_on_disk_before_anything_is_done_because_of_it(ledger: Ledger) -> None:
    """Whatever the server is set to: a claim that was lost in a crash would be sent again."""
    with ledger._store.writing() as connection:
        if ledgers.kind == "sqlite":
            assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        else:
            assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
