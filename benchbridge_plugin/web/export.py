"""Tables for other programs: CSV beside JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flask import Response, jsonify

from benchbridge_plugin.report import safe_csv_cell
from benchbridge_plugin.web.arguments import InvalidArgument

KINDS = ("json", "csv")
RESULT_COLUMNS = (
    "result_id",
    "state",
    "model",
    "hardware",
    "measured_at",
    "measurement_id",
    "attempts",
    "next_attempt_at",
    "reason_code",
    "reason",
    "quality",
    "run_id",
    "updated_at",
    "key",
    "content_hash",
)
RUN_COLUMNS = (
    "run_id",
    "kind",
    "state",
    "started_at",
    "finished_at",
    "duration_s",
    "considered",
    "synced",
    "rejected",
    "failed",
    "in_doubt",
    "skipped",
    "settled",
    "adopted",
    "backlog",
    "error_code",
    "message",
)
_SIDE = ("result_id", "measured_at", "run", "commit")
REGRESSION_COLUMNS = (
    "id",
    "source",
    "state",
    "metric",
    "unit",
    "model",
    "hardware",
    "device",
    "precision",
    "mode",
    "batch_size",
    "sequence_length",
    "size_percent",
    "confidence",
    "before",
    "after",
    "found_at",
    *(f"{side}_{name}" for side in ("last_good", "first_changed") for name in _SIDE),
    "updated_at",
    "updated_by",
    "note",
)
SUGGESTION_COLUMNS = (
    "code",
    "sentence",
    "size",
    "model",
    "hardware",
    "device",
    "mode",
    "variant",
    "precision",
    "batch_size",
    "sequence_length",
    "results",
    "rests_on",
)


def flat(regression: Mapping[str, Any]) -> dict[str, Any]:
    """A regression with what stands on both sides of it as columns of its own."""
    sides = {f"{side}_{name}": regression[side][name] for side in ("last_good", "first_changed") for name in _SIDE}
    return {**regression, **sides}


def kind_of(given: dict[str, Any]) -> str:
    """What `format` asks for, taken out of the arguments."""
    kind: str = given.pop("format", "json")
    if kind not in KINDS:
        raise InvalidArgument(f"There is no format {kind!r}.", guidance=f"Choose one of: {', '.join(KINDS)}.")
    return kind


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, name: str, following: str | None = None) -> Response:
    """The columns of the rows. A row of several files has its `source` first. `following`: the address of the next page, told in Link."""
    listed = list(rows)
    names = ["source", *columns] if listed and "source" in listed[0] and "source" not in columns else list(columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([safe_csv_cell(_cell(row.get(column))) for column in names] for row in listed)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    if following:
        headers["Link"] = f'<{following}>; rel="next"'
    return Response(out.getvalue(), headers=headers, content_type="text/csv; charset=utf-8")


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, name: str, kind: str) -> Response:
    """A table of a page as one of KINDS."""
    return as_csv(columns, rows, name=name) if kind == "csv" else jsonify({name: rows})


def _cell(value: object) -> object:
    return " ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else value
