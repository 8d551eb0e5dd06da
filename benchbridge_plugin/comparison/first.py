"""A file that the ledger knows nothing of: each row is read and mapped once, counted and sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.comparison.rows import ORDER, UNTELLING, as_new, ids_and_few, slices, sorted_ids
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Comparison
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import BATCH_FIELDS, SinkProfile
from benchbridge_plugin.source import BenchmarkSource

_WINDOW = 20_000  # results that are read, mapped and put in order together: what is held beside all ids is a small multiple of it
_LARGE = 50_000  # results of a batch that is sent as a whole


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
        ids = None if UNTELLING & self.skipped.keys() else self.ids
        return Comparison(self.total, self.eligible, dict(self.skipped), self.signature, self.scope, self.subjects, ids)


def begin_census(source: BenchmarkSource, scope: str) -> Census:
    """Look at the ids of a file that the ledger knows nothing of. Raises SourceError."""
    signature = str(source.signature())
    layout, found, rows = ids_and_few(source)
    missing = found.null_count
    skipped = Counter({"result_id_missing": missing} if missing else {})
    provisional = Comparison(len(found), len(found) - missing, dict(skipped), "", scope, {})
    return Census(layout, sorted_ids(found), rows, signature, scope, provisional, total=missing, skipped=skipped)


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
    at_once = max(batch_rows, _WINDOW)
    for rows in _gathered(slices(source, census.layout, census.ids, census.rows, most=at_once), at_once, stopping):
        if stopping():
            return
        seen = _without_repeated(mapper.survey(rows, profile, cutoff_us=cutoff_us, model=model))
        census.add(seen)
        wanted = seen.filter(pc.and_(pc.is_null(seen.column("skip")), seen.column("wanted")))
        held.append(wanted.select([*BATCH_FIELDS, "priority"]))
        size += len(wanted)
        del rows, seen, wanted  # or they would be kept until the next ones are mapped
        if size >= at_once:
            window = _in_order(held, batch_rows)
            whole = size - size % batch_rows
            for start in range(0, whole, batch_rows):
                yield as_new(window.slice(start, batch_rows).drop_columns(["priority"]))
            size -= whole
            held = [window.slice(whole).take(pa.array(range(size), pa.int64()))] if size else []  # a slice would keep all of the window
            del window
    if size:
        window = _in_order(held, batch_rows)
        for start in range(0, size, batch_rows):
            yield as_new(window.slice(start, batch_rows).drop_columns(["priority"]))
    census.complete = True


def _gathered(parts: Iterable[pa.Table], rows: int, stopping: Callable[[], bool]) -> Iterator[pa.Table]:
    """The slices put together to at least that many rows, or up to where it has to stop: planning the mapping costs as much as thousands of rows."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(part)
        if stopping() or sum(map(len, held)) >= rows:
            yield pa.concat_tables(held)
            held = []
        del part
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
    return window if batch_rows >= _LARGE and len(window) > _LARGE else window.sort_by(ORDER)
