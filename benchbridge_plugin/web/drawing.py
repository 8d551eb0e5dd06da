"""How a page is drawn: the templates, what all of them show, and the headers that keep a browser to them.

The templates have an environment of their own: neither the host's templates nor its context get into a page, and everything is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flask import Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchbridge_plugin._version import __version__
from benchbridge_plugin.charts import share

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


def _number(value: object) -> str:
    """With commas, and figures to four digits."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _when(text: str | None) -> str:
    """An ISO time as people read it; the pages say once that it is UTC."""
    if not text:
        return ""
    try:
        return f"{datetime.fromisoformat(text):%d %b %Y, %H:%M:%S}"
    except ValueError:
        return text


def _words(name: str | None) -> str:
    return (name or "").replace("_", " ")


def _lasting(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("benchbridge_plugin.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"number": _number, "when": _when, "words": _words, "lasting": _lasting}
    made.globals |= {"version": __version__, "share": share}
    return made


_templates = _environment()


def page(template: str, status: int = 200, **shown: Any) -> Response:
    """A page of the dashboard."""
    return Response(_templates.get_template(template).render(**shown), status, content_type="text/html; charset=utf-8")
