"""The file against the ledger: what is new, what changed, what is gone, and what is to be sent in which order.

The whole file is compared by id and content hash, a slice at a time, so that a result that was committed late or changed in place is found wherever
it stands. The joins run in a private in-memory DuckDB; no Python for each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Comparison, Ledger
from benchbridge_plugin.ledger.comparisons import KNOWN_SCHEMA
from benchbridge_plugin.mapping import CLASSIFIED, Mapper
from benchbridge_plugin.model import BATCH_FIELDS, SinkProfile, State
from benchbridge_plugin.source import BenchmarkSource

FEW = 2_000  # rows: so many come with the ids, and are sent as they were compared
_PAGE = 10_000
_WINDOW = 50_000  # results that a first pass puts in order together

# The ids that stand in more than one row. A slice is a range of ids, so all rows of one id are in the same slice.
_REPEATED_SQL = "CREATE OR REPLACE TEMP TABLE repeated AS SELECT result_id FROM seen GROUP BY result_id HAVING count(*) > 1"

# One row for each row of the slice. `same` is the ledger's row of this very content, `other` says that another content of the result counts so far.
_JOIN_SQL = f"""
    CREATE OR REPLACE TEMP TABLE verdicts AS
    SELECT s.result_id,
           s.content_hash,
           s.wanted,
           s.priority,
           s.measured_at_us,
           s.model,
           s.hardware,
           same.state,
           coalesce(same.due, false) AS due,
           coalesce(same.attempts, 0) AS attempts,
           same.state IS NULL AS is_new,
           coalesce(same.state < {int(State.SUPERSEDED)}, false) AND r.result_id IS NULL AS counts,
           CASE WHEN r.result_id IS NOT NULL THEN 'result_id_repeated' ELSE s.skip END AS skip
      FROM seen AS s
      LEFT JOIN known AS same ON same.result_id = s.result_id AND same.content_hash = s.content_hash
      LEFT JOIN repeated AS r ON r.result_id = s.result_id
"""
# Taken up before, not delivered, and by now simulated or of a failed run: it is not sent after all.
_TAKEN_BACK = f"""counts
           AND coalesce(skip IN ('simulated', 'failed_run'), false)
           AND state IN ({int(State.PENDING)}, {int(State.RETRYING)}, {int(State.REJECTED)})"""

_CANDIDATES_SQL = f"""
    SELECT result_id, content_hash, is_new, attempts, priority, measured_at_us
      FROM verdicts
     WHERE wanted
       AND (is_new AND skip IS NULL
            OR due AND (counts OR skip IS NULL) AND NOT ({_TAKEN_BACK}))
"""
_SKIPPED_SQL = f"SELECT skip, count(*) FROM verdicts WHERE skip IS NOT NULL AND (NOT counts OR {_TAKEN_BACK}) GROUP BY skip"
_SUBJECTS_SQL = f"""
    SELECT model, hardware, count(*), count(*) FILTER (WHERE skip IS NOT NULL AND (NOT counts OR {_TAKEN_BACK}))
      FROM verdicts
     GROUP BY model, hardware
"""
_COUNTS_SQL = """
    SELECT count(*),
           count(*) FILTER (WHERE is_new AND skip IS NULL),
           count(*) FILTER (WHERE counts)
      FROM verdicts
"""
_SUPERSEDED_SQL = f"""
    SELECT k.result_id, k.content_hash
      FROM known AS k
      SEMI JOIN (SELECT result_id FROM verdicts WHERE skip IS DISTINCT FROM 'result_id_repeated') AS v ON v.result_id = k.result_id
      ANTI JOIN verdicts AS w ON w.result_id = k.result_id AND w.content_hash = k.content_hash
     WHERE k.state < {int(State.SUPERSEDED)}
"""
_RETURNED_SQL = "SELECT result_id, content_hash FROM verdicts WHERE NOT is_new AND NOT counts AND skip IS NULL"
_WITHDRAWN_SQL = f"""
    SELECT result_id FROM verdicts WHERE {_TAKEN_BACK}
    UNION
    SELECT result_id FROM known SEMI JOIN repeated USING (result_id) WHERE state < {int(State.SUPERSEDED)}
"""
_TAKES_BACK = pa.array(["simulated", "failed_run"])
_UNTELLING = {"result_id_missing", "result_id_repeated"}  # with such rows, what is new cannot be told by ids
_ORDER = [("priority", "descending"), ("measured_at_us", "ascending"), ("result_id", "ascending")]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a comparison found, and what is to be sent."""

    layout: Layout
    comparison: Comparison
    candidates: (
        pa.Table
    )  # result_id, content_hash, is_new, attempts, priority, measured_at_us: high-priority models first, then oldest first
    superseded: Sequence[tuple[str, bytes]]
    returned: Sequence[tuple[str, bytes]]
    withdrawn: Sequence[str]
    batch: pa.Table | None  # all rows of the file as they were compared, for the sink, where they are few and the sink is known


@dataclass(slots=True)
class Census:
    """What a first pass has counted so far, of a file that the ledger knows nothing of."""

    layout: Layout
    ids: pa.Array  # of all rows, sorted and unique
    rows: pa.Table | None  # all of them, where they are few
    signature: str
    scope: str
    provisional: Comparison  # what is known before the first row was read: all that have an id are still to be sent
    total: int
    eligible: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    subjects: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    complete: bool = False

    def add(self, seen: pa.Table) -> None:
        """Count a slice: `seen` has its model, hardware and skip."""
        counts = seen.group_by(["model", "hardware", "skip"]).aggregate([([], "count_all")])
        for model, hardware, skip, count in zip(
            *(counts.column(name).to_pylist() for name in ("model", "hardware", "skip", "count_all")), strict=True
        ):
            before = self.subjects.get((model, hardware), (0, 0))
            self.subjects[model, hardware] = (before[0] + count, before[1] + (count if skip else 0))
            self.total += count
            if skip:
                self.skipped[skip] += count
            else:
                self.eligible += count

    def comparison(self) -> Comparison:
        ids = None if _UNTELLING & self.skipped.keys() else self.ids
        return Comparison(self.total, self.eligible, dict(self.skipped), self.signature, self.scope, self.subjects, ids)


def begin_census(source: BenchmarkSource, scope: str) -> Census:
    """Look at the ids of a file that the ledger knows nothing of. Raises SourceError."""
    signature = str(source.signature())
    layout, found, rows = source.ids_and_few(FEW)
    missing = found.null_count
    skipped = Counter({"result_id_missing": missing} if missing else {})
    provisional = Comparison(len(found), len(found) - missing, dict(skipped), "", scope, {})
    return Census(layout, _sorted(found), rows, signature, scope, provisional, total=missing, skipped=skipped)


def first_pass(
    source: BenchmarkSource,
    mapper: Mapper,
    profile: SinkProfile,
    census: Census,
    *,
    cutoff_us: int | None,
    model: str | None,
    batch_rows: int,
    stopping: Callable[[], bool],
) -> Iterator[pa.Table]:
    """All that is to be sent, read, mapped and counted once, in batches (model.BATCH_FIELDS with `is_new` and `attempts`).

    Every row is new, so nothing is compared. High-priority models come first and then the oldest, within what is held in memory at a time, and not where
    that is sent in a few large batches: in a run without a limit the order decides only who is sent some seconds earlier. Raises SourceError.
    """
    held: list[pa.Table] = []
    size = 0
    for rows in _gathered(_slices(source, census.layout, census.ids, census.rows), max(batch_rows, _WINDOW), stopping):
        if stopping():
            return
        seen = _without_repeated(mapper.survey(rows, profile, cutoff_us=cutoff_us, model=model))
        census.add(seen)
        wanted = seen.filter(pc.and_(pc.is_null(seen.column("skip")), seen.column("wanted")))
        held.append(wanted.select([*BATCH_FIELDS, "priority"]))
        size += len(wanted)
        if size >= max(batch_rows, _WINDOW):
            window = _in_order(held, batch_rows)
            whole = size - size % batch_rows
            for start in range(0, whole, batch_rows):
                yield _as_new(window.slice(start, batch_rows))
            held, size = [window.slice(whole)], size - whole
    if size:
        window = _in_order(held, batch_rows)
        for start in range(0, size, batch_rows):
            yield _as_new(window.slice(start, batch_rows))
    census.complete = True


def _slices(source: BenchmarkSource, layout: Layout, ids: pa.Array, few: pa.Table | None, *, wait: bool = True) -> Iterable[pa.Table]:
    """All rows; those that came with the ids are not read again."""
    if few is None:
        return source.slices(layout, ids, wait=wait)
    return [few] if len(few) else []


def _gathered(slices: Iterable[pa.Table], rows: int, stopping: Callable[[], bool]) -> Iterator[pa.Table]:
    """The slices put together to at least that many rows, or up to where it has to stop: planning the mapping costs as much as thousands of rows."""
    held: list[pa.Table] = []
    for found in slices:
        held.append(found)
        if stopping() or sum(map(len, held)) >= rows:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _without_repeated(seen: pa.Table) -> pa.Table:
    """The rows with `skip` set for ids that stand in several of them. A slice is a range of ids, so all rows of one id are in it."""
    ids = seen.column("result_id")
    if pc.count_distinct(ids).as_py() == len(seen):
        return seen
    counts = seen.select(["result_id"]).group_by("result_id").aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts.column("count_all"), 1)).column("result_id")
    skip = pc.if_else(pc.is_in(ids, value_set=repeated), "result_id_repeated", seen.column("skip"))
    return seen.set_column(seen.schema.get_field_index("skip"), "skip", skip)


def _in_order(held: list[pa.Table], batch_rows: int) -> pa.Table:
    window = pa.concat_tables(held)
    # Large batches are sent as a whole, one a second: an order among so many and within each gains nothing.
    return window if batch_rows >= _WINDOW and len(window) > _WINDOW else window.sort_by(_ORDER)


def _as_new(batch: pa.Table) -> pa.Table:
    batch = batch.drop_columns(["priority"])
    batch = batch.append_column("is_new", pa.repeat(True, len(batch)))
    return batch.append_column("attempts", pa.repeat(pa.scalar(0, pa.int64()), len(batch)))


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
    rows, batch = _seen(mapper, read, None if len(due) else profile, cutoff_us=cutoff_us, model=model)
    if len(rows) != len(new) or len(ledger.comparisons.known(source_id, rows.column("result_id").to_pylist())):
        return None  # the file changed between the two reads, or the ledger knows more than it has seen
    census = Census(layout, new, None, signature, scope, Comparison(0, 0, {}, signature, scope, {}), total=0)
    census.add(rows)
    wanted = rows.filter(pc.and_(pc.is_null(rows.column("skip")), rows.column("wanted")))
    fresh = wanted.select(["result_id", "content_hash", "priority", "measured_at_us"])
    fresh = fresh.append_column("is_new", pa.repeat(True, len(fresh)))
    fresh = fresh.append_column("attempts", pa.repeat(pa.scalar(0, pa.int64()), len(fresh)))
    columns = _no_candidates().schema
    again = _due_again(source, mapper, layout, due, cutoff_us=cutoff_us, model=model)
    tables = [
        pa.table([table.column(name).cast(columns.field(name).type) for name in columns.names], schema=columns) for table in (fresh, again)
    ]
    return Found(layout, census.comparison(), new, pa.concat_tables(tables).sort_by(_ORDER), batch)


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
        return _no_candidates()
    rows = mapper.classify(source.read(layout, due.column("result_id").combine_chunks()), cutoff_us=cutoff_us, model=model)
    rows = rows.filter(pc.and_(rows.column("wanted"), pc.invert(pc.fill_null(pc.is_in(rows.column("skip"), value_set=_TAKES_BACK), False))))
    place = pc.index_in(identity(rows), value_set=identity(due))
    kept = rows.filter(pc.is_valid(place))
    attempts = due.column("attempts").take(place.drop_null())
    kept = kept.select(["result_id", "content_hash", "priority", "measured_at_us"])
    return kept.append_column("is_new", pa.repeat(False, len(kept))).append_column("attempts", attempts)


def identity(rows: pa.Table) -> pa.Array:
    """Result id and content as one value for each row."""
    content = rows.column("content_hash").cast(pa.binary())
    joined = pc.binary_join_element_wise(rows.column("result_id").cast(pa.binary()), content, b"\0")
    return pa.concat_arrays(joined.chunks) if joined.num_chunks else pa.array([], pa.binary())


def compare(
    source: BenchmarkSource,
    mapper: Mapper,
    ledger: Ledger,
    source_id: int,
    *,
    cutoff_us: int | None,
    scope: str,
    model: str | None = None,
    profile: SinkProfile | None = None,
    wait: bool = True,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Plan:
    """Compare the whole file with the ledger. Changes nothing; raises SourceError and LedgerError. `profile`: of the sink, where it is known."""
    signature = str(source.signature())  # before reading: what is committed meanwhile makes the next comparison look again
    layout, ids, few = source.ids_and_few(FEW, wait=wait)
    skipped: Counter[str] = Counter()
    if ids.null_count:
        skipped["result_id_missing"] = ids.null_count
        ids = ids.drop_null()
    ids = _sorted(ids)
    first_time = not ledger.comparisons.has_rows(source_id)

    total, untouched, counted = skipped["result_id_missing"], 0, 0
    subjects: dict[tuple[str, str], tuple[int, int]] = {}
    candidates: list[pa.Table] = []
    superseded: list[tuple[str, bytes]] = []
    returned: list[tuple[str, bytes]] = []
    withdrawn: list[str] = []
    batch: pa.Table | None = None
    present: list[pa.ChunkedArray] = []
    with mapper.beside() as joins:
        for rows in _slices(source, layout, ids, few, wait=wait):
            seen, batch = _seen(mapper, rows, None if few is None else profile, cutoff_us=cutoff_us, model=model)
            known = KNOWN_SCHEMA.empty_table() if first_time else ledger.comparisons.known(source_id, seen.column("result_id").to_pylist())
            joins.register("seen", seen)
            joins.register("known", known)
            joins.execute(_REPEATED_SQL)
            joins.execute(_JOIN_SQL)
            present.append(seen.column("result_id"))
            here, new, counts = joins.execute(_COUNTS_SQL).fetchall()[0]
            total, untouched, counted = total + here, untouched + new, counted + counts
            skipped.update(dict(joins.execute(_SKIPPED_SQL).fetchall()))
            for model_name, hardware, count, skips in joins.execute(_SUBJECTS_SQL).fetchall():
                before = subjects.get((model_name, hardware), (0, 0))
                subjects[model_name, hardware] = (before[0] + count, before[1] + skips)
            candidates.append(joins.sql(_CANDIDATES_SQL).to_arrow_table())
            if len(known):
                superseded += joins.execute(_SUPERSEDED_SQL).fetchall()
                returned += joins.execute(_RETURNED_SQL).fetchall()
                withdrawn += [row[0] for row in joins.execute(_WITHDRAWN_SQL).fetchall()]
            progress(total, len(ids))
    if not first_time and ledger.comparisons.count_current(source_id) > counted + len(superseded):
        withdrawn += _gone(ledger, source_id, present)
    ordered = pa.concat_tables(candidates).sort_by(_ORDER) if candidates else _no_candidates()
    telling = None if _UNTELLING & skipped.keys() else ids
    comparison = Comparison(total, untouched, dict(skipped), signature, scope, subjects, telling)
    return Plan(layout, comparison, ordered, superseded, returned, withdrawn, batch)


def _seen(
    mapper: Mapper, rows: pa.Table, profile: SinkProfile | None, *, cutoff_us: int | None, model: str | None
) -> tuple[pa.Table, pa.Table | None]:
    """The rows as `classify` gives them; for a sink also as a batch, by the same statement: planning another takes longer than a few rows do."""
    if profile is None or len(rows) > FEW:
        return mapper.classify(rows, cutoff_us=cutoff_us, model=model), None
    found = mapper.survey(rows, profile, cutoff_us=cutoff_us, model=model)
    return found.select(list(CLASSIFIED)), found.select(list(BATCH_FIELDS))


def _sorted(ids: pa.ChunkedArray) -> pa.Array:
    """The ids as `slices` takes them."""
    found = pc.unique(ids.drop_null())
    return found.take(pc.array_sort_indices(found))


def _gone(ledger: Ledger, source_id: int, present: Sequence[pa.ChunkedArray]) -> list[str]:
    """The results that the ledger counts and the file no longer has."""
    here = pa.chunked_array([chunk for column in present for chunk in column.chunks], pa.string())
    gone: list[str] = []
    after = ""
    while page := ledger.comparisons.current_ids(source_id, after, _PAGE):
        missing = pc.invert(pc.is_in(pa.array(page, pa.string()), value_set=here))
        gone += pc.filter(pa.array(page, pa.string()), missing).to_pylist()
        after = page[-1]
    return gone


def _no_candidates() -> pa.Table:
    kinds: Mapping[str, pa.DataType] = {
        "result_id": pa.string(),
        "content_hash": pa.binary(),
        "is_new": pa.bool_(),
        "attempts": pa.int64(),
        "priority": pa.bool_(),
        "measured_at_us": pa.int64(),
    }
    return pa.schema(list(kinds.items())).empty_table()
