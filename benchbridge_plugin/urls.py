"""URLs as a configuration has them: what makes sense, and how to show one without its secrets."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SECRET_PARAMETERS = ("password", "passwd", "pwd", "passphrase", "secret", "token", "key")
#: Up to the last "@", as loosely as SQLAlchemy reads it: there a password may hold "/", "?" and "#" as they are.
_CREDENTIALS = re.compile(r"^((?:[\w+.-]+:)?//|(?![\w+.-]+://))([^:/?#@]*):.*@", re.DOTALL)


def redact_url(url: str) -> str:
    """The URL without the secrets it may carry: a password before the host, a fragment, parameters with names such as `password` or `token`."""
    try:
        parts = urlsplit(url)
        password = parts.password
        web = parts.scheme in ("http", "https") and parts.port is not None  # then an "@" further on belongs to the path
    except ValueError:
        return "***"  # not a URL: nobody can say what in it is secret
    if password is not None:
        parts = parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}")
    elif not web and (credentials := _CREDENTIALS.match(url)):
        start, user = credentials.groups(default="")
        return redact_url(f"{start}{user}:***@{url[credentials.end() :]}") if start else f"{user}:***@{url[credentials.end() :]}"
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if any(_is_secret_parameter(name) for name, _ in pairs):
        shown = [(name, "***" if _is_secret_parameter(name) else value) for name, value in pairs]
        parts = parts._replace(query=urlencode(shown, safe="*/:"))
    elif password is None and not parts.fragment:
        return url
    return urlunsplit(parts._replace(fragment="***" if parts.fragment else ""))


def _is_secret_parameter(name: str) -> bool:
    return name.lower().endswith(_SECRET_PARAMETERS)


def is_http_url(url: str) -> bool:
    """Whether a route can be put behind it."""
    if not url.isprintable() or " " in url:  # the parser drops some of these, and a client does not
        return False
    try:
        parts = urlsplit(url)
        plain = not parts.query and not parts.fragment  # a route is put behind it
        return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and parts.port != 0  # reading the port checks it
    except ValueError:
        return False


def is_webhook_url(url: str) -> bool:
    """Whether something can be posted to it. Unlike the address of an API it may have a query."""
    return is_http_url(url.partition("?")[0]) and url.isprintable() and " " not in url and "#" not in url


def is_in_memory(url: str) -> bool:
    """Whether this is an SQLite database that is gone with the process. A ledger that forgets would have everything sent again."""
    kind, _, place = url.partition("://")
    path = place.partition("?")[0].lstrip("/")
    return kind.partition("+")[0] == "sqlite" and (
        not path or path == ":memory:" or path.startswith("file::memory:") or "mode=memory" in url
    )
