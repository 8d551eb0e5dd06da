"""The rows of a file as all ways of finding what to send take them up."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.layout import Layout
from benchbridge_plugin.mapping import CLASSIFIED, Mapper
from benchbridge_plugin.model import BATCH_FIELDS, SinkProfile
from benchbridge_plugin.source import BenchmarkSource

FEW = 2_000  # rows: so many come with the ids, and are sent as they were compared
#: With such rows, what is new cannot be told by ids.
UNTELLING = {"result_id_missing", "result_id_repeated"}
#: Reasons why what was taken up before, and not delivered, is not sent after all.
TAKES_BACK = ("simulated", "failed_run")
#: In which candidates are sent: high-priority models first, then oldest first.
ORDER = [("priority", "descending"), ("measured_at_us", "ascending"), ("result_id", "ascending")]
#: The columns of what is to be sent.
CANDIDATES = pa.schema(
    [
        ("result_id", pa.string()),
        ("content_hash", pa.binary()),
        ("is_new", pa.bool_()),
        ("attempts", pa.int64()),
        ("priority", pa.bool_()),
        ("measured_at_us", pa.int64()),
    ]
)


def ids_and_few(source: BenchmarkSource, *, wait: bool = True) -> tuple[Layout, pa.ChunkedArray, pa.Table | None]:
    """The layout, all ids, and all rows where they are FEW."""
    return source.ids_and_few(FEW, wait=wait)


def sorted_ids(ids: pa.ChunkedArray) -> pa.Array:
    """The ids as `slices` takes them."""
    found = pc.unique(ids.drop_null())
    return found.take(pc.array_sort_indices(found))


def slices(
    source: BenchmarkSource, layout: Layout, ids: pa.Array, few: pa.Table | None, *, wait: bool = True, most: int | None = None
) -> Iterable[pa.Table]:
    """All rows, at most so many at once; those that came with the ids are not read again."""
    if few is None:
        return source.slices(layout, ids, wait=wait, most=most)
    return [few] if len(few) else []


def seen_by(
    mapper: Mapper, rows: pa.Table, profile: SinkProfile | None, *, cutoff_us: int | None, model: str | None
) -> tuple[pa.Table, pa.Table | None]:
    """The rows as `classify` gives them; for a sink also as a batch, by the same statement: planning another takes longer than a few rows do."""
    if profile is None or len(rows) > FEW:
        return mapper.classify(rows, cutoff_us=cutoff_us, model=model), None
    found = mapper.survey(rows, profile, cutoff_us=cutoff_us, model=model)
    return found.select(list(CLASSIFIED)), found.select(list(BATCH_FIELDS))


def identity(rows: pa.Table) -> pa.Array:
    """Result id and content as one value for each row."""
    content = rows.column("content_hash").cast(pa.binary())
    joined = pc.binary_join_element_wise(rows.column("result_id").cast(pa.binary()), content, b"\0")
    return pa.concat_arrays(joined.chunks) if joined.num_chunks else pa.array([], pa.binary())


def as_new(rows: pa.Table) -> pa.Table:
    """Rows that the ledger does not know, with `is_new` and `attempts` as candidates and batches have them."""
    rows = rows.append_column("is_new", pa.repeat(True, len(rows)))
    return rows.append_column("attempts", pa.repeat(pa.scalar(0, pa.int64()), len(rows)))
