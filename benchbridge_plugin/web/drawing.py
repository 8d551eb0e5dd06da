"""How a page is drawn: the templates, what all of them show, and the headers that keep a browser to them.

The templates have an environment of their own: neither the host's templates nor its context get into a page, and everything is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from benchbridge_plugin._version import __version__
from benchbridge_plugin.templating import environment

#: Nothing from elsewhere, nothing inline: markup in a name of somebody's benchmark file would have nothing that it could start.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}


_templates = environment("benchbridge_plugin.web")
_templates.globals |= {"version": __version__}


def page(template: str, status: int = 200, **shown: Any) -> Response:
    """A page of the dashboard."""
    return Response(_templates.get_template(template).render(**shown), status, content_type="text/html; charset=utf-8")
