"""Who is at the browser: somebody who signed in with the key, or whom the host knows. And whether a form is one of ours.

A session is a signed cookie and is kept nowhere, so that all workers know it. It ends after twelve hours, or when the key changes. Every action of a
browser carries a token that belongs to its session: a page of somebody else can make a browser send the cookie, but not the token.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flask import Request
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.wrappers import Response

from benchbridge_plugin.web.auth import KeyRing

COOKIE = "benchbridge_session"
TOKEN_FIELD = "csrf_token"
TOKEN_HEADER = "X-CSRF-Token"
LIFETIME_S = 12 * 3600
_LONGEST_NAME = 100
_SIGNED = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is signed in. `subject` is what a token is bound to."""

    name: str
    subject: str
    by_host: bool = False


class Sessions:
    """`authenticate`: the host's own word on who sends a request, a name or None; looked up anew each time, since a host may offer it late."""

    def __init__(self, keys: KeyRing, prefix: str, authenticate: Callable[[Request], object]) -> None:
        self._keys = keys
        self._prefix = prefix
        self._authenticate = authenticate

    def visitor(self, request: Request) -> Visitor | None:
        """Who is signed in, by our cookie or at the host. Raises what the host's own code raises: then nobody is let in."""
        cookie = request.cookies.get(COOKIE)
        if cookie:
            try:
                return Visitor("the key", f"session:{self._signer('session').loads(cookie, max_age=LIFETIME_S)}")
            except BadData:  # made up, of another key, or over
                pass
        name = self._authenticate(request)
        if isinstance(name, str) and name:
            return Visitor(name[:_LONGEST_NAME], f"host:{name}", by_host=True)
        return None

    def allows(self, request: Request) -> bool:
        """Whether the request may go on: it has the key, only reads what is open, or comes from somebody signed in, with the token if it acts."""
        if self._keys.allows(request):
            return True
        visitor = self.visitor(request)
        return visitor is not None and (request.method in _READING or self.is_token_of(visitor, request.headers.get(TOKEN_HEADER, "")))

    def token(self, visitor: Visitor) -> str:
        """What every action of this visitor has to carry."""
        return self._signer("token").dumps(visitor.subject)

    def is_token_of(self, visitor: Visitor, token: str) -> bool:
        try:
            subject: object = self._signer("token").loads(token, max_age=LIFETIME_S)
        except BadData:
            return False
        return subject == visitor.subject

    def begin(self, request: Request, response: Response) -> None:
        """Whoever gets this response is signed in."""
        value = self._signer("session").dumps(secrets.token_urlsafe(16))
        response.set_cookie(COOKIE, value, max_age=LIFETIME_S, **self._attributes(request))

    def end(self, request: Request, response: Response) -> None:
        response.delete_cookie(COOKIE, **self._attributes(request))

    def own_path(self, request: Request, wanted: str | None) -> str:
        """Where to go after signing in: the wanted page if it is one of ours, else the first one. Never to another server."""
        home = f"{request.script_root}{self._prefix}/"
        if not wanted or any(character <= " " or character in "\\\x7f" for character in wanted):
            return home
        try:
            parts = urlsplit(wanted)
        except ValueError:
            return home
        ours = not parts.scheme and not parts.netloc and parts.path.startswith(home) and "//" not in parts.path and ".." not in parts.path
        return wanted if ours else home

    def _attributes(self, request: Request) -> dict[str, Any]:
        path = f"{request.script_root}{self._prefix}"
        return {"path": path, "secure": request.is_secure, "httponly": True, "samesite": "Strict"}

    def _signer(self, purpose: str) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._keys.seal(), salt=f"benchbridge.{purpose}", signer_kwargs=_SIGNED)
