"""From a SELECT to the rows of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

from unified_server.stored_json import parse_stored_json


def where_clause(equal: Mapping[str, str | int | None], time_column: str, since: datetime | None) -> tuple[str, list[object]]:
    """``WHERE a = ? AND time >= ?`` and its values. None means: do not filter.

    Column names are written into the SQL: they come from our own code, never from a request.
    """
    wanted: list[tuple[str, object]] = [(f"{name} = ?", value) for name, value in equal.items() if value is not None]
    if since is not None:
        wanted.append((f"{time_column} >= ?", since))
    if not wanted:
        return "", []
    return f"WHERE {' AND '.join(condition for condition, _ in wanted)}", [value for _, value in wanted]


def fetch_rows(cursor: duckdb.DuckDBPyConnection, query: str, values: Sequence[object] | Mapping[str, object]) -> list[dict[str, Any]]:
    """The rows as dicts that are fit for JSON: naive UTC times as ISO 8601 with an offset, ``metadata`` and
    ``metrics`` parsed. In the order of the query.
    """
    # Not by way of Arrow: there ORDER BY is lost where insertion order is not preserved (``sql`` with values up to
    # DuckDB 1.5, ``execute`` from 2.0).
    found = cursor.execute(query, values).fetchall()
    names = [column[0] for column in cursor.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in found]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, datetime):
                row[name] = value.replace(tzinfo=UTC).isoformat()
            elif name in ("metadata", "metrics"):
                row[name] = parse_stored_json(value)
    return rows
