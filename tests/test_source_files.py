"""source.py and somebody else's file: what can be wrong with it, who else holds it, and that it is left as it was."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pytest

from benchbridge_plugin.errors import SourceBusy, SourceError, SourceInvalid, SourceMissing
from benchbridge_plugin.source import BenchmarkSource
from tests.benchmark_files import ROOT, SMALLEST, create, held_elsewhere, read_all
from tests.kit.layouts import BenchmarkDatabase, build


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A healthy file's bytes."""
    path = tmp_path_factory.mktemp("whole") / "b.duckdb"
    build("V1", path, limit=300)
    return path.read_bytes()


def _refused(path: str) -> SourceError:
    """The error of reading it all; each has a message with the path and a guidance, and no file has come into being."""
    folder = Path(path).parent if path else Path()
    before = sorted(folder.iterdir()) if folder.is_dir() else []
    with pytest.raises(SourceError) as refused:
        read_all(BenchmarkSource(path, busy_timeout_s=0))
    assert path in refused.value.message
    assert refused.value.message.endswith(".")
    assert len(refused.value.guidance) > 20
    assert refused.value.fields["path"] == path
    assert (sorted(folder.iterdir()) if folder.is_dir() else []) == before
    return refused.value


@pytest.mark.parametrize("name", ["b.duckdb", "no/such/folder/b.duckdb", "*.parquet", ":memory:", "md:b", "a\nb"])
def test_a_missing_file_is_missing_and_stays_so(name: str, tmp_path: Path) -> None:
    """DuckDB would create it, or take the name for something else."""
    assert type(_refused(str(tmp_path / name))) is SourceMissing


@pytest.mark.parametrize("name", ["", ":memory:", "md:", "*.parquet"])
def test_a_name_that_duckdb_takes_for_no_file_is_missing_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty in-memory database would say "no results", which is worse than an error."""
    monkeypatch.chdir(tmp_path)
    assert type(_refused(name)) is SourceMissing
    with pytest.raises(SourceMissing):
        BenchmarkSource(name).signature()


@pytest.mark.parametrize("name", [":memory:x", "md:x", "a*.duckdb", "~x", "no suffix 🙂"])
def test_a_file_of_any_name_is_opened_as_that_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names with a prefix that means something to DuckDB are plain files to us."""
    create(tmp_path / name, *SMALLEST)
    monkeypatch.chdir(tmp_path)
    assert len(read_all(BenchmarkSource(name))) == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("b.duckdb", b"", "is empty"),
        ("b.duckdb", b"this is a text file\n" * 1000, "is not a DuckDB database"),
        ("b.duckdb", b"\x00" * 20_000, "is not a DuckDB database"),
        ("b.parquet", b"PAR1....PAR1", "is not a DuckDB database file"),
        ("*.parquet", b"PAR1....PAR1", "is not a DuckDB database file"),
        ("could not set lock sqlite extension permission denied.duckdb", b"text\n" * 4000, "is not a DuckDB database"),
    ],
)
def test_what_is_no_duckdb_file_is_invalid(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    """The sentence comes from what DuckDB says, never from words in the file's own name."""
    (tmp_path / name).write_bytes(content)
    refused = _refused(str(tmp_path / name))
    assert type(refused) is SourceInvalid
    assert says in refused.message


def test_a_directory_and_a_device_are_invalid(tmp_path: Path) -> None:
    """They are looked at and never opened: opening a pipe would wait for ever."""
    assert "is a directory" in _refused(str(tmp_path)).message
    os.mkfifo(tmp_path / "pipe")
    assert type(_refused(str(tmp_path / "pipe"))) is SourceInvalid
    assert type(_refused("/dev/null")) is SourceInvalid


def test_a_relative_path_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`../b.duckdb` must not be printed as `./b.duckdb`."""
    (tmp_path / "in").mkdir()
    (tmp_path / "b.duckdb").write_text("text" * 4000)
    monkeypatch.chdir(tmp_path / "in")
    assert _refused("../b.duckdb").message == "The benchmark database ../b.duckdb is not a DuckDB database."


def test_an_sqlite_file_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB asks for its sqlite extension and tries to download it; here it cannot."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    connection = sqlite3.connect(tmp_path / "b.duckdb")
    connection.execute("CREATE TABLE performance_results (id)")
    connection.close()
    refused = _refused(str(tmp_path / "b.duckdb"))
    assert type(refused) is SourceInvalid
    assert "is an SQLite database" in refused.message


@pytest.mark.parametrize("size", [1, 15, 4096, 12_288, 0.25, 0.5])
def test_a_truncated_file_is_invalid_wherever_it_ends(size: float, whole: bytes, tmp_path: Path) -> None:
    """Up to 12 KB connecting fails; cut in half, connecting succeeds and the query fails."""
    path = tmp_path / "b.duckdb"
    path.write_bytes(whole[: int(size if size >= 1 else size * len(whole))])
    refused = _refused(str(path))
    assert type(refused) is SourceInvalid
    assert not isinstance(refused.__cause__, SourceError)


@pytest.mark.parametrize("place", [20, 12_288 + 50])
def test_a_flipped_byte_in_the_header_or_in_a_block_is_invalid(place: int, whole: bytes, tmp_path: Path) -> None:
    """DuckDB says a plain duckdb.Error, no IOException; it becomes a sentence too."""
    path = tmp_path / "b.duckdb"
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    refused = _refused(str(path))
    assert type(refused) is SourceInvalid
    assert "seems damaged" in refused.guidance


def test_a_file_of_a_newer_duckdb_asks_for_an_upgrade(whole: bytes, tmp_path: Path) -> None:
    """The storage version stands behind the checksum and "DUCK" in the first header."""
    changed = whole[8:12] + struct.pack("<Q", 1_000_000) + whole[20:4096]
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", changed):
        checksum ^= word * 0xBF58476D1CE4E5B9 % 2**64
    path = tmp_path / "b.duckdb"
    path.write_bytes(struct.pack("<Q", checksum) + changed + whole[4096:])
    refused = _refused(str(path))
    assert type(refused) is SourceInvalid
    assert "was written by a newer DuckDB" in refused.message
    assert duckdb.__version__ in refused.guidance


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read it")
@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_said_to_be_so(of: str, tmp_path: Path) -> None:
    """In a process of another user, as a server is."""
    folder = tmp_path / "f"
    folder.mkdir()
    path = create(folder / "b.duckdb", *SMALLEST)
    for above in path.parents:
        if above.is_relative_to(tempfile.gettempdir()) and above != Path(tempfile.gettempdir()):
            above.chmod(0o755)
    (path if of == "file" else folder).chmod(0)
    code = """
import os, sys
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.errors import SourceInvalid
import duckdb, pyarrow
os.setuid(65534)
try:
    BenchmarkSource(sys.argv[1]).ids()
except SourceInvalid as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(path) in said
    assert re.search("may not be read by this user.*chmod" if of == "file" else "Permission denied", said)


# -- others who hold it -------------------------------------------------------------------------------------------------------------------


def test_a_file_held_by_another_process_is_busy_until_it_is_released(tmp_path: Path) -> None:
    """The holder is named by its PID: at once with wait=False, after the timeout otherwise; a waiting read succeeds once the file is free."""
    path = create(tmp_path / "b.duckdb", *SMALLEST)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            holder.communicate()
        time.sleep(seconds)

    with held_elsewhere(path) as holder:
        source = BenchmarkSource(str(path), busy_timeout_s=60, sleep=sleep, jitter=lambda low, high: high)
        for attempt in (source.layout, source.ids):
            with pytest.raises(SourceBusy, match=rf"{path} is held for writing by process {holder.pid} \(") as refused:
                attempt(wait=False)
            assert refused.value.fields["pid"] == holder.pid
            assert not pauses
        with pytest.raises(SourceBusy, match=str(holder.pid)):
            BenchmarkSource(str(path), busy_timeout_s=0.1).ids()
        _, ids = source.ids()
        assert ids.to_pylist() == [7]
    assert pauses[:3] == pytest.approx([0.02, 0.032, 0.0512])
    assert source.holds()["count"] == 1  # waiting is not holding


def test_after_each_read_a_writer_in_another_process_opens_it_at_once(tmp_path: Path) -> None:
    """Also between two slices, and after a read that failed."""
    path = tmp_path / "b.duckdb"
    build("V7", path, limit=20)
    source = BenchmarkSource(str(path))
    source._slice = 10  # two slices
    layout, ids = source.ids()
    slices = source.slices(layout, ids.combine_chunks())
    next(slices)
    with held_elsewhere(path) as holder:
        with pytest.raises(SourceBusy):
            source.layout(wait=False)
        assert holder.poll() is None
    assert len(next(slices)) == 10
    create(path, "ALTER TABLE performance_results RENAME TO results")
    with pytest.raises(SourceError, match="no table performance_results"):
        source.ids()
    with held_elsewhere(path):
        pass


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("via", ["its path", "a symbolic link"])
def test_a_file_that_this_process_has_open_is_read_all_the_same(read_only: bool, via: str, tmp_path: Path) -> None:
    """In the mode in which it is open; the other connection works on, and keeps its lock against other processes."""
    path = create(tmp_path / "b.duckdb", *SMALLEST)
    (tmp_path / "link.duckdb").symlink_to(path)
    ours = duckdb.connect(str(path), read_only=read_only)
    if not read_only:
        ours.execute("INSERT INTO performance_results VALUES (8, 1, 1, 1)")
    source = BenchmarkSource(str(path if via == "its path" else tmp_path / "link.duckdb"), busy_timeout_s=0)
    assert len(read_all(source)) == (1 if read_only else 2)
    assert ours.execute("SELECT count(*) FROM models").fetchall() == [(1,)]
    code = "import duckdb, sys; duckdb.connect(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "Could not set lock" in other.stderr
    ours.close()


def test_a_configuration_that_cannot_be_shared_is_busy_and_tells_the_server_what_to_do(tmp_path: Path) -> None:
    """Neither mode of ours fits a connection with a config of its own; the server has to offer it."""
    path = create(tmp_path / "b.duckdb", *SMALLEST)
    ours = duckdb.connect(str(path), config={"autoinstall_known_extensions": False})
    with pytest.raises(SourceBusy, match="must pass its connection to the plugin") as refused:
        BenchmarkSource(str(path), busy_timeout_s=0.05).ids()
    assert refused.value.fields["pid"] is None
    assert len(read_all(BenchmarkSource(str(path), host_connection=lambda: ours))) == 1
    ours.close()


# -- left as it was -----------------------------------------------------------------------------------------------------------------------


def test_an_idle_file_is_the_same_byte_for_byte_after_all_reads(tmp_path: Path) -> None:
    """Nothing is written, no file appears beside it, and the signature stands still."""
    path = tmp_path / "b.duckdb"
    build("V4", path, limit=50)
    source = BenchmarkSource(str(path))
    before, signature, beside = hashlib.sha256(path.read_bytes()).digest(), source.signature(), sorted(tmp_path.iterdir())
    layout, ids = source.ids()
    assert len(read_all(source)) == 50
    source.read(layout, ids.cast("string").combine_chunks())
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert source.signature() == signature
    assert sorted(tmp_path.iterdir()) == beside


def test_rows_in_the_log_of_a_killed_writer_are_read_and_the_log_stays(tmp_path: Path) -> None:
    """A .wal does not prove that a writer lives; reading replays it in memory only."""
    path = create(tmp_path / "b.duckdb", *SMALLEST)
    code = """
import duckdb, os, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("INSERT INTO performance_results VALUES (8, 1, 1, 1)")
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    log = path.with_name("b.duckdb.wal")
    before = log.read_bytes()
    source = BenchmarkSource(str(path))
    signature = source.signature()
    assert len(read_all(source)) == 2
    assert log.read_bytes() == before
    assert source.signature() == signature


def test_the_signature_changes_with_every_commit(tmp_path: Path) -> None:
    """It is what lets a cycle end without opening the file; a commit that is only in the log counts too."""
    database = BenchmarkDatabase(tmp_path / "b.duckdb")
    source = BenchmarkSource(str(database.path))
    seen = [str(source.signature())]
    connection = duckdb.connect(str(database.path))
    for number in range(3):
        connection.execute(f"INSERT INTO models(model_id, model_name) VALUES ({number}, 'm')")
        seen.append(str(source.signature()))
    connection.close()
    seen.append(str(source.signature()))
    assert len(set(seen)) == 5


def test_holds_count_each_open_and_forget(tmp_path: Path) -> None:
    """One for each read, in milliseconds, connecting included; a refused open is none."""
    path = create(tmp_path / "b.duckdb", *SMALLEST)
    source = BenchmarkSource(str(path))
    assert source.holds() == {"count": 0, "p95_ms": 0.0, "max_ms": 0.0}
    layout, ids = source.ids()
    list(source.slices(layout, ids.combine_chunks()))
    source.read(layout, ids.cast("string").combine_chunks())
    holds = source.holds()
    assert holds["count"] == 3
    assert 0 < holds["p95_ms"] <= holds["max_ms"] < 5_000
    source.forget_holds()
    assert source.holds()["count"] == 0
    path.unlink()
    with pytest.raises(SourceMissing):
        source.ids()
    assert source.holds()["count"] == 0


def test_slices_are_not_made_smaller_than_what_any_of_them_takes() -> None:
    """On a busy machine every opening takes long: smaller slices would keep the writer out more often, and no shorter."""
    source = BenchmarkSource("bench.duckdb")
    assert source._next_slice(5_000, 0.06) < 5_000
    source._least_s = 0.05
    assert source._next_slice(5_000, 0.06) > 5_000
