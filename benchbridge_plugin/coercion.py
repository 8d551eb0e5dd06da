"""A value of a configuration as the type of its setting. What comes from the environment is text, and is parsed."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.urls import redact_url
from benchbridge_plugin.watching import Watching, watching

SECRETS = frozenset({"api_key", "bridge_api_key", "webhook_secret"})
ENVIRONMENT_PREFIX = "BENCHBRIDGE_"
#: Places that a setting can come from, beside files and sections, which go by their own names.
ENVIRONMENT, COMMAND_LINE, ARGUMENT = "environment", "command line", "argument"
_LARGEST_NUMBER = 10**15
_SHORTEST_KEY = 24


def coerce(key: str, hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of the field, or a ConfigError. Text is parsed, since the environment has nothing else."""
    options = [option for option in get_args(hint) if option is not type(None)]
    optional = type(None) in get_args(hint)
    kind = options[0] if optional else hint
    if value is None and optional:
        return None
    if key == "benchmark_db_path":
        return _paths(value, where)
    origin = get_origin(kind) or kind
    try:
        if origin is Watching:
            return watching(value)
        if origin is bool:
            return _bool(value)
        if origin in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return _number(origin, value)
        if origin is str and isinstance(value, (str, Path)):
            return str(value)
        if origin is tuple and isinstance(value, (str, list, tuple)):
            items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else list(value)
            if all(isinstance(item, str) for item in items):
                return tuple(items)
        if issubclass(origin, Mapping):
            pairs = json.loads(value) if isinstance(value, str) else value
            if isinstance(pairs, Mapping) and all(isinstance(a, str) and isinstance(b, str) for a, b in pairs.items()):
                return _aliases(pairs)
    except OverflowError:
        raise misfit(key, where, f"must be a number of at most {_LARGEST_NUMBER:.0e}") from None
    except (TypeError, ValueError, RecursionError):
        pass
    wanted = {
        Watching: 'an object such as {"enabled": true, "min_change": "5%"}',
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        tuple: "a list of names",
    }.get(origin, "an object of names, each given once")
    raise misfit(key, where, f"must be {wanted}, not {shown(key, value)}")


def misfit(key: str, where: str, rule: str, more: str = "") -> ConfigError:
    """A value that breaks this rule, with what to do about it where it comes from. Of the environment the variable is named, which one looks for."""
    variable = f"{ENVIRONMENT_PREFIX}{key.upper()}"
    name = f"{variable} (or {variable}_FILE)" if key in SECRETS else variable
    said = f"{name} in the environment" if where == ENVIRONMENT else f"{key} in {where}"
    todo = {
        ENVIRONMENT: f"Set {name} to such a value, or unset it.",
        COMMAND_LINE: "Give such a value on the command line.",
        ARGUMENT: "Correct it in the call.",
    }.get(where, f"Correct it in {where}.")
    return ConfigError(f"{said} {rule}.", guidance=f"{todo} {more}".strip(), key=key, where=where)


def _paths(value: Any, where: str) -> str | tuple[str, ...]:
    """One path, or several, as they were given."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in value):
        return tuple(os.fspath(item) for item in value)
    raise misfit("benchmark_db_path", where, f"must be text or a list of texts, not {value!r}")


def _aliases(pairs: Mapping[str, str]) -> Mapping[str, str]:
    """Names as the mapping looks them up. ValueError for one that says nothing, or two that are the same and mean different things."""
    aliases: dict[str, str] = {}
    for name, meant in ((name.strip().lower(), meant.strip().lower()) for name, meant in pairs.items()):
        if not name or not meant or aliases.setdefault(name, meant) != meant:
            raise ValueError
    return MappingProxyType(aliases)


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"1", "true", "yes", "on"}:
        return True
    if isinstance(value, str) and value.strip().lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError


def _number(kind: type[int] | type[float], value: int | float | str) -> int | float:
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    if abs(number) > _LARGEST_NUMBER:
        raise OverflowError
    return kind(number)


def signing_key(secret: str) -> bytes:
    """The bytes of a secret of the Standard Webhooks specification: base64, perhaps with a prefix. ValueError when it is not, or too short."""
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    if len(key) < _SHORTEST_KEY:
        raise ValueError(f"{len(key)} bytes are too few")
    return key


def is_signing_secret(secret: str) -> bool:
    try:
        return bool(signing_key(secret))
    except ValueError:
        return False


def shown(key: str, value: object) -> str:
    """A value as an error may show it."""
    if key in SECRETS:
        return "***"
    return repr(redact_url(value) if key.endswith("_url") and isinstance(value, str) else value)
