"""What was predicted of results just before they were delivered, and how far off that was.

Each acknowledged batch leaves what was said of its rows as one Arrow stream, for some months, and adds to counts, which are what accuracy is read from:
a few dozen rows for each day, however many results were scored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from benchbridge_plugin.accuracy import OVERALL, Errors, Group, is_lost, summed
from benchbridge_plugin.ledger.schema import deliveries, forecast_errors, meters, scores
from benchbridge_plugin.ledger.store import Store, insert_many
from benchbridge_plugin.model import storable

_logger = logging.getLogger(__name__)

_DAY_S = 86_400
_KEPT_DAYS = 90
_EPOCH = date(1970, 1, 1).toordinal()
_IDENTITY_ONLY = pa.ipc.IpcReadOptions(included_fields=[0, 1])  # result_id, content_hash: a large batch is not unpacked to look for one row
_KEYS = ("source_id", "day", "view", "label", "figure", "predictor")
_BEGIN_SQL = f"INSERT INTO forecast_errors ({', '.join(_KEYS)}, counts) VALUES (?, ?, ?, ?, ?, ?, '') ON CONFLICT DO NOTHING"
_SET_SQL = f"UPDATE forecast_errors SET counts = ? WHERE {' AND '.join(f'{name} = ?' for name in _KEYS)}"
_USUAL_DAYS = 28
_LOST = "accuracy_lost"  # a meter: the day on which a loss was told, until there is none any more
_TOLD_SQL = (
    "INSERT INTO meters (source_id, name, labels, value) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (source_id, name, labels) DO UPDATE SET value = excluded.value"
)
_MOST_ERRORS = 50_000
_NO_ERRORS = pa.table({"result_id": pa.array([], pa.string()), "error": pa.array([], pa.float64())})
_SEEN = {"11": (True, True), "10": (True, False), "01": (False, True), "00": (False, False)}


def write(connection: Connection, source_id: int, run_id: int, results: pa.Table, errors: Mapping[Group, Errors], now: float) -> None:
    """Add scored results (see scoring.Scored) in the transaction that says that they were delivered. What cannot be written is left out: it must not
    keep that from being said."""
    try:
        with connection.begin_nested():
            values = {"source_id": source_id, "run_id": run_id, "results": len(results), "payload": _packed(results), "scored_at": now}
            connection.execute(scores.insert().values(**values))
            connection.execute(scores.delete().where(scores.c.source_id == source_id, scores.c.scored_at < now - _KEPT_DAYS * _DAY_S))
            _add(connection, source_id, int(now // _DAY_S), errors)
    except SQLAlchemyError as error:
        _logger.warning("the scores of %d results could not be written: %s", len(results), str(error)[:500])


def _add(connection: Connection, source_id: int, day: int, errors: Mapping[Group, Errors]) -> None:
    """The day's counts, locked in the order of their keys where several hosts can write: they must not wait for each other, nor count past each other."""
    changes = {(group.view, storable(group.label), group.figure, group.predictor): found for group, found in errors.items()}
    insert_many(connection, _BEGIN_SQL, [(source_id, day, *key) for key in sorted(changes)])
    keys = [forecast_errors.c[name] for name in _KEYS[2:]]
    of_day = select(*keys, forecast_errors.c.counts).where(forecast_errors.c.source_id == source_id, forecast_errors.c.day == day)
    sums: dict[tuple[str, ...], Errors] = {}
    for *key, counts in connection.execute(of_day.order_by(*keys).with_for_update()):
        if (found := changes.get(tuple(key))) is not None:
            sums[tuple(key)] = _unpack(counts)
            sums[tuple(key)].add(found)
    insert_many(connection, _SET_SQL, [(_pack(found), source_id, day, *key) for key, found in sums.items()])


def _pack(errors: Errors) -> str:
    return json.dumps([sorted(errors.buckets.items()), errors.log_ratio, errors.bounded, errors.inside], separators=(",", ":"))


def _unpack(text: str) -> Errors:
    if not text:
        return Errors()
    buckets, log_ratio, bounded, inside = json.loads(text)
    return Errors(dict(buckets), log_ratio, bounded, inside)


def _packed(results: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, results.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(results)
    return bytes(sink.getvalue().to_pybytes())


def newly_lost(connection: Connection, source_id: int, now: float) -> list[dict[str, Any]]:
    """The losses of accuracy of today (see Scores.losses) that were not told before; from now on they are. One is told again once it was over on a later
    day. What cannot be read is left out: it must not keep a run from its end."""
    try:
        with connection.begin_nested():
            return _newly_lost(connection, source_id, int(now // _DAY_S))
    except SQLAlchemyError as error:
        _logger.warning("whether predictions have become worse could not be read: %s", str(error)[:500])
        return []


def _newly_lost(connection: Connection, source_id: int, today: int) -> list[dict[str, Any]]:
    marked = select(meters.c.labels, meters.c.value).where(meters.c.source_id == source_id, meters.c.name == _LOST)
    told = {row.labels: row.value for row in connection.execute(marked)}
    lost: list[dict[str, Any]] = []
    changes: dict[str, float] = {}
    for group, of_today, before in _beside(connection, [source_id], today):
        key = f"{group.figure}/{group.label}"
        since = told.get(key, 0.0)
        if is_lost(of_today, before):
            if not since:
                lost.append(_loss(group, today, of_today, before))
                changes[key] = today
        elif 0 < since < today and of_today.predicted:
            changes[key] = 0.0
    insert_many(connection, _TOLD_SQL, [(source_id, _LOST, key, value) for key, value in changes.items()])
    return lost


def _beside(connection: Connection, source_ids: Sequence[int], day: int) -> list[tuple[Group, Errors, Errors]]:
    """The predictor's errors of a day and of the four weeks before it, apart by figure and by what it had seen: new models are harder, and no loss."""
    statement = select(forecast_errors).where(
        forecast_errors.c.source_id.in_(source_ids),
        forecast_errors.c.day.between(day - _USUAL_DAYS, day),
        forecast_errors.c.view == "seen",
    )
    rows = [(row.day, Group(row.view, row.label, row.figure, row.predictor), _unpack(row.counts)) for row in connection.execute(statement)]
    before = summed((group, errors) for of, group, errors in rows if of < day)
    today = summed((group, errors) for of, group, errors in rows if of == day)
    return [(group, today[group], before[group]) for group in sorted(today) if group in before]


def _loss(group: Group, day: int, now: Errors, before: Errors) -> dict[str, Any]:
    model_seen, hardware_seen = _SEEN[group.label]
    median, usual = now.quantile(0.5) or 0.0, before.quantile(0.5) or 0.0
    of = f"{'known' if model_seen else 'new'} models on {'known' if hardware_seen else 'new'} hardware"
    return {
        "figure": group.figure,
        "model_seen": model_seen,
        "hardware_seen": hardware_seen,
        "day": _date(day),
        "results": now.predicted,
        "median_error": median,
        "results_before": before.predicted,
        "median_error_before": usual,
        "sentence": f"On {_date(day)} half of the predictions of {group.figure.replace('_', ' ')} of {of} were off by more than {100 * median:.0f} %; "
        f"in the four weeks before, by more than {100 * usual:.0f} %.",
    }


def _date(day: int) -> str:
    return date.fromordinal(_EPOCH + day).isoformat()


class Scores:
    def __init__(self, store: Store) -> None:
        self._store = store

    def report(self, source_ids: Sequence[int], *, since_day: int = 0) -> dict[str, Any]:
        """How far predictions were off since that day (1970 UTC is 0): of each figure and predictor, and of the predictor's own by what it had seen,
        family, hardware, version and day. Each group as accuracy.Errors.as_dict has it."""
        statement = select(forecast_errors).where(forecast_errors.c.source_id.in_(source_ids), forecast_errors.c.day >= since_day)
        with self._store.reading() as connection:
            rows = [
                (row.day, Group(row.view, row.label, row.figure, row.predictor), _unpack(row.counts))
                for row in connection.execute(statement)
            ]
        sums = summed((group, errors) for _, group, errors in rows)
        days = summed(
            (Group("day", str(day), group.figure, group.predictor), errors)
            for day, group, errors in rows
            if group.view == OVERALL and group.predictor == "predicted"
        )
        said: dict[str, Any] = {
            "overall": [
                {"figure": group.figure, "predictor": group.predictor, **sums[group].as_dict()}
                for group in sorted(sums)
                if group.view == OVERALL
            ],
            "by_seen": [
                {
                    **dict(zip(("model_seen", "hardware_seen"), _SEEN[group.label], strict=True)),
                    "figure": group.figure,
                    **sums[group].as_dict(),
                }
                for group in sorted(sums)
                if group.view == "seen"
            ],
        }
        for view in ("family", "hardware", "version"):
            said[f"by_{view}"] = [
                {view: group.label, "figure": group.figure, **sums[group].as_dict()} for group in sorted(sums) if group.view == view
            ]
        said["losses"] = self.losses(source_ids)
        said["by_day"] = [
            {"day": _date(int(group.label)), "figure": group.figure, **days[group].as_dict()}
            for group in sorted(days, key=lambda group: (int(group.label), group.figure))
        ]
        return said

    def losses(self, source_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Where predictions were much worse on the newest day than in the four weeks before it (accuracy.is_lost)."""
        newest = select(func.max(forecast_errors.c.day)).where(forecast_errors.c.source_id.in_(source_ids))
        with self._store.reading() as connection:
            day = connection.execute(newest).scalar_one()
            compared = _beside(connection, source_ids, day) if day is not None else []
        return [_loss(group, day, now, before) for group, now, before in compared if is_lost(now, before)]

    def mark(self, source_id: int) -> str:
        """Changes whenever there is something new for `errors`."""
        with self._store.reading() as connection:
            counted = select(func.count(), func.max(scores.c.score_id)).where(scores.c.source_id == source_id)
            return ":".join(str(part) for part in connection.execute(counted).one())

    def errors(self, source_id: int, *, most: int = _MOST_ERRORS) -> pa.Table:
        """How far predicted throughput was off, as a fraction of what was measured: `result_id`, `error`, of the newest results that were scored, about
        `most` of them. Of a result that was scored more than once, as other contents, the newest."""
        found, rows = [_NO_ERRORS], 0
        batches = (
            select(scores.c.payload).where(scores.c.source_id == source_id).order_by(scores.c.scored_at.desc(), scores.c.score_id.desc())
        )
        with self._store.reading() as connection:
            for payload in connection.execute(batches, execution_options={"yield_per": 1}).scalars():
                names = pa.ipc.open_stream(payload).schema.names
                if not {"predicted_throughput", "measured_throughput"} <= set(names):
                    continue
                wanted = [names.index(name) for name in ("result_id", "predicted_throughput", "measured_throughput")]
                kept = pa.ipc.open_stream(payload, options=pa.ipc.IpcReadOptions(included_fields=wanted)).read_all()
                predicted = kept.column("predicted_throughput").cast(pa.float64())
                measured = kept.column("measured_throughput").cast(pa.float64())
                usable = pc.fill_null(pc.and_(pc.greater(measured, 0.0), pc.and_(pc.is_finite(measured), pc.is_finite(predicted))), False)
                error = pc.abs(pc.subtract(pc.divide(predicted, pc.if_else(usable, measured, 1.0)), 1.0))
                part = pa.table({"result_id": kept.column("result_id").cast(pa.string()), "error": error}).filter(usable)
                found.append(part)
                rows += len(part)
                if rows >= most:
                    break
        errors = pa.concat_tables(found)
        places = pa.table({"result_id": errors.column("result_id"), "place": pa.array(range(len(errors)), pa.int64())})
        newest = places.group_by("result_id").aggregate([("place", "min")]).column("place_min")
        return errors.take(newest)

    def of(self, source_id: int, result_id: str, content_hash: bytes) -> Mapping[str, Any] | None:
        """What was predicted of one result, and what was measured. None: it was not scored, long ago, or has moved since."""
        moved = select(deliveries.c.updated_at).where(
            deliveries.c.source_id == source_id, deliveries.c.result_id == result_id, deliveries.c.content_hash == content_hash
        )  # the batch was acknowledged at that very moment
        batches = select(scores.c.payload).where(scores.c.source_id == source_id, scores.c.scored_at.in_(moved))
        with self._store.reading() as connection:
            for payload in connection.execute(batches).scalars():
                kept = pa.ipc.open_stream(payload, options=_IDENTITY_ONLY).read_all()
                mine = pc.and_(
                    pc.equal(kept.column("result_id"), result_id), pc.equal(kept.column("content_hash").cast(pa.binary()), content_hash)
                )
                for row in pc.indices_nonzero(pc.fill_null(mine, False)).to_pylist():
                    return dict(pa.ipc.open_stream(payload).read_all().slice(row, 1).to_pylist()[0])
        return None
