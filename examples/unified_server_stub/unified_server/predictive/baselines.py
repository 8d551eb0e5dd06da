"""Two simple ways to guess what a measurement will say, to compare the predictor with: neither is trained, and neither needs scikit-learn.

**nearest**: the figures of the nearest configuration that was measured in the same mode: of the same model, on the same hardware before any other; a
model that was never measured has the nearest of its family on that hardware. How far one is from another:

    |ln(batch size / batch size')| + |ln(sequence length / sequence length')| + 1 for another precision + 1 for another device

and within a family |ln(parameters / parameters')| more. Throughput and memory are taken as they are, latency by the item.

**roofline** (Williams, Waterman and Patterson, 2009), where the specification of the device is known and ``metadata`` says how large the model is: an item
takes the longer of computing and moving,

    max(2 x GMACs / (TFLOP/s), 4 x million activations / (GB/s)) ms

with parameters x tokens for GMACs, and parameters / batch size for activations, where those are not stated; memory is 4 bytes a parameter. Each figure is
then multiplied by what measurements of that platform, mode and precision usually are of it, since a model reaches a part of its roof.
"""

from __future__ import annotations

import logging
import threading

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from unified_server.database import DatabaseFile
from unified_server.errors import DatabaseBusy
from unified_server.predictive.learned.specs import published_specs
from unified_server.predictive.measurement import MEASUREMENT
from unified_server.predictive.newest import Newest, parsed, positive

logger = logging.getLogger(__name__)

_CONFIGURATIONS = 100  # the newest of a model (or a family) on a hardware
_CALIBRATING = 20_000  # the newest measurements, which say what part of its roof a model reaches
_GROWN = 1.5  # times as many measurements: then they are asked again
_SCAN_ROWS = 2_048  # DuckDB's threads share out an Arrow table by its record batches

_FIGURES = ("throughput", "latency", "memory_usage")
BASELINE_SCHEMA = pa.schema([(f"{baseline}_{figure}", pa.float64()) for baseline in ("nearest", "roofline") for figure in _FIGURES])

_DEFAULTED = ", ".join(f"coalesce({field.name}, {field.default!r}) AS {field.name}" for field in MEASUREMENT if field.default is not None)


_ASKED = parsed(f"(SELECT * REPLACE ({_DEFAULTED}) FROM rows)")


def _roofs(rows: str) -> str:
    """The rows whose device is known, with ``item_ms`` and ``model_mb``."""
    return f"""
    SELECT *, greatest(2 * work / tflops, 4 * moved / bandwidth) AS item_ms, 4 * parameters AS model_mb
    FROM (
        SELECT *,
            coalesce(gmacs, parameters / 1000 * CASE WHEN length_assumed THEN 1 ELSE length END) AS work,
            coalesce(macts, parameters / batch) AS moved
        FROM {rows}
    )
    JOIN specs USING (device)"""


def _near(same: str, distance: str) -> str:
    """Of each asked row the figures of the nearest configuration with the ``same`` columns; no row where there is none."""
    medians = ", ".join(f"median({figure}) FILTER (isfinite({figure}) AND {figure} > 0) AS {figure}" for figure in _FIGURES)
    values = {"throughput": "near.throughput", "latency": "near.latency * asked.batch / near.batch", "memory_usage": "near.memory_usage"}
    chosen = ", ".join(f"arg_min({value}, {distance}) FILTER (near.{figure} IS NOT NULL) AS {figure}" for figure, value in values.items())
    return f"""
    WITH configurations AS (
        SELECT {same}, hardware_platform, mode, precision, device, batch, length, median(parameters) AS parameters, {medians}
        FROM newest
        WHERE {same} IN (SELECT {same} FROM asked)
        GROUP BY {same}, hardware_platform, mode, precision, device, batch, length
        QUALIFY row_number() OVER (PARTITION BY {same}, hardware_platform, mode ORDER BY max(id) DESC) <= {_CONFIGURATIONS}
    )
    SELECT position, {chosen}
    FROM asked
    JOIN configurations AS near USING ({same}, mode)
    GROUP BY position"""


_FAR = """(abs(ln(asked.batch / near.batch)) + abs(ln(asked.length / near.length))
        + (asked.precision IS DISTINCT FROM near.precision)::INT + (asked.device <> near.device)::INT)"""
_OF_MODEL = _near("model_name", f"{_FAR} + 1000 * (asked.hardware_platform IS DISTINCT FROM near.hardware_platform)::INT")
_OF_FAMILY = _near(
    "model_family",
    f"CASE WHEN asked.hardware_platform = near.hardware_platform THEN {_FAR} + coalesce(abs(ln(asked.parameters / near.parameters)), 1) END",
)

_GUESSES = f"""
WITH roofline AS (
    SELECT position, 1000 / item_ms * coalesce(of_throughput, 1) AS throughput,
        batch * item_ms * coalesce(of_latency, 1) AS latency, model_mb * coalesce(of_memory_usage, 1) AS memory_usage
    FROM ({_roofs("asked")})
    LEFT JOIN factors USING (hardware_platform, mode, precision)
)
SELECT {", ".join(f"{positive(f'{name}.{figure}')} AS {name}_{figure}" for name in ("nearest", "roofline") for figure in _FIGURES)}
FROM asked
LEFT JOIN nearest USING (position)
LEFT JOIN roofline USING (position)
ORDER BY position
"""

_FACTORS = f"""
WITH newest AS MATERIALIZED ({parsed(f"(SELECT * FROM measurements WHERE id > (SELECT max(id) FROM measurements) - {_CALIBRATING})")})
SELECT hardware_platform, mode, precision,
    median(throughput * item_ms / 1000) FILTER (isfinite(throughput) AND throughput > 0) AS of_throughput,
    median(latency / (batch * item_ms)) FILTER (isfinite(latency) AND latency > 0) AS of_latency,
    median(memory_usage / model_mb) FILTER (isfinite(memory_usage) AND memory_usage > 0) AS of_memory_usage
FROM ({_roofs("newest")})
GROUP BY hardware_platform, mode, precision
"""


def _select(cursor: duckdb.DuckDBPyConnection, query: str, **tables: pa.Table) -> pa.Table:
    """What the query finds in these tables. One after another: a single statement of all of them takes longer to plan than all take to run."""
    for name, table in tables.items():
        cursor.register(name, table)
    try:
        found: pa.Table = cursor.sql(query).to_arrow_table()
    finally:
        for name in tables:
            cursor.unregister(name)
    return found


class Baselines:
    """The guesses over the measurements of a file. Safe to use from several threads."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._of_model, self._of_family = Newest("model_name"), Newest("model_family")
        self._lock = threading.Lock()
        self._factors: tuple[int, pa.Table] | None = None  # and how many measurements there were
        specs = [(name, spec.bandwidth_gb_s, spec.fp32_tflops) for name, spec in published_specs().items()]
        self._specs = pa.table(dict(zip(("device", "bandwidth", "tflops"), map(list, zip(*specs, strict=True)), strict=True)))

    def guess(self, measurements: pa.Table) -> pa.Table:
        """BASELINE_SCHEMA for each row of a table in TABLE_SCHEMA, in its order; its own figures are not looked at.

        Null where nothing is near, or the device or the size is not known. When the database fails, the log says so and all is null: a comparison
        must not keep a prediction from being given.
        """
        try:
            return self._guess(measurements)
        except (duckdb.Error, DatabaseBusy) as error:
            logger.warning("there are no baselines: %s", error)
            return pa.table({field.name: pa.nulls(measurements.num_rows, field.type) for field in BASELINE_SCHEMA})

    def _guess(self, measurements: pa.Table) -> pa.Table:
        asked = measurements.select([name for name in measurements.column_names if name not in _FIGURES])
        asked = asked.append_column("position", pa.array(range(asked.num_rows), pa.int64()))
        asked = pa.Table.from_batches(asked.to_batches(max_chunksize=_SCAN_ROWS), asked.schema)
        with self._file.cursor() as cursor:
            asked = _select(cursor, _ASKED, rows=asked)
            nearest = _select(cursor, _OF_MODEL, asked=asked, newest=self._of_model.table(cursor, _names(asked, "model_name")))
            strangers = asked.filter(pc.invert(pc.is_in(asked.column("position"), nearest.column("position"))))
            if families := _names(strangers, "model_family"):
                found = _select(cursor, _OF_FAMILY, asked=strangers, newest=self._of_family.table(cursor, families))
                nearest = pa.concat_tables([nearest, found])
            factors = self._usual(cursor)
            found = _select(cursor, _GUESSES, asked=asked, nearest=nearest, specs=self._specs, factors=factors)
        return found.cast(BASELINE_SCHEMA)

    def _usual(self, cursor: duckdb.DuckDBPyConnection) -> pa.Table:
        """What measurements usually are of their roofs; looked at anew when there are half as many more."""
        ((count,),) = cursor.execute("SELECT coalesce(max(id), 0) FROM measurements").fetchall()
        with self._lock:
            if self._factors is None or not self._factors[0] <= count < _GROWN * self._factors[0] + 1:
                self._factors = count, _select(cursor, _FACTORS, specs=self._specs)
            return self._factors[1]


def _names(asked: pa.Table, column: str) -> list[str]:
    names: list[str] = pc.unique(asked.column(column).drop_null()).to_pylist()
    return names
