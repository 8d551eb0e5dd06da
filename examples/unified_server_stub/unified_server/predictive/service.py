"""The Predictive Performance API as an object: what the routes call, and what plugins in this process may call without
HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, cast

import pyarrow as pa

from unified_server.config import LearningConfig
from unified_server.database import DatabaseFile
from unified_server.predictive.baselines import Baselines
from unified_server.predictive.feedback import FeedbackLog
from unified_server.predictive.learning import Learning
from unified_server.predictive.measurement import (
    CAPABILITIES,
    HARDWARE_PLATFORMS,
    MEASUREMENT,
    MODES,
    PRECISIONS,
    TABLE_SCHEMA,
    aligned,
)
from unified_server.predictive.predictions import PredictionLog
from unified_server.predictive.predictor import FIGURES, predict
from unified_server.predictive.recommend import recommend
from unified_server.predictive.store import MeasurementStore, prepare
from unified_server.reading import read_columns, read_fields

Outcome = dict[str, str | None]


class PredictivePerformance:
    """The service "predictive_performance". Every method may be called from any thread.

    All raise DatabaseBusy when the file stays locked (``shared`` only), and duckdb.Error when the disk does not play
    along.
    """

    def __init__(self, path: str, *, shared: bool = False, minimum_measurements: int = 3, learning: LearningConfig | None = None) -> None:
        self.file = DatabaseFile(path, shared=shared, queue=shared, schema=prepare, patience_seconds=30)
        self.minimum_measurements = minimum_measurements
        self._store = MeasurementStore(self.file)
        self._log = PredictionLog(self.file)
        self._feedback = FeedbackLog(self.file)
        self._baselines = Baselines(self.file)
        self.learning = Learning(path, learning or LearningConfig(), self._store)

    @property
    def recorded(self) -> int:
        """How many measurements this process has stored since it started."""
        return self._store.recorded

    def close(self) -> None:
        """End the training, and close the file if it is held open. A later call opens it again."""
        self.learning.stop()
        self.file.close()

    def describe(self) -> dict[str, list[str]]:
        """What this service can do and takes: capabilities, hardware_platforms, precisions, modes."""
        return {
            "capabilities": list(CAPABILITIES),
            "hardware_platforms": list(HARDWARE_PLATFORMS),
            "precisions": list(PRECISIONS),
            "modes": list(MODES),
        }

    def record_measurements(self, measurements: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Store any number of measurements in one transaction; what became of each, in order.

        An outcome is {"status": "created" | "existing" | "rejected", "measurement_id", "error"}. A row that cannot be
        stored is rejected with a sentence and holds up no other. "existing": the idempotency key was stored before;
        the id is that of the first.
        """
        columns = read_columns(MEASUREMENT, measurements)
        if columns is not None:
            stored = self._store.record(pa.table(columns, schema=TABLE_SCHEMA), checked=True)
            return cast(list[Outcome], stored.select(["status", "measurement_id", "error"]).to_pylist())
        outcomes: list[Outcome] = []
        good: list[dict[str, Any]] = []
        for values in measurements:
            row, details = read_fields(MEASUREMENT, values, loc=())
            error = "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}".removeprefix(": ") for d in details)
            outcomes.append({"status": "rejected", "measurement_id": None, "error": error or None})
            if not details:
                good.append(row)
        if good:
            answers = self._store.record(pa.Table.from_pylist(good, schema=TABLE_SCHEMA), checked=True).to_pylist()
            waiting = [outcome for outcome in outcomes if outcome["error"] is None]
            for outcome, row in zip(waiting, answers, strict=True):
                outcome.update(status=row["status"], measurement_id=row["measurement_id"])
        return outcomes

    def record_measurement_table(self, measurements: pa.Table) -> pa.Table:
        """The same for an Arrow table, without a Python object for any row: 100,000 rows take about half a second.

        Columns are the fields of the wire plus idempotency_key; absent ones are null, unknown ones dropped,
        ``measured_at`` is a timestamp and ``metadata`` JSON text. Returns (idempotency_key, status, measurement_id,
        error), all strings, in input order. Raises InvalidInput when a column has the wrong type; then nothing is
        stored.
        """
        return self._store.record(measurements)

    def lookup(self, idempotency_keys: Sequence[str]) -> dict[str, str]:
        """The measurement id of each key that is stored; the others are absent."""
        return self._store.lookup(idempotency_keys)

    def measurement(self, measurement_id: str) -> dict[str, Any] | None:
        """One stored row, as in ``list_measurements``."""
        return self._store.measurement(measurement_id)

    def list_measurements(
        self,
        model_name: str | None = None,
        model_family: str | None = None,
        hardware: str | None = None,
        batch_size: int | None = None,
        days: int | None = None,
        limit: int = 10,
    ) -> list[dict[str, Any]]:
        """The newest measurements first, recorded in the last ``days``; as ``GET /measurements`` gives them."""
        equal = {
            "model_name": model_name,
            "model_family": model_family,
            "hardware_platform": hardware,
            "batch_size": batch_size,
        }
        return self._store.measurements(equal, days=days, limit=limit)

    def predict(
        self,
        model_name: str,
        hardware: str | Sequence[str],
        *,
        model_family: str | None = None,
        batch_size: int = 1,
        sequence_length: int = 128,
        precision: str = "fp32",
        mode: str = "inference",
    ) -> dict[str, dict[str, Any]]:
        """For each hardware: throughput (items/s), latency (ms), memory_usage (MB), source, and what it rests on.

        ``source`` is measured, learned, interpolated, extrapolated or insufficient_measurements; the last has no
        figures, only a ``message``. The others have been recorded and carry a ``prediction_id`` to measure against.
        What was not measured is ``learned`` once the predictor is trained (with ``interval``, ``predictor_version`` and
        ``seen``); until then, and where that has no answer, by the formula in ``predictor``.
        """
        platforms = [hardware] if isinstance(hardware, str) else list(dict.fromkeys(hardware))
        answer: dict[str, dict[str, Any]] = {}
        for platform in platforms:
            measured = self._store.configurations(model_name, platform, mode)
            answer[platform] = asdict(predict(batch_size, sequence_length, precision, measured, self.minimum_measurements))
            answer[platform]["seen"] = {"model": bool(measured), "hardware": bool(measured)}
        self._learned(answer, model_name, model_family, batch_size, sequence_length, precision, mode)
        known = [platform for platform in platforms if answer[platform]["source"] != "insufficient_measurements"]
        asked = {
            "model_name": model_name,
            "model_family": model_family,
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "precision": precision,
            "mode": mode,
        }
        rows = [{**asked, **answer[platform], "hardware_platform": platform} for platform in known]
        ids = self._log.append(self._store.utc_now(), rows) if rows else []
        for platform, prediction_id in zip(known, ids, strict=True):
            answer[platform]["prediction_id"] = prediction_id
        return answer

    def _learned(self, answer: dict[str, dict[str, Any]], model_name: str, model_family: str | None, *shape: Any) -> None:
        """Put what was learned where nothing was measured."""
        asked = [platform for platform in answer if answer[platform]["source"] != "measured"]
        names = ("batch_size", "sequence_length", "precision", "mode")
        row = {"model_name": model_name, "model_family": model_family, **dict(zip(names, shape, strict=True))}
        if not asked:
            return
        for platform, found in zip(
            asked, self.learning.predict([{**row, "hardware_platform": platform} for platform in asked]), strict=True
        ):
            if "source" in found:
                answer[platform].update({"message": "", "precision_used": row["precision"], **found})

    def predict_measurements(self, measurements: pa.Table) -> pa.Table:
        """What to expect of each row of a measurement table, from all but its own figures, in input order: ``learning.BULK_SCHEMA``, then
        ``baselines.BASELINE_SCHEMA``.

        ``source`` is learned or insufficient_measurements; the simple guesses of the baselines are there also without a predictor. Nothing is recorded.
        Raises InvalidInput for a column of the wrong type.
        """
        asked = aligned(measurements)
        answer, guesses = self.learning.predict_table(asked), self._baselines.guess(asked)
        return pa.table([*answer.columns, *guesses.columns], names=[*answer.column_names, *guesses.column_names])

    def recommend(
        self,
        model_name: str,
        available_hardware: Sequence[str],
        *,
        goal: str = "throughput",
        latency_ms_at_most: float | None = None,
        memory_mb_at_most: float | None = None,
        **shape: Any,
    ) -> dict[str, Any]:
        """Which hardware is best for a goal, by ``predict`` with the same ``shape`` (see ``recommend.recommend``), and its
        figures.
        """
        predictions = self.predict(model_name, available_hardware, **shape)
        limits = {"latency_ms_at_most": latency_ms_at_most, "memory_mb_at_most": memory_mb_at_most}
        answer = recommend(predictions, shape.get("batch_size", 1), goal, **limits)
        primary = answer["primary_recommendation"]
        if primary is not None:
            answer["recommendation_id"] = f"recommendation-{uuid.uuid4()}"
            answer["performance"] = predictions[primary]
            asked = {"model_name": model_name, "goal": goal, **limits, **shape}
            self._feedback.keep(answer["recommendation_id"], self._store.utc_now(), asked, answer["ranking"])
        return answer

    def feedback(self, recommendation_id: str, chosen: str, measured: float | None = None) -> dict[str, Any] | None:
        """Keep what was chosen and measured after a recommendation (see ``FeedbackLog.record``); None when it is not known."""
        return self._feedback.record(recommendation_id, self._store.utc_now(), chosen, measured)

    def compare(self, prediction_id: str, measurement: Mapping[str, Any]) -> dict[str, Any]:
        """{"prediction", "errors"}: the prediction and (predicted - measured) / measured of each figure; {} if it is
        not known.
        """
        prediction = self._log.get(prediction_id)
        if prediction is None:
            return {}
        errors = {
            name: (prediction[name] - measurement[name]) / measurement[name]
            for name in FIGURES
            if prediction[name] is not None and measurement[name]
        }
        return {"prediction": prediction, "errors": errors}

    def list_predictions(
        self, model_name: str | None = None, hardware: str | None = None, days: int | None = None, limit: int = 10
    ) -> list[dict[str, Any]]:
        """The newest predictions first."""
        equal = {"model_name": model_name, "hardware_platform": hardware}
        return self._log.newest(equal, since=self._since(days), limit=limit)

    def analyze_predictions(
        self,
        model_name: str | None = None,
        hardware_platform: str | None = None,
        metric: str = "throughput",
        days: int | None = None,
    ) -> dict[str, Any]:
        """How far predictions of ``metric`` were from the measurements that name them (see
        ``PredictionLog.analyze``).
        """
        return self._log.analyze(metric, model_name=model_name, hardware_platform=hardware_platform, since=self._since(days))

    def _since(self, days: int | None) -> datetime | None:
        return None if days is None else self._store.utc_now() - timedelta(days=days)
