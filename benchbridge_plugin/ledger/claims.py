"""Batches on their way: what a run has taken up, is handing to the sink, and has not written down result by result yet.

A result is written once, when it is known what became of it. What has to be durable before the first byte leaves is only *that* it is about to be
sent, so a claim is one value: the identities of a whole batch as an Arrow stream. Its results count as in doubt. Acknowledging writes their rows and
removes the claim in one transaction; a claim that is found when a run begins belongs to a process that is gone, and becomes rows in doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, select

from benchbridge_plugin.ledger.leases import Holder
from benchbridge_plugin.ledger.schema import claims

#: What identifies the results of a claim, and what a row needs beside what became of it. `key`: model.BATCH_FIELDS; `subject_id`: schema.subjects.
CLAIM_SCHEMA = pa.schema(
    [
        ("result_id", pa.string()),
        ("content_hash", pa.binary(16)),
        ("key", pa.binary(16)),
        ("subject_id", pa.int32()),
        ("measured_at_us", pa.int64()),  # microseconds since 1970 UTC, or null
        ("quality", pa.int16()),
    ]
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed batch: what `claim` gives and `acknowledge` takes back.

    `batch` are its deliverable rows, in order; `is_new` says which of them the ledger has no row for, and `fresh` are these, as CLAIM_SCHEMA.
    `number` names them in the ledger; None when there are none.
    """

    number: int | None
    batch: pa.Table
    is_new: pa.BooleanArray
    fresh: pa.Table


def store(connection: Connection, source_id: int, holder: Holder, fresh: pa.Table, now: float) -> int:
    """Write a claim. Returns its number."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, CLAIM_SCHEMA) as writer:
        writer.write_table(fresh)
    values = {
        "source_id": source_id,
        "run_id": holder.run_id,
        "share_id": holder.share,
        "results": len(fresh),
        "payload": sink.getvalue().to_pybytes(),
        "claimed_at": now,
    }
    inserted = connection.execute(claims.insert().values(**values))
    assert inserted.inserted_primary_key
    return int(inserted.inserted_primary_key[0])


def remove(connection: Connection, source_id: int, number: int) -> bool:
    """Take a claim back. False: it is not there."""
    return connection.execute(claims.delete().where(claims.c.source_id == source_id, claims.c.claim_id == number)).rowcount == 1


def _of(source_id: int, share: int | None) -> ColumnElement[bool]:
    return (claims.c.source_id == source_id) if share is None else and_(claims.c.source_id == source_id, claims.c.share_id == share)


def count(connection: Connection, source_id: int, *, share: int | None = None) -> int:
    """How many results are claimed and have no row of their own; with `share`, under that share alone."""
    found = connection.execute(select(func.sum(claims.c.results)).where(_of(source_id, share))).scalar_one()
    return int(found or 0)


def counts(connection: Connection, source_ids: Sequence[int]) -> dict[int, int]:
    """The same of several sources. One that has none is left out."""
    statement = (
        select(claims.c.source_id, func.sum(claims.c.results)).where(claims.c.source_id.in_(source_ids)).group_by(claims.c.source_id)
    )
    return {source_id: int(count) for source_id, count in connection.execute(statement)}


def read(connection: Connection, source_id: int, *, share: int | None = None) -> Iterator[tuple[RowMapping, pa.Table]]:
    """All claims of a source (of one share, if given), oldest first, each with its results (CLAIM_SCHEMA)."""
    statement = select(claims).where(_of(source_id, share)).order_by(claims.c.claim_id)
    for row in connection.execute(statement).mappings().all():
        yield row, pa.ipc.open_stream(row["payload"]).read_all()


def by_subject(connection: Connection, source_id: int) -> Mapping[int, int]:
    """How many claimed results each subject has."""
    counts: dict[int, int] = {}
    for _, results in read(connection, source_id):
        for pair in pc.value_counts(results.column("subject_id")).to_pylist():
            counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return counts


def as_rows(results: pa.Table) -> Sequence[tuple[Any, ...]]:
    """The results of a claim as plain tuples, in the order of CLAIM_SCHEMA but with `measured_at` in seconds."""
    seconds = [None if at is None else at / 1e6 for at in results.column("measured_at_us").to_pylist()]
    names = ("result_id", "content_hash", "key", "subject_id")
    return list(zip(*(results.column(name).to_pylist() for name in names), seconds, results.column("quality").to_pylist(), strict=True))


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def filtered(rows: pa.Table, mask: pa.BooleanArray) -> pa.Table:
    """The rows of the mask; without copying them where that is all of them, or none."""
    count = mask.true_count
    return rows if count == len(rows) else rows.slice(0, 0) if not count else rows.filter(mask)


def zipped(batch: pa.Table, first: str, second: str) -> list[tuple[str, str]]:
    """The pairs of two text columns, row by row. Null is as good as empty."""
    return [(one or "", two or "") for one, two in zip(batch.column(first).to_pylist(), batch.column(second).to_pylist(), strict=True)]


def encoded(batch: pa.Table, first: str, second: str) -> tuple[list[tuple[str, str]], pa.Array]:
    """The distinct pairs of two text columns, and for each row the place of its pair. Null is as good as empty."""
    one, two = (whole(pc.fill_null(batch.column(name), "")).dictionary_encode() for name in (first, second))
    width = len(two.dictionary)
    codes = pc.add(pc.multiply(one.indices.cast(pa.int64()), width), two.indices.cast(pa.int64())).dictionary_encode()
    ones, twos = one.dictionary.to_pylist(), two.dictionary.to_pylist()
    return [(ones[code // width], twos[code % width]) for code in codes.dictionary.to_pylist()], codes.indices


def identities(batch: pa.Table, subject_ids: pa.Array, mask: pa.BooleanArray) -> pa.Table:
    """What identifies the rows of the mask (CLAIM_SCHEMA). `subject_ids`: of all rows."""
    rows = batch.select(["result_id", "content_hash", "key", "measured_at_us", "quality"]).append_column("subject_id", subject_ids)
    rows = filtered(rows, mask)
    return pa.table([rows.column(field.name).cast(field.type) for field in CLAIM_SCHEMA], schema=CLAIM_SCHEMA)
