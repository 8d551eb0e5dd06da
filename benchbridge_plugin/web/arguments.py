"""What a caller says, checked: each argument by name, type and range. A caller can never choose a path or a URL: there is no argument for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Request
from werkzeug.exceptions import UnsupportedMediaType

from benchbridge_plugin.errors import BridgeError

_LONGEST_TEXT = 1_000
_LARGEST_NUMBER = 2**53


class InvalidArgument(BridgeError):
    code = "invalid_argument"
    http_status = 422


def body(request: Request, allowed: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object of the request with nothing but the allowed keys, each of its type or absent. An empty body is an empty object."""
    if not request.get_data(cache=True):
        return {}
    if not request.is_json:
        raise UnsupportedMediaType("Send JSON, with Content-Type: application/json.")
    given = request.get_json()
    if not isinstance(given, Mapping):
        raise InvalidArgument("The body must be a JSON object.", guidance=f"It may have: {', '.join(allowed)}.")
    for name, value in given.items():
        if name not in allowed:
            raise InvalidArgument(f"There is no argument {str(name)[:100]!r}.", guidance=f"There are: {', '.join(allowed)}.")
        _check(name, value, allowed[name])
    return {name: value for name, value in given.items() if value is not None}


def query(request: Request, allowed: Mapping[str, type]) -> dict[str, Any]:
    """The query string, checked in the same way."""
    found: dict[str, Any] = {}
    for name, text in request.args.items():
        if name not in allowed:
            raise InvalidArgument(f"There is no argument {name[:100]!r}.", guidance=f"There are: {', '.join(allowed)}.")
        value: Any = text
        if allowed[name] is int:
            try:
                value = int(text)
            except ValueError:
                raise InvalidArgument(f"{name} must be a whole number, not {text[:100]!r}.") from None
        _check(name, value, allowed[name])
        found[name] = value
    return found


def within(arguments: Mapping[str, Any], name: str, low: float, high: float = _LARGEST_NUMBER) -> None:
    """Raise unless the argument is absent or in the range."""
    value = arguments.get(name)
    if value is not None and not low <= value <= high:
        raise InvalidArgument(f"{name} must be {low:g} to {high:g}, not {value}.")


def _check(name: str, value: object, kind: type) -> None:
    if value is None:
        return
    right = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
        list: isinstance(value, list)
        and len(value) <= 10_000
        and all(isinstance(item, str) and len(item) <= _LONGEST_TEXT for item in value),
    }[kind]
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list of at most 10,000 texts"}[kind]
    if not right:
        raise InvalidArgument(f"{name} must be {wanted}.")
    if isinstance(value, str) and (len(value) > _LONGEST_TEXT or "\x00" in value):
        raise InvalidArgument(f"{name} must be at most {_LONGEST_TEXT} characters without a null character.")
    if isinstance(value, (int, float)) and not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
        raise InvalidArgument(f"{name} is out of range.")
