"""The sink over HTTP: the predictive API's wire contract, as real servers behave.

A 200 to `record-measurement` is not an acknowledgement. A row is delivered when the listing shows its key, or when its task is completed. Servers that
offer more (idempotency, bulk, lookup) are used to the full; servers that offer nothing are asked in a way that never needs guessing.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pyarrow as pa

from benchbridge_plugin.config import redact_url
from benchbridge_plugin.errors import SinkError, SinkUnreachable
from benchbridge_plugin.model import MEASUREMENT_FIELDS, Answer, Doubt, Fate, Outcome, Receipt, Settlement, SinkProfile
from benchbridge_plugin.sinks.base import KEYED_PREFIX, Taken, nothing_taken
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.matching import match
from benchbridge_plugin.sinks.openapi import enums_of
from benchbridge_plugin.sinks.verdicts import judge, never_taken, uncertain, unusable
from benchbridge_plugin.sinks.wsgi import IN_PROCESS_URL

_logger = logging.getLogger(__name__)

_API = "/api/predictive-performance"
_BULK_ROWS = 1_000
_SINGLE_ROWS = 250
_LOOKUP_KEYS = 1_000
_FIRST_WINDOW = 1_000
_LARGEST_WINDOW = 100_000
_TROUBLE_LIMIT = 5  # failures in a row after which the server counts as down
_PROBE_S = 2.0
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
        url = self._exchange.base_url
        return "this server's own routes" if url == IN_PROCESS_URL else redact_url(url)

    @property
    def _harmless_again(self) -> bool:
        """Whether sending a row a second time cannot double it."""
        return "idempotency" in self._capabilities

    @property
    def batch_rows(self) -> int:
        return _BULK_ROWS if "bulk" in self._capabilities else _SINGLE_ROWS

    @property
    def compares_fields(self) -> bool:
        return not self._capabilities & {"lookup", "idempotency"}

    # -- what it is ---------------------------------------------------------------------------------------------------------------------

    def profile(self) -> SinkProfile:
        listed = self._listed(1)
        # A 500 may come from one NaN that somebody posted, and then everything but the listing works.
        if not isinstance(listed, Reply) or listed.status not in (200, 500) or (listed.status == 200 and _rows_of(listed) is None):
            raise unusable(self.name, listed)
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
                        exceptions[row] = uncertain(
                            self._harmless_again, "answer_unclear", f"The answer to the row is unclear (status {status!r})."
                        )
                continue
            if never_taken(answer):
                return Receipt(ids, {**exceptions, **_not_sent(rest)}, stop=unusable(self.name, answer))
            outcome = judge(answer, self._harmless_again)
            if outcome.fate is Fate.REJECTED:  # of the whole: one bad row among them must not take the others with it
                singly = self._send_singly(part, stopping)
                ids[start : start + len(part)] = singly.measurement_ids
                exceptions.update({start + row: of_row for row, of_row in singly.exceptions.items()})
                if singly.stop is None:
                    continue
                return Receipt(ids, {**exceptions, **_not_sent(range(start + len(part), len(payloads)))}, stop=singly.stop)
            exceptions.update(dict.fromkeys(range(start, start + len(part)), outcome))  # a server in trouble gets no further thousand rows
            return Receipt(ids, {**exceptions, **_not_sent(range(start + len(part), len(payloads)))}, stop=unusable(self.name, answer))
        return Receipt(ids, exceptions)

    def _send_singly(self, payloads: Sequence[Mapping[str, Any]], stopping: Callable[[], bool]) -> Receipt:
        exceptions: dict[int, Outcome] = {}
        tasks: dict[int, str] = {}
        stop: SinkError | None = None
        is_up = True
        trouble = 0
        for row, payload in enumerate(payloads):
            if stopping():
                exceptions.update(_not_sent(range(row, len(payloads))))
                break
            key = str(payload["idempotency_key"])
            body = {name: value for name, value in payload.items() if name != "idempotency_key"}
            # Always with its key: a server that understands keys may just not have said so when it was asked.
            answer = self._exchange.call("POST", f"{_API}/record-measurement", json_body=body, headers={"Idempotency-Key": key})
            task = answer.data.get("task_id") if isinstance(answer, Reply) and isinstance(answer.data, Mapping) else None
            if isinstance(answer, Reply) and answer.status in (200, 201, 202) and isinstance(task, str) and task:
                tasks[row] = task
                trouble = 0
                continue
            if never_taken(answer):
                stop = unusable(self.name, answer)
                exceptions.update(_not_sent(range(row, len(payloads))))
                break
            exceptions[row] = judge(answer, self._harmless_again)
            trouble = 0 if exceptions[row].fate is Fate.REJECTED else trouble + 1
            is_up = not isinstance(answer, NoAnswer) or self._answers()
            if trouble >= _TROUBLE_LIMIT or not is_up:
                stop = unusable(self.name, answer)
                exceptions.update(_not_sent(range(row + 1, len(payloads))))
                break
        ids, unacknowledged = self._acknowledge(payloads, tasks, stopping, is_up=is_up)
        return Receipt([ids.get(row) for row in range(len(payloads))], {**exceptions, **unacknowledged}, stop=stop)

    def _acknowledge(
        self, payloads: Sequence[Mapping[str, Any]], tasks: Mapping[int, str], stopping: Callable[[], bool], *, is_up: bool
    ) -> tuple[dict[int, str | None], dict[int, Outcome]]:
        """Find out what became of the tasks: by one listing where rows carry their key, and one by one where it does not show them.

        Gives up on what is left, which is in doubt then, when no task ended for `acknowledge_timeout_s`, when the server does not answer, or when
        `stopping` says so (which also keeps the lease alive: as long as it is ours, nobody else takes our rows for lost).
        """
        ids: dict[int, str | None] = {}
        if is_up and self._keyed and len(tasks) > 1:
            shown = self._shown(limit=len(tasks) + 50)
            for row in tasks:
                found = shown.get(str(payloads[row]["idempotency_key"]))
                if found:
                    ids[row] = found[0]
        outcomes: dict[int, Outcome] = {}
        waiting = deque(row for row in tasks if row not in ids)
        asked: set[int] = set()
        deadline = self._clock() + self._acknowledge_timeout_s
        pause = 0.01
        trouble = 0 if is_up else _TROUBLE_LIMIT
        why = f"The task was still pending after {self._acknowledge_timeout_s:g} s."
        while waiting:
            if stopping():
                why = "The sync stopped before its task had ended."
                break
            if trouble >= _TROUBLE_LIMIT:
                why = "The predictive API stopped answering before its task had ended."
                break
            row = waiting.popleft()
            answer = self._exchange.call("GET", f"{_API}/task/{quote(tasks[row], safe='')}")
            end = self._end_of_task(answer)
            trouble = 0 if isinstance(answer, Reply) and answer.status < 500 else trouble + 1
            if isinstance(answer, NoAnswer) and not self._answers():
                trouble = _TROUBLE_LIMIT
            if end is None:
                waiting.append(row)
                if self._clock() >= deadline:
                    break
                if row in asked:  # a whole round without an end: give the server time
                    self._sleep(pause)
                    pause = min(pause * 2, 1.0)
                    asked.clear()
                asked.add(row)
                continue
            if isinstance(end, Outcome):
                outcomes[row] = end
            else:
                ids[row] = self._id_of(end)
            deadline = self._clock() + self._acknowledge_timeout_s
        for row in waiting:
            outcomes[row] = Outcome(Fate.IN_DOUBT, "task_pending", why, task_id=tasks[row])
        return ids, outcomes

    def _answers(self) -> bool:
        """Whether the server answers at all, asked briefly: so that a server that fell silent is not waited for row by row."""
        return isinstance(self._listed(1, timeout_s=_PROBE_S), Reply)

    def _end_of_task(self, answer: Reply | NoAnswer | NotSent) -> Mapping[str, Any] | Outcome | None:
        """The stored measurement (as far as the answer shows it), or why there is none; None for a task that has not ended."""
        data = answer.data if isinstance(answer, Reply) and isinstance(answer.data, Mapping) else {}
        status = data.get("status") if isinstance(answer, Reply) and answer.status == 200 else None
        if status in ("pending", "running"):
            return None
        if status == "completed":
            result = data.get("result")
            if not isinstance(result, Mapping):
                return {}
            measurement = result.get("measurement")
            return {**(measurement if isinstance(measurement, Mapping) else {}), "measurement_id": result.get("measurement_id")}
        if status == "failed":
            said = _text(data.get("message")) or "no message"
            return Outcome(Fate.FAILED, "task_failed", f"The predictive API failed to record it: {said}"[:500])
        if isinstance(answer, Reply) and answer.status == 404:
            return uncertain(self._harmless_again, "task_forgotten", "The predictive API no longer knows the task of this result.")
        why = answer.sentence if isinstance(answer, Reply) else answer.why
        return uncertain(self._harmless_again, "task_unknown", f"The task could not be asked for: {why}"[:500])

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
            for rows, complete in self._windows(model):
                settlements = match(mine, rows, taken, complete=complete)
                if complete or all(settlement.answer is Answer.STORED for settlement in settlements):
                    break
            found.update(zip((doubt.key for doubt in mine), settlements, strict=True))
        return [found[doubt.key] for doubt in doubts]

    def _unless_open(self, doubt: Doubt, settlement: Settlement) -> Settlement:
        """The settlement, unless the row is absent only because its task is still on its way to store it."""
        if settlement.answer is not Answer.ABSENT or doubt.task_id is None:
            return settlement
        end = self._end_of_task(self._exchange.call("GET", f"{_API}/task/{quote(doubt.task_id, safe='')}"))
        if end is None or (isinstance(end, Outcome) and end.code == "task_unknown"):
            return Settlement(Answer.UNKNOWN)
        return settlement if isinstance(end, Outcome) else Settlement(Answer.STORED, self._id_of(end))

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
                raise unusable(self.name, answer)
            settlements += [Settlement(Answer.STORED, _text(found[key])) if key in found else Settlement(Answer.ABSENT) for key in keys]
        return settlements

    def _windows(self, model: str) -> Iterator[tuple[list[Mapping[str, Any]], bool]]:
        """The model's newest measurements, in windows that grow up to all there are, each with whether it shows everything. At least one.

        Somebody's NaN breaks every window that it is in. The window then shrinks until it ends before it, and shows what is newer.
        """
        limit = _FIRST_WINDOW
        full = -1  # rows in the window before, which was full
        while True:
            answer = self._listed(limit, model)
            rows = _rows_of(answer)
            if rows is None:
                if not isinstance(answer, Reply) or answer.status in (401, 403):
                    raise unusable(self.name, answer)
                _logger.warning("the listing of %s for %s does not work: %s", self.name, model, answer.sentence)
                if full < 0:
                    yield self._newest_that_works(model, limit) if answer.status == 500 else [], False
                return
            # A larger window that shows no more than the full one before it hides something: the server cuts windows short without saying so.
            complete = len(rows) < limit and len(rows) != full
            full = len(rows)
            yield rows, complete
            if complete or limit >= _LARGEST_WINDOW:
                return
            limit = min(limit * 4, _LARGEST_WINDOW)

    def _newest_that_works(self, model: str, broken: int) -> list[Mapping[str, Any]]:
        limit = broken // 2
        while limit:
            rows = _rows_of(self._listed(limit, model))
            if rows is not None:
                return rows
            limit //= 2
        return []

    def listing(self) -> Iterator[tuple[str, str]]:
        if not self._keyed:
            raise SinkError(
                f"The measurements at {self.name} do not carry their keys (measurement_source is plain).",
                guidance="Only a server with the lookup capability can be verified then.",
            )
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
        for key, ids in self._by_key(rows).items():
            for measurement_id in ids:
                yield key, measurement_id

    def close(self) -> None:
        self._exchange.close()

    def _listed(self, limit: int, model: str | None = None, *, timeout_s: float | None = None) -> Reply | NoAnswer | NotSent:
        """The newest measurements, of all models or of one."""
        query: dict[str, object] = {"limit": limit} if model is None else {"model_name": model, "limit": limit}
        return self._exchange.call("GET", f"{_API}/measurements?{urlencode(query)}", timeout_s=timeout_s)

    def _list(self, limit: int) -> list[Mapping[str, Any]]:
        answer = self._listed(limit)
        rows = _rows_of(answer)
        if rows is None:
            raise unusable(self.name, answer)
        return rows

    def _shown(self, limit: int) -> dict[str, list[str]]:
        """The newest measurements by key; nothing when the listing does not work, since every task can still be asked for by itself."""
        try:
            return self._by_key(self._list(limit))
        except SinkError as error:
            _logger.warning("the listing of %s does not work, tasks are asked one by one: %s", self.name, error.message)
            return {}

    def _by_key(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """key -> the ids of the measurements that carry it."""
        found: dict[str, list[str]] = {}
        for row in rows:
            said = row.get("measurement_source")
            if isinstance(said, str) and said.startswith(KEYED_PREFIX):
                found.setdefault(said.removeprefix(KEYED_PREFIX), []).append(self._id_of(row) or "")
        return found

    def _id_of(self, row: Mapping[str, Any]) -> str | None:
        """What names a measurement for good. In the base contract that is `id`: measurement_id may repeat."""
        names = ("measurement_id", "id") if self._harmless_again else ("id", "measurement_id")
        return next((_text(row[name]) for name in names if row.get(name) is not None), None)


def _rows_of(answer: Reply | NoAnswer | NotSent) -> list[Mapping[str, Any]] | None:
    """The measurements in the answer to a listing, or None if it is no such answer."""
    rows = (
        answer.data.get("measurements") if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, Mapping) else None
    )
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else None


def _not_sent(rows: range) -> dict[int, Outcome]:
    return dict.fromkeys(rows, Outcome(Fate.NOT_SENT, "not_sent", "It was not sent."))


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:500]
