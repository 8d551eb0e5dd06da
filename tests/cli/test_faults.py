"""What can be wrong with the benchmark file, the ledger, the API: one sentence with what, where and what to do, and the exit code of its kind."""

from __future__ import annotations

import os
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import duckdb
import pytest

from tests.kit.base_contract import RECORD, BaseContractServer, Fault

from .conftest import Done, Run


def _checksum(block: bytes | bytearray) -> int:
    """As DuckDB's: over 64-bit words."""
    result = 5381
    for (word,) in struct.iter_unpack("<Q", block):
        result ^= word * 0xBF58476D1CE4E5B9 & 0xFFFF_FFFF_FFFF_FFFF
    return result


def _newer(path: Path, sample: Path) -> None:
    """The first block: a checksum, the magic word DUCK, the storage version."""
    content = bytearray(sample.read_bytes())
    assert int.from_bytes(content[:8], "little") == _checksum(content[8:4096])
    content[12:20] = (199).to_bytes(8, "little")
    content[:8] = _checksum(content[8:4096]).to_bytes(8, "little")
    path.write_bytes(content)


def _damaged(path: Path, sample: Path) -> None:
    content = bytearray(sample.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)


def _sqlite(path: Path, sample: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE performance_results (result_id INTEGER)")
    connection.commit()
    connection.close()


def _other_tables(path: Path, sample: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE shopping (item VARCHAR, price DOUBLE)")


#: What the file is -> how it is made, and a word of the sentence about it.
FILES: Mapping[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda path, sample: None, "no benchmark database"),
    "empty": (lambda path, sample: path.touch(), "is empty"),
    "text": (lambda path, sample: path.write_text("result_id,model\n1,gpt2\n" * 500), "is not a DuckDB database"),
    "directory": (lambda path, sample: path.mkdir(), "is a directory"),
    "sqlite": (_sqlite, "SQLite database"),
    "truncated": (lambda path, sample: path.write_bytes(sample.read_bytes()[:10_000]), "cannot be read"),
    "newer storage": (_newer, "newer DuckDB"),
    "damaged": (_damaged, "seems damaged"),
    "other tables": (_other_tables, "results"),
}


def assert_told(done: Done, code: int, *words: str) -> None:
    """One error of two lines at most: the sentence with these words, and what to do."""
    assert done.code == code, done.text
    lines = [line for line in done.err.splitlines() if line]
    assert lines[0].startswith("Error: "), done.err
    assert len(lines) == 2, done.err
    assert lines[1].startswith("       "), done.err
    for word in words:
        assert word in done.err, done.err


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHBRIDGE_SOURCE_BUSY_TIMEOUT_S", "0.2")
    monkeypatch.setenv("BENCHBRIDGE_SETTLE_AFTER_S", "0.1")


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        *((kind, command) for kind in FILES for command in ("sync", "report")),
        *(("missing", command) for command in ("results", "retry", "verify")),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_leaves_no_ledger(run: Run, workplace: Path, sample: Path, kind: str, command: str) -> None:
    """Exit code 3, the path in the sentence, and no new file beside a path that was mistyped."""
    make, word = FILES[kind]
    path = workplace / "mistyped.duckdb"
    make(path, sample)
    before = sorted(workplace.iterdir())
    assert_told(run(command, "--benchmark-db", path), 3, word, "mistyped.duckdb")
    assert sorted(workplace.iterdir()) == before


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "sqlite"])
def test_a_file_that_breaks_later_is_told_in_the_run(run: Run, to_api: list[str], database: Path, sample: Path, kind: str) -> None:
    """With a ledger beside it the run is recorded as failed; exit code and sentence are the same, and the report still has its figures."""
    assert run("sync", *to_api, "--limit", 2).code == 0
    database.unlink()
    make, word = FILES[kind]
    make(database, sample)
    assert_told(run("sync", *to_api), 3, word)
    report = run("report", "--benchmark-db", database)
    assert report.code == 0
    assert "2 of 40 results delivered" in report.out
    assert "Note: " in report.out


@pytest.mark.parametrize("command", ["sync", "report"])
def test_a_file_that_is_cut_in_half_is_told(run: Run, to_api: list[str], database: Path, command: str) -> None:
    """DuckDB opens it, and only reading its rows fails."""
    os.truncate(database, database.stat().st_size // 2)
    assert_told(run(command, *to_api[: 4 if command == "sync" else 2]), 3, "cannot be read", str(database))


def test_a_damaged_file_is_not_waited_for(run: Run, workplace: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It will not be better in 20 s."""
    monkeypatch.setenv("BENCHBRIDGE_SOURCE_BUSY_TIMEOUT_S", "20")
    _damaged(workplace / "damaged.duckdb", sample)
    began = time.monotonic()
    assert_told(run("sync", "--benchmark-db", "damaged.duckdb"), 3, "seems damaged")
    assert time.monotonic() - began < 10.0, "of 20 s"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(run: Run, database: Path) -> None:
    """With the command that allows it."""
    database.chmod(0)
    assert_told(run("sync", "--benchmark-db", database), 3, "chmod")


@pytest.fixture
def held(database: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the file open for writing."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kit.writer", str(database), "--hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        yield holder
        holder.communicate("")


def test_a_file_that_somebody_writes_is_told_with_the_process(
    run: Run, to_api: list[str], held: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    """After the patience that is configured; a report asks once and does not wait."""
    monkeypatch.setenv("BENCHBRIDGE_SOURCE_BUSY_TIMEOUT_S", "0.2")
    assert_told(run("sync", *to_api), 3, "held for writing", str(held.pid), "Nothing is lost")
    monkeypatch.setenv("BENCHBRIDGE_SOURCE_BUSY_TIMEOUT_S", "60")
    assert_told(run("report", *to_api[:2]), 3, "held for writing", str(held.pid))
    assert not list(workplace.glob("*.sqlite*"))


def test_a_report_of_a_busy_file_shows_the_last_comparison(
    run: Run, to_api: list[str], database: Path, request: pytest.FixtureRequest
) -> None:
    """And says that it does."""
    run("sync", *to_api, "--limit", 2)
    database.touch()  # as if something had been written
    holder = request.getfixturevalue("held")
    done = run("report", *to_api[:2])
    assert done.code == 0
    assert f"process {holder.pid}" in done.out
    assert "The figures are those of the last comparison." in done.out


# -- the predictive API ---------------------------------------------------------------------------------------------------------------------


def test_an_api_that_does_not_answer_is_told(run: Run, database: Path) -> None:
    """Exit code 4; nothing was sent, nothing is lost."""
    for command in ("sync", "verify"):
        assert_told(run(command, "--benchmark-db", database, "--api-url", "http://127.0.0.1:1"), 4, "http://127.0.0.1:1", "--api-url")
    assert run("sync", "--dry-run", "--benchmark-db", database, "--api-url", "http://127.0.0.1:1").code == 4


def test_an_api_that_refuses_the_key_is_told(run: Run, database: Path) -> None:
    """Without showing the key; with the right one it works, from the option and from the environment."""
    with BaseContractServer(api_key="right") as server:
        words = ["sync", "--benchmark-db", database, "--api-url", server.url, "--limit", 1]
        for extra in ([], ["--api-key", "the-wrong-one"]):
            done = run(*words, *extra)
            assert_told(done, 4, "refuses the API key", "BENCHBRIDGE_API_KEY")
            assert "the-wrong-one" not in done.text
        assert run(*words, "--api-key", "right").code == 0
        assert server.rows


def test_an_api_that_stays_silent_is_told_after_the_time_limit(run: Run, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing does not hold the command for ever."""
    monkeypatch.setenv("BENCHBRIDGE_REQUEST_TIMEOUT_S", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert_told(run("sync", "--benchmark-db", database, "--api-url", url), 4, url, "0.3 s")


def test_something_else_on_that_address_is_told(run: Run, database: Path) -> None:
    """A web server that is no predictive API."""
    with BaseContractServer() as server:
        url = f"{server.url}/somewhere/else"
        assert_told(run("sync", "--benchmark-db", database, "--api-url", url), 4, url)
        assert not server.requests[RECORD]


def test_an_api_that_breaks_down_in_the_middle_is_told_with_what_was_done(run: Run, to_api: list[str], api: BaseContractServer) -> None:
    """Exit code 4, and the counts up to then; the next sync goes on."""
    api.faults.skip(3)
    api.faults.add(Fault.ERROR_500, 100)
    done = run("sync", *to_api)
    assert_told(done, 4, "3 synced")
    api.faults.clear()
    assert run("retry", *to_api[:2]).code == 0
    assert run("sync", *to_api).code == 0
    assert len({row["measurement_source"] for row in api.rows}) == len(api.rows) == 22


# -- the ledger -----------------------------------------------------------------------------------------------------------------------------


def test_a_ledger_that_cannot_be_used_is_told(run: Run, to_api: list[str], workplace: Path) -> None:
    """Exit code 2: no directory, no database, a newer version, a URL that means nothing."""
    (workplace / "text").write_text("no database, and long enough to be taken for one. " * 40)
    newer = sqlite3.connect(workplace / "newer")
    newer.execute("CREATE TABLE ledger_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    newer.execute("INSERT INTO ledger_meta VALUES ('version', '999')")
    newer.commit()
    newer.close()
    assert_told(run("sync", *to_api, "--ledger", workplace / "none" / "ledger.sqlite"), 2, "no directory", "--ledger")
    assert_told(run("sync", *to_api, "--ledger", workplace / "text"), 2, "not a database")
    assert_told(run("sync", *to_api, "--ledger", workplace / "newer"), 2, "version 999", "pip install -U benchbridge")
    assert_told(run("sync", *to_api, "--ledger", "nosuchdb://host/x"), 2, "ledger URL")
    assert run("sync", *to_api, "--ledger", workplace / "own.sqlite").code == 0
    assert (workplace / "own.sqlite").exists()
    assert not (workplace / "bench.duckdb.bridge.sqlite").exists()


def test_errors_are_json_too_when_json_is_asked_for(run: Run, workplace: Path) -> None:
    """Standard output parses whatever happens; people read standard error."""
    done = run("sync", "--benchmark-db", "none.duckdb", "--json")
    assert (done.code, done.json["success"], done.json["error_code"]) == (3, False, "benchmark_db_missing")
    assert "none.duckdb" in done.json["message"]
    assert done.err.startswith("Error: ")
    assert run("verify", "--config", "none.json", "--json").json["error_code"] == "config_error"
