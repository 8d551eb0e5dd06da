"""What can go wrong between a sender and the predictive API, by name, and when it does.

    server.faults.add(Fault.RESET_AFTER_STORE)                  # the next measurement
    server.faults.skip(5)                                       # then five that go well
    server.faults.add(Fault.TASK_SLOW, times=2, polls=4)        # then two with a slow task
    server.faults.add(Fault.ERROR_500, None, when=lambda body: body["batch_size"] == 7)  # some that never go well
    server.faults.rate(0.1, Fault.RESET_AFTER_STORE, Fault.UNAVAILABLE_503, seed=7)  # besides: one in ten, at random
    server.faults.add(Fault.ERROR_500, on=LISTING)              # another route: any fault that is not about a task

A fault strikes only requests that would have gone well: bad keys (401) and bad bodies (422) are answered as ever and
use nothing up.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypedDict, Unpack

from tests.kit.contract import BASE

RECORD = f"POST {BASE}/record-measurement"
TASK = f"GET {BASE}/task/{{task_id}}"
LISTING = f"GET {BASE}/measurements"
PLUGIN_HEALTH = f"GET {BASE}/health"
HEALTH = "GET /health"
OPENAPI = "GET /openapi.json"

#: A request's body as the fault plan sees it: the validated measurement, or the query of a GET.
Body = Mapping[str, Any]


class Fault(Enum):
    """One way to fail.

    `stores` says whether the measurement is in the store afterwards, `sees` what the client gets.
    """

    ERROR_500 = ("error-500", False, "500 with a plain text body")
    UNAVAILABLE_503 = ("unavailable-503", False, "503 with Retry-After")
    TOO_MANY_429 = ("too-many-429", False, "429 with Retry-After")
    RESET_BEFORE_STORE = ("reset-before-store", False, "a connection reset (RST) and no byte of an answer")
    RESET_AFTER_STORE = ("reset-after-store", True, "a connection reset (RST) and no byte of an answer")
    SILENCE_BEFORE_STORE = ("silence-before-store", False, "nothing at all, until it gives up or the server stops")
    SILENCE_AFTER_STORE = ("silence-after-store", True, "nothing at all, until it gives up or the server stops")
    TASK_FAILED = ("task-failed", False, "200 pending; the task then is failed, with a message and no 'error' key")
    TASK_SLOW = ("task-slow", True, "200 pending; `polls` polls say pending or running; stored when it completes")
    TASK_FORGOTTEN_STORED = ("task-forgotten-stored", True, "200 pending; the task's id is a 404")
    TASK_FORGOTTEN_LOST = ("task-forgotten-lost", False, "200 pending; the task's id is a 404")
    HALF_BODY_STORED = ("half-body-stored", True, "200, half of the announced body, end of connection")
    HALF_BODY_LOST = ("half-body-lost", False, "200, half of the announced body, end of connection")
    GARBAGE_STORED = ("garbage-stored", True, "200 with application/json that is not JSON")
    GARBAGE_LOST = ("garbage-lost", False, "200 with application/json that is not JSON")
    SLOW_BYTES = ("slow-bytes", True, "the right answer, a byte at a time, `delay_s` between them")
    REDIRECT = ("redirect", False, "a redirect (`status`, default 307) to server.redirect_target")

    def __init__(self, label: str, stores: bool, sees: str) -> None:
        self.label = label
        self.stores = stores
        self.sees = sees


#: Faults that only mean something for a task, so only for record-measurement.
_ABOUT_TASKS = {Fault.TASK_FAILED, Fault.TASK_SLOW, Fault.TASK_FORGOTTEN_STORED, Fault.TASK_FORGOTTEN_LOST}


class Options(TypedDict, total=False):
    """How a fault shows itself; each fault uses what concerns it."""

    retry_after: str | None  # of 503 and 429, sent as it is; None: no such header
    polls: int  # of TASK_SLOW
    delay_s: float  # of SLOW_BYTES, before each byte
    status: int  # of REDIRECT


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault about to happen to one request, or (fault None) a request that is let through."""

    fault: Fault | None
    retry_after: str | None = "1"
    polls: int = 3
    delay_s: float = 0.005
    status: int = 307


@dataclass(frozen=True, slots=True)
class _Step:
    strike: Strike
    on: str
    left: int | None  # None: for ever
    when: Callable[[Body], bool] | None


class FaultPlan:
    """Decides for each request whether a fault strikes it. Thread-safe.

    Scripted steps come first, in the order they were added: the first one that is for this route and whose `when`
    agrees takes the request. A request that no step takes is struck with the probability given to `rate`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[_Step] = []
        self._probability = 0.0
        self._choices: tuple[Strike, ...] = ()
        self._random = random.Random(0)
        #: How often each fault has struck.
        self.struck: Counter[Fault] = Counter()

    def add(
        self,
        fault: Fault,
        times: int | None = 1,
        *,
        on: str = RECORD,
        when: Callable[[Body], bool] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Adds a step to the script: `fault` strikes the next `times` requests to `on` for which `when(body)` is true.

        `times` None: all of them, for ever.
        """
        if fault in _ABOUT_TASKS and on != RECORD:
            raise ValueError(f"{fault.name} is about tasks; {on} makes none")
        self._append(_Step(Strike(fault, **options), on, times, when))

    def skip(self, times: int = 1, *, on: str = RECORD) -> None:
        """Adds a step to the script that lets `times` requests through, whatever the rate says."""
        self._append(_Step(Strike(None), on, times, None))

    def rate(self, probability: float, *faults: Fault, seed: int = 0, **options: Unpack[Options]) -> None:
        """From now on strikes record-measurement with `probability`, by one of `faults` at random.

        Default: all of them but REDIRECT and the silences. The draws depend on the seed and the order of requests
        alone. Replaces the rate before it; 0 ends it.
        """
        slow = {Fault.REDIRECT, Fault.SILENCE_BEFORE_STORE, Fault.SILENCE_AFTER_STORE}
        chosen = faults or tuple(fault for fault in Fault if fault not in slow)
        with self._lock:
            self._random = random.Random(seed)
            self._probability = probability
            self._choices = tuple(Strike(fault, **options) for fault in chosen)

    def clear(self) -> None:
        """Ends the script and the rate. What was answered stays as it is, and `struck` keeps its counts."""
        with self._lock:
            self._steps.clear()
            self._probability = 0.0

    @property
    def waiting(self) -> int:
        """How many requests the script will still take; steps without an end count as one."""
        with self._lock:
            return sum(1 if step.left is None else step.left for step in self._steps)

    def draw(self, route: str, body: Body) -> Strike:
        """What happens to this request. Uses up one turn of the step that takes it."""
        with self._lock:
            strike = self._next(route, body)
            if strike.fault is not None:
                self.struck[strike.fault] += 1
            return strike

    def _next(self, route: str, body: Body) -> Strike:
        for index, step in enumerate(self._steps):
            if step.on != route or (step.when is not None and not step.when(body)):
                continue
            if step.left is not None and step.left > 1:
                self._steps[index] = replace(step, left=step.left - 1)
            elif step.left is not None:
                del self._steps[index]
            return step.strike
        if route == RECORD and self._probability and self._random.random() < self._probability:
            return self._random.choice(self._choices)
        return Strike(None)

    def _append(self, step: _Step) -> None:
        if step.left is None or step.left > 0:
            with self._lock:
                self._steps.append(step)
