"""A dry run: what a sync would send, refuse and skip, told by figures and by examples. Reads, compares and maps as a run does, and writes nothing.

However large the file is, only the examples are kept: a few results that would be sent, one for each reason of refusal, a few that changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from benchbridge_plugin.comparison import Plan
from benchbridge_plugin.layout import ROLES, Layout
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import STATE_NAMES, Progress, RunSummary, SinkProfile, State, SyncRequest
from benchbridge_plugin.provenance import FIELD_ROLES, REASON_FIELDS
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.tally import Tally

_SENT_SHOWN = 3
_CHANGED_SHOWN = 10
_LONGEST_VALUE = 200  # characters of a text that is shown


@dataclass(frozen=True, slots=True)
class Example:
    """One result as it would be sent: for each field where it comes from, what stands there, and what would be sent."""

    result_id: str
    mapping: Sequence[Mapping[str, Any]]  # field, column (None: nowhere in this file), value, sent


@dataclass(frozen=True, slots=True)
class Refused:
    """One result of those that a reason refuses, with what stands in the columns that the reason is about."""

    reason_code: str
    reason: str
    result_id: str
    values: Mapping[str, Any]  # column -> value


@dataclass(frozen=True, slots=True)
class Changed:
    """A result whose content is no longer the one that the ledger knows: the new content would be sent beside the old one."""

    result_id: str
    before: str  # the state of the old content


@dataclass(frozen=True, slots=True)
class Rehearsal(RunSummary):
    """The summary of a dry run, with examples. `changed` counts all results that changed; of those some are in `changed_examples`."""

    examples: Sequence[Example] = ()
    refused_examples: Sequence[Refused] = ()
    changed: int = 0
    changed_examples: Sequence[Changed] = ()


class _Sample:
    """What is kept for the examples while the results go by: identities and mapped rows, never more than are shown."""

    def __init__(self, limit: int) -> None:
        self._most = min(limit or _SENT_SHOWN, _SENT_SHOWN)
        self.sent: list[Mapping[str, Any]] = []
        self.refused: dict[str, Mapping[str, Any]] = {}

    def look(self, measured: pa.Table, codes: Sequence[str | None]) -> None:
        for row, code in enumerate(codes):
            if code is None and len(self.sent) < self._most:
                self.sent.append(measured.slice(row, 1).to_pylist()[0])
            elif code is not None and code not in self.refused:
                self.refused[code] = measured.slice(row, 1).to_pylist()[0]

    @property
    def rows(self) -> Iterator[Mapping[str, Any]]:
        yield from self.sent
        yield from self.refused.values()


def rehearse(
    plan: Plan,
    request: SyncRequest,
    profile: SinkProfile,
    *,
    source: BenchmarkSource,
    mapper: Mapper,
    ledger: Ledger,
    source_id: int,
    measure: Callable[[pa.Table], pa.Table],
    limit: int,
    read_rows: int,
    began: float,
    progress: Callable[[Progress], object],
) -> Rehearsal:
    """What a run of `plan` would do. `measure` reads and maps a part of it; `limit` bounds what would be sent, 0 is no limit. Raises SourceError."""
    tally, sample = Tally(), _Sample(limit)
    position = 0
    while position < len(plan.candidates) and (not limit or tally.synced < limit):
        measured = measure(plan.candidates.slice(position, read_rows))
        position = min(position + read_rows, len(plan.candidates))
        codes = measured.column("reason_code").to_pylist()
        _count(tally, codes, measured.column("quality").to_pylist(), limit)
        sample.look(measured, codes)
        progress(Progress("mapping", position, len(plan.candidates)))
    origin = _origin(source, mapper, profile, plan, sample)
    roles = plan.layout.roles
    return Rehearsal(
        None,
        "succeeded",
        request.kind,
        True,
        began,
        ledger.now(),
        considered=tally.considered,
        synced=tally.synced,
        rejected=tally.rejected,
        skipped=sum(plan.comparison.skipped.values()),
        reasons={**tally.reasons, **plan.comparison.skipped},
        quality=tally.quality,
        held=source.holds(),
        message=_sentence(tally, len(plan.superseded)),
        request=asdict(request),
        examples=[Example(row["result_id"], _mapped(row, origin.get(_identity(row), {}), roles)) for row in sample.sent],
        refused_examples=[
            Refused(code, row["reason"], row["result_id"], _values(REASON_FIELDS[code], origin.get(_identity(row), {}), plan.layout))
            for code, row in sample.refused.items()
        ],
        changed=len(plan.superseded),
        changed_examples=_changed(ledger, source_id, heapq.nsmallest(_CHANGED_SHOWN, plan.superseded)),
    )


def _count(tally: Tally, codes: Sequence[str | None], flags: Sequence[int], limit: int) -> None:
    for code, quality in zip(codes, flags, strict=True):
        if code is not None:
            tally.refuse({code: 1})
        elif not limit or tally.synced < limit:
            tally.synced += 1
            tally.qualify(quality, 1)


def _identity(row: Mapping[str, Any]) -> tuple[str, bytes]:
    return row["result_id"], row["content_hash"]


def _origin(
    source: BenchmarkSource, mapper: Mapper, profile: SinkProfile, plan: Plan, sample: _Sample
) -> dict[tuple[str, bytes], Mapping[str, Any]]:
    """What stands in the benchmark database for the rows of the sample, by role. A row that changed since it was mapped is not in it."""
    ids = sorted({row["result_id"] for row in sample.rows})
    if not ids:
        return {}
    rows = source.read(plan.layout, pa.array(ids, pa.string()), columns=f"{plan.layout.columns}, {plan.layout.spelt}")
    hashes = mapper.measure(rows.select(list(ROLES)), profile).select(["result_id", "content_hash"]).to_pylist()
    wanted = {_identity(row) for row in sample.rows}
    by_id = {row["result_id"]: row for row in rows.to_pylist()}
    return {_identity(row): by_id[row["result_id"]] for row in hashes if _identity(row) in wanted}


def _mapped(row: Mapping[str, Any], origin: Mapping[str, Any], roles: Mapping[str, str]) -> list[dict[str, Any]]:
    shown = []
    for name in FIELD_ROLES:
        column, value = _place(name, origin, roles)
        shown.append({"field": name, "column": column, "value": value, "sent": _shown(row[name])})
    return shown


def _values(names: Sequence[str], origin: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """What stands in the columns of these fields, and of a name that is not found in another table also what refers to it."""
    values: dict[str, Any] = {}
    for name in names:
        column, value = _place(name, origin, layout.roles)
        if column is not None:
            values[column] = value
        role = FIELD_ROLES[name][0]
        if value is None and role in layout.references:
            values[layout.references[role]] = _shown(origin.get(f"spelt_{role}"))
    return values


def _place(name: str, origin: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[str | None, Any]:
    """The column that a field comes from and what stands there: the first that says something, else the first that is there."""
    there = [role for role in FIELD_ROLES[name] if role in roles]
    role = next((role for role in there if origin.get(role) is not None), there[0] if there else None)
    if role is None:
        return None, None
    value = origin.get(role)
    is_nan = isinstance(value, float) and value != value  # what a text that is no number is read as
    return roles[role], _shown(origin.get(f"spelt_{role}") or value if is_nan else value)


def _shown(value: object) -> Any:
    """The value as JSON can carry it: NaN and infinity, which JSON has not, as text."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value[:_LONGEST_VALUE] if isinstance(value, str) else value


def _changed(ledger: Ledger, source_id: int, superseded: Sequence[tuple[str, bytes]]) -> list[Changed]:
    if not superseded:
        return []
    known = ledger.comparisons.known(source_id, [result_id for result_id, _ in superseded])
    states = {_identity(row): STATE_NAMES[State(row["state"])] for row in known.to_pylist()}
    return [Changed(result_id, states[result_id, content]) for result_id, content in superseded if (result_id, content) in states]


def _sentence(tally: Tally, changed: int) -> str:
    news = f" {changed} changed since the ledger knew them." if changed else ""
    return f"Dry run: {tally.synced} would be sent, {tally.rejected} refused.{news} No result was sent or recorded."
