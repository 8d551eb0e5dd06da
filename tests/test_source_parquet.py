"""A Parquet file of flat results is a benchmark file too: read by role, by nobody's leave, and nothing but that file."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.errors import SourceError, SourceInvalid, SourceLayoutError, SourceMissing
from benchbridge_plugin.layout import ROLES
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.parquet import ParquetSource, open_source
from benchbridge_plugin.source import BenchmarkSource
from tests.benchmark_files import read_all
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import SAMPLE_CSV

RESULT = {
    "result_id": "r1",
    "model_name": "gpt2",
    "model_family": "gpt",
    "hardware_type": "cuda",
    "device_name": "H100",
    "precision": "fp16",
    "mode": "training",
    "batch_size": 8,
    "sequence_length": 128,
    "throughput_items_per_second": 800.0,
    "average_latency_ms": 10.0,
    "memory_peak_mb": 512.0,
    "started_at": "2026-11-01T10:00:00+02:00",
}


def write(path: Path, *rows: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{**RESULT, **row} for row in rows]), path, **options)
    return path


def measured(path: Path) -> list[dict[str, Any]]:
    """The file's results as measurements, in the order of their ids."""
    source = open_source(str(path))
    layout, ids = source.ids()
    mapper = Mapper(Rules("bench"))
    batch = mapper.measure(source.read(layout, ids.cast(pa.string()).combine_chunks()), SinkProfile(precisions=("fp32", "fp16", "bf16")))
    mapper.close()
    return sorted(batch.to_pylist(), key=lambda row: str(row["result_id"]))


def test_the_ending_decides_what_a_file_is_read_as(tmp_path: Path) -> None:
    """In upper case, too."""
    assert type(open_source("a.parquet")) is type(open_source("A.PARQUET")) is ParquetSource
    assert type(open_source("a.duckdb")) is type(open_source("parquet")) is BenchmarkSource


def test_a_flat_row_has_everything_itself(tmp_path: Path) -> None:
    """Model, hardware, times, mode and figures become the measurement that was made."""
    (row,) = measured(write(tmp_path / "r.parquet", {}))
    assert row["reason_code"] is None
    said = ("model_name", "model_family", "hardware_platform", "precision", "mode", "batch_size", "sequence_length")
    figures = ("throughput", "latency", "memory_usage")
    assert [row[name] for name in (*said, *figures)] == ["gpt2", "gpt", "cuda", "fp16", "training", 8, 128, 800.0, 10.0, 512.0]
    assert row["measured_at"] == datetime(2026, 11, 1, 8, tzinfo=UTC)


def test_all_results_of_the_sample_are_measurements(tmp_path: Path) -> None:
    """The CSV that the project ships, as Parquet with an id."""
    path = tmp_path / "h100.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT row_number() OVER () AS id, * FROM read_csv('{SAMPLE_CSV}')) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 2048)"
        )
    rows = measured(path)
    assert len(rows) == 1212
    assert {row["reason_code"] for row in rows} == {None}
    assert {row["mode"] for row in rows} == {"inference", "training"}


def test_reads_have_the_columns_of_the_roles_and_every_row_once(tmp_path: Path) -> None:
    """Whatever the type of the id, in slices and by id; no moment counts as holding the file."""
    arrow = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
    for name, ids in (("text", ["b", "a", "ä"]), ("number", [3, 1, 2]), ("double", [1.5, 2.5, -1.0])):
        source = open_source(str(write(tmp_path / f"{name}.parquet", *({"result_id": one} for one in ids))))
        assert {row["result_id"] for row in read_all(source)} == {str(one) for one in ids}
        layout, _ = source.ids()
        found = source.read(layout, pa.array([str(ids[0]), "none"]))
        assert [(field.name, field.type) for field in found.schema] == [(role, arrow[kind]) for role, kind in ROLES.items()]
        assert found.column("result_id").to_pylist() == [str(ids[0])]
        assert source.holds()["count"] == 0


def test_extras_of_any_type_go_along_as_json(tmp_path: Path) -> None:
    """A struct and a list as well as text with JSON in it."""
    for extras in ({"depth": 3}, [1, 2], '{"depth": 3}'):
        source = open_source(str(write(tmp_path / "r.parquet", {"metrics": extras})))
        (row,) = read_all(source)
        assert row["extras"].replace(" ", "") in ('{"depth":3}', "[1,2]")


@pytest.mark.parametrize("missing", ["result_id", "model_name", "hardware_type"])
def test_a_column_that_must_be_there_is_named(missing: str, tmp_path: Path) -> None:
    """With what was looked for and what there is; nothing is guessed from a row's place in the file."""
    path = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist([{name: value for name, value in RESULT.items() if name != missing}]), path)
    with pytest.raises(SourceLayoutError) as caught:
        open_source(str(path)).layout()
    assert missing in caught.value.message
    assert "its columns are: " in caught.value.message
    assert "table" not in caught.value.message


# -- hostile names --------------------------------------------------------------------------------------------------------------------------


HOSTILE = (
    *(
        "*.parquet",
        "[ab].parquet",
        "?.parquet",
        "**.parquet",
        "[!a].parquet",
        "{a,b}.parquet",
        "d[1]*/r.parquet",
        "model_name=evil/r.parquet",
    ),
    *("q'); DROP TABLE x; --\".parquet", "new\nline.parquet", "back\\slash.parquet", "%41.parquet", "s3:r.parquet", "$1.parquet"),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_any_name_is_read_and_no_other(name: str, tmp_path: Path) -> None:
    """DuckDB takes a path for a pattern, and a folder called x=1 for a column."""
    for other in ("a.parquet", "b.parquet", "d1x/r.parquet"):
        write(tmp_path / other, {"result_id": other, "model_name": other})
    path = write(tmp_path / name, {"model_name": "right"})
    assert [row["model_name"] for row in read_all(open_source(str(path)))] == ["right"]


def test_the_database_that_reads_it_can_open_nothing_else(tmp_path: Path) -> None:
    """Neither by accident nor by what stands in the file."""
    other = write(tmp_path / "other.parquet", {})
    source = open_source(str(write(tmp_path / "r.parquet", {})))
    with source._session(wait=False) as connection:
        for sql in (f"SELECT * FROM read_parquet('{other}')", f"COPY (SELECT 1) TO '{tmp_path}/out.csv'", f"ATTACH '{tmp_path}/x.duckdb'"):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.parquet", "r.parquet"]


# -- what can be wrong ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.9, 0.999])
def test_a_file_that_is_not_whole_is_told_and_looked_at_again(share: float, tmp_path: Path) -> None:
    """It may still be written: nothing is lost."""
    path = write(tmp_path / "r.parquet", *({"result_id": str(number)} for number in range(1000)))
    content = path.read_bytes()
    path.write_bytes(content[: max(int(len(content) * share), int(share > 0))])
    with pytest.raises(SourceInvalid) as caught:
        read_all(open_source(str(path)))
    assert str(path) in caught.value.message
    assert caught.value.guidance
    path.write_bytes(content)
    assert len(read_all(open_source(str(path)))) == 1000


def test_what_is_no_parquet_file_is_said_to_be_none(tmp_path: Path) -> None:
    """Text, a directory of part files, a pipe, a missing file, damage inside."""
    path = tmp_path / "r.parquet"
    with pytest.raises(SourceMissing, match="no benchmark database at"):
        open_source(str(path)).signature()
    path.write_text("id,model\n" * 1000)
    with pytest.raises(SourceInvalid, match="is not a Parquet file, or not written to its end"):
        open_source(str(path)).layout()
    path.unlink()
    path.mkdir()
    with pytest.raises(SourceInvalid, match="is a directory, not a Parquet file"):
        open_source(str(path)).layout()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(SourceInvalid, match="not a Parquet file"):
        open_source(str(path)).layout()
    path.unlink()
    content = bytearray(write(path, *({"result_id": str(number)} for number in range(5000))).read_bytes())
    content[100:2000] = os.urandom(1900)
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_all(open_source(str(path)))
    assert str(path) in caught.value.message


def test_a_file_that_is_replaced_while_it_is_read_is_one_or_the_other(tmp_path: Path) -> None:
    """A writer that renames a whole file into its place is never in the way, and is never seen in the middle."""
    path = write(tmp_path / "r.parquet", *({"result_id": f"0-{number}"} for number in range(500)))
    done = threading.Event()

    def replace() -> None:
        for turn in range(1, 40):
            write(tmp_path / ".new.parquet", *({"result_id": f"{turn}-{number}"} for number in range(500))).replace(path)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        _, ids = open_source(str(path)).ids()
        assert len({one.partition("-")[0] for one in ids.to_pylist()}) == 1
        assert len(ids) == 500
    writer.join()


# -- delivery -------------------------------------------------------------------------------------------------------------------------------


def test_a_parquet_file_is_delivered_once_alone_and_among_others(tmp_path: Path) -> None:
    """Rows that are added and changed are found; its ledger is beside it; nothing is sent twice when it becomes one of several."""
    recent = {"started_at": datetime.now(UTC).isoformat()}
    path = write(tmp_path / "runs/p.parquet", *({"result_id": str(number), **recent} for number in range(3)))
    with BaseContractServer() as api:
        with BenchmarkPredictivePerformanceBridge(path, api.url, settle_after_s=0.1) as bridge:
            assert bridge.sync_recent_results()["synced"] == 3
            write(
                path,
                *({"result_id": str(number), **recent} for number in (0, 1, 3)),
                {"result_id": "2", "average_latency_ms": 10.1, **recent},
            )
            assert bridge.sync_recent_results()["synced"] == 2
            assert bridge.sync_recent_results()["total"] == 0
            accounting = bridge.accounting()
            assert (accounting["delivered"], accounting["superseded"], accounting["balanced"]) == (4, 1, True)
            assert bridge.check_connections()["benchmark_db"] is True
        assert Path(f"{path}.bridge.sqlite").exists()
        with BenchmarkPredictivePerformanceBridge(tmp_path / "runs", api.url, settle_after_s=0.1) as bridge:
            assert (bridge.sync_recent_results()["synced"], bridge.source_names()) == (0, ["p"])
        assert len(api.rows) == 5
