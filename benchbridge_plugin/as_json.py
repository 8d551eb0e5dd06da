"""How times, runs and accountings are said to the outside: by the routes, the reports and the events alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchbridge_plugin.model import Accounting


def iso(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def run_as_json(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with its times as ISO 8601, and so the runs of several files within it."""
    began, ended = run["started_at"], run["finished_at"]
    lasted = None if ended is None else round(max(ended - began, 0.0), 3)
    shown = {**run, "started_at": iso(began), "finished_at": iso(ended), "duration_s": lasted}
    return {**shown, "sources": [run_as_json(part) for part in run["sources"]]} if "sources" in run else shown


def accounting_as_json(accounting: Accounting) -> dict[str, Any]:
    return {**accounting.as_dict(), "compared_at": iso(accounting.compared_at)}


def problems_as_json(connections: Mapping[str, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """`{"part", "message", "guidance"}` of each connection that does not work or lacks something, and of the last run if it failed."""
    found = []
    for part, connection in connections.items():
        if connection["ok"] is not True:
            found.append({"part": part, "message": connection["error"], "guidance": connection.get("guidance", "")})
        for place in (connection, *connection.get("sources", ())):
            where = f"{place['source']}: " if "source" in place else ""
            found += [{"part": part, **warning, "message": where + warning["message"]} for warning in place.get("warnings", ())]
    for run in runs[:1]:
        if run["state"] == "failed":
            found.append({"part": "last_run", "message": run["message"], "guidance": run["guidance"]})
    return found


def result_as_json(row: Mapping[str, object]) -> dict[str, Any]:
    """A row of `results` with its times as ISO 8601."""
    shown: dict[str, Any] = dict(row)
    return {**shown, **{name: iso(shown[name]) for name in ("measured_at", "next_attempt_at", "updated_at")}}
