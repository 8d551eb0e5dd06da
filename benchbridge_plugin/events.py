"""What happened, told to the outside: to a webhook (webhook.py) and to plugins (hookspecs.py). Values only.

docs/events.md describes every type and says how versions change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from benchbridge_plugin.as_json import accounting_as_json, iso, run_as_json
from benchbridge_plugin.model import Accounting

RUN_FINISHED = "run.finished"
NEW_REFUSALS = "refusals.new"
REGRESSION_FOUND = "regression.found"
ACCURACY_LOST = "accuracy.lost"
TYPES = (RUN_FINISHED, NEW_REFUSALS, REGRESSION_FOUND, ACCURACY_LOST)
VERSION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """`id` stays the same however often the event is delivered; receivers drop doubles by it."""

    id: str
    type: str
    version: int
    occurred_at: str  # ISO 8601, UTC
    source: str
    data: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), separators=(",", ":"))


def run_finished(source: str, run: Mapping[str, Any], accounting: Accounting) -> Event:
    """`run`: the run as the ledger has it, ended."""
    return _event(RUN_FINISHED, run["finished_at"], source, {"run": run_as_json(run), "accounting": accounting_as_json(accounting)})


def new_refusals(source: str, run_id: int, at: float, refusals: Sequence[Mapping[str, Any]]) -> Event:
    """`refusals`: `{"code", "count", "example"}` of each reason code that the source never had before."""
    return _event(NEW_REFUSALS, at, source, {"run_id": run_id, "refusals": list(refusals)})


def regression_found(source: str, at: float, regression: Mapping[str, Any]) -> Event:
    """`regression`: as the routes show it."""
    return _event(REGRESSION_FOUND, at, source, {"regression": dict(regression)})


def accuracy_lost(source: str, run_id: int, at: float, losses: Sequence[Mapping[str, Any]]) -> Event:
    """`losses`: as `GET /accuracy` has them."""
    return _event(ACCURACY_LOST, at, source, {"run_id": run_id, "losses": [dict(loss) for loss in losses]})


def _event(kind: str, at: float, source: str, data: Mapping[str, Any]) -> Event:
    occurred_at = iso(at)
    assert occurred_at is not None
    return Event(f"evt_{uuid4().hex}", kind, VERSION, occurred_at, source, data)
