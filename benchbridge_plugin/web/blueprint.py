"""The routes. Each one checks its arguments, asks the bridge, and shapes the answer; nothing is decided here."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Request, Response, current_app, jsonify, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from benchbridge_plugin import report as reports
from benchbridge_plugin.as_json import result_as_json, run_as_json
from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.ledger import STATES
from benchbridge_plugin.model import STATE_NAMES, State, SyncRequest
from benchbridge_plugin.planning.planner import MOST
from benchbridge_plugin.regressions.history import METRICS
from benchbridge_plugin.suggestions.suggestion import CODES
from benchbridge_plugin.web import problems
from benchbridge_plugin.web.arguments import InvalidArgument, body, query, source_of, within
from benchbridge_plugin.web.auth import KeyRing
from benchbridge_plugin.web.broken import METHODS, PREFIX
from benchbridge_plugin.web.dashboard import NAME, create_pages
from benchbridge_plugin.web.export import REGRESSION_COLUMNS, RESULT_COLUMNS, RUN_COLUMNS, SUGGESTION_COLUMNS, as_csv, flat, kind_of
from benchbridge_plugin.web.openapi import CHANGES as KINDS
from benchbridge_plugin.web.openapi import document
from benchbridge_plugin.web.session import Sessions

_LARGEST_BODY = 1024 * 1024
_LONGEST_WAIT_S = 600.0
_READING_WAIT_S = 60.0
_RECENT_S = 2.0  # how old a plan may be: who asks all the time keeps the predictor no busier
_LARGEST_ID = 2**31 - 1  # of a row
_JOINED = "This run was under way already and keeps its own arguments. For yours, ask again when it has ended."
_CURSOR = re.compile(r"([0-9]{1,9}:)?[0-9a-f]{32}\..{1,867}", re.DOTALL)
_STATES = {name: state for state, name in STATE_NAMES.items()}


def create_blueprint(bridge: BenchmarkPredictivePerformanceBridge) -> Blueprint:
    """All routes of a working bridge."""
    routes = Blueprint("benchbridge", __name__, url_prefix=PREFIX)
    keys = KeyRing(bridge.config, bridge.key_path)
    sessions = Sessions(keys, PREFIX, _known_to_host)
    dashboard = f"{routes.name}.{NAME}"
    problems.install(routes)

    def check_cursor(cursor: str) -> None:
        match = _CURSOR.fullmatch(cursor)
        if match is None or bool(match[1]) != bridge.config.files.several:
            raise InvalidArgument("cursor is not one that this route gave.", guidance="Take it from `next` of the page before.")

    @routes.before_request
    def guard() -> Response | None:
        request.max_content_length = _LARGEST_BODY
        if request.blueprint == dashboard or sessions.allows(request):  # the dashboard has a guard of its own
            return None
        return problems.key_needed()

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
        source = source_of(given, bridge.source_names())
        asked = SyncRequest(kind="http", **given)
        if asked.dry_run:
            return jsonify(run_as_json(bridge.sync(asked, source=source).as_dict()))
        run_id, joined = bridge.start_sync(asked, source=source)
        location = {"Location": url_for("benchbridge.run", run_id=run_id)}
        of_joining = {"joined": joined, **({"note": _JOINED} if joined else {})}
        if not wait:
            return jsonify({"run_id": run_id, **of_joining, "state": "running"}), 202, location
        found = bridge.wait_for_run(run_id, _LONGEST_WAIT_S) or {}
        return jsonify({**found, **of_joining}), 202 if found.get("state") == "running" else 200, location

    @routes.get("/runs")
    def runs() -> ResponseReturnValue:
        given = query(request, {"limit": int, "before": int, "source": str, "format": str})
        kind = kind_of(given)
        within(given, "limit", 1, 1_000)
        limit = given.get("limit", 20)
        source = source_of(given, bridge.source_names())
        found = bridge.runs(limit=limit + 1, before=given.get("before"), source=source)
        again: dict[str, Any] = {"limit": limit, "source": source, "format": None if kind == "json" else kind}
        following = url_for("benchbridge.runs", **again, before=found[limit - 1]["run_id"]) if len(found) > limit else None
        if kind == "csv":
            return as_csv(RUN_COLUMNS, found[:limit], name="runs", following=following)
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
        rendered = reports.render(bridge.generate_report(source=source_of(given, bridge.source_names())), kind)
        # The HTML has its style in itself and nothing else; as a page of this server it gets no more than that.
        headers = (
            {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"} if kind == "html" else {}
        )
        return Response(rendered, headers=headers, content_type=reports.FORMATS[kind])

    @routes.get("/accuracy")
    def accuracy() -> ResponseReturnValue:
        given = query(request, {"days": int, "source": str})
        within(given, "days", 0, 36_500)
        return jsonify(bridge.accuracy(days=given.get("days", 0), source=source_of(given, bridge.source_names())))

    @routes.get("/plan")
    def plan() -> ResponseReturnValue:
        given = query(request, {"limit": int, "model": str, "hardware": str, "source": str})
        within(given, "limit", 1, MOST)
        return jsonify(bridge.plan(source=source_of(given, bridge.source_names()), recent_s=_RECENT_S, **given))

    @routes.get("/results")
    def results() -> ResponseReturnValue:
        given = query(request, {"state": str, "model": str, "hardware": str, "limit": int, "cursor": str, "source": str, "format": str})
        within(given, "limit", 1, 1_000)
        kind = kind_of(given)
        if "cursor" in given:
            check_cursor(given["cursor"])
        state = _state(given.pop("state", None))
        page = bridge.results(state=state, source=source_of(given, bridge.source_names()), **given)
        again: dict[str, Any] = {**request.args.to_dict(), "cursor": page.next_cursor}
        following = url_for("benchbridge.results", **again) if page.next_cursor else None
        rows = [result_as_json(row) for row in page.rows]
        if kind == "csv":
            return as_csv(RESULT_COLUMNS, rows, name="results", following=following)
        return jsonify({"results": rows, "next": following})

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
            source=source_of(given, bridge.source_names()),
        )
        return jsonify({"retried": count, "note": "They are sent by the next sync."})

    @routes.get("/regressions")
    def regressions() -> ResponseReturnValue:
        texts = dict.fromkeys(("state", "model", "hardware", "metric", "kind", "source", "format"), str)
        given = query(request, {**texts, "limit": int, "before": int})
        within(given, "limit", 1, 1_000)
        shape, kind = kind_of(given), given.pop("kind", "regression")
        for name, value, known in (("state", given.get("state"), STATES), ("metric", given.get("metric"), METRICS), ("kind", kind, KINDS)):
            if value is not None and value not in known:
                raise InvalidArgument(f"There is no {name} {value!r}.", guidance=f"Choose one of: {', '.join(known)}.")
        before = given.pop("before", None)
        source = source_of(given, bridge.source_names())
        page = bridge.regressions(worse=kind == "regression", cursor=None if before is None else str(before), source=source, **given)
        again: dict[str, Any] = {**request.args.to_dict(), "before": page.next_cursor}
        following = url_for("benchbridge.regressions", **again) if page.next_cursor else None
        if shape == "csv":
            return as_csv(REGRESSION_COLUMNS, [flat(row) for row in page.rows], name="regressions", following=following)
        return jsonify({"regressions": page.rows, "next": following})

    @routes.get("/regressions/<int:regression_id>")
    def regression(regression_id: int) -> ResponseReturnValue:
        found = bridge.regression(min(regression_id, _LARGEST_ID))
        return jsonify(found) if found is not None else no_such_regression(regression_id)

    @routes.post("/regressions/<int:regression_id>")
    def decide(regression_id: int) -> ResponseReturnValue:
        given = body(request, {"state": str, "note": str})
        if given.get("state") not in STATES:
            raise InvalidArgument("state says what becomes of the regression.", guidance=f"Choose one of: {', '.join(STATES)}.")
        found = bridge.decide_regression(min(regression_id, _LARGEST_ID), **given)
        return jsonify(found) if found is not None else no_such_regression(regression_id)

    def no_such_regression(regression_id: int) -> ResponseReturnValue:
        detail = f"There is no regression {regression_id}."
        return problems.problem(404, "no_such_regression", detail, guidance=f"GET {PREFIX}/regressions lists them.")

    @routes.get("/suggestions")
    def suggestions() -> ResponseReturnValue:
        given = query(request, {**dict.fromkeys(("code", "model", "hardware", "source", "format"), str), "limit": int})
        within(given, "limit", 1, 1_000)
        shape, source = kind_of(given), source_of(given, bridge.source_names())
        if given.get("code", CODES[0]) not in CODES:
            raise InvalidArgument(f"There is no code {given['code']!r}.", guidance=f"Choose one of: {', '.join(CODES)}.")
        found = bridge.suggestions(source=source, patience_s=_READING_WAIT_S, **given)
        return as_csv(SUGGESTION_COLUMNS, found["suggestions"], name="suggestions") if shape == "csv" else jsonify(found)

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
            answer |= {"run_id": run_id, "joined": joined, **({"note": _JOINED} if joined else {})}
        return jsonify(answer)

    @routes.post("/verify")
    def verify() -> ResponseReturnValue:
        given = body(request, {"repair": bool, "source": str})
        return jsonify(bridge.verify(repair=given.get("repair", False), source=source_of(given, bridge.source_names())).as_dict())

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

    routes.register_blueprint(create_pages(bridge, keys, sessions, check_cursor))

    @routes.route("", methods=METHODS)
    @routes.route("/", methods=[method for method in METHODS if method != "GET"])
    @routes.route("/<path:path>", methods=METHODS)
    def nothing(path: str = "") -> ResponseReturnValue:
        """Everything else under the prefix, so that here too the answer is a problem document and not the host's page."""
        if allowed := _methods_here():
            raise MethodNotAllowed(sorted(allowed), f"This route takes {' and '.join(sorted(allowed))}.")
        if not path and request.method == "GET":
            return problems.only_a_page() if problems.prefers_json(request) else redirect(url_for("benchbridge.pages.overview"), 308)
        return problems.no_such_route(path)

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


def _known_to_host(asking: Request) -> object:
    """Who the host says is asking: the name of somebody signed in there, or None. What its code raises lets nobody in."""
    authenticate = current_app.extensions.get("unified_server.services", {}).get("authenticate")
    return authenticate(asking) if callable(authenticate) else None


def _state(name: str | None) -> State | None:
    if name is None:
        return None
    if name not in _STATES:
        raise InvalidArgument(f"There is no state {name!r}.", guidance=f"Choose one of: {', '.join(_STATES)}.")
    return _STATES[name]
