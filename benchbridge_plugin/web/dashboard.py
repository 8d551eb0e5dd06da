"""The dashboard's routes: who may see a page, who may act, and the actions of the forms."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, NotFound

from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.errors import BridgeError, ConfigError
from benchbridge_plugin.ledger import STATES
from benchbridge_plugin.model import SyncRequest
from benchbridge_plugin.web import export, problems
from benchbridge_plugin.web.arguments import InvalidArgument, query, source_of, within
from benchbridge_plugin.web.auth import KeyRing
from benchbridge_plugin.web.drawing import HEADERS, page
from benchbridge_plugin.web.pages import Pages, common_of, table_names
from benchbridge_plugin.web.session import TOKEN_FIELD, Sessions

_logger = logging.getLogger(__name__)

NAME = "pages"
_PUBLIC = {f"benchbridge.{NAME}.{name}" for name in ("sign_in", "check_key", "static")}
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_TABLE = re.compile(rf"({'|'.join(table_names())})\.({'|'.join(export.KINDS)})")


def create_pages(
    bridge: BenchmarkPredictivePerformanceBridge, keys: KeyRing, sessions: Sessions, check_cursor: Callable[[str], None]
) -> Blueprint:
    """Everything that a browser shows. To be registered in the bridge's own blueprint."""
    routes = Blueprint(NAME, __name__, static_folder="static", static_url_path="/static")
    pages = Pages(bridge)

    def common() -> dict[str, Any]:
        visitor = sessions.visitor(request)
        shown = common_of(
            visitor,
            sessions.token(visitor) if visitor else "",
            reads_are_open=keys.reads_are_open(request),
            said=request.args.get("said", "")[:300],
        )
        return {**shown, "check_cursor": check_cursor, "asked": request.full_path.rstrip("?")}

    def failure(status: int, title: str, detail: str, guidance: str = "") -> Response:
        try:
            shown = common()
        except Exception:  # the host's own code can be what failed
            _logger.exception("it is not known who asks for a page")
            shown = common_of(None, "", reads_are_open=False, said=None) | {"asked": ""}
        return page("error.html", status, **shown, source=None, several=False, label="", title=title, detail=detail, guidance=guidance)

    @routes.before_request
    def guard() -> ResponseReturnValue | None:
        if request.endpoint in _PUBLIC or keys.allows(request):
            return None
        visitor = sessions.visitor(request)
        if visitor is None:
            if not _is_browser():
                return problems.key_needed()
            wanted = request.full_path.rstrip("?") if request.method in _READING else None
            return redirect(url_for("benchbridge.pages.sign_in", next=sessions.own_path(request, _below_root(wanted))), 303)
        if request.method in _READING or sessions.is_token_of(visitor, request.form.get(TOKEN_FIELD, "")):
            return None
        return failure(403, "Not done", "This form is not of this session, or it is too old.", "Go back, reload the page and try again.")

    @routes.after_request
    def headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.endpoint == "benchbridge.pages.static":
            response.headers["Cache-Control"] = "public, max-age=3600"
        return response

    @routes.errorhandler(BridgeError)
    def bridge_error(error: BridgeError) -> Response:
        return failure(503 if isinstance(error, ConfigError) else error.http_status, "Not done", error.message, error.guidance)

    @routes.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        return failure(error.code or 500, error.name, error.description or error.name)

    @routes.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:  # the edge of a route
        _logger.error("a page of the bridge failed", exc_info=error)
        return failure(500, "Something unexpected went wrong", "The page could not be made.", "The server's log has the details.")

    # -- signing in ---------------------------------------------------------------------------------------------------------------------

    @routes.get("/sign-in")
    def sign_in() -> ResponseReturnValue:
        wanted = sessions.own_path(request, request.args.get("next"))
        if sessions.visitor(request) is not None:
            return redirect(f"{wanted}#content", 303)  # without one of its own a browser takes along what is behind "#": the key
        return page("sign-in.html", **common(), source=None, several=False, label="", wanted=wanted, wrong=False)

    @routes.post("/sign-in")
    def check_key() -> ResponseReturnValue:
        wanted = sessions.own_path(request, request.form.get("next"))
        if not keys.is_key(request.form.get("key", "")):
            return page("sign-in.html", 401, **common(), source=None, several=False, label="", wanted=wanted, wrong=True)
        response = redirect(wanted, 303)
        sessions.begin(request, response)
        return response

    @routes.post("/sign-out")
    def sign_out() -> ResponseReturnValue:
        response = redirect(url_for("benchbridge.pages.sign_in"), 303)
        sessions.end(request, response)
        return response

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    @routes.get("/")
    def overview() -> ResponseReturnValue:
        return problems.only_a_page() if problems.prefers_json(request) else pages.overview(common())

    @routes.get("/view/coverage")
    def coverage() -> ResponseReturnValue:
        return pages.coverage(common())

    @routes.get("/view/refusals")
    def refusals() -> ResponseReturnValue:
        return pages.refusals(common())

    @routes.get("/view/results")
    def results() -> ResponseReturnValue:
        return pages.results(common())

    @routes.get("/view/result")
    def result() -> ResponseReturnValue:
        return pages.result(common())

    @routes.get("/view/runs")
    def runs() -> ResponseReturnValue:
        return pages.runs(common())

    @routes.get("/view/runs/<int:run_id>")
    def run(run_id: int) -> ResponseReturnValue:
        return pages.run(common(), run_id)

    @routes.get("/view/predictions")
    def predictions() -> ResponseReturnValue:
        return pages.predictions(common())

    @routes.get("/view/regressions")
    def regressions() -> ResponseReturnValue:
        return pages.regressions(common())

    @routes.get("/view/regressions/<int:regression_id>")
    def regression(regression_id: int) -> ResponseReturnValue:
        return pages.regression(common(), regression_id)

    @routes.get("/view/suggestions")
    def suggestions() -> ResponseReturnValue:
        return pages.suggestions(common())

    @routes.get("/view/tables/<name>")
    def table(name: str) -> ResponseReturnValue:
        if (match := _TABLE.fullmatch(name)) is None:
            raise NotFound(f"There is no table {name[:100]}.")
        return pages.table(match[1], match[2])

    # -- acting -------------------------------------------------------------------------------------------------------------------------

    def form(**allowed: type) -> dict[str, Any]:
        """The fields of the form; what is left empty is left out."""
        return query(request, allowed, {name: text for name, text in request.form.items() if text and name not in (TOKEN_FIELD, "back")})

    def back(said: str) -> ResponseReturnValue:
        """To the page of the form, which says what was done."""
        where = sessions.own_path(request, request.form.get("back")).partition("?")
        kept = [part for part in where[2].split("&") if part and not part.startswith("said=")]
        return redirect(f"{where[0]}?{'&'.join([*kept, urlencode({'said': said})])}", 303)

    @routes.post("/view/sync")
    def sync() -> ResponseReturnValue:
        source = source_of(form(source=str), bridge.source_names())
        run_id, joined = bridge.start_sync(SyncRequest(kind="http"), source=source)
        said = f"Run {run_id} was under way already." if joined else f"Run {run_id} has begun."
        return redirect(url_for("benchbridge.pages.run", run_id=run_id, said=said), 303)

    @routes.post("/view/schedule")
    def schedule() -> ResponseReturnValue:
        given = form(pause=str, interval_minutes=float)
        within(given, "interval_minutes", 0.01, 525_600)
        pause = {"yes": True, "no": False}.get(given.get("pause", ""))
        now = bridge.set_schedule(paused=pause, interval_minutes=given.get("interval_minutes"))
        return back("The schedule is paused." if now["paused"] else f"The schedule is on: every {now['interval_minutes']:g} minutes.")

    @routes.post("/view/retry")
    def retry() -> ResponseReturnValue:
        given = form(source=str, reason=str, result_id=str)
        source = source_of(given, bridge.source_names())
        if not given.keys() & {"reason", "result_id"}:
            raise InvalidArgument("Nothing to retry was named.", guidance="Give a reason or a result_id.")
        chosen = [given["result_id"]] if "result_id" in given else None
        count = bridge.retry(rejected=True, reason=given.get("reason"), result_ids=chosen, source=source)
        return back(f"{count:,} {'result is' if count == 1 else 'results are'} pending again. The next sync sends them.")

    @routes.post("/view/regressions")
    def decide() -> ResponseReturnValue:
        given = form(id=int, state=str, note=str)
        within(given, "id", 0, 2**31 - 1)
        if given.get("state") not in STATES or "id" not in given:
            raise InvalidArgument("Nothing to decide was named.", guidance=f"Give an id, and a state of: {', '.join(STATES)}.")
        if bridge.decide_regression(given["id"], given["state"], given.get("note", "")) is None:
            raise NotFound(f"There is no regression {given['id']}.")
        return back(f"The regression is {given['state']}.")

    return routes


def _is_browser() -> bool:
    """Whether a form to sign in is of any use: clients other than browsers do not name HTML, and are told of the key."""
    return "text/html" in request.headers.get("Accept", "")


def _below_root(path: str | None) -> str | None:
    return None if path is None else f"{request.script_root}{path}"
