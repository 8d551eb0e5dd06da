"""The fields a request may carry: each is read in Python, checked in SQL and described in OpenAPI from one definition.

``read`` is for the few rows of a request; ``sql_problem`` is the same rule for a whole Arrow table. Both give the same
sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Any

EARLIEST = datetime(1970, 1, 1)
LATEST = datetime(9999, 12, 31)
_STRICT = json.JSONEncoder(
    allow_nan=False, check_circular=False
)  # what came as JSON has no circles, and those of others end in RecursionError


class Refused(Exception):
    """One value is wrong: the kind of error, and a sentence."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Field:
    """A named value. Absent and null are the same: the default, or an error when the field is required."""

    name: str
    about: str = ""
    _: KW_ONLY
    required: bool = False
    default: Any = None

    def read(self, value: Any) -> Any:
        """The value to store. Raises Refused."""
        raise NotImplementedError

    def read_many(self, values: list[Any]) -> list[Any] | None:
        """The values to store of many rows, none of them null; None when one of them is not plainly right. Then ``read`` says which."""
        try:
            return [self.read(value) for value in values]
        except Refused:
            return None

    def sql_problem(self) -> str:
        """A SQL expression over the column of this name: the sentence that says what is wrong, or NULL."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """The JSON schema of one value."""
        raise NotImplementedError

    def sql_case(self, *cases: tuple[str, str]) -> str:
        """A CASE over (condition, sentence) pairs, preceded by the rule for a required field."""
        if self.required:
            cases = ((f"{self.name} IS NULL", "Field required"), *cases)
        whens = " ".join(f"WHEN {condition} THEN {_quoted(f'{self.name}: {sentence}')}" for condition, sentence in cases)
        return f"CASE {whens} END"


@dataclass(frozen=True, slots=True)
class Text(Field):
    """A string that DuckDB can store, at most ``longest`` characters, not empty where it is required."""

    longest: int = 1000

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise Refused("string_type", "Input should be a valid string")
        if self.required and not value:
            raise Refused("string_too_short", "String should have at least 1 character")
        if len(value) > self.longest:
            raise Refused("string_too_long", f"String should have at most {self.longest} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused("string_unicode", "Input should be a valid string") from None
        return value

    def read_many(self, values: list[Any]) -> list[Any] | None:
        if set(map(type, values)) != {str} or max(map(len, values)) > self.longest or (self.required and "" in values):
            return None
        try:
            "".join(values).encode()
        except UnicodeEncodeError:
            return None
        return values

    def sql_problem(self) -> str:
        empty = [(f"{self.name} = ''", "String should have at least 1 character")] if self.required else []
        too_long = (_longer(self.name, self.longest), f"String should have at most {self.longest} characters")
        return self.sql_case(*empty, too_long)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.longest} | ({"minLength": 1} if self.required else {})


@dataclass(frozen=True, slots=True)
class Choice(Field):
    """One of a few words, spelt exactly."""

    choices: tuple[str, ...] = ()

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise Refused("enum", self._sentence())
        return value

    def read_many(self, values: list[Any]) -> list[Any] | None:
        return values if set(map(type, values)) == {str} and set(values) <= set(self.choices) else None

    def sql_problem(self) -> str:
        return self.sql_case((f"{self.name} NOT IN ({', '.join(map(_quoted, self.choices))})", self._sentence()))

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.choices)}

    def _sentence(self) -> str:
        *most, last = (f"'{choice}'" for choice in self.choices)
        return f"Input should be {', '.join(most)} or {last}"


@dataclass(frozen=True, slots=True)
class Count(Field):
    """A whole number from ``least`` to 2^31 - 1. A JSON number without a fraction is whole however it is written."""

    least: int = 1
    most: int = 2**31 - 1

    def read(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused("int_type", "Input should be a valid integer")
        if value != value or value in (math.inf, -math.inf) or value != int(value):
            raise Refused("int_from_float", "Input should be a valid integer")
        if value < self.least:
            raise Refused("greater_than_equal", f"Input should be greater than or equal to {self.least}")
        if value > self.most:
            raise Refused("less_than_equal", f"Input should be less than or equal to {self.most}")
        return int(value)

    def read_many(self, values: list[Any]) -> list[Any] | None:
        return values if set(map(type, values)) == {int} and min(values) >= self.least and max(values) <= self.most else None

    def sql_problem(self) -> str:
        return self.sql_case(
            (f"{self.name} < {self.least}", f"Input should be greater than or equal to {self.least}"),
            (f"{self.name} > {self.most}", f"Input should be less than or equal to {self.most}"),
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Figure(Field):
    """A measured number: finite, not negative, at most ``most``."""

    most: float = math.inf

    def read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused("float_type", "Input should be a valid number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise Refused("finite_number", "Input should be a finite number")
        if number < 0:
            raise Refused("greater_than_equal", "Input should be greater than or equal to 0")
        if number > self.most:
            raise Refused("less_than_equal", f"Input should be less than or equal to {self.most}")
        return number

    def read_many(self, values: list[Any]) -> list[Any] | None:
        if set(map(type, values)) != {float} or not all(map(math.isfinite, values)):
            return super(Figure, self).read_many(values)
        return values if min(values) >= 0 and max(values) <= self.most else None

    def sql_problem(self) -> str:
        return self.sql_case(
            (f"NOT isfinite({self.name})", "Input should be a finite number"),
            (f"{self.name} < 0", "Input should be greater than or equal to 0"),
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": 0}


@dataclass(frozen=True, slots=True)
class Flag(Field):
    """True or false."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Refused("bool_type", "Input should be a valid boolean")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Moment(Field):
    """A time as ISO 8601 text or a datetime; stored as naive UTC. Without an offset it is taken as UTC."""

    def read(self, value: Any) -> datetime:
        if not isinstance(value, str | datetime):
            raise Refused("datetime_type", "Input should be a valid datetime")
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
            if moment.tzinfo is not None:
                moment = (moment.astimezone(UTC) if moment.utcoffset() else moment).replace(tzinfo=None)
        except (ValueError, OverflowError):
            raise Refused("datetime_parsing", "Input should be a valid datetime in ISO 8601 form") from None
        if not EARLIEST <= moment <= LATEST:
            raise Refused("datetime_parsing", "Input should be a valid datetime from 1970 on")
        return moment

    def sql_problem(self) -> str:
        bounds = f"BETWEEN TIMESTAMP '{EARLIEST}' AND TIMESTAMP '{LATEST}'"
        return self.sql_case((f"{self.name} NOT {bounds}", "Input should be a valid datetime from 1970 on"))

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


@dataclass(frozen=True, slots=True)
class JsonObject(Field):
    """A JSON object, or text that holds one; stored as text. NaN and infinity, which are not JSON, are refused."""

    longest: int = 100_000

    def read(self, value: Any) -> str:
        try:
            parsed = json.loads(value) if isinstance(value, str) else value
            text = _STRICT.encode(parsed)
            text.encode()
        except (ValueError, TypeError, RecursionError):
            raise Refused("json_invalid", "Input should be a JSON object with finite numbers") from None
        if not isinstance(parsed, Mapping):
            raise Refused("dict_type", "Input should be a JSON object")
        if len(text) > self.longest:
            raise Refused("too_long", f"JSON text should have at most {self.longest} characters")
        return text

    def sql_problem(self) -> str:
        is_object = f"json_valid({self.name}) AND regexp_matches({self.name}, '^\\s*\\{{')"  # json_type would parse it once more
        return self.sql_case(
            (f"{self.name} IS NOT NULL AND NOT ({is_object})", "Input should be a JSON object"),
            (_longer(self.name, self.longest), f"JSON text should have at most {self.longest} characters"),
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": True}


def _longer(name: str, longest: int) -> str:
    """SQL: more than ``longest`` characters. They are counted only in the few texts that have that many bytes."""
    return f"strlen({name}) > {longest} AND length({name}) > {longest}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
