"""The OpenAPI 3.1 document of the host's own routes, built from the same fields that check the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from unified_server.benchmark.result import LIST_RESULTS, RESULT, RUN
from unified_server.fields import Field
from unified_server.predictive.measurement import MEASUREMENT
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
from unified_server.reading import object_schema

_PREDICTIVE = "/api/predictive-performance"
_TASK = "A task that has begun: {task_id, status}; ask GET /task/{task_id} for what came of it"


class Route(NamedTuple):
    """One line of the tables below. ``answer`` describes the body that comes with ``status``."""

    method: str
    path: str
    summary: str
    schema: str | None
    fields: Sequence[Field]
    status: str
    answer: str


_HOST = [
    Route("get", "/", "The addresses of this server, as a page", None, (), "200", "HTML"),
    Route("get", "/health", "Status, each plugin's numbers, what failed", None, (), "200", "{status, plugins}"),
    Route("get", "/openapi.json", "This document", None, (), "200", "OpenAPI 3.1"),
    Route("post", "/api/benchmark/results", "Store one result or several", "BenchmarkRequest", (), "201", "The ids"),
    Route("get", "/api/benchmark/results", "Newest first", None, LIST_RESULTS, "200", "{count, results}"),
]
_PREDICTIVE_ROUTES = [
    Route("get", "/health", "What it can do beyond the base contract", None, (), "200", "{status, capabilities}"),
    Route("post", "/record-measurement", "Record a measurement", "MeasurementRequest", (), "200", _TASK),
    Route("post", "/record-measurements", "Record many at once", "BulkRequest", (), "200", "{results}, in order"),
    Route("post", "/measurements/lookup", "Which keys are stored", "LookupRequest", (), "200", "{found}"),
    Route("get", "/measurements", "Newest first", None, LIST_MEASUREMENTS, "200", "{count, measurements}"),
    Route("get", "/task/{task_id}", "What came of a task", None, (), "200", "{status, progress, message[, result]}"),
    Route("post", "/predict-performance", "Predict figures", "PredictionRequest", (), "200", _TASK),
    Route("post", "/predict-hardware", "Rank hardware by prediction", "HardwareRequest", (), "200", _TASK),
    Route("post", "/predict-measurements", "Predict the figures of measurements", "BulkRequest", (), "200", "{predictions}, in order"),
    Route("get", "/predictor", "What the predictor has learned, and when it will again", None, (), "200", "{enabled, version, ...}"),
    Route(
        "post", "/recommendations/{recommendation_id}/feedback", "What was chosen", "FeedbackRequest", (), "200", "{rank, predicted, error}"
    ),
    Route("get", "/predictions", "Newest first", None, LIST_PREDICTIONS, "200", "{count, predictions}"),
    Route("post", "/analyze-predictions", "Compare with measurements", "AnalysisRequest", (), "200", _TASK),
]
_OPEN = {"/", "/health", "/openapi.json", f"{_PREDICTIVE}/health"}


def openapi_document(*, predictive: bool, keyed: bool) -> dict[str, Any]:
    """The document; without the predictive routes where they are disabled, without security where no key is asked
    for.
    """
    routes = list(_HOST)
    schemas = _benchmark_schemas()
    if predictive:
        routes += [route._replace(path=_PREDICTIVE + route.path) for route in _PREDICTIVE_ROUTES]
        schemas |= _predictive_schemas()
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, schema, fields, status, answer in routes:
        operation: dict[str, Any] = {
            "summary": summary,
            "parameters": _parameters(path, fields),
            "responses": {status: {"description": answer}},
        }
        if schema is not None:
            reference = {"$ref": f"#/components/schemas/{schema}"}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
        if schema is not None or fields:
            operation["responses"]["422"] = {"description": "{detail: [{type, loc, msg, input}]}"}
        if keyed and path not in _OPEN:
            operation["security"] = [{"ApiKey": []}]
            operation["responses"]["401"] = {"description": "The key is missing or wrong"}
        paths.setdefault(path, {})[method] = operation
    components: dict[str, Any] = {"schemas": schemas}
    if keyed:
        components["securitySchemes"] = {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
    info = {"title": "Unified API Server", "version": "0.1.0"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _parameters(path: str, fields: Sequence[Field]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": field.name, "in": "query", "description": field.about, "schema": field.schema()} for field in fields
    ]
    found += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("task_id", "recommendation_id")
        if f"{{{name}}}" in path
    ]
    if path.endswith("/record-measurement"):
        about = "The same key is stored once and answers with the first outcome"
        schema = {"type": "string", "maxLength": 200}
        found.append({"name": "Idempotency-Key", "in": "header", "description": about, "schema": schema})
    return found


def _benchmark_schemas() -> dict[str, Any]:
    result = object_schema(RESULT)
    result["properties"]["run"] = {"anyOf": [{"$ref": "#/components/schemas/BenchmarkRun"}, {"type": "null"}]}
    one = {"$ref": "#/components/schemas/BenchmarkResult"}
    many = {"type": "object", "properties": {"results": {"type": "array", "items": one}}, "required": ["results"]}
    return {"BenchmarkResult": result, "BenchmarkRun": object_schema(RUN), "BenchmarkRequest": {"anyOf": [one, many]}}


def _predictive_schemas() -> dict[str, Any]:
    one = {"$ref": "#/components/schemas/MeasurementRequest"}
    return {
        "MeasurementRequest": object_schema(MEASUREMENT),
        "BulkRequest": _list_schema("measurements", one, MOST_IN_BULK),
        "LookupRequest": _list_schema("idempotency_keys", {"type": "string"}, MOST_KEYS),
        "PredictionRequest": object_schema(PREDICT_PERFORMANCE),
        "HardwareRequest": object_schema(PREDICT_HARDWARE),
        "FeedbackRequest": object_schema(FEEDBACK),
        "AnalysisRequest": object_schema(ANALYZE),
    }


def _list_schema(name: str, items: dict[str, Any], most: int) -> dict[str, Any]:
    properties = {name: {"type": "array", "items": items, "maxItems": most}}
    return {"type": "object", "properties": properties, "required": [name]}
