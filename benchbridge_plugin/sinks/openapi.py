"""Which values a server takes for a field, read from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DEEPEST = 10


def enums_of(document: object, schema: str) -> dict[str, tuple[str, ...]]:
    """The enumerated text values of each property of `components.schemas.<schema>`; nothing for a document that does not say.

    Follows local `$ref`s and looks into anyOf, oneOf and allOf. Values that are not text (a null in an enum) are left out.
    """
    components = _at(document, "components", "schemas")
    properties = _at(components, schema, "properties")
    if not isinstance(properties, Mapping):
        return {}
    found = {str(name): tuple(dict.fromkeys(_values(part, components, 0))) for name, part in properties.items()}
    return {name: values for name, values in found.items() if values}


def _values(part: object, components: Any, depth: int) -> list[str]:
    if not isinstance(part, Mapping) or depth > _DEEPEST:
        return []
    values = [value for value in part.get("enum", []) if isinstance(value, str)]
    if isinstance(part.get("const"), str):
        values.append(part["const"])
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/components/schemas/"):
        values += _values(_at(components, reference.rpartition("/")[2]), components, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        options = part.get(word)
        for option in options if isinstance(options, list) else []:
            values += _values(option, components, depth + 1)
    return values


def _at(document: object, *names: str) -> Any:
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document
