"""The sink over HTTP: the predictive API's wire contract, as real servers behave.

A 200 to `record-measurement` is not an acknowledgement. A row is delivered when the listing shows its key, or when its task is completed. Servers that
offer more (idempotency, bulk, lookup) are used to the full; servers that offer nothing are asked in a way that never needs guessing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import pyarrow as pa

from benchbridge_plugin.accuracy import FORECAST_ANSWER
from benchbridge_plugin.errors import SinkError
from benchbridge_plugin.model import FORECAST_FIELDS, Answer, Doubt, Outcome, Receipt, Settlement, SinkProfile
from benchbridge_plugin.sinks import bulk, singly
from benchbridge_plugin.sinks.base import Taken, nothing_taken
from benchbridge_plugin.sinks.bulk import Bulk
from benchbridge_plugin.sinks.exchange import Exchange, Reply
from benchbridge_plugin.sinks.listing import API, Listing, rows_of, text
from benchbridge_plugin.sinks.matching import match
from benchbridge_plugin.sinks.openapi import enums_of
from benchbridge_plugin.sinks.payload import Payloads
from benchbridge_plugin.sinks.singly import CONNECTIONS, Singly
from benchbridge_plugin.sinks.tasks import Tasks
from benchbridge_plugin.sinks.verdicts import unusable
from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL
from benchbridge_plugin.urls import redact_url

_LOOKUP_KEYS = 1_000


class HttpSink:
    """One predictive API. `exchange` carries the requests, through a socket or through WSGI."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        keyed: bool = True,
        acknowledge_timeout_s: float = 30.0,
        connections: int = CONNECTIONS,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._keyed = keyed
        self._listing = Listing(exchange, lambda: self.name)
        self._tasks = Tasks(exchange, self._listing, keyed=keyed, acknowledge_timeout_s=acknowledge_timeout_s, sleep=sleep, clock=clock)
        self._singly = Singly(exchange, self._listing, self._tasks, lambda: self.name, connections=connections, clock=clock)
        self._payloads = Payloads()
        self._bulk = Bulk(exchange, self._payloads, self._singly, lambda: self.name, most=connections)
        self._know(frozenset())

    def _know(self, capabilities: frozenset[str]) -> None:
        """Go by what the server can do, from now on."""
        self._capabilities = capabilities
        self._listing.by_number = not self._harmless_again
        self._tasks.harmless_again = self._bulk.harmless_again = self._harmless_again
        self._bulk.takes_gzip = "gzip" in capabilities

    @property
    def name(self) -> str:
        url = self._exchange.base_url
        return "this server's own routes" if url == IN_PROCESS_URL else redact_url(url)

    @property
    def _harmless_again(self) -> bool:
        """Whether sending a row a second time cannot double it."""
        return "idempotency" in self._capabilities

    @property
    def batch_rows(self) -> int:
        return bulk.BATCH_ROWS if "bulk" in self._capabilities else singly.BATCH_ROWS

    @property
    def compares_fields(self) -> bool:
        return not self._capabilities & {"lookup", "idempotency"}

    # -- what it is ---------------------------------------------------------------------------------------------------------------------

    def profile(self) -> SinkProfile:
        self._singly.renew()
        listed = self._listing.look()
        # A 500 may come from one NaN that somebody posted, and then everything but the listing works.
        if not isinstance(listed, Reply) or listed.status not in (200, 500) or (listed.status == 200 and rows_of(listed) is None):
            raise unusable(self.name, listed)
        health = self._exchange.call("GET", f"{API}/health")
        said = health.data if isinstance(health, Reply) and health.status == 200 and isinstance(health.data, Mapping) else {}
        capabilities = said.get("capabilities")
        self._know(frozenset(str(name) for name in capabilities) if isinstance(capabilities, list) else frozenset())
        described = self._exchange.call("GET", "/openapi.json")
        document = described.data if isinstance(described, Reply) and described.status == 200 else None
        enums = enums_of(document, "MeasurementRequest")
        profile = SinkProfile(capabilities=self._capabilities)
        return SinkProfile(
            hardware=enums.get("hardware_platform", profile.hardware),
            precisions=enums.get("precision", profile.precisions),
            modes=enums.get("mode", profile.modes),
            capabilities=self._capabilities,
        )

    # -- delivering ---------------------------------------------------------------------------------------------------------------------

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        with_extras = "measured_at" in self._capabilities
        if "bulk" in self._capabilities:
            return self._bulk.send(batch, stopping, with_extras=with_extras)
        return self._singly.send(self._payloads.rows(batch, with_extras=with_extras), stopping)

    @property
    def is_near(self) -> bool:
        return self._exchange.base_url == IN_PROCESS_URL

    def forecast(self, batch: pa.Table) -> pa.Table | None:
        if "predict_bulk" not in self._capabilities:
            return None
        predictions: list[Any] = []
        for start in range(0, len(batch), bulk.PART_ROWS):
            part = batch.select(list(FORECAST_FIELDS)).slice(start, bulk.PART_ROWS)
            asked = self._payloads.rows(part, with_extras="measured_at" in self._capabilities)
            answer = self._exchange.call("POST", f"{API}/predict-measurements", json_body={"measurements": asked})
            if not isinstance(answer, Reply) or answer.status != 200 or not isinstance(answer.data, Mapping):
                raise unusable(self.name, answer)
            said = answer.data.get("predictions")
            if not isinstance(said, list) or len(said) != len(asked):
                raise ValueError(f"it answered {len(said) if isinstance(said, list) else 'no'} predictions for {len(asked)} rows")
            predictions += [row if isinstance(row, Mapping) else {} for row in said]
        return pa.table({name: [row.get(name) for row in predictions] for name in FORECAST_ANSWER})

    # -- settling and listing -----------------------------------------------------------------------------------------------------------

    def settle(self, doubts: Sequence[Doubt], *, taken: Taken = nothing_taken) -> list[Settlement]:
        if "lookup" in self._capabilities:
            settlements = self._settle_by_lookup(doubts)
        elif self._harmless_again and not self._keyed:
            # Without a key in the listing, idempotency makes a second try harmless.
            settlements = [Settlement(Answer.ABSENT)] * len(doubts)
        else:
            settlements = self._settle_by_listing(doubts, taken)
        return [self._unless_open(doubt, said) for doubt, said in zip(doubts, settlements, strict=True)]

    def _settle_by_listing(self, doubts: Sequence[Doubt], taken: Taken) -> list[Settlement]:
        """Model by model, in a window that grows until it shows all doubts or everything there is."""
        found: dict[UUID, Settlement] = {}
        for model in sorted({doubt.model_name for doubt in doubts}):
            mine = [doubt for doubt in doubts if doubt.model_name == model]
            for rows, complete in self._listing.windows(model):
                settlements = match(mine, rows, taken, complete=complete)
                if complete or all(settlement.answer is Answer.STORED for settlement in settlements):
                    break
            found.update(zip((doubt.key for doubt in mine), settlements, strict=True))
        return [found[doubt.key] for doubt in doubts]

    def _unless_open(self, doubt: Doubt, settlement: Settlement) -> Settlement:
        """The settlement, unless the row is absent only because its task is still on its way to store it."""
        if settlement.answer is not Answer.ABSENT or doubt.task_id is None:
            return settlement
        end = self._tasks.end(doubt.task_id)
        if end is None or (isinstance(end, Outcome) and end.code == "task_unknown"):
            return Settlement(Answer.UNKNOWN)
        return settlement if isinstance(end, Outcome) else Settlement(Answer.STORED, self._listing.id_of(end))

    def _settle_by_lookup(self, doubts: Sequence[Doubt]) -> list[Settlement]:
        settlements: list[Settlement] = []
        for start in range(0, len(doubts), _LOOKUP_KEYS):
            keys = [str(doubt.key) for doubt in doubts[start : start + _LOOKUP_KEYS]]
            answer = self._exchange.call("POST", f"{API}/measurements/lookup", json_body={"idempotency_keys": keys})
            found = (
                answer.data.get("found")
                if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, Mapping)
                else None
            )
            if not isinstance(found, Mapping):
                raise unusable(self.name, answer)
            settlements += [Settlement(Answer.STORED, text(found[key])) if key in found else Settlement(Answer.ABSENT) for key in keys]
        return settlements

    def listing(self) -> Iterator[tuple[str, str]]:
        if not self._keyed:
            raise SinkError(
                f"The measurements at {self.name} do not carry their keys (measurement_source is plain).",
                guidance="Only a server with the lookup capability can be verified then.",
            )
        for key, ids in self._listing.everything().items():
            for measurement_id in ids:
                yield key, measurement_id

    def close(self) -> None:
        self._exchange.close()
        self._payloads.close()
