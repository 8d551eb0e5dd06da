"""The routes of the bridge as an OpenAPI 3.1 document. tests/test_openapi.py holds it against the routes and fuzzes the routes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchbridge_plugin._version import __version__
from benchbridge_plugin.ledger import STATES
from benchbridge_plugin.model import STATE_NAMES
from benchbridge_plugin.planning.planner import COVERAGE, INTERVALS, MOST
from benchbridge_plugin.regressions.history import METRICS
from benchbridge_plugin.report import FORMATS
from benchbridge_plugin.suggestions.suggestion import CODES
from benchbridge_plugin.web.arguments import LONGEST_ITEM, MOST_ITEMS
from benchbridge_plugin.web.export import KINDS

_Schema = Mapping[str, Any]
CHANGES = ("regression", "improvement")

_TEXT: _Schema = {"type": "string", "minLength": 1, "maxLength": 1000, "pattern": "^[^\\u0000]+$"}
_SOURCE: _Schema = {**_TEXT, "description": "the name of one benchmark file; left out: all of them"}
_COUNT: _Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
_PAGE: _Schema = {"type": "integer", "minimum": 1, "maximum": 1000}
_FLAG: _Schema = {"type": "boolean"}
_OBJECT: _Schema = {"type": "object"}
_FORMAT: _Schema = {"type": "string", "enum": list(KINDS), "description": "of csv the header Link has the next page"}
_SUGGESTIONS: _Schema = {
    "type": "object",
    "required": ["suggestions", "total", "counts", "read_at", "note"],
    "properties": {
        "suggestions": {"type": "array", "items": _OBJECT},
        "total": {"type": "integer", "description": "how many match, listed or not"},
        "counts": {"type": "object", "description": "how many of each code"},
        "read_at": {"type": ["string", "null"], "description": "as of when; over several files the oldest"},
        "note": {"type": "string", "description": "why it is not whole or not new; else empty"},
    },
}
_ITEM: _Schema = {
    "type": "object",
    "required": [
        "model_name",
        "hardware",
        "device_name",
        "precision",
        "mode",
        "batch_size",
        "sequence_length",
        "reason",
        "gain",
        "predicted",
    ],
    "properties": {
        **{name: {"type": "string"} for name in ("model_name", "hardware", "precision", "mode", "reason")},
        "device_name": {"type": ["string", "null"]},
        "batch_size": {"type": "integer", "minimum": 1},
        "sequence_length": {"type": ["integer", "null"]},
        "gain": {"type": "number", "minimum": 0, "description": "a part of all that is left to learn"},
        "predicted": {"type": ["object", "null"], "description": "of each figure `value`, `low` and `high`"},
    },
}
_PLAN: _Schema = {
    "type": "object",
    "required": ["generated_at", "basis", "note", "predictor_version", "candidates", "plan"],
    "properties": {
        "generated_at": {"type": "string"},
        "basis": {"type": "string", "enum": [INTERVALS, COVERAGE]},
        "note": {"type": "string"},
        "predictor_version": {"type": ["string", "null"]},
        "candidates": _COUNT,
        "plan": {"type": "array", "items": _ITEM},
    },
}


def document() -> dict[str, Any]:
    """The whole document; paths are absolute."""
    states = list(STATE_NAMES.values())
    problem = _reference("Problem")
    routes = {
        "/status": {
            "get": _route(
                "Connections, schedule, lease, last run, accounting, version; of several benchmark files each in `sources`",
                answers={200: _OBJECT},
            )
        },
        "/sync": {
            "post": _route(
                "Start a sync, or join the one that is running",
                body={
                    "source": _SOURCE,
                    "model": _TEXT,
                    "days": {"type": "integer", "minimum": 0, "maximum": 100_000},
                    "limit": _COUNT,
                    "dry_run": _FLAG,
                    "wait": _FLAG,
                },
                answers={200: _OBJECT, 202: _OBJECT, 400: problem, 409: problem, 413: problem, 415: problem, 422: problem, 502: problem},
            )
        },
        "/runs": {
            "get": _route(
                "The runs, newest first",
                query={
                    "limit": _PAGE,
                    "before": {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
                    "source": _SOURCE,
                    "format": _FORMAT,
                },
                answers={200: _table("runs"), 422: problem},
            )
        },
        "/runs/{run_id}": {
            "get": _route("One run", path={"run_id": {"type": "integer", "minimum": 0}}, answers={200: _OBJECT, 404: problem}),
        },
        "/report": {
            "get": _route(
                "The report: accounting, coverage, refusals, last runs; of several benchmark files each in `sources`",
                query={"format": {"type": "string", "enum": list(FORMATS)}, "source": _SOURCE},
                answers={
                    200: {kind.partition(";")[0]: _OBJECT if kind == "application/json" else {} for kind in FORMATS.values()},
                    422: problem,
                },
            )
        },
        "/accuracy": {
            "get": _route(
                "How far predictions were off on results that the predictor had not been shown; errors are fractions of what was measured",
                query={"days": {"type": "integer", "minimum": 0, "maximum": 36_500}, "source": _SOURCE},
                answers={200: _OBJECT, 422: problem},
            )
        },
        "/plan": {
            "get": _route(
                "What to measure next: the configurations whose measurement would reduce the predictor's error most, for a benchmark runner",
                query={"limit": {"type": "integer", "minimum": 1, "maximum": MOST}, "model": _TEXT, "hardware": _TEXT, "source": _SOURCE},
                answers={200: _PLAN, 422: problem},
            )
        },
        "/results": {
            "get": _route(
                "Single results with their place and reason",
                query={
                    "state": {"type": "string", "enum": states},
                    "model": _TEXT,
                    "hardware": _TEXT,
                    "limit": _PAGE,
                    "cursor": {
                        "type": "string",
                        "maxLength": 900,
                        "pattern": "^([0-9]{1,9}:)?[0-9a-f]{32}\\.[^\\u0000]+$",
                        "description": "from `next` of the page before; over several benchmark files it begins with the number of a source",
                    },
                    "source": _SOURCE,
                    "format": _FORMAT,
                },
                answers={200: _table("results"), 422: problem},
            )
        },
        "/results/retry": {
            "post": _route(
                "Make waiting results due now; with state=rejected bring refused ones back",
                body={
                    "source": _SOURCE,
                    "state": {"type": "string", "enum": ["retrying", "rejected"]},
                    "model": _TEXT,
                    "reason": _TEXT,
                    "result_ids": {
                        "type": "array",
                        "items": {"type": "string", "maxLength": LONGEST_ITEM, "pattern": "^[^\\u0000]*$"},
                        "maxItems": MOST_ITEMS,
                    },
                },
                answers={200: _OBJECT, 400: problem, 413: problem, 415: problem, 422: problem},
            )
        },
        "/regressions": {
            "get": _route(
                "Where configurations got worse for good, newest first; with kind=improvement where they got better",
                query={
                    "state": {"type": "string", "enum": list(STATES)},
                    "model": _TEXT,
                    "hardware": _TEXT,
                    "metric": {"type": "string", "enum": list(METRICS)},
                    "kind": {"type": "string", "enum": list(CHANGES)},
                    "limit": _PAGE,
                    "before": {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
                    "source": _SOURCE,
                    "format": _FORMAT,
                },
                answers={200: _table("regressions"), 422: problem},
            )
        },
        "/regressions/{regression_id}": {
            "get": _route(
                "One regression, with the points of its history",
                path={"regression_id": {"type": "integer", "minimum": 0}},
                answers={200: _OBJECT, 404: problem},
            ),
            "post": _route(
                "Acknowledge, resolve or open a regression",
                path={"regression_id": {"type": "integer", "minimum": 0}},
                body={"state": {"type": "string", "enum": list(STATES)}, "note": _TEXT},
                answers={200: _OBJECT, 400: problem, 404: problem, 413: problem, 415: problem, 422: problem},
            ),
        },
        "/suggestions": {
            "get": _route(
                "What the measured results suggest, most gain first, each with the results it rests on",
                query={
                    "code": {"type": "string", "enum": list(CODES)},
                    "model": _TEXT,
                    "hardware": {**_TEXT, "description": "a platform such as cuda, or the name of a device"},
                    "limit": _PAGE,
                    "source": _SOURCE,
                    "format": {"type": "string", "enum": list(KINDS)},
                },
                answers={200: {"application/json": _SUGGESTIONS, "text/csv": {}}, 422: problem},
            )
        },
        "/schedule": {
            "get": _route("When the next cycle is due", answers={200: _OBJECT}),
            "post": _route(
                "Pause, resume, set the interval, run now",
                body={"paused": _FLAG, "interval_minutes": {"type": "number", "minimum": 0.01, "maximum": 525_600}, "run_now": _FLAG},
                answers={200: _OBJECT, 400: problem, 409: problem, 413: problem, 415: problem, 422: problem},
            ),
        },
        "/verify": {
            "post": _route(
                "Compare ledger and sink: what is missing, doubled or foreign",
                body={"repair": _FLAG, "source": _SOURCE},
                answers={200: _OBJECT, 400: problem, 409: problem, 413: problem, 415: problem, 422: problem, 502: problem},
            )
        },
        "/health": {"get": _route("A few numbers", answers={200: _OBJECT})},
        "/metrics": {
            "get": _route(
                "The figures for Prometheus; OpenMetrics for who accepts it",
                answers={200: {"text/plain": {}, "application/openmetrics-text": {}}},
            )
        },
        "/openapi.json": {"get": _route("This document", answers={200: _OBJECT})},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "benchbridge", "version": __version__, "description": "Benchmark results on their way to the predictive API."},
        "paths": {f"/api/bridge{path}": methods for path, methods in routes.items()},
        "security": [{"key": []}, {"bearer": []}],
        "components": {
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "description": "RFC 9457; `code` is for machines, `guidance` says what to do.",
                    "required": ["type", "title", "status", "code", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "code": {"type": "string"},
                        "detail": {"type": "string"},
                        "guidance": {"type": "string"},
                    },
                }
            },
        },
    }


def _route(
    summary: str,
    *,
    answers: Mapping[int, _Schema],
    query: Mapping[str, _Schema] | None = None,
    path: Mapping[str, _Schema] | None = None,
    body: Mapping[str, _Schema] | None = None,
) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [{"name": name, "in": "query", "schema": schema} for name, schema in (query or {}).items()]
    parameters += [{"name": name, "in": "path", "required": True, "schema": schema} for name, schema in (path or {}).items()]
    everywhere = {401: _reference("Problem"), 503: _reference("Problem")}
    route: dict[str, Any] = {
        "summary": summary,
        "responses": {str(status): _answer(status, schema) for status, schema in {**answers, **everywhere}.items()},
    }
    if parameters:
        route["parameters"] = parameters
    if body is not None:
        properties = {name: _or_null(of_argument) for name, of_argument in body.items()}
        schema: _Schema = {"type": "object", "additionalProperties": False, "properties": properties}
        route["requestBody"] = {"required": False, "content": {"application/json": {"schema": schema}}}
    return route


def _or_null(schema: _Schema) -> _Schema:
    """In a body null means the same as leaving the argument out."""
    nullable = {**schema, "type": [schema["type"], "null"]}
    return {**nullable, "enum": [*schema["enum"], None]} if "enum" in schema else nullable


def _answer(status: int, schema: _Schema) -> dict[str, Any]:
    content: dict[str, Any]
    if status >= 400:
        content = {"application/problem+json": {"schema": schema}}
    elif any("/" in name for name in schema):  # several media types
        content = {kind: {"schema": of_kind} for kind, of_kind in schema.items()}
    else:
        content = {"application/json": {"schema": schema}}
    return {"description": {200: "Done", 202: "Under way"}.get(status, "A problem document"), "content": content}


def _listing(name: str) -> _Schema:
    return {
        "type": "object",
        "required": [name, "next"],
        "properties": {name: {"type": "array", "items": _OBJECT}, "next": {"type": ["string", "null"]}},
    }


def _table(name: str) -> _Schema:
    return {"application/json": _listing(name), "text/csv": {}}


def _reference(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}
