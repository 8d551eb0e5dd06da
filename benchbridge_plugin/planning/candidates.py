"""Configurations that could be measured next: made only of values that the benchmark files have, and not measured or tried yet.

A model (with its sequence length and mode) is put onto a device (with its precision and mode) that other models of the mode were measured on, with
the batch sizes that are usual there and lie within those that the model was measured at, or the one that is nearest to them. All values come from
results that can be delivered, so what is made of them can be as well.

Where there are too many, a part is taken that is as good as random and the same each time: the first by a hash.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from benchbridge_plugin.planning.configurations import KEY

MOST = 20_000
_MOST_SHAPES, _MOST_SETTINGS = 5_000, 200
_BATCH_SIZES = 6  # the most usual of a device

SCHEMA = pa.schema(
    [
        *((name, pa.int64() if name in ("batch_size", "sequence_length") else pa.string()) for name in KEY),
        ("model_family", pa.string()),
        ("hardware", pa.string()),
        ("precision_named", pa.string()),
        ("test_case", pa.string()),
        ("said", pa.string()),
        ("measured_here", pa.int64()),
        ("measured_on", pa.string()),
        ("nearest_batch_size", pa.int64()),
    ]
)

_HASH = "md5(concat_ws(chr(31), {}))"
_SQL = f"""
    WITH good AS MATERIALIZED (
        SELECT *, coalesce(device_name, '') AS device, coalesce(model_family, model_name) AS family, coalesce(sequence_length, 0) AS length
          FROM configurations
         WHERE deliverable
    ),
    shapes AS (
        SELECT model_name, family, mode, length, min(model_family) AS model_family, min(batch_size) AS low, max(batch_size) AS high,
               min(test_case) AS test_case
          FROM good
         WHERE $model IS NULL OR model_name = $model
         GROUP BY model_name, family, mode, length
         ORDER BY {_HASH.format("model_name, mode, length")}
         LIMIT {_MOST_SHAPES}
    ),
    settings AS (
        SELECT hardware_platform, device, precision, mode, min(device_name) AS device_name, min(hardware) AS hardware,
               min(precision_named) AS precision_named
          FROM good
         WHERE $hardware IS NULL OR hardware_platform = $hardware OR hardware = $hardware OR device_name = $hardware
         GROUP BY hardware_platform, device, precision, mode
         ORDER BY sum(results) DESC, hardware_platform, device, precision, mode
         LIMIT {_MOST_SETTINGS}
    ),
    batches AS (
        SELECT hardware_platform, device, mode, batch_size
          FROM good
         GROUP BY hardware_platform, device, mode, batch_size
       QUALIFY row_number() OVER (PARTITION BY hardware_platform, device, mode ORDER BY sum(results) DESC, batch_size) <= {_BATCH_SIZES}
    ),
    pairs AS (
        SELECT *
          FROM shapes
          JOIN settings USING (mode)
         ORDER BY {_HASH.format("model_name, hardware_platform, device, precision, mode, length")}
         LIMIT $most
    ),
    made AS (
        SELECT *, greatest(low - batch_size, batch_size - high, 0) AS outside
          FROM pairs
          JOIN batches USING (hardware_platform, device, mode)
       QUALIFY outside = 0
            OR row_number() OVER (PARTITION BY model_name, hardware_platform, device, precision, mode, length ORDER BY outside, batch_size) = 1
    ),
    tried AS (
        SELECT model_name, hardware_platform, coalesce(device_name, '') AS device, precision, mode, batch_size, coalesce(sequence_length, 0) AS length
          FROM configurations
    ),
    fresh AS (
        SELECT *
          FROM made
          ANTI JOIN tried USING (model_name, hardware_platform, device, precision, mode, batch_size, length)
         ORDER BY {_HASH.format("model_name, hardware_platform, device, precision, mode, batch_size, length")}
         LIMIT $most
    ),
    on_cell AS (
        SELECT model_name, hardware_platform, device, count(*) AS measured_here, list(batch_size) AS batch_sizes, min(said) AS own_said
          FROM good
         GROUP BY ALL
    ),
    on_model AS (
        SELECT model_name, string_agg(DISTINCT place, ', ' ORDER BY place) AS measured_on, min(said) AS model_said
          FROM (SELECT *, coalesce(device_name, hardware) AS place FROM good)
         GROUP BY model_name
    )
    SELECT model_name, hardware_platform, device_name, precision, mode, batch_size, nullif(length, 0) AS sequence_length, model_family,
           hardware, precision_named, test_case, coalesce(own_said, model_said) AS said,
           coalesce(measured_here, 0) AS measured_here,
           measured_on,
           list_reduce(batch_sizes, lambda a, b: CASE WHEN abs(ln(b / batch_size)) < abs(ln(a / batch_size)) THEN b ELSE a END) AS nearest_batch_size
      FROM fresh
      LEFT JOIN on_cell USING (model_name, hardware_platform, device)
      JOIN on_model USING (model_name)
     ORDER BY {_HASH.format("model_name, hardware_platform, device, precision, mode, batch_size, length")}
"""


def candidates(configurations: pa.Table, *, model: str | None = None, hardware: str | None = None, most: int = MOST) -> pa.Table:
    """SCHEMA, at most so many, in an order as good as random. `measured_here`: how many configurations of the model on the device were measured, of which
    `nearest_batch_size` is the nearest (null: there are none); `measured_on`: the devices that the model was measured on.

    `configurations`: see configurations.SCHEMA. `hardware` is the name that the file has for it, that of the sink, or that of a device.
    """
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as connection:
        connection.register("configurations", configurations)
        rows = connection.execute(_SQL, {"model": model, "hardware": hardware, "most": most}).fetchall()
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)
