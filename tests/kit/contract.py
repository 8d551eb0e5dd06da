"""The base contract's shapes: which measurement is taken, what a refusal says, how openapi describes it.

Written from WIRE.md alone. Bad input is refused in the form of FastAPI with pydantic 2; what pydantic converts in its
lax mode ("8" or 8.0 for an integer) is converted here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BASE = "/api/predictive-performance"

HARDWARE_PLATFORMS = ("cpu", "cuda", "rocm", "mps", "openvino", "webgpu", "webnn", "qnn")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
MODES = ("inference", "training")

#: The columns of a row in `GET /measurements`, in order. A stored row has `prediction_id` as well.
LISTED = (
    "id",
    "timestamp",
    "model_name",
    "model_family",
    "hardware_platform",
    "batch_size",
    "sequence_length",
    "precision",
    "mode",
    "throughput",
    "latency",
    "memory_usage",
    "measurement_source",
    "measurement_id",
    "metadata",
)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of MeasurementRequest. `kind` is a JSON type or the name of an enum in ENUMS."""

    name: str
    kind: str
    description: str
    required: bool = False
    nullable: bool = False
    default: str | int | None = None


ENUMS: Mapping[str, tuple[str, ...]] = {
    "HardwarePlatform": HARDWARE_PLATFORMS,
    "PrecisionType": PRECISIONS,
    "ModelMode": MODES,
}

FIELDS = (
    Field("model_name", "string", "Name of the model", required=True),
    Field("model_family", "string", "Model family", nullable=True),
    Field("hardware_platform", "HardwarePlatform", "Hardware platform", required=True),
    Field("batch_size", "integer", "Batch size", default=1),
    Field("sequence_length", "integer", "Sequence length", default=128),
    Field("precision", "PrecisionType", "Precision", default="fp32"),
    Field("mode", "ModelMode", "Mode", default="inference"),
    Field("throughput", "number", "Measured throughput in items per second", nullable=True),
    Field("latency", "number", "Measured latency in ms", nullable=True),
    Field("memory_usage", "number", "Measured memory usage in MB", nullable=True),
    Field("prediction_id", "string", "The prediction to compare with", nullable=True),
    Field("source", "string", "Where the measurement comes from", default="api"),
)


class Invalid(Exception):
    """A request that is answered 422; `detail` is the list in the answer."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        super().__init__(detail[0]["msg"])
        self.detail = detail


def problem(kind: str, loc: list[str | int], message: str, value: object) -> dict[str, Any]:
    """One entry of a 422's detail."""
    return {"type": kind, "loc": loc, "msg": message, "input": value}


def read_measurement(raw: bytes, content_type: str) -> dict[str, Any]:
    """The measurement in a request body, every field of FIELDS present, unknown ones dropped.

    Raises Invalid with an entry for each bad field. NaN and Infinity are taken, as `json.loads` takes them.
    """
    if not raw:
        raise Invalid([problem("missing", ["body"], "Field required", None)])
    if not content_type.partition(";")[0].strip().lower().endswith("json"):
        raise Invalid([_not_an_object(raw.decode(errors="replace"))])
    try:
        body = json.loads(raw)
    except json.JSONDecodeError as error:
        raise Invalid([problem("json_invalid", ["body", error.pos], "JSON decode error", {})]) from None
    except UnicodeDecodeError:
        raise Invalid([problem("json_invalid", ["body", 0], "JSON decode error", {})]) from None
    if not isinstance(body, dict):
        raise Invalid([_not_an_object(body)])
    values: dict[str, Any] = {}
    detail: list[dict[str, Any]] = []
    for field in FIELDS:
        if field.name not in body:
            values[field.name] = field.default
            if field.required:
                detail.append(problem("missing", ["body", field.name], "Field required", body))
            continue
        value = body[field.name]
        if value is None and field.nullable:
            values[field.name] = None
            continue
        converted = _convert(field.kind, value)
        if isinstance(converted, _Refusal):
            detail.append(problem(converted.kind, ["body", field.name], converted.message, value))
        else:
            values[field.name] = converted
    if detail:
        raise Invalid(detail)
    return values


def read_integer(name: str, text: str) -> int:
    """A query parameter as an integer; raises Invalid."""
    converted = _convert("integer", text)
    if isinstance(converted, _Refusal):
        raise Invalid([problem(converted.kind, ["query", name], converted.message, text)])
    return int(converted)


def openapi() -> dict[str, Any]:
    """The openapi document, as FastAPI writes it: enums by $ref, nullable fields as anyOf with null."""
    properties: dict[str, Any] = {}
    for field in FIELDS:
        if field.kind in ENUMS:
            shape: dict[str, Any] = {"$ref": f"#/components/schemas/{field.kind}"}
        elif field.nullable:
            shape = {"anyOf": [{"type": field.kind}, {"type": "null"}]}
        else:
            shape = {"type": field.kind}
        if field.kind not in ENUMS:
            shape["title"] = field.name.replace("_", " ").title()
        shape["description"] = field.description
        if field.default is not None:
            shape["default"] = field.default
        properties[field.name] = shape
    schemas: dict[str, Any] = {name: {"type": "string", "enum": list(members), "title": name} for name, members in ENUMS.items()}
    schemas["MeasurementRequest"] = {
        "type": "object",
        "title": "MeasurementRequest",
        "description": "Request model for recording a measurement.",
        "required": [field.name for field in FIELDS if field.required],
        "properties": properties,
    }
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/MeasurementRequest"}}}
    record = {
        "summary": "Record Measurement",
        "operationId": "record_measurement_api_predictive_performance_record_measurement_post",
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "Successful Response"}, "422": {"description": "Validation Error"}},
    }
    found = {"responses": {"200": {"description": "Successful Response"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Predictive Performance API", "version": "1.0.0"},
        "paths": {
            f"{BASE}/record-measurement": {"post": record},
            f"{BASE}/task/{{task_id}}": {"get": {"summary": "Get Task Status", **found}},
            f"{BASE}/measurements": {"get": {"summary": "List Measurements", **found}},
            "/health": {"get": {"summary": "Health Check", **found}},
        },
        "components": {"schemas": schemas},
    }


@dataclass(frozen=True, slots=True)
class _Refusal:
    kind: str
    message: str


def _convert(kind: str, value: object) -> Any:
    """The value as pydantic's lax mode takes it, or a _Refusal."""
    if kind in ENUMS:
        members = ENUMS[kind]
        if isinstance(value, str) and value in members:
            return value
        named = [f"'{member}'" for member in members]
        return _Refusal("enum", f"Input should be {', '.join(named[:-1])} or {named[-1]}")
    if kind == "string":
        return value if isinstance(value, str) else _Refusal("string_type", "Input should be a valid string")
    if not isinstance(value, str | int | float):
        name = "float" if kind == "number" else "int"
        return _Refusal(f"{name}_type", f"Input should be a valid {kind}")
    if kind == "number":
        try:
            return float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            return _Refusal("float_parsing", message)
    if isinstance(value, float) and not math.isfinite(value):
        return _Refusal("finite_number", "Input should be a finite number")
    if isinstance(value, float) and not value.is_integer():
        return _Refusal("int_from_float", "Input should be a valid integer, got a number with a fractional part")
    try:
        return int(value)
    except ValueError:
        return _Refusal("int_parsing", "Input should be a valid integer, unable to parse string as an integer")


def _not_an_object(value: object) -> dict[str, Any]:
    message = "Input should be a valid dictionary or object to extract fields from"
    return problem("model_attributes_type", ["body"], message, value)
