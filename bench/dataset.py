"""Benchmark files of any size, made of the measured sample: each copy of a result has an id and a time of its own."""

from __future__ import annotations

from pathlib import Path

import duckdb
from unified_server.sample import load_sample

_COPY = """
INSERT INTO performance_results
SELECT p.* REPLACE (
           CAST(copy * $sample + result_id AS INTEGER) AS result_id,
           created_at + to_seconds(CAST(copy AS BIGINT) * 60) AS created_at)
  FROM performance_results AS p, range(1, $copies) AS more(copy)
 WHERE copy * $sample + result_id <= $results
 ORDER BY copy, result_id
"""


def make(path: Path, results: int) -> Path:
    """A benchmark database (layout V1) with `results` results, ids from 1. An existing file is taken as it is."""
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        sample = load_sample(unfinished)
        with duckdb.connect(str(unfinished)) as connection:
            connection.execute(_COPY, {"sample": sample, "copies": -(-results // sample), "results": results})
            connection.execute("DELETE FROM performance_results WHERE result_id > ?", [results])
        unfinished.rename(path)
    return path
