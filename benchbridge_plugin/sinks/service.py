"""The sink in this process: the service object of a host that has the predictive API inside.

The object must have `describe()`, `record_measurements(list of mappings)` and `lookup(keys)`; when it also has `record_measurement_table(Arrow table)`,
batches stay in Arrow. docs/host.md describes the four.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.model import (
    CONTRACT_HARDWARE,
    CONTRACT_MODES,
    CONTRACT_PRECISIONS,
    FORECAST_FIELDS,
    MEASUREMENT_FIELDS,
    Answer,
    Doubt,
    Fate,
    Outcome,
    Receipt,
    Settlement,
    SinkProfile,
    storable,
)
from benchbridge_plugin.sinks.base import KEYED_PREFIX, Taken, nothing_taken

_logger = logging.getLogger(__name__)
_BATCH_ROWS = 10_000
_TABLE_ROWS = 122_880  # where batches stay in Arrow; DuckDB stores rows in groups of this many, and whole groups most cheaply
_STORED = pa.array(["created", "existing"])
_LISTED = 100_000


@runtime_checkable
class PredictiveService(Protocol):
    """What the host offers under the name `predictive_performance`."""

    def describe(self) -> Mapping[str, Any]:
        """`{"capabilities", "hardware_platforms", "precisions", "modes"}`, each a list of names."""

    def record_measurements(self, measurements: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """`{"status": "created" | "existing" | "rejected", "measurement_id", "error"}` for each, in order; a key never stores twice."""

    def lookup(self, idempotency_keys: Sequence[str]) -> Mapping[str, str]:
        """key -> measurement id, for the keys that are stored."""


class ServiceSink:
    def __init__(self, service: PredictiveService) -> None:
        self._service = service

    @property
    def name(self) -> str:
        return "predictive_performance service in this process"

    @property
    def batch_rows(self) -> int:
        return _TABLE_ROWS if hasattr(self._service, "record_measurement_table") else _BATCH_ROWS

    @property
    def compares_fields(self) -> bool:
        return False

    def profile(self) -> SinkProfile:
        try:
            said = self._service.describe()
        except Exception as error:  # the host's code: anything can come out of it
            _logger.exception("the predictive_performance service does not answer")
            raise SinkUnreachable(
                f"The predictive_performance service of this server does not answer: {error!r}.", guidance="Look at the server's log."
            ) from error
        return SinkProfile(
            hardware=tuple(said.get("hardware_platforms") or CONTRACT_HARDWARE),
            precisions=tuple(said.get("precisions") or CONTRACT_PRECISIONS),
            modes=tuple(said.get("modes") or CONTRACT_MODES),
            capabilities=frozenset(said.get("capabilities") or ()),
        )

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        if stopping():
            return Receipt([None] * len(batch), dict.fromkeys(range(len(batch)), Outcome(Fate.NOT_SENT, "not_sent", "It was not sent.")))
        measurements = batch.select(list(MEASUREMENT_FIELDS))
        try:
            statuses, ids, errors = self._record(measurements)
        except Exception as error:  # the host's code: anything can come out of it
            _logger.exception("the predictive_performance service failed on a batch", extra={"rows": len(batch)})
            # The transaction may have been committed before it raised. The key makes a second try harmless, but only the sink can say.
            outcome = Outcome(
                Fate.IN_DOUBT, "service_failed", f"The predictive_performance service raised {type(error).__name__}: {error}"[:500]
            )
            return Receipt([None] * len(batch), dict.fromkeys(range(len(batch)), outcome))
        if not len(statuses) == len(ids) == len(errors) == len(batch):
            outcome = Outcome(Fate.IN_DOUBT, "service_answer", f"The service answered {len(statuses)} rows for a batch of {len(batch)}.")
            return Receipt([None] * len(batch), dict.fromkeys(range(len(batch)), outcome))
        stored = pc.fill_null(pc.is_in(statuses, value_set=_STORED), False)
        exceptions: dict[int, Outcome] = {}
        for row in pc.indices_nonzero(pc.invert(stored)).to_pylist():
            status, why = statuses[row].as_py(), errors[row].as_py()
            if status == "rejected":
                exceptions[row] = Outcome(Fate.REJECTED, "refused_by_api", str(why or "refused without a reason")[:500])
            else:
                unclear = f"The service answered with the unknown status {status!r}."[:500]
                exceptions[row] = Outcome(Fate.IN_DOUBT, "service_answer", unclear)
        return Receipt(ids, exceptions)

    @property
    def is_near(self) -> bool:
        return True

    def forecast(self, batch: pa.Table) -> pa.Table | None:
        predict: Callable[[pa.Table], pa.Table] | None = getattr(self._service, "predict_measurements", None)
        return None if predict is None else predict(batch.select(list(FORECAST_FIELDS)))

    def settle(self, doubts: Sequence[Doubt], *, taken: Taken = nothing_taken) -> list[Settlement]:
        try:
            found = dict(self._service.lookup([str(doubt.key) for doubt in doubts]))
        except Exception as error:  # the host's code: anything can come out of it
            _logger.exception("the predictive_performance service cannot look keys up")
            raise SinkUnreachable(
                f"The predictive_performance service cannot look keys up: {error!r}.", guidance="Look at the server's log."
            ) from error
        return [
            Settlement(Answer.STORED, found[str(doubt.key)]) if str(doubt.key) in found else Settlement(Answer.ABSENT) for doubt in doubts
        ]

    def listing(self) -> Iterator[tuple[str, str]]:
        lister: Callable[..., Sequence[Mapping[str, Any]]] | None = getattr(self._service, "list_measurements", None)
        try:
            rows = lister(limit=_LISTED) if lister is not None else None
        except Exception:  # the host's code: anything can come out of it
            _logger.exception("the predictive_performance service cannot list its measurements")
            rows = None
        if rows is None or len(rows) >= _LISTED:
            raise SinkUnreachable(
                "The predictive_performance service cannot list all its measurements.", guidance="Use the lookup of keys instead."
            )
        for row in rows:
            said = str(row.get("measurement_source") or "")
            key = said.removeprefix(KEYED_PREFIX) if said.startswith(KEYED_PREFIX) else row.get("idempotency_key")
            if key is not None:
                yield str(key), str(row.get("measurement_id"))

    def close(self) -> None:
        """The service belongs to the host."""

    def _record(self, measurements: pa.Table) -> tuple[pa.Array, pa.Array, pa.Array]:
        """(status, measurement id, error) of each row, as texts."""
        whole = getattr(self._service, "record_measurement_table", None)
        if whole is not None:
            answer: pa.Table = whole(measurements)
            status, ids, errors = (_texts(answer.column(name)) for name in ("status", "measurement_id", "error"))
            return status, ids, errors
        rows = measurements.to_pylist()
        for row in rows:
            row["metadata"] = json.loads(row["metadata"]) if row["metadata"] else None
            row["measured_at"] = row["measured_at"].isoformat() if row["measured_at"] else None
        answers = self._service.record_measurements(rows)
        status, ids, errors = (
            pa.array([None if (said := item.get(name)) is None else storable(str(said)) for item in answers], pa.string())
            for name in ("status", "measurement_id", "error")
        )
        return status, ids, errors


def _texts(column: pa.ChunkedArray) -> pa.Array:
    whole = column.cast(pa.string()).combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
