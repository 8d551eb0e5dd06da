"""The configurations that a benchmark file has results of: what was measured, and of what values others can be made.

The file is read as a comparison reads it, slice by slice or from a copy (source.py), and once for each change of it. Of a large file it is the last
results in the order of their ids.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.errors import SourceBusy
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import SinkProfile
from benchbridge_plugin.source import BenchmarkSource

_MOST_ROWS = 100_000
_LONGEST_SAID = 8_192  # bytes of a row's extras that are worth asking a predictor with

#: A configuration: what the sink is told of it, without the software around it.
KEY = ("model_name", "hardware_platform", "device_name", "precision", "mode", "batch_size", "sequence_length")
SCHEMA = pa.schema(
    [
        *((name, pa.int64() if name in ("batch_size", "sequence_length") else pa.string()) for name in KEY),
        ("model_family", pa.string()),
        ("hardware", pa.string()),  # and the precision: as the file has them
        ("precision_named", pa.string()),
        ("deliverable", pa.bool_()),
        ("results", pa.int64()),
        ("test_case", pa.string()),
        ("said", pa.string()),
    ]
)
_MERGED_SQL = f"""
    SELECT {", ".join(KEY)},
           min(model_family) AS model_family,
           min(hardware) AS hardware,
           min(precision_named) AS precision_named,
           bool_or(deliverable) AS deliverable,
           CAST(sum(results) AS BIGINT) AS results,
           min(test_case) AS test_case,
           min(said) AS said
      FROM (
          SELECT * REPLACE (CASE WHEN strlen(said) <= {_LONGEST_SAID} AND is_first THEN said END AS said)
            FROM (
                SELECT *, row_number() OVER (PARTITION BY model_name, hardware_platform, device_name ORDER BY NOT deliverable, said) = 1 AS is_first
                  FROM configurations
            )
      )
     GROUP BY {", ".join(KEY)}
     ORDER BY ALL
"""


def read(source: BenchmarkSource, mapper: Mapper, profile: SinkProfile) -> pa.Table:
    """SCHEMA, each KEY once. `deliverable`: a result of it can be sent; all others were tried in vain, or would be refused. Raises SourceError, and at
    once when a writer has the file."""
    layout, found = source.ids(wait=False)
    ids = pc.unique(found).drop_null()
    ids = ids.take(pc.sort_indices(ids))[-_MOST_ROWS:]
    return merged([mapper.configurations(rows, profile) for rows in source.slices(layout, ids, wait=False)])


def merged(tables: list[pa.Table]) -> pa.Table:
    """The configurations of all tables, each once. Only one of each model on each device keeps what is `said`: extras can be large."""
    if not tables:
        return SCHEMA.empty_table()
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as connection:
        connection.register("configurations", pa.concat_tables([table.select(SCHEMA.names).cast(SCHEMA) for table in tables]))
        return connection.sql(_MERGED_SQL).to_arrow_table().cast(SCHEMA)


@dataclass(slots=True)
class Known:
    """What was read of each file, for as long as neither the file nor what the sink takes changes. Safe to use from several threads."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[str, tuple[str, SinkProfile, pa.Table]] = field(default_factory=dict)

    def of(self, source: BenchmarkSource, mapper: Mapper, profile: SinkProfile) -> pa.Table:
        """What `read` says. While a writer has the file it is what was read before, if there is anything. Raises SourceError."""
        signature = str(source.signature())
        with self._lock:
            kept = self._read.get(source.path)
            if kept is not None and kept[:2] == (signature, profile):
                return kept[2]
            try:
                table = read(source, mapper, profile)
            except SourceBusy:
                if kept is None:
                    raise
                return kept[2]
            self._read[source.path] = signature, profile, table
            return table
