"""What the host's two APIs have in common: the key, and errors as JSON."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from flask import Blueprint, abort, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from unified_server.errors import BodyRefused, DatabaseBusy, InvalidInput


def api_blueprint(name: str, prefix: str, *, api_key: str | None, open_endpoints: Collection[str] = ()) -> Blueprint:
    """A blueprint that asks for X-API-Key (unless ``api_key`` is None) except at ``open_endpoints``, and answers
    errors as {"detail"}.

    InvalidInput becomes 422, DatabaseBusy 503 with Retry-After, BodyRefused and HTTP errors their own status.
    """
    blueprint = Blueprint(name, __name__, url_prefix=prefix)

    @blueprint.before_request
    def check_key() -> None:
        if api_key is None or request.endpoint in {f"{name}.{endpoint}" for endpoint in open_endpoints}:
            return
        # WSGI hands headers over as Latin-1; compared as bytes, in constant time.
        given = request.headers.get("X-API-Key", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, api_key.encode()):
            abort(401, "X-API-Key is missing or wrong")

    @blueprint.errorhandler(InvalidInput)
    def invalid(error: InvalidInput) -> ResponseReturnValue:
        return {"detail": error.details}, 422

    @blueprint.errorhandler(BodyRefused)
    def refused(error: BodyRefused) -> ResponseReturnValue:
        return {"detail": str(error)}, error.status

    @blueprint.errorhandler(DatabaseBusy)
    def busy(_error: DatabaseBusy) -> ResponseReturnValue:
        return {"detail": "the database is in use; try again"}, 503, {"Retry-After": "1"}

    blueprint.register_error_handler(HTTPException, http_error)
    return blueprint


def http_error(error: HTTPException) -> ResponseReturnValue:
    """An HTTP error as {"detail": "..."}, with the headers it asks for (Allow, WWW-Authenticate)."""
    headers = {key: value for key, value in error.get_headers() if key.lower() != "content-type"}
    return {"detail": error.description or error.name}, error.code or 500, headers
