"""What a benchmark result is on the wire."""

from __future__ import annotations

from typing import Any

from unified_server.errors import Detail, InvalidInput
from unified_server.fields import Count, Figure, Flag, JsonObject, Moment, Text
from unified_server.reading import detail, read_fields

_FLOAT_MAX = 3.4e38
FIGURES = ("average_latency_ms", "throughput_items_per_second", "memory_peak_mb")

RUN = (
    Text("test_name", required=True),
    Moment("started_at"),
    Text("git_commit"),
    Text("git_branch"),
    Flag("success"),
)
RESULT = (
    Text("model_name", required=True),
    Text("model_family"),
    Text("modality"),
    Text("hardware_type", required=True),
    Text("device_name"),
    Text("test_case", default="inference"),
    Count("batch_size", default=1),
    Text("precision"),
    Count("sequence_length", "kept in metrics", least=0),
    *(Figure(name, most=_FLOAT_MAX) for name in FIGURES),
    Figure("total_time_seconds", most=_FLOAT_MAX),
    Count("iterations", least=0),
    Count("warmup_iterations", least=0),
    JsonObject("metrics"),
    Count("run_id", "a run that exists; or give run", least=0),
    Moment("created_at", "absent: now"),
)
LIST_RESULTS = (
    Text("model_name"),
    Text("hardware", "a hardware_type"),
    Count("limit", default=100, most=10_000),
    Count("offset", default=0, least=0),
)


def read_results(body: Any) -> list[dict[str, Any]]:
    """The results in a body, one or {"results": [...]}; each has "run", None or the fields of RUN. Raises InvalidInput
    for them all.
    """
    if isinstance(body, dict) and "results" in body:
        many = body["results"]
        if not isinstance(many, list) or not many:
            raise InvalidInput([detail("list_type", ["body", "results"], "Input should be a list of results", many)])
        found = [_read_result(values, ("body", "results", position)) for position, values in enumerate(many)]
    else:
        found = [_read_result(body, ("body",))]
    details = [wrong for _, wrongs in found for wrong in wrongs]
    if details:
        raise InvalidInput(details)
    return [result for result, _ in found]


def _read_result(values: Any, loc: tuple[str | int, ...]) -> tuple[dict[str, Any], list[Detail]]:
    result, details = read_fields(RESULT, values, loc)
    if not details and all(result[name] is None for name in FIGURES):
        details.append(detail("missing", (*loc, FIGURES[0]), f"Give at least one of {', '.join(FIGURES)}", None))
    run = values.get("run") if isinstance(values, dict) else None
    result["run"] = None
    if run is not None:
        result["run"], wrongs = read_fields(RUN, run, (*loc, "run"))
        details.extend(wrongs)
    return result, details
