"""The learned predictor as the service uses it: without scikit-learn, or before the first training, it has no answer and says why."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unified_server.config import LearningConfig
from unified_server.predictive.measurement import TABLE_SCHEMA
from unified_server.predictive.store import MeasurementStore

if TYPE_CHECKING:
    from unified_server.predictive.learned.trainer import Trainer
    from unified_server.predictive.learned.versions import Version

logger = logging.getLogger(__name__)

FIGURES = ("throughput", "latency", "memory_usage")
NO_LIBRARY = "the predictor cannot learn: scikit-learn is not installed (pip install unified-server-stub[learn])"
OFF = "the predictor does not learn: predictive_performance.learning.enabled is false"
BULK_SCHEMA = pa.schema(
    [
        *((f"{figure}{end}", pa.float64()) for figure in FIGURES for end in ("", "_lo", "_hi")),
        ("source", pa.string()),
        ("predictor_version", pa.int64()),
        ("model_seen", pa.bool_()),
        ("hardware_seen", pa.bool_()),
    ]
)


class Learning:
    """The trainer of this process, if there can be one, and the version in force."""

    def __init__(self, path: str, config: LearningConfig, store: MeasurementStore) -> None:
        self._trainer: Trainer | None = None
        self._without = "" if config.enabled else OFF
        if config.enabled and importlib.util.find_spec("sklearn") is None:
            self._without = NO_LIBRARY
            logger.warning(NO_LIBRARY)
        elif config.enabled:
            from unified_server.predictive.learned.trainer import Trainer

            self._trainer = Trainer(Path(f"{path}.predictor").absolute(), config, store.count, store.newest)

    def start(self) -> None:
        if self._trainer is not None:
            self._trainer.start()

    def stop(self) -> None:
        if self._trainer is not None:
            self._trainer.stop()

    def train(self) -> bool:
        """Train now and wait for it; False when another process is at it, it failed, or nothing can be learned here."""
        return self._trainer is not None and self._trainer.train()

    def describe(self) -> dict[str, Any]:
        """What ``GET /predictor`` answers."""
        if self._trainer is None:
            return {"enabled": False, "version": None, "message": self._without}
        return self._trainer.describe()

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each row its figures as a prediction of the wire, or ``{"message"}`` where there are none."""
        version = self._version()
        if version is None:
            return [{"message": self._without or "the predictor has not been trained yet"}] * len(rows)
        table, reasons = _forecast(version, pa.Table.from_pylist(rows, schema=TABLE_SCHEMA))
        return [_answer(row, reason) for row, reason in zip(table.to_pylist(), reasons, strict=True)]

    def predict_table(self, table: pa.Table) -> pa.Table:
        """BULK_SCHEMA for each row of a table in TABLE_SCHEMA; all null but ``source`` where nothing can be said."""
        version = self._version()
        if version is None:
            empty: dict[str, Any] = {field.name: pa.nulls(table.num_rows, field.type) for field in BULK_SCHEMA}
            empty["source"] = pa.repeat("insufficient_measurements", table.num_rows)
            return pa.table(empty, schema=BULK_SCHEMA)
        return _forecast(version, table)[0]

    def _version(self) -> Version | None:
        return self._trainer.current() if self._trainer is not None else None


def _forecast(version: Version, table: pa.Table) -> tuple[pa.Table, list[str]]:
    import numpy as np

    forecast = version.predictor.forecast(table)
    columns: dict[str, Any] = {}
    answered = np.zeros(table.num_rows, bool)
    for figure in FIGURES:
        for end, logs in zip(("", "_lo", "_hi"), forecast.figures[figure], strict=True):
            known = np.isfinite(logs)
            columns[f"{figure}{end}"] = pa.array(np.exp(np.clip(logs, -300, 300)), mask=~known)
            answered |= known
    columns["source"] = pa.array(["learned" if one else "insufficient_measurements" for one in answered])
    columns["predictor_version"] = pa.repeat(version.number, table.num_rows).cast(pa.int64())
    columns["model_seen"] = pa.array(forecast.model_seen, pa.bool_())
    columns["hardware_seen"] = pa.array(forecast.hardware_seen, pa.bool_())
    return pa.table(columns, schema=BULK_SCHEMA), forecast.reasons


def _answer(row: dict[str, Any], reason: str) -> dict[str, Any]:
    if row["source"] != "learned":
        return {"message": f"not enough measurements: {reason}"}
    return {
        "source": "learned",
        **{figure: row[figure] for figure in FIGURES},
        "interval": {figure: [row[f"{figure}_lo"], row[f"{figure}_hi"]] for figure in FIGURES if row[figure] is not None},
        "predictor_version": row["predictor_version"],
        "seen": {"model": row["model_seen"], "hardware": row["hardware_seen"]},
    }
