"""The newest measurements with what their metadata says. Parsing it costs more than anything that is asked of it, so each row is parsed once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from unified_server.predictive.learned.specs import NOISE

_MOST = 100_000  # measurements, of whatever is in the file; a quarter more are kept before the oldest go
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


_KEPT = """id, model_name, model_family, hardware_platform, mode, precision, device, batch, length, parameters,
    throughput, latency, memory_usage"""


class Newest:
    """The newest measurements of what was asked for, with one name for each: of a model with ``by="model_name"``, of a family with ``"model_family"``.

    Safe to use from several threads.
    """

    def __init__(self, by: str) -> None:
        self._by = by
        self._lock = threading.Lock()
        self._rows: pa.Table | None = None
        self._read: dict[str, int] = {}  # name -> the last measurement that was there when its own were read
        self._last = 0  # of all
        self._times = 0  # that something was added since the pieces were put together

    def table(self, cursor: duckdb.DuckDBPyConnection, names: Iterable[str]) -> pa.Table:
        """All of these names that are among the newest, and perhaps of others: what is not parsed yet, and no other, is parsed."""
        with self._lock:
            ((last,),) = cursor.execute("SELECT coalesce(max(id), 0) FROM measurements").fetchall()
            # Another file, or all that is kept would go: then it goes first, so that there is not twice as much of it.
            if not self._last <= last < self._last + _MOST:
                self._rows, self._read = None, {}
            oldest = last - _MOST
            unread = {name: max(self._read.get(name, oldest), oldest) for name in names if self._read.get(name, -1) < last}
            if unread or self._rows is None:
                self._rows = self._with(cursor, unread, last)
                self._read.update(dict.fromkeys(unread, last))
            self._last = last
            return self._rows

    def _with(self, cursor: duckdb.DuckDBPyConnection, unread: Mapping[str, int], last: int) -> pa.Table:
        cursor.register("unread", pa.table({self._by: pa.array(unread, pa.string()), "after": pa.array(unread.values(), pa.int64())}))
        try:
            found = f"(SELECT measurements.* FROM measurements JOIN unread USING ({self._by}) WHERE id > after AND id <= {last})"
            rows = cursor.sql(f"SELECT {_KEPT} FROM ({parsed(found)})").to_arrow_table()
        finally:
            cursor.unregister("unread")
        if self._rows is not None:
            rows = pa.concat_tables([self._rows, rows])
        self._times += 1
        if rows.num_rows > 1.25 * _MOST or self._times > _MOST_TIMES:
            oldest = last - _MOST
            rows = rows.filter(pc.greater(rows.column("id"), oldest)).combine_chunks()
            rows, self._times = pa.Table.from_batches(rows.to_batches(_SCAN_ROWS), rows.schema), 0
            self._read = {name: read for name, read in self._read.items() if read > oldest}
        return rows
