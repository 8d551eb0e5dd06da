"""Reading many fields at once: the values to store, or a 422 answer that names what is wrong with each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unified_server.errors import Detail, InvalidInput
from unified_server.fields import Choice, Count, Field, Refused


def read_all(fields: Sequence[Field], values: Any, loc: tuple[str | int, ...] = ("body",)) -> dict[str, Any]:
    """Every field's value to store. Raises InvalidInput that names everything wrong, not only the first."""
    read, details = read_fields(fields, values, loc)
    if details:
        raise InvalidInput(details)
    return read


def read_query(fields: Sequence[Field], arguments: Mapping[str, str]) -> dict[str, Any]:
    """The same for the arguments of a URL, where whole numbers are written as text."""
    values: dict[str, Any] = dict(arguments)
    for field in fields:
        if isinstance(field, Count) and re.fullmatch(r"[+-]?[0-9]{1,18}", arguments.get(field.name, ""), re.ASCII):
            values[field.name] = int(arguments[field.name])
    return read_all(fields, values, ("query",))


def read_fields(fields: Sequence[Field], values: Any, loc: tuple[str | int, ...] = ("body",)) -> tuple[dict[str, Any], list[Detail]]:
    """Every field's value to store, and what is wrong, in the order of ``fields``. Unknown names are dropped."""
    if not isinstance(values, Mapping):
        return {}, [detail("dict_type", loc, "Input should be a valid dictionary", values)]
    read: dict[str, Any] = {}
    details: list[Detail] = []
    for field in fields:
        value = values.get(field.name)
        if value is None:
            read[field.name] = field.default
            if field.required:
                details.append(detail("missing", (*loc, field.name), "Field required", None))
            continue
        try:
            read[field.name] = field.read(value)
        except Refused as refused:
            details.append(detail(refused.kind, (*loc, field.name), str(refused), value))
    return read, details


def read_columns(fields: Sequence[Field], rows: Sequence[Any]) -> dict[str, list[Any]] | None:
    """The values to store of many rows, by field, when all of them are plainly right; None: ``read_fields`` has to look at each row.

    A tenth of the time of the rows one by one, since a rule looks at all values of a field at once.
    """
    if set(map(type, rows)) != {dict}:
        return None
    columns: dict[str, list[Any]] = {}
    for field in fields:
        name = field.name
        values = [row.get(name) for row in rows]
        given = [value for value in values if value is not None]
        if field.required and len(given) < len(values):
            return None
        read = field.read_many(given) if given else []
        if read is None:
            return None
        if len(given) < len(values):
            left = iter(read)
            read = [field.default if value is None else next(left) for value in values]
        columns[name] = read
    return columns


def detail(kind: str, loc: Sequence[str | int], message: str, value: Any) -> Detail:
    """One entry of a 422 answer. A value that JSON cannot carry, or a long one, is shown as shortened text."""
    try:
        shown = value if len(json.dumps(value, allow_nan=False)) <= 200 else f"{value!r:.200}"
    except (ValueError, TypeError, RecursionError):
        shown = f"{value!r:.200}"
    return {"type": kind, "loc": list(loc), "msg": message, "input": shown}


def object_schema(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON schema of an object with these fields; what is not required may be null."""
    properties: dict[str, Any] = {}
    for field in fields:
        schema = field.schema()
        if not field.required:
            # An enum stays in plain sight, where clients look for it, although null is accepted there too.
            schema = (schema if isinstance(field, Choice) else {"anyOf": [schema, {"type": "null"}]}) | {"default": field.default}
        properties[field.name] = schema | ({"description": field.about} if field.about else {})
    return {"type": "object", "properties": properties, "required": [f.name for f in fields if f.required]}
