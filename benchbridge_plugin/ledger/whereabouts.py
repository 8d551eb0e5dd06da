"""Where the benchmark files of a bridge over several files were seen last, so that one that is gone is still accounted for, after a restart too."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import select

from benchbridge_plugin.files import Place
from benchbridge_plugin.ledger.schema import ledger_meta
from benchbridge_plugin.ledger.store import Store, insert_many

_PREFIX = "file:"  # in front of a source's name, among the other things that the ledger notes of itself


class Whereabouts:
    def __init__(self, store: Store) -> None:
        self._store = store

    def known(self) -> dict[str, Place]:
        """Where each source was seen last, by its name."""
        statement = select(ledger_meta.c.name, ledger_meta.c.value).where(ledger_meta.c.name.startswith(_PREFIX, autoescape=True))
        with self._store.reading() as connection:
            return {name.removeprefix(_PREFIX): Place(*json.loads(value)) for name, value in connection.execute(statement)}

    def note(self, places: Mapping[str, Place]) -> None:
        """As JSON in ASCII, because the name of a file need not be text that a database takes."""
        if places:
            with self._store.writing() as connection:
                insert_many(
                    connection,
                    "INSERT INTO ledger_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    [(f"{_PREFIX}{name}", json.dumps([place.path, place.entry])) for name, place in places.items()],
                )
