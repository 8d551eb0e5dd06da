"""A large benchmark file is held once, for a copy, and read from there; where that cannot be done, slice by slice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from benchbridge_plugin import snapshot, source
from benchbridge_plugin.errors import SourceBusy, SourceInvalid
from benchbridge_plugin.source import BenchmarkSource

ROWS = source._WORTH_A_COPY


@pytest.fixture(scope="module")
def bytes_of_large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("large") / "bench.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE performance_results (result_id INTEGER PRIMARY KEY, model_name VARCHAR, hardware_type VARCHAR)")
        connection.execute(
            "ALTER TABLE performance_results ADD COLUMN throughput_items_per_second DOUBLE; "
            "ALTER TABLE performance_results ADD COLUMN average_latency_ms DOUBLE"
        )
        connection.execute("INSERT INTO performance_results SELECT i, 'gpt2', 'cuda', i, 1.0 FROM range(1, ? + 1) AS t(i)", [ROWS])
    return path.read_bytes()


@pytest.fixture
def large(bytes_of_large: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "bench.duckdb"
    path.write_bytes(bytes_of_large)
    return path


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where copies are made; nothing may be left there."""
    found = tmp_path / "copies"
    found.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(found))
    monkeypatch.setattr(snapshot, "_LONGEST_S", 60.0)  # however slow the machine of the tests is
    yield found
    assert list(found.iterdir()) == []


def read(path: Path) -> tuple[pa.Table, BenchmarkSource]:
    reader = BenchmarkSource(str(path))
    layout, ids = reader.ids()
    reader.forget_holds()
    ordered = ids.combine_chunks().sort()
    return pa.concat_tables(reader.slices(layout, ordered)), reader


def throughputs(rows: pa.Table) -> list[float]:
    return sorted(float(value) for value in rows.column("throughput").to_pylist())


EVERYTHING = [float(number) for number in range(1, ROWS + 1)]


def test_a_large_file_is_held_once(large: Path) -> None:
    rows, reader = read(large)
    assert throughputs(rows) == EVERYTHING
    assert reader.holds()["count"] == 1


def test_a_small_file_is_read_as_it_stands(large: Path) -> None:
    with duckdb.connect(str(large)) as connection:
        connection.execute("DELETE FROM performance_results WHERE result_id = 1")
    rows, reader = read(large)
    assert throughputs(rows) == EVERYTHING[1:]
    assert reader.holds()["count"] > 1


@pytest.mark.parametrize("most", [900, 6_000])
def test_no_more_is_read_at_once_than_was_asked_for(large: Path, most: int) -> None:
    """What is held in memory at a time is a matter of who reads, not of how large the file is."""
    reader = BenchmarkSource(str(large))
    layout, ids = reader.ids()
    sizes = [len(rows) for rows in reader.slices(layout, ids.combine_chunks().sort(), most=most)]
    assert set(sizes[:-1]) == {most}
    assert sum(sizes) == ROWS


def with_runs(path: Path) -> None:
    """A table of runs without a declared key, which is put in order as a whole, so that a run that stands in it twice doubles no result."""
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE test_runs AS SELECT i AS run_id, repeat('x', 200) AS test_name, true AS success FROM range(1, 60_001) AS t(i)"
        )
        connection.execute("ALTER TABLE performance_results ADD COLUMN run_id INTEGER; UPDATE performance_results SET run_id = result_id")


def test_what_takes_more_memory_than_the_copys_pages_may_is_read_all_the_same(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_runs(large)
    monkeypatch.setattr(snapshot, "_MEMORY", "12MB")
    rows, reader = read(large)
    assert throughputs(rows) == EVERYTHING
    assert reader.holds()["count"] == 1


def test_too_little_memory_is_told_and_is_no_damage(large: Path) -> None:
    with_runs(large)
    with duckdb.connect(str(large), config={"memory_limit": "12MB", "temp_directory": ""}) as host:
        reader = BenchmarkSource(str(large), host_connection=lambda: host)
        layout, ids = reader.ids()
        with pytest.raises(SourceInvalid, match=r"memory there is.*more memory, or declare the primary keys"):
            list(reader.slices(layout, ids.combine_chunks().sort()))


def test_what_is_read_is_what_stood_there_when_the_copy_was_made(large: Path) -> None:
    """The writer goes on meanwhile, and is kept from nothing."""
    reader = BenchmarkSource(str(large))
    layout, ids = reader.ids()
    slices = reader.slices(layout, ids.combine_chunks().sort())
    rows = [next(slices)]
    with duckdb.connect(str(large)) as connection:
        connection.execute("UPDATE performance_results SET throughput_items_per_second = -1")
    rows += slices
    assert throughputs(pa.concat_tables(rows)) == EVERYTHING


def test_what_a_killed_writer_left_in_the_log_is_read(large: Path) -> None:
    code = (
        "import duckdb, sys, time\n"
        f"c = duckdb.connect({str(large)!r}); c.execute('PRAGMA disable_checkpoint_on_shutdown')\n"
        f"c.execute('INSERT INTO performance_results SELECT {ROWS} + 1, model_name, hardware_type, {ROWS} + 1, 1.0 "
        "FROM performance_results WHERE result_id = 1')\n"
        "print('written', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert large.with_name("bench.duckdb.wal").exists()
    rows, reader = read(large)
    assert throughputs(rows) == [*EVERYTHING, ROWS + 1.0]
    assert reader.holds()["count"] == 1


def test_a_file_that_a_writer_holds_is_waited_for(large: Path) -> None:
    reader = BenchmarkSource(str(large), busy_timeout_s=0.2)
    layout, ids = reader.ids()
    code = f"import duckdb, sys\nc = duckdb.connect({str(large)!r}); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "held\n"
        with pytest.raises(SourceBusy, match=str(writer.pid)):
            next(reader.slices(layout, ids.combine_chunks().sort()))
        writer.communicate("")


def test_what_this_process_itself_may_write_is_not_copied(large: Path) -> None:
    """Nothing keeps it from writing in the middle of the copy."""
    with duckdb.connect(str(large)) as writing:
        rows, reader = read(large)
        writing.execute("SELECT 1")
    assert throughputs(rows) == EVERYTHING
    assert reader.holds()["count"] > 1


@pytest.mark.parametrize("limit", ["_LARGEST_BYTES", "_LONGEST_S"])
def test_what_takes_too_long_to_copy_is_read_in_slices(large: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(snapshot, limit, 0)
    rows, reader = read(large)
    assert throughputs(rows) == EVERYTHING
    assert reader.holds()["count"] > 1


@pytest.mark.parametrize(
    ("seconds", "copies", "is_copied"),
    [
        ([0.2, 0.01], 3, True),
        ([0.2, 0.2], 2, False),
        ([9.0, 0.01], 1, False),
    ],
    ids=["slow once: the disk had to be waited for", "slow again", "far too slow to be tried again"],
)
def test_a_copy_is_made_where_it_is_quick_at_the_second_try(
    large: Path, monkeypatch: pytest.MonkeyPatch, seconds: list[float], copies: int, is_copied: bool
) -> None:
    made: list[float] = []
    copy = snapshot._copy

    def timed(file: Path, place: str) -> float:
        made.append(copy(file, place))
        return seconds[len(made) - 1] if len(made) <= len(seconds) else 0.01

    monkeypatch.setattr(snapshot, "_copy", timed)
    monkeypatch.setattr(snapshot, "_LONGEST_S", 0.05)
    rows, reader = read(large)
    assert throughputs(rows) == EVERYTHING
    assert len(made) == copies
    assert (reader.holds()["count"] == 1) is is_copied


FAKES = {
    "no cp": None,
    "a full disk": "exit 1",
    "a disk that is full the second time": 'test -e "$0.twice" && exit 1; touch "$0.twice"; exec /bin/cp "$@"',
    "a copy that is damaged": 'shift; for last; do :; done; echo nonsense > "$last/bench.duckdb"',
}


@pytest.mark.parametrize("fake", FAKES)
def test_where_no_copy_can_be_made_the_file_is_read_in_slices(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = FAKES[fake]
    if script is not None:
        (programs / "cp").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "cp").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs) if script is None else f"{programs}{os.pathsep}{os.environ['PATH']}")
    rows, _ = read(large)
    assert throughputs(rows) == EVERYTHING


def test_where_nothing_may_be_written_the_file_is_read_in_slices(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    rows, reader = read(large)
    assert throughputs(rows) == EVERYTHING
    assert reader.holds()["count"] > 1


def test_a_name_that_looks_like_an_option_is_copied_too(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = large.rename(large.with_name("-rf it's; $(x).duckdb"))
    monkeypatch.chdir(odd.parent)
    rows, reader = read(Path(odd.name))
    assert throughputs(rows) == EVERYTHING
    assert reader.holds()["count"] == 1
