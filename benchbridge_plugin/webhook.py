"""Tells a webhook of an event: signed as the Standard Webhooks specification says, so that its libraries can verify it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from benchbridge_plugin._version import __version__
from benchbridge_plugin.coercion import signing_key
from benchbridge_plugin.ledger import Parcel

_LONGEST_WAIT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt. `error` is empty when the receiver took it; `gone`: it will never take another one (HTTP 410)."""

    error: str = ""
    gone: bool = False
    retry_after_s: float = 0.0


class Webhook:
    """One receiver. Every attempt is a connection of its own; redirects are not followed, and TLS is verified."""

    def __init__(self, url: str, secret: str, *, timeout_s: float, ca_bundle: str | None, now: Callable[[], float]) -> None:
        self._url = url
        self._key = signing_key(secret)
        self._timeout_s = timeout_s
        self._verify: bool | str = ca_bundle or True
        self._now = now
        self.name = urlsplit(url).hostname or "the webhook"  # without the path, which may be a secret of its own

    def send(self, parcel: Parcel) -> Answer:
        """One attempt. Raises nothing that has to do with the receiver."""
        body = parcel.payload.encode()
        at = int(self._now())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"benchbridge/{__version__}",
            "webhook-id": parcel.event_id,
            "webhook-timestamp": str(at),
            "webhook-signature": signature(self._key, parcel.event_id, at, body),
        }
        try:
            with requests.Session() as session:
                session.auth = _nothing_added  # else a password of ~/.netrc would be sent along
                with session.post(
                    self._url,
                    data=body,
                    headers=headers,
                    timeout=self._timeout_s,
                    verify=self._verify,
                    allow_redirects=False,
                    stream=True,  # what it says beside its status is nobody's business
                ) as response:
                    status, wait = response.status_code, response.headers.get("Retry-After")
        except (requests.RequestException, OSError, ValueError) as error:
            return Answer(f"no answer ({type(error).__name__})")  # its text has the address in it
        if 200 <= status < 300:
            return Answer()
        return Answer(f"HTTP {status}", status == 410, _seconds(wait))


def signature(key: bytes, event_id: str, at: int, body: bytes) -> str:
    """The header webhook-signature."""
    signed = hmac.new(key, f"{event_id}.{at}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def _nothing_added(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _seconds(header: str | None) -> float:
    """Of Retry-After, the form in seconds. The date form needs two clocks that agree."""
    try:
        wait_s = float(header or "nan")
    except ValueError:
        return 0.0
    return 0.0 if math.isnan(wait_s) else min(max(wait_s, 0.0), _LONGEST_WAIT_S)
