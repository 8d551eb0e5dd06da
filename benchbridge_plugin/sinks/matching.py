"""Which listed measurement is which result. By the key that a measurement carries, or else, where it was sent without one (`measurement_source: plain`),
by all that was sent. Pure functions.

Both are looked for, whatever is configured now: it may have been configured otherwise when the result was sent. Two results with the same figures
cannot be told apart, and need not be: they are counted. A measurement is given to one result only, and to none if another result of the ledger has
its id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchbridge_plugin.model import Answer, Doubt, Settlement
from benchbridge_plugin.sinks.base import KEYED_PREFIX, Taken

PLAIN_SOURCE = "benchmark"
_SAME = ("model_name", "hardware_platform", "batch_size", "sequence_length", "precision", "mode")
_FIGURES = ("throughput", "latency", "memory_usage")
_TOLERANCE = 1e-6  # a server may keep figures as FLOAT

Row = Mapping[str, Any]


def match(doubts: Sequence[Doubt], rows: Sequence[Row], taken: Taken, *, complete: bool) -> list[Settlement]:
    """For each doubt: stored, with the id of the measurement; absent, if the listing is complete and shows none that could be it; or unknown."""
    by_key: dict[str, str | None] = {}
    for row in rows:
        source = row.get("measurement_source")
        if isinstance(source, str) and source.startswith(KEYED_PREFIX):
            by_key.setdefault(source.removeprefix(KEYED_PREFIX), _id(row))
    plain = _Plain([row for row in rows if row.get("measurement_source") == PLAIN_SOURCE], taken)
    settlements: list[Settlement] = []
    for doubt in doubts:
        key = str(doubt.key)
        if key in by_key:
            settlements.append(Settlement(Answer.STORED, by_key[key]))
        else:
            settlements.append(plain.settle(doubt) or Settlement(Answer.ABSENT if complete else Answer.UNKNOWN))
    return settlements


class _Plain:
    """The listed measurements without a key that no delivered result has."""

    def __init__(self, rows: Sequence[Row], taken: Taken) -> None:
        names = {str(row[name]) for row in rows for name in ("id", "measurement_id") if row.get(name) is not None}
        self._known = taken(sorted(names)) if names else frozenset()
        self._free: dict[tuple[object, ...], list[Row]] = {}
        for row in rows:
            if str(row.get("id")) not in self._known:
                self._free.setdefault(tuple(row.get(name) for name in _SAME), []).append(row)

    def settle(self, doubt: Doubt) -> Settlement | None:
        """None: none of them is it."""
        if doubt.fields is None:  # nobody knows any more what was sent
            return Settlement(Answer.UNKNOWN) if self._free else None
        sent = doubt.fields
        alike = self._free.get(tuple(sent[name] for name in _SAME), [])
        found = next((row for row in alike if all(_alike(row.get(name), sent[name]) for name in _FIGURES)), None)
        if found is None:
            return None
        if found.get("id") is None or str(found.get("measurement_id")) in self._known:
            # It may be another result's, whose id in the ledger names nothing for good.
            return Settlement(Answer.UNKNOWN)
        alike.remove(found)
        return Settlement(Answer.STORED, _id(found))


def _id(row: Row) -> str | None:
    """What names a listed measurement for good: measurement_id may repeat."""
    return next((str(row[name])[:500] for name in ("id", "measurement_id") if row.get(name) is not None), None)


def _alike(listed: object, sent: float | None) -> bool:
    if sent is None or not isinstance(listed, (int, float)) or isinstance(listed, bool):
        return listed is None and sent is None
    return math.isclose(listed, sent, rel_tol=_TOLERANCE)
