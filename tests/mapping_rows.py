"""Rows as a source reads them, and what the mapper makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from benchbridge_plugin.layout import ROLES
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import SinkProfile, quality_names

ARROW = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
SCHEMA = pa.schema([(role, ARROW[kind]) for role, kind in ROLES.items()])
FULL = SinkProfile(capabilities=frozenset({"measured_at"}))

#: A result that nothing is wrong with: 8 items in 10 ms.
RESULT = {
    "result_id": "1",
    "model_name": "gpt2",
    "model_family": "gpt2",
    "hardware_type": "cuda",
    "device_name": "H100",
    "batch_size": 8,
    "sequence_length": 128,
    "precision": "fp16",
    "test_case": "inference",
    "throughput": 800.0,
    "latency_ms": 10.0,
    "memory_mb": 512.0,
    "run_started": "2024-05-06 07:08:09",
    "result_time": "2024-05-06 08:00:00",
    "extras": '{"a": 1}',
}
MakeMapper = Callable[..., Mapper]


def rows(*changes: dict[str, Any]) -> pa.Table:
    """Rows as a source reads them: RESULT with what is said of each; ids count up."""
    return pa.Table.from_pylist([{**RESULT, "result_id": str(number), **change} for number, change in enumerate(changes, 1)], schema=SCHEMA)


def measured(mapper: Mapper, *changes: dict[str, Any], profile: SinkProfile = FULL) -> list[dict[str, Any]]:
    found = mapper.measure(rows(*changes), profile).to_pylist()
    return sorted(found, key=lambda row: int(row["result_id"]))


def one(mapper: Mapper, profile: SinkProfile = FULL, /, **change: Any) -> dict[str, Any]:
    (row,) = measured(mapper, change, profile=profile)
    return row


def judged(mapper: Mapper, *changes: dict[str, Any], cutoff_us: int | None = None, model: str | None = None) -> list[dict[str, Any]]:
    found = mapper.classify(rows(*changes), cutoff_us=cutoff_us, model=model).to_pylist()
    return sorted(found, key=lambda row: int(row["result_id"]))


def flags(row: dict[str, Any]) -> list[str]:
    return quality_names(row["quality"])


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, allow_nan=False)
    return value
