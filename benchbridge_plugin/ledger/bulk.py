"""Many delivered results written at once, without a Python object for any of them.

SQLite takes a JSON list of ids and one long value for each other column, of which row n has the n-th piece: a hundred thousand rows are one statement,
and the driver lets other threads run meanwhile. PostgreSQL takes them as CSV, by COPY. Tuples through the driver cost more than twice as much
(docs/decisions/ledger.md). What cannot be laid out like this (on SQLite: ids with anything but plain ASCII in them) goes the slow way.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from benchbridge_plugin.ledger.claims import as_rows
from benchbridge_plugin.ledger.store import insert_many
from benchbridge_plugin.model import State

_COLUMNS = "source_id, result_id, content_hash, key, subject_id, measured_at, quality, state, measurement_id, attempts, run_id, updated_at"
_TUPLES_SQL = f"INSERT INTO deliveries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, {int(State.DELIVERED)}, ?, 1, ?, ?)"
#: Piece `key` of a column whose values all have the same width. `key` is json_each's name for the place in the list.
_PIECE = "substr(:{0}, key * :{0}_width + 1, :{0}_width)"


def _pieces_sql(*, nulls: bool) -> str:
    """`nulls`: some times or names are null. To look for them is a tenth of the whole statement."""
    time = f"CAST({'nullif({}, :no_time)' if nulls else '{}'} AS INTEGER) / 1e6".format(_PIECE.format("times"))
    name = ("nullif({}, '')" if nulls else "{}").format(f"rtrim(CAST({_PIECE.format('names')} AS TEXT))")
    return f"""
    INSERT INTO deliveries ({_COLUMNS})
    SELECT :source_id,
           value,
           substr(:hashes, key * 16 + 1, 16),
           substr(:keys, key * 16 + 1, 16),
           CAST({_PIECE.format("subjects")} AS INTEGER),
           {time},
           CAST({_PIECE.format("qualities")} AS INTEGER),
           {int(State.DELIVERED)},
           {name},
           1,
           :run_id,
           :now
      FROM json_each(:ids)
    """


_PIECES_SQL = {nulls: _pieces_sql(nulls=nulls) for nulls in (False, True)}
_COPY_SQL = f"COPY deliveries ({_COLUMNS}) FROM STDIN WITH (FORMAT csv)"
_FEWEST = 200  # below that the layout costs more than it saves
_WIDEST = 200


def insert_delivered(connection: Connection, source_id: int, run_id: int, fresh: pa.Table, names: pa.Array, now: float) -> int:
    """Write `fresh` (claims.CLAIM_SCHEMA) as delivered, `names` being the sink's ids (text or null). Returns how many rows that made."""
    if not len(fresh):
        return 0
    if connection.dialect.driver == "psycopg" and len(fresh) >= _FEWEST:
        return _copy(connection, _csv(source_id, run_id, fresh, names, now), len(fresh))
    pieces = _pieces(fresh, names) if connection.dialect.name == "sqlite" and len(fresh) >= _FEWEST else None
    if pieces is not None:
        nulls = bool(fresh.column("measured_at_us").null_count or names.null_count)
        return connection.exec_driver_sql(_PIECES_SQL[nulls], {**pieces, "source_id": source_id, "run_id": run_id, "now": now}).rowcount
    rows = [(source_id, *row, name, run_id, now) for row, name in zip(as_rows(fresh), names.to_pylist(), strict=True)]
    return insert_many(connection, _TUPLES_SQL, rows)


def _pieces(fresh: pa.Table, names: pa.Array) -> dict[str, Any] | None:
    """The parameters of _PIECES_SQL, or None when a text does not lend itself to it."""
    ids = _one(fresh.column("result_id"))
    if not _is_plain(ids, '"', "\\", " ") or not _is_plain(names.drop_null(), " "):
        return None
    named = pc.fill_null(names, "")
    widest = pc.max(pc.binary_length(named)).as_py()
    if widest > _WIDEST:
        return None
    times = _texts(fresh.column("measured_at_us"))
    return {
        "ids": '["' + _joined(ids, '","') + '"]',
        "hashes": _bytes(_one(fresh.column("content_hash"))),
        "keys": _bytes(_one(fresh.column("key"))),
        **_fixed("subjects", _texts(fresh.column("subject_id"))),
        **_fixed("times", times),
        "no_time": b" " * max(pc.max(pc.binary_length(times)).as_py(), 1),
        **_fixed("qualities", _texts(fresh.column("quality"))),
        **_fixed("names", named),
    }


def _copy(connection: Connection, lines: pa.Buffer, count: int) -> int:
    """COPY in the transaction that the connection is in. SQLAlchemy has no word for it; an error of the driver becomes one of SQLAlchemy's."""
    driver = connection.connection.driver_connection
    errors = connection.dialect.loaded_dbapi.Error
    assert driver is not None
    try:
        with driver.cursor() as cursor, cursor.copy(_COPY_SQL) as copy:
            copy.write(memoryview(lines))
    except errors as error:
        raise DBAPIError.instance(_COPY_SQL, None, error, errors) from error
    return count


def _csv(source_id: int, run_id: int, fresh: pa.Table, names: pa.Array, now: float) -> pa.Buffer:
    """The rows as PostgreSQL reads them: every text in quotes, so that an empty one is not taken for null."""
    count = len(fresh)
    times = _one(fresh.column("measured_at_us"))
    rows = pa.table(
        [
            pa.repeat(source_id, count),
            _one(fresh.column("result_id")),
            _hex(_one(fresh.column("content_hash"))),
            _hex(_one(fresh.column("key"))),
            _one(fresh.column("subject_id")),
            pc.divide(times.cast(pa.float64(), safe=False), 1e6),
            _one(fresh.column("quality")),
            pa.repeat(int(State.DELIVERED), count),
            names,
            pa.repeat(1, count),
            pa.repeat(run_id, count),
            pa.repeat(now, count),
        ],
        names=_COLUMNS.split(", "),
    )
    sink = pa.BufferOutputStream()
    csv.write_csv(rows, sink, csv.WriteOptions(include_header=False))
    return sink.getvalue()


def _hex(column: pa.FixedSizeBinaryArray) -> pa.Array:
    """Bytes as PostgreSQL writes them: \\x and two digits for each."""
    digits = pa.py_buffer(_bytes(column).hex().encode("ascii"))
    texts = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * column.type.byte_width), len(column), [None, digits])
    return pc.binary_join_element_wise("\\x", texts.cast(pa.binary()).cast(pa.string()), "")


def _is_plain(texts: pa.Array, *without: str) -> bool:
    """Whether all are printable ASCII without these characters, and none is empty: what JSON takes as it is, and padding can be told from."""
    plain = (pc.string_is_ascii(texts), pc.ascii_is_printable(texts), pc.not_equal(texts, ""))
    if not all(pc.all(are, min_count=0).as_py() for are in plain):
        return False
    return not any(pc.any(pc.match_substring(texts, character), min_count=0).as_py() for character in without)


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return pc.fill_null(_one(column).cast(pa.string()), "")


def _joined(texts: pa.Array, between: str) -> str:
    listed = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return str(pc.binary_join(listed, between)[0].as_py())


def _bytes(column: pa.FixedSizeBinaryArray) -> bytes:
    width = column.type.byte_width
    data = column.buffers()[1]
    return bytes(memoryview(data)[column.offset * width : (column.offset + len(column)) * width])


def _fixed(name: str, texts: pa.Array) -> dict[str, Any]:
    """Texts of ASCII as one value in which each has the same width, blanks to its right."""
    width = max(pc.max(pc.binary_length(texts)).as_py(), 1)
    return {name: _joined(pc.ascii_rpad(texts, width, " "), "").encode("ascii"), f"{name}_width": width}
