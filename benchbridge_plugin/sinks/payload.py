"""A batch as the JSON that goes over the wire: as objects, one for each row, or as texts that DuckDB makes of all rows at once.

Both say the same. The texts take a small part of the time, since no value of any row becomes a Python object and no metadata is parsed to be written
again. Most of that part is planning the statement, so they are made for many requests at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.model import MEASUREMENT_FIELDS

_EXTRA_FIELDS = ("measured_at", "source_ref", "metadata")
#: What DuckDB takes for JSON, and writes as it was read, and nobody else does. It may stand in a text, too: then a costly look says so.
_LOOSE = r"[:\[,]\s*-?(?:nan|inf)"
_MOMENT = "make_timestamp(epoch_us(measured_at))"  # naive, and so in UTC whatever the zone of the session
_MEASURED_AT = f"""CASE WHEN epoch_us(measured_at) % 1000000 = 0
                        THEN strftime({_MOMENT}, '%Y-%m-%dT%H:%M:%S+00:00')
                        ELSE strftime({_MOMENT}, '%Y-%m-%dT%H:%M:%S.%f+00:00') END"""


class Payloads:
    """Makes payloads. For one thread at a time."""

    def __init__(self) -> None:
        self._connection: duckdb.DuckDBPyConnection | None = None

    def rows(self, batch: pa.Table, *, with_extras: bool) -> list[dict[str, Any]]:
        """One object for each row, of the fields that the batch has."""
        rows: list[dict[str, Any]] = batch.select([name for name in _fields(with_extras) if name in batch.column_names]).to_pylist()
        if with_extras:
            for row in rows:
                row["measured_at"] = row["measured_at"].isoformat() if row["measured_at"] else None
                row["metadata"] = json.loads(row["metadata"]) if row["metadata"] else None
        return rows

    def texts(self, batch: pa.Table, *, with_extras: bool) -> pa.StringArray:
        """One JSON object for each row, as text. Raises ValueError for what JSON cannot say (NaN, infinity) or for metadata that is not JSON."""
        if self._connection is None:
            self._connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "threads": 1})
        fields = _fields(with_extras)
        self._connection.register("payload_rows", batch.select(fields))
        try:
            made = self._connection.sql(f"SELECT {_object(fields)} AS object FROM payload_rows").to_arrow_table().column("object")
        except duckdb.Error as error:
            raise ValueError(f"a row cannot be written as JSON: {error}"[:300]) from None
        finally:
            self._connection.unregister("payload_rows")
        texts = pa.concat_arrays(made.chunks) if made.num_chunks else pa.array([], pa.string())
        for text in texts.filter(pc.match_substring_regex(texts, _LOOSE, ignore_case=True)).to_pylist():
            try:
                json.loads(text, parse_constant=_refuse)
            except json.JSONDecodeError as error:
                raise ValueError(f"a row cannot be written as JSON: {error}") from None
        return texts

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def body_of(texts: pa.StringArray) -> bytes:
    """The body of a bulk request."""
    listed = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return b"".join((b'{"measurements": [', pc.binary_join(listed, ",")[0].as_buffer(), b"]}"))


def _fields(with_extras: bool) -> list[str]:
    return [name for name in MEASUREMENT_FIELDS if with_extras or name not in _EXTRA_FIELDS]


def _object(fields: Sequence[str]) -> str:
    """A SQL expression: the JSON object of these fields."""
    special = {"measured_at": _MEASURED_AT, "metadata": "CAST(nullif(metadata, '') AS JSON)"}
    pairs = ", ".join(f"'{name}', {special.get(name, name)}" for name in fields)
    return f"CAST(json_object({pairs}) AS VARCHAR)"


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")
