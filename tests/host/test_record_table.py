"""The predictive service as an object: Arrow tables in, each key stored once, between threads and processes too."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from unified_server import InvalidInput
from unified_server.predictive import store
from unified_server.predictive.service import PredictivePerformance

Service = PredictivePerformance


def keys(count: int) -> list[str]:
    return [str(uuid.uuid5(uuid.NAMESPACE_URL, f"result {number}")) for number in range(count)]


def table_of(idempotency_keys: Sequence[str | None], **columns: Any) -> pa.Table:
    """A table with the columns of the contract; a value given for a column is used for every row, a list as it is."""
    count = len(idempotency_keys)
    values: dict[str, Any] = {
        "model_name": "m",
        "model_family": None,
        "hardware_platform": "cuda",
        "batch_size": 1,
        "sequence_length": 128,
        "precision": "fp16",
        "mode": "inference",
        "throughput": 1.5,
        "latency": 2.5,
        "memory_usage": None,
        "source": "benchmark",
        "measured_at": datetime(2026, 11, 23, 8, tzinfo=UTC),
        "source_ref": None,
        "metadata": '{"a": 1}',
        **columns,
    }
    arrays = {name: value if isinstance(value, list) else [value] * count for name, value in values.items()}
    return pa.table({**arrays, "idempotency_key": pa.array(idempotency_keys, pa.string())})


def test_a_table_is_stored_in_order_and_only_once(service: Service) -> None:
    wanted = keys(5000)
    table = table_of(wanted, batch_size=list(range(1, 5001)))
    first = service.record_measurement_table(table)
    assert first.column_names == ["idempotency_key", "status", "measurement_id", "error"]
    assert first.column("idempotency_key").to_pylist() == wanted
    assert set(first.column("status").to_pylist()) == {"created"}
    ids = first.column("measurement_id").to_pylist()
    assert len(set(ids)) == 5000
    again = service.record_measurement_table(table)
    assert set(again.column("status").to_pylist()) == {"existing"}
    assert again.column("measurement_id").to_pylist() == ids
    assert service.lookup([*wanted, "unknown"]) == dict(zip(wanted, ids, strict=True))
    rows = service.list_measurements(limit=10_000)
    assert [row["batch_size"] for row in rows] == list(range(5000, 0, -1))
    assert rows[0]["measured_at"] == "2026-11-23T08:00:00+00:00"
    assert rows[0]["metadata"] == {"a": 1}
    assert rows[0]["idempotency_key"] == wanted[-1]


def test_a_key_twice_in_a_batch_is_stored_once_and_the_first_good_row_wins(service: Service) -> None:
    table = table_of(["k", "k", "k", None, None], throughput=[-1.0, 2.0, 3.0, 4.0, 4.0])
    outcome = service.record_measurement_table(table)
    assert outcome.column("status").to_pylist() == ["rejected", "created", "existing", "created", "created"]
    ids = outcome.column("measurement_id").to_pylist()
    assert ids[0] is None
    assert ids[1] == ids[2]
    assert sorted(row["throughput"] for row in service.list_measurements()) == [2.0, 4.0, 4.0]


def test_keys_are_compared_as_text_whether_they_are_uuids_or_not(service: Service) -> None:
    key = keys(1)[0]
    spellings: list[str | None] = [key, key.upper(), key.replace("-", ""), "", " "]
    outcome = service.record_measurement_table(table_of(spellings))
    assert outcome.column("status").to_pylist() == ["created"] * 5
    assert {row["idempotency_key"] for row in service.list_measurements()} == set(spellings)
    assert set(service.lookup([key.upper()])) == {key.upper()}


BAD_VALUES: list[tuple[str, Any]] = [
    ("model_name", None),
    ("model_name", ""),
    ("model_name", "x" * 1001),
    ("hardware_platform", None),
    ("hardware_platform", "CUDA"),
    ("batch_size", 0),
    ("batch_size", 2**31),
    ("sequence_length", -1),
    ("precision", "fp8"),
    ("mode", "train"),
    ("throughput", float("nan")),
    ("latency", float("inf")),
    ("memory_usage", -0.5),
    ("metadata", "[1]"),
    ("measured_at", datetime(1900, 1, 1, tzinfo=UTC)),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_table_and_a_mapping_are_refused_with_the_same_sentence(service: Service, field: str, value: Any) -> None:
    table = table_of(["k"], **{field: [value]})
    (by_table,) = service.record_measurement_table(table).to_pylist()
    (by_mapping,) = service.record_measurements(table.to_pylist())
    assert by_table["status"] == by_mapping["status"] == "rejected"
    assert by_table["error"] == by_mapping["error"]
    assert by_table["error"].startswith(f"{field}: ")
    assert service.list_measurements() == []


def test_metadata_that_is_not_json_is_refused_in_a_table(service: Service) -> None:
    (outcome,) = service.record_measurement_table(table_of(["k"], metadata="not json")).to_pylist()
    assert outcome["error"] == "metadata: Input should be a JSON object"


def test_absent_and_null_columns_get_the_defaults_and_unknown_ones_are_dropped(service: Service) -> None:
    table = pa.table({"model_name": ["m"], "hardware_platform": ["cpu"], "batch_size": pa.nulls(1), "more": [1]})
    assert service.record_measurement_table(table).column("status").to_pylist() == ["created"]
    (row,) = service.list_measurements()
    assert (row["batch_size"], row["sequence_length"], row["precision"], row["mode"]) == (1, 128, "fp32", "inference")
    assert row["idempotency_key"] is None


def test_arrow_types_that_hold_the_same_values_are_taken(service: Service) -> None:
    table = table_of(["a", "b"])
    table = table.set_column(0, "model_name", table.column("model_name").dictionary_encode())
    table = table.set_column(2, "hardware_platform", table.column("hardware_platform").cast(pa.large_string()))
    table = table.set_column(3, "batch_size", pa.array([1, 2], pa.int16()))
    table = table.set_column(11, "measured_at", table.column("measured_at").cast(pa.timestamp("ns", "Europe/Berlin")))
    assert service.record_measurement_table(table).column("status").to_pylist() == ["created"] * 2
    assert service.list_measurements()[0]["measured_at"] == "2026-11-23T08:00:00+00:00"


def test_a_column_of_the_wrong_type_is_an_error_and_nothing_is_stored(service: Service) -> None:
    with pytest.raises(InvalidInput, match="batch_size"):
        service.record_measurement_table(table_of(["a", "b"], batch_size=["one", "two"]))
    assert service.list_measurements() == []


def test_an_empty_table_is_an_empty_answer(service: Service) -> None:
    assert service.record_measurement_table(table_of([])).num_rows == 0
    assert service.record_measurements([]) == []
    assert service.lookup([]) == {}


def test_two_threads_that_send_the_same_table_store_it_once(service: Service) -> None:
    wanted = keys(2000)
    table = table_of(list(wanted))
    answers: list[pa.Table] = []
    threads = [threading.Thread(target=lambda: answers.append(service.record_measurement_table(table))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [status for answer in answers for status in answer.column("status").to_pylist()]
    assert (statuses.count("created"), statuses.count("existing")) == (2000, 6000)
    assert len({tuple(answer.column("measurement_id").to_pylist()) for answer in answers}) == 1


WORKER = """
import sys
from unified_server.predictive.service import PredictivePerformance
service = PredictivePerformance(sys.argv[1], shared=True)
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    service.record_measurements([
        {"model_name": sys.argv[2], "hardware_platform": "cpu", "idempotency_key": f"both {number}"},
        {"model_name": sys.argv[2], "hardware_platform": "cpu", "idempotency_key": f"{sys.argv[2]} {number}"},
        {"model_name": sys.argv[2], "hardware_platform": "cpu"},
    ])
"""


def test_two_processes_that_share_the_file_lose_nothing_and_store_no_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "shared.duckdb"
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.communicate("go\n", timeout=60)
    assert [worker.returncode for worker in workers] == [0, 0]
    rows = PredictivePerformance(str(path), shared=True).list_measurements(limit=1000)
    stored = [row["idempotency_key"] for row in rows if row["idempotency_key"]]
    assert len(rows) == 12 + 24 + 24
    assert len(stored) == len(set(stored)) == 36
    assert sorted(row["id"] for row in rows) == list(range(1, 61))


def test_measurements_and_keys_survive_a_restart(tmp_path: Path) -> None:
    for status in ("created", "existing"):
        service = PredictivePerformance(str(tmp_path / "kept.duckdb"))
        (outcome,) = service.record_measurements([{"model_name": "m", "hardware_platform": "cpu", "idempotency_key": "k"}])
        service.close()
        assert (outcome["status"], outcome["measurement_id"]) == (status, "m-1")


def ids_of(outcome: pa.Table) -> list[str | None]:
    ids: list[str | None] = outcome.column("measurement_id").to_pylist()
    return ids


def test_a_known_key_in_the_middle_of_a_batch_holds_up_no_other_row(service: Service) -> None:
    wanted = keys(3000)
    (known,) = ids_of(service.record_measurement_table(table_of([wanted[1500]])))
    outcome = service.record_measurement_table(table_of(wanted))
    assert outcome.column("status").to_pylist() == ["created"] * 1500 + ["existing"] + ["created"] * 1499
    assert ids_of(outcome)[1500] == known
    assert service.lookup(wanted) == dict(zip(wanted, ids_of(outcome), strict=True))
    assert service.recorded == len(service.list_measurements(limit=10_000)) == 3000


def test_a_bad_row_among_good_ones_is_the_only_one_refused(service: Service) -> None:
    table = table_of([*keys(2999), None], batch_size=[*range(1, 1000), 0, *range(1001, 3001)])
    outcome = service.record_measurement_table(table)
    assert outcome.column("status").to_pylist() == ["created"] * 999 + ["rejected"] + ["created"] * 2000
    assert outcome.column("error").to_pylist()[999] == "batch_size: Input should be greater than or equal to 1"
    assert [row["batch_size"] for row in service.list_measurements(limit=10_000)] == [*range(3000, 1000, -1), *range(999, 0, -1)]


def test_ids_stay_unique_when_batches_of_new_keys_follow_ones_that_went_row_by_row(service: Service) -> None:
    wanted = keys(500)
    tables = [table_of(wanted[:200]), table_of(wanted[100:300]), table_of([*wanted[300:], wanted[300]]), table_of([None, None])]
    ids = {number for table in tables for number in ids_of(service.record_measurement_table(table))}
    rows = service.list_measurements(limit=10_000)
    assert sorted(row["id"] for row in rows) == list(range(1, 503))
    assert ids == {row["measurement_id"] for row in rows}


@pytest.mark.parametrize("repeated", [False, True], ids=["all new", "a key repeated"])
def test_the_outcomes_of_300_000_rows_are_in_the_order_of_the_rows(service: Service, repeated: bool) -> None:
    wanted = [f"key {number}" for number in range(300_000)]
    if repeated:
        wanted[-1] = wanted[0]
    outcome = service.record_measurement_table(table_of(wanted, batch_size=list(range(1, 300_001))))
    assert outcome.column("idempotency_key").to_pylist() == wanted
    statuses = outcome.column("status").to_pylist()
    assert (set(statuses[:-1]), statuses[-1]) == ({"created"}, "existing" if repeated else "created")
    asked = wanted[::1000]
    assert service.lookup(asked) == dict(zip(asked, ids_of(outcome)[::1000], strict=True))
    newest = [row["batch_size"] for row in service.list_measurements(limit=50_000)]
    last = 299_999 if repeated else 300_000
    assert newest == list(range(last, last - 50_000, -1))


def test_a_batch_that_fails_on_its_second_way_leaves_nothing_of_its_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of([*keys(200_000), keys(1)[0]])
    with monkeypatch.context() as patch:
        patch.setattr(store, "_INSERT_CHOSEN", "SELECT error('the disk is full') WHERE ? IS NOT NULL")
        with pytest.raises(duckdb.Error, match="the disk is full"):
            service.record_measurement_table(table)
    assert service.list_measurements() == []
    assert service.lookup(keys(10)) == {}
    assert service.recorded == 0
    assert ids_of(service.record_measurement_table(table_of(keys(1)))) == ["m-1"]


KILLED = """
import sys
import pyarrow as pa
from unified_server.predictive.service import PredictivePerformance
service = PredictivePerformance(sys.argv[1])
for batch in range(1000):
    keys = [f"{batch}/{row}" for row in range(2000)]
    service.record_measurement_table(pa.table({"model_name": ["m"] * 2000, "hardware_platform": ["cpu"] * 2000, "idempotency_key": keys}))
    print(batch, flush=True)
"""


def test_a_process_that_is_killed_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "killed.duckdb"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        answered = 1 + [int(worker.stdout.readline()) for _ in range(5)][-1]
        worker.kill()
    service = PredictivePerformance(str(path))
    rows = service.list_measurements(limit=10_000_000)
    assert len(rows) % 2000 == 0
    assert len(rows) >= answered * 2000
    assert {row["id"] for row in rows} == set(range(1, len(rows) + 1))
    assert len({row["idempotency_key"] for row in rows}) == len(rows)
    service.close()


@pytest.mark.parametrize("text", ['{"a": 1}', ' \n\t{"a": 1}', "{}", "[{}]", '"{"', "{", "{} {}", "", "null", '\ufeff{"a": 1}', "\x0c{}"])
def test_what_is_a_json_object_is_what_duckdb_takes_for_one(service: Service, text: str) -> None:
    query = "SELECT CASE WHEN json_valid($1) THEN json_type($1) = 'OBJECT' ELSE false END"
    row = duckdb.execute(query, [text]).fetchone()
    (outcome,) = service.record_measurement_table(table_of(["k"], metadata=[text])).to_pylist()
    assert row == (outcome["status"] == "created",)
