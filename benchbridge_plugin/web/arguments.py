"""What a caller says, checked: each argument by name, type and range. A caller can never choose a path or a URL: there is no argument for one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Request
from werkzeug.exceptions import UnsupportedMediaType

from benchbridge_plugin.errors import BridgeError

_LONGEST_TEXT = 1_000
_LARGEST_NUMBER = 2**53
#: A list of so many texts of this length fits into a body, whatever characters they have.
MOST_ITEMS = 500
LONGEST_ITEM = 300


class InvalidArgument(BridgeError):
    code = "invalid_argument"
    http_status = 422


class InvalidBody(BridgeError):
    code = "invalid_json"
    http_status = 400


def body(request: Request, allowed: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object of the request with nothing but the allowed keys, each of its type or absent. An empty body is an empty object."""
    text = request.get_data()
    if not text:
        return {}
    if not request.is_json:
        raise UnsupportedMediaType("Send JSON, with Content-Type: application/json.")
    try:
        given = json.loads(text)
    except RecursionError:
        raise InvalidBody("The body is nested too deeply.", guidance="It is one JSON object without anything nested but lists.") from None
    except ValueError as error:  # not JSON, or not text
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidBody(f"The body is not JSON{where}.", guidance="Send one JSON object.") from None
    if not isinstance(given, Mapping):
        raise InvalidArgument("The body must be a JSON object.", guidance=f"It may have: {', '.join(allowed)}.")
    for name, value in given.items():
        if name not in allowed:
            raise InvalidArgument(f"There is no argument {str(name)[:100]!r}.", guidance=f"There are: {', '.join(allowed)}.")
        _check(name, _whole(value) if allowed[name] is int else value, allowed[name])
    return {name: _whole(value) if allowed[name] is int else value for name, value in given.items() if value is not None}


def source_of(given: dict[str, Any], names: Sequence[str]) -> str | None:
    """The source that is asked for, taken out of the arguments. Raises InvalidArgument when it is none of `names`."""
    name: str | None = given.pop("source", None)
    if name is not None and name not in names:
        raise InvalidArgument(f"There is no source {name[:100]!r}.", guidance=f"There are: {', '.join(names[:20]) or 'none yet'}.")
    return name


def query(request: Request, allowed: Mapping[str, type], given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The query string, checked in the same way; or what else was `given` as texts, as a form does."""
    found: dict[str, Any] = {}
    for name, text in (request.args if given is None else given).items():
        if name not in allowed:
            raise InvalidArgument(f"There is no argument {name[:100]!r}.", guidance=f"There are: {', '.join(allowed)}.")
        value: Any = text
        if allowed[name] is int:
            try:
                value = int(text)
            except ValueError:
                raise InvalidArgument(f"{name} must be a whole number, not {text[:100]!r}.") from None
        elif allowed[name] is float:
            try:
                value = float(text)
            except ValueError:
                raise InvalidArgument(f"{name} must be a number, not {text[:100]!r}.") from None
        _check(name, value, allowed[name])
        found[name] = value
    return found


def within(arguments: Mapping[str, Any], name: str, low: float, high: float = _LARGEST_NUMBER) -> None:
    """Raise unless the argument is absent or in the range."""
    value = arguments.get(name)
    if value is not None and not low <= value <= high:
        raise InvalidArgument(f"{name} must be {low:g} to {high:g}, not {value}.")


def _whole(value: object) -> object:
    """In JSON 3.0 is a whole number, too."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_NUMBER else value


def _check(name: str, value: object, kind: type) -> None:
    if value is None:
        return
    right = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
        list: isinstance(value, list)
        and len(value) <= MOST_ITEMS
        and all(isinstance(item, str) and len(item) <= LONGEST_ITEM for item in value),
    }[kind]
    texts_wanted = f"a list of at most {MOST_ITEMS} texts of at most {LONGEST_ITEM} characters"
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: texts_wanted}[kind]
    if not right:
        raise InvalidArgument(f"{name} must be {wanted}.")
    if value == "":
        raise InvalidArgument(f"{name} must not be empty.", guidance="Leave it out to take all.")
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and not _is_plain(text) for text in texts):
        raise InvalidArgument(f"{name} must be at most {_LONGEST_TEXT:,} characters, without null characters and lone surrogates.")
    if isinstance(value, (int, float)) and not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
        raise InvalidArgument(f"{name} is out of range.")


def _is_plain(text: str) -> bool:
    return len(text) <= _LONGEST_TEXT and not any(character == "\x00" or "\ud800" <= character <= "\udfff" for character in text)
