"""/api/predictive-performance: each route reads its request, calls the service and words the answer."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from flask import Blueprint, abort, request

from unified_server.api import api_blueprint
from unified_server.body import read_json
from unified_server.errors import InvalidInput, ServerError
from unified_server.fields import Text
from unified_server.predictive.measurement import MEASUREMENT, TABLE_SCHEMA
from unified_server.predictive.requests import (
    ANALYZE,
    FEEDBACK,
    LIST_MEASUREMENTS,
    LIST_PREDICTIONS,
    MOST_IN_BULK,
    MOST_KEYS,
    PREDICT_HARDWARE,
    PREDICT_PERFORMANCE,
)
from unified_server.predictive.service import PredictivePerformance
from unified_server.predictive.tasks import TaskBoard
from unified_server.reading import detail, read_all, read_query

PREFIX = "/api/predictive-performance"
KEY_HEADER = Text("Idempotency-Key", required=True, longest=200)

Answer = dict[str, Any]


def predictive_blueprint(service: PredictivePerformance, tasks: TaskBoard, api_key: str | None) -> Blueprint:
    """The routes over a service. Only ``/health`` is open when there is a key."""
    blueprint = api_blueprint("predictive_performance", PREFIX, api_key=api_key, open_endpoints=["health"])

    def start(kind: str, work: Any) -> Answer:
        return {"task_id": tasks.run(kind, work), "status": "pending"}

    @blueprint.get("/health")
    def health() -> Answer:
        described = service.describe()
        # Besides what the service can do: read_json takes bodies in gzip.
        return {"status": "ok", **described, "capabilities": [*described["capabilities"], "gzip"]}

    @blueprint.post("/record-measurement")
    def record_measurement() -> Answer:
        body = read_json(request)
        key = request.headers.get("Idempotency-Key")
        if key is not None and isinstance(body, dict):
            body = {
                **body,
                "idempotency_key": read_all([KEY_HEADER], {KEY_HEADER.name: key}, ("header",))[KEY_HEADER.name],
            }
        measurement = read_all(MEASUREMENT, body)
        return start("measurement", lambda: _record(service, measurement))

    @blueprint.post("/record-measurements")
    def record_measurements() -> Answer:
        rows = _list(read_json(request), "measurements", MOST_IN_BULK)
        return {"results": service.record_measurements(rows)}

    @blueprint.post("/measurements/lookup")
    def lookup() -> Answer:
        keys = _list(read_json(request), "idempotency_keys", MOST_KEYS)
        for position, key in enumerate(keys):
            read_all([Text("key", required=True)], {"key": key}, ("body", "idempotency_keys", position))
        return {"found": service.lookup(keys)}

    @blueprint.get("/measurements")
    def measurements() -> Answer:
        rows = service.list_measurements(**read_query(LIST_MEASUREMENTS, request.args))
        return {"count": len(rows), "measurements": rows}

    @blueprint.get("/task/<task_id>")
    def task(task_id: str) -> Answer:
        found = tasks.get(task_id)
        if found is None:
            abort(404, "Task not found")
        return found

    @blueprint.post("/predict-performance")
    def predict_performance() -> Answer:
        asked = read_all(PREDICT_PERFORMANCE, read_json(request))
        return start("prediction", lambda: {**asked, "predictions": service.predict(**asked)})

    @blueprint.post("/predict-hardware")
    def predict_hardware() -> Answer:
        asked = read_all(PREDICT_HARDWARE, read_json(request))
        with_figures = asked.pop("predict_performance")

        def work() -> Answer:
            answer = service.recommend(**asked)
            if not with_figures:
                answer.pop("performance", None)
            return answer

        return start("recommendation", work)

    @blueprint.post("/predict-measurements")
    def predict_measurements() -> Answer:
        rows = _list(read_json(request), "measurements", MOST_IN_BULK)
        read = [read_all(MEASUREMENT, row, ("body", "measurements", str(position))) for position, row in enumerate(rows)]
        return {"predictions": service.predict_measurements(pa.Table.from_pylist(read, schema=TABLE_SCHEMA)).to_pylist()}

    @blueprint.get("/predictor")
    def predictor() -> Answer:
        return service.learning.describe()

    @blueprint.post("/recommendations/<recommendation_id>/feedback")
    def feedback(recommendation_id: str) -> Answer:
        found = service.feedback(recommendation_id, **read_all(FEEDBACK, read_json(request)))
        if found is None:
            abort(404, "Recommendation not found")
        return found

    @blueprint.get("/predictions")
    def predictions() -> Answer:
        rows = service.list_predictions(**read_query(LIST_PREDICTIONS, request.args))
        return {"count": len(rows), "predictions": rows}

    @blueprint.post("/analyze-predictions")
    def analyze_predictions() -> Answer:
        asked = read_all(ANALYZE, read_json(request))
        return start("analysis", lambda: service.analyze_predictions(**asked))

    return blueprint


def _record(service: PredictivePerformance, measurement: dict[str, Any]) -> Answer:
    """The result of a measurement's task. A key that was stored before gives the first measurement again."""
    outcome = service.record_measurements([measurement])[0]
    measurement_id = outcome["measurement_id"]
    stored = service.measurement(measurement_id) if measurement_id else None
    if stored is None:
        raise ServerError(outcome["error"] or "the measurement was not found after it was stored")
    compared = service.compare(stored["prediction_id"], stored) if stored["prediction_id"] else {}
    return {
        "measurement_id": measurement_id,
        "prediction_id": stored["prediction_id"],
        "status": outcome["status"],
        "measurement": stored,
        **compared,
    }


def _list(body: Any, name: str, most: int) -> list[Any]:
    """The list under a name in the body. Raises InvalidInput when it is absent, no list, or too long."""
    if not isinstance(body, dict):
        raise InvalidInput([detail("dict_type", ["body"], "Input should be a valid dictionary", body)])
    values = body.get(name)
    if values is None:
        raise InvalidInput([detail("missing", ["body", name], "Field required", None)])
    if not isinstance(values, list):
        raise InvalidInput([detail("list_type", ["body", name], "Input should be a valid list", values)])
    if len(values) > most:
        message = f"List should have at most {most} items after validation, not {len(values)}"
        raise InvalidInput([detail("too_long", ["body", name], message, len(values))])
    return values
