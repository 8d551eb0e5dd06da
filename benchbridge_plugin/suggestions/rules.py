"""The rules: what the measured results of a benchmark file suggest, as SQL over evidence.py's database. docs/suggestions.md justifies each number.

A place is a model on a device, in one mode and variant. What is *in use* there is what the results of its last day have: a benchmark that runs each
night measures what is used, and a sweep in which everything was measured side by side leaves no one thing in use. Results are only compared with
results of the same version (the same software, where the rows name it).
"""

from __future__ import annotations

from typing import Any

import duckdb

from benchbridge_plugin.suggestions.evidence import ORDER

#: The most suggestions of one kind that are kept, those with the most to gain.
MOST = 1_000
ROWS_NAMED = 12  # of the results that a suggestion rests on

LEAST_GAIN = 1.10  # of medians of repeats
LEAST_GAIN_ONCE = 1.25  # where one side was measured once; more on a device on which repeats are known to be further apart
_REPEATED = 5  # configurations of a device with repeats, for them to say how far apart those are
_AS_GOOD = 1.10  # a wider precision that comes so close to the fastest one is suggested in its place
NEARLY_PEAK = 0.95
_SURELY = 0.90  # of the peak: what even a slow repeat at the smaller batch reaches
LESS_LATENCY = 0.60
FAR_FROM_PEAK = 0.70
_BATCHES = 3  # that have to be measured before one is called a peak
_POINTS = 24  # batch sizes that are told
NOISE = 0.20
_REPEATS = 4
GOOD_ERROR = 0.10
_MOSTLY_GOOD_ERROR = 0.25  # of nine of ten
LARGE_ERROR = 0.25
ENOUGH_SCORED = 10
_SOME_SCORED = 3
_DAY_US = 86_400_000_000

#: How wide the numbers of a precision are, of those whose name says so; fp64, which is wider than what models come in, is left out. A precision is only
#: suggested instead of a wider one.
WIDTHS = {
    "fp32": 32,
    "tf32": 19,
    "fp16": 16,
    "bf16": 16,
    "amp_fp16": 16,
    "amp_bf16": 16,
    "w16a16": 16,
    "w8a16": 12,
    "w4a16": 10,
    "fp8": 8,
    "int8": 8,
    "w8a8": 8,
    "fp4": 4,
    "int4": 4,
    "w4a4": 4,
}

_PLACE = "model, hardware, device, mode, variant"
_PREPARE_SQL = f"""
    CREATE TABLE places AS
    SELECT {_PLACE},
           max(at_us) - {_DAY_US} AS since,
           count(*) OVER (PARTITION BY model, hardware, device, mode) > 1 AS varies
      FROM results
      JOIN configurations USING (configuration_id)
     GROUP BY {_PLACE};
    CREATE TABLE devices AS
    WITH repeats AS (
        SELECT configuration_id, max(throughput) / min(throughput) AS apart
          FROM results
         GROUP BY configuration_id
        HAVING count(*) > 1
    )
    SELECT hardware, device, quantile_cont(apart, 0.9) AS apart
      FROM repeats
      JOIN configurations USING (configuration_id)
     GROUP BY hardware, device
    HAVING count(*) >= {_REPEATED};
    CREATE TABLE settled AS
    WITH medians AS (
        SELECT configuration_id,
               count(*) AS n,
               median(throughput) AS throughput,
               quantile_cont(throughput, 0.1) AS slow,
               quantile_cont(throughput, 0.9) AS fast,
               median(latency) AS latency,
               max(at_us) AS newest,
               list(result_id ORDER BY {ORDER})[:{ROWS_NAMED}] AS ids
          FROM results
         GROUP BY configuration_id
    )
    SELECT c.*,
           m.* EXCLUDE (configuration_id),
           p.since IS NULL OR coalesce(m.newest >= p.since, false) AS in_use,
           greatest(coalesce(d.apart, 1), {LEAST_GAIN_ONCE}) AS once
      FROM configurations AS c
      JOIN medians AS m USING (configuration_id)
      JOIN places AS p USING ({_PLACE})
      LEFT JOIN devices AS d USING (hardware, device);
"""

_LOWER_PRECISION_SQL = f"""
    WITH widths AS (SELECT unnest($names) AS precision, unnest($widths) AS width),
    used AS (
        SELECT {_PLACE}, precision, bool_or(in_use) AS in_use
          FROM settled
         GROUP BY {_PLACE}, precision
    ),
    known AS (
        SELECT s.*, width
          FROM settled AS s
          JOIN widths USING (precision)
         WHERE NOT precision_assumed
    ),
    pairs AS (
        SELECT {", ".join(f"a.{name}" for name in ("model", "hardware", "device", "mode", "variant", "batch_size", "sequence_length"))},
               a.precision AS from_precision,
               b.precision AS precision,
               a.width AS from_width,
               b.width AS width,
               a.throughput AS before,
               b.throughput AS after,
               b.throughput / a.throughput AS ratio,
               ratio >= CASE WHEN least(a.n, b.n) > 1 THEN {LEAST_GAIN} ELSE a.once END AND b.slow > a.fast AS clear,
               a.n + b.n AS n,
               list_concat(b.ids[:{ROWS_NAMED // 2}], a.ids[:{ROWS_NAMED // 2}]) AS ids
          FROM known AS a
          JOIN known AS b USING ({_PLACE}, batch_size, batch_assumed, sequence_length, version)
         WHERE b.width < a.width
       QUALIFY row_number() OVER (PARTITION BY {_PLACE}, batch_size, sequence_length, a.precision, b.precision
                                      ORDER BY least(a.newest, b.newest) DESC NULLS LAST, version) = 1
    ),
    middles AS (
        SELECT *, quantile_disc(ratio, 0.5) OVER (PARTITION BY {_PLACE}, from_precision, precision) AS middle
          FROM pairs
    ),
    summed AS (
        SELECT {_PLACE},
               from_precision,
               precision,
               any_value(from_width) AS from_width,
               any_value(width) AS width,
               any_value(middle) AS ratio,
               count(*) AS shapes,
               count(*) FILTER (clear) AS clear_shapes,
               count(*) FILTER (ratio < 1) AS slower_shapes,
               CAST(sum(n) AS BIGINT) AS rows,
               arg_min(struct_pack(batch_size, sequence_length, before, after, ids),
                       (ratio <> middle, batch_size, sequence_length)) AS example,
               list(ids[1] ORDER BY ratio DESC, batch_size, sequence_length)[:{ROWS_NAMED}] AS others
          FROM middles
         GROUP BY {_PLACE}, from_precision, precision
        HAVING 2 * count(*) FILTER (clear) > count(*)
           AND any_value(middle) >= {LEAST_GAIN}
    ),
    fitting AS (
        SELECT s.*,
               t.in_use AS also_used,
               max(s.ratio) OVER (PARTITION BY {", ".join(f"s.{name}" for name in _PLACE.split(", "))}, s.from_precision) AS best
          FROM summed AS s
          JOIN used AS f ON {" AND ".join(f"s.{name} = f.{name}" for name in _PLACE.split(", "))} AND f.precision = s.from_precision
          JOIN used AS t ON {" AND ".join(f"s.{name} = t.{name}" for name in _PLACE.split(", "))} AND t.precision = s.precision
         WHERE f.in_use
    )
    SELECT * EXCLUDE (best), ratio AS size
      FROM fitting
     WHERE ratio * {_AS_GOOD} >= best
   QUALIFY row_number() OVER (PARTITION BY {_PLACE} ORDER BY from_width DESC, width DESC, ratio DESC, from_precision, precision) = 1
"""

# The batch sizes of one place, precision and length, of the newest version: a line. Of several precisions that are in use the fastest one's.
_LINE = f"{_PLACE}, precision, sequence_length"
_LINES_SQL = f"""
    CREATE TABLE lines AS
    WITH versions AS (
        SELECT {_LINE},
               version,
               count(*) AS batches,
               max(newest) AS newest,
               max(throughput) AS peak,
               arg_max(batch_size, (throughput, -batch_size)) AS peak_batch,
               bool_or(in_use) AS in_use,
               coalesce(max(batch_size) FILTER (in_use), 0) AS largest_used,
               arg_max(batch_size, (throughput, -batch_size)) FILTER (in_use) AS used_batch,
               CAST(sum(n) AS BIGINT) AS rows,
               list(struct_pack(batch_size, throughput, latency) ORDER BY throughput DESC, batch_size)[:{_POINTS}] AS points,
               list(ids[1] ORDER BY batch_size)[:{ROWS_NAMED}] AS ids
          FROM settled
         WHERE NOT batch_assumed
           AND latency IS NOT NULL
         GROUP BY {_LINE}, version
    ),
    newest AS (
        SELECT *
          FROM versions
       QUALIFY row_number() OVER (PARTITION BY {_LINE} ORDER BY newest DESC NULLS LAST, batches DESC, version) = 1
    )
    SELECT *
      FROM newest
     WHERE in_use
       AND batches >= {_BATCHES}
   QUALIFY row_number() OVER (PARTITION BY {_PLACE}, sequence_length ORDER BY peak DESC, precision) = 1
"""
_SMALLER_BATCH_SQL = f"""
    SELECT l.*,
           p.latency / b.latency AS size,
           b.batch_size,
           b.throughput AS after,
           b.latency AS after_ms,
           p.latency AS before_ms,
           b.ids AS own_ids,
           p.ids AS peak_ids,
           b.in_use AS also_used
      FROM lines AS l
      JOIN settled AS b USING ({_LINE}, version)
      JOIN settled AS p USING ({_LINE}, version)
     WHERE l.mode = 'inference'
       AND NOT b.batch_assumed
       AND NOT p.batch_assumed
       AND p.batch_size = l.peak_batch
       AND b.batch_size < l.peak_batch
       AND b.batch_size < l.largest_used
       AND b.throughput >= {NEARLY_PEAK} * l.peak
       AND b.slow >= {_SURELY} * l.peak
       AND b.latency <= {LESS_LATENCY} * p.latency
       AND (least(b.n, p.n) > 1 OR b.once = {LEAST_GAIN_ONCE})
   QUALIFY row_number() OVER (PARTITION BY {_LINE} ORDER BY b.batch_size) = 1
"""
_LARGER_BATCH_SQL = f"""
    SELECT l.*,
           l.peak / b.throughput AS size,
           l.peak_batch AS batch_size,
           b.batch_size AS from_batch,
           b.throughput AS before,
           l.peak AS after,
           b.latency AS before_ms,
           p.latency AS after_ms,
           p.ids AS peak_ids,
           b.ids AS own_ids
      FROM lines AS l
      JOIN settled AS b USING ({_LINE}, version)
      JOIN settled AS p USING ({_LINE}, version)
     WHERE NOT b.batch_assumed
       AND NOT p.batch_assumed
       AND b.batch_size = l.used_batch
       AND p.batch_size = l.peak_batch
       AND l.largest_used < l.peak_batch
       AND b.throughput <= {FAR_FROM_PEAK} * l.peak
       AND b.fast < p.slow
       AND (least(b.n, p.n) > 1 OR b.throughput * b.once <= l.peak)
"""
_NOISY_SQL = f"""
    WITH repeats AS (
        SELECT *, max(at_us) OVER (PARTITION BY configuration_id) - {_DAY_US} AS since
          FROM results
    ),
    spread AS (
        SELECT configuration_id,
               count(*) AS n,
               stddev_samp(throughput) / avg(throughput) AS size,
               min(throughput) AS lowest,
               max(throughput) AS highest,
               list(throughput ORDER BY at_us, strlen(result_id), result_id) AS figures,
               list(result_id ORDER BY {ORDER})[:{ROWS_NAMED}] AS ids
          FROM repeats
         WHERE since IS NULL
            OR at_us >= since
         GROUP BY configuration_id
        HAVING count(*) >= {_REPEATS}
    )
    SELECT c.*, s.* EXCLUDE (configuration_id)
      FROM spread AS s
      JOIN configurations AS c USING (configuration_id)
     WHERE size > {NOISE}
"""
# Which results were predicted is known by their ids; a result that was scored as another content counts as it was scored.
_PREDICTIONS_SQL = f"""
    WITH totals AS (
        SELECT model, hardware, device, CAST(sum(results) AS BIGINT) AS measured
          FROM counts
          JOIN configurations USING (configuration_id)
         GROUP BY model, hardware, device
    ),
    errors AS (
        SELECT model,
               hardware,
               device,
               count(*) AS n,
               median(error) AS error,
               quantile_cont(error, 0.9) AS most,
               list(result_id ORDER BY {ORDER})[:{ROWS_NAMED}] AS ids
          FROM scored
          JOIN results USING (result_id)
          JOIN configurations USING (configuration_id)
         GROUP BY model, hardware, device
    )
    SELECT e.*, measured
      FROM errors AS e
      JOIN totals USING (model, hardware, device)
"""
_WELL_SQL = f"SELECT *, error AS size FROM ({_PREDICTIONS_SQL}) WHERE n >= {ENOUGH_SCORED} AND error <= {GOOD_ERROR} AND most <= {_MOSTLY_GOOD_ERROR}"
_NEEDED_SQL = f"""
    SELECT *, error AS size
      FROM ({_PREDICTIONS_SQL})
     WHERE n >= {_SOME_SCORED}
       AND error > {LARGE_ERROR}
       AND measured < {ENOUGH_SCORED}
"""
#: The rule of each kind of suggestion, and whether a large `size` comes first.
_RULES = {
    "lower_precision": (_LOWER_PRECISION_SQL, True),
    "larger_batch": (_LARGER_BATCH_SQL, True),
    "smaller_batch": (_SMALLER_BATCH_SQL, True),
    "needs_measurements": (_NEEDED_SQL, True),
    "noisy": (_NOISY_SQL, True),
    "predicted_well": (_WELL_SQL, False),
}
_TIES = ("model", "hardware", "device", "mode", "variant", "precision", "sequence_length", "batch_size")


def apply(evidence: duckdb.DuckDBPyConnection) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    """What each rule finds: how many that are, and as rows the first of them, at most MOST. `evidence`: with the table `scored` in it."""
    for statement in (_PREPARE_SQL, _LINES_SQL):
        evidence.execute(statement)
    parameters = {"names": list(WIDTHS), "widths": list(WIDTHS.values())}
    found: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    for code, (rule, largest_first) in _RULES.items():
        given = parameters if "$names" in rule else None
        evidence.execute(f"CREATE OR REPLACE TEMP TABLE found AS {rule}", given)
        columns = {name for name, *_ in evidence.execute("DESCRIBE found").fetchall()}
        ties = [name for name in _TIES if name in columns]
        order = f"size {'DESC' if largest_first else 'ASC'}, {', '.join(ties)}"
        joined = f"found JOIN places USING ({_PLACE})" if "variant" in columns else "found"
        rows = evidence.sql(f"SELECT * FROM {joined} ORDER BY {order} LIMIT {MOST}").to_arrow_table().to_pylist()
        ((count,),) = evidence.execute("SELECT count(*) FROM found").fetchall()
        found[code] = (count, rows)
    return found
