"""Delivering a batch one POST for each row, as the base contract has it: a few connections kept busy, and one listing that acknowledges them.

How many is a matter of what they bring. A server with one event loop is busy with one, or two; more make up for a network in between; and where
our own processor is what limits, they would only be in each other's way.

A server stores a POST once for each time it comes, so what counts is that each row's POST is begun once, and only while the lease is ours: the calling
thread asks `stopping` before each of them, and a lane that gets to it too late hands the row back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchbridge_plugin.clocks import elapsed_s
from benchbridge_plugin.errors import SinkError
from benchbridge_plugin.model import Fate, Outcome, Receipt
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.lanes import Lanes
from benchbridge_plugin.sinks.listing import API, Listing
from benchbridge_plugin.sinks.pace import Pace
from benchbridge_plugin.sinks.tasks import Tasks
from benchbridge_plugin.sinks.verdicts import NOT_SENT, TROUBLE_LIMIT, judge, never_taken, unusable

BATCH_ROWS = 500
CONNECTIONS = 4
_ROUND = 8  # answers on each connection, after which another one is thought of
_WORTH_ANOTHER = 10  # rows left for which another connection is opened
_PROOF_S = 2.0
_FRESH_S = 1.0  # how long the word that we may go on holds good


@dataclass(frozen=True, slots=True)
class _Permitted:
    """A row whose turn has come, or (None) another connection that has to show that it is answered; and when that was."""

    row: int | None
    at: float


class Singly:
    """Sends rows to one server. What it learns of how many connections that serves outlasts the batch."""

    def __init__(
        self,
        exchange: Exchange,
        listing: Listing,
        tasks: Tasks,
        name: Callable[[], str],
        *,
        connections: int = CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = elapsed_s,
    ) -> None:
        self._exchange = exchange
        self._listing = listing
        self._tasks = tasks
        self._name = name
        self._now = now
        self._connections = 1 if exchange.in_turn else connections
        self._most = self._connections
        self._proven = 1
        self._pace = Pace(self._connections, answers=_ROUND, clock=clock)

    def renew(self) -> None:
        """A new run: a server that did not take another connection is asked again."""
        self._most = self._connections

    def send(self, payloads: Sequence[Mapping[str, Any]], stopping: Callable[[], bool]) -> Receipt:
        exceptions: dict[int, Outcome] = {}
        tasks: dict[int, str] = {}
        stop: SinkError | None = None
        is_up = True
        is_over = False
        proving = 0
        trouble = 0
        allowed = 1  # requests at a time: one more after each success, and one alone after a failure
        waiting = deque(range(len(payloads)))
        lanes: Lanes[_Permitted, Reply | NoAnswer | NotSent | None] = Lanes(lambda job: self._work(payloads, job), most=self._most)
        self._pace.start()
        with lanes:
            while True:
                while waiting and not is_over and lanes.in_flight - proving < allowed:
                    if stopping():
                        is_over = True
                        break
                    lanes.begin(_Permitted(waiting.popleft(), self._now()))
                if not lanes.in_flight:
                    break
                job, answer = lanes.take()
                if job.row is None:
                    proving = 0
                    if isinstance(answer, Reply):
                        self._proven += 1
                    else:  # it serves one connection after the other: what waits behind ours would be stored at any time
                        self._most = self._proven
                    continue
                if answer is None:
                    waiting.appendleft(job.row)
                    continue
                task = answer.data.get("task_id") if isinstance(answer, Reply) and isinstance(answer.data, Mapping) else None
                if isinstance(answer, Reply) and answer.status in (200, 201, 202) and isinstance(task, str) and task:
                    tasks[job.row] = task
                    trouble = 0
                    self._pace.answered(1)
                    allowed = min(allowed + 1, self._proven, self._pace.allowed)
                    wanted = min(self._pace.allowed, self._most)
                    if not (proving or is_over) and self._proven < wanted and len(waiting) >= _WORTH_ANOTHER:
                        proving = 1
                        lanes.begin(_Permitted(None, self._now()))
                    continue
                allowed = 1
                if never_taken(answer):
                    exceptions[job.row] = NOT_SENT
                    is_over = True
                    stop = stop or unusable(self._name(), answer)
                    continue
                exceptions[job.row] = judge(answer, self._tasks.harmless_again)
                trouble = 0 if exceptions[job.row].fate is Fate.REJECTED else trouble + 1
                is_up = is_up and (not isinstance(answer, NoAnswer) or self._listing.answers())
                if trouble >= TROUBLE_LIMIT or not is_up:
                    is_over = True
                    stop = stop or unusable(self._name(), answer)
        exceptions.update(dict.fromkeys(waiting, NOT_SENT))
        keys = [str(payload["idempotency_key"]) for payload in payloads]
        ids, unacknowledged = self._tasks.acknowledge(keys, dict(sorted(tasks.items())), stopping, is_up=is_up)
        return Receipt([ids.get(row) for row in range(len(payloads))], {**exceptions, **unacknowledged}, stop=stop)

    def _work(self, payloads: Sequence[Mapping[str, Any]], job: _Permitted) -> Reply | NoAnswer | NotSent | None:
        """In a lane. None: the permission had gone stale, and nothing was sent."""
        if job.row is None:
            return self._exchange.call("GET", "/health", timeout_s=_PROOF_S, fresh=True)
        if self._now() - job.at > _FRESH_S:
            return None
        payload = payloads[job.row]
        body = {name: value for name, value in payload.items() if name != "idempotency_key"}
        # Always with its key: a server that understands keys may just not have said so when it was asked.
        headers = {"Idempotency-Key": str(payload["idempotency_key"])}
        return self._exchange.call("POST", f"{API}/record-measurement", json_body=body, headers=headers)
