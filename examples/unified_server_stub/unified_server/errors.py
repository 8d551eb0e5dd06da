"""What can go wrong in the host.

::

    ServerError
    |-- ConfigError     the configuration cannot be used; one sentence, exit code 2
    |-- DatabaseBusy    another process or connection kept a database file for too long; HTTP 503, try again
    |-- BodyRefused     the request's body cannot be read at all; carries its HTTP status
    `-- InvalidInput    the values cannot be used; carries a list of ``{loc, msg, type, input}``; HTTP 422
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Detail = dict[str, Any]
"""One thing wrong with a request: ``{"type", "loc", "msg", "input"}``."""


class ServerError(Exception):
    """Anything the host raises on purpose."""


class ConfigError(ServerError):
    """The configuration cannot be used. The text is one sentence for a person."""


class DatabaseBusy(ServerError):
    """A database file stayed locked for as long as we were willing to wait. Trying again later is right."""


class BodyRefused(ServerError):
    """The body of a request is too large, or in an encoding we do not read."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class InvalidInput(ServerError, ValueError):
    """Values that cannot be used. ``details`` names each of them; an ``input`` in it is always valid JSON."""

    def __init__(self, details: Sequence[Detail]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details))
        self.details = list(details)
