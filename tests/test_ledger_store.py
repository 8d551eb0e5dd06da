"""Where the ledger lives: its version, what can be wrong with the place, and several processes in it at once."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from benchbridge_plugin.errors import LedgerError, LedgerNewer
from benchbridge_plugin.ledger import Ledger, upgrades
from benchbridge_plugin.ledger.store import Store
from benchbridge_plugin.model import Fate, Outcome, RunSummary
from tests.conftest import REFUSED, Book, Clock, make_batch
from tests.kit.ledgers import out_of_step

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(f"sqlite:///{path}", now=clock)
    yield made
    made.close()


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


# -- its version ------------------------------------------------------------------------------------------------------------------------


def test_a_new_ledger_has_the_present_version_and_a_view_for_people(ledger: Ledger, path: Path) -> None:
    """The view shows states and reasons by name."""
    book = Book(ledger, Clock())
    book.compared(2)
    book.claim(make_batch({}, {"reason_code": "model_missing", "reason": "No model."}))
    book.lose()
    assert query(path, "SELECT value FROM ledger_meta WHERE name = 'version'") == [(str(upgrades.VERSION),)]
    assert query(path, "SELECT source, result_id, state, reason_code FROM delivery_view ORDER BY 2") == [
        ("bench", "1", "in_doubt", "process_gone"),
        ("bench", "2", "rejected", "model_missing"),
    ]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_newer_ledger_is_refused_untouched(ledger: Ledger, path: Path) -> None:
    """An old program must not write where it does not know what it reads."""
    ledger.check()
    ledger.close()
    change(path, "UPDATE ledger_meta SET value = '99' WHERE name = 'version'")
    before = path.read_bytes()
    late = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerNewer, match="version 99") as newer:
        late.runs.source_id("bench")
    late.close()
    assert "pip install -U benchbridge" in newer.value.guidance
    assert path.read_bytes() == before


def test_an_older_ledger_is_backed_up_and_upgraded_with_all_it_holds(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step runs once, the rows are still there, and the copy from before is complete."""
    book = Book(ledger, Clock())
    book.compared(2)
    batch = make_batch({})
    book.claim(batch)
    book.acknowledge(batch)
    book.claim(make_batch({}, first=2))
    before = book.rows()
    ledger.close()
    older = upgrades.VERSION
    steps: list[str] = []

    def add_column(connection: Connection) -> None:
        steps.append("add")
        connection.execute(text("ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT ''"))

    monkeypatch.setattr(upgrades, "UPGRADES", (*upgrades.UPGRADES, add_column))
    monkeypatch.setattr(upgrades, "VERSION", upgrades.VERSION + 1)
    for _ in range(2):
        upgraded = Ledger(f"sqlite:///{path}")
        assert upgraded.accounts.results(1).rows == before
        upgraded.close()
    assert steps == ["add"]
    assert query(path, "SELECT value FROM ledger_meta WHERE name = 'version'") == [(str(upgrades.VERSION),)]
    assert query(path, "SELECT note FROM runs") == [("",)]
    backup = path.with_name(f"ledger.sqlite.v{older}.backup")
    assert query(backup, "SELECT value FROM ledger_meta WHERE name = 'version'") == [(str(older),)]
    assert query(backup, "SELECT count(*) FROM deliveries") == query(backup, "SELECT count(*) FROM claims") == [(1,)]


#: What each version of the ledger added, taken away again.
ADDED: dict[int, Sequence[str]] = {
    8: (
        "DROP INDEX ix_deliveries_undelivered",
        "CREATE INDEX ix_deliveries_open ON deliveries (source_id, state, next_attempt_at) WHERE state IN (0, 1, 3)",
        "CREATE INDEX ix_deliveries_refused ON deliveries (source_id, result_id, content_hash) WHERE state = 4",
    ),
    7: ("DROP TABLE scores", "DROP TABLE forecast_errors"),
    6: ("DROP TABLE regressions", "DROP TABLE watches", "DROP TABLE histories"),
    5: ("DROP TABLE meters", "DROP TABLE outbox"),
    4: (
        "DROP INDEX ix_deliveries_refused",
        "DROP TABLE standings",
        "CREATE TABLE standings (source_id INTEGER, state INTEGER, results INTEGER)",
    ),
    3: ("DROP TABLE shares", "ALTER TABLE claims DROP COLUMN share_id", "DROP TABLE standings"),
    2: ("DROP TABLE claims", "DROP TABLE seen_ids", "ALTER TABLE sources DROP COLUMN looked"),
}


def make_older(path: Path, version: int) -> None:
    """The ledger as a program of that version would have left it."""
    for later in range(upgrades.VERSION, version, -1):
        for step in ADDED[later]:
            change(path, step)
    change(path, f"UPDATE ledger_meta SET value = '{version}' WHERE name = 'version'")


def test_a_ledger_of_the_first_version_is_upgraded_with_its_rows_and_works(ledger: Ledger, path: Path) -> None:
    """Delivered stays delivered, what its last process was sending is in doubt, and new batches are claimed."""
    book = Book(ledger, Clock())
    book.compared(4)
    batch = make_batch({}, {}, {})
    book.claim(batch)
    book.acknowledge(batch, {2: Outcome(Fate.FAILED, "try_later", "later")})
    book.ledger.deliveries.retry(book.source_id, rejected=False)
    book.claim(batch.slice(2), new=False)  # a row that is being sent, as in the first version every row was
    before, accounts = book.rows(), book.accounting
    ledger.close()
    make_older(path, 1)
    upgraded = Ledger(f"sqlite:///{path}", now=Clock())
    again = Book(upgraded, Clock(), "another source")
    again.source_id, again.holder = book.source_id, book.holder
    assert (again.rows(), again.accounting) == (before, accounts)
    assert query(path, "SELECT value FROM ledger_meta WHERE name = 'version'") == [(str(upgrades.VERSION),)]
    assert query(path.with_name("ledger.sqlite.v1.backup"), "SELECT count(*) FROM deliveries") == [(3,)]
    new = make_batch({}, first=4)
    again.claim(new)
    assert again.states() == ["delivered", "delivered", "in_doubt", "in_doubt"]
    again.acknowledge(new)
    again.lose()
    (doubt,) = upgraded.doubts.page(book.source_id)
    upgraded.doubts.settle(book.holder, book.source_id, [(doubt, "m-3")], [])
    assert again.states() == ["delivered"] * 4
    assert again.accounting.balanced
    upgraded.close()


@pytest.mark.parametrize("version", range(1, upgrades.VERSION))
def test_a_ledger_of_any_version_keeps_its_rows_and_figures_when_it_is_upgraded(
    ledger: Ledger, path: Path, clock: Clock, version: int
) -> None:
    """What can be worked out from its rows and runs is there at once; what was refused before is no news; what is on its way stays in doubt."""
    book = Book(ledger, clock)
    book.compared(6)
    batch = make_batch({"quality": 1}, {}, REFUSED)
    book.claim(batch)
    book.acknowledge(batch, {1: Outcome(Fate.REJECTED, "refused_by_api", "no")})
    ledger.runs.finish(RunSummary(book.holder.run_id, "partial", "python", False, clock(), None, synced=1, rejected=2, adopted=3))
    if version > 1:  # before that there were no claims
        book.claim(make_batch({}, first=5))
    rows, accounts, refusals = book.rows(), book.accounting, ledger.accounts.refusals(book.source_id)
    meters = ledger.meters([book.source_id])[book.source_id].values
    ledger.close()
    make_older(path, version)
    upgraded = Ledger(f"sqlite:///{path}", now=clock)
    again = Book(upgraded, clock, "another source")
    again.source_id, again.holder = book.source_id, book.holder
    assert (again.rows(), again.accounting, upgraded.accounts.refusals(book.source_id)) == (rows, accounts, refusals)
    assert upgraded.meters([book.source_id])[book.source_id].values == meters
    assert out_of_step(f"sqlite:///{path}") == []
    again.claim(make_batch({}, first=9))
    again.lose()
    assert again.states().count("in_doubt") == (1 if version == 1 else 2)
    assert again.accounting.balanced
    upgraded.close()


def open_at_once(url: str, barrier: Any, answers: Any) -> None:
    ledger = Ledger(url)
    barrier.wait(60)
    answers.put(ledger.accounts.accounting(1).total)
    ledger.close()


def test_of_processes_that_open_a_ledger_of_the_first_version_at_once_one_upgrades_it(ledger: Ledger, path: Path) -> None:
    """The others wait for it and find the table."""
    Book(ledger, Clock()).compared(7)
    ledger.close()
    make_older(path, 1)
    barrier, answers = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [SPAWN.Process(target=open_at_once, args=(f"sqlite:///{path}", barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [7, 7, 7]
    for process in processes:
        process.join(60)
    answers.close()
    answers.join_thread()
    assert query(path, "SELECT count(*) FROM claims") == [(0,)]


def test_an_upgrade_that_fails_leaves_the_old_ledger(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are one transaction."""
    ledger.check()
    ledger.close()

    def fail(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half_done (x INTEGER)"))
        connection.execute(text("SELECT * FROM no_such_table"))

    monkeypatch.setattr(upgrades, "UPGRADES", (*upgrades.UPGRADES, fail))
    monkeypatch.setattr(upgrades, "VERSION", upgrades.VERSION + 1)
    late = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerError, match="no_such_table"):
        late.check()
    late.close()
    assert query(path, "SELECT count(*) FROM sqlite_master WHERE name = 'half_done'") == [(0,)]
    assert query(path, "SELECT value FROM ledger_meta WHERE name = 'version'") == [(str(len(upgrades.UPGRADES) - 1),)]


def test_an_upgrade_that_cannot_be_backed_up_does_not_begin(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy, no change."""
    ledger.check()
    ledger.close()
    older = upgrades.VERSION
    path.with_name(f"ledger.sqlite.v{older}.backup").mkdir()
    monkeypatch.setattr(upgrades, "UPGRADES", (*upgrades.UPGRADES, lambda connection: None))
    monkeypatch.setattr(upgrades, "VERSION", upgrades.VERSION + 1)
    late = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerError, match="backed up") as raised:
        late.check()
    late.close()
    assert "directory writable" in raised.value.guidance
    assert raised.value.fields["place"] == str(path)
    assert query(path, "SELECT value FROM ledger_meta WHERE name = 'version'") == [(str(older),)]


# -- what can be wrong with the place ---------------------------------------------------------------------------------------------------


def place(tmp_path: Path, what: str) -> str:
    file = tmp_path / "odd"
    if what == "text":
        file.write_text("not a database at all, but long enough to have a header " * 20)
    elif what == "directory":
        file.mkdir()
    elif what == "unwritable":
        return "sqlite:////proc/ledger.sqlite"
    elif what == "no directory":
        return f"sqlite:///{tmp_path}/missing/ledger.sqlite"
    elif what == "no such scheme":
        return "nosuchdatabase://host/ledger"
    elif what == "no URL":
        return "://"
    elif what == "foreign tables":
        change(file, "CREATE TABLE deliveries (something TEXT)")
    return f"sqlite:///{file}"


@pytest.mark.parametrize("what", ["text", "directory", "unwritable", "no directory", "no such scheme", "no URL", "foreign tables"])
def test_a_place_that_cannot_hold_a_ledger_is_a_sentence_with_what_to_do(tmp_path: Path, what: str) -> None:
    """Never a traceback of the database driver."""

    def check() -> None:
        with closing(Ledger(place(tmp_path, what))) as made:
            made.check()

    with pytest.raises(LedgerError) as raised:
        check()
    assert raised.value.message.endswith(".")
    assert "\n" not in raised.value.message
    assert raised.value.guidance


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """The guidance says to make it writable or to choose another place."""
    tmp_path.chmod(0o500)
    made = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    with pytest.raises(LedgerError) as raised:
        made.check()
    made.close()
    tmp_path.chmod(0o700)
    assert "writable" in raised.value.guidance


def test_a_full_disk_is_said_and_nothing_is_half_written(ledger: Ledger, clock: Clock) -> None:
    """SQLite is told that the file may not grow: the claim fails as a whole, and goes through once there is room."""
    book = Book(ledger, clock)
    book.compared(2_000)
    event.listen(ledger._store._engine, "connect", lambda connection, record: connection.execute("PRAGMA max_page_count = 30"))
    ledger.close()  # connections to come are full
    batch = make_batch(*[{"model_name": f"a long name of a model {row}"} for row in range(2_000)])
    with pytest.raises(LedgerError, match="full") as raised:
        book.claim(batch)
    assert "disk space" in raised.value.guidance
    assert book.rows() == []
    assert book.accounting.pending == 2_000
    event.listen(ledger._store._engine, "connect", lambda connection, record: connection.execute("PRAGMA max_page_count = 100000"))
    ledger.close()
    book.claim(batch)
    assert book.accounting.in_doubt == 2_000


@pytest.mark.parametrize(
    ("said", "todo"),
    [
        ("file is not a database", "backup"),
        ("database disk image is malformed", "backup"),
        ("attempt to write a readonly database", "writable"),
        ("unable to open database file", "writable"),
        ("permission denied for table deliveries", "writable"),
        ("Permission denied", "writable"),
        ("database or disk is full", "disk space"),
        ("database is locked", "try again."),
        ("could not connect to server", "can be reached"),
    ],
)
def test_each_trouble_of_a_database_has_its_advice(tmp_path: Path, said: str, todo: str) -> None:
    """The first line of what the driver says, as a sentence, with the place, and what to do about it alone."""
    store = Store(f"sqlite:///{tmp_path}/x.sqlite")
    for words in (said, f"{said}.", f"{said}\nDETAIL: more of it"):
        error = store._explain(OperationalError("SELECT 1", {}, Exception(words)))
        assert error.message == f"The ledger {tmp_path}/x.sqlite cannot be used: {said}."
        assert error.fields["place"] == f"{tmp_path}/x.sqlite"
        advised = {word for word in ("backup", "writable", "disk space", "try again.", "can be reached") if word in error.guidance}
        assert advised == {todo}
        assert error.guidance[0].isupper()
        assert error.guidance.endswith(".")


def test_an_error_without_words_is_still_a_sentence(tmp_path: Path) -> None:
    """Some drivers say nothing."""
    store = Store(f"sqlite:///{tmp_path}/x.sqlite")
    assert "OperationalError" in store._explain(OperationalError("SELECT 1", {}, Exception(""))).message


def test_the_password_of_a_url_is_not_shown() -> None:
    """`place` goes to the status page."""
    pytest.importorskip("psycopg")
    made = Ledger("postgresql+psycopg://me:hunter2@localhost/ledger")
    assert "hunter2" not in made.place
    made.close()


# -- readers and writers ----------------------------------------------------------------------------------------------------------------


def test_a_new_file_that_somebody_writes_is_opened_when_they_have_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite fails at once when it is to turn to WAL meanwhile, whatever its timeout; so the ledger tries again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(Ledger(f"sqlite:///{path}")) as late:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE theirs (x)")
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            other.execute("COMMIT")

        monkeypatch.setattr("benchbridge_plugin.ledger.store._BUSY_TIMEOUT_S", 0)
        monkeypatch.setattr("benchbridge_plugin.ledger.store.time.monotonic", lambda: 0.0)
        monkeypatch.setattr("benchbridge_plugin.ledger.store.time.sleep", sleep)
        late.check()
        assert len(slept) == 1
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_new_file_that_somebody_keeps_to_himself_is_said_to_be_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After as long as is waited for any other lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(Ledger(f"sqlite:///{path}")) as late:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE theirs (x)")
        passing = Clock(0.0)
        monkeypatch.setattr("benchbridge_plugin.ledger.store._BUSY_TIMEOUT_S", 0)
        monkeypatch.setattr("benchbridge_plugin.ledger.store.time.monotonic", passing)
        monkeypatch.setattr("benchbridge_plugin.ledger.store.time.sleep", passing.sleep)
        with pytest.raises(LedgerError, match="database is locked"):
            late.check()
        assert len(passing.slept) == 1


def test_readers_do_not_wait_for_a_writer_and_see_whole_transactions(ledger: Ledger, clock: Clock) -> None:
    """While a claim is open, the accounting is answered, with the figures of before."""
    book = Book(ledger, clock)
    book.compared(1)
    with ledger._store.writing() as connection:
        connection.execute(text("UPDATE sources SET total = 77"))
        seen: list[int] = []
        reader = threading.Thread(target=lambda: seen.append(book.accounting.total))
        reader.start()
        reader.join(5)
        assert seen == [1]
    assert book.accounting.total == 77


def test_threads_share_a_ledger(ledger: Ledger, clock: Clock) -> None:
    """Each call has a connection of its own; none gets lost or mixed up."""
    ids: list[int] = []
    threads = [threading.Thread(target=lambda name=f"source {n % 3}": ids.append(ledger.runs.source_id(name))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 12
    assert set(ids) == {1, 2, 3}
