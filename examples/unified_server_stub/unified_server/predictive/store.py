"""The predictive API's own database: measurements, each key once, and the predictions made from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from unified_server.database import DatabaseFile, whole
from unified_server.predictive.measurement import MEASUREMENT, OUTCOME_SCHEMA, aligned
from unified_server.predictive.predictor import Configuration
from unified_server.rows import fetch_rows, where_clause

# DuckDB's threads share out an Arrow table by its record batches; one large one would keep one thread busy.
_SCAN_ROWS = 16_384

# A key is kept as 128 bits: its own where it is a UUID in the usual spelling, its MD5 otherwise (and then the text
# beside it). An index over UUIDs takes half the time and the space of one over text.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    id BIGINT NOT NULL, key UUID UNIQUE, key_text VARCHAR, recorded_at TIMESTAMP NOT NULL,
    model_name VARCHAR NOT NULL, model_family VARCHAR, hardware_platform VARCHAR NOT NULL,
    batch_size BIGINT NOT NULL, sequence_length BIGINT NOT NULL, precision VARCHAR NOT NULL, mode VARCHAR NOT NULL,
    throughput DOUBLE, latency DOUBLE, memory_usage DOUBLE,
    prediction_id VARCHAR, source VARCHAR, measured_at TIMESTAMP, source_ref VARCHAR, metadata VARCHAR);
CREATE TABLE IF NOT EXISTS predictions (
    prediction_id VARCHAR NOT NULL, predicted_at TIMESTAMP NOT NULL,
    model_name VARCHAR NOT NULL, model_family VARCHAR, hardware_platform VARCHAR NOT NULL,
    batch_size BIGINT NOT NULL, sequence_length BIGINT NOT NULL, precision VARCHAR NOT NULL, mode VARCHAR NOT NULL,
    throughput DOUBLE, latency DOUBLE, memory_usage DOUBLE, source VARCHAR NOT NULL);
"""

_STORED = [field for field in MEASUREMENT if field.name != "idempotency_key"]
_NAMES = ", ".join(field.name for field in _STORED)
_DEFAULTED = ", ".join(
    f"coalesce({field.name}, {field.default!r}) AS {field.name}" if field.default is not None else field.name for field in _STORED
)
_PROBLEM = f"coalesce({', '.join(field.sql_problem() for field in MEASUREMENT)})"


def _keyed(table: str) -> str:
    """The table with ``key`` and ``key_text`` beside its idempotency_key; each step is a SELECT so that it is done once a row."""
    return f"""
(
    SELECT *,
        CASE WHEN is_uuid THEN uuid ELSE md5(idempotency_key)::UUID END AS key,
        CASE WHEN NOT is_uuid THEN idempotency_key END AS key_text
    FROM (
        SELECT *, uuid IS NOT NULL AND uuid::VARCHAR = idempotency_key AS is_uuid
        FROM (SELECT *, try_cast(idempotency_key AS UUID) AS uuid FROM {table})
    )
)
"""


# Every row of a batch in one statement, ids in the order of the rows. Rows with a problem are left out: the count tells.
_INSERT_ALL = f"""
INSERT INTO measurements (id, key, key_text, recorded_at, {_NAMES})
SELECT $first_id + position, key, key_text, $now, {_DEFAULTED}
FROM {_keyed("batch")}
"""
_INSERT_ALL_GOOD = f"{_INSERT_ALL} WHERE {_PROBLEM} IS NULL"

_STAGE = f"""
CREATE OR REPLACE TEMP TABLE incoming AS
SELECT position, idempotency_key, key, key_text, {_DEFAULTED}, {{error}} AS error
FROM {_keyed("batch")}
"""
_STAGE_CHECKED = _STAGE.format(error="NULL::VARCHAR")
_STAGE_AND_CHECK = _STAGE.format(error=_PROBLEM)

_CHOOSE = """
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT position, (SELECT coalesce(max(id), 0) FROM measurements) + row_number() OVER (ORDER BY position) AS id
FROM (
    SELECT min(position) AS position
    FROM incoming
    WHERE error IS NULL AND key IS NOT NULL AND NOT EXISTS (FROM measurements WHERE measurements.key = incoming.key)
    GROUP BY key
    UNION ALL
    SELECT position
    FROM incoming
    WHERE error IS NULL AND key IS NULL
)
"""

_INSERT_CHOSEN = f"""
INSERT INTO measurements (id, key, key_text, recorded_at, {_NAMES})
SELECT id, key, key_text, ?, {_NAMES}
FROM chosen
JOIN incoming USING (position)
"""

_OUTCOMES = """
SELECT incoming.idempotency_key,
    CASE WHEN error IS NOT NULL THEN 'rejected' WHEN chosen.id IS NOT NULL THEN 'created' ELSE 'existing' END AS status,
    CASE WHEN error IS NULL THEN 'm-' || coalesce(chosen.id, measurements.id) END AS measurement_id,
    error
FROM incoming
LEFT JOIN chosen USING (position)
LEFT JOIN measurements ON measurements.key = incoming.key
ORDER BY position
"""

_ROWS = """
SELECT id, recorded_at AS timestamp, model_name, model_family, hardware_platform, batch_size, sequence_length,
    precision, mode,
    CASE WHEN isfinite(throughput) THEN throughput END AS throughput,
    CASE WHEN isfinite(latency) THEN latency END AS latency,
    CASE WHEN isfinite(memory_usage) THEN memory_usage END AS memory_usage,
    source AS measurement_source, 'm-' || id AS measurement_id, metadata, prediction_id, measured_at, source_ref,
    coalesce(key_text, key::VARCHAR) AS idempotency_key
FROM measurements
"""


_CONFIGURATIONS = """
SELECT batch_size, sequence_length, precision,
    median(throughput) FILTER (isfinite(throughput)),
    median(latency) FILTER (isfinite(latency)),
    median(memory_usage) FILTER (isfinite(memory_usage)),
    count(*),
    list('m-' || id ORDER BY id DESC)[1:5]
FROM measurements
WHERE model_name = ? AND hardware_platform = ? AND mode = ?
GROUP BY batch_size, sequence_length, precision
ORDER BY batch_size, sequence_length, precision
"""


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Create what is missing. Checkpoints are made rarer and rows may be stored in any order, which bulk loading gains
    from: an insert that keeps the order costs half as much again.

    So what needs an order says ORDER BY and is read with ``fetchall``, or ``sql`` without values. Arrow tables from
    ``execute`` (DuckDB 2.0) and from ``sql`` with values (1.5) come back out of order then.
    """
    connection.execute("SET checkpoint_threshold = '256MB'")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(_SCHEMA)


class _NotAllGood(Exception):
    """A row of the batch cannot be stored."""


def _record_all(cursor: duckdb.DuckDBPyConnection, batch: pa.Table, now: datetime, *, checked: bool) -> pa.Table:
    """Store the whole batch, or nothing. Raises _NotAllGood, or ConstraintException for a key that is known or repeated."""
    with whole(cursor):
        ((first_id,),) = cursor.execute("SELECT coalesce(max(id), 0) + 1 FROM measurements").fetchall()
        insert = _INSERT_ALL if checked else _INSERT_ALL_GOOD
        ((inserted,),) = cursor.execute(insert, {"first_id": first_id, "now": now}).fetchall()
        if inserted < batch.num_rows:
            raise _NotAllGood
    numbers = pc.add(batch.column("position"), first_id).cast(pa.string())
    return pa.table(
        {
            "idempotency_key": batch.column("idempotency_key"),
            "status": pa.repeat("created", batch.num_rows),
            "measurement_id": pc.binary_join_element_wise("m-", numbers, ""),
            "error": pa.nulls(batch.num_rows, pa.string()),
        },
        schema=OUTCOME_SCHEMA,
    )


def _record_each(cursor: duckdb.DuckDBPyConnection, now: datetime, *, checked: bool) -> pa.Table:
    """Store the rows that can be stored, each key once, and tell the others apart."""
    with whole(cursor):
        cursor.execute(_STAGE_CHECKED if checked else _STAGE_AND_CHECK)
        cursor.execute(_CHOOSE)
        cursor.execute(_INSERT_CHOSEN, [now])
        outcomes: pa.Table = cursor.sql(_OUTCOMES).to_arrow_table()
        cursor.execute("DROP TABLE incoming; DROP TABLE chosen")
    return outcomes.cast(OUTCOME_SCHEMA)


class MeasurementStore:
    """Stores and lists measurements. Thread-safe; one writer at a time in a process."""

    def __init__(self, file: DatabaseFile, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._file = file
        self._now = now
        self._writing = threading.Lock()
        self.recorded = 0  # by this object, since it was made

    def utc_now(self) -> datetime:
        """The time now, naive UTC, as the tables keep it."""
        return self._now().astimezone(UTC).replace(tzinfo=None)

    def record(self, table: pa.Table, *, checked: bool = False) -> pa.Table:
        """Store a batch in one transaction and say what became of each row, in order (see OUTCOME_SCHEMA).

        A batch of good rows with new keys, the usual case, is one INSERT; any other is rolled back and taken again row
        by row, which costs twice the time.

        ``checked``: every value is known to be right, so no row can be rejected; planning the checks costs more than a
        row or two. A key is stored once, also when it is twice in the batch; the first row that can be stored wins.
        Rows without a key are always stored. Raises InvalidInput for a column of the wrong type, DatabaseBusy,
        duckdb.Error; then nothing is stored.
        """
        batch = aligned(table)
        batch = batch.append_column("position", pa.array(range(batch.num_rows), pa.int64()))
        batch = pa.Table.from_batches(batch.to_batches(max_chunksize=_SCAN_ROWS), batch.schema)
        with self._writing, self._file.cursor() as cursor:
            cursor.register("batch", batch)
            try:
                outcomes = _record_all(cursor, batch, self.utc_now(), checked=checked)
            except (_NotAllGood, duckdb.ConstraintException):
                outcomes = _record_each(cursor, self.utc_now(), checked=checked)
            cursor.unregister("batch")
            self.recorded += pc.sum(pc.equal(outcomes.column("status"), "created")).as_py() or 0
        return outcomes

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """The measurement id of each key that is stored."""
        asked = pa.table({"idempotency_key": pa.array(keys, pa.string())})
        with self._file.cursor() as cursor:
            cursor.register("asked", asked)
            found = cursor.execute(
                f"SELECT DISTINCT idempotency_key, 'm-' || id FROM {_keyed('asked')} AS asked JOIN measurements USING (key)"
            ).fetchall()
            cursor.unregister("asked")
        return dict(found)

    def measurement(self, measurement_id: str) -> dict[str, Any] | None:
        """The stored row, as in ``measurements``."""
        number = measurement_id.removeprefix("m-")
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            return None
        with self._file.cursor() as cursor:
            rows = fetch_rows(cursor, f"{_ROWS} WHERE id = ?", [int(number)])
        return rows[0] if rows else None

    def measurements(self, equal: Mapping[str, str | int | None], *, days: float | None = None, limit: int = 10) -> list[dict[str, Any]]:
        """The newest rows first, those whose columns are ``equal`` (None: any), recorded in the last ``days``."""
        since = None if days is None else self.utc_now() - timedelta(days=days)
        where, values = where_clause(equal, "recorded_at", since)
        with self._file.cursor() as cursor:
            return fetch_rows(cursor, f"{_ROWS} {where} ORDER BY id DESC LIMIT ?", [*values, limit])

    def count(self) -> int:
        """How many measurements there are."""
        with self._file.cursor() as cursor:
            ((count,),) = cursor.execute("SELECT count(*) FROM measurements").fetchall()
        return int(count)

    def newest(self, most: int) -> pa.Table:
        """The newest measurements with a figure, in TABLE_SCHEMA, in any order. Without keys: nobody learns from those."""
        names = ", ".join(f"NULL AS {field.name}" if field.name == "idempotency_key" else field.name for field in MEASUREMENT)
        with self._file.cursor() as cursor:
            found = cursor.sql(f"SELECT {names} FROM measurements ORDER BY id DESC LIMIT {int(most)}").to_arrow_table()
        return aligned(found)

    def configurations(self, model_name: str, hardware_platform: str, mode: str) -> list[Configuration]:
        """What was measured of a model on a hardware: medians for each batch size, sequence length and precision."""
        with self._file.cursor() as cursor:
            rows = cursor.execute(_CONFIGURATIONS, [model_name, hardware_platform, mode]).fetchall()
        return [Configuration(*row) for row in rows]
