"""Which listed measurement is which result, told by what was sent, for a listing that carries no keys (`measurement_source: plain`). Pure functions.

Two results with the same figures cannot be told apart, and need not be: they are counted. A listed measurement is given to one result only, and to none if
another result of the ledger has its id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchbridge_plugin.model import Answer, Doubt, Settlement
from benchbridge_plugin.sinks.base import Taken

PLAIN_SOURCE = "benchmark"
_SAME = ("model_name", "hardware_platform", "batch_size", "sequence_length", "precision", "mode")
_FIGURES = ("throughput", "latency", "memory_usage")
_TOLERANCE = 1e-6  # a server may keep figures as FLOAT


def match(doubts: Sequence[Doubt], rows: Sequence[Mapping[str, Any]], taken: Taken, *, complete: bool) -> list[Settlement]:
    """For each doubt: stored, with the numeric id of a listed measurement that nobody else has; absent, if the listing is complete and none is left; or
    unknown."""
    ours = [row for row in rows if row.get("measurement_source") == PLAIN_SOURCE]
    names = {str(row[name]) for row in ours for name in ("id", "measurement_id") if row.get(name) is not None}
    known = taken(sorted(names))
    free = [row for row in ours if str(row.get("id")) not in known]
    settlements: list[Settlement] = []
    for doubt in doubts:
        if doubt.fields is None:
            settlements.append(Settlement(Answer.UNKNOWN))
            continue
        alike = [row for row in free if _is(row, doubt.fields)]
        if not alike:
            settlements.append(Settlement(Answer.ABSENT if complete else Answer.UNKNOWN))
        elif alike[0].get("id") is None or str(alike[0].get("measurement_id")) in known:
            # It may be another result's: the sink gave that one an id that names nothing for good.
            settlements.append(Settlement(Answer.UNKNOWN))
        else:
            free.remove(alike[0])
            settlements.append(Settlement(Answer.STORED, str(alike[0]["id"])))
    return settlements


def _is(row: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    return all(row.get(name) == sent[name] for name in _SAME) and all(_alike(row.get(name), sent[name]) for name in _FIGURES)


def _alike(listed: object, sent: float | None) -> bool:
    if sent is None or not isinstance(listed, (int, float)) or isinstance(listed, bool):
        return listed is None and sent is None
    return math.isclose(listed, sent, rel_tol=_TOLERANCE)
