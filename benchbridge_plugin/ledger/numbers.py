"""Repeated texts, kept once and referred to by number."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Table, select, tuple_

from benchbridge_plugin.ledger.store import insert_many
from benchbridge_plugin.model import storable

_CHUNK = 500


class Numbers:
    """The numbers of repeated texts (pairs of them), added where they are new and remembered once they are durable."""

    def __init__(self, table: Table, first: str, second: str) -> None:
        self._table = table
        self._names = (first, second)
        self._known: dict[tuple[str, str], int] = {}

    def of(self, connection: Connection, pairs: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        found = {pair: self._known[pair] for pair in pairs if pair in self._known}
        spelt = {(storable(pair[0]), storable(pair[1])): pair for pair in pairs - found.keys()}
        missing = sorted(spelt)
        first, second = (self._table.c[name] for name in self._names)
        insert_many(connection, f"INSERT INTO {self._table.name} ({', '.join(self._names)}) VALUES (?, ?) ON CONFLICT DO NOTHING", missing)
        number = next(iter(self._table.primary_key.columns))
        for start in range(0, len(missing), _CHUNK):
            statement = select(number, first, second).where(tuple_(first, second).in_(missing[start : start + _CHUNK]))
            for value, *pair in connection.execute(statement):
                found[spelt[pair[0], pair[1]]] = int(value)
        return found

    def remember(self, found: Mapping[tuple[str, str], int]) -> None:
        """To be called after the commit: a number of a rolled-back transaction belongs to nobody."""
        self._known.update(found)
