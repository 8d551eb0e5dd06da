"""What a measurement is: the fields of the wire, and the same as columns of an Arrow table."""

from __future__ import annotations

import pyarrow as pa

from unified_server.errors import InvalidInput
from unified_server.fields import Choice, Count, Figure, JsonObject, Moment, Text
from unified_server.reading import detail

HARDWARE_PLATFORMS = ("cpu", "cuda", "rocm", "mps", "openvino", "webgpu", "webnn", "qnn")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
MODES = ("inference", "training")
CAPABILITIES = ("idempotency", "bulk", "lookup", "measured_at", "predict_bulk")

MODEL_NAME = Text("model_name", required=True)
MODEL_FAMILY = Text("model_family")
HARDWARE_PLATFORM = Choice("hardware_platform", required=True, choices=HARDWARE_PLATFORMS)
BATCH_SIZE = Count("batch_size", default=1)
SEQUENCE_LENGTH = Count("sequence_length", "0 where the model has no sequence", default=128, least=0)
PRECISION = Choice("precision", default="fp32", choices=PRECISIONS)
MODE = Choice("mode", default="inference", choices=MODES)

MEASUREMENT = (
    MODEL_NAME,
    MODEL_FAMILY,
    HARDWARE_PLATFORM,
    BATCH_SIZE,
    SEQUENCE_LENGTH,
    PRECISION,
    MODE,
    Figure("throughput", "items/s"),
    Figure("latency", "ms"),
    Figure("memory_usage", "MB"),
    Text("prediction_id", "the prediction to compare with"),
    Text("source", "where it comes from; given back as measurement_source"),
    Moment("measured_at", "when it was measured, which is not when it was recorded"),
    Text("source_ref", "the sender's own name for it"),
    JsonObject("metadata"),
    Text("idempotency_key", "the same key is stored once, whoever sends it and however often", longest=200),
)

_ARROW_TYPES = {Count: pa.int64(), Figure: pa.float64(), Moment: pa.timestamp("us")}
TABLE_SCHEMA = pa.schema([pa.field(field.name, _ARROW_TYPES.get(type(field), pa.string())) for field in MEASUREMENT])
"""Columns of a table of measurements. Times are naive UTC here; a column with a time zone is converted."""

OUTCOME_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("idempotency_key", "status", "measurement_id", "error")],
)


def aligned(table: pa.Table) -> pa.Table:
    """The table in TABLE_SCHEMA: columns in order and cast, absent ones null, others dropped.

    Raises InvalidInput when a column cannot be cast (text in batch_size, say); then nothing has been stored.
    """
    columns = []
    for field in TABLE_SCHEMA:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            # Times are cut to microseconds, everything else must fit exactly.
            columns.append(table.column(field.name).cast(field.type, safe=not pa.types.is_timestamp(field.type)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidInput([detail("column_type", ["table", field.name], str(error), None)]) from error
    return pa.table(columns, schema=TABLE_SCHEMA)
