"""A file that was compared before, and only grew: what is new by its ids alone."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.comparison.first import Census
from benchbridge_plugin.comparison.rows import CANDIDATES, ORDER, TAKES_BACK, as_new, identity, seen_by
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Comparison, Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.source import BenchmarkSource

_TAKES_BACK = pa.array(TAKES_BACK)


@dataclass(frozen=True, slots=True)
class Found:
    """What a look for new ids found: what it counts, the ids, and what is to be sent (as in a Plan)."""

    layout: Layout
    more: Comparison
    ids: pa.Array
    candidates: pa.Table
    batch: pa.Table | None  # as in a Plan: what is new, where nothing else is due


def look(
    source: BenchmarkSource,
    mapper: Mapper,
    ledger: Ledger,
    source_id: int,
    *,
    cutoff_us: int | None,
    scope: str,
    model: str | None = None,
    profile: SinkProfile | None = None,
    most: int,
) -> Found | None:
    """What is new since the last comparison, by id alone, and what is due: as much work as there is new, and one look at all ids.

    None when ids do not tell, because some are gone or repeated, when there is more than `most` to do, or when nothing was ever compared: then
    `compare`. A result that changed in place is for `compare` too. Raises SourceError and LedgerError.
    """
    seen = ledger.comparisons.seen(source_id)
    if not seen:
        return None
    signature = str(source.signature())
    layout, ids = source.ids()
    if ids.type != seen[0].type or ids.null_count:
        return None
    new = _new_among(ids, pa.concat_arrays(seen))
    if new is None or len(new) > most or pc.count_distinct(new).as_py() != len(new):
        return None
    due = ledger.comparisons.due(source_id, most)
    if len(due) >= most:
        return None
    read = source.read(layout, new.cast(pa.string()))
    rows, batch = seen_by(mapper, read, None if len(due) else profile, cutoff_us=cutoff_us, model=model)
    if len(rows) != len(new) or len(ledger.comparisons.known(source_id, rows.column("result_id").to_pylist())):
        return None  # the file changed between the two reads, or the ledger knows more than it has seen
    census = Census(layout, new, None, signature, scope, Comparison(0, 0, {}, signature, scope, {}), total=0)
    census.add(rows)
    wanted = rows.filter(pc.and_(pc.is_null(rows.column("skip")), rows.column("wanted")))
    again = _due_again(source, mapper, layout, due, cutoff_us=cutoff_us, model=model)
    candidates = [table.select(CANDIDATES.names).cast(CANDIDATES) for table in (as_new(wanted), again)]
    return Found(layout, census.comparison(), new, pa.concat_tables(candidates).sort_by(ORDER), batch)


def _new_among(ids: pa.ChunkedArray, seen: pa.Array) -> pa.Array | None:
    """The ids that were not seen before; None if one that was seen is gone, or is there twice.

    Most files only grow at their end. Then they begin with what was seen, in the same order, and comparing that costs a tenth of looking everything up.
    """
    new = ids.slice(len(seen)).combine_chunks()
    if ids.slice(0, len(seen)).equals(pa.chunked_array([seen])):
        return None if pc.any(pc.is_in(seen, value_set=new)).as_py() else new
    new = ids.filter(pc.invert(pc.is_in(ids, value_set=seen))).combine_chunks()
    return new if len(ids) - len(new) == len(seen) else None


def _due_again(
    source: BenchmarkSource, mapper: Mapper, layout: Layout, due: pa.Table, *, cutoff_us: int | None, model: str | None
) -> pa.Table:
    """The rows that are due and still stand in the file as the ledger knows them, as candidates."""
    if not len(due):
        return CANDIDATES.empty_table()
    rows = mapper.classify(source.read(layout, due.column("result_id").combine_chunks()), cutoff_us=cutoff_us, model=model)
    rows = rows.filter(pc.and_(rows.column("wanted"), pc.invert(pc.fill_null(pc.is_in(rows.column("skip"), value_set=_TAKES_BACK), False))))
    place = pc.index_in(identity(rows), value_set=identity(due))
    kept = rows.filter(pc.is_valid(place))
    attempts = due.column("attempts").take(place.drop_null())
    kept = kept.select(["result_id", "content_hash", "priority", "measured_at_us"])
    return kept.append_column("is_new", pa.repeat(False, len(kept))).append_column("attempts", attempts)
