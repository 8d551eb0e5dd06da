"""The sink over HTTP: the predictive API's wire contract, as real servers behave.

A 200 to `record-measurement` is not an acknowledgement. A row is delivered when the listing shows its key, or when its task is completed. Servers that
offer more (idempotency, bulk, lookup) are used to the full; servers that offer nothing are asked in a way that never needs guessing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa

from benchbridge_plugin.errors import SinkDenied, SinkError, SinkUnreachable
from benchbridge_plugin.model import MEASUREMENT_FIELDS, Answer, Doubt, Fate, Outcome, Receipt, Settlement, SinkProfile
from benchbridge_plugin.sinks.base import KEYED_PREFIX
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.openapi import enums_of

_logger = logging.getLogger(__name__)

_API = "/api/predictive-performance"
_BULK_ROWS = 1_000
_SINGLE_ROWS = 250
_LOOKUP_KEYS = 1_000
_FIRST_WINDOW = 1_000
_LARGEST_WINDOW = 100_000
_TROUBLE_LIMIT = 5  # failures in a row after which the server counts as down
_EXTRA_FIELDS = ("measured_at", "source_ref", "metadata")


class HttpSink:
    """One predictive API. `exchange` carries the requests, through a socket or through WSGI."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        keyed: bool = True,
        acknowledge_timeout_s: float = 30.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._keyed = keyed
        self._acknowledge_timeout_s = acknowledge_timeout_s
        self._sleep = sleep
        self._clock = clock
        self._capabilities: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self._exchange.base_url

    @property
    def batch_rows(self) -> int:
        return _BULK_ROWS if "bulk" in self._capabilities else _SINGLE_ROWS

    # -- what it is ---------------------------------------------------------------------------------------------------------------------

    def profile(self) -> SinkProfile:
        listed = self._exchange.call("GET", f"{_API}/measurements?limit=1")
        if not isinstance(listed, Reply) or listed.status in (401, 403, 404, 405) or 300 <= listed.status < 400:
            raise self._unusable(listed)
        health = self._exchange.call("GET", f"{_API}/health")
        said = health.data if isinstance(health, Reply) and health.status == 200 and isinstance(health.data, Mapping) else {}
        capabilities = said.get("capabilities")
        self._capabilities = frozenset(str(name) for name in capabilities) if isinstance(capabilities, list) else frozenset()
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
        payloads = self._payloads(batch)
        if "bulk" in self._capabilities:
            return self._send_bulk(payloads, stopping)
        return self._send_singly(payloads, stopping)

    def _payloads(self, batch: pa.Table) -> list[dict[str, Any]]:
        fields = [name for name in MEASUREMENT_FIELDS if name not in _EXTRA_FIELDS or "measured_at" in self._capabilities]
        rows: list[dict[str, Any]] = batch.select(fields).to_pylist()
        if "measured_at" in self._capabilities:
            for row in rows:
                row["measured_at"] = row["measured_at"].isoformat() if row["measured_at"] else None
                row["metadata"] = json.loads(row["metadata"]) if row["metadata"] else None
        return rows

    def _send_bulk(self, payloads: Sequence[Mapping[str, Any]], stopping: Callable[[], bool]) -> Receipt:
        ids: list[str | None] = [None] * len(payloads)
        exceptions: dict[int, Outcome] = {}
        for start in range(0, len(payloads), _BULK_ROWS):
            part = payloads[start : start + _BULK_ROWS]
            rest = range(start, len(payloads))
            if stopping():
                return Receipt(ids, {**exceptions, **_not_sent(rest)})
            answer = self._exchange.call("POST", f"{_API}/record-measurements", json_body={"measurements": part})
            results = answer.data.get("results") if isinstance(answer, Reply) and isinstance(answer.data, Mapping) else None
            if isinstance(answer, Reply) and answer.status == 200 and isinstance(results, list) and len(results) == len(part):
                for row, result in enumerate(results, start):
                    status = result.get("status") if isinstance(result, Mapping) else None
                    if status in ("created", "existing"):
                        ids[row] = _text(result.get("measurement_id"))
                    elif status == "rejected":
                        exceptions[row] = Outcome(Fate.REJECTED, "refused_by_api", _text(result.get("error")) or "refused without a reason")
                    else:
                        exceptions[row] = self._uncertain("answer_unclear", f"The answer to the row is unclear (status {status!r}).")
                continue
            if isinstance(answer, NotSent) or (isinstance(answer, Reply) and answer.status in (401, 403, 404, 405)):
                return Receipt(ids, {**exceptions, **_not_sent(rest)}, stop=self._unusable(answer))
            outcome = self._judge(answer)
            if outcome.fate is Fate.REJECTED:  # of the whole: one bad row among them must not take the others with it
                singly = self._send_singly(part, stopping)
                ids[start : start + len(part)] = singly.measurement_ids
                exceptions.update({start + row: of_row for row, of_row in singly.exceptions.items()})
                if singly.stop is None:
                    continue
                return Receipt(ids, {**exceptions, **_not_sent(range(start + len(part), len(payloads)))}, stop=singly.stop)
            exceptions.update(dict.fromkeys(range(start, start + len(part)), outcome))  # a server in trouble gets no further thousand rows
            return Receipt(ids, {**exceptions, **_not_sent(range(start + len(part), len(payloads)))}, stop=self._unusable(answer))
        return Receipt(ids, exceptions)

    def _send_singly(self, payloads: Sequence[Mapping[str, Any]], stopping: Callable[[], bool]) -> Receipt:
        exceptions: dict[int, Outcome] = {}
        tasks: dict[int, str] = {}
        stop: SinkError | None = None
        trouble = 0
        for row, payload in enumerate(payloads):
            if stopping():
                exceptions.update(_not_sent(range(row, len(payloads))))
                break
            key = str(payload["idempotency_key"])
            body = {name: value for name, value in payload.items() if name != "idempotency_key"}
            headers = {"Idempotency-Key": key} if "idempotency" in self._capabilities else {}
            answer = self._exchange.call("POST", f"{_API}/record-measurement", json_body=body, headers=headers)
            task = answer.data.get("task_id") if isinstance(answer, Reply) and isinstance(answer.data, Mapping) else None
            if isinstance(answer, Reply) and answer.status in (200, 201, 202) and isinstance(task, str) and task:
                tasks[row] = task
                trouble = 0
                continue
            if isinstance(answer, NotSent) or (
                isinstance(answer, Reply) and (answer.status in (401, 403, 404, 405) or 300 <= answer.status < 400)
            ):
                stop = self._unusable(answer)
                exceptions.update(_not_sent(range(row, len(payloads))))
                break
            exceptions[row] = self._judge(answer)
            trouble = 0 if exceptions[row].fate is Fate.REJECTED else trouble + 1
            if trouble >= _TROUBLE_LIMIT:
                stop = self._unusable(answer)
                exceptions.update(_not_sent(range(row + 1, len(payloads))))
                break
        ids, unacknowledged = self._acknowledge(payloads, tasks)
        return Receipt([ids.get(row) for row in range(len(payloads))], {**exceptions, **unacknowledged}, stop=stop)

    def _acknowledge(
        self, payloads: Sequence[Mapping[str, Any]], tasks: Mapping[int, str]
    ) -> tuple[dict[int, str | None], dict[int, Outcome]]:
        """Find out what became of the tasks: by one listing where rows carry their key, and one by one where it does not show them."""
        ids: dict[int, str | None] = {}
        if self._keyed and len(tasks) > 1:
            shown = self._shown(limit=len(tasks) + 50)
            for row in tasks:
                found = shown.get(str(payloads[row]["idempotency_key"]))
                if found:
                    ids[row] = found[0]
        outcomes: dict[int, Outcome] = {}
        open_rows = [row for row in tasks if row not in ids]
        deadline = self._clock() + self._acknowledge_timeout_s
        pause = 0.01
        while open_rows:
            pending: list[int] = []
            for row in open_rows:
                answer = self._exchange.call("GET", f"{_API}/task/{tasks[row]}")
                status = (
                    answer.data.get("status")
                    if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, Mapping)
                    else None
                )
                if status == "completed":
                    result = answer.data.get("result") if isinstance(answer, Reply) else None
                    ids[row] = _text(result.get("measurement_id")) if isinstance(result, Mapping) else None
                elif status == "failed":
                    said = _text(answer.data.get("message")) if isinstance(answer, Reply) else None
                    outcomes[row] = Outcome(
                        Fate.FAILED, "task_failed", f"The predictive API failed to record it: {said or 'no message'}"[:500]
                    )
                elif status in ("pending", "running"):
                    pending.append(row)
                elif isinstance(answer, Reply) and answer.status == 404:
                    outcomes[row] = self._uncertain("task_forgotten", "The predictive API no longer knows the task of this result.")
                else:
                    why = answer.sentence if isinstance(answer, Reply) else answer.why
                    outcomes[row] = self._uncertain("task_unknown", f"The task could not be asked for: {why}")
            if pending and self._clock() >= deadline:
                late = self._uncertain("task_pending", f"The task was still pending after {self._acknowledge_timeout_s:g} s.", resend=False)
                outcomes.update(dict.fromkeys(pending, late))
                break
            if pending:
                self._sleep(pause)
                pause = min(pause * 2, 1.0)
            open_rows = pending
        return ids, outcomes

    # -- settling and listing -----------------------------------------------------------------------------------------------------------

    def settle(self, doubts: Sequence[Doubt]) -> list[Settlement]:
        if "lookup" in self._capabilities:
            return self._settle_by_lookup(doubts)
        if not self._keyed:
            # Without a key in the listing, only idempotency makes a second try harmless.
            answer = Answer.ABSENT if "idempotency" in self._capabilities else Answer.UNKNOWN
            return [Settlement(answer)] * len(doubts)
        found: dict[str, Settlement] = {}
        for model in sorted({doubt.model_name for doubt in doubts}):
            mine = [doubt for doubt in doubts if doubt.model_name == model]
            shown, complete = self._window(mine, model)
            for doubt in mine:
                ids = shown.get(str(doubt.key))
                missing = Settlement(Answer.ABSENT if complete else Answer.UNKNOWN)
                found[str(doubt.key)] = Settlement(Answer.STORED, ids[0]) if ids else missing
        return [found[str(doubt.key)] for doubt in doubts]

    def _settle_by_lookup(self, doubts: Sequence[Doubt]) -> list[Settlement]:
        settlements: list[Settlement] = []
        for start in range(0, len(doubts), _LOOKUP_KEYS):
            keys = [str(doubt.key) for doubt in doubts[start : start + _LOOKUP_KEYS]]
            answer = self._exchange.call("POST", f"{_API}/measurements/lookup", json_body={"idempotency_keys": keys})
            found = (
                answer.data.get("found")
                if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, Mapping)
                else None
            )
            if not isinstance(found, Mapping):
                raise self._unusable(answer)
            settlements += [Settlement(Answer.STORED, _text(found[key])) if key in found else Settlement(Answer.ABSENT) for key in keys]
        return settlements

    def _window(self, doubts: Sequence[Doubt], model: str) -> tuple[dict[str, list[str]], bool]:
        """The model's measurements by key, in a window that grows until it shows all doubts or everything there is."""
        limit = _FIRST_WINDOW
        while True:
            rows = self._list(limit, model_name=model)
            shown = _by_key(rows)
            complete = len(rows) < limit
            if complete or all(str(doubt.key) in shown for doubt in doubts) or limit >= _LARGEST_WINDOW:
                return shown, complete
            limit = min(limit * 4, _LARGEST_WINDOW)

    def listing(self) -> Iterator[tuple[str, str]]:
        limit = _FIRST_WINDOW
        while True:
            rows = self._list(limit)
            if len(rows) < limit:
                break
            if limit >= _LARGEST_WINDOW:
                raise SinkUnreachable(
                    f"{self.name} holds more than {_LARGEST_WINDOW} measurements, which its listing cannot show at once.",
                    guidance="Verify against a server with the lookup capability, or model by model.",
                )
            limit = min(limit * 4, _LARGEST_WINDOW)
        for key, ids in _by_key(rows).items():
            for measurement_id in ids:
                yield key, measurement_id

    def close(self) -> None:
        self._exchange.close()

    def _list(self, limit: int, **filters: str) -> list[Mapping[str, Any]]:
        answer = self._exchange.call("GET", f"{_API}/measurements?{urlencode({**filters, 'limit': limit})}")
        rows = (
            answer.data.get("measurements")
            if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, Mapping)
            else None
        )
        if not isinstance(rows, list):
            raise self._unusable(answer)
        return [row for row in rows if isinstance(row, Mapping)]

    def _shown(self, limit: int) -> dict[str, list[str]]:
        """The newest measurements by key; nothing when the listing does not work, since every task can still be asked for by itself."""
        try:
            return _by_key(self._list(limit))
        except SinkError as error:
            _logger.warning("the listing of %s does not work, tasks are asked one by one: %s", self.name, error.message)
            return {}

    # -- judging ------------------------------------------------------------------------------------------------------------------------

    def _judge(self, answer: Reply | NoAnswer | NotSent) -> Outcome:
        """What an answer that is neither a success nor a reason to stop means for the row it is about."""
        if isinstance(answer, NotSent):
            return Outcome(Fate.NOT_SENT, "not_sent", answer.why)
        if isinstance(answer, NoAnswer):
            return self._uncertain("no_answer", f"The predictive API gave no whole answer: {answer.why}.")
        if answer.status in (408, 425, 429):
            said = f"The predictive API asks to try later (HTTP {answer.status})."
            return Outcome(Fate.FAILED, "try_later", said, answer.retry_after_s)
        if 400 <= answer.status < 500:
            return Outcome(Fate.REJECTED, "refused_by_api", f"The predictive API refuses it: {answer.sentence}"[:500])
        what = f"HTTP {answer.status}" if answer.status >= 500 else f"HTTP {answer.status} without a task id"
        return self._uncertain("api_failed", f"The predictive API failed: {what}.", answer.retry_after_s)

    def _uncertain(self, code: str, reason: str, retry_after_s: float | None = None, *, resend: bool = True) -> Outcome:
        """The row may have been stored: to be asked for, unless its key makes sending it again harmless."""
        safe = resend and "idempotency" in self._capabilities
        return Outcome(Fate.FAILED if safe else Fate.IN_DOUBT, code, reason, retry_after_s)

    def _unusable(self, answer: Reply | NoAnswer | NotSent) -> SinkError:
        if isinstance(answer, (NotSent, NoAnswer)):
            return SinkUnreachable(
                f"The predictive API at {self.name} does not answer: {answer.why}.",
                guidance="Check predictive_api_url (--api-url) and that the server runs. Nothing is lost: waiting results are sent later.",
                url=self.name,
            )
        if answer.status in (401, 403):
            return SinkDenied(
                f"The predictive API at {self.name} refuses the API key (HTTP {answer.status}).",
                guidance="Set api_key (--api-key, BENCHBRIDGE_API_KEY) to a key that it takes. No result was touched.",
                url=self.name,
            )
        if 300 <= answer.status < 400:
            return SinkUnreachable(
                f"The predictive API at {self.name} redirects to {answer.location}; redirects are not followed.",
                guidance="Set predictive_api_url to the address it redirects to.",
                url=self.name,
            )
        if answer.status in (404, 405):
            return SinkUnreachable(
                f"{self.name} answers, but has no predictive API under {_API} (HTTP {answer.status}).",
                guidance="Check predictive_api_url (--api-url).",
                url=self.name,
            )
        return SinkUnreachable(
            f"The predictive API at {self.name} is in trouble: {answer.sentence} (HTTP {answer.status}).",
            guidance="Nothing is lost: what was not acknowledged is asked for or sent again later.",
            url=self.name,
        )


def _by_key(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """key -> the unique ids of the measurements that carry it. `id` is unique where measurement_id may repeat."""
    found: dict[str, list[str]] = {}
    for row in rows:
        said = row.get("measurement_source")
        if isinstance(said, str) and said.startswith(KEYED_PREFIX):
            found.setdefault(said.removeprefix(KEYED_PREFIX), []).append(str(row.get("id", row.get("measurement_id"))))
    return found


def _not_sent(rows: range) -> dict[int, Outcome]:
    return dict.fromkeys(rows, Outcome(Fate.NOT_SENT, "not_sent", "It was not sent."))


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:500]
