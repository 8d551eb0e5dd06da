"""The routes. Each one checks its arguments, asks the bridge, and shapes the answer; nothing is decided here."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from benchbridge_plugin import report as reports
from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge, result_as_json
from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.model import STATE_NAMES, State, SyncRequest
from benchbridge_plugin.web import problems
from benchbridge_plugin.web.arguments import InvalidArgument, body, query, within
from benchbridge_plugin.web.auth import HEADER, KeyRing
from benchbridge_plugin.web.openapi import document

PREFIX = "/api/bridge"
_LARGEST_BODY = 1024 * 1024
_LONGEST_WAIT_S = 600.0
_CURSOR = re.compile(r"([0-9]{1,9}:)?[0-9a-f]{32}\..{1,867}", re.DOTALL)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_STATES = {name: state for state, name in STATE_NAMES.items()}


def create_blueprint(bridge: BenchmarkPredictivePerformanceBridge) -> Blueprint:
    """All routes of a working bridge."""
    routes = Blueprint("benchbridge", __name__, url_prefix=PREFIX)
    keys = KeyRing(bridge.config, bridge.key_path)
    problems.install(routes)

    def source_of(given: dict[str, Any]) -> str | None:
        """The source that is asked for, taken out of the arguments."""
        name: str | None = given.pop("source", None)
        if name is not None and name not in (names := bridge.source_names()):
            raise InvalidArgument(f"There is no source {name[:100]!r}.", guidance=f"There are: {', '.join(names[:20]) or 'none yet'}.")
        return name

    @routes.before_request
    def guard() -> Response | None:
        request.max_content_length = _LARGEST_BODY
        if keys.allows(request):
            return None
        return problems.problem(
            401,
            "key_needed",
            "This route needs the API key of the bridge.",
            guidance=f"Send it in the header {HEADER}; the server's operator has it.",
            headers={"WWW-Authenticate": 'Bearer realm="benchbridge"'},
        )

    @routes.after_request
    def headers(response: Response) -> Response:
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        if request.method == "OPTIONS" and (allowed := _methods_here()):
            response.headers["Allow"] = ", ".join(sorted(allowed | {"OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())))
        return response

    @routes.get("/status")
    def status() -> ResponseReturnValue:
        return jsonify(bridge.status())

    @routes.post("/sync")
    def sync() -> ResponseReturnValue:
        given = body(request, {"source": str, "model": str, "days": int, "limit": int, "dry_run": bool, "wait": bool})
        within(given, "days", 0, 100_000)
        within(given, "limit", 0)
        if given.get("model") == "":
            raise InvalidArgument("model must be a name.", guidance="Leave it out to take all models.")
        wait = given.pop("wait", False)
        source = source_of(given)
        asked = SyncRequest(kind="http", **given)
        if asked.dry_run:
            return jsonify(reports.run_as_json(bridge.sync(asked, source=source).as_dict()))
        run_id, joined = bridge.start_sync(asked, source=source)
        location = {"Location": url_for("benchbridge.run", run_id=run_id)}
        if not wait:
            return jsonify({"run_id": run_id, "joined": joined, "state": "running"}), 202, location
        found = bridge.wait_for_run(run_id, _LONGEST_WAIT_S) or {}
        return jsonify({**found, "joined": joined}), 202 if found.get("state") == "running" else 200, location

    @routes.get("/runs")
    def runs() -> ResponseReturnValue:
        given = query(request, {"limit": int, "before": int, "source": str})
        within(given, "limit", 1, 1_000)
        limit = given.get("limit", 20)
        source = source_of(given)
        found = bridge.runs(limit=limit + 1, before=given.get("before"), source=source)
        again: dict[str, Any] = {"limit": limit} if source is None else {"limit": limit, "source": source}
        following = url_for("benchbridge.runs", **again, before=found[limit - 1]["run_id"]) if len(found) > limit else None
        return jsonify({"runs": found[:limit], "next": following})

    @routes.get("/runs/<int:run_id>")
    def run(run_id: int) -> ResponseReturnValue:
        found = bridge.run(min(run_id, 2**62))
        if found is None:
            return problems.problem(404, "no_such_run", f"There is no run {run_id}.", guidance=f"GET {PREFIX}/runs lists them.")
        return jsonify(found)

    @routes.get("/report")
    def report() -> ResponseReturnValue:
        given = query(request, {"format": str, "source": str})
        kind = given.get("format", "json")
        if kind not in reports.FORMATS:
            raise InvalidArgument(f"There is no report format {kind!r}.", guidance=f"Choose one of: {', '.join(reports.FORMATS)}.")
        return Response(reports.render(bridge.generate_report(source=source_of(given)), kind), content_type=reports.FORMATS[kind])

    @routes.get("/results")
    def results() -> ResponseReturnValue:
        given = query(request, {"state": str, "model": str, "hardware": str, "limit": int, "cursor": str, "source": str})
        within(given, "limit", 1, 1_000)
        match = _CURSOR.fullmatch(given.get("cursor", ""))
        if "cursor" in given and (match is None or bool(match[1]) != bridge.config.files.several):
            raise InvalidArgument("cursor is not one that this route gave.", guidance="Take it from `next` of the page before.")
        state = _state(given.pop("state", None))
        page = bridge.results(state=state, source=source_of(given), **given)
        again: dict[str, Any] = {**request.args.to_dict(), "cursor": page.next_cursor}
        return jsonify(
            {
                "results": [result_as_json(row) for row in page.rows],
                "next": url_for("benchbridge.results", **again) if page.next_cursor else None,
            }
        )

    @routes.post("/results/retry")
    def retry() -> ResponseReturnValue:
        given = body(request, {"source": str, "state": str, "model": str, "reason": str, "result_ids": list})
        state = given.get("state", "retrying")
        if state not in ("retrying", "rejected"):
            raise InvalidArgument("state must be retrying or rejected.", guidance="Only waiting and refused results can be retried.")
        count = bridge.retry(
            rejected=state == "rejected",
            model=given.get("model"),
            reason=given.get("reason"),
            result_ids=given.get("result_ids"),
            source=source_of(given),
        )
        return jsonify({"retried": count, "note": "They are sent by the next sync."})

    @routes.get("/schedule")
    def schedule() -> ResponseReturnValue:
        return jsonify(bridge.schedule())

    @routes.post("/schedule")
    def set_schedule() -> ResponseReturnValue:
        given = body(request, {"paused": bool, "interval_minutes": float, "run_now": bool})
        within(given, "interval_minutes", 0.01, 525_600)
        answer: dict[str, Any] = bridge.set_schedule(paused=given.get("paused"), interval_minutes=given.get("interval_minutes"))
        if given.get("run_now"):
            run_id, joined = bridge.start_sync(SyncRequest(kind="http"))
            answer |= {"run_id": run_id, "joined": joined}
        return jsonify(answer)

    @routes.post("/verify")
    def verify() -> ResponseReturnValue:
        given = body(request, {"repair": bool, "source": str})
        return jsonify(bridge.verify(repair=given.get("repair", False), source=source_of(given)).as_dict())

    @routes.get("/health")
    def health() -> ResponseReturnValue:
        return jsonify(bridge.health())

    @routes.get("/metrics")
    def metrics() -> ResponseReturnValue:
        text, content_type = bridge.metrics(request.headers.get("Accept", ""))
        return Response(text, content_type=content_type)

    @routes.get("/openapi.json")
    def openapi() -> ResponseReturnValue:
        return jsonify(document())

    @routes.route("", methods=_METHODS)
    @routes.route("/", methods=_METHODS)
    @routes.route("/<path:path>", methods=_METHODS)
    def nothing(path: str = "") -> ResponseReturnValue:
        """Everything else under the prefix, so that here too the answer is a problem document and not the host's page."""
        if allowed := _methods_here():
            raise MethodNotAllowed(sorted(allowed), f"This route takes {' and '.join(sorted(allowed))}.")
        return problems.problem(
            404, "no_such_route", f"There is no route {PREFIX}/{path[:200]}.", guidance="docs/host.md lists the routes."
        )

    return routes


def create_broken_blueprint(error: BridgeError) -> Blueprint:
    """What an enabled but misconfigured plugin offers: every route says what is wrong. There is no key to ask for, and nothing else to see."""
    routes = Blueprint("benchbridge", __name__, url_prefix=PREFIX)

    @routes.route("", methods=_METHODS)
    @routes.route("/", methods=_METHODS)
    @routes.route("/<path:path>", methods=_METHODS)
    def broken(**_: str) -> ResponseReturnValue:
        return problems.problem(503, error.code, error.message, guidance=error.guidance, error=error.message)

    return routes


def _methods_here() -> set[str]:
    """The methods for which this path has a route of its own."""
    adapter = current_app.create_url_adapter(request)
    assert adapter is not None  # in a request there is one
    allowed = set()
    for method in ("GET", "POST"):
        try:
            endpoint, _ = adapter.match(request.path, method)
        except HTTPException:  # a redirect is one, too
            continue
        if endpoint != "benchbridge.nothing":
            allowed.add(method)
    return allowed


def _state(name: str | None) -> State | None:
    if name is None:
        return None
    if name not in _STATES:
        raise InvalidArgument(f"There is no state {name!r}.", guidance=f"Choose one of: {', '.join(_STATES)}.")
    return _STATES[name]
