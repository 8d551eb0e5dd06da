"""What became of recommendations: what was chosen, and what was measured then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from unified_server.database import DatabaseFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS recommendations (
    recommendation_id VARCHAR NOT NULL, recommended_at TIMESTAMP NOT NULL, asked VARCHAR NOT NULL, ranking VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS recommendation_feedback (
    recommendation_id VARCHAR NOT NULL, recorded_at TIMESTAMP NOT NULL, chosen VARCHAR NOT NULL, measured DOUBLE);
"""


class FeedbackLog:
    """Recommendations and feedback in the database of the measurements. Thread-safe."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    def keep(self, recommendation_id: str, now: datetime, asked: Mapping[str, Any], ranking: list[dict[str, Any]]) -> None:
        """Remember what was recommended."""
        values = [recommendation_id, now, json.dumps(asked), json.dumps(ranking)]
        with self._file.transaction() as cursor:
            cursor.execute(_SCHEMA)
            cursor.execute("INSERT INTO recommendations VALUES (?, ?, ?, ?)", values)

    def record(self, recommendation_id: str, now: datetime, chosen: str, measured: float | None) -> dict[str, Any] | None:
        """Keep the feedback; {"recommendation_id", "chosen", "rank" (1: the first; None: not ranked), "measured", "predicted", "error"}.

        ``error`` is (predicted - measured) / measured. None when the recommendation is not known.
        """
        with self._file.transaction() as cursor:
            cursor.execute(_SCHEMA)
            found = cursor.execute("SELECT ranking FROM recommendations WHERE recommendation_id = ?", [recommendation_id]).fetchone()
            if found is None:
                return None
            cursor.execute("INSERT INTO recommendation_feedback VALUES (?, ?, ?, ?)", [recommendation_id, now, chosen, measured])
        ranking = json.loads(found[0])
        rank = next((place for place, entry in enumerate(ranking, 1) if entry["hardware"] == chosen), None)
        predicted = ranking[rank - 1]["value"] if rank else None
        error = (predicted - measured) / measured if predicted is not None and measured else None
        return {
            "recommendation_id": recommendation_id,
            "chosen": chosen,
            "rank": rank,
            "measured": measured,
            "predicted": predicted,
            "error": error,
        }
