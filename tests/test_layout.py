"""Columns are found by role in every layout, and an unknown layout is told what is missing."""

from __future__ import annotations

import csv
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from benchbridge_plugin import layout as layout_module
from benchbridge_plugin.errors import SourceLayoutError
from benchbridge_plugin.layout import ROLES, detect, is_generated
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.source import BenchmarkSource
from tests.kit.layouts import LAYOUTS, SAMPLE_CSV, BenchmarkDatabase, build

#: Also what the contract does not take, so that every row of the sample is a measurement.
EVERYTHING = SinkProfile(precisions=("fp32", "fp16", "bf16", "unknown"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    source = BenchmarkSource(str(path))
    layout, ids = source.ids()
    texts = pa.array([str(one) for one in ids.drop_null().to_pylist()], pa.string())
    return sorted(source.read(layout, texts).to_pylist(), key=lambda row: str(row["result_id"]))


def run(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)


def sample(*, any_case: bool) -> list[dict[str, str]]:
    with SAMPLE_CSV.open() as file:
        rows = [row for row in csv.DictReader(file) if any_case or row["mode"] == "inference"]
    return sorted(rows, key=lambda row: (row["started_at"], row["model_name"]))


def number(text: str) -> float | None:
    return float(text) if text else None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_result_of_a_layout_becomes_the_measurement_that_was_made(layout: str, tmp_path: Path) -> None:
    """What comes out is what stands in the sample's CSV, whatever the columns are called."""
    path = tmp_path / "bench.duckdb"
    build(layout, path)
    source = BenchmarkSource(str(path))
    found, ids = source.ids()
    mapper = Mapper(Rules("bench", default_precision="unknown"))
    batch = mapper.measure(source.read(found, pa.array([str(one) for one in ids.to_pylist()])), EVERYTHING)
    mapper.close()
    measured = {int(row["result_id"]): row for row in batch.to_pylist()}
    wanted = sample(any_case=layout in ("V1", "V4"))
    assert sorted(measured) == list(range(1, len(wanted) + 1))
    for result_id, row in enumerate(wanted, 1):
        got = measured[result_id]
        assert got["reason_code"] is None
        assert (got["model_name"], got["model_family"]) == (row["model_name"], row["model_family"])
        assert (got["hardware_platform"], got["mode"]) == (row["hardware_type"], row["mode"])
        assert got["batch_size"] == int(row["batch_size"])
        assert got["sequence_length"] == int(row["sequence_length"] or 128)
        assert got["precision"] == (row["precision"] if layout in ("V1", "V4", "V12") else "unknown")
        for name, column in (
            ("throughput", "throughput_items_per_second"),
            ("latency", "average_latency_ms"),
            ("memory_usage", "memory_peak_mb"),
        ):
            assert got[name] == (None if not row[column] else pytest.approx(float(row[column]), rel=1e-6))
        if layout in ("V7", "V12") or result_id % 10 == 1:  # the others have runs, and a run's start counts for its ten results
            assert got["measured_at"] == datetime.fromisoformat(row["started_at"])


@pytest.mark.parametrize(
    ("layout", "roles"),
    [
        (
            "V1",
            {
                "result_id": "performance_results.result_id",
                "extras": "performance_results.metrics",
                "run_success": "test_runs.success",
                "result_time": "performance_results.created_at",
                "precision": "performance_results.precision",
            },
        ),
        ("V4", {"simulated": "performance_results.simulation_mode", "hardware_simulated": "hardware_platforms.simulation_mode"}),
        (
            "V7",
            {
                "hardware_type": "hardware_platforms.type",
                "sequence_length": "performance_results.sequence_length",
                "latency_ms": "performance_results.average_latency_ms",
            },
        ),
        ("V9", {"simulated": "performance_results.is_simulated", "extras": "performance_results.metadata"}),
        (
            "V12",
            {
                "latency_ms": "performance_results.latency_ms",
                "memory_mb": "performance_results.memory_mb",
                "model_family": "models.model_type",
                "device_name": "hardware_platforms.hardware_name",
                "result_time": "performance_results.timestamp",
            },
        ),
    ],
)
def test_the_roles_say_which_column_they_are_read_from(layout: str, roles: dict[str, str], tmp_path: Path) -> None:
    """`doctor` shows them, so that a user sees what is read."""
    path = tmp_path / "bench.duckdb"
    build(layout, path, limit=1)
    found = BenchmarkSource(str(path)).layout().roles
    assert roles.items() <= found.items()
    assert set(found) <= set(ROLES)


MODELS = {"model_id": "INTEGER", "model_name": "VARCHAR"}
HARDWARE = {"hardware_id": "INTEGER", "hardware_type": "VARCHAR"}
RESULTS = {"id": "INTEGER", "model_id": "INTEGER", "hardware_id": "INTEGER", "latency_ms": "DOUBLE"}


@pytest.mark.parametrize(
    ("missing", "role", "tables"),
    [
        ("results", "results", {"results": RESULTS, "models": MODELS}),
        ("id", "result id", {"performance_results": {"uid": "INTEGER", "latency_ms": "DOUBLE"}, "models": MODELS}),
        ("figure", "a figure (throughput, latency or memory)", {"performance_results": {"id": "INTEGER", "speed": "DOUBLE"}}),
        ("models table", "model", {"performance_results": RESULTS, "hardware_platforms": HARDWARE}),
        ("model name", "model", {"performance_results": RESULTS, "models": {"model_id": "INTEGER", "label": "VARCHAR"}}),
        (
            "model reference",
            "model",
            {"performance_results": {"id": "INTEGER", "hardware_id": "INTEGER", "latency_ms": "DOUBLE"}, "models": MODELS},
        ),
        ("hardware table", "hardware", {"performance_results": RESULTS, "models": MODELS}),
        (
            "hardware type",
            "hardware",
            {"performance_results": RESULTS, "models": MODELS, "hardware_platforms": {"hardware_id": "INTEGER", "vendor": "VARCHAR"}},
        ),
    ],
)
def test_an_unknown_layout_is_told_the_missing_role_and_the_columns_that_are_there(
    missing: str, role: str, tables: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """The sentence is enough to add the name or to point at another file."""
    path = tmp_path / "unknown.duckdb"
    run(
        path,
        *(f"CREATE TABLE {name} ({', '.join(f'{column} {kind}' for column, kind in columns.items())})" for name, columns in tables.items()),
    )
    with pytest.raises(SourceLayoutError) as caught:
        BenchmarkSource(str(path)).layout()
    error = caught.value
    assert error.fields["role"] == role
    assert str(path) in error.message
    about = error.fields.get("table", "")
    for name in tables.get(str(about), tables):  # the columns of the table, or the tables when it is missing
        assert name in error.message
    assert error.guidance


@pytest.mark.parametrize(
    ("statement", "about", "said"),
    [
        (
            "ALTER TABLE performance_results RENAME model_id TO model_ref",
            "performance_results",
            "looked for model_id (which leads to models.model_name) or model_name in table performance_results; its columns are: id, model_ref,",
        ),
        (
            "ALTER TABLE performance_results RENAME hardware_id TO device",
            "performance_results",
            "looked for hardware_id (which leads to hardware_platforms.hardware_type) or hardware_type in table performance_results; its columns",
        ),
        (
            "ALTER TABLE models RENAME model_id TO number",
            "models",
            "looked for model_name in table performance_results, or for model_id or id in table models; its columns are: number, model_name.",
        ),
        (
            "ALTER TABLE models RENAME model_name TO label",
            "models",
            "looked for model_name in table performance_results, or for model_name or name in table models; its columns are: model_id, label.",
        ),
        (
            "ALTER TABLE models RENAME TO networks",
            "models",
            "or for model_name or name in table models; the tables are: hardware_platforms, networks, performance_results.",
        ),
    ],
)
def test_one_column_or_table_of_another_name_is_looked_for_where_it_was_missed(
    statement: str, about: str, said: str, tmp_path: Path
) -> None:
    """The columns of a table in which nothing is wrong would mislead; the names that would do instead are told, with what to do."""
    path = tmp_path / "bench.duckdb"
    tables = {"performance_results": RESULTS, "models": MODELS, "hardware_platforms": HARDWARE}
    run(path, *(f"CREATE TABLE {name} ({', '.join(f'{column} {kind}' for column, kind in tables[name].items())})" for name in tables))
    BenchmarkSource(str(path)).layout()
    run(path, statement)
    with pytest.raises(SourceLayoutError) as caught:
        BenchmarkSource(str(path)).layout()
    assert said in caught.value.message
    assert caught.value.fields["table"] == about
    assert caught.value.guidance.startswith("Rename the ")


def test_a_table_of_results_with_another_name_is_asked_about(tmp_path: Path) -> None:
    """It has what results have; the others have not."""
    path = tmp_path / "bench.duckdb"
    build("V1", path, limit=1)
    run(
        path,
        "CREATE TABLE perf_results AS FROM performance_results",
        "DROP TABLE performance_batch_results",
        "DROP TABLE performance_results",
    )
    with pytest.raises(SourceLayoutError, match=r"has no table performance_results; its tables are: .*perf_results") as caught:
        BenchmarkSource(str(path)).layout()
    assert caught.value.guidance.startswith("Did you mean perf_results, which has columns of results?")


def test_a_database_without_tables_says_so(tmp_path: Path) -> None:
    """`none` is said, not an empty list."""
    path = tmp_path / "empty.duckdb"
    run(path)
    with pytest.raises(SourceLayoutError, match="its tables are: none"):
        BenchmarkSource(str(path)).layout()


def test_names_are_found_in_any_case_and_other_names_may_be_hostile(tmp_path: Path) -> None:
    """Upper case is common; quotes, unicode and SQL in names of other columns are data."""
    path = tmp_path / "bench.duckdb"
    hostile = '"x""; DROP TABLE models; --" VARCHAR DEFAULT \'y\', "имя" INTEGER DEFAULT 1, "select" INTEGER, "a\nb" INTEGER'
    run(
        path,
        f'CREATE TABLE "MODELS" ("Model_ID" INTEGER, "MODEL_NAME" VARCHAR, {hostile})',
        f'CREATE TABLE "Hardware_Platforms" ("HARDWARE_ID" INTEGER, "Hardware_Type" VARCHAR, {hostile})',
        f'CREATE TABLE "Performance_RESULTS" ("Result_Id" INTEGER, "MODEL_ID" INTEGER, "Hardware_id" INTEGER, "Latency_MS" FLOAT, {hostile})',
        'CREATE TABLE "x""; DROP TABLE models; --" (id INTEGER)',
        "INSERT INTO models (Model_ID, MODEL_NAME) VALUES (1, 'gpt2')",
        "INSERT INTO hardware_platforms (HARDWARE_ID, Hardware_Type) VALUES (1, 'cuda')",
        "INSERT INTO performance_results (Result_Id, MODEL_ID, Hardware_id, Latency_MS) VALUES (1, 1, 1, 2.5)",
    )
    (row,) = rows_of(path)
    assert (row["result_id"], row["model_name"], row["hardware_type"], row["latency_ms"]) == ("1", "gpt2", "cuda", 2.5)
    run(path, "SELECT * FROM models")


@pytest.mark.parametrize(
    ("result_kind", "run_kind", "reference", "key"),
    [("INTEGER", "INTEGER", "7", "7"), ("INTEGER", "VARCHAR", "7", "'7'"), ("VARCHAR", "INTEGER", "'7'", "7"), ("BIGINT", "DOUBLE", "7", "7.0"),
     ("VARCHAR", "VARCHAR", "'run'", "'run'"), ("UUID", "VARCHAR", "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'", "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'")],
)  # fmt: skip
def test_runs_are_found_whatever_the_types_of_their_ids(result_kind: str, run_kind: str, reference: str, key: str, tmp_path: Path) -> None:
    """Numbers are compared as numbers, anything else as text."""
    path = tmp_path / "bench.duckdb"
    build("V12", path, limit=2)
    run(
        path,
        f"CREATE TABLE test_runs (run_id {run_kind}, success BOOLEAN, status VARCHAR, start_time TIMESTAMP)",
        f"INSERT INTO test_runs VALUES ({key}, false, 'broken', '2024-05-06 07:08:09')",
        f"ALTER TABLE performance_results ADD COLUMN run_id {result_kind}",
        f"UPDATE performance_results SET run_id = {reference} WHERE id = 1",
    )
    first, second = rows_of(path)
    assert (first["run_success"], first["run_status"], first["run_started"]) == (False, "broken", "2024-05-06 07:08:09")
    assert (second["run_success"], second["run_status"], second["run_started"]) == (None, None, None)


def test_dangling_and_null_references_keep_their_row(tmp_path: Path) -> None:
    """Such a row is there, with nothing for what it fails to name."""
    path = tmp_path / "bench.duckdb"
    build("V7", path, limit=3)
    run(path, "UPDATE performance_results SET model_id = NULL, hardware_id = 999 WHERE id = 2")
    rows = rows_of(path)
    assert len(rows) == 3
    assert (rows[1]["model_name"], rows[1]["hardware_type"]) == (None, None)
    assert None not in {row["model_name"] for row in (rows[0], rows[2])}


def test_a_model_that_stands_twice_does_not_double_its_results(tmp_path: Path) -> None:
    """Without a primary key one row is taken for each id, always the same one; ids that differ in case are different ids."""
    path = tmp_path / "bench.duckdb"
    run(
        path,
        "CREATE TABLE models (model_id VARCHAR COLLATE NOCASE, model_name VARCHAR)",
        "INSERT INTO models VALUES ('a', 'second'), ('a', 'first'), ('A', 'other'), (NULL, 'nobody')",
        "CREATE TABLE hardware_platforms (id INTEGER, type VARCHAR)",
        "INSERT INTO hardware_platforms VALUES (1, 'cuda'), (1, 'cuda'), (1, 'cpu')",
        "CREATE TABLE performance_results (id INTEGER, model_id VARCHAR, hardware_id INTEGER, latency_ms DOUBLE)",
        "INSERT INTO performance_results VALUES (1, 'a', 1, 1), (2, 'A', 1, 1), (3, NULL, 1, 1)",
    )
    assert [(row["result_id"], row["model_name"], row["hardware_type"]) for row in rows_of(path)] == [
        ("1", "first", "cpu"),
        ("2", "other", "cpu"),
        ("3", None, "cpu"),
    ]


def test_names_on_the_result_itself_are_read_where_there_is_no_table_for_them(tmp_path: Path) -> None:
    """Some runners write everything into one table."""
    path = tmp_path / "flat.duckdb"
    run(
        path,
        "CREATE TABLE performance_results (performance_id INTEGER, model_name VARCHAR, hardware_type VARCHAR, peak_memory_mb DOUBLE)",
        "INSERT INTO performance_results VALUES (5, 'gpt2', 'cpu', 12)",
    )
    (row,) = rows_of(path)
    assert (row["result_id"], row["model_name"], row["hardware_type"], row["memory_mb"]) == ("5", "gpt2", "cpu", 12.0)


def test_a_result_is_simulated_when_any_of_its_columns_says_so(tmp_path: Path) -> None:
    """A file that was converted can have both names."""
    path = tmp_path / "flat.duckdb"
    run(
        path,
        "CREATE TABLE performance_results (id INTEGER, model_name VARCHAR, hardware_type VARCHAR, latency_ms DOUBLE, is_simulated BOOLEAN,"
        " simulation_mode VARCHAR)",
        "INSERT INTO performance_results VALUES (1, 'm', 'cpu', 1, true, 'no'), (2, 'm', 'cpu', 1, NULL, 'true'), (3, 'm', 'cpu', 1, false, NULL)",
    )
    assert [bool(row["simulated"]) for row in rows_of(path)] == [True, True, False]


def test_metrics_and_metadata_are_both_read_where_both_are_there(tmp_path: Path) -> None:
    """What one of them does not say the other may."""
    path = tmp_path / "own.duckdb"
    database = BenchmarkDatabase(path)
    database.insert(metrics='{"a": 1}')
    run(path, "ALTER TABLE performance_results ADD COLUMN metadata VARCHAR DEFAULT '{\"sequence_length\": 77}'")
    (row,) = rows_of(path)
    assert (row["extras"], row["more_extras"]) == ('{"a": 1}', '{"sequence_length": 77}')


def test_a_missing_runs_table_is_no_error(tmp_path: Path) -> None:
    """run_id can be there without anything it refers to."""
    path = tmp_path / "bench.duckdb"
    build("V9", path, limit=5)
    run(path, "DROP TABLE test_runs")
    rows = rows_of(path)
    assert len(rows) == 5
    assert {row["run_started"] for row in rows} == {None}


def test_a_column_that_is_not_plainly_a_default_counts_as_generated() -> None:
    """Read from the text of the table as DuckDB writes it; a name that ends like another is another, and doubt is for caution."""
    sql = 'CREATE TABLE t(id INTEGER, flat DOUBLE GENERATED ALWAYS AS((id + 1)), lat DOUBLE DEFAULT(1), "a ""b" VARCHAR GENERATED ALWAYS AS(x));'
    assert is_generated("flat", "DOUBLE", sql)
    assert is_generated('a "b', "VARCHAR", sql)
    assert is_generated("elsewhere", "VARCHAR", sql)
    assert not is_generated("lat", "DOUBLE", sql)


@pytest.mark.parametrize(
    ("kind", "said", "read"),
    [
        ("DOUBLE", "8.6", None),
        ("DOUBLE", "8.0", 8),
        ("VARCHAR", "'8.6'", None),
        ("VARCHAR", "'8'", 8),
        ("DECIMAL(5,1)", "8.5", None),
        ("DOUBLE", "'nan'", None),
        ("HUGEINT", "170141183460469231731687303715884105727", None),
        ("BIGINT", "9223372036854775807", 9223372036854775807),
    ],
)
def test_a_whole_number_is_read_where_one_stands_and_never_rounded(kind: str, said: str, read: int | None, tmp_path: Path) -> None:
    """8.6 items are not 9."""
    path = tmp_path / "flat.duckdb"
    run(
        path,
        f"CREATE TABLE performance_results (id INTEGER, model_name VARCHAR, hardware_type VARCHAR, latency_ms DOUBLE, batch_size {kind})",
        f"INSERT INTO performance_results VALUES (1, 'm', 'cpu', 2, {said})",
    )
    assert [row["batch_size"] for row in rows_of(path)] == [read]


@pytest.mark.parametrize(
    ("said", "read"), [("'12.5'", 12.5), ("'12.5 ms'", math.nan), ("'1,250'", math.nan), ("'n/a'", math.nan), ("''", None), ("NULL", None)]
)
def test_a_figure_in_a_text_column_that_is_no_number_is_not_taken_for_none(said: str, read: float | None, tmp_path: Path) -> None:
    """It is NaN, as a runner writes it that has divided by zero: left out with a remark, or refused where it is the only one."""
    path = tmp_path / "flat.duckdb"
    run(
        path,
        "CREATE TABLE performance_results (id INTEGER, model_name VARCHAR, hardware_type VARCHAR, latency_ms VARCHAR, memory_mb DOUBLE)",
        f"INSERT INTO performance_results VALUES (1, 'm', 'cpu', {said}, 2)",
    )
    assert [row["latency_ms"] for row in rows_of(path)] == [pytest.approx(read, nan_ok=True)]


@pytest.mark.parametrize("rest", ["NOT NULL", "UNIQUE", "CHECK (batch_size > 0)", ""])
@pytest.mark.parametrize("kind", ["INTEGER", "VARCHAR COLLATE NOCASE", "DECIMAL(5,1)", "ENUM('4', 'x)')"])
def test_a_column_with_a_default_is_an_ordinary_column(kind: str, rest: str, tmp_path: Path) -> None:
    """Whatever else is said of it."""
    path = tmp_path / "flat.duckdb"
    rest = "" if rest.startswith("CHECK") and kind != "INTEGER" else rest
    run(
        path,
        "CREATE TABLE performance_results (id INTEGER, model_name VARCHAR, hardware_type VARCHAR, latency_ms DOUBLE,"
        f" batch_size {kind} {rest} DEFAULT '4')",
        "INSERT INTO performance_results (id, model_name, hardware_type, latency_ms) VALUES (1, 'm', 'cpu', 2)",
    )
    assert [row["batch_size"] for row in rows_of(path)] == [4]


def test_detection_needs_nothing_but_the_catalogue() -> None:
    """It is a pure function: the same catalogue, the same layout."""
    catalogue = {"performance_results": RESULTS, "models": MODELS, "hardware_platforms": HARDWARE}
    unique = frozenset({("models", "model_id"), ("hardware_platforms", "hardware_id")})
    found = detect(catalogue, unique, "bench.duckdb", 'a"b')
    assert found == detect(catalogue, unique, "bench.duckdb", 'a"b')
    assert found.results_table == '"a""b".main."performance_results"'
    assert "DISTINCT" not in found.tables


def test_a_read_has_the_columns_of_the_roles_in_their_order_and_types(tmp_path: Path) -> None:
    """The mapping relies on it, whatever of them the file has."""
    arrow = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
    for layout in LAYOUTS:
        path = tmp_path / f"{layout}.duckdb"
        build(layout, path, limit=1)
        source = BenchmarkSource(str(path))
        schema = source.read(source.layout(), pa.array(["1"])).schema
        assert [(field.name, field.type) for field in schema] == [(role, arrow[kind]) for role, kind in ROLES.items()]


def test_every_name_that_is_looked_for_is_documented_in_its_order() -> None:
    """docs/layouts.md names the columns of a role in one line, first choice first."""
    lines = [line for line in (Path(__file__).parents[1] / "docs/layouts.md").read_text().splitlines() if line.startswith("|")]
    for names in (
        layout_module.TABLES.result_id,
        *layout_module.FIGURES.values(),
        layout_module._RUN_STARTED,
        layout_module.TABLES.result_time,
        layout_module._SIMULATED,
        layout_module.TABLES.extras,
        layout_module.FLAT.result_id,
        layout_module.FLAT.test_case,
        layout_module.FLAT.result_time,
        layout_module.FLAT.extras,
    ):
        places = [[line.find(f"`{name}`") for name in names] for line in lines]
        assert any(-1 not in found and found == sorted(found) for found in places), names


def test_every_documented_name_is_looked_for() -> None:
    """Nothing in the tables of docs/layouts.md is a promise without code."""
    page = (Path(__file__).parents[1] / "docs/layouts.md").read_text()
    code = Path(layout_module.__file__).read_text()
    names = {name for line in page.splitlines() if line.startswith("|") for name in re.findall(r"`(?:\w+\.)?(\w+)`", line)}
    assert len(names) > 30
    assert {name for name in names if f'"{name}"' not in code} == set()
