"""The newest measurements with what their metadata says. Parsing it costs more than anything that is asked of it, so each row is parsed once."""

from __future__ import annotations

import threading

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from unified_server.predictive.learned.specs import NOISE

_MOST = 100_000  # rows; a quarter more before the oldest go
_MOST_TIMES = 100  # that it is brought up to date before its pieces are put together
_SCAN_ROWS = 16_384  # DuckDB's threads share out an Arrow table by its record batches

_SAID = ("base_device_name", "device_name", "parameters_million", "gmacs", "macts_million")
_LEVELS = ("$.", "$.extras.", "$.extras.metadata.", "$.extras.metrics.", "$.metadata.", "$.metrics.")  # nearer ones win
_PATHS = ", ".join(f"'{level}{name}'" for name in _SAID for level in _LEVELS)


def _said(name: str) -> str:
    first = _SAID.index(name) * len(_LEVELS) + 1
    return f"list_any_value(said[{first}:{first + len(_LEVELS) - 1}])"


def positive(number: str) -> str:
    """The number where it can be one of a figure or a size, else null."""
    return f"CASE WHEN isfinite({number}) AND {number} > 0 THEN {number} END"


def parsed(rows: str) -> str:
    """The rows with ``device``, ``parameters``, ``gmacs``, ``macts`` and ``length_assumed`` as their metadata says; ``batch`` and ``length`` from 1."""
    sizes = {"parameters": "parameters_million", "gmacs": "gmacs", "macts": "macts_million"}
    return f"""
    SELECT * REPLACE ({", ".join(f"{positive(name)} AS {name}" for name in sizes)}),
        greatest(batch_size, 1) AS batch,
        greatest(sequence_length, 1) AS length
    FROM (
        SELECT * EXCLUDE (said, is_json),
            regexp_replace(lower(coalesce({_said("base_device_name")}, {_said("device_name")}, '')), '{NOISE}', '', 'g') AS device,
            {", ".join(f"TRY_CAST({_said(said)} AS DOUBLE) AS {name}" for name, said in sizes.items())},
            coalesce(said[{len(_SAID) * len(_LEVELS) + 1}] LIKE '%"sequence_length"%', false) AS length_assumed
        FROM (
            SELECT *, CASE WHEN is_json THEN json_extract_string(metadata, [{_PATHS}, '$.assumed']) END AS said
            FROM (SELECT *, coalesce(json_valid(metadata), false) AS is_json FROM {rows})
        )
    )"""


_KEPT = """id, model_name, model_family, hardware_platform, mode, precision, device, batch, length, length_assumed, parameters, gmacs, macts,
    throughput, latency, memory_usage"""


class Newest:
    """The newest measurements of a file, as far as they were looked at. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: pa.Table | None = None
        self._last = 0  # id that was read
        self._times = 0  # that something was added since the pieces were put together

    def table(self, cursor: duckdb.DuckDBPyConnection) -> pa.Table:
        """All of them, brought up to date: what was recorded since is parsed, and no other."""
        with self._lock:
            ((last,),) = cursor.execute("SELECT coalesce(max(id), 0) FROM measurements").fetchall()
            # Another file, or all that is kept would go: then it goes first, so that there is not twice as much of it.
            if not self._last <= last < self._last + _MOST:
                self._rows, self._last = None, 0
            if self._rows is None or last > self._last:
                self._rows = self._with(cursor, last)
                self._last = last
            return self._rows

    def _with(self, cursor: duckdb.DuckDBPyConnection, last: int) -> pa.Table:
        unread = f"(SELECT * FROM measurements WHERE id > {max(self._last, last - _MOST)} AND id <= {last})"
        rows = cursor.sql(f"SELECT {_KEPT} FROM ({parsed(unread)})").to_arrow_table()
        if self._rows is not None:
            rows = pa.concat_tables([self._rows, rows])
        self._times += 1
        if rows.num_rows > 1.25 * _MOST or self._times > _MOST_TIMES:
            rows = rows.filter(pc.greater(rows.column("id"), last - _MOST)).combine_chunks()
            rows, self._times = pa.Table.from_batches(rows.to_batches(_SCAN_ROWS), rows.schema), 0
        return rows
