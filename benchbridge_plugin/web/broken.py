"""What is served in place of the bridge when it cannot work. It loads nothing of what works."""

from __future__ import annotations

from flask import Blueprint
from flask.typing import ResponseReturnValue

from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.web import problems

PREFIX = "/api/bridge"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def create_broken_blueprint(error: BridgeError) -> Blueprint:
    """What an enabled but misconfigured plugin offers: every route says what is wrong. There is no key to ask for, and nothing else to see."""
    routes = Blueprint("benchbridge", __name__, url_prefix=PREFIX)

    @routes.route("", methods=METHODS)
    @routes.route("/", methods=METHODS)
    @routes.route("/<path:path>", methods=METHODS)
    def broken(**_: str) -> ResponseReturnValue:
        return problems.problem(503, error.code, error.message, guidance=error.guidance, error=error.message)

    return routes
