"""The body of a request, as JSON."""

from __future__ import annotations

import json
import zlib
from typing import Any

from flask import Request

from unified_server.errors import BodyRefused, InvalidInput
from unified_server.reading import detail

LIMIT_BYTES = 16 * 1024 * 1024
"""The largest body, as it is sent and, for gzip, also as it is expanded."""


def read_json(request: Request) -> Any:
    """The value in the body, whatever its Content-Type says; NaN and infinity come through as floats, for the fields
    to refuse.

    Raises InvalidInput when it is not JSON, BodyRefused when it is too large or encoded in something else than gzip.
    Flask itself refuses a body over MAX_CONTENT_LENGTH.
    """
    data = request.get_data(cache=False)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "gzip":
        data = _expand(data)
    elif encoding not in ("", "identity"):
        raise BodyRefused(415, "Content-Encoding should be gzip, or absent")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput([detail("json_invalid", ["body"], "JSON decode error", f"{error}"[:200])]) from None


def _expand(data: bytes) -> bytes:
    expander = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        expanded = expander.decompress(data, LIMIT_BYTES + 1)
    except zlib.error:
        raise BodyRefused(400, "the body is not gzip, although Content-Encoding says so") from None
    if len(expanded) > LIMIT_BYTES:
        raise BodyRefused(413, f"the expanded body is larger than {LIMIT_BYTES} bytes")
    if not expander.eof or expander.unused_data:
        raise BodyRefused(400, "the gzip body is cut off, or something follows it")
    return expanded
