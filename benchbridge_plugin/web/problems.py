"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from flask import Blueprint, Request, Response, request
from werkzeug.exceptions import HTTPException

from benchbridge_plugin.errors import BridgeError, ConfigError
from benchbridge_plugin.web.auth import HEADER

_logger = logging.getLogger(__name__)
_TITLES = {
    400: "Bad request",
    401: "API key needed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    409: "Conflict",
    413: "Too large",
    415: "Not JSON",
    422: "Invalid value",
    500: "Internal error",
    502: "Predictive API",
    503: "Not available",
}


def problem(
    status: int, code: str, detail: str, *, guidance: str = "", headers: Mapping[str, str] | None = None, **fields: object
) -> Response:
    """A problem document. `code` is for machines, `detail` and `guidance` are sentences."""
    body = {"type": "about:blank", "title": _TITLES.get(status, "Error"), "status": status, "code": code, "detail": detail}
    if guidance:
        body["guidance"] = guidance
    return Response(json.dumps({**body, **fields}), status, headers=dict(headers or {}), content_type="application/problem+json")


def key_needed() -> Response:
    """Of the key nothing is said but whether one was sent at all."""
    given = HEADER in request.headers or "Authorization" in request.headers
    return problem(
        401,
        "key_needed",
        "The key that was sent is not the bridge's." if given else "This route needs the API key of the bridge.",
        guidance=f"Send it in the header {HEADER}; the server's operator has it (bridge_api_key, or a file beside the ledger).",
        headers={"WWW-Authenticate": 'Bearer realm="benchbridge"'},
    )


def no_such_route(path: str) -> Response:
    return problem(404, "no_such_route", f"There is no route /api/bridge/{path[:200]}.", guidance="docs/host.md lists the routes.")


def prefers_json(asking: Request) -> bool:
    """Whether the client says that it would rather have JSON than HTML. Most say nothing, or that anything will do."""
    return asking.accept_mimetypes.best_match(("text/html", "application/json"), "text/html") == "application/json"


def only_a_page() -> Response:
    return problem(
        406,
        "only_a_page",
        "/api/bridge/ is the dashboard, a page for people.",
        guidance="The same as JSON: GET /api/bridge/status. docs/host.md lists the routes.",
    )


def of_error(error: BridgeError) -> Response:
    """A wrong configuration is 503 here, as the rest of what only the operator can put right."""
    status = 503 if isinstance(error, ConfigError) else error.http_status
    return problem(status, error.code, error.message, guidance=error.guidance)


def install(blueprint: Blueprint) -> None:
    """Answer every error raised in the blueprint's routes with a problem document, and nothing else."""

    @blueprint.errorhandler(BridgeError)
    def bridge_error(error: BridgeError) -> Response:
        return of_error(error)

    @blueprint.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        headers = {name: value for name, value in error.get_headers() if name.lower() not in ("content-type", "content-length")}
        return problem(status, error.name.lower().replace(" ", "_"), error.description or error.name, headers=headers)

    @blueprint.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:  # the edge of a route
        _logger.error("a bridge route failed", exc_info=error)
        return problem(500, "internal_error", "Something unexpected went wrong.", guidance="The server's log has the details.")
