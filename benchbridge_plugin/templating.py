"""Templates, and how figures, times and names read in them: the same on a page of the dashboard and in the report as HTML."""

from __future__ import annotations

from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchbridge_plugin.charts import share


def environment(package: str) -> Environment:
    """The templates of a package. Everything in them is escaped, and a name that is not there is an error."""
    made = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": _number, "when": _when, "words": _words, "lasting": _lasting, "percent": _percent}
    made.globals |= {"share": share}
    return made


def _number(value: object) -> str:
    """With commas, and figures to four digits."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _percent(share: float | None, signed: bool = False) -> str:
    """A fraction as percent, to two digits and one at least."""
    if share is None:
        return ""
    percent = 100 * share
    return f"{percent:{'+' if signed else ''}.{1 if abs(percent) < 9.95 else 0}f} %"


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
