"""The predictions that were given out, and how they compare with what was measured later."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from unified_server.database import DatabaseFile
from unified_server.rows import fetch_rows, where_clause

_COLUMNS = (
    *(
        "prediction_id",
        "predicted_at",
        "model_name",
        "model_family",
        "hardware_platform",
        "batch_size",
        "sequence_length",
    ),
    *("precision", "mode", "throughput", "latency", "memory_usage", "source"),
)

# One of three fixed texts: the metric is checked before it gets here, and a column name cannot be a parameter.
_PAIRS = {
    metric: f"""
SELECT predictions.prediction_id, 'm-' || measurements.id AS measurement_id, predictions.hardware_platform,
    predictions.{metric} AS predicted, measurements.{metric} AS measured,
    (predictions.{metric} - measurements.{metric}) / measurements.{metric} AS relative_error
FROM predictions
JOIN measurements USING (prediction_id)
WHERE isfinite(predictions.{metric}) AND isfinite(measurements.{metric}) AND measurements.{metric} > 0
    AND ($model_name IS NULL OR predictions.model_name = $model_name)
    AND ($hardware_platform IS NULL OR predictions.hardware_platform = $hardware_platform)
    AND ($since IS NULL OR predictions.predicted_at >= $since)
ORDER BY measurements.id DESC
"""
    for metric in ("throughput", "latency", "memory_usage")
}


class PredictionLog:
    """Predictions beside the measurements in the same database. Thread-safe."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    def append(self, predicted_at: datetime, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
        """Keep the predictions in one transaction; the id of each, in order."""
        ids = [f"prediction-{uuid.uuid4()}" for _ in predictions]
        with self._file.transaction() as cursor:
            for prediction_id, prediction in zip(ids, predictions, strict=True):
                row = {**prediction, "prediction_id": prediction_id, "predicted_at": predicted_at}
                cursor.execute(
                    f"INSERT INTO predictions ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})",
                    [row.get(name) for name in _COLUMNS],
                )
        return ids

    def get(self, prediction_id: str) -> dict[str, Any] | None:
        with self._file.cursor() as cursor:
            rows = fetch_rows(cursor, "FROM predictions WHERE prediction_id = ?", [prediction_id])
        return rows[0] if rows else None

    def newest(self, equal: Mapping[str, str | int | None], *, since: datetime | None = None, limit: int = 10) -> list[dict[str, Any]]:
        """The newest first, those whose columns are ``equal`` (None: any)."""
        where, values = where_clause(equal, "predicted_at", since)
        with self._file.cursor() as cursor:
            return fetch_rows(cursor, f"FROM predictions {where} ORDER BY predicted_at DESC, prediction_id LIMIT ?", [*values, limit])

    def analyze(self, metric: str, *, model_name: str | None, hardware_platform: str | None, since: datetime | None) -> dict[str, Any]:
        """How far predictions were from the measurements that name them, in fractions of the measured value.

        ``bias`` is the mean of (predicted - measured) / measured; ``pairs`` are the newest 100. All null when there is
        no pair.
        """
        chosen = {"model_name": model_name, "hardware_platform": hardware_platform, "since": since}
        with self._file.cursor() as cursor:
            found = fetch_rows(cursor, _PAIRS[metric], chosen)
        errors = sorted(abs(pair["relative_error"]) for pair in found)
        return {
            "metric": metric,
            "count": len(found),
            "mean_absolute_error": sum(errors) / len(errors) if errors else None,
            "median_absolute_error": errors[len(errors) // 2] if errors else None,
            "bias": sum(pair["relative_error"] for pair in found) / len(found) if found else None,
            "pairs": found[:100],
        }
