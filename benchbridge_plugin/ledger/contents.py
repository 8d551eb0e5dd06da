"""One result in the ledger, with every content that it ever had. Found by its id, however many others there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pyarrow.compute as pc
from sqlalchemy import Connection, select

from benchbridge_plugin.ledger import claims
from benchbridge_plugin.ledger.schema import deliveries, reasons, subjects
from benchbridge_plugin.ledger.store import Store
from benchbridge_plugin.model import State, quality_names


@dataclass(frozen=True, slots=True)
class Content:
    """A content of a result, and what became of it. Times are seconds since 1970; `prior_state` is that of one that was superseded or withdrawn."""

    content_hash: bytes
    key: UUID
    state: State
    prior_state: State | None
    model: str
    hardware: str
    measured_at: float | None
    measurement_id: str | None
    attempts: int
    next_attempt_at: float | None
    reason_code: str | None
    reason: str | None
    quality: tuple[str, ...]
    run_id: int
    updated_at: float
    task_id: str | None = None


class Contents:
    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, source_id: int, result_id: str) -> list[Content]:
        """The contents, newest first. Empty: no run took the result up yet."""
        statement = (
            select(deliveries, subjects.c.model, subjects.c.hardware, reasons.c.code, reasons.c.sentence)
            .join(subjects, subjects.c.subject_id == deliveries.c.subject_id)
            .outerjoin(reasons, reasons.c.reason_id == deliveries.c.reason_id)
            .where(deliveries.c.source_id == source_id, deliveries.c.result_id == result_id)
        )
        with self._store.reading() as connection:
            found = [
                Content(
                    bytes(row["content_hash"]),
                    UUID(bytes=bytes(row["key"])),
                    State(row["state"]),
                    None if row["prior_state"] is None else State(row["prior_state"]),
                    row["model"],
                    row["hardware"],
                    row["measured_at"],
                    row["measurement_id"],
                    row["attempts"],
                    row["next_attempt_at"],
                    row["code"],
                    row["sentence"],
                    tuple(quality_names(row["quality"])),
                    row["run_id"],
                    row["updated_at"],
                    row["task_id"],
                )
                for row in connection.execute(statement).mappings()
            ]
            found += _on_their_way(connection, source_id, result_id)
        return sorted(found, key=lambda content: (content.state < State.SUPERSEDED, content.updated_at), reverse=True)


def _on_their_way(connection: Connection, source_id: int, result_id: str) -> Iterator[Content]:
    for claim, results in claims.read(connection, source_id):
        here = results.filter(pc.equal(results.column("result_id"), result_id))
        for _, content_hash, key, subject_id, measured_at, quality in claims.as_rows(here):
            model, hardware = connection.execute(
                select(subjects.c.model, subjects.c.hardware).where(subjects.c.subject_id == subject_id)
            ).one()
            yield Content(
                bytes(content_hash),
                UUID(bytes=bytes(key)),
                State.SENDING,
                None,
                model,
                hardware,
                measured_at,
                None,
                1,
                None,
                None,
                None,
                tuple(quality_names(quality)),
                claim["run_id"],
                claim["claimed_at"],
            )
