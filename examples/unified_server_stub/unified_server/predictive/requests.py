"""What the routes take beside measurements: the fields of each request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unified_server.fields import Choice, Count, Field, Figure, Flag, Refused, Text
from unified_server.predictive.measurement import (
    BATCH_SIZE,
    HARDWARE_PLATFORMS,
    MODE,
    MODEL_FAMILY,
    MODEL_NAME,
    PRECISION,
    SEQUENCE_LENGTH,
)
from unified_server.predictive.recommend import GOALS

MOST_IN_BULK = 1_000
MOST_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class HardwareList(Field):
    """One hardware platform or several; a list without repetitions."""

    def read(self, value: Any) -> list[str]:
        one = Choice(self.name, choices=HARDWARE_PLATFORMS)
        many = value if isinstance(value, list) else [value]
        if not many:
            raise Refused("too_short", "List should have at least 1 item")
        return list(dict.fromkeys(one.read(item) for item in many))

    def schema(self) -> dict[str, Any]:
        one = {"type": "string", "enum": list(HARDWARE_PLATFORMS)}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


_SHAPE = (MODEL_NAME, MODEL_FAMILY, BATCH_SIZE, SEQUENCE_LENGTH, MODE, PRECISION)
DAYS = Count("days", "only the last days", most=36_500)
LIMIT = Count("limit", "the most rows to give", default=10, most=100_000)

PREDICT_PERFORMANCE = (*_SHAPE, HardwareList("hardware", "one platform or a list", required=True))
PREDICT_HARDWARE = (
    *_SHAPE,
    HardwareList("available_hardware", "rank only these; absent: all", default=list(HARDWARE_PLATFORMS)),
    Choice("goal", "what to rank by", choices=GOALS, default="throughput"),
    Figure("latency_ms_at_most", "do not rank what is known to be slower"),
    Figure("memory_mb_at_most", "do not rank what is known to need more"),
    Flag("predict_performance", "give the figures of the recommended hardware too", default=False),
)
FEEDBACK = (
    Choice("chosen", "the hardware that was taken", required=True, choices=HARDWARE_PLATFORMS),
    Figure("measured", "what it came to, in the unit of the ranking"),
)
ANALYZE = (
    Text("model_name"),
    Choice("hardware_platform", choices=HARDWARE_PLATFORMS),
    Choice("metric", choices=("throughput", "latency", "memory_usage"), default="throughput"),
    DAYS,
)
LIST_MEASUREMENTS = (Text("model_name"), Text("model_family"), Text("hardware"), Count("batch_size"), DAYS, LIMIT)
LIST_PREDICTIONS = (Text("model_name"), Text("hardware"), DAYS, LIMIT)
