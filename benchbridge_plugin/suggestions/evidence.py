"""The results of a benchmark file that suggestions may rest on, by configuration: the newest of each, in a private DuckDB.

However many results there are, no more than `NEWEST` of a configuration are kept: what was measured long ago says little about now, and the memory this
takes grows with the configurations and not with the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.layout import VARIANTS, VERSIONS
from benchbridge_plugin.mapping import CENSUS, DISAGREE, DROPPED, ROWS_SQL, Mapper, within
from benchbridge_plugin.source import BenchmarkSource

#: Results of a configuration that count.
NEWEST = 25
_AT_A_TIME = 60_000  # rows
_PRUNED_AT = 250_000  # results that came since the last time
_MEMORY = "512MB"
_THREADS = 2
_LONGEST_SETTING = 100  # a longer text is as good as its hash to tell two configurations apart by
_SETTINGS = (*VARIANTS, *VERSIONS)
_NAMED = rf"regexp_matches({{0}}, '\"(?:{'|'.join(_SETTINGS)})\"')"


def _setting(name: str) -> str:
    at = _SETTINGS.index(name) + 1
    said = f"coalesce(setting_{name}, in_extras[{at}], in_more_extras[{at}])"
    return f"nullif(trim(CASE WHEN strlen({said}) > {_LONGEST_SETTING} THEN md5({said}) ELSE {said} END, $blank), '')"


_VARIANT = ", ".join(f"'{name.replace('_', ' ')} ' || {_setting(name)}" for name in VARIANTS)
_VERSION = ", ".join(f"'{name} ' || {_setting(name)}" for name in VERSIONS)
# `usable`: measured, in a run that did not fail, with figures that do not contradict each other. What a sink takes does not matter here. It is a column
# and no condition, for DuckDB would work out twice what a condition asks for: once to filter, and once for the rows that are left.
_EVIDENCE_SQL = f"""{ROWS_SQL}    , told AS (
        SELECT *,
               {CENSUS},
               CASE WHEN valid AND {_NAMED.format("extras")} THEN {within("extras", *_SETTINGS)} END AS in_extras,
               CASE WHEN more_valid AND {_NAMED.format("more_extras")} THEN {within("more_extras", *_SETTINGS)} END AS in_more_extras
          FROM judged
    )
    SELECT result_id,
           model_name AS model,
           hardware_platform AS hardware,
           coalesce(device_name, '') AS device,
           mode,
           concat_ws('; ', {_VARIANT}) AS variant,
           hash(concat_ws('; ', {_VERSION})) AS version,
           precision_meant AS precision,
           precision_said IS NULL AS precision_assumed,
           CAST(batch_meant AS BIGINT) AS batch_size,
           batch_said IS NULL AS batch_assumed,
           CAST(coalesce(length_said, 0) AS BIGINT) AS sequence_length,
           throughput_said AS throughput,
           CASE WHEN latency_said > 0 THEN latency_said END AS latency,
           measured_at_us AS at_us,
           skip IS NULL
               AND nullif(trim(model_name, $blank), '') IS NOT NULL
               AND NOT contains(model_name, chr(0))
               AND hardware_platform IS NOT NULL
               AND precision_meant IS NOT NULL
               AND batch_meant >= 1
               AND coalesce(length_said, 1) >= 1
               AND throughput_said > 0
               AND NOT coalesce({DISAGREE}, false)
               AND NOT ({DROPPED}) AS usable
      FROM told"""

#: What tells configurations apart. sequence_length 0: the row names none.
CONFIGURATION = (
    "model",
    "hardware",
    "device",
    "mode",
    "variant",
    "version",
    "precision",
    "precision_assumed",
    "batch_size",
    "batch_assumed",
    "sequence_length",
)
_KEY = ", ".join(CONFIGURATION)
_TABLES_SQL = """
    CREATE TABLE configurations (
        configuration_id INTEGER, model VARCHAR, hardware VARCHAR, device VARCHAR, mode VARCHAR, variant VARCHAR, version UBIGINT, precision VARCHAR,
        precision_assumed BOOLEAN, batch_size BIGINT, batch_assumed BOOLEAN, sequence_length BIGINT);
    CREATE TABLE counts (configuration_id INTEGER, results BIGINT);
    CREATE TABLE results (configuration_id INTEGER, result_id VARCHAR, throughput DOUBLE, latency DOUBLE, at_us BIGINT);
"""
_NEW_SQL = f"""
    INSERT INTO configurations
    SELECT (SELECT count(*) FROM configurations) + row_number() OVER (ORDER BY {_KEY}), *
      FROM (SELECT DISTINCT {_KEY} FROM arrived) AS a
      ANTI JOIN configurations USING ({_KEY})
"""
_ADD_SQL = f"""
    INSERT INTO results
    SELECT configuration_id, result_id, throughput, latency, at_us
      FROM arrived
      JOIN configurations USING ({_KEY})
"""
_COUNT_SQL = (
    f"INSERT INTO counts SELECT configuration_id, count(*) FROM arrived JOIN configurations USING ({_KEY}) GROUP BY configuration_id"
)
# Newest first; of one time the larger id, by its length and then as text: numbers as numbers.
ORDER = "at_us DESC NULLS LAST, strlen(result_id) DESC, result_id DESC"
_PRUNE_SQL = f"""
    CREATE OR REPLACE TABLE results AS
    SELECT *
      FROM results
   QUALIFY row_number() OVER (PARTITION BY configuration_id ORDER BY {ORDER}) <= {NEWEST}
"""


class Stopped(Exception):
    """The process ends: nobody waits for this any more."""


def gather(source: BenchmarkSource, mapper: Mapper, stopping: Callable[[], bool] = lambda: False) -> duckdb.DuckDBPyConnection:
    """A database of its own with `configurations`, `results` (the newest of each) and `counts` (of all). To be closed by the caller.

    Raises SourceError, and Stopped once `stopping()` says so.
    """
    layout, found = source.ids()
    ids = pc.unique(found.drop_null())
    ids = ids.take(pc.array_sort_indices(ids))
    evidence = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "memory_limit": _MEMORY, "threads": _THREADS})
    try:
        evidence.execute("SET enable_external_access = false")
        evidence.execute(_TABLES_SQL)
        waiting = 0
        for rows in _gathered(source.slices(layout, ids, columns=f"{layout.columns}, {layout.settings}"), stopping):
            waiting += _add(evidence, mapper.derive(rows, _EVIDENCE_SQL))
            if waiting > _PRUNED_AT:
                evidence.execute(_PRUNE_SQL)
                waiting = 0
        evidence.execute(_PRUNE_SQL)
    except BaseException:
        evidence.close()
        raise
    return evidence


def _gathered(slices: Iterable[pa.Table], stopping: Callable[[], bool]) -> Iterator[pa.Table]:
    """The slices put together: planning the statement costs as much as thousands of rows."""
    parts: list[pa.Table] = []
    for rows in slices:
        if stopping():
            raise Stopped
        parts.append(rows)
        if sum(len(part) for part in parts) >= _AT_A_TIME:
            yield pa.concat_tables(parts)
            parts = []
    if parts:
        yield pa.concat_tables(parts)


def _add(evidence: duckdb.DuckDBPyConnection, derived: pa.Table) -> int:
    ids = derived.column("result_id")
    if pc.count_distinct(ids).as_py() < len(derived):  # all rows of one id are in one slice; which of them is meant, nobody knows
        counted = pc.value_counts(ids)
        repeated = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        derived = derived.filter(pc.invert(pc.is_in(ids, value_set=repeated)))
    arrived = derived.filter(derived.column("usable"))
    evidence.register("arrived", arrived)
    try:
        for statement in (_NEW_SQL, _ADD_SQL, _COUNT_SQL):
            evidence.execute(statement)
    finally:
        evidence.unregister("arrived")
    return len(arrived)
