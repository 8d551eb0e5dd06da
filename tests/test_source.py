"""The benchmark file is read whole, by nobody's leave but its writer's, and is left as it was."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchbridge_plugin.errors import SourceBusy, SourceError, SourceInvalid, SourceLayoutError, SourceMissing
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.source import BenchmarkSource
from tests.kit.layouts import BenchmarkDatabase, build

ROOT = Path(__file__).parents[1]

_BUILT: dict[tuple[str, int], bytes] = {}


def filled(directory: Path, layout: str = "V1", limit: int = 40) -> Path:
    """A benchmark file, made once and then copied."""
    path = directory / "bench.duckdb"
    if (layout, limit) not in _BUILT:
        build(layout, path, limit=limit)
        _BUILT[layout, limit] = path.read_bytes()
    path.write_bytes(_BUILT[layout, limit])
    return path


def everything(source: BenchmarkSource) -> pa.Table:
    """All rows, as a comparison reads them, in the order of their ids."""
    layout, ids = source.ids()
    ids = pc.unique(ids.drop_null())
    slices = list(source.slices(layout, ids.take(pc.array_sort_indices(ids))))
    return pa.concat_tables(slices).sort_by("result_id") if slices else pa.table({"result_id": pa.array([], pa.string())})


def change(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """The file, held read-write by another process until its stdin is closed."""
    command = [sys.executable, "-m", "tests.kit.writer", str(path), "--hold"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.stdin.close()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)


# -- what cannot be opened ------------------------------------------------------------------------------------------------------------------


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("model,throughput\ngpt2,100\n" * 1000)


def folder(path: Path) -> None:
    path.mkdir()


def parquet_inside(path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 1 AS id) TO '{path}' (FORMAT parquet)")


def newer(path: Path) -> None:
    """As a DuckDB of the future writes it: the storage version is the number after the magic bytes, and a checksum stands before them."""
    content = bytearray(filled(path.parent).read_bytes())
    assert content[8:12] == b"DUCK"
    content[12:20] = struct.pack("<Q", 9999)
    path.write_bytes(content)
    with pytest.raises(duckdb.Error) as caught:
        duckdb.connect(str(path), read_only=True)
    if checksum := re.search(r"computed checksum (\d+)", str(caught.value)):
        content[:8] = struct.pack("<Q", int(checksum[1]))
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "kind", "says", "todo"),
    [
        (missing, SourceMissing, "no benchmark database at", "benchmark_db_path"),
        (empty, SourceInvalid, "is empty", "benchmark_db_path"),
        (text, SourceInvalid, "is not a DuckDB database", "benchmark_db_path"),
        (folder, SourceInvalid, "is a directory", "benchmark_db_path"),
        (parquet_inside, SourceInvalid, "is not a DuckDB database", "benchmark_db_path"),
        (newer, SourceInvalid, "was written by a newer DuckDB", "pip install -U duckdb"),
    ],
)
def test_a_file_that_is_no_benchmark_database_is_named_with_what_to_do(
    make: Callable[[Path], None], kind: type[SourceError], says: str, todo: str, tmp_path: Path
) -> None:
    """Each has its class, one sentence with the path, and a way out; looking creates no file."""
    path = tmp_path / "what.duckdb"
    make(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SourceError) as caught:
        BenchmarkSource(str(path)).ids()
    assert type(caught.value) is kind
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert todo in caught.value.guidance
    assert caught.value.fields["path"] == str(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", ":memory:", "what.parquet", "what.csv", "what.json", "nul\0byte", "x" * 5000])
def test_a_path_that_duckdb_would_take_for_something_else_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB opens an in-memory database for these; an empty benchmark must not come of a slip of the pen."""
    monkeypatch.chdir(tmp_path)
    if name.startswith("what."):
        Path(name).write_text("id\n1\n")
    before = sorted(tmp_path.iterdir())
    source = BenchmarkSource(name)
    for read in (source.layout, source.signature):
        with pytest.raises((SourceMissing, SourceInvalid)):
            read()
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    """A process without the right gets the sentence about permissions. Root has every right, so it is given up first."""
    path = filled(tmp_path)
    script = """if True:
        import os, sys
        from benchbridge_plugin.source import BenchmarkSource
        from benchbridge_plugin.errors import SourceError
        import duckdb
        os.chdir(os.path.dirname(sys.argv[1]))
        if os.getuid() == 0:
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
        try:
            BenchmarkSource(sys.argv[2]).layout()
        except SourceError as error:
            print(type(error).__name__, error)
    """
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)  # noqa: PTH101
    path.chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), path.name],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.startswith("SourceInvalid")
    assert "may not be read by this user" in done.stdout
    assert "chmod a+r" in done.stdout


@pytest.mark.parametrize("share", [0.000001, 0.00001, 0.001, 0.0025, 0.005, 0.25, 0.5])
def test_a_truncated_file_is_a_source_error_wherever_it_ends(share: float, tmp_path: Path) -> None:
    """Cut early it fails to open, cut late it fails while it is read; both are told as damage."""
    content = filled(tmp_path, limit=3000).read_bytes()
    path = tmp_path / "cut.duckdb"
    path.write_bytes(content[: max(1, int(len(content) * share))])
    with pytest.raises(SourceInvalid, match=r"cannot be read|is not a DuckDB database") as caught:
        everything(BenchmarkSource(str(path)))
    assert caught.value.guidance


def test_a_path_with_lock_in_it_is_not_taken_for_a_locked_file(tmp_path: Path) -> None:
    """The path is part of DuckDB's message: a broken file in `clock/` fails at once and is not waited for."""
    path = tmp_path / "could not set lock" / "clock.duckdb"
    path.parent.mkdir()
    text(path)
    slept: list[float] = []
    with pytest.raises(SourceInvalid):
        BenchmarkSource(str(path), sleep=slept.append).layout()
    assert slept == []


def test_a_cell_that_cannot_be_cast_stops_nothing(tmp_path: Path) -> None:
    """A list or a word where a number should be is none; as a figure it is NaN, which is no number either, and is told."""
    path = tmp_path / "bench.duckdb"
    number_rows(path, "INTEGER", "i", 2)
    change(
        path,
        "ALTER TABLE performance_results ADD COLUMN batch_size INTEGER[] DEFAULT [8]",
        "ALTER TABLE performance_results ADD COLUMN throughput_items_per_second VARCHAR DEFAULT 'fast'",
        "ALTER TABLE performance_results ADD COLUMN sequence_length VARCHAR DEFAULT '77'",
    )
    for row in everything(BenchmarkSource(str(path))).to_pylist():
        assert (row["batch_size"], str(row["throughput"]), row["sequence_length"]) == (None, "nan", 77)


# -- a file that somebody else has ----------------------------------------------------------------------------------------------------------


def test_a_writer_in_another_process_is_named_at_once_when_nobody_waits(tmp_path: Path) -> None:
    """With wait=False a busy file is an answer, not a delay."""
    path = filled(tmp_path)
    slept: list[float] = []
    source = BenchmarkSource(str(path), sleep=slept.append)
    layout, ids = source.ids()
    with held(path) as process:
        for read in (
            lambda: source.layout(wait=False),
            lambda: source.ids(wait=False),
            lambda: list(source.slices(layout, ids.combine_chunks(), wait=False)),
            lambda: source.read(layout, pa.array(["1"]), wait=False),
        ):
            with pytest.raises(SourceBusy) as caught:
                read()
            assert caught.value.fields["pid"] == process.pid
            assert f"process {process.pid}" in caught.value.message
            assert "try again" in caught.value.guidance
    assert slept == []


def test_waiting_goes_on_until_the_writer_is_gone(tmp_path: Path) -> None:
    """The read that had to wait succeeds as soon as the file is free."""
    path = filled(tmp_path)
    with held(path) as process:
        source = BenchmarkSource(str(path), sleep=lambda seconds: let_go(process))
        _, ids = source.ids()
    assert len(ids) == 40


def test_waiting_ends_after_the_time_that_was_set_with_growing_pauses(tmp_path: Path) -> None:
    """Pauses grow from 20 to 500 ms, each drawn from its upper half, and then it is busy."""
    path = filled(tmp_path)
    pauses: list[float] = []
    spans: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        spans.append((low, high))
        return low

    with held(path):
        source = BenchmarkSource(str(path), busy_timeout_s=0.3, sleep=lambda seconds: pauses.append(seconds), jitter=jitter)
        with pytest.raises(SourceBusy):
            source.layout()
    assert spans[0] == (0.01, 0.02)
    assert pauses == sorted(pauses)
    assert max(high for _, high in spans) <= 0.5
    assert all(low == high / 2 for low, high in spans)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_this_process_has_open_is_shared(read_only: bool, tmp_path: Path) -> None:
    """Whichever way the host holds it, it is read, and the host's connection lives on."""
    path = filled(tmp_path)
    with duckdb.connect(str(path), read_only=read_only) as host:
        assert len(everything(BenchmarkSource(str(path)))) == 40
        assert host.execute("SELECT count(*) FROM performance_results").fetchall() == [(40,)]


def test_a_host_with_settings_of_its_own_is_told_to_pass_its_connection(tmp_path: Path) -> None:
    """DuckDB refuses a second connection with another configuration; the way out is named."""
    path = filled(tmp_path)
    with (
        duckdb.connect(str(path), config={"threads": "1"}),
        pytest.raises(SourceBusy, match="another connection") as caught,
    ):
        BenchmarkSource(str(path)).layout(wait=False)
    assert "pass its connection" in caught.value.guidance


def test_a_host_connection_is_used_through_cursors_and_the_path_is_never_opened(tmp_path: Path) -> None:
    """The host's connection keeps its settings and stays open; the path could not even be opened."""
    path = filled(tmp_path)
    with duckdb.connect(str(path)) as host:
        host.execute("SET TimeZone = 'Asia/Tokyo'")
        source = BenchmarkSource(str(tmp_path / "missing.duckdb"), host_connection=lambda: host)
        rows = everything(source)
        assert len(rows) == 40
        assert len(source.read(source.layout(), pa.array(["1", "2"]))) == 2
        assert host.execute("SELECT current_setting('TimeZone')").fetchall() == [("Asia/Tokyo",)]
        assert source.holds()["count"] == 0
    assert not (tmp_path / "missing.duckdb").exists()
    assert rows.equals(everything(BenchmarkSource(str(path))))


def test_databases_that_a_host_has_attached_are_not_mixed_in(tmp_path: Path) -> None:
    """Another database with tables of the same names stands beside the host's own."""
    path = filled(tmp_path)
    wanted = everything(BenchmarkSource(str(path)))
    with duckdb.connect(str(path)) as host:
        host.execute("ATTACH ':memory:' AS other")
        host.execute("CREATE TABLE other.performance_results (performance_id INTEGER, latency_ms DOUBLE, sequence_length INTEGER)")
        host.execute("CREATE TEMP TABLE performance_results AS SELECT 1 AS id")
        assert everything(BenchmarkSource(str(path), host_connection=lambda: host)).equals(wanted)


def test_threads_share_a_source_and_each_gets_its_own_rows(tmp_path: Path) -> None:
    """Eight threads over one host connection read the same as one."""
    path = filled(tmp_path)
    with duckdb.connect(str(path)) as host, ThreadPoolExecutor(8) as pool:
        source = BenchmarkSource(str(path), host_connection=lambda: host)
        layout = source.layout()
        reads = list(pool.map(lambda number: source.read(layout, pa.array([str(number)])), range(1, 41)))
    assert [table.column("result_id").to_pylist() for table in reads] == [[str(number)] for number in range(1, 41)]


@pytest.fixture
def opener() -> Iterator[Callable[[Path], str]]:
    """Another process that opens a file read-write when it is asked to, and says what came of it."""
    script = """if True:
        import duckdb, sys
        for line in sys.stdin:
            try:
                duckdb.connect(line.strip()).close()
                print("opened", flush=True)
            except duckdb.Error as error:
                print(str(error).splitlines()[0], flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(path: Path) -> str:
            stdin.write(f"{path}\n")
            stdin.flush()
            return stdout.readline().strip()

        yield ask
        stdin.close()


def test_the_file_is_free_for_a_writer_after_every_read(opener: Callable[[Path], str], tmp_path: Path) -> None:
    """Between two slices, and after each method, somebody else can open it read-write at once."""
    path = filled(tmp_path, limit=6000)
    source = BenchmarkSource(str(path))
    source.signature()
    assert opener(path) == "opened"
    layout, ids = source.ids()
    assert opener(path) == "opened"
    slices = 0
    for _ in source.slices(layout, ids.combine_chunks()):
        slices += 1
        assert opener(path) == "opened"
    assert slices > 1
    source.read(layout, pa.array(["1"]))
    assert opener(path) == "opened"
    with pytest.raises(SourceError):
        source.read(type(layout)(**{**{name: getattr(layout, name) for name in layout.__slots__}, "columns": "nonsense"}), pa.array(["1"]))
    assert opener(path) == "opened"


def test_without_a_copy_no_more_is_read_at_once_than_was_asked_for_either(tmp_path: Path) -> None:
    source = BenchmarkSource(str(filled(tmp_path, limit=6000)))
    layout, ids = source.ids()
    sizes = [len(rows) for rows in source.slices(layout, ids.combine_chunks().sort(), most=700)]
    assert max(sizes) == 700
    assert sum(sizes) == 6000


def test_reading_leaves_every_byte_of_the_file_as_it_was(tmp_path: Path) -> None:
    """Neither content nor times change, and no file appears beside it."""
    path = filled(tmp_path)
    source = BenchmarkSource(str(path))
    before = hashlib.sha256(path.read_bytes()).hexdigest(), source.signature(), sorted(tmp_path.iterdir())
    everything(source)
    source.read(source.layout(), pa.array(["1"]))
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), source.signature(), sorted(tmp_path.iterdir())) == before


def test_every_commit_changes_the_signature(tmp_path: Path) -> None:
    """It is made of times and sizes of file and log, so what is only in the log counts too."""
    path = tmp_path / "bench.duckdb"
    database = BenchmarkDatabase(path)
    source = BenchmarkSource(str(path))
    seen = {str(source.signature())}
    with duckdb.connect(str(path)) as connection:
        for number in range(3):
            connection.execute("INSERT INTO models (model_id, model_name) VALUES (?, 'gpt2')", [number])
            seen.add(str(source.signature()))
    seen.add(str(source.signature()))
    database.insert()
    seen.add(str(source.signature()))
    assert len(seen) == 6


def test_holds_are_measured_and_forgotten(tmp_path: Path) -> None:
    """Each open counts once; a run starts anew."""
    source = BenchmarkSource(str(filled(tmp_path)))
    assert source.holds() == {"count": 0, "p95_ms": 0.0, "max_ms": 0.0}
    source.layout()
    source.ids()
    held_ms = source.holds()
    assert held_ms["count"] == 2
    assert 0 < held_ms["p95_ms"] <= held_ms["max_ms"] < 5000
    source.forget_holds()
    assert source.holds()["count"] == 0


def test_time_spent_waiting_for_a_writer_does_not_make_slices_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice is sized by how long its query ran, not by how long it took to get at the file."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "BIGINT", "i", 12_000)
    layout, ids = BenchmarkSource(str(path)).ids()
    now = 0.0
    with held(path) as process, monkeypatch.context() as patched:
        patched.setattr("benchbridge_plugin.source.time", SimpleNamespace(monotonic=lambda: now))

        def sleep(seconds: float) -> None:  # the only time that passes
            nonlocal now
            now += 10.0
            let_go(process)

        slices = BenchmarkSource(str(path), sleep=sleep).slices(layout, ids.combine_chunks().sort())
        assert len(next(slices)) == 5000
        assert now == 10.0
        assert len(next(slices)) == 7000


# -- slices ---------------------------------------------------------------------------------------------------------------------------------


def number_rows(path: Path, kind: str, value: str, rows: int) -> None:
    change(
        path,
        "CREATE TABLE models (model_id INTEGER PRIMARY KEY, model_name VARCHAR)",
        "INSERT INTO models VALUES (1, 'gpt2')",
        "CREATE TABLE hardware_platforms (hardware_id INTEGER PRIMARY KEY, hardware_type VARCHAR)",
        "INSERT INTO hardware_platforms VALUES (1, 'cuda')",
        f"CREATE TABLE performance_results (id {kind}, model_id INTEGER, hardware_id INTEGER, latency_ms DOUBLE)",
        f"INSERT INTO performance_results SELECT {value}, 1, 1, i FROM range({rows}) AS r(i) ORDER BY hash(i)",
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("INTEGER", "i"),
        ("INTEGER", "i - 6000"),
        ("BIGINT", "9223372036854775807 - i * 3"),
        ("UBIGINT", "CAST(18446744073709551615 - i AS UBIGINT)"),
        ("HUGEINT", "170141183460469231731687303715884105727 - i * CAST(170141183460469231731687303715884 AS HUGEINT)"),
        ("VARCHAR", "'r-' || i"),
        ("VARCHAR", "chr(CAST(33 + i % 94 AS INTEGER)) || chr(CAST(19968 + i % 20000 AS INTEGER)) || i || chr(39)"),
        ("VARCHAR COLLATE NOCASE", "chr(CAST(65 + i % 2 * 32 AS INTEGER)) || i // 2"),
        ("UUID", "CAST(md5(CAST(i AS VARCHAR)) AS UUID)"),
        ("DECIMAL(18,3)", "i / 7.0 - 500"),
        ("DOUBLE", "i / 7.0 - 500"),
        ("DOUBLE", "CASE i WHEN 0 THEN 'nan' WHEN 1 THEN 'inf' WHEN 2 THEN '-inf' ELSE i / 3.0 END"),
        ("DATE", "DATE '2000-01-01' + CAST(i AS INTEGER)"),
        ("TIMESTAMPTZ", "TIMESTAMPTZ '2024-03-30 00:00:00+01' + to_minutes(i)"),
        ("BLOB", "encode(CAST(i AS VARCHAR))"),
        ("JSON", "to_json({'n': i})"),
        ("INTEGER[]", "[i, i + 1]"),
    ],
)
def test_slices_cover_every_row_exactly_once_whatever_the_ids_are(kind: str, value: str, tmp_path: Path) -> None:
    """Slices are ranges of sorted ids: the order of DuckDB and that of Arrow must be the same."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, kind, value, 11_000)
    source = BenchmarkSource(str(path))
    rows = everything(source)
    assert rows.column("latency_ms").sort().to_pylist() == list(range(11_000))
    assert len(set(rows.column("result_id").to_pylist())) == 11_000
    chosen = rows.column("result_id").take(pa.array([0, 5, 77, 10_999])).combine_chunks()
    assert sorted(source.read(source.layout(), chosen).column("result_id").to_pylist()) == sorted(chosen.to_pylist())


def test_numbers_beyond_a_decimal_are_read(tmp_path: Path) -> None:
    """Arrow has no type for 128 bits without a sign, so that these ids are compared as text."""
    path = tmp_path / "ids.duckdb"
    largest = 2**128 - 1
    number_rows(path, "UHUGEINT", f"CAST('{largest}' AS UHUGEINT) - CAST(i AS UHUGEINT)", 3)
    assert everything(BenchmarkSource(str(path))).column("result_id").to_pylist() == [str(largest - 2), str(largest - 1), str(largest)]


def test_an_enum_orders_by_declaration_and_still_no_row_is_lost(tmp_path: Path) -> None:
    """DuckDB compares enums by their place, Arrow by their text."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "ENUM('z', 'a', 'm')", "['z', 'a', 'm'][i + 1]", 3)
    assert everything(BenchmarkSource(str(path))).column("result_id").to_pylist() == ["a", "m", "z"]


@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_table_and_a_single_row_are_read(rows: int, tmp_path: Path) -> None:
    """No row gives no slice; one row gives one."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "INTEGER", "i", rows)
    source = BenchmarkSource(str(path))
    assert len(source.ids()[1]) == rows
    assert len(everything(source)) == rows
    assert len(source.read(source.layout(), pa.array([], pa.string()))) == 0


def test_ids_that_are_gone_or_make_no_sense_are_left_out(tmp_path: Path) -> None:
    """An id that is no number cannot be in a table of numbers."""
    source = BenchmarkSource(str(filled(tmp_path)))
    found = source.read(source.layout(), pa.array(["3", "99999", "r-000001", "", None]))
    assert found.column("result_id").to_pylist() == ["3"]


def test_rows_and_the_layout_they_have_are_looked_up_in_one_opening(tmp_path: Path) -> None:
    """A page that shows one result keeps a writer out once, and not twice."""
    source = BenchmarkSource(str(filled(tmp_path)))
    layout, rows = source.look_up(pa.array(["3", "99999"]))
    assert source.holds()["count"] == 1
    assert (layout, rows) == (source.layout(), source.read(layout, pa.array(["3"])))


def test_null_and_repeated_ids_are_told_as_they_are(tmp_path: Path) -> None:
    """Without a primary key both happen; ids() returns one for each row, and a repeated id brings all its rows."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "INTEGER", "CASE WHEN i < 3 THEN 7 WHEN i < 5 THEN NULL ELSE i + 100 END", 10)
    source = BenchmarkSource(str(path))
    _, ids = source.ids()
    assert (len(ids), ids.null_count) == (10, 2)
    assert everything(source).column("result_id").to_pylist().count("7") == 3


def test_a_schema_called_temp_is_in_nobodys_way(tmp_path: Path) -> None:
    """Names that DuckDB has for itself can be schemas of a file; every name we use is qualified to the end."""
    path = filled(tmp_path)
    for schema in ("temp", "system", "bench", "main2"):
        change(path, f'CREATE SCHEMA "{schema}"', f'CREATE TABLE bench."{schema}".performance_results (id INTEGER)')
    change(path, "CREATE TABLE bench.temp.benchbridge_wanted (id VARCHAR)")
    source = BenchmarkSource(str(path))
    assert len(everything(source)) == 40
    assert len(source.read(source.layout(), pa.array(["1"]))) == 1


@pytest.mark.parametrize("name", ["system", "temp", "main", "memory", 'a"b', "my db; DROP TABLE x", "数据", "performance_results", "x.y"])
def test_a_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    """DuckDB names the database after the file, and we quote that."""
    path = tmp_path / f"{name}.duckdb"
    path.write_bytes(filled(tmp_path).read_bytes())
    assert len(everything(BenchmarkSource(str(path)))) == 40


# -- nothing that the file defines takes part -----------------------------------------------------------------------------------------------

_REPLACED = (
    "md5 sha1 unhex hex encode concat lower upper trim left substr replace translate strlen length isnan isfinite coalesce json_valid "
    "json_extract_string json_object regexp_matches regexp_replace list_contains list_reduce count sum min max first any_value row_number "
    'array_agg list_filter epoch_us map chr abs greatest current_database hash "||" "+" "-" "*" "/" "=" "<>" "<" ">" ">=" "<=" "~~" "%" '
    '"and" "or" "not" "cast" "try_cast" "in" "binary" nullif ifnull'
)
SCALARS = _REPLACED.split()
TABLES = ["duckdb_tables", "duckdb_columns", "duckdb_constraints", "duckdb_views", "range", "unnest"]
#: What the catalogue functions of older versions call unqualified.
CALLED_UNQUALIFIED = ["current_database", '"*"', "duckdb_tables", "duckdb_columns", "duckdb_constraints", "duckdb_views"]
OLD = tuple(int(part) for part in duckdb.__version__.split(".")[:3]) < (1, 5, 6)
if OLD:
    SCALARS = [name for name in SCALARS if name not in CALLED_UNQUALIFIED]
    TABLES = [name for name in TABLES if name not in CALLED_UNQUALIFIED]


def reading(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a sync sees of a file: the comparison's columns and the measurements."""
    rows = everything(BenchmarkSource(str(path)))
    mapper = Mapper(Rules("bench"))
    try:
        profile = SinkProfile(capabilities=frozenset({"measured_at"}))
        return mapper.classify(rows, cutoff_us=None, model=None).to_pylist(), mapper.measure(rows, profile).to_pylist()
    finally:
        mapper.close()


def test_macros_of_the_file_change_nothing_of_what_is_read(tmp_path: Path) -> None:
    """A file can replace functions and operators for everybody who opens it. Hash and measurement stay those of the data."""
    path = filled(tmp_path)
    wanted = reading(path)
    defined = 0
    with duckdb.connect(str(path)) as connection:
        for name in SCALARS:
            try:
                connection.execute(f"CREATE MACRO {name}(x) AS 'evil', (x, y) AS 'evil', (x, y, z) AS 'evil'")
                defined += 1
            except duckdb.Error:  # DuckDB itself does not let it be replaced
                continue
        for name in TABLES:
            connection.execute(f"CREATE MACRO {name}() AS TABLE SELECT 'evil' AS table_name")
        assert connection.execute("SELECT md5('x'), 1 + 2").fetchall() == [("evil", "evil")]
    assert defined > 30
    assert reading(path) == wanted


@pytest.mark.skipif(not OLD, reason="this DuckDB calls the catalogue functions by their whole name")
@pytest.mark.parametrize("name", CALLED_UNQUALIFIED)
def test_an_older_duckdb_refuses_a_file_that_replaces_what_its_catalogue_calls(name: str, tmp_path: Path) -> None:
    """With one error, and nothing is read."""
    path = filled(tmp_path)
    evil = "() AS TABLE SELECT 'evil' AS table_name" if name.startswith("duckdb_") else "(x) AS 'evil', (x, y) AS 'evil'"
    change(path, f"CREATE MACRO {name}{evil}")
    with pytest.raises(SourceError):
        BenchmarkSource(str(path)).ids()


def test_a_generated_column_is_not_evaluated(tmp_path: Path) -> None:
    """Its expression can call a macro of the file, and that macro can read any file of this machine."""
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    path = tmp_path / "bench.duckdb"
    change(
        path,
        "CREATE TABLE models (model_id INTEGER, secret_ VARCHAR AS (upper(CAST(model_id AS VARCHAR))), model_name VARCHAR)",
        "CREATE TABLE hardware_platforms (hardware_id INTEGER, hardware_type VARCHAR)",
        'CREATE TABLE performance_results (id INTEGER, "batch_size" INTEGER DEFAULT 4, latency_ms DOUBLE DEFAULT 1, model_id INTEGER,'
        " hardware_id INTEGER, precision VARCHAR AS (upper(CAST(id AS VARCHAR))), test_case AS (lower('x')),"
        ' "timestamp" TIMESTAMP GENERATED ALWAYS AS (TRY_CAST(upper(CAST(id AS VARCHAR)) AS TIMESTAMP)))',
        "INSERT INTO models VALUES (1, 'gpt2')",
        "INSERT INTO hardware_platforms VALUES (1, 'cuda')",
        "INSERT INTO performance_results (id, model_id, hardware_id) VALUES (1, 1, 1)",
        f"CREATE MACRO upper(x) AS (SELECT content FROM read_text('{secret}'))",
    )
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("SELECT precision FROM performance_results").fetchall() == [("s3cret",)]
    (row,) = everything(BenchmarkSource(str(path))).to_pylist()
    assert (row["model_name"], row["batch_size"], row["latency_ms"]) == ("gpt2", 4, 1.0)
    assert (row["precision"], row["test_case"], row["result_time"]) == (None, None, None)
    change(
        path, "ALTER TABLE performance_results RENAME TO old",
        "CREATE TABLE performance_results (id INTEGER, model_id INTEGER, hardware_id INTEGER, latency_ms DOUBLE AS (id))",
    )  # fmt: skip
    with pytest.raises(SourceLayoutError, match=r"generated columns do not count|figure"):
        BenchmarkSource(str(path)).layout()


def test_a_view_in_place_of_a_table_is_never_opened(tmp_path: Path) -> None:
    """A view can read any file; only base tables count."""
    path = filled(tmp_path)
    change(
        path,
        "CREATE TABLE kept AS FROM performance_results",
        "DROP TABLE performance_batch_results",
        "DROP TABLE performance_results",
        "CREATE VIEW performance_results AS SELECT * FROM kept",
    )
    with pytest.raises(SourceLayoutError, match="no table performance_results") as caught:
        BenchmarkSource(str(path)).ids()
    assert "views" in caught.value.guidance


@pytest.mark.parametrize("table", ["models", "hardware_platforms"])
def test_a_view_in_place_of_what_results_refer_to_counts_as_missing(table: str, tmp_path: Path) -> None:
    """The same for the tables that are joined."""
    path = filled(tmp_path, "V7")
    change(path, f"ALTER TABLE {table} RENAME TO kept", f"CREATE VIEW {table} AS FROM kept")
    with pytest.raises(SourceLayoutError, match="model" if table == "models" else "hardware"):
        BenchmarkSource(str(path)).layout()


# -- what moves while we read ---------------------------------------------------------------------------------------------------------------


def test_times_with_a_zone_are_read_as_utc(tmp_path: Path) -> None:
    """Whatever zone the machine or the host's connection is in."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "INTEGER", "i", 1)
    change(path, "ALTER TABLE performance_results ADD COLUMN timestamp TIMESTAMPTZ DEFAULT TIMESTAMPTZ '2024-05-06 07:08:09+05'")
    assert everything(BenchmarkSource(str(path))).column("result_time").to_pylist() == ["2024-05-06 02:08:09+00"]
    with duckdb.connect(str(path)) as host:
        host.execute("SET TimeZone = 'America/New_York'")
        source = BenchmarkSource(str(path), host_connection=lambda: host)
        assert everything(source).column("result_time").to_pylist() == ["2024-05-06 02:08:09+00"]


def test_a_slice_also_returns_a_row_that_appeared_between_its_ids(tmp_path: Path) -> None:
    """It is new, and reading it early does no harm."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "INTEGER", "i * 2", 3)
    source = BenchmarkSource(str(path))
    layout, ids = source.ids()
    change(path, "INSERT INTO performance_results VALUES (3, 1, 1, 9.5)")
    (table,) = source.slices(layout, ids.combine_chunks().sort())
    assert sorted(table.column("result_id").to_pylist()) == ["0", "2", "3", "4"]


def test_a_layout_that_changes_between_two_reads_is_a_layout_error(tmp_path: Path) -> None:
    """The column that was there is gone: the next comparison finds the new layout."""
    path = tmp_path / "ids.duckdb"
    number_rows(path, "INTEGER", "i", 3)
    source = BenchmarkSource(str(path))
    layout = source.layout()
    change(path, "ALTER TABLE performance_results RENAME latency_ms TO average_latency_ms")
    with pytest.raises(SourceLayoutError, match="latency_ms"):
        source.read(layout, pa.array(["1"]))
    assert len(source.read(source.layout(), pa.array(["1"]))) == 1


def test_a_server_connection_that_is_closed_is_said_to_be_closed(tmp_path: Path) -> None:
    """The file itself is fine, so the error is about the server."""
    host = duckdb.connect(str(filled(tmp_path)))
    host.close()
    with pytest.raises(SourceError, match="server's own connection") as caught:
        BenchmarkSource(str(tmp_path / "bench.duckdb"), host_connection=lambda: host).ids()
    assert "keep the connection" in caught.value.guidance


def test_a_server_without_a_connection_leaves_the_file_to_us(tmp_path: Path) -> None:
    """`None` means: open it yourself, and that is a hold."""
    source = BenchmarkSource(str(filled(tmp_path)), host_connection=lambda: None)
    assert len(everything(source)) == 40
    assert source.holds()["count"] == 2


def test_a_thread_that_opens_and_closes_the_file_for_writing_does_not_break_a_read(tmp_path: Path) -> None:
    """The two modes meet at every possible moment; the read waits and succeeds."""
    path = filled(tmp_path)
    done = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not done.is_set():
            try:
                with duckdb.connect(str(path)) as connection:
                    connection.execute("UPDATE models SET version = 'x' WHERE model_id = 1")
                written += 1
            except duckdb.Error:  # refused, because a read has it just now
                continue

    thread = threading.Thread(target=write)
    thread.start()
    try:
        source = BenchmarkSource(str(path))
        assert [len(everything(source)) for _ in range(5)] == [40] * 5
    finally:
        done.set()
        thread.join()
    assert written


def test_a_file_that_others_in_this_process_open_and_close_all_the_time_is_read(tmp_path: Path) -> None:
    """A connection that joins one which is just being opened may find it half made."""
    build("V1", tmp_path / "bench.duckdb", limit=50)
    source = BenchmarkSource(str(tmp_path / "bench.duckdb"))
    layout, ids = source.ids()
    over = threading.Event()

    def open_and_close() -> None:
        while not over.is_set():
            duckdb.connect(str(tmp_path / "bench.duckdb"), read_only=True).close()

    others = [threading.Thread(target=open_and_close) for _ in range(2)]
    for other in others:
        other.start()
    wanted = ids.combine_chunks().cast(pa.string())
    try:
        assert {len(source.read(layout, wanted)) for _ in range(60)} == {50}
    finally:
        over.set()
        for other in others:
            other.join()
