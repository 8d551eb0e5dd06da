"""Content hashes and keys: the same for ever, on every version of DuckDB."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pyarrow as pa
import pytest

from benchbridge_plugin.layout import ROLES
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import KEY_NAMESPACE
from benchbridge_plugin.source import BenchmarkSource
from tests.kit.layouts import BenchmarkDatabase
from tests.mapping_rows import FULL, RESULT, SCHEMA, MakeMapper, judged, measured, one

# -- content and keys -----------------------------------------------------------------------------------------------------------------------

#: These may never change: a new digest makes every delivered result look new.
GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "69d6420bc9d40e302737fcdc6eba0e7f"),
    "empty": (dict.fromkeys(set(RESULT) - {"result_id"}), "3017b92adb3243f40c5f61d71ac55b0d"),
    "unicode": ({"model_name": "模型 é\U0001f600", "extras": '{"ü": "\\n"}', "device_name": ""}, "ad270889443d158ae505350ceff8a47f"),
    "numbers": (
        {"throughput": 0.10000000149011612, "latency_ms": 1e300, "memory_mb": 5e-324, "batch_size": -(2**63)},
        "045f598e2a01074f7aec888837fa66b6",
    ),
    "not finite": ({"throughput": math.nan, "latency_ms": math.inf, "memory_mb": -math.inf}, "07555132590334fa937f9b44ebad5ce7"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_content_hash_is_the_same_for_ever(name: str, mapper: Mapper) -> None:
    """On every version of DuckDB, in classify and in measure."""
    change, digest = GOLDEN[name]
    assert one(mapper, **change)["content_hash"].hex() == digest
    assert judged(mapper, change)[0]["content_hash"].hex() == digest


OTHER: dict[str, Any] = {
    "model_name": "gpt3",
    "hardware_type": "cpu",
    "device_name": "A100",
    "batch_size": 9,
    "sequence_length": 129,
    "precision": "fp32",
    "test_case": "training",
    "throughput": 800.0000001,
    "latency_ms": 10.0000001,
    "memory_mb": 512.0000001,
    "run_started": "2024-05-06 07:08:10",
    "result_time": "2024-05-06 08:00:01",
    "extras": '{"a":1}',
    "more_extras": "{}",
}
NOT_CONTENT: dict[str, Any] = {
    "result_id": "2",
    "model_family": "other",
    "simulated": True,
    "hardware_simulated": True,
    "run_success": False,
    "run_status": "failed",
}


def test_every_role_is_content_or_is_not() -> None:
    """A new role has to be decided on."""
    assert {*OTHER, *NOT_CONTENT} == set(ROLES)


@pytest.mark.parametrize("role", OTHER)
def test_any_change_of_content_is_another_content(role: str, mapper: Mapper) -> None:
    """Also to null, and null is not the empty text."""
    values = [RESULT.get(role), OTHER[role], *([None] if role in RESULT else []), *([""] if ROLES[role] == "VARCHAR" else [])]
    found = measured(mapper, *({role: value} for value in values))
    assert len({row["content_hash"] for row in found}) == len(values)


@pytest.mark.parametrize("role", NOT_CONTENT)
def test_what_is_not_content_changes_nothing(role: str, mapper: Mapper) -> None:
    """A run that is marked as failed later does not make its results new."""
    assert one(mapper, **{role: NOT_CONTENT[role]})["content_hash"] == one(mapper)["content_hash"]


def test_content_cannot_move_from_one_field_into_the_next(mapper: Mapper) -> None:
    """Fields are told apart whatever separators stand in them."""
    pairs = [
        ("a", "b"),
        ("ab", ""),
        ("", "ab"),
        ("a:b", ""),
        ("a1:b", None),
        ("a", "1:b"),
        (None, "a1:b"),
        ("a;", "b"),
        ("a", ";b"),
        ("1:", "1:"),
    ]
    found = measured(mapper, *({"model_name": first, "hardware_type": second} for first, second in pairs))
    assert len({row["content_hash"] for row in found}) == len(pairs)
    numbers = measured(mapper, *({"batch_size": first, "sequence_length": second} for first, second in ((1, 11), (11, 1), (None, 111))))
    assert len({row["content_hash"] for row in numbers}) == 3


def test_a_nan_is_a_nan_whatever_its_sign(mapper: Mapper) -> None:
    """Machines differ in the sign bit that a failed division leaves."""
    first, second = measured(mapper, {"latency_ms": math.nan}, {"latency_ms": math.copysign(math.nan, -1)})
    assert first["content_hash"] == second["content_hash"]


def test_a_zero_is_a_zero_whatever_its_sign(mapper: Mapper) -> None:
    """They are equal, so the result says the same; and null is not zero."""
    first, second, third = measured(mapper, {"latency_ms": 0.0}, {"latency_ms": -0.0}, {"latency_ms": None})
    assert first["content_hash"] == second["content_hash"] != third["content_hash"]


def test_the_config_is_no_content(mapper: Mapper, mapper_of: MakeMapper) -> None:
    """Other aliases, defaults or time zones make no delivered result new; the key stays too."""
    other = mapper_of(
        source_timezone="Asia/Tokyo",
        hardware_aliases={"cuda": "rocm"},
        precision_aliases={"fp16": "int8"},
        default_precision="int4",
        default_batch_size=3,
        default_sequence_length=7,
        priority_models=("gpt2",),
        keyed=False,
    )
    for change in ({}, {"precision": None, "batch_size": None, "sequence_length": None}):
        assert one(other, **change)["key"] == one(mapper, **change)["key"]


def test_a_float_that_becomes_a_double_keeps_its_content(tmp_path: Path, mapper: Mapper) -> None:
    """A file whose FLOAT columns are widened has the same results; one that had doubles from the start has its own."""
    path = tmp_path / "own.duckdb"
    database = BenchmarkDatabase(path)
    database.insert(throughput=0.1, latency=1 / 3, memory=1e30)

    def content() -> bytes:
        source = BenchmarkSource(str(path))
        batch = mapper.measure(source.read(source.layout(), pa.array(["1"])), FULL).to_pylist()
        assert batch[0]["throughput"] in (0.1, 0.10000000149011612)
        found = batch[0]["content_hash"]
        assert isinstance(found, bytes)
        return found

    narrow = content()
    database.execute("CREATE TABLE kept AS FROM performance_results")
    database.execute("DROP TABLE performance_batch_results")
    database.execute("DROP TABLE performance_results")
    database.execute("ALTER TABLE kept RENAME TO performance_results")
    for column in ("throughput_items_per_second", "average_latency_ms", "memory_peak_mb"):
        database.execute(f"ALTER TABLE performance_results ALTER {column} TYPE DOUBLE")
    assert content() == narrow
    database.execute("UPDATE performance_results SET throughput_items_per_second = 0.1")
    assert content() != narrow


@pytest.mark.parametrize("source_name", ["bench", "ü b/ä", "'; --"])
def test_a_key_is_the_uuid_that_python_would_make(source_name: str, mapper_of: MakeMapper) -> None:
    """UUIDv5 of (source name, result id, content hash) under our namespace, whatever is in them."""
    ids = [*map(str, range(300)), "r-1", "'", "模型", "\U0001f600", " ", "a\x1fb", "x" * 1000]
    table = pa.Table.from_pylist(
        [{**RESULT, "result_id": result_id, "batch_size": place + 1} for place, result_id in enumerate(ids)], schema=SCHEMA
    )
    for row in mapper_of(source_name=source_name).measure(table, FULL).to_pylist():
        expected = uuid5(KEY_NAMESPACE, f"{source_name}\x1f{row['result_id']}\x1f{row['content_hash'].hex()}")
        assert UUID(bytes=row["key"]) == expected
        assert row["idempotency_key"] == str(expected)
        assert row["source"] == f"benchmark:{expected}"
        assert row["source_ref"] == f"{source_name}/{row['result_id']}"


def test_the_key_stays_out_of_the_source_when_the_config_says_plain(mapper_of: MakeMapper) -> None:
    """measurement_source: plain."""
    row = one(mapper_of(keyed=False))
    assert (row["source"], len(row["key"])) == ("benchmark", 16)
