"""The file against the ledger: what is new, what changed, what is gone, and what is to be sent in which order.

The whole file is compared by id and content hash, a slice at a time, so that a result that was committed late or changed in place is found wherever
it stands. The joins run in a private in-memory DuckDB; no Python for each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.comparison.rows import CANDIDATES, ORDER, TAKES_BACK, UNTELLING, ids_and_few, seen_by, slices, sorted_ids
from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Comparison, Ledger
from benchbridge_plugin.ledger.comparisons import KNOWN_SCHEMA
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import SinkProfile, State
from benchbridge_plugin.source import BenchmarkSource

_PAGE = 10_000

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
           AND coalesce(skip IN {TAKES_BACK}, false)
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a comparison found, and what is to be sent."""

    layout: Layout
    comparison: Comparison
    candidates: pa.Table  # rows.CANDIDATES, in rows.ORDER
    superseded: Sequence[tuple[str, bytes]]
    returned: Sequence[tuple[str, bytes]]
    withdrawn: Sequence[str]
    batch: pa.Table | None  # all rows of the file as they were compared, for the sink, where they are few and the sink is known


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
    layout, ids, few = ids_and_few(source, wait=wait)
    skipped: Counter[str] = Counter()
    if ids.null_count:
        skipped["result_id_missing"] = ids.null_count
        ids = ids.drop_null()
    ids = sorted_ids(ids)
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
        for rows in slices(source, layout, ids, few, wait=wait):
            seen, batch = seen_by(mapper, rows, None if few is None else profile, cutoff_us=cutoff_us, model=model)
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
    ordered = pa.concat_tables(candidates).sort_by(ORDER) if candidates else CANDIDATES.empty_table()
    telling = None if UNTELLING & skipped.keys() else ids
    comparison = Comparison(total, untouched, dict(skipped), signature, scope, subjects, telling)
    return Plan(layout, comparison, ordered, superseded, returned, withdrawn, batch)


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
