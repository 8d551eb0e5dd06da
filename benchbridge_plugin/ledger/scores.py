"""What was predicted of results just before they were delivered, and how far off that was.

Each acknowledged batch leaves what was said of its rows as one Arrow stream, and adds to counts, which are what accuracy is read from: they cost the
same however many results were scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, cast, func, select

from benchbridge_plugin import accuracy
from benchbridge_plugin.ledger.schema import deliveries, forecast_errors, scores
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import storable

_DAY_S = 86_400
_KEYS = ("source_id", "day", *accuracy.DIMENSIONS, "bucket")
_SUMS = ("results", "log_ratio", "bounded", "inside")
_ADD_SQL = (
    f"INSERT INTO forecast_errors ({', '.join((*_KEYS, *_SUMS))}) VALUES ({', '.join('?' * (len(_KEYS) + len(_SUMS)))}) "
    f"ON CONFLICT ({', '.join(_KEYS)}) DO UPDATE SET {', '.join(f'{name} = forecast_errors.{name} + excluded.{name}' for name in _SUMS)}"
)
#: The tables of a report, and what each is grouped by beside the figure.
_VIEWS: Mapping[str, Sequence[str]] = {
    "by_seen": ("model_seen", "hardware_seen"),
    "by_family": ("family",),
    "by_hardware": ("hardware",),
    "by_version": ("version",),
    "by_day": ("day",),
}
_EPOCH = date(1970, 1, 1).toordinal()
_IDENTITY_ONLY = pa.ipc.IpcReadOptions(included_fields=[0, 1])  # result_id, content_hash: a large batch is not unpacked to look for one row
_ONLY_COUNTED = ("family", "hardware")


def write(connection: Connection, source_id: int, run_id: int, scored: pa.Table, now: float) -> None:
    """Add scored results (see scoring.Scorer.end). In the transaction that says that they were delivered."""
    sink = pa.BufferOutputStream()
    kept = scored.drop_columns(list(_ONLY_COUNTED))
    with pa.ipc.new_stream(sink, kept.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(kept)
    values = {"source_id": source_id, "run_id": run_id, "results": len(scored), "payload": sink.getvalue().to_pybytes(), "scored_at": now}
    connection.execute(scores.insert().values(**values))
    day = int(now // _DAY_S)
    rows = [
        (source_id, day, *(storable(value) if isinstance(value, str) else value for value in row.values()))
        for row in accuracy.count(scored).to_pylist()
    ]
    insert_many(connection, _ADD_SQL, sorted(rows))


class Scores:
    def __init__(self, store: Store) -> None:
        self._store = store

    def errors(self, source_ids: Sequence[int], *names: str, since_day: int = 0) -> list[Mapping[Any, Any]]:
        """The counts of all errors since that day (1970 UTC is 0) as accuracy.summarise takes them: by `names` and `bucket`."""
        columns = [forecast_errors.c[name] for name in names]
        # As the type it had: PostgreSQL makes decimal numbers of sums.
        sums = [cast(func.sum(forecast_errors.c[name]), forecast_errors.c[name].type).label(name) for name in _SUMS]
        statement = (
            select(*columns, forecast_errors.c.bucket, *sums)
            .where(forecast_errors.c.source_id.in_(source_ids), forecast_errors.c.day >= since_day)
            .group_by(*columns, forecast_errors.c.bucket)
        )
        with self._store.reading() as connection:
            return list(connection.execute(statement).mappings())

    def report(self, source_ids: Sequence[int], *, since_day: int = 0) -> dict[str, Any]:
        """How far predictions were off since that day: of each figure and predictor, and of the predictor's own by what it had seen, family, hardware,
        version and day. Each group as accuracy.Errors.as_dict has it."""
        said: dict[str, Any] = {
            "overall": accuracy.summarise(self.errors(source_ids, "figure", "predictor", since_day=since_day), "figure", "predictor")
        }
        for name, dimensions in _VIEWS.items():
            rows = self.errors(source_ids, "figure", "predictor", *dimensions, since_day=since_day)
            own = (row for row in rows if row["predictor"] == "predicted")
            said[name] = accuracy.summarise(own, *dimensions, "figure")
        for group in said["by_seen"]:
            group |= {name: bool(group[name]) for name in ("model_seen", "hardware_seen")}
        for group in said["by_day"]:
            group["day"] = date.fromordinal(_EPOCH + group["day"]).isoformat()
        return said

    def of(self, source_id: int, result_id: str, content_hash: bytes) -> Mapping[str, Any] | None:
        """What was predicted of one result, and what was measured. None: it was not scored."""
        run = select(deliveries.c.run_id).where(
            deliveries.c.source_id == source_id, deliveries.c.result_id == result_id, deliveries.c.content_hash == content_hash
        )
        batches = (
            select(scores.c.payload).where(scores.c.source_id == source_id, scores.c.run_id.in_(run)).order_by(scores.c.score_id.desc())
        )
        with self._store.reading() as connection:
            for payload in connection.execute(batches).scalars():
                kept = pa.ipc.open_stream(payload, options=_IDENTITY_ONLY).read_all()
                mine = pc.and_(
                    pc.equal(kept.column("result_id"), result_id), pc.equal(kept.column("content_hash").cast(pa.binary()), content_hash)
                )
                for row in pc.indices_nonzero(pc.fill_null(mine, False)).to_pylist():
                    return dict(pa.ipc.open_stream(payload).read_all().slice(row, 1).to_pylist()[0])
        return None
